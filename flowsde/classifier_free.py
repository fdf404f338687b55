"""Classifier-free guidance (Ho & Salimans, 2022, arXiv 2207.12598).

    velocity = u(null) + scale (u(cond) - u(null))

Affine in the velocity, and so the same if the model predicts x0, the noise or the score.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._explain import name_of
from flowsde._static import Static
from flowsde.conds import Cond, WithNull, as_arrays
from flowsde.flow import Flow


@dataclasses.dataclass(frozen=True)
class _ClassifierFree(Static):
    velocity_fn: Callable[..., jax.Array]

    @property
    def __name__(self) -> str:
        return name_of(self.velocity_fn)

    def __call__(self, params: Any, x: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        inner, scale, null = params
        if isinstance(cond, WithNull):
            cond, null = cond
        else:
            null = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (x.shape[0], *a.shape)), null)
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null)
        doubled = self.velocity_fn(inner, jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        wanted, free = jnp.split(doubled.astype(jnp.float32), 2)
        return free + scale * (wanted - free)


def classifier_free_guidance(flow: Flow, scale: float, null_cond: Cond) -> Flow:
    """A flow that is led to its condition, and away from the null condition.

    Every call runs the model on twice the batch, so the returned flow costs, and is charged, two
    evaluations where the given one costs one.

    Args:
      flow: conditional.
      scale: 1 is no guidance; a change of scale does not compile again.
      null_cond: the condition that stands for none, without a batch axis; or one for each prompt
        (a negative prompt's), with the leading axis that cond is given with.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.Flow.from_callable(lambda params, x, t, cond: x * cond[:, None], None, (1,))
      >>> guided = fs.classifier_free_guidance(flow, 3.0, null_cond=jnp.array(0.0))
      >>> x, t, cond = jnp.ones([1, 1]), jnp.ones([1]), jnp.ones([1])
      >>> guided.velocity_fn(guided.params, x, t, cond).tolist(), guided.evaluations
      ([[3.0]], 2)
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a flowsde.Flow, got {type(flow).__name__}")
    number = scale if isinstance(scale, jax.Array) else np.asarray(scale)
    if number.ndim != 0 or not jnp.issubdtype(number.dtype, jnp.number):
        raise ValueError(f"scale must be one number for all prompts, got {scale!r}")
    null = as_arrays("null_cond", null_cond)
    return dataclasses.replace(
        flow,
        params=(flow.params, jnp.asarray(scale, jnp.float32), null),
        velocity_fn=_ClassifierFree(flow.velocity_fn),
        evaluations=2 * flow.evaluations,
    )


guide = classifier_free_guidance
"""The former name of `classifier_free_guidance`, for one release."""


def with_own_nulls(flow: Flow, cond: Cond) -> tuple[Flow, Cond]:
    """A flow and the cond of n prompts, with which go null conditions that are a prompt's own.

    Args:
      flow: guided or not.
      cond: leading axis n.

    Raises:
      ValueError: the null condition fits neither a prompt's cond nor that of all.
    """
    if not isinstance(flow.velocity_fn, _ClassifierFree):
        return flow, cond
    inner, scale, null = flow.params
    wanted: Any = jax.tree.structure(cond)
    found: Any = jax.tree.structure(null)
    if wanted != found:
        why = "; no cond was given" if cond is None else ""
        raise ValueError(
            f"null_cond has the structure {found}, expected that of cond, {wanted}{why}"
        )
    leaves = list(zip(jax.tree.leaves(cond), jax.tree.leaves(null), strict=True))
    for whole, one in leaves:
        if one.shape not in (whole.shape, whole.shape[1:]):
            raise ValueError(
                f"null_cond has a leaf of shape {one.shape}, expected {whole.shape[1:]} as of one "
                f"prompt's cond, or {whole.shape} for one of each prompt"
            )
    if all(one.shape == whole.shape[1:] for whole, one in leaves):
        return flow, cond
    own = jax.tree.map(lambda whole, one: jnp.broadcast_to(one, whole.shape), cond, null)
    return dataclasses.replace(flow, params=(inner, scale, ())), WithNull(cond, own)
