"""The site's pages: what they name exists, and they are all reached; without Sphinx."""

import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest
import tutorials
from test_public import NAMES

import flowsde as fs

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = {path.stem: path.read_text() for path in (DOCS / "reference").glob("*.md")}
DIRECTIVE = re.compile(r"^\.\. auto(\w+):: flowsde\.([^\s(]+)(?:\(\))?$", re.MULTILINE)
KINDS = {
    "module": inspect.ismodule,
    "exception": lambda value: inspect.isclass(value) and issubclass(value, Exception),
    "class": inspect.isclass,
    "function": callable,
    "data": lambda value: isinstance(value, dict | str),
}


# Met by users, and not imported by them; and the prose of what a search is.
MET = {
    *("runner.clock.Timing", "runner.packed.batch.Packing", "runner.packed.engine.Totals"),
    *("runner.deadline.OutOfTime", "runner.found.NoAnswer", "search.protocol"),
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
    assert sorted(name for _, name in written) == sorted(public | MET)
    importlib.import_module("flowsde.runner.packed.batch")  # which has all that is met
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


def own(name):
    """A module of the site's."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
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
        ("E.\n\nExample:\n  >>> 2**3 | 1", "E.\n\nExample:\n  >>> 2**3 | 1"),
        ("F.\n\nArgs:\n  x: of *args.\n\n  y: one.", "F.\n\nArgs:\n  x: of \\*args.\n\n  y: one."),
    ],
    ids=["markup", "emphasis", "formula", "code", "example", "section"],
)
def test_docstrings_become_restructured_text(text, expected):
    assert own("docstrings").as_rst(text.splitlines()) == expected.splitlines()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("× 8.8 (5.2 – 15.4)", "×~8.8 (5.2~–^~15.4)"),
        ("-0.38 (-2.29 – -1.46), .04 (−.02 – .10)", "-0.38 (-2.29~–^~-1.46), .04 (−.02~–^~.10)"),
        ("| 3 | – | 4 |, 1 – x, 100 captions × 2", "| 3 | – | 4 |, 1 – x, 100 captions ×~2"),
    ],
)
def test_intervals_do_not_break(text, expected):
    assert own("intervals").unbroken(text) == expected.replace("~", "\u00a0").replace("^", "\u2060")


def test_colons_of_properties_are_kept_from_napoleon():
    """Which reads "type: description" of their first line; of a function's it does not."""
    for what, comment in (("property", ["..", ""]), ("function", [])):
        lines = ["The budget: evaluations."]
        own("docstrings")._process(None, what, "nfe", None, None, lines)
        assert lines == [*comment, "The budget: evaluations."]


def test_fields_of_named_tuples_are_described_once():
    """Among the attributes, not as members too; methods are members."""
    skipped = [
        own("docstrings")._skip(None, "class", name, getattr(fs.Result, name), False, None)
        for name in (*fs.Result._fields, "top")
    ]
    assert skipped == [True] * len(fs.Result._fields) + [None]


@pytest.mark.parametrize("name", tutorials.NAMES)
def test_tutorials_are_notebooks(name):
    """With the cells of the page, what they print and draw, and no link to a file beside it."""
    text = tutorials.read(name)
    cells = own("notebooks").as_notebook(text, tutorials.FOLDER)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [f"{cell['source']}\n" for cell in code] == [one.code for one in tutorials.cells(text)]
    said = [one.said for one in tutorials.cells(text) if one.said]
    assert [out["text"] for out in outputs if out["output_type"] == "stream"] == said
    pictures = [out for out in outputs if out["output_type"] == "display_data"]
    assert len(pictures) == len(list(tutorials.FOLDER.glob(f"{name}_*.png"))) > 0
    written = [cell for cell in cells if cell["cell_type"] == "markdown"]
    words = "".join(cell["source"] for cell in written)
    assert words and not re.search(r"\]\((?!https?:|attachment:)|code-cell|^---", words, re.M)
    for cell in written:
        shown = re.findall(r"\(attachment:(\S+)\)", cell["source"])
        assert shown == list(cell.get("attachments", {}))
    committed = re.findall(r"!\[[^\]]+\]\(\S+/(\S+)\)", text)
    assert [name for cell in written for name in cell.get("attachments", {})] == committed


def slug(heading):
    """GitHub's anchor of a heading, and the site's."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def anchors(text):
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)}


def test_links_within_pages_exist():
    pages = [*DOCS.rglob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]
    for page in pages:
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text()):
            there = page.parent / target if target else page
            assert anchor in anchors(there.read_text()), f"{page}: {target}#{anchor}"
