"""Rewards by CLIP: CLIPScore, PickScore, HPSv2 and LAION's aesthetic score.

With e(x) an image's embedding and e(c) a prompt's, both of length one,

    CLIPScore   scale e(x) . e(c)               Hessel et al., 2021 (arXiv 2104.08718), ViT-L/14
    PickScore   exp(logit_scale) e(x) . e(c)    Kirstain et al., 2023 (arXiv 2305.01569), ViT-H/14
    HPSv2       e(x) . e(c)                     Wu et al., 2023 (arXiv 2306.09341), ViT-H/14
    aesthetic   head(e(x))                      Schuhmann, 2022, ViT-L/14

A prompt's embedding does not change in a search: it is made once, by `text_embeddings`, and given
as `reward_cond`, so that a reward holds the image tower alone. Images are of any size, in [-1, 1],
and made ready as these models' own preprocessing does; gradients pass through it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from flowsde.models.aesthetic.model import AestheticHead
from flowsde.models.clip.model import CLIP, CLIPVision
from flowsde.modules import bind
from flowsde.rewards import DeviceReward, device

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of each colour in [0, 1], over CLIP's training images."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of each colour."""


def clip_pixels(images: jax.Array, size: int = 224) -> jax.Array:
    """Images as CLIP was trained on them.

    The short side is resized to `size` (bicubic, antialiased), the middle square cut out and each
    colour standardised. Values beyond [-1, 1] are clipped, as a display would, before and after
    each resizing; unlike the public preprocessing, nothing is rounded to 8 bits.

    Args:
      images: [n, height, width, 3] in [-1, 1].
      size: pixels a side.

    Returns:
      float32 [n, size, size, 3].

    Raises:
      ValueError: images of another shape.
    """
    x = clipped(images)
    _, height, width, _ = x.shape
    short = min(height, width)
    rows, columns = size * height // short, size * width // short
    x = resized(x, rows, columns)
    top, left = (rows - size) // 2, (columns - size) // 2
    x = x[:, top : top + size, left : left + size]
    return standardised(0.5 * (x + 1.0))


def resized(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Images [n, rows, columns, 3] of x [n, height, width, 3] in [-1, 1], bicubic, antialiased."""
    n, height, _, _ = x.shape
    # One axis after the other: what overshoots is clipped in between, as in 8 bits.
    for shape in ((n, height, columns, 3), (n, rows, columns, 3)):
        if shape != x.shape:
            x = jnp.clip(jax.image.resize(x, shape, "cubic", antialias=True), -1.0, 1.0)
    return x


def padded_pixels(images: jax.Array, size: int = 224) -> jax.Array:
    """Images as HPSv2's own preprocessing makes them, in floating point throughout.

    The long side is resized to `size` (bicubic, antialiased), black is added around it to a square
    and each colour standardised. Values beyond [-1, 1] are clipped before the resizing alone.

    Args:
      images: [n, height, width, 3] in [-1, 1].
      size: pixels a side.

    Returns:
      float32 [n, size, size, 3].

    Raises:
      ValueError: images of another shape.
    """
    x = 0.5 * (clipped(images) + 1.0)
    n, height, width, _ = x.shape
    scale = size / max(height, width)
    rows, columns = (max(1, round(side * scale)) for side in (height, width))
    if (rows, columns) != (height, width):
        x = jax.image.resize(x, (n, rows, columns, 3), "cubic", antialias=True)
    around = [((size - side) // 2, size - side - (size - side) // 2) for side in (rows, columns)]
    return standardised(jnp.pad(x, ((0, 0), *around, (0, 0))))


def clipped(images: jax.Array) -> jax.Array:
    """Float32 images, within [-1, 1]; ValueError unless they are [n, height, width, 3]."""
    if images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must have shape [n, height, width, 3], got {list(images.shape)}")
    return jnp.clip(images.astype(jnp.float32), -1.0, 1.0)


def standardised(x: jax.Array) -> jax.Array:
    """Colours [n, height, width, 3] in [0, 1], less their mean, over their deviation."""
    mean, std = (jnp.asarray(a, jnp.float32)[None, None, None] for a in (MEAN, STD))
    return (x - mean) / std


def text_embeddings(model: CLIP, tokens: jax.Array) -> jax.Array:
    """Embeddings of length one, float32 [n, projection], of prompts' tokens [n, length]."""
    return _unit(model.text_features(tokens))


def image_embeddings(
    vision: CLIPVision,
    images: jax.Array,
    pixels: Callable[[jax.Array, int], jax.Array] = clip_pixels,
) -> jax.Array:
    """Embeddings of length one, float32 [n, projection], of images [n, h, w, 3] in [-1, 1].

    Args:
      vision: the image tower.
      images: of any size.
      pixels: how they are made ready, `clip_pixels` or `padded_pixels`.

    Raises:
      ValueError: a tower without a projection.
    """
    embedding = vision(pixels(images, vision.config.image)).embedding
    if embedding is None:
        raise ValueError("the image tower must have a projection, got one without")
    return _unit(embedding)


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _cosine(
    vision: CLIPVision, scale: jax.Array, images: jax.Array, wanted: jax.Array
) -> jax.Array:
    return scale * _alike(image_embeddings(vision, images), wanted)


def _padded_cosine(vision: CLIPVision, images: jax.Array, wanted: jax.Array) -> jax.Array:
    return _alike(image_embeddings(vision, images, padded_pixels), wanted)


def _alike(embedding: jax.Array, wanted: jax.Array) -> jax.Array:
    wanted = wanted.astype(jnp.float32)
    if wanted.shape != embedding.shape:
        raise ValueError(
            f"the prompts' embeddings must have shape {list(embedding.shape)}, "
            f"got {list(wanted.shape)}"
        )
    return jnp.sum(embedding * wanted, axis=-1)


def clip_score(model: CLIP, *, scale: float = 1.0) -> DeviceReward:
    """`scale` times the cosine of image and prompt, of which it is told the embedding.

    Args:
      model: whose image tower is used.
      scale: 1 for the cosine itself; 2.5 and 100 are also in use.

    Raises:
      ValueError: a scale that is not positive and finite.
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be positive and finite, got {scale}")
    fn = jax.tree_util.Partial(*bind(_cosine, model.vision, jnp.float32(scale)))
    return device(fn, name="clip_score")


def pick_score(model: CLIP) -> DeviceReward:
    """The cosine of image and prompt times exp(logit_scale), about 100, of the model.

    It is told the prompt's embedding.

    Args:
      model: PickScore's fine-tuned ViT-H/14.
    """
    scale = jnp.exp(model.logit_scale.get_value())
    fn = jax.tree_util.Partial(*bind(_cosine, model.vision, scale))
    return device(fn, name="pick_score")


def hps_score(
    model: CLIP, version: Literal["2.0", "2.1"], *, minibatch: int | None = None
) -> DeviceReward:
    """HPSv2: the cosine of image and prompt, about .2 to .35; published tables have 100 times it.

    It is told the prompt's embedding.

    Args:
      model: HPSv2's fine-tuned ViT-H/14.
      version: that the weights are, which names the reward: scores of one say nothing of the
        other's.
      minibatch: images judged at once; as many as the model evaluates at once by default.

    Raises:
      ValueError: another version.
    """
    names = {"2.0": "hpsv2", "2.1": "hpsv2.1"}
    if version not in names:
        raise ValueError(f"version must be {' or '.join(names)}, got {version!r}")
    fn = jax.tree_util.Partial(*bind(_padded_cosine, model.vision))
    return device(fn, name=names[version], minibatch=minibatch)


def _aesthetic(
    vision: CLIPVision, head: jax.tree_util.Partial, images: jax.Array, cond: Any
) -> jax.Array:
    return head(image_embeddings(vision, images)).astype(jnp.float32)


def aesthetic(vision: CLIPVision, head: AestheticHead) -> DeviceReward:
    """LAION's aesthetic score, about 1 to 10; cond is not looked at.

    Args:
      vision: ViT-L/14 with its projection.
      head: on its embedding.
    """
    score = jax.tree_util.Partial(*bind(AestheticHead.__call__, head))
    return device(jax.tree_util.Partial(*bind(_aesthetic, vision, score)), name="aesthetic")
