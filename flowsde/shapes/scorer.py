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
so), and one small read-out, shared by all pairs, turns sums into log-probabilities. A smooth
function of a sum near 5 hardly tells 5 from 6, so the read-out is a discrete Gaussian about the
first sum ``s``, whose precision and corrections a perceptron ``f`` of all sums chooses:

    log p(count = k) = f_k - exp(f_precision) (k - s)^2 + const.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.common.layers import FLOAT32, scan, shapes_of, stack
from flowsde.shapes.captions import COLOURS, KINDS, MAX_COUNT, MAX_GROUPS, NUMBERS, VOCABULARY
from flowsde.shapes.data import SIZE

Params = Any
Measure = Callable[[jax.Array, jax.Array], jax.Array]
"""(log-probabilities, wanted counts) -> rewards."""

CLASSES = MAX_COUNT + 2
"""Counts 0 to 5, and more."""
PAIRS = (len(COLOURS), len(KINDS))
CELL = 4
"""Pixels a side of a grid cell."""
GRID = SIZE // CELL

_MOST_PRECISE = 4.0
"""Largest logarithm of a precision, so that early steps of training stay finite."""

_FIRST_COLOUR = VOCABULARY.index(COLOURS[0])
_FIRST_KIND = VOCABULARY.index(KINDS[0])
_FIRST_NUMBER = VOCABULARY.index(NUMBERS[0])
_WORDS = 4
"""Words from one group's number to the next one's: number, colour, kind, ``and``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Sizes of `CountScorer`.

    Attributes:
      width: channels of the grid.
      depth: residual convolutions on the grid.
      detectors: soft detections of each pair in a cell.
      context: averages of the whole picture that the read-out also sees.
      hidden: width of the read-out.
      gaussian: whether the read-out is about the first sum; without it, ``f_k`` alone.
    """

    width: int = 64
    depth: int = 2
    detectors: int = 4
    context: int = 8
    hidden: int = 64
    gaussian: bool = False


def _neighbourhoods(x: jax.Array, size: int) -> jax.Array:
    """Stacks the ``size`` x ``size`` cells that begin at each cell, without padding."""
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    offsets = [(i, j) for i in range(size) for j in range(size)]
    return jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in offsets], axis=-1)


def _pad(x: jax.Array, margin: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def _squared_distances(total: jax.Array, log_precision: jax.Array) -> jax.Array:
    """``exp(log_precision) (k - total)^2`` for each class k, the last of which is "or more"."""
    classes = jnp.arange(CLASSES, dtype=jnp.float32)
    total = jnp.minimum(total.astype(jnp.float32), CLASSES - 1)[..., None]
    distances = jnp.square(classes.reshape(*[1] * (total.ndim - 1), -1) - total)
    return jnp.exp(jnp.minimum(log_precision, _MOST_PRECISE))[..., None] * distances


class Block(nnx.Module):
    """Residual 3x3 convolution, as one matrix product: x + W[nine shifts of silu(norm(x))].

    XLA's CPU backend differentiates that up to twice as fast as a convolution.
    """

    def __init__(self, config: ScorerConfig, rngs: nnx.Rngs):
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        self.linear = FLOAT32.linear(9 * config.width, config.width, (None, "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, GRID, GRID, width] -> the same."""
        columns = _neighbourhoods(_pad(jax.nn.silu(self.norm(x)), 1), 3)
        return x + self.linear(columns.reshape(-1, columns.shape[-1])).reshape(x.shape)


class CountScorer(nnx.Module):
    """Log-probabilities of counts, ``scorer(images)``."""

    def __init__(self, config: ScorerConfig, *, rngs: nnx.Rngs):
        self.config = config
        zeros, rare = nnx.initializers.zeros_init(), nnx.initializers.constant(-4.0)
        detections = PAIRS[0] * PAIRS[1] * config.detectors
        # 8x8 pixels around each cell of 4x4.
        self.stem = FLOAT32.linear(4 * 48, config.width, (None, "embed"), rngs=rngs)
        self.blocks = stack(lambda one: Block(config, one), config.depth, rngs)
        self.norm = nnx.RMSNorm(config.width, rngs=rngs)
        # Objects are rare, and sums of 64 sigmoids must start small.
        self.detect = FLOAT32.linear(
            config.width, detections, ("embed", None), bias_init=rare, rngs=rngs
        )
        self.summary = FLOAT32.linear(config.width, config.context, ("embed", None), rngs=rngs)
        seen, outputs = config.detectors + config.context, CLASSES + config.gaussian
        self.read1 = FLOAT32.linear(seen, config.hidden, (None, "mlp"), rngs=rngs)
        self.read2 = FLOAT32.linear(
            config.hidden, outputs, ("mlp", None), kernel_init=zeros, rngs=rngs
        )

    def features(self, images: jax.Array) -> jax.Array:
        """Features [n, GRID GRID, width] of images [n, 32, 32, 3]; see `__call__`."""
        n, half = images.shape[0], CELL // 2
        x = _pad(jnp.clip(images, -1.0, 1.0), half)
        x = x.reshape(n, GRID + 1, CELL, GRID + 1, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
        x = self.stem(_neighbourhoods(x.reshape(n, GRID + 1, GRID + 1, -1), 2))
        x = scan(self.blocks, lambda block, x: block(x), x)
        return jax.nn.silu(self.norm(x)).reshape(n, GRID * GRID, -1)

    def detect_and_count(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits of the detections, [n, GRID GRID, colours, kinds, detectors], and `__call__`."""
        x = self.features(images)
        logits = self.detect(x).reshape(*x.shape[:2], *PAIRS, -1)
        counted = jnp.sum(jax.nn.sigmoid(logits), axis=1)
        context = jnp.mean(self.summary(x), axis=1)[:, None, None, :]
        context = jnp.broadcast_to(context, (*counted.shape[:-1], context.shape[-1]))
        h = jax.nn.silu(self.read1(jnp.concatenate([counted, context], axis=-1)))
        scores = self.read2(h).astype(jnp.float32)
        if self.config.gaussian:
            scores = scores[..., :-1] - _squared_distances(counted[..., 0], scores[..., -1])
        return logits, jax.nn.log_softmax(scores, axis=-1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Log-probabilities, float32 [n, colours, kinds, CLASSES], of images [n, 32, 32, 3].

        Values beyond [-1, 1] are clipped, as a display would.
        """
        return self.detect_and_count(images)[1]


def init(config: ScorerConfig, key: jax.Array) -> Params:
    """Fresh parameters, a nested dict of float32 arrays."""
    return nnx.to_pure_dict(nnx.state(CountScorer(config, rngs=nnx.Rngs(key))))


@cache
def split(config: ScorerConfig) -> tuple[nnx.GraphDef[CountScorer], nnx.State]:
    """What `nnx.merge` needs besides the parameters; and these, shapes with named axes."""
    return nnx.split(shapes_of(lambda: CountScorer(config, rngs=nnx.Rngs(0))))


def make_scorer(config: ScorerConfig) -> Callable[[Params, jax.Array], jax.Array]:
    """(params, images) -> log-probabilities: `CountScorer` as a pure function."""
    graphdef, _ = split(config)

    def score(params: Params, images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(images)

    return score


def groups_from_tokens(tokens: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Captions' groups: token ids int32 [n, MAX_TOKENS] -> counts, colours and kinds [n, groups].

    Counts are 0 for a group that a caption has not.
    """
    groups = tokens[:, : _WORDS * MAX_GROUPS].reshape(-1, MAX_GROUPS, _WORDS)
    number, colour, kind = groups[..., 0], groups[..., 1], groups[..., 2]
    count = jnp.where(number > 0, number - _FIRST_NUMBER + 1, 0).astype(jnp.int32)
    # Singular words, then plural ones, in the same order.
    return count, colour - _FIRST_COLOUR, (kind - _FIRST_KIND) % PAIRS[1]


def counts_from_tokens(tokens: jax.Array) -> jax.Array:
    """Meaning of captions: token ids int32 [n, MAX_TOKENS] -> counts int32 [n, colours, kinds].

    The inverse of `captions.tokenize`, up to `captions.counts`; all-zero tokens want no objects.
    """
    count, colour, kind = groups_from_tokens(tokens)
    kinds = jax.nn.one_hot(kind, PAIRS[1], dtype=jnp.int32)
    colours = jax.nn.one_hot(colour, PAIRS[0], dtype=jnp.int32)
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
