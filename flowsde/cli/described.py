"""Help texts: the docstrings below a class's fields, each as one paragraph that the help wraps.

tyro takes such docstrings line by line, and breaks where the source does.
"""

import ast
import functools
import inspect
import itertools
import shutil
import sys
import textwrap
from typing import Annotated, Any, TypeVar

import tyro

from flowsde.cli.defaults import WORDS

_Class = TypeVar("_Class", bound=type)


def described(cls: _Class) -> _Class:
    """Give the fields of a class their docstrings as help; for below `dataclasses.dataclass`.

    {name} in them stands for `defaults.WORDS`.
    """
    body = _classes(cls.__module__)[cls.__name__].body
    for field, text in itertools.pairwise(body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            words = " ".join(str(text.value.value).split())
            said = tyro.conf.arg(help=words.format_map(WORDS))
            own = cls.__annotations__[field.target.id]
            cls.__annotations__[field.target.id] = Annotated[own, said]
    return cls


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module by name, from its source."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def introduction(cls: Any) -> str:
    """The docstring of a class of options, wrapped to the terminal."""
    width = min(shutil.get_terminal_size().columns, 100)
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    wrapped = (textwrap.fill(" ".join(p.split()), width - 1) for p in paragraphs)
    # tyro joins lines that begin with a letter.
    return textwrap.indent("\n\n".join(wrapped), " ")
