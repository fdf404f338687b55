"""The reward that counts what OWLv2 finds: minus the squared error of the counts.

    found of class c      boxes of a score above a threshold whose likeliest class is c, and that
                          no better box of c overlaps (non-maximum suppression)
    reward                -sum over classes (wanted - found)^2, 0 where all counts are right

The score of a box is the sigmoid of its highest logit, as in the public post-processing. The
reward is constant almost everywhere. The smooth one counts every box that is kept by

    sigmoid((logit - logit of the threshold) / softness)

which tells images of one count apart, has a gradient, and goes to the other as softness does to 0.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count, check_positive
from flowsde._static import Static
from flowsde.models.clip.rewards import clipped, standardised
from flowsde.models.owlv2.boxes import corners, suppress
from flowsde.models.owlv2.counts import CLASSES, checked
from flowsde.models.owlv2.model import Detections, Owlv2, Owlv2Detector
from flowsde.modules import bind
from flowsde.rewards import DeviceReward, device

GRAY = 0.5
"""Of what is added to a square, where colours are in [0, 1]."""
_REACH = 4.0
"""Standard deviations of the Gaussian that are summed."""


class Wanted(NamedTuple):
    """What the reward is told of a prompt, `CLASSES` classes at most.

    Attributes:
      queries: embeddings of the classes' texts, float32 [classes, projection].
      counts: float32 [classes]; -1 for a place without a class.
    """

    queries: Any
    counts: Any


def square_pixels(images: jax.Array, size: int = 960, gray: float = GRAY) -> jax.Array:
    """Images as OWLv2's own preprocessing makes them, but for rounding to 8 bits.

    Gray is added at the bottom or on the right to a square, which is resized (Gaussian smoothing
    where it becomes smaller, then linear interpolation), and each colour standardised.

    Args:
      images: [n, height, width, 3] in [-1, 1], clipped beyond.
      size: pixels a side.
      gray: of what is added, in [0, 1]: .5 as the models were trained; `transformers` 5 has 0.

    Returns:
      float32 [n, size, size, 3].

    Raises:
      ValueError: images of another shape.
    """
    x = 0.5 * (clipped(images) + 1.0)
    height, width = x.shape[1:3]
    side = max(height, width)
    around = ((0, 0), (0, side - height), (0, side - width), (0, 0))
    x = jnp.pad(x, around, constant_values=gray)
    if side != size:
        resize = jnp.asarray(_resizing(side, size))
        for axis in (1, 2):
            # Exact products, where a device would otherwise take faster ones.
            x = jnp.tensordot(resize, x, ((1,), (axis,)), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(x, 0, axis)
    return standardised(x)


def _resizing(old: int, new: int) -> np.ndarray:
    """The matrix float32 [new, old] that resizes one axis, mirrored about its first and last."""
    factor = old / new
    at = (np.arange(new) + 0.5) * factor - 0.5
    low = np.floor(at).astype(int)
    linear = np.zeros((new, old))
    for places, share in ((low, low + 1 - at), (low + 1, at - low)):
        np.add.at(linear, (np.arange(new), _mirrored(places, old)), share)
    deviation = max(0.0, (factor - 1.0) / 2.0)
    reach = int(_REACH * deviation + 0.5)
    if not reach:
        return linear.astype(np.float32)
    steps = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    smooth, rows = np.zeros((old, old)), np.arange(old)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        np.add.at(smooth, (rows, _mirrored(rows + step, old)), weight)
    return (linear @ smooth).astype(np.float32)


def _mirrored(places: np.ndarray, n: int) -> np.ndarray:
    """Places on an axis of n, those beyond its ends mirrored about the end."""
    if n == 1:
        return np.zeros_like(places)
    around = np.abs(places) % (2 * n - 2)
    return np.where(around < n, around, 2 * n - 2 - around)


def wanted(queries: jax.Array | np.ndarray, counts: Mapping[str, int]) -> Wanted:
    """What the reward is told of counts, given the embeddings of their classes in their order.

    Args:
      queries: float32 [classes, projection], as `Owlv2.queries` gives them.
      counts: by class, `CLASSES` at most.

    Raises:
      ValueError, TypeError: naming the class.
    """
    numbers = list(checked(counts).values())
    if queries.shape[0] != len(numbers):
        raise ValueError(f"queries must be of {len(numbers)} classes, got {queries.shape[0]}")
    free = CLASSES - len(numbers)
    every = np.pad(np.asarray(queries, np.float32), ((0, free), (0, 0)))
    return Wanted(every, np.asarray([*numbers, *[-1] * free], np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counting(Static):
    """What counts as an object.

    Attributes:
      softness: of the smooth count, in logits; None counts boxes whole, and its gradient is 0.
      threshold: score above which a box is counted; in the smooth count, by more than half.
      overlap: intersection over union above which the worse of two boxes of a class is dropped.
      boxes: of the highest scores that are looked at; there are not more in a count.
      gray: of what is added to a square; see `square_pixels`.

    Raises:
      ValueError, TypeError: naming the attribute.
    """

    softness: float | None = None
    threshold: float = 0.1
    overlap: float = 0.3
    boxes: int = 512
    gray: float = GRAY

    def __post_init__(self) -> None:
        if self.softness is not None:
            check_positive("softness", self.softness)
        for name in ("threshold", "overlap"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        check_count("boxes", self.boxes)
        if not 0.0 <= self.gray <= 1.0:
            raise ValueError(f"gray must be 0 to 1, got {self.gray}")

    def found(self, seen: Detections, is_class: jax.Array) -> jax.Array:
        """How many of each class there are, float32 [n, classes].

        Args:
          seen: in n images.
          is_class: bool [n, classes], False for a place without a class.
        """
        return jax.vmap(self._in_one)(seen.logits, seen.boxes, is_class)

    def _in_one(self, logits: jax.Array, boxes: jax.Array, is_class: jax.Array) -> jax.Array:
        logits = jnp.where(is_class[None], logits, -jnp.inf)
        best = jnp.max(logits, axis=-1)
        highest, places = jax.lax.top_k(best, min(self.boxes, len(best)))
        labels = jnp.argmax(logits[places], axis=-1)
        # Which boxes are kept does not change with small changes of them.
        kept = suppress(jax.lax.stop_gradient(corners(boxes[places])), labels, self.overlap)
        above = highest - math.log(self.threshold / (1.0 - self.threshold))
        if self.softness is not None:
            counted = jax.nn.sigmoid(above / self.softness)
        else:
            # NaN is no count.
            counted = jnp.where(jnp.isnan(above), above, (above > 0.0).astype(jnp.float32))
        of_class = labels[:, None] == jnp.arange(len(is_class))[None]
        return jnp.sum(jnp.where(kept[:, None] & of_class, counted[:, None], 0.0), axis=0)

    def __call__(self, model: Owlv2Detector, images: jax.Array, cond: Wanted) -> jax.Array:
        """Rewards float32 [n] of images [n, h, w, 3] in [-1, 1]."""
        seen = model(square_pixels(images, model.config.vision.image, self.gray), cond.queries)
        is_class = cond.counts >= 0.0
        wrong = jnp.where(is_class, cond.counts - self.found(seen, is_class), 0.0)
        return -jnp.sum(wrong**2, axis=-1)


def count_reward(
    model: Owlv2, counting: Counting = Counting(), *, minibatch: int | None = None
) -> DeviceReward:
    """Minus the squared error of the counts of what a prompt names, 0 at most.

    It is told `Wanted` of each prompt, and holds the image tower and the heads alone.

    Args:
      model: a published OWLv2.
      counting: what counts as an object.
      minibatch: images judged at once; as many as the model evaluates at once by default.
    """
    fn = jax.tree_util.Partial(*bind(counting, model.detector))
    name = "owlv2" if counting.softness is None else "owlv2-smooth"
    return device(fn, name=name, minibatch=minibatch)
