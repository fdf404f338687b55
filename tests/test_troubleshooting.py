"""docs/troubleshooting.md: what it quotes is said by the code, and its classes exist."""

import ast
import builtins
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text()
ROWS = re.findall(r"^\| (`.*?) \| .* \|$", TEXT, re.MULTILINE)
OTHERS = {"RESOURCE_EXHAUSTED"}  # JAX's


def pieces(node):
    """What a string or f-string says, its values an ellipsis."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(pieces(part) if isinstance(part, ast.Constant) else "…" for part in node.values)


@cache
def parsed():
    """Every string of the package that is no docstring, and the names of its exceptions."""
    said, names = [], set()
    for folder in ("flowsde", "converters"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    names.add(node.name)
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value.value = ""  # a docstring
                if isinstance(node, ast.Constant | ast.JoinedStr):
                    said.append(pieces(node))
    return said, names


@pytest.mark.slow
def test_messages_are_those_of_the_code():
    said, _ = parsed()
    quoted = [one for row in ROWS for one in re.findall("`([^`]+)`", row)]
    assert len(quoted) > 40
    for one in set(quoted) - OTHERS:
        parts = [re.escape(part) for part in one.split("…") if part.strip()]
        pattern = re.compile(".*?".join(parts), re.DOTALL)
        assert any(pattern.search(text) for text in said), one


@pytest.mark.slow
def test_classes_exist():
    _, names = parsed()
    classes = {one.split(".")[-1] for one in re.findall(r"`([\w.]*[A-Z]\w+)`", TEXT)}
    errors = {
        one for one in classes if one.endswith(("Error", "TooSmall", "Kernel", "Answer", "Time"))
    }
    assert {"BudgetTooSmall", "RewardError", "OptionError"} <= errors
    for one in errors:
        assert one in names or hasattr(builtins, one), one
