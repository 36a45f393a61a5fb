"""Runs the notebooks and renders each as a page that opens offline: ``python -m bn_replication.notebooks``.

Nothing is written back: the notebooks in git carry no outputs (``--strip`` takes out what an editor left there).
The pages go beside the report, in its style; their code is coloured and their Markdown set here, as the usual
converter's pages ask a network for both.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup
from pygments import highlight
from pygments.formatters.html import HtmlFormatter
from pygments.lexers.python import PythonLexer

from bn_replication.errors import UserError, nearest, one_line
from bn_replication.panels import inline
from bn_replication.records import atomic_write
from bn_replication.report import HERE

NOTEBOOKS = HERE.parents[1] / "notebooks"
PATIENCE = 300  # seconds a cell may take, and a kernel to start
COLOURS = HtmlFormatter(nowrap=True, style="bw", classprefix="hl-")


def find(names: Sequence[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the notebooks of those names, all of them if none is named, in their order."""
    every = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    for name in names:
        if name not in every:
            raise UserError(f"found no notebook '{name}', expected one of {', '.join(every)}{nearest(name, every)}")
    return [every[name] for name in names or every]


def execute(path: Path, root: Path = NOTEBOOKS.parent) -> Any:
    """Return a notebook with the outputs of a fresh run of it, in ``root``; the file stays as it is.

    Raises :class:`UserError`, naming cell and error, where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    book = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="bn-") as sockets:
        # No port that others on the machine could speak to.
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        where = {"metadata": {"path": str(root)}}
        client = NotebookClient(book, timeout=PATIENCE, kernel_name="python3", resources=where, config=config)
        client.startup_timeout = PATIENCE  # a busy machine starts a kernel slowly
        try:
            client.execute()
        except CellExecutionError as error:
            raise UserError(f"{path}: a cell failed with {error.ename}: {error.evalue}") from error
        except (CellTimeoutError, DeadKernelError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: found a cell that did not end ({text}), expected it within {PATIENCE} s"
            ) from error
    return book


def stripped(text: str) -> str:
    """Return a notebook's JSON without outputs, counts and what editors add to metadata."""
    book = json.loads(text)
    for cell in book["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    book["metadata"] = {key: book["metadata"][key] for key in ("kernelspec",) if key in book["metadata"]}
    book["metadata"]["language_info"] = {"name": "python"}
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def page(name: str, book: Any, others: Sequence[str] = ()) -> str:
    """Return an executed notebook as one HTML document that asks nothing of any network."""
    body = "\n".join(_cells(name, book.cells))
    title = re.search(r"^# (.+)$", book.cells[0].source, re.MULTILINE)
    links = [f'<a href="{other}.html">{other}</a>' for other in others if other != name]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{html.escape(title[1] if title else name)}</title>
<link rel="icon" href="data:,">
<style>{(HERE / "report.css").read_text()}{COLOURS.get_style_defs(".code")}</style>
</head>
<body class="notebook">
<nav aria-label="Contents"><a href="../report.html">Report</a> {" ".join(links)}</nav>
<main>
{body}
</main>
</body>
</html>
"""


def _cells(name: str, cells: Sequence[Any]) -> Iterator[str]:
    # No raw HTML: a notebook's Markdown is text.
    markdown, drawn = MarkdownIt("commonmark", {"html": False}).enable("table"), 0
    for cell in cells:
        if cell.cell_type == "markdown":
            yield markdown.render(cell.source).replace('.ipynb"', '.html"')
        elif cell.cell_type == "code":
            yield f'<pre class="code" tabindex="0"><code>{highlight(cell.source, PythonLexer(), COLOURS)}</code></pre>'
            for output in cell.outputs:
                drawn += 1
                yield _output(output, markdown, f"{name}-{drawn}")


def _output(output: Any, markdown: MarkdownIt, key: str) -> str:
    """Return one output as HTML, the richest form that it has."""
    if output.output_type == "stream":
        return f'<pre class="output">{html.escape(output.text)}</pre>'
    data = output.get("data", {})
    if "image/svg+xml" in data:
        drawing = inline(data["image/svg+xml"].encode(), key, f"Figure {key}, described in the text above it")
        return (
            f'<figure><div class="scroll" tabindex="0" role="group" aria-label="Figure {key}">{drawing}</div></figure>'
        )
    if "image/png" in data:
        return f'<figure><img alt="Figure {key}" src="data:image/png;base64,{data["image/png"].strip()}"></figure>'
    if "text/html" in data:  # a table of pandas, whose cells it has escaped
        table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL).replace(' border="1"', "")
        return (
            str(Markup('<div class="scroll" tabindex="0" role="group" aria-label="Table {}">').format(key))
            + table
            + "</div>"
        )
    if "text/markdown" in data:
        return markdown.render(data["text/markdown"])
    return f'<pre class="output">{html.escape(data.get("text/plain", ""))}</pre>'


@one_line()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bn_replication.notebooks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="which; all of them if none is named")
    parser.add_argument("--out", type=Path, default=Path("results/notebooks"), help="default: %(default)s")
    parser.add_argument("--strip", action="store_true", help="take outputs out of the notebooks, and run nothing")
    options = parser.parse_args(arguments)
    chosen = find(options.names)
    for path in chosen:
        if options.strip:
            before = path.read_text()
            if (after := stripped(before)) != before:
                atomic_write(path, after.encode())
                print(f"{path}: outputs taken out")
            continue
        content = page(path.stem, execute(path), [each.stem for each in find()]).encode()
        options.out.mkdir(parents=True, exist_ok=True)
        atomic_write(options.out / f"{path.stem}.html", content)
        print(f"{options.out / path.stem}.html: {len(content) / 1e6:.2f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
