"""VQAScore by InstructBLIP, a verifier for what other rewards found.

Lin et al., 2024 (arXiv 2404.01291), by the model that search papers hold out. The score is that of
`flowsde.models.clip_flant5.rewards`, sqrt(P(yes) P(end | yes)) over T5's whole table, and so are
its log-odds. The question and the answer are others, and so is the picture: the short side is
resized to 224 pixels, and the middle square cut out.

Tested with tiny random weights in float32 against the public class of `transformers` (tower,
Q-Former, score, gradients of the image); published weights were not seen.
"""

import jax
import jax.numpy as jnp

from flowsde.models.clip.rewards import clip_pixels
from flowsde.models.clip_flant5.rewards import log_odds
from flowsde.models.instructblip.model import InstructBLIP
from flowsde.models.instructblip.questions import Question
from flowsde.modules import bind
from flowsde.rewards import DeviceReward, device


def _log_score(model: InstructBLIP, images: jax.Array, asked: Question) -> jax.Array:
    pixels = clip_pixels(images, model.config.vision.image)
    return jnp.mean(model(pixels, *asked), axis=-1)


def _score(model: InstructBLIP, images: jax.Array, asked: Question) -> jax.Array:
    return jnp.exp(_log_score(model, images, asked))


def _odds(model: InstructBLIP, images: jax.Array, asked: Question) -> jax.Array:
    return log_odds(_log_score(model, images, asked))


def instructblip_score(
    model: InstructBLIP, *, odds: bool = False, minibatch: int | None = None
) -> DeviceReward:
    """VQAScore by InstructBLIP of images [n, h, w, 3] in [-1, 1], or its log-odds.

    It is told a `Question` of each prompt, which `flowsde.models.instructblip.questions.asking`
    makes. The Q-Former reads image and text together: nothing of a prompt can be kept.

    Args:
      model: a published InstructBLIP with Flan-T5.
      odds: whether the reward is log(s / (1 - s)), of any size, instead of s, 0 to 1.
      minibatch: images judged at once; as many as the model evaluates at once by default.
    """
    fn = jax.tree_util.Partial(*bind(_odds if odds else _score, model))
    return device(fn, name="instructblip-odds" if odds else "instructblip", minibatch=minibatch)
