"""The house itself: data flows one way, and no file outgrows its purpose."""

import ast
import graphlib
from pathlib import Path

import pytest

import vamf

ROOT = Path(vamf.__file__).parent
FILES = {".".join(("vamf", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & MODULES.keys()


GRAPH = {name: imports(path) - {name} for name, path in MODULES.items()}


def room(name: str) -> str:
    """The part of the package that a module belongs to."""
    return ".".join(name.split(".")[:2])


def test_no_modules_import_each_other():
    list(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError, which names the circle


def test_no_rooms_import_each_other():
    rooms = {}
    for name, imported in GRAPH.items():
        rooms.setdefault(room(name), set()).update({room(one) for one in imported} - {room(name), "vamf"})
    list(graphlib.TopologicalSorter(rooms).static_order())


@pytest.mark.parametrize(("pattern", "most"), [("**/*.py", 400), ("objectives/objective.py", 200)])
def test_no_file_is_long(pattern, most):
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in ROOT.glob(pattern)}
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines >= most} == {}
