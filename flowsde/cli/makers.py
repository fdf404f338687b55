"""Options of a method or a kernel, read from the source of its maker.

`flowsde/search/makers.py` and `flowsde/kernels/makers.py` import the makers, a line each. Their
signatures and docstrings are read with `ast`, so that help and mistakes do not wait for JAX.
"""

import ast
import functools
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_ROOT = Path(__file__).parents[2]


class Option(NamedTuple):
    """A parameter of a maker that the command line offers.

    Attributes:
      kind: int, float, or str for one of `choices`.
      choices: words; empty for a number.
      default: of the maker; None where it works the value out.
      help: the parameter's entry under `Args:`, on one line.
    """

    kind: type
    choices: tuple[str, ...]
    default: Any
    help: str


@functools.cache
def makers(package: str) -> Mapping[str, Mapping[str, Option]]:
    """The options of each maker that a package's `makers.py` imports, by its name.

    Args:
      package: `flowsde.search`, say.
    """
    file = _ROOT.joinpath(*package.split("."), "makers.py")
    names = [
        alias.name
        for node in _tree(file).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return {name: _options(*_found(file, name)) for name in names}


@functools.cache
def names(package: str, table: str) -> tuple[str, ...]:
    """The names in a package's table, as in `makers`."""
    value = _assigned(_tree(_ROOT.joinpath(*package.split("."), "__init__.py")), table)
    assert isinstance(value, ast.Dict), f"{package}.{table} must be a literal dict"
    return tuple(ast.literal_eval(key) for key in value.keys if key is not None)


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """What a module assigns to a name."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value  # type: ignore[attr-defined]
    return None


def _found(file: Path, name: str) -> tuple[Path, str]:
    """The file that defines a name, and the name there; imports are followed."""
    for node in _tree(file).body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    module = _ROOT.joinpath(*node.module.split("."))
                    inside = module / "__init__.py"
                    source = inside if inside.exists() else module.with_suffix(".py")
                    return _found(source, alias.name) if source.exists() else (file, name)
    return file, name


def _options(file: Path, name: str) -> dict[str, Option]:
    """Parameters of a function that are numbers or words."""
    maker = next(
        node for node in _tree(file).body if isinstance(node, ast.FunctionDef) and node.name == name
    )
    said = described(ast.get_docstring(maker) or "")
    both = [*maker.args.posonlyargs, *maker.args.args]
    defaults = [None] * (len(both) - len(maker.args.defaults)) + maker.args.defaults
    options = {}
    for arg, default in [
        *zip(both, defaults, strict=True),
        *zip(maker.args.kwonlyargs, maker.args.kw_defaults, strict=True),
    ]:
        if default is None or arg.annotation is None:
            continue  # What every maker needs: budget, kernel, grid, interpolant.
        if ast.unparse(arg.annotation).startswith("Fraction"):
            continue  # What the command has no use for: the cost of a second flow.
        kind, choices = _type(file, arg.annotation)
        value = ast.literal_eval(default)
        options[arg.arg] = Option(kind, choices, value, said.get(arg.arg, ""))
    return options


def _type(file: Path, node: ast.expr) -> tuple[type, tuple[str, ...]]:
    """int, float, or str with its choices; the first of a union counts."""
    while isinstance(node, ast.BinOp):
        node = node.left
    if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
        words = ast.literal_eval(node.slice)
        return str, words if isinstance(words, tuple) else (words,)
    if isinstance(node, ast.Name) and node.id in ("int", "float"):
        return {"int": int, "float": float}[node.id], ()
    if isinstance(node, ast.Name):
        there, name = _found(file, node.id)
        value = _assigned(_tree(there), name)
        if value is not None:
            return _type(there, value)
    raise TypeError(f"{file.name}: {ast.unparse(node)} is no int, float or Literal of words")


def described(docstring: str) -> dict[str, str]:
    """Entries under `Args:` of a docstring, each on one line."""
    section = inspect.cleandoc(docstring).partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^  (\w[\w, ]*): (.*\n(?:    .*\n)*)", section + "\n", re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
