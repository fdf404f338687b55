"""Imports point down the layers, run in no circle, and stand at the top of their files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    "flowsde": ROOT / "flowsde",
    "flowsde_converters": ROOT / "converters/flowsde_converters",
}

LAYERS = (
    # Helpers that know nothing of flows.
    {"_arrays", "_checks", "_files", "_keys", "_own", "_replace", "_schema", "_states", "_static"}
    | {"_text", "_threads", "_version", "interrupts", "pictures"},
    {"interpolants", "predictions", "diffusion", "grids", "kernels"},
    {"adapters", "analytic", "classifier_free", "conds", "flow", "fresh", "modules", "rewards"}
    | {"sharding"},
    {"search"},
    {"runner"},
    {"models"},
    {"shapes"},
    # The public door: it imports all of the above, when a name is first used.
    {"flowsde"},
    {"flowsde_converters"},
    {"cli", "__main__"},
)
"""What stands in each, from the lowest."""
LAZY = {"cli.main", "cli.sample", "cli.sources"}
"""Modules that import some of the project late, so that the command starts fast."""


def modules(sources):
    """{dotted name: parsed file}, without "flowsde." before it."""
    found = {}
    for package, folder in sources.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            name = ".".join(part for part in parts if part != "__init__").removeprefix("flowsde.")
            found[name] = ast.parse(path.read_text())
    return found


def imports(tree, known):
    """(module, whether inside a function) of each import of one of the known modules."""
    inside = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "an import by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            name = name.removeprefix("flowsde.")
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name, node in inside


def layer(name):
    first = name.partition(".")[0]
    return next((i for i, names in enumerate(LAYERS) if first in names), len(LAYERS))


def wrong(found):
    """In words, what is not as it should be."""
    said, needs = [], {}
    for name, tree in found.items():
        used = list(imports(tree, found))
        needs[name] = {other for other, late in used if not late and other != name}
        for other, late in used:
            if layer(other) > layer(name):
                said.append(f"{name} imports {other}, which is above it")
            if late and name not in LAZY:
                said.append(f"{name} imports {other} inside a function")
            if other.startswith("flowsde_converters") and name.startswith("cli") and (
                name != "cli.convert"
            ):  # fmt: skip
                said.append(f"{name} imports {other}, which is for cli.convert")
    while needs:
        free = {name for name, others in needs.items() if not others & needs.keys()}
        if not free:
            said.append(f"imports in a circle among {', '.join(sorted(needs))}")
            break
        needs = {name: others for name, others in needs.items() if name not in free}
    return said


def test_imports_point_down():
    found = modules(SOURCES)
    assert not [name for name in found if layer(name) == len(LAYERS)]
    assert len(found) > 150
    assert wrong(found) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"search/rbf.py": "from flowsde.runner import run", "runner/run.py": ""}, "above it"),
        ({"flow.py": "import flowsde as fs"}, "above it"),
        ({"flow.py": "import flowsde.grids", "grids.py": ""}, None),
        ({"flow.py": "def f():\n    from flowsde import grids", "grids.py": ""}, "inside a funct"),
        ({"flow.py": "from flowsde import rewards", "rewards.py": "import flowsde.flow"}, "circle"),
    ],
)
def test_each_rule_can_fail(files, expected, tmp_path):
    for name, text in {"__init__.py": "", "search/__init__.py": "", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    said = wrong(modules({"flowsde": tmp_path}))
    assert (expected is None and not said) or (expected and expected in said[0]), said


SEARCHES = {"BestOfN", "SoP", "SMC", "CoDe", "RBF", "Complete", "GridSearch"}


def test_nobody_asks_which_search_it_is():
    """What a client needs to know of a search, the search says."""
    asked = []
    for name, tree in modules(SOURCES).items():
        for node in ast.walk(tree):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", None) == "isinstance"
            if called and not name.startswith("search"):
                kinds = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                asked += [f"{name}:{node.lineno}"] * bool(kinds & SEARCHES)
    assert asked == []
