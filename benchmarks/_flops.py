"""FLOPs of the matrix products and convolutions of a function, loops counted as often as they turn.

Whatever compiles it, on however many devices: what is counted is what the function says.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(f: Callable[..., Any], *args: Any) -> int:
    """Two for each multiplication, of a call with arrays or shapes.

    Raises:
      ValueError: a loop with products turns an unknown number of times.
    """
    return _of(jax.make_jaxpr(f)(*args).jaxpr)


def _of(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel, out_axis = equation.invars[1].aval, params["dimension_numbers"].rhs_spec[0]
        return 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[out_axis]
    inner = [_of(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("a while loop has matrix products, expected a scan, whose length is known")
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, list | tuple):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return []
