"""Boxes that overlap less than others: class-wise greedy suppression of arrays of fixed sizes."""

import jax
import jax.numpy as jnp


def corners(boxes: jax.Array) -> jax.Array:
    """(left, top, right, bottom) of boxes [..., 4] given as centre (x, y), width and height."""
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return jnp.concatenate([centre - half, centre + half], axis=-1)


def overlaps(boxes: jax.Array) -> jax.Array:
    """Intersection over union [n, n] of each two of boxes [n, 4], given by their corners.

    0 for two boxes without area.
    """
    first, second = boxes[:, None], boxes[None]
    least = jnp.minimum(first[..., 2:], second[..., 2:])
    sides = jnp.maximum(least - jnp.maximum(first[..., :2], second[..., :2]), 0.0)
    shared = sides[..., 0] * sides[..., 1]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    union = area[:, None] + area[None, :] - shared
    return jnp.where(union > 0.0, shared / jnp.where(union > 0.0, union, 1.0), 0.0)


def suppress(boxes: jax.Array, labels: jax.Array, most: float) -> jax.Array:
    """Which boxes greedy non-maximum suppression keeps, bool [n].

    Beginning with the first, a box that is kept drops all later ones of its class that overlap it
    by more than `most`.

    Args:
      boxes: [n, 4] by their corners, those of the highest scores first.
      labels: of their classes, integers [n].
      most: intersection over union.
    """
    n = boxes.shape[0]
    rivals = (overlaps(boxes) > most) & (labels[:, None] == labels[None, :])
    # Of each box the later ones.
    rivals &= jnp.arange(n)[:, None] < jnp.arange(n)[None, :]

    def step(kept: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        i, drops = at
        return kept & ~(drops & kept[i]), None

    kept, _ = jax.lax.scan(step, jnp.ones(n, bool), (jnp.arange(n), rivals))
    return kept
