"""Rules that make one number of several rewards of a picture.

A rule is compared by value, so that it can be part of what a program is compiled for, and computes
with `numpy` or `jax.numpy`: a combination of rewards outside JAX is the same function.
"""

import dataclasses
from typing import Any, Protocol

import numpy as np

_LARGE = np.float32(1e30)


class Rule(Protocol):
    """``rule(parts, numpy) -> [n]`` of the k parts, float32 [n] each, in their order."""

    def __call__(self, parts: list[Any], numpy: Any) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Combination:
    """Named parts and the rule that combines them; NaN of an unasked one is for the rule."""

    names: tuple[str, ...]
    rule: Rule
    unasked: tuple[str, ...] = ()

    def __call__(self, parts: dict[str, Any], numpy: Any) -> Any:
        """The reward float32 [n]; NaN for a picture that a part has no reward for.

        A part has none where it is NaN or -inf: else a negative weight would make that the best.
        """
        given = [parts[name] for name in self.names]
        # Read before the rule, in which infinities would meet.
        known = [
            ~numpy.isneginf(part) & (~numpy.isnan(part) | (name in self.unasked))
            for name, part in zip(self.names, given, strict=True)
        ]
        every = numpy.all(numpy.stack(known), axis=0)
        zero = np.float32(0.0)
        clean = [numpy.where(every, part, zero) for part in given]
        return numpy.where(every, self.rule(clean, numpy), np.float32(np.nan))


@dataclasses.dataclass(frozen=True)
class Weighted:
    """sum_i w_i r_i."""

    weights: tuple[float, ...]

    def __call__(self, parts: list[Any], numpy: Any) -> Any:
        terms = zip(self.weights, parts, strict=True)
        return sum(np.float32(w) * part for w, part in terms)


@dataclasses.dataclass(frozen=True)
class Minimum:
    """min_i w_i r_i."""

    scales: tuple[float, ...]

    def __call__(self, parts: list[Any], numpy: Any) -> Any:
        terms = zip(self.scales, parts, strict=True)
        return numpy.min(numpy.stack([np.float32(w) * part for w, part in terms]), axis=0)


@dataclasses.dataclass(frozen=True)
class Lexicographic:
    """step_1 (floor(r_1 / step_1) + h(floor(r_2 / step_2) + h(... r_k / step_k))).

    h(y) = (1 + y / (1 + |y|)) / 2 rises from 0 to 1, so that a whole step of a reward outweighs all
    that come behind it.
    """

    steps: tuple[float, ...]

    def __call__(self, parts: list[Any], numpy: Any) -> Any:
        numbers = zip(self.steps, parts, strict=True)
        *before, total = [
            numpy.clip(part / np.float32(step), -_LARGE, _LARGE) for step, part in numbers
        ]
        half, one = np.float32(0.5), np.float32(1.0)
        for part in reversed(before):
            total = numpy.floor(part) + half * (one + total / (one + numpy.abs(total)))
        return np.float32(self.steps[0]) * total


@dataclasses.dataclass(frozen=True)
class Cascaded:
    """max(r_2, floor) where r_2 was asked for; else r_1 - threshold below the floor."""

    threshold: float
    floor: float

    def __call__(self, parts: list[Any], numpy: Any) -> Any:
        cheap, dear = parts
        floor = np.float32(self.floor)
        # Below it even where the difference is less than float32 tells apart there.
        below = floor + numpy.minimum(cheap - np.float32(self.threshold), np.float32(0.0))
        below = numpy.minimum(below, np.nextafter(floor, np.float32(-np.inf)))
        return numpy.where(numpy.isnan(dear), below, numpy.maximum(dear, floor))
