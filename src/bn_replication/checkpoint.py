"""A training state on disk: saved so that a kill loses no more than the steps since the last one.

A checkpoint is what ``torch.save`` writes followed by its SHA-256. Two are kept; one that is cut short or
altered is recognised by its digest and the one before it is used. Only tensors and plain values are ever
read back (``weights_only=True``): a checkpoint cannot run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from bn_replication.errors import UserError
from bn_replication.records import TEMPORARY, atomic_write

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
WEIGHTS = "weights.pt"  # of a run that has ended, where its configuration says to keep them
_DIGEST_BYTES = hashlib.sha256().digest_size


def save(directory: Path, state: dict[str, Any]) -> None:
    """Write ``state`` as the newest checkpoint of ``directory``, keeping the one before it.

    Raises ``OSError`` where it cannot be written; the earlier checkpoints are then intact.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    # Linked, not renamed: at no moment is there no file under the current name.
    with contextlib.suppress(FileNotFoundError):
        staging = directory / f".{PREVIOUS}{TEMPORARY}"
        staging.unlink(missing_ok=True)  # of a save that failed between the two
        os.link(directory / CURRENT, staging)
        os.replace(staging, directory / PREVIOUS)
        # A save that was killed right here left both names on one file, and to rename one to the other does nothing.
        staging.unlink(missing_ok=True)
    atomic_write(directory / CURRENT, payload + hashlib.sha256(payload).digest())


def load(directory: Path, device: str = "cpu") -> dict[str, Any] | None:
    """Return the newest sound checkpoint of ``directory``, or ``None``; a damaged one is warned of and passed over.

    Raises :class:`UserError` for one that is whole and holds anything but tensors and plain values.
    """
    for name in (CURRENT, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        content = path.read_bytes()
        payload, recorded = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() == recorded:
            return _unpacked(path, payload, device)
        warnings.warn(f"{path}: found a damaged checkpoint (wrong digest), going back to an earlier one", stacklevel=2)
    return None


def discard(directory: Path) -> None:
    """Remove the checkpoints of a run that has ended."""
    for name in (CURRENT, PREVIOUS):
        (directory / name).unlink(missing_ok=True)


def keep(path: Path, state: dict[str, Any]) -> str:
    """Write ``state`` to ``path`` for good, in a checkpoint's format, and return its digest (SHA-256)."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = hashlib.sha256(buffer.getvalue())
    atomic_write(path, buffer.getvalue() + payload.digest())
    return payload.hexdigest()


def kept(path: Path, signed: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Return what :func:`keep` wrote to ``path``.

    Raises :class:`UserError` if it is not there, is damaged, has another digest than ``signed``, or holds anything but
    tensors and plain values.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"found no {path}, expected what the run kept; remove its directory and run it again") from None
    payload, recorded = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != recorded or signed not in (None, recorded.hex()):
        raise UserError(f"{path}: found another content than was written; remove its directory and run it again")
    return _unpacked(path, payload, device)


def _unpacked(path: Path, payload: bytes, device: str) -> dict[str, Any]:
    try:
        return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition(" was not")[0]
        raise UserError(
            f"{path}: found what no checkpoint of ours holds ({reason or 'no pickle'}), expected tensors and "
            "plain values; do not trust this directory, remove it"
        ) from None
