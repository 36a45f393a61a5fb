"""A finished figure and the files it becomes: an SVG or PNG that depends on what it shows alone, and its numbers."""

from __future__ import annotations

import base64
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

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

    return slim(buffer.getvalue().decode()).encode()


def slim(svg: str) -> str:
    """Return an SVG of matplotlib's without what it says twice or to nobody: a third of the bytes, the same ink.

    Numbers keep a hundredth of a point, and the points of lines a tenth, which is finer than a printer's dot. What many
    elements are styled by is a class, named by what it says: figures on one page share them (:func:`one_style`).
    Pictures of few colours get a palette.
    """
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r">\s+<", "><", svg)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^)]*\)"', "", svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda match: _path(match[0]), svg)
    # In tags only: text stays as it is.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"\d+\.\d{3,}", lambda n: _number(n[0], 2), tag[0]), svg)
    svg = re.sub(r"(?<=data:image/png;base64,)[^\"]*", lambda match: _picture(match[0]), svg)
    found = 1
    while found:  # groups that say nothing, from within
        svg, found = re.subn(r"<g>((?:(?!</?g[ >]).)*)</g>", r"\1", svg, flags=re.DOTALL)
    rules: dict[str, str] = {}

    def classed(match: re.Match[str]) -> str:
        said = re.sub(r"(?<=[:;]) ", "", match[1])
        name = f"s{zlib.crc32(said.encode()):08x}"
        rules[name] = f".{name}{{{said}}}"
        return f' class="{name}"'

    head, tag, body = svg.partition("</style>")
    if not tag:
        return svg
    body = re.sub(r' style="([^"]*)"', classed, body)
    return f"{head}{''.join(sorted(rules.values()))}{tag}{body}"


def one_style(page: str) -> str:
    """Return an HTML page in which the rules of all its slim SVGs stand once, at the end of its first style sheet."""
    rules: dict[str, None] = {}

    def collected(match: re.Match[str]) -> str:
        rules.update(dict.fromkeys(re.findall(r"[^{}]+\{[^{}]*\}", match[1])))
        return ""

    page = re.sub(r'<style type="text/css">(.*?)</style>', collected, page, flags=re.DOTALL)
    return page.replace("</style>", "".join(rules) + "</style>", 1)


def _picture(encoded: str) -> str:
    """Return a PNG, base64 both ways, as one with a palette where it has at most 256 colours, all opaque."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))
    colours, places = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
    if len(colours) > 256 or (colours[:, 3] < 255).any():
        return encoded
    picture, buffer = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8)), io.BytesIO()
    picture.putpalette(colours[:, :3].astype(np.uint8).tobytes())
    picture.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _path(data: str) -> str:
    """Return the data of a path without what may be left out, the points of one without curves at a tenth."""
    places = 2 if re.search("[A-KN-Z]", data) else 1  # markers are drawn by curves
    parts: list[str] = []
    command = ""
    for token in re.findall(r"[A-Za-z]|[-+.\d]+(?:e[-+]?\d+)?", data):
        if token.isalpha():
            if not (token == "L" and command in ("M", "L")):  # which L's points are
                parts.append(token)
            command = token
        else:
            parts.append(_number(token, places))
    return re.sub(r" ?([A-Za-z]) ?", r"\1", " ".join(parts))


def _number(text: str, places: int) -> str:
    short = f"{float(text):.{places}f}".rstrip("0").rstrip(".")
    return "0" if short in ("", "-", "-0") else short


def save(drawing: Drawing, directory: Path, kinds: Sequence[str] = ("svg", "png")) -> None:
    """Write ``drawing`` to ``directory`` in each of ``kinds``, and what it was drawn from as CSV, packed if large."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        atomic_write(directory / f"{drawing.name}.{kind}", render(drawing.figure, kind))
    # Arm and seed name a run; where its record lies on this machine is nobody's affair.
    frame = drawing.frame.drop(columns="run", errors="ignore")
    table = frame.to_csv(index=False, float_format="%.4g", lineterminator="\n")
    plain, packed = directory / f"{drawing.name}.csv", directory / f"{drawing.name}.csv.gz"
    if len(table) > LARGE_TABLE:
        atomic_write(packed, gzip.compress(table.encode(), mtime=0))
        plain.unlink(missing_ok=True)
    else:
        atomic_write(plain, table.encode())
        packed.unlink(missing_ok=True)
