"""VQAScore by CLIP-FlanT5: how sure the model is that an image shows what its prompt says.

Lin et al., 2024 (arXiv 2404.01291). The question is 'Does this figure show "PROMPT"? Please answer
yes or no.'; of the two tokens of the answer, "Yes" and the end,

    VQAScore    s = sqrt(P(Yes) P(end | Yes)), a geometric mean, 0 to 1
    its odds    log(s / (1 - s)), which order images alike: where a model is sure, s lies so close
                to 1 that images of bfloat16 weights tie, and has next to no gradient.
"""

import jax
import jax.numpy as jnp

from flowsde.models.clip.rewards import clip_pixels, clipped
from flowsde.models.clip_flant5.model import CLIPFlanT5
from flowsde.models.clip_flant5.questions import Question
from flowsde.modules import bind
from flowsde.rewards import DeviceReward, device

COLOUR = (122, 116, 104)
"""Of what is added to a square, of 255: the mean of CLIP's training images, rounded down."""
_LEAST = jnp.finfo(jnp.float32).tiny


def centred_pixels(images: jax.Array, size: int = 336) -> jax.Array:
    """Images as CLIP-FlanT5's own preprocessing makes them, but for rounding to 8 bits.

    An image is put in the middle of a square of `COLOUR`, of an odd number of rows or columns one
    more behind it, and that made ready as `clip_pixels` does.

    Args:
      images: [n, height, width, 3] in [-1, 1], clipped beyond.
      size: pixels a side.

    Returns:
      float32 [n, size, size, 3].

    Raises:
      ValueError: images of another shape.
    """
    x = clipped(images)
    n, height, width, _ = x.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    colour = jnp.asarray(COLOUR, jnp.float32) / 127.5 - 1.0
    square = jnp.broadcast_to(colour, (n, side, side, 3))
    return clip_pixels(square.at[:, top : top + height, left : left + width].set(x), size)


def _log_score(model: CLIPFlanT5, images: jax.Array, asked: Question) -> jax.Array:
    pixels = centred_pixels(images, model.config.vision.image)
    return jnp.mean(model(pixels, *asked), axis=-1)


def _score(model: CLIPFlanT5, images: jax.Array, asked: Question) -> jax.Array:
    return jnp.exp(_log_score(model, images, asked))


def log_odds(log_score: jax.Array) -> jax.Array:
    """log(s / (1 - s)) of log s, of any shape."""
    # Where log s rounds to 0, which takes logits 87 apart, the odds stay finite.
    log_score = jnp.minimum(log_score, -_LEAST)
    return log_score - jnp.log(-jnp.expm1(log_score))


def _odds(model: CLIPFlanT5, images: jax.Array, asked: Question) -> jax.Array:
    return log_odds(_log_score(model, images, asked))


def vqa_score(
    model: CLIPFlanT5, *, odds: bool = False, minibatch: int | None = None
) -> DeviceReward:
    """VQAScore of images [n, h, w, 3] in [-1, 1], or its log-odds.

    It is told a `Question` of each prompt. Image and text are read together: nothing of a prompt
    can be kept from one image to the next.

    Args:
      model: a published CLIP-FlanT5.
      odds: whether the reward is log(s / (1 - s)), of any size, instead of s, 0 to 1.
      minibatch: images judged at once; as many as the model evaluates at once by default.
    """
    fn = jax.tree_util.Partial(*bind(_odds if odds else _score, model))
    return device(fn, name="vqascore-odds" if odds else "vqascore", minibatch=minibatch)
