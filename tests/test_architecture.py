"""Imports point down the layers, run in no circle, and stand at the top of their files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT / "flowsde", ROOT / "converters/flowsde_converters")
LAYERS = (  # from the lowest; private helpers know nothing of flows
    "_ interrupts pictures remote",
    "interpolants predictions diffusion grids kernels",
    "adapters analytic changed classifier_free conds convention flow flow_options fresh modules"
    " pairwise posterior_samples rewards sampling sharding start",
    "search",
    "runner",
    "diagnosis invariants tuning",
    "models",
    "shapes",
    "flowsde",  # the public door, which imports all of the above when a name is first used
    "flowsde_converters",
    "cli __main__",
)
UP = "flowsde_converters.lora_load"
LATE = {  # any of cli, or one module: so that the command starts fast
    "flowsde.cli.main": "flowsde.cli.",
    "flowsde.cli.parse": "flowsde.cli.",
    "flowsde.cli.heldout": "flowsde.cli.picture_reward",
    "flowsde.cli.drawings": "flowsde.cli.plots",
    "flowsde.cli.devices": "flowsde.sharding",
    "flowsde.cli.sources": "flowsde.cli.sources.published",
    # Adapters' keys are read by the tables of the converters, which know the models.
    "flowsde.models.load": UP,
}


def layer(module):
    package, _, rest = f"{module}.".partition(".")
    first = rest.partition(".")[0] if rest and package == "flowsde" else package
    first = "_" if first.startswith("_") and first != "__main__" else first
    return next((i for i, names in enumerate(LAYERS) if first in names.split()), None)


def parsed(folders):
    """The syntax tree of every module, by its dotted name."""
    paths = [(path, folder.parent) for folder in folders for path in folder.rglob("*.py")]
    names = [".".join(p.relative_to(top).with_suffix("").parts) for p, top in paths]
    trees = (ast.parse(path.read_text()) for path, _ in paths)
    return {name.removesuffix(".__init__"): t for name, t in zip(names, trees, strict=True)}


def imports(tree, known):
    """(module of the project, "now", "late" or "types") of every import, by when it is run."""
    when = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            when |= dict.fromkeys(ast.walk(node), "late")
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            when |= dict.fromkeys(ast.walk(node), "types")
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            assert not name.startswith("."), f"{name} is relative"
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name, when.get(node, "now")


def asked_for(tree):
    """Names in every isinstance(...), issubclass(...) and `case Class(...)`."""
    for node in ast.walk(tree):
        called = getattr(getattr(node, "func", None), "id", None)
        if called in ("isinstance", "issubclass") or isinstance(node, ast.MatchClass):
            yield from (getattr(n, "id", getattr(n, "attr", None)) for n in ast.walk(node))


def wrong(trees):
    """What is not as it should be, in words."""
    if lost := [module for module in trees if layer(module) is None]:
        yield f"not in LAYERS: {', '.join(lost)}"
        return
    inside = [tree for module, tree in trees.items() if module.startswith("flowsde.search.")]
    classes = [n for tree in inside for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    # The protocol's records and errors are anyone's.
    free = {"NamedTuple", "Protocol", "ValueError"}
    searches = {c.name for c in classes if not free & {getattr(b, "id", "") for b in c.bases}}
    needs = {}
    for module, tree in trees.items():
        used = set(imports(tree, trees))
        needs[module] = {other for other, when in used if when == "now" and other != module}
        for other, when in sorted(used):
            if LATE.get(module) == UP == other and when == "late":
                continue
            home = "flowsde_converters"
            if layer(other) > layer(module):
                yield f"{module} imports {other}, which is above it"
            elif other.startswith(home) and not module.startswith((home, "flowsde.cli.convert")):
                yield f"{module} imports {other}, which flowsde.cli.convert alone may"
            if when == "late" and not other.startswith(LATE.get(module, "none")):
                yield f"{module} imports {other} in a function"
        if not module.startswith("flowsde.search"):
            yield from (f"{module} asks for {name}" for name in searches & {*asked_for(tree)})
    while free := {module for module, others in needs.items() if not others & needs.keys()}:
        needs = {module: others for module, others in needs.items() if module not in free}
    if needs:
        yield f"imports run in a circle: {', '.join(sorted(needs))}"


@pytest.mark.slow
def test_imports_point_down_and_nobody_asks_which_search_it_is():
    trees = parsed(SOURCES)
    assert len(trees) > 150
    assert "\n".join(sorted(wrong(trees))) == ""


FOR_TYPES = "if TYPE_CHECKING:\n from flowsde import flow"
LORA = {"../flowsde_converters/lora_load.py": ""}
RBF = {"search/rbf.py": "class RBF(Static): ..."}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"search/a.py": "from flowsde.search import rbf\nimport flowsde.runner", **RBF}, "above"),
        ({"search/a.py": "def f():\n import flowsde.search.rbf", **RBF}, "in a function"),
        ({"runner/a.py": "import flowsde as fs"}, "above"),
        ({"runner/a.py": "from flowsde import Flow"}, "above"),
        ({"_a.py": "from flowsde import grids", "grids.py": ""}, "above"),
        ({"flow.py": "import flowsde.conds", "conds.py": "from flowsde import flow"}, "circle"),
        ({"flow.py": "import flowsde.conds", "conds.py": FOR_TYPES}, None),
        ({"grids.py": FOR_TYPES, "flow.py": ""}, "above"),
        ({"sorted.py": ""}, "not in LAYERS: flowsde.sorted"),
        ({"cli/a.py": "from flowsde_converters import flux"}, "alone may"),
        ({"models/load.py": f"import {UP}", **LORA}, "above"),
        ({"models/load.py": f"def f():\n import {UP}", **LORA}, None),
        ({"cli/a.py": "isinstance(1, (int, rbf.RBF))", **RBF}, "cli.a asks for RBF"),
        ({"cli/a.py": "match 1:\n case RBF(): ...", **RBF}, "cli.a asks for RBF"),
        ({"cli/main.py": "def f():\n import flowsde.cli.a", "cli/a.py": ""}, None),
        ({"search/a.py": "isinstance(1, RBF)", **RBF}, None),
        ({"../flowsde_converters/a.py": "from flowsde import Flow, search"}, None),
        ({"cli/convert.py": "import flowsde_converters"}, None),
    ],
)
def test_each_rule_can_fail(files, expected, tmp_path):
    doors = ("__init__.py", "search/__init__.py", "runner/__init__.py")
    empty = dict.fromkeys((*doors, "../flowsde_converters/__init__.py"), "")
    for name, text in {**empty, **files}.items():
        path = tmp_path / "flowsde" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    said = list(wrong(parsed([tmp_path / "flowsde", tmp_path / "flowsde_converters"])))
    assert len(said) == (expected is not None) and (expected or "") in "".join(said), said
