"""Held-out checker of shapes pictures: finds clean objects with classical vision, no weights.

No search ever sees this judge, and it shares neither code nor weights with the learned scorer.

1. *Segment.* A pixel's offset ``d`` from the background is projected on the palette offsets
   ``p_c``; with ``c = argmax d.p_c / |p_c|`` its coverage is ``a = d.p_c / |p_c|^2``.
   Connected pixels (8 neighbours) with ``a > 1/2`` are one component, whatever their colours.
2. *Fit.* Each component is compared with an ideal circle, square and upright triangle
   ``T(centre, radius)``, see `flowsde.shapes.ideal`. The kind is the one with the least relative
   residual ``sqrt(sum_w (a - s T)^2 / sum_w (s T)^2)``.
3. *Judge.* A component is a clean object if its residual is small and clearly the smallest, its
   colour is near one palette entry, and it lies whole inside the picture at a plausible size.
   Anything else is unclear, and so is whatever the clean objects, painted back, leave behind.
"""

from typing import NamedTuple

import numpy as np

from flowsde.shapes.captions import COLOURS, KINDS
from flowsde.shapes.data import BACKGROUND, PALETTE, SIZE
from flowsde.shapes.ideal import WINDOW, boxes, fit

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

_CHUNK = 256
# Pictures are padded so that every window lies inside.
_MARGINS = ((0, 0), (WINDOW, WINDOW), (WINDOW, WINDOW))

_OFFSETS = (PALETTE - BACKGROUND).astype(np.float32)
_NORMS = np.linalg.norm(_OFFSETS, axis=-1)


class Detections(NamedTuple):
    """What the checker sees in n pictures.

    Attributes:
      counts: int32 [n, colours, kinds], clean objects.
      unclear: int32 [n], regions that are not a clean object of one colour.
    """

    counts: np.ndarray
    unclear: np.ndarray


class Objects(NamedTuple):
    """The m clean objects of n pictures, in the order of the pictures.

    Attributes:
      picture: int [m], which picture.
      colour, kind: int [m], by index.
      low, high: [m, 2], corners (x right, y down) of the box around the ideal shape, pixels.
      area: [m] of the ideal shape, pixels.
    """

    picture: np.ndarray
    colour: np.ndarray
    kind: np.ndarray
    low: np.ndarray
    high: np.ndarray
    area: np.ndarray

    @property
    def centre(self) -> np.ndarray:
        """Centres of the boxes [m, 2]."""
        return (self.low + self.high) / 2

    def where(self, chosen: np.ndarray) -> "Objects":
        """The objects for which bool [m] holds."""
        return Objects(*(part[chosen] for part in self))


class Scene(NamedTuple):
    """What the checker sees in n pictures, with places; see `Detections` and `Objects`."""

    counts: np.ndarray
    unclear: np.ndarray
    objects: Objects


class _Components(NamedTuple):
    """m components, each in a window of its picture; offsets are windows of colour offsets."""

    image: np.ndarray  # [m] which picture
    corner: np.ndarray  # [m, 2] (x, y) of the window's first pixel
    own: np.ndarray  # bool [m, w, w]
    weight: np.ndarray  # [m, w, w], 1 where the component alone decides the pixel
    offsets: np.ndarray  # [m, w, w, 3]


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
    steps = np.arange(WINDOW) + WINDOW
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
    fits = (high - low < WINDOW - 4).all(-1)
    corner = ((low + high + 1) // 2 - WINDOW // 2)[fits]

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


def _whole(low: np.ndarray, high: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Whether shapes are of nameable size and not cut off."""
    inside = (low > -_CUT).all(-1) & (high < SIZE + _CUT).all(-1)
    return inside & (area > _AREA[0]) & (area < _AREA[1])


def _judge(parts: _Components) -> tuple[np.ndarray, Objects, np.ndarray]:
    """Of each component: clean or not [m], the object that it would be, its ideal picture."""
    core = (parts.offsets * parts.own[..., None]).sum((1, 2))
    colour = (core @ (_OFFSETS / _NORMS[:, None]).T).argmax(-1)
    along = (parts.offsets @ (_OFFSETS / _NORMS[:, None] ** 2)[colour][:, None, :, None])[..., 0]
    fitted = fit(along, parts.weight)
    row = np.arange(len(colour))
    kind = fitted.residual.argmin(-1)
    best, second = np.sort(fitted.residual, -1)[:, :2].T
    template, params = fitted.template[row, kind], fitted.params[row, kind]

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
    box = boxes(params[:, :2] + parts.corner, params[:, 2], kind)
    return clean & _whole(*box), Objects(parts.image, colour, kind, *box), ideal


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
    inside = (slice(None), slice(WINDOW, -WINDOW), slice(WINDOW, -WINDOW))
    amount = np.linalg.norm(rest[inside], axis=-1) / _NORMS.mean()
    mask = (amount > _REST) & (_spread(unclear[inside]) == 0)
    image, mass = _masses(_label(mask), amount)
    return np.bincount(image[mass >= _SPECK], minlength=len(offsets))


def _locate_chunk(images: np.ndarray) -> Scene:
    n = len(images)
    offsets = (np.clip(images, -1.0, 1.0).astype(np.float32) + 1) / 2 - BACKGROUND
    coverage = _coverage(offsets)
    labels = _without_specks(_label(coverage > _CORE), coverage)
    parts, too_large = _cut_windows(labels, offsets)
    clean, objects, ideal = _judge(parts)
    order = np.argsort(parts.image[clean], kind="stable")
    found = objects.where(np.flatnonzero(clean)[order])
    counts = np.zeros((n, len(COLOURS), len(KINDS)), np.int32)
    np.add.at(counts, (found.picture, found.colour, found.kind), 1)
    unclear = np.bincount(np.concatenate([parts.image[~clean], too_large]), minlength=n)
    unclear += _leftovers(offsets, labels, parts, clean, ideal)
    return Scene(counts, unclear.astype(np.int32), found)


def locate(images: np.ndarray) -> Scene:
    """Find the clean objects, with colours, kinds, places and sizes.

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
    begins = range(0, max(len(images), 1), _CHUNK)
    chunks = [_locate_chunk(images[i : i + _CHUNK]) for i in begins]
    objects = [
        chunk.objects._replace(picture=chunk.objects.picture + i)
        for i, chunk in zip(begins, chunks, strict=True)
    ]
    return Scene(
        np.concatenate([chunk.counts for chunk in chunks]),
        np.concatenate([chunk.unclear for chunk in chunks]),
        Objects(*(np.concatenate(part) for part in zip(*objects, strict=True))),
    )


def detect(images: np.ndarray) -> Detections:
    """Count the clean objects of each colour and kind; arguments and errors are of `locate`."""
    found = locate(images)
    return Detections(found.counts, found.unclear)


def squared_error(found: Scene | Detections, wanted: np.ndarray) -> np.ndarray:
    """`rss` of pictures that have been looked at."""
    wanted = np.asarray(wanted)
    if wanted.shape != found.counts.shape or wanted.dtype.kind not in "iu":
        raise ValueError(
            f"wanted: got {wanted.dtype} of shape {wanted.shape}, "
            f"expected integers of shape {found.counts.shape}"
        )
    difference = found.counts - wanted.astype(np.int64)
    return (difference**2).sum((1, 2)).astype(np.float64) + found.unclear


def rss(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Residual sum of squares of the counts, float [n]; 0 exactly where `exact` holds.

    The sum over colours and kinds of (count - wanted)^2; each unclear region adds 1.

    Args:
      images: as in `locate`.
      wanted: int [n, colours, kinds], as from `captions.counts`.
    """
    return squared_error(detect(images), wanted)


def exact(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether each picture shows exactly what was wanted and nothing unclear, bool [n]."""
    return rss(images, wanted) == 0.0
