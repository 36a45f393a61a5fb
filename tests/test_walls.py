"""Who may import whom: the walls between what trains, what reads records, and what only computes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "bn_replication"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}
# Each module's own imports of the package, at most; `errors` and `streams` import nothing and are open to all.
ALLOWED = {
    "errors": set(),
    "streams": set(),
    "norms": set(),
    "schedules": set(),
    "metrics": set(),
    "stats": set(),
    "evaluate": {"norms"},
    "probes": {"norms", "evaluate"},
    "models": {"models"},
    "data": {"data"},
    "records": set(),
    "schema": set(),
    "figures": {"figures", "records", "metrics", "stats", "claims", "ledger"},
}
# The figures' own modules, each importing none but those before it.
DRAWERS = (
    "style",
    "frames",
    "paths",
    "outcomes",
    "files",
    "general",
    "particular",
    "beyond",
    "studies",
    "__init__",
    "__main__",
)
READERS = (
    "records",
    "metrics",
    "stats",
    "claims",
    "figures",
    "figures.__main__",
    "panels",
    "report",
    "sensitivity",
    "publish",
    "verify",
    "status",
    "dashboard",
    "notebooks",
    "schema",
    "train",
)
COMPUTERS = ("metrics", "stats")


def imports_of(path: Path) -> set[str]:
    """Return every module that ``path`` imports, wherever in it; ``from package import module`` counts as both."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    """Return the top-level modules of the package that ``path`` imports."""
    names = {name.removeprefix("bn_replication.") for name in imports_of(path) if name.startswith("bn_replication.")}
    return {name.partition(".")[0] for name in names} & {name.partition(".")[0] for name in MODULES}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_module_reaches_over_its_wall(name: str) -> None:
    top = name.partition(".")[0]
    if top in ALLOWED and not name.endswith("__main__") and name != "models.architecture":
        assert own_imports(MODULES[name]) <= ALLOWED[top] | {"errors", "streams"}
    assert not {"experiments", "notebooks", "tests"} & {found.partition(".")[0] for found in imports_of(MODULES[name])}


def test_figures_are_drawn_in_layers() -> None:
    """What draws on axes knows nothing of whole figures, and what lays those out nothing of which study is drawn."""
    folder = SOURCE / "figures"
    assert {path.stem for path in folder.glob("*.py")} == set(DRAWERS)
    for place, name in enumerate(DRAWERS):
        found = imports_of(folder / f"{name}.py")
        later = {f"bn_replication.figures.{other}" for other in DRAWERS[place:]}
        assert not found & later, name
        if name != "__main__":  # from the package itself, which imports them all
            assert "bn_replication.figures" not in found, name


@pytest.mark.parametrize("name", COMPUTERS)
def test_statistics_need_numbers_alone(name: str) -> None:
    foreign = {found.partition(".")[0] for found in imports_of(MODULES[name])} - set(sys.stdlib_module_names)
    assert foreign <= {"numpy", "scipy", "pandas", "bn_replication"}


NO_TORCH = """
import importlib, sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ImportError(name)
sys.meta_path.insert(0, NoTorch())
for name in sys.argv[1:]:
    importlib.import_module("bn_replication." + name)
"""


def test_the_reading_half_works_where_there_is_no_torch() -> None:
    """In a process where torch cannot be imported, everything that judges and reports can be."""
    subprocess.run([sys.executable, "-c", NO_TORCH, *READERS], check=True, timeout=300)


# What runs code that it is given, by the last part of its name; where a call is harmless, the words that make it so.
RUNS = {"eval": "", "exec": "", "compile": "re.", "__import__": "", "system": "platform.", "popen": "",
        "instantiate": "", "loads": "json.", "Unpickler": "", "read_pickle": "", "unsafe_load": "", "full_load": "",
        "import_module": "import_module(module)"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_that_is_read_can_run(name: str) -> None:
    """No pickle is trusted, no text is evaluated, no class is found by a name from outside but by the allow-list."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if not isinstance(node, ast.Call):
            continue
        text, function = ast.unparse(node), ast.unparse(node.func)
        where = f"{name}:{node.lineno}: {text}"
        last = function.rpartition(".")[2]
        if last in RUNS and not function.endswith(".eval"):  # a network's
            assert RUNS[last], where
            assert RUNS[last] in text, where
        assert function != "torch.load" or "weights_only=True" in text, where
        assert function != "yaml.load" or "_UniqueKeys" in text, where  # a SafeLoader
        assert "allow_pickle=True" not in text, where
        assert "shell=True" not in text, where
