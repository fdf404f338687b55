"""Parameters of an NNX model by dotted path: "blocks.attention.qkv.kernel" and its array."""

from typing import Any

import jax
from flax import nnx


def parameters(model: nnx.Module) -> dict[str, Any]:
    """Arrays (or, of `nnx.eval_shape`, shapes) of all parameters by dotted path."""
    flat: list[Any] = list(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    return {".".join(map(str, path)): param.get_value() for path, param in flat}


def with_parameters(model: nnx.Module, params: dict[str, Any]) -> nnx.Module:
    """A copy of `model` (abstract or not) holding `params`; KeyError names a missing one."""
    graph, state, *rest = nnx.split(model, nnx.Param, ...)
    flat = [
        (path, param.replace(jax.numpy.asarray(params[".".join(map(str, path))])))
        for path, param in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat), *rest)
