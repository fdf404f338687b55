"""The site's pages: what they name exists, and they are all reached; without Sphinx."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
from test_public import NAMES

import flowsde as fs

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = {path.stem: path.read_text() for path in (DOCS / "reference").glob("*.md")}
DIRECTIVE = re.compile(r"^\.\. auto(\w+):: flowsde\.(\S+)$", re.MULTILINE)
KINDS = {
    "module": inspect.ismodule,
    "exception": lambda value: inspect.isclass(value) and issubclass(value, Exception),
    "class": inspect.isclass,
    "function": callable,
    "data": lambda value: isinstance(value, dict | str),
}


def kind_of(value):
    """The directive that describes a value."""
    return next(kind for kind, fits in KINDS.items() if fits(value))


def value_of(name):
    value = fs
    for part in name.split("."):
        value = getattr(value, part)
    return value


def test_reference_has_every_public_name_once():
    """The modules' own by their full name, `flowsde.search.rbf`."""
    written = [found for text in REFERENCE.values() for found in DIRECTIVE.findall(text)]
    public = {
        f"{module}.{name}".removeprefix("flowsde.")
        for module, names in NAMES.items()
        for name in names.split()
    }
    assert sorted(name for _, name in written) == sorted(public)
    for kind, name in written:
        assert kind == kind_of(value_of(name)), name


def toctree(text):
    """Pages of the toctrees of a page."""
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(":")]


def test_every_page_is_in_one_tree():
    pages = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")}
    trees = {page: toctree((DOCS / f"{page}.md").read_text()) for page in pages}
    listed = [str(Path(page).parent / child) for page, tree in trees.items() for child in tree]
    assert sorted(listed) == sorted(pages - {"index", "README"})


def own_docstrings():
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x [*time, ...], 2**32 and |h|", r"x [\*time, ...], 2\*\*32 and \|h\|"),
        ("*every* one, ``a * b`` and `c | d`", "*every* one, ``a * b`` and `c | d`"),
        ("E:\n\n    a = r cos(b)\n", "E:\n\n.. code-block:: text\n\n    a = r cos(b)\n"),
        ("E:\n\n    f(*a)\n\nThen.", "E:\n\n.. code-block:: python\n\n    f(*a)\n\nThen."),
        ("F.\n\nArgs:\n  x: of *args.\n\n  y: one.", "F.\n\nArgs:\n  x: of \\*args.\n\n  y: one."),
    ],
    ids=["markup", "emphasis", "formula", "code", "section"],
)
def test_docstrings_become_restructured_text(text, expected):
    assert own_docstrings().as_rst(text.splitlines()) == expected.splitlines()
