"""The embedded model's given reward: the log-likelihood of a caption's counts in a picture.

A small convolutional network says, for each of the 6 x 3 (colour, kind) pairs, how probable each
count is: 0 to 5, or more. With ``n_cs`` the count that the caption asks for (0 for pairs that it
does not name, so that an extra object is as wrong as a missing one), the reward of a picture is

    r(x, caption) = sum_cs log p(count_cs = n_cs | x)  <=  0,

the log-likelihood of the caption's meaning if pairs are independent given the picture; or, for a
reward in steps, minus the sum of squares of (most likely count - n_cs), the residual sum of
squares of counting that RBF (Kim et al., 2025, arXiv 2503.19385) uses.

The network counts by addition: every cell of an 8x8 grid holds soft detections in (0, 1) for
each pair, these are summed over the grid (Zhang et al., 2018, arXiv 1802.05766 and others count
so), and one small read-out, shared by all pairs, turns sums into log-probabilities.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.shapes.captions import COLOURS, KINDS, MAX_COUNT, MAX_GROUPS, NUMBERS, VOCABULARY
from flowsde.shapes.data import SIZE

Params = Any
Measure = Callable[[jax.Array, jax.Array], jax.Array]
"""(log-probabilities, wanted counts) -> rewards."""

CLASSES = MAX_COUNT + 2
"""Counts 0 to 5, and more."""
PAIRS = (len(COLOURS), len(KINDS))

_FIRST_COLOUR = VOCABULARY.index(COLOURS[0])
_FIRST_KIND = VOCABULARY.index(KINDS[0])
_FIRST_NUMBER = VOCABULARY.index(NUMBERS[0])
_WORDS = 4
"""Words from one group's number to the next one's: number, colour, kind, ``and``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Sizes of `CountScorer`.

    Attributes:
      stem: channels at half resolution.
      width: channels of the 8x8 grid.
      blocks: residual convolutions on the grid.
      detectors: soft detections of each pair in a cell.
      context: averages of the whole picture that the read-out also sees.
      hidden: width of the read-out.
    """

    stem: int = 32
    width: int = 64
    blocks: int = 2
    detectors: int = 4
    context: int = 8
    hidden: int = 64


class Conv3(nnx.Module):
    """RMS norm, SiLU and a 3x3 convolution, as one matrix product of the nine shifted pictures.

    XLA's CPU backend differentiates that up to twice as fast as a convolution.
    """

    def __init__(self, width: int, out: int, *, stride: int = 1, first: bool, rngs: nnx.Rngs):
        self.stride = stride
        self.norm = None if first else nnx.RMSNorm(width, rngs=rngs)
        self.linear = nnx.Linear(9 * width, out, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, side, side, width] -> [n, side / stride, side / stride, out]."""
        n, side, _, _ = x.shape
        if self.norm is not None:
            x = jax.nn.silu(self.norm(x))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        step, cells = self.stride, side // self.stride
        shifts = [
            x[:, i : i + side : step, j : j + side : step] for i in range(3) for j in range(3)
        ]
        columns = jnp.concatenate(shifts, axis=-1).reshape(n * cells * cells, -1)
        return self.linear(columns).reshape(n, cells, cells, -1)


class CountScorer(nnx.Module):
    """Log-probabilities of counts, ``scorer(images)``."""

    def __init__(self, config: ScorerConfig, *, rngs: nnx.Rngs):
        self.config = config
        pairs = PAIRS[0] * PAIRS[1]
        # Objects are rare, and sums of 64 sigmoids must start small.
        rare = nnx.initializers.constant(-4.0)
        self.stem = Conv3(12, config.stem, first=True, rngs=rngs)
        self.down = Conv3(config.stem, config.width, stride=2, first=False, rngs=rngs)
        for i in range(config.blocks):
            setattr(self, f"block{i}", Conv3(config.width, config.width, first=False, rngs=rngs))
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.detect = nnx.Linear(config.width, pairs * config.detectors, bias_init=rare, rngs=rngs)
        self.summary = nnx.Linear(config.width, config.context, rngs=rngs)
        self.read1 = nnx.Linear(config.detectors + config.context, config.hidden, rngs=rngs)
        self.read2 = nnx.Linear(
            config.hidden, CLASSES, kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Log-probabilities, float32 [n, colours, kinds, CLASSES], of images [n, 32, 32, 3].

        Values beyond [-1, 1] are clipped, as a display would.
        """
        n, half = images.shape[0], SIZE // 2
        x = jnp.clip(images, -1.0, 1.0).reshape(n, half, 2, half, 2, 3)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, half, half, 12)
        x = self.down(self.stem(x))
        for i in range(self.config.blocks):
            x = x + getattr(self, f"block{i}")(x)
        x = jax.nn.silu(self.norm(x)).reshape(n, (half // 2) ** 2, -1)
        counted = jnp.sum(jax.nn.sigmoid(self.detect(x)), axis=1).reshape(n, *PAIRS, -1)
        context = jnp.mean(self.summary(x), axis=1)[:, None, None, :]
        context = jnp.broadcast_to(context, (*counted.shape[:-1], context.shape[-1]))
        h = jax.nn.silu(self.read1(jnp.concatenate([counted, context], axis=-1)))
        return jax.nn.log_softmax(self.read2(h).astype(jnp.float32), axis=-1)


def init(config: ScorerConfig, key: jax.Array) -> Params:
    """Fresh parameters, a nested dict of float32 arrays."""
    return nnx.to_pure_dict(nnx.state(CountScorer(config, rngs=nnx.Rngs(key))))


def make_scorer(config: ScorerConfig) -> Callable[[Params, jax.Array], jax.Array]:
    """(params, images) -> log-probabilities: `CountScorer` as a pure function."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: CountScorer(config, rngs=nnx.Rngs(0))))

    def score(params: Params, images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(images)

    return score


def counts_from_tokens(tokens: jax.Array) -> jax.Array:
    """Meaning of captions: token ids int32 [n, MAX_TOKENS] -> counts int32 [n, colours, kinds].

    The inverse of `captions.tokenize`, up to `captions.counts`; all-zero tokens want no objects.
    """
    groups = tokens[:, : _WORDS * MAX_GROUPS].reshape(-1, MAX_GROUPS, _WORDS)
    number, colour, kind = groups[..., 0], groups[..., 1], groups[..., 2]
    count = jnp.where(number > 0, number - _FIRST_NUMBER + 1, 0).astype(jnp.int32)
    # Singular words, then plural ones, in the same order.
    kinds = jax.nn.one_hot((kind - _FIRST_KIND) % PAIRS[1], PAIRS[1], dtype=jnp.int32)
    colours = jax.nn.one_hot(colour - _FIRST_COLOUR, PAIRS[0], dtype=jnp.int32)
    return jnp.einsum("ng,ngc,ngk->nck", count, colours, kinds)


def _check(log_probs: jax.Array, wanted: jax.Array) -> None:
    expected = (*log_probs.shape[:1], *PAIRS)
    if log_probs.shape[1:] != (*PAIRS, CLASSES):
        raise ValueError(f"log_probs: got shape {log_probs.shape}, expected [n, 6, 3, {CLASSES}]")
    if wanted.shape != expected:
        raise ValueError(f"wanted: got shape {wanted.shape}, expected {expected}")


def log_likelihood(log_probs: jax.Array, wanted: jax.Array) -> jax.Array:
    """Sum over all pairs of log p(count = wanted), float32 [n], at most 0.

    Args:
      log_probs: [n, 6, 3, CLASSES], of `CountScorer`.
      wanted: int [n, 6, 3]; anything above 5 asks for "more".

    Raises:
      ValueError: at trace time, if shapes do not agree.
    """
    _check(log_probs, wanted)
    index = jnp.clip(wanted, 0, CLASSES - 1)[..., None]
    chosen = jnp.take_along_axis(log_probs, index, axis=-1)
    return jnp.sum(chosen.astype(jnp.float32), axis=(1, 2, 3))


def negative_rss(log_probs: jax.Array, wanted: jax.Array) -> jax.Array:
    """Minus the sum over all pairs of (most likely count - wanted)^2, float32 [n].

    "More" counts as 6. Arguments and errors are those of `log_likelihood`.
    """
    _check(log_probs, wanted)
    seen = jnp.argmax(log_probs, axis=-1).astype(jnp.float32)
    return -jnp.sum(jnp.square(seen - wanted.astype(jnp.float32)), axis=(1, 2))


def make_reward(
    config: ScorerConfig,
    measure: Measure = log_likelihood,
) -> Callable[[Params, jax.Array, jax.Array], jax.Array]:
    """(params, images, tokens) -> rewards [n], of `log_likelihood` or `negative_rss`.

    Bind the parameters, ``partial(make_reward(config), params)``, for a reward(images, cond).
    """
    score = make_scorer(config)

    def reward(params: Params, images: jax.Array, tokens: jax.Array) -> jax.Array:
        return measure(score(params, images), counts_from_tokens(tokens))

    return reward
