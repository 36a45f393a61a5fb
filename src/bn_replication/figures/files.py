"""A finished figure and the files it becomes: an SVG or PNG that depends on what it shows alone, and its numbers."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bn_replication.figures.style import Frame, styled
from bn_replication.records import atomic_write

LARGE_TABLE = 100_000  # bytes of CSV; pandas reads a packed one as it is


@dataclass(frozen=True)
class Drawing:
    """A finished figure: file name, title, what a reader must know, and the frame it was drawn from."""

    name: str
    title: str
    caption: str
    figure: Figure
    frame: Frame


@styled
def render(figure: Figure, kind: str = "svg") -> bytes:
    """Return ``figure`` as the bytes of an SVG or PNG that depend on nothing but what it shows."""
    buffer = io.BytesIO()
    # Neither a date nor a version: the same numbers make the same file.
    metadata: Any = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, metadata=metadata)
    if kind != "svg":
        return buffer.getvalue()

    def shorten(tag: re.Match[bytes]) -> bytes:
        return re.sub(rb"\d+\.\d{3,}", lambda number: b"%.2f" % float(number[0]), tag[0])

    # A hundredth of a point is finer than any printer, and half the bytes. In tags only: text stays.
    return re.sub(rb"<[^>]*>", shorten, buffer.getvalue())


def save(drawing: Drawing, directory: Path, kinds: Sequence[str] = ("svg", "png")) -> None:
    """Write ``drawing`` to ``directory`` in each of ``kinds``, and what it was drawn from as CSV, packed if large."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        atomic_write(directory / f"{drawing.name}.{kind}", render(drawing.figure, kind))
    table = drawing.frame.to_csv(index=False, float_format="%.4g", lineterminator="\n")
    plain, packed = directory / f"{drawing.name}.csv", directory / f"{drawing.name}.csv.gz"
    if len(table) > LARGE_TABLE:
        atomic_write(packed, gzip.compress(table.encode(), mtime=0))
        plain.unlink(missing_ok=True)
    else:
        atomic_write(plain, table.encode())
        packed.unlink(missing_ok=True)
