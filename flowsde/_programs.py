"""What a traced program consists of."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def programs_of(equation: Any) -> Iterator[Jaxpr]:
    """The programs that an equation of a traced program calls: bodies of loops, branches, …"""
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
        if _is_program(inner):
            yield inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)
