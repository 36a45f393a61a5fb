"""The notebooks: they define nothing, carry no outputs, run on what is published, and render without a network."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from bn_replication import notebooks
from bn_replication.errors import UserError

NAMES = [path.stem for path in notebooks.find()]


def code(path: Path) -> str:
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", notebooks.find(), ids=NAMES)
def test_a_notebook_imports_the_package_and_defines_nothing(path: Path) -> None:
    tree = ast.parse(code(path))
    defined = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    assert defined == []
    assert "from bn_replication" in code(path)
    assert path.read_text() == notebooks.stripped(path.read_text())  # no outputs in git


@pytest.mark.slow
@pytest.mark.parametrize("path", notebooks.find(), ids=NAMES)
def test_a_notebook_runs_and_its_page_asks_nothing_of_any_network(path: Path) -> None:
    before = path.read_bytes()
    book = notebooks.execute(path)
    assert path.read_bytes() == before
    page = notebooks.page(path.stem, book, NAMES)
    assert len(page) < 1_000_000
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert "<script" not in page
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.get("name") == "stderr"]  # no warning either
    if path.stem == "00_tour":
        numbers = [float(o["data"]["text/plain"]) for o in outputs if re.fullmatch(r"[\d.e-]+", _text(o))]
        assert len(numbers) == 4  # Algorithm 1, its undoing and its gradient by hand; Algorithm 2 folded
        assert max(numbers) < 1e-4


def _text(output: dict[str, object]) -> str:
    data = output.get("data")
    return str(data.get("text/plain", "")) if isinstance(data, dict) else ""


def test_a_cell_that_fails_is_named_and_outputs_are_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = json.loads(notebooks.find(["00_tour"])[0].read_text())
    cell = {"cell_type": "code", "id": "x", "metadata": {"tags": ["a"]}, "source": ["1 / 0"], "execution_count": 7}
    output = {"output_type": "stream", "name": "stdout", "text": ["left behind"]}
    path = tmp_path / "bad.ipynb"
    path.write_text(json.dumps(book | {"cells": [cell | {"outputs": [output]}]}))
    assert "left behind" not in notebooks.stripped(path.read_text())
    with pytest.raises(UserError, match=r"bad\.ipynb: a cell failed with ZeroDivisionError"):
        notebooks.execute(path, tmp_path)
    monkeypatch.setattr(notebooks, "PATIENCE", 20)
    path.write_text(json.dumps(book | {"cells": [cell | {"source": ["import os; os._exit(1)"]}]}))
    with pytest.raises(UserError, match=r"bad\.ipynb: found a cell that did not end"):
        notebooks.execute(path, tmp_path)
    with pytest.raises(UserError, match="did you mean '00_tour'"):
        notebooks.find(["00_tuor"])
