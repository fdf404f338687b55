"""Help texts: the docstrings below a class's fields, each as one paragraph that the help wraps.

tyro takes such docstrings line by line, and breaks where the source does.
"""

import ast
import inspect
import shutil
import textwrap
from typing import Annotated, Any, TypeVar

import tyro

from flowsde.cli.defaults import WORDS

_Class = TypeVar("_Class", bound=type)


def described(cls: _Class) -> _Class:
    """Give the fields of a class their docstrings as help; for below `dataclasses.dataclass`.

    {name} in them stands for `defaults.WORDS`.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            words = " ".join(str(text.value.value).split())
            said = tyro.conf.arg(help=words.format_map(WORDS))
            own = cls.__annotations__[field.target.id]
            cls.__annotations__[field.target.id] = Annotated[own, said]
    return cls


def introduction(cls: Any) -> str:
    """The docstring of a class of options, wrapped to the terminal."""
    width = min(shutil.get_terminal_size().columns, 100)
    paragraphs = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    wrapped = (textwrap.fill(" ".join(p.split()), width - 1) for p in paragraphs)
    # tyro joins lines that begin with a letter.
    return textwrap.indent("\n\n".join(wrapped), " ")
