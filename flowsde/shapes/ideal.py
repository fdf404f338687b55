"""Ideal shapes of the held-out checker, fitted to soft masks by least squares.

A template is a stack of ``K`` thin slabs whose exact overlap with the pixel grid is separable,
``T[y, x] = sum_k A[k, y] B[k, x]``, hence smooth in its parameters (centroid, radius): Gauss-Newton
steps from the moments of the mask ``a`` minimise ``sum_w (a - s T)^2`` over them and the scale s.
"""

from typing import NamedTuple

import numpy as np

from flowsde.shapes.captions import KINDS

WINDOW = 18
"""Pixels a side of the masks."""
_SLABS = 16
_STEPS = 4
# Of each kind with radius 1: top and bottom below the centroid, largest half width, area.
# The radius is the circle's, half the square's side, and the triangle's circumradius.
_TOP = np.asarray([-1.0, -1.0, -1.0], np.float32)
_BOTTOM = np.asarray([1.0, 1.0, 0.5], np.float32)
_HALF_WIDTH = np.asarray([1.0, 1.0, 3**0.5 / 2], np.float32)
_UNIT_AREA = np.asarray([np.pi, 4.0, 3 * 3**0.5 / 4], np.float32)


class Fit(NamedTuple):
    """Best template of each component and kind."""

    params: np.ndarray  # [m, kinds, 3]: centroid x, y in the window, radius
    template: np.ndarray  # [m, kinds, w, w]
    residual: np.ndarray  # [m, kinds]


def _overlap(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Length of [low, high] inside each pixel of a window: [...] -> [..., w]."""
    left = np.arange(WINDOW, dtype=np.float32)
    inside = np.minimum(high[..., None], left + 1) - np.maximum(low[..., None], left)
    return np.maximum(inside, 0.0)


def _template(params: np.ndarray) -> np.ndarray:
    """Ideal anti-aliased shapes of every kind: params [..., kinds, 3] -> [..., kinds, w, w]."""
    x, y, radius = (params[..., i, None] for i in range(3))
    edges = np.linspace(0.0, 1.0, _SLABS + 1, dtype=np.float32)
    edges = _TOP[:, None] + (_BOTTOM - _TOP)[:, None] * edges
    middle = (edges[:, 1:] + edges[:, :-1]) / 2
    half = np.stack(
        [
            np.sqrt(1 - middle[0] ** 2),
            np.ones(_SLABS, np.float32),
            (middle[2] + 1) / np.float32(3**0.5),
        ]
    )
    rows = _overlap(y + radius * edges[:, :-1], y + radius * edges[:, 1:])
    columns = _overlap(x - radius * half, x + radius * half)
    return np.swapaxes(rows, -1, -2) @ columns


def _first_guess(coverage: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Centroid and the radius that gives each kind the component's area: [m, kinds, 3]."""
    mass = np.maximum(coverage, 0.0) * weight
    total = mass.sum((1, 2))
    at = np.arange(WINDOW, dtype=np.float32) + 0.5
    x = (mass * at).sum((1, 2)) / total
    y = (mass * at[:, None]).sum((1, 2)) / total
    radius = np.sqrt(total[:, None] / _UNIT_AREA)
    kinds = np.ones(len(KINDS), np.float32)
    return np.stack([x[:, None] * kinds, y[:, None] * kinds, radius], -1).astype(np.float32)


def fit(coverage: np.ndarray, weight: np.ndarray) -> Fit:
    """Least squares of ``scale * template`` to coverage [m, w, w], all kinds at once."""
    params = _first_guess(coverage, weight)
    shape = (*params.shape[:2], WINDOW**2)
    root = np.sqrt(weight)[:, None]
    target = (root * coverage[:, None]).reshape(len(params), 1, WINDOW**2)
    delta = np.float32(0.05)

    def weighted(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        flat = (root * _template(p)).reshape(shape)
        power = np.maximum((flat**2).sum(-1), 1e-6)
        scale = (flat * target).sum(-1) / power
        return flat, scale, power

    for _ in range(_STEPS):
        flat, scale, _ = weighted(params)
        slopes = [
            (weighted(params + delta * axis)[0] - flat) * (scale[..., None] / delta)
            for axis in np.eye(3, dtype=np.float32)
        ]
        jacobian = np.stack([*slopes, flat], -2)
        normal = jacobian @ np.swapaxes(jacobian, -1, -2) + 1e-3 * np.eye(4, dtype=np.float32)
        pull = jacobian @ (target - scale[..., None] * flat)[..., None]
        params = params + np.clip(np.linalg.solve(normal, pull)[..., :3, 0], -0.5, 0.5)
        params[..., 2] = np.clip(params[..., 2], 0.5, WINDOW / 2)
    flat, scale, power = weighted(params)
    error = ((target - scale[..., None] * flat) ** 2).sum(-1)
    residual = np.sqrt(error / np.maximum(scale**2 * power, 1e-6))
    return Fit(params, _template(params), residual)


def boxes(
    centroid: np.ndarray, radius: np.ndarray, kind: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper corners [m, 2] (x, y) and areas [m] of shapes of centroids [m, 2]."""
    reach, (x, y) = radius * _HALF_WIDTH[kind], centroid.T
    low = np.stack([x - reach, y + radius * _TOP[kind]], -1)
    high = np.stack([x + reach, y + radius * _BOTTOM[kind]], -1)
    return low, high, _UNIT_AREA[kind] * radius**2
