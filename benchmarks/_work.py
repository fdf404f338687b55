"""Floating-point operations of a function's matrix products, counted in its jaxpr.

A product of [m, k] and [k, n] counts 2 m k n, and a loop's body as often as it runs, which XLA's
cost analysis leaves out. Elementwise work is not counted: on an accelerator it is the products that
set the floor.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def product_flops(f: Callable[..., Any], *args: Any) -> int:
    """Operations of f's products on arguments of these shapes.

    Raises:
      ValueError: f has a `while` loop, whose length is not known.
    """
    return _of(jax.make_jaxpr(f)(*args).jaxpr)


def _of(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return (
            2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
        )
    if name == "conv_general_dilated":
        # Weights that each output value is summed over: all but those of other outputs.
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    if name == "while":
        raise ValueError("a while loop has no known length")
    inner = [_of(part) for part in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    return (params["length"] if name == "scan" else 1) * sum(inner)
