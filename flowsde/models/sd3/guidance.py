"""Skip-layer guidance, as published with SD3.5-medium.

    velocity = u(null) + scale (u(cond) - u(null)) + skip_scale (u(cond) - u'(cond))

where u' is the model without some of its blocks, and the last term is there at some times alone:
early ones, at which it makes shapes and anatomy better.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde._checks import check_integers, check_non_negative
from flowsde._explain import name_of
from flowsde._static import Static
from flowsde.conds import Cond, as_arrays
from flowsde.flow import Flow
from flowsde.models.sd3 import schedule
from flowsde.models.sd3.model import SD3, SD3Cond
from flowsde.modules import NNX

LAYERS = (7, 8, 9)
"""Blocks that are left out of SD3.5-medium, as published."""
SCALE = 2.8
"""As published."""
TIMES = (schedule.time_after(0.2), schedule.time_after(0.01))
"""Between a hundredth and a fifth of the steps, as published: from .9231 to .9966."""


@dataclasses.dataclass(frozen=True)
class _SkipLayers(Static):
    velocity_fn: Callable[..., jax.Array]
    model: NNX
    skipped: tuple[int, ...]
    times: tuple[float, float]

    @property
    def __name__(self) -> str:
        return name_of(self.velocity_fn)

    def __call__(self, params: Any, x: jax.Array, t: jax.Array, cond: SD3Cond) -> jax.Array:
        inner, scale, null, skip_scale = params
        null = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (x.shape[0], *a.shape)), null)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null)
        doubled = self.velocity_fn(inner, jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        wanted, free = jnp.split(doubled, 2)
        without = dataclasses.replace(self.model, method="without")
        begin, end = self.times
        inside = (begin < t) & (t < end)
        # At all other times the third evaluation is not made.
        poorer = jax.lax.cond(
            jnp.any(inside),
            lambda: without(inner, self.skipped, x, t, cond),
            lambda: wanted,
        )
        by_skipping = jnp.where(inside, skip_scale, 0.0)[:, None, None, None] * (wanted - poorer)
        return free + scale * (wanted - free) + by_skipping


def skip_layer_guidance(
    flow: Flow,
    scale: float,
    null_cond: Cond,
    *,
    layers: tuple[int, ...] = LAYERS,
    skip_scale: float = SCALE,
    times: tuple[float, float] = TIMES,
) -> Flow:
    """A flow that is led to its condition, away from the null condition and from a poorer model.

    It costs, and is charged, three evaluations where the given one costs one; at times outside of
    `times` two are made.

    Args:
      flow: of a Stable Diffusion 3, of `SD3Pipeline.flow`.
      scale: of classifier-free guidance.
      null_cond: the condition that stands for none, without a batch axis.
      layers: numbers of the blocks that the poorer model is without, from 0.
      skip_scale: of the guidance away from it.
      times: between which, both excluded, it leads away from it.

    Raises:
      ValueError: a flow of something else, blocks that are not there, or times or a scale that
        cannot be.
    """
    function = getattr(flow.velocity_fn, "model", None)
    model = nnx.merge(function.graphdef, flow.params) if isinstance(function, NNX) else None
    if not isinstance(function, NNX) or not isinstance(model, SD3):
        raise ValueError(f"flow must be of a Stable Diffusion 3, got {name_of(flow.velocity_fn)}")
    check_layers("layers", layers, model.config.depth)
    check_non_negative("skip_scale", skip_scale)
    if not 0.0 <= times[0] < times[1]:
        raise ValueError(f"times must be two, of which the first is the smaller, got {times}")
    scales = (jnp.asarray(scale, jnp.float32), jnp.asarray(skip_scale, jnp.float32))
    params = (flow.params, scales[0], as_arrays("null_cond", null_cond), scales[1])
    own = (function, tuple(layers), (float(times[0]), float(times[1])))
    velocity = _SkipLayers(flow.velocity_fn, *own)
    return dataclasses.replace(
        flow, params=params, velocity_fn=velocity, evaluations=3 * flow.evaluations
    )


def check_layers(name: str, layers: Sequence[int], depth: int) -> None:
    """ValueError unless they are some of so many blocks, each once."""
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"{name} must be numbers of blocks, each once, got {tuple(layers)}")
    check_integers(name, layers, 0, depth - 1)
