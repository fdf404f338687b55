"""What a given reward may see of pictures: the learned scorer's detections, and paint.

Paint is the projection of a pixel's colour on the palette, as in a picture editor's "select by
colour"; neither the renderer nor the held-out checker has a part in it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.shapes import scorer
from flowsde.shapes.captions import COLOURS, KINDS
from flowsde.shapes.data import BACKGROUND, PALETTE

_OFFSETS = PALETTE - BACKGROUND


class Given(NamedTuple):
    """What is seen of n pictures.

    Attributes:
      images: [n, 32, 32, 3] in [-1, 1].
      log_probs: [n, colours, kinds, counts] of the scorer.
      centres: [n, 8, 8, colours, kinds], probability of an object's centre in each cell.
    """

    images: jax.Array
    log_probs: jax.Array
    centres: jax.Array


def make_given(config: scorer.ScorerConfig) -> Callable[[Any, jax.Array], Given]:
    """(params of the scorer, images) -> `Given`."""
    graphdef, _ = scorer.split(config)

    def given(params: Any, images: jax.Array) -> Given:
        logits, log_probs = nnx.merge(graphdef, params).detect_and_count(images)
        centres = jax.nn.sigmoid(logits[..., 0].astype(jnp.float32))
        grid = (images.shape[0], scorer.GRID, scorer.GRID, *scorer.PAIRS)
        return Given(images, log_probs, centres.reshape(grid))

    return given


def paint(images: jax.Array) -> jax.Array:
    """Coverage [n, 32, 32, colours] in [0, 1], smooth: how much each colour paints each pixel.

    A pixel's offset from the background is projected on each palette offset; the colours share it
    by a softmax of their distances, and less than half a coat counts for little.
    """
    offsets = jnp.asarray(_OFFSETS, jnp.float32)
    background = jnp.asarray(BACKGROUND, jnp.float32)
    pixel = (jnp.clip(images.astype(jnp.float32), -1.0, 1.0) + 1.0) / 2.0
    d = pixel - background[None, None, None, :]
    norms = jnp.sum(jnp.square(offsets), axis=-1)
    along = jnp.einsum("nhwc,kc->nhwk", d, offsets) / norms[None, None, None, :]
    coat = jnp.clip(along, 0.0, 1.0)
    nearest = coat[..., None] * offsets[None, None, None, :, :]
    off = jnp.sum(jnp.square(d[..., None, :] - nearest), axis=-1)
    share = jax.nn.softmax(-_SHARPNESS * off, axis=-1)
    return share * jax.nn.sigmoid(_STEEPNESS * (along - 0.5))


_SHARPNESS = 20.0
"""Of the softmax over colours, whose squared distances are of the order of 1."""
_STEEPNESS = 10.0
"""Of the soft threshold at half a coat."""


def words(tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Counts [n, 2], one-hot colours [n, 2, colours] and kinds [n, 2, kinds] of both groups.

    A group that a caption has not is all zero.
    """
    count, colour, kind = scorer.groups_from_tokens(tokens)
    there = (count > 0).astype(jnp.float32)[..., None]
    return (
        count,
        there * jax.nn.one_hot(colour, len(COLOURS), dtype=jnp.float32),
        there * jax.nn.one_hot(kind, len(KINDS), dtype=jnp.float32),
    )
