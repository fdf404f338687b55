"""Qwen3-VL as a judge: what it answers to questions about an image, by the odds of its first token.

With y the log-sum-exp of the logits of the words that count for an answer, n that of the words
against it, and r that of all words but those for it,

    probability    P(yes) = sigmoid(y - r)                     VQAScore of t2v_metrics (softmax over
                                                               the vocabulary)
    share          P(yes) / (P(yes) + P(no)) = sigmoid(y - n)
    log_odds       y - n, of any size: where the model is sure, the others are so close to 1 that
                   images tie, and have next to no gradient

Of several questions about an image (Soft-TIFA: one of each thing that a prompt says) it is the mean
of these, arithmetic or geometric. Of "how many" questions the expected count is that over the
digits 0 to 9, E = sum k P(k) / sum P(k), and the reward

    -sum over classes (wanted - E)^2, 0 where all counts are right.

The image, and the text before it, are read once for all questions. Tested with tiny random weights
in float32 against the public class of `transformers` (tower, logits, gradients of the image);
published weights were not seen.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from flowsde._checks import check_count
from flowsde._static import Static
from flowsde.models.clip.rewards import clipped, resized
from flowsde.models.qwen3_vl.model import Qwen3VL
from flowsde.models.qwen3_vl.questions import DIGITS, Asked, Counted
from flowsde.modules import bind
from flowsde.rewards import DeviceReward, device

Formula = Literal["probability", "share", "log_odds"]
Combine = Literal["mean", "geometric"]
NAMES: dict[str, str] = {
    "probability": "qwen3vl",
    "share": "qwen3vl-share",
    "log_odds": "qwen3vl-odds",
}
"""Of the rewards, by formula."""
LEAST, MOST = 256**2, 4096**2
"""Pixels that an image is resized to at least and at most, as published."""
_RATIO = 200


def smart_size(
    height: int, width: int, side: int, least: int = LEAST, most: int = MOST
) -> tuple[int, int]:
    """Height and width that an image is resized to: the nearest multiples of a token's side.

    Where that is fewer pixels than `least`, or more than `most`, both sides are scaled alike.

    Args:
      height, width: of the image.
      side: pixels a side of a token.
      least, most: pixels.

    Raises:
      ValueError: one side is more than 200 times the other, or fewer pixels are allowed than one
        token has.
    """
    if max(height, width) > _RATIO * min(height, width):
        raise ValueError(
            f"one side must be at most {_RATIO} times the other, got {height} x {width} pixels"
        )
    tall, wide = (round(n / side) * side for n in (height, width))
    if tall * wide > most:
        scale = math.sqrt(height * width / most)
        tall, wide = (max(side, math.floor(n / scale / side) * side) for n in (height, width))
    elif tall * wide < least:
        scale = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(n * scale / side) * side for n in (height, width))
    return tall, wide


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looking(Static):
    """How large images are made for the model, which sets what it sees and what it costs.

    Attributes:
      least, most: pixels of an image at least and at most, see `smart_size`.

    Raises:
      ValueError, TypeError: naming the attribute.
    """

    least: int = LEAST
    most: int = MOST

    def __post_init__(self) -> None:
        if check_count("least", self.least) > check_count("most", self.most):
            raise ValueError(f"least must be at most most, got {self.least} and {self.most}")

    def pixels(self, model: Qwen3VL, images: jax.Array) -> jax.Array:
        """Images as Qwen3-VL's own preprocessing makes them, but for rounding to 8 bits.

        Args:
          model: whose tokens they are divided into.
          images: [n, height, width, 3] in [-1, 1], clipped beyond.

        Returns:
          float32 [n, height, width, 3] in [-1, 1], which is how they are standardised: published
          files say a mean and a deviation of .5, not CLIP's.

        Raises:
          ValueError: images of another shape.
        """
        x = clipped(images)
        _, height, width, _ = x.shape
        side = model.config.vision.side
        return resized(x, *smart_size(height, width, side, self.least, self.most))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging(Looking):
    """From questions to a reward.

    Attributes:
      formula: of a question, as above.
      combine: what counts of several, "mean" or "geometric".
    """

    formula: Formula = "probability"
    combine: Combine = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.formula not in NAMES:
            raise ValueError(f"formula must be one of {', '.join(NAMES)}, got {self.formula!r}")
        if self.combine not in ("mean", "geometric"):
            raise ValueError(f"combine must be mean or geometric, got {self.combine!r}")
        if (self.formula, self.combine) == ("log_odds", "geometric"):
            raise ValueError("combine must be mean for log_odds, which may be negative")

    def __call__(self, model: Qwen3VL, images: jax.Array, asked: Asked) -> jax.Array:
        """Rewards float32 [n] of images [n, h, w, 3] in [-1, 1]."""
        pixels = self.pixels(model, images)
        logits = model(pixels, asked.before, asked.texts, asked.last)
        odds = _odds(self.formula, logits, asked)
        share = asked.weight / jnp.sum(asked.weight, axis=-1, keepdims=True)
        if self.formula == "log_odds":
            return jnp.sum(share * odds, axis=-1)
        if self.combine == "geometric":
            return jnp.exp(jnp.sum(share * jax.nn.log_sigmoid(odds), axis=-1))
        return jnp.sum(share * jax.nn.sigmoid(odds), axis=-1)


def _odds(formula: Formula, logits: jax.Array, asked: Asked) -> jax.Array:
    """Log-odds [n, questions] of an answer: against all other words, or those against it."""
    own = _together(logits, asked.answers)
    if formula != "probability":
        return own - _together(logits, asked.against)
    # The sum over all would round a probability close to 1 to it.
    is_own = jax.nn.one_hot(asked.answers, logits.shape[-1], dtype=bool).any(axis=-2)
    return own - jax.nn.logsumexp(jnp.where(is_own, -jnp.inf, logits), axis=-1)


def _together(logits: jax.Array, words: jax.Array) -> jax.Array:
    """log-sum-exp [n, questions] of the logits [n, questions, vocab] of some words."""
    own = jnp.take_along_axis(logits, jnp.maximum(words, 0), axis=-1)
    return jax.nn.logsumexp(jnp.where(words < 0, -jnp.inf, own), axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountJudging(Looking):
    """From "how many" questions to a reward.

    Attributes:
      error: whether it is minus the squared error of the expected counts; otherwise it is their
        sum, whatever is wanted.
    """

    error: bool = True

    def __call__(self, model: Qwen3VL, images: jax.Array, asked: Counted) -> jax.Array:
        """Rewards float32 [n] of images [n, h, w, 3] in [-1, 1]."""
        pixels = self.pixels(model, images)
        logits = model(pixels, asked.before, asked.texts, asked.last)
        of_digits = jnp.take_along_axis(logits, asked.digits[:, None], axis=-1)
        each = jnp.arange(len(DIGITS), dtype=jnp.float32)[None, None]
        expected = jnp.sum(jax.nn.softmax(of_digits, axis=-1) * each, axis=-1)
        is_asked = asked.wanted >= 0.0
        if not self.error:
            return jnp.sum(jnp.where(is_asked, expected, 0.0), axis=-1)
        return -jnp.sum(jnp.where(is_asked, asked.wanted - expected, 0.0) ** 2, axis=-1)


def judge(
    model: Qwen3VL, judging: Judging = Judging(), *, minibatch: int | None = None
) -> DeviceReward:
    """What Qwen3-VL says of images [n, h, w, 3] in [-1, 1], asked about each prompt.

    It is told `Asked` of each prompt, which `flowsde.models.qwen3_vl.questions.asking` makes: one
    question, or several atoms of it.

    Args:
      model: a published Qwen3-VL.
      judging: formula, means and sizes.
      minibatch: images judged at once; as many as the model evaluates at once by default.
    """
    fn = jax.tree_util.Partial(*bind(judging, model))
    return device(fn, name=NAMES[judging.formula], minibatch=minibatch)


def count_judge(
    model: Qwen3VL, judging: CountJudging = CountJudging(), *, minibatch: int | None = None
) -> DeviceReward:
    """Minus the squared error of the counts that Qwen3-VL expects, 0 at most.

    It is told `Counted` of each prompt.

    Args:
      model, minibatch: as of `judge`.
      judging: what it is of the counts, and sizes.
    """
    fn = jax.tree_util.Partial(*bind(judging, model))
    return device(fn, name="qwen3vl-counts", minibatch=minibatch)
