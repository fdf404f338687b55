"""ImageReward as a reward in JAX."""

import jax

from flowsde.models.blip.model import ImageReward
from flowsde.models.clip.rewards import clip_pixels
from flowsde.modules import bind
from flowsde.rewards import DeviceReward, device


def _score(model: ImageReward, images: jax.Array, tokens: jax.Array) -> jax.Array:
    return model(clip_pixels(images, model.config.vision.image), tokens)


def image_reward(model: ImageReward, *, minibatch: int | None = None) -> DeviceReward:
    """ImageReward of images [n, h, w, 3] in [-1, 1], with mean 0 and deviation 1 over its own data.

    It is told the prompt's tokens, int32 [n, length], as `bert_tokenizer` gives them. Image and
    text are read together: nothing of a prompt can be kept from one image to the next.

    Args:
      model: the published BLIP.
      minibatch: images judged at once; as many as the model evaluates at once by default.
    """
    fn = jax.tree_util.Partial(*bind(_score, model))
    return device(fn, name="imagereward", minibatch=minibatch)
