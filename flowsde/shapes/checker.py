"""Held-out checker of shapes pictures: counts clean objects with classical vision, no weights.

No search ever sees this judge, and it shares neither code nor weights with the learned scorer.

1. *Segment.* A pixel's offset ``d`` from the background is projected on the palette offsets
   ``p_c``; with ``c = argmax d.p_c / |p_c|`` its coverage is ``a = d.p_c / |p_c|^2``.
   Connected pixels (8 neighbours) with ``a > 1/2`` are one component, whatever their colours.
2. *Fit.* Each component is compared with an ideal circle, square and upright triangle
   ``T(centre, radius)``. A template is a stack of ``K`` thin slabs whose exact overlap with the
   pixel grid is separable, ``T[y, x] = sum_k A[k, y] B[k, x]``, hence smooth in its parameters:
   Gauss-Newton steps from the moments minimise ``sum_w (a - s T)^2``. The kind is the one with
   the least relative residual ``sqrt(sum_w (a - s T)^2 / sum_w (s T)^2)``.
3. *Judge.* A component is a clean object if its residual is small and clearly the smallest, its
   colour is near one palette entry, and it lies whole inside the picture at a plausible size.
   Anything else is unclear, and so is whatever the clean objects, painted back, leave behind.
"""

from typing import NamedTuple

import numpy as np

from flowsde.shapes.captions import COLOURS, KINDS
from flowsde.shapes.data import BACKGROUND, PALETTE, SIZE

_CORE = 0.5
"""Least coverage of a component's pixels; half coverage is where an ideal edge lies."""
_SPECK = 1.5
"""Components with less coverage than this in all, in pixels, are noise."""
_SHAPE_TOLERANCE = 0.175
"""Largest relative residual of the shape of a clean object."""
_KIND_MARGIN = 1.2
"""The second best kind's residual must exceed the best one's by this factor."""
_COLOUR_TOLERANCE = 0.25
"""Largest error of a clean object's colour, relative to its palette offset."""
_MIX_TOLERANCE = 0.2
"""Largest root mean square of the pixels' deviations from the object's own colour, likewise."""
_AREA = (12.0, 95.0)
"""Areas, in pixels, at which a shape can be named."""
_CUT = 0.75
"""Pixels by which an object may stick out of the picture."""
_REST = 0.25
"""Least coverage of the pixels that clean objects leave unexplained."""

_WINDOW = 18
_SLABS = 16
_STEPS = 4
_CHUNK = 256
# Pictures are padded so that every window lies inside.
_MARGINS = ((0, 0), (_WINDOW, _WINDOW), (_WINDOW, _WINDOW))

_OFFSETS = (PALETTE - BACKGROUND).astype(np.float32)
_NORMS = np.linalg.norm(_OFFSETS, axis=-1)
# Of each kind with radius 1: top and bottom below the centroid, largest half width, area.
# The radius is the circle's, half the square's side, and the triangle's circumradius.
_TOP = np.asarray([-1.0, -1.0, -1.0], np.float32)
_BOTTOM = np.asarray([1.0, 1.0, 0.5], np.float32)
_HALF_WIDTH = np.asarray([1.0, 1.0, 3**0.5 / 2], np.float32)
_UNIT_AREA = np.asarray([np.pi, 4.0, 3 * 3**0.5 / 4], np.float32)


class Detections(NamedTuple):
    """What the checker sees in n pictures.

    Attributes:
      counts: int32 [n, colours, kinds], clean objects.
      unclear: int32 [n], regions that are not a clean object of one colour.
    """

    counts: np.ndarray
    unclear: np.ndarray


class _Components(NamedTuple):
    """m components, each in a window of its picture; offsets are windows of colour offsets."""

    image: np.ndarray  # [m] which picture
    corner: np.ndarray  # [m, 2] (x, y) of the window's first pixel
    own: np.ndarray  # bool [m, w, w]
    weight: np.ndarray  # [m, w, w], 1 where the component alone decides the pixel
    offsets: np.ndarray  # [m, w, w, 3]


class _Fit(NamedTuple):
    """Best template of each component and kind."""

    params: np.ndarray  # [m, kinds, 3]: centroid x, y in the window, radius
    template: np.ndarray  # [m, kinds, w, w]
    residual: np.ndarray  # [m, kinds]


def _coverage(offsets: np.ndarray) -> np.ndarray:
    """Coverage [...] of pixels by the palette colour whose direction is nearest."""
    along = offsets @ (_OFFSETS / _NORMS[:, None]).T
    nearest = along.argmax(-1)
    return np.take_along_axis(along, nearest[..., None], -1)[..., 0] / _NORMS[nearest]


def _spread(x: np.ndarray) -> np.ndarray:
    """Maximum over each pixel's 3x3 neighbourhood, for x [n, h, w] not negative."""
    out = x.copy()
    np.maximum(out[:, 1:], x[:, :-1], out=out[:, 1:])
    np.maximum(out[:, :-1], x[:, 1:], out=out[:, :-1])
    rows = out.copy()
    np.maximum(out[:, :, 1:], rows[:, :, :-1], out=out[:, :, 1:])
    np.maximum(out[:, :, :-1], rows[:, :, 1:], out=out[:, :, :-1])
    return out


def _label(mask: np.ndarray) -> np.ndarray:
    """Components of mask [n, h, w]: int32, 0 outside, one positive value each over all n."""
    labels = np.where(mask, np.arange(1, mask.size + 1, dtype=np.int32).reshape(mask.shape), 0)
    while True:
        spread = np.where(mask, _spread(labels), 0)
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def _window_pixels(image: np.ndarray, corner: np.ndarray) -> tuple[np.ndarray, ...]:
    """Index of the windows [m, w, w] in pictures padded by `_MARGINS`."""
    steps = np.arange(_WINDOW) + _WINDOW
    rows = corner[:, 1, None, None] + steps[:, None]
    columns = corner[:, 0, None, None] + steps
    return image[:, None, None], rows, columns


def _cut_windows(labels: np.ndarray, offsets: np.ndarray) -> tuple[_Components, np.ndarray]:
    """Components of `labels` that fit a window, and the picture of each one that does not."""
    image, y, x = np.nonzero(labels)
    ids, which = np.unique(labels[image, y, x], return_inverse=True)
    low = np.full((len(ids), 2), SIZE)
    high = np.full((len(ids), 2), -1)
    np.minimum.at(low, which, np.stack([x, y], -1))
    np.maximum.at(high, which, np.stack([x, y], -1))
    picture = np.zeros(len(ids), np.int64)
    picture[which] = image
    fits = (high - low < _WINDOW - 4).all(-1)
    corner = ((low + high + 1) // 2 - _WINDOW // 2)[fits]

    # Padding stands outside the picture: it gives no evidence, so it gets no weight.
    at = _window_pixels(picture[fits], corner)
    window_labels = np.pad(labels, _MARGINS, constant_values=-1)[at]
    own = window_labels == ids[fits][:, None, None]
    others = (window_labels > 0) & ~own
    near = _spread(_spread(own.astype(np.int8))) > 0
    contested = _spread(others.astype(np.int8)) > 0
    weight = (near & ~contested | own) & (window_labels >= 0)
    cut = np.pad(offsets, (*_MARGINS, (0, 0)))[at]
    return _Components(picture[fits], corner, own, weight.astype(np.float32), cut), picture[~fits]


def _overlap(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Length of [low, high] inside each pixel of a window: [...] -> [..., w]."""
    left = np.arange(_WINDOW, dtype=np.float32)
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
    at = np.arange(_WINDOW, dtype=np.float32) + 0.5
    x = (mass * at).sum((1, 2)) / total
    y = (mass * at[:, None]).sum((1, 2)) / total
    radius = np.sqrt(total[:, None] / _UNIT_AREA)
    kinds = np.ones(len(KINDS), np.float32)
    return np.stack([x[:, None] * kinds, y[:, None] * kinds, radius], -1).astype(np.float32)


def _fit(coverage: np.ndarray, weight: np.ndarray) -> _Fit:
    """Least squares of ``scale * template`` to coverage [m, w, w], all kinds at once."""
    params = _first_guess(coverage, weight)
    shape = (*params.shape[:2], _WINDOW**2)
    root = np.sqrt(weight)[:, None]
    target = (root * coverage[:, None]).reshape(len(params), 1, _WINDOW**2)
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
        params[..., 2] = np.clip(params[..., 2], 0.5, _WINDOW / 2)
    flat, scale, power = weighted(params)
    error = ((target - scale[..., None] * flat) ** 2).sum(-1)
    residual = np.sqrt(error / np.maximum(scale**2 * power, 1e-6))
    return _Fit(params, _template(params), residual)


def _whole(params: np.ndarray, kind: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Whether shapes, params [m, 3] in their windows, are of nameable size and not cut off."""
    radius = params[:, 2]
    centre = params[:, :2] + corner
    reach = radius * _HALF_WIDTH[kind]
    low = np.minimum(centre[:, 0] - reach, centre[:, 1] + radius * _TOP[kind])
    high = np.maximum(centre[:, 0] + reach, centre[:, 1] + radius * _BOTTOM[kind])
    area = _UNIT_AREA[kind] * radius**2
    return (low > -_CUT) & (high < SIZE + _CUT) & (area > _AREA[0]) & (area < _AREA[1])


def _judge(parts: _Components) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each component: clean or not [m], colour [m], kind [m], its ideal picture."""
    core = (parts.offsets * parts.own[..., None]).sum((1, 2))
    colour = (core @ (_OFFSETS / _NORMS[:, None]).T).argmax(-1)
    along = (parts.offsets @ (_OFFSETS / _NORMS[:, None] ** 2)[colour][:, None, :, None])[..., 0]
    fit = _fit(along, parts.weight)
    row = np.arange(len(colour))
    kind = fit.residual.argmin(-1)
    best, second = np.sort(fit.residual, -1)[:, :2].T
    template = fit.template[row, kind]

    weighted = template * parts.weight
    power = np.maximum((weighted * template).sum((1, 2)), 1e-6)
    paint = (weighted[..., None] * parts.offsets).sum((1, 2)) / power[:, None]
    ideal = template[..., None] * paint[:, None, None]
    off_colour = np.linalg.norm(paint - _OFFSETS[colour], axis=-1) / _NORMS[colour]
    # Mixed colours: inside the component, what is not a multiple of its own colour.
    unit = paint / np.maximum(np.linalg.norm(paint, axis=-1, keepdims=True), 1e-6)
    shade = (parts.offsets @ unit[:, None, :, None]) * unit[:, None, None]
    strays = ((parts.offsets - shade) ** 2).sum(-1) * parts.own
    mixed = np.sqrt(strays.sum((1, 2)) / parts.own.sum((1, 2))) / _NORMS[colour]

    clean = (best < _SHAPE_TOLERANCE) & (second > _KIND_MARGIN * best)
    clean &= (off_colour < _COLOUR_TOLERANCE) & (mixed < _MIX_TOLERANCE)
    clean &= _whole(fit.params[row, kind], kind, parts.corner)
    return clean, colour, kind, ideal


def _masses(labels: np.ndarray, coverage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture and summed coverage of each component of `labels`."""
    image, y, x = np.nonzero(labels)
    ids, which = np.unique(labels[image, y, x], return_inverse=True)
    picture = np.zeros(len(ids), np.int64)
    picture[which] = image
    return picture, np.bincount(which, coverage[image, y, x], len(ids))


def _without_specks(labels: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Labels whose component, with the fringe around it, is more than a speck."""
    fringed = _spread(labels).ravel()
    visible = np.maximum(coverage, 0.0).ravel()
    mass = np.bincount(fringed, visible, labels.max(initial=0) + 1)
    return np.where(mass[labels] < _SPECK, 0, labels)


def _leftovers(
    offsets: np.ndarray,
    labels: np.ndarray,
    parts: _Components,
    clean: np.ndarray,
    ideal: np.ndarray,
) -> np.ndarray:
    """Regions [n] that neither the clean objects nor an unclear component account for."""
    rest = np.pad(offsets, (*_MARGINS, (0, 0)))
    unclear = np.pad((labels > 0).astype(np.int8), _MARGINS)
    at = _window_pixels(parts.image, parts.corner)
    np.subtract.at(rest, at, ideal * clean[:, None, None, None])
    np.subtract.at(unclear, at, (parts.own & clean[:, None, None]).astype(np.int8))
    inside = (slice(None), slice(_WINDOW, -_WINDOW), slice(_WINDOW, -_WINDOW))
    amount = np.linalg.norm(rest[inside], axis=-1) / _NORMS.mean()
    mask = (amount > _REST) & (_spread(unclear[inside]) == 0)
    image, mass = _masses(_label(mask), amount)
    return np.bincount(image[mass >= _SPECK], minlength=len(offsets))


def _detect_chunk(images: np.ndarray) -> Detections:
    n = len(images)
    offsets = (np.clip(images, -1.0, 1.0).astype(np.float32) + 1) / 2 - BACKGROUND
    coverage = _coverage(offsets)
    labels = _without_specks(_label(coverage > _CORE), coverage)
    parts, too_large = _cut_windows(labels, offsets)
    clean, colour, kind, ideal = _judge(parts)
    counts = np.zeros((n, len(COLOURS), len(KINDS)), np.int32)
    np.add.at(counts, (parts.image[clean], colour[clean], kind[clean]), 1)
    unclear = np.bincount(np.concatenate([parts.image[~clean], too_large]), minlength=n)
    unclear += _leftovers(offsets, labels, parts, clean, ideal)
    return Detections(counts, unclear.astype(np.int32))


def detect(images: np.ndarray) -> Detections:
    """Count the clean objects of each colour and kind.

    Args:
      images: floating [n, 32, 32, 3]; values outside [-1, 1] are clipped.

    Raises:
      ValueError: wrong shape or dtype, or NaN pixels.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images: got shape {images.shape}, expected (n, {SIZE}, {SIZE}, 3)")
    if images.dtype.kind != "f":
        raise ValueError(f"images: got dtype {images.dtype}, expected a float in [-1, 1]")
    if np.isnan(images).any():
        bad = int(np.isnan(images).any((1, 2, 3)).sum())
        raise ValueError(f"images: got NaN in {bad} of {len(images)} pictures, expected numbers")
    chunks = [_detect_chunk(images[i : i + _CHUNK]) for i in range(0, max(len(images), 1), _CHUNK)]
    return Detections(*(np.concatenate(part) for part in zip(*chunks, strict=True)))


def _differences(images: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts less wanted [n, colours, kinds], and unclear [n]."""
    found = detect(images)
    wanted = np.asarray(wanted)
    if wanted.shape != found.counts.shape or wanted.dtype.kind not in "iu":
        raise ValueError(
            f"wanted: got {wanted.dtype} of shape {wanted.shape}, "
            f"expected integers of shape {found.counts.shape}"
        )
    return found.counts - wanted.astype(np.int64), found.unclear


def exact(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each picture shows exactly what was wanted and nothing unclear: bool [n].

    Args:
      images: as in `detect`.
      wanted: int [n, colours, kinds], as from `captions.counts`.
    """
    difference, unclear = _differences(images, wanted)
    return (difference == 0).all((1, 2)) & (unclear == 0)


def rss(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Residual sum of squares of the counts, float [n]; 0 exactly where `exact` holds.

    The sum over colours and kinds of (count - wanted)^2; each unclear region adds 1.
    """
    difference, unclear = _differences(images, wanted)
    return (difference**2).sum((1, 2)).astype(np.float64) + unclear
