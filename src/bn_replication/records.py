"""The file format of a run, written by the trainer and read by everything else.

A run is a directory ``<root>/<scale>/<study>/<arm>/seed=<n>/`` that holds

- ``curves.jsonl``: one JSON object a row, ordered by step;
- ``activations.jsonl``: the probes' rows, in later records with a ``gradient``. Once published it is
  ``activations.json``, one object that holds the rows column by column, null where a row has no such value; and both
  files end in ``.xz``;
- ``run.json``: configuration, outcome, provenance and the digests of the two files above. It is written
  last and atomically, so a directory without it is a run that has not ended. Where a published record was found to
  misdescribe its run, the correction stands in it, and under ``amended`` what it was and why.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bn_replication.errors import UserError

if TYPE_CHECKING:
    import pandas as pd  # half a second, which the command line and its jobs need not wait for

FORMAT = 1
RUN, CURVES, ACTIVATIONS = "run.json", "curves.jsonl", "activations.jsonl"
TABLE = "activations.json"  # what ACTIVATIONS becomes once published
STATUSES = ("completed", "diverged", "failed")
PACKED = ".xz"  # ends the name of a file that is packed: the smallest that the standard library can read
TEMPORARY = ".tmp"  # ends the name of a file that is not yet whole
_IDENTITY = ["run", "study", "arm", "seed", "scale"]


# --- writing ---------------------------------------------------------------------------------------------


def run_directory(root: Path, scale: str, study: str, arm: str, seed: int) -> Path:
    """Return where a run's record stands below ``root``."""
    return root / scale / study / arm / f"seed={seed}"


def atomic_write(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` so that a kill at any moment leaves the old file or the new one, never neither.

    Raises ``OSError`` (a full disk, say) with the old file intact and no temporary file left behind.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o644)  # mkstemp's 0600 is for secrets
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    # The rename itself is only durable once the directory is.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_temporaries(directory: Path) -> None:
    """Remove what a kill left half-written in ``directory``, where nobody else may be writing."""
    for path in directory.glob(f".*{TEMPORARY}"):
        path.unlink()


def digest(content: bytes | Path) -> str:
    """Return the SHA-256 of bytes, or of a file's content; that of a ``.xz`` is of what it unpacks to."""
    if isinstance(content, Path):
        content = unpacked(content)
    return hashlib.sha256(content).hexdigest()


def json_line(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON; numbers that are not finite become null, as JSON has none."""
    return json.dumps(finite(row), separators=(",", ":"), allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Return ``value`` with every NaN or infinity in it replaced by ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return rows as one JSON object of columns, which packs a fifth smaller; null where a row has no such value."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return json_line({key: [row.get(key) for row in rows] for key in keys}).encode()


def write_run_json(directory: Path, record: Mapping[str, Any]) -> None:
    """Write a run's ``run.json``: the last act of a run, which declares it ended."""
    assert record["status"] in STATUSES, record["status"]
    text = json.dumps(finite({"format": FORMAT, **record}), indent=1, sort_keys=True, allow_nan=False)
    atomic_write(directory / RUN, (text + "\n").encode())


# --- reading ---------------------------------------------------------------------------------------------

# What every record has, and as what.
_WHOLE = {"study": str, "arm": str, "seed": int, "scale": str, "status": str, "steps_done": int}
_WHOLE |= dict.fromkeys(("summary", "config", "choices", "files"), dict)


def read_run_json(directory: Path) -> dict[str, Any] | None:
    """Return a run's record, or ``None`` if the run has not ended; a damaged record is a :class:`UserError`."""
    path = directory / RUN
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: found no valid JSON ({error}), expected a record; remove it to run again") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{path}: found format {found}, expected {FORMAT}; remove it to run again")
    for key, kind in _WHOLE.items():
        if not isinstance(record.get(key), kind):
            found = f"{type(record[key]).__name__} as {key}" if key in record else f"no {key}"
            raise UserError(f"{path}: found {found}, expected a whole record; remove it to run again")
    if (status := record["status"]) not in STATUSES:
        expected = f"one of {', '.join(STATUSES)}"
        raise UserError(f"{path}: found status '{status}', expected {expected}; remove it to run again")
    return record


def pack(content: bytes) -> bytes:
    """Return ``content`` packed, as a ``.xz`` file holds it; the same content gives the same bytes."""
    return lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)


def unpacked(path: Path) -> bytes:
    """Return the content of a file, unpacked where it is a ``.xz``."""
    return lzma.decompress(path.read_bytes()) if path.suffix == PACKED else path.read_bytes()


def as_written_or_packed(path: Path) -> Path | None:
    """Return ``path`` where it is a file, else its ``.xz``, else ``None``."""
    return next((p for p in (path, path.with_name(path.name + PACKED)) if p.exists()), None)


def table_rows(content: bytes) -> list[dict[str, Any]]:
    """Return the rows of a :func:`table`."""
    columns = json.loads(content)
    rows = (zip(columns, values, strict=True) for values in zip(*columns.values(), strict=True))
    return [{key: value for key, value in row if value is not None} for row in rows]


def read_rows(path: Path, growing: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the rows of a ``.jsonl`` file, of its ``.xz`` or of its packed :func:`table`; no file, no rows.

    Args:
        growing: the last line may be one that is being written, or was cut off: then it is left out.
    """
    found = as_written_or_packed(path)
    if found is None and (columns := as_written_or_packed(path.with_suffix(".json"))):
        yield from table_rows(unpacked(columns))
    lines = unpacked(found).decode().splitlines() if found else []
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            if not growing or number < len(lines):
                raise


def readable(path: Path) -> bytes | None:
    """Return :func:`unpacked`, or ``None`` where the file is damaged so that it cannot be."""
    try:
        return unpacked(path)
    except (OSError, EOFError, lzma.LZMAError):
        return None


def signed_content(directory: Path, name: str, signed: str) -> bytes:
    """Return what is in a file of an ended run, unpacked, if its digest is ``signed``, the one in the run's record.

    Raises:
        UserError: there is no such file, or another content in it.
    """
    path = as_written_or_packed(directory / name)
    content = None if path is None else readable(path)
    if content is None or digest(content) != signed:
        found = "no file" if path is None else "another content"
        expected = f"the one whose digest is in {RUN}"
        raise UserError(f"{directory / name}: found {found}, expected {expected}; remove {directory} to run it again")
    return content


def run_rows(directory: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a file of an ended run, held against its record; none if the run wrote no such file, or if it
    is being run again by now."""
    record = read_run_json(directory)
    files = {} if record is None else record["files"]
    if name == ACTIVATIONS and TABLE in files:
        return table_rows(signed_content(directory, TABLE, files[TABLE]))
    lines = signed_content(directory, name, files[name]).decode().splitlines() if name in files else []
    return [json.loads(line) for line in lines]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` as ``{"a.b": 1}``; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def run_directories(root: Path, study: str | None = None, scale: str | None = None) -> list[Path]:
    """Return the directories of all ended runs below ``root``, sorted."""
    return sorted(path.parent for path in root.glob(f"{scale or '*'}/{study or '*'}/*/seed=*/{RUN}"))


def place(record: Mapping[str, Any]) -> Path:
    """Return where a record belongs, as :func:`run_directory` does, below any root."""
    return run_directory(Path(), record["scale"], record["study"], record["arm"], record["seed"])


def refuse_misfiled(directory: Path, record: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` if a record lies in another run's place: it would be read as that, or count twice."""
    if directory.parts[-4:] != (named := place(record)).parts:
        found = f"found the record of {named.as_posix()}, expected that of its own path"
        raise UserError(f"{directory}: {found}; move it back, or out of here")


def load_runs(root: Path | Iterable[Path], study: str | None = None, scale: str | None = None) -> pd.DataFrame:
    """Return one row a run: identity, outcome, ``summary.*``, the configuration's dotted keys and ``choice.*``."""
    import pandas as pd

    roots = [root] if isinstance(root, Path) else list(root)
    rows = []
    for directory in (path for one in roots for path in run_directories(one, study, scale)):
        record = read_run_json(directory)
        assert record is not None  # its run.json was listed a moment ago
        refuse_misfiled(directory, record)
        keep = ("study", "arm", "seed", "scale", "status", "reason", "steps_done", "seconds", "started")
        row: dict[str, Any] = {"path": directory, "run": str(directory), **{key: record.get(key) for key in keep}}
        row |= {f"summary.{key}": value for key, value in record["summary"].items()}
        row |= {f"choice.{key}": value for key, value in record["choices"].items()}
        rows.append(row | {k: v for k, v in flatten(record["config"]).items() if k not in row})
    columns = ["path", *_IDENTITY, "status", "reason", "steps_done", "seconds", "started"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=pd.Index(columns))


def _load(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {"run": run, "study": study, "arm": arm, "seed": seed, "scale": scale, **row}
        for run, study, arm, seed, scale in runs[_IDENTITY].itertuples(index=False)
        for row in run_rows(Path(run), name)
    ]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=pd.Index([*_IDENTITY, "step"]))


def load_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the learning curves of ``runs`` (rows of :func:`load_runs`), one row a logged step."""
    return _load(runs, CURVES)


def load_activations(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the activation records of ``runs`` (rows of :func:`load_runs`), one row a step and layer."""
    return _load(runs, ACTIVATIONS)
