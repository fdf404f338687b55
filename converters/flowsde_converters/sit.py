"""SiT: the published checkpoints, whose keys are the original code's."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowsde.models import sit
from flowsde.models.sit.model import SIZES, SiTConfig
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Read
from flowsde_converters.relayout import CONV, Reshape
from flowsde_converters.tables import Checkpoint, Row, Table, linear

_IMAGENET = 1000
_LIKE_DIT = "a DiT has the same keys and shapes; its values tell it apart when they are read"
_LIKE_DIT_WITHOUT = (
    "a DiT has the same keys and shapes: only a SiT, which gives a velocity, is run rightly"
)
_HEADS = {width: heads for width, _, heads in SIZES.values()}


@dataclasses.dataclass(frozen=True)
class NoVariance:
    """The last layer's second half of channels: a DiT's variance, and of no use to a SiT.

    A SiT's loss does not see it, so that it stays at the zeros that training begins with.
    """

    channels: int
    pattern: str = r"final_layer\.linear\.(weight|bias)"

    def problem(self, key: str, tensors: Mapping[str, Any], read: Read) -> str | None:
        held = np.asarray(read(key)).astype(np.float32)
        rows = held.reshape(-1, 2 * self.channels, *held.shape[1:])
        if not rows[:, self.channels :].any():
            return None
        return (
            f"{key} has values for a variance, which training leaves at 0 in a SiT: a DiT has the "
            "same keys, predicts noise, and is not supported; give --family sit if it is a SiT "
            "after all"
        )


def table(config: SiTConfig, layout: str) -> Table:
    """The table of a layout; ValueError names the only one there is, "original"."""
    if layout != "original":
        raise ValueError(f'SiT has the layout "original", got {layout!r}')
    width, patch = config.width, (config.patch, config.patch, config.channels, config.width)
    flat = (math.prod(patch[:3]), width)
    place = (config.tokens, width)
    return Table(
        (
            Row("x_embedder.proj.weight", "patches.kernel", (*CONV, Reshape(patch, flat))),
            Row("x_embedder.proj.bias", "patches.bias"),
            Row("pos_embed", "positions", (Reshape((1, *place), place),)),
            Row("y_embedder.embedding_table.weight", "labels"),
            *linear("t_embedder.mlp.0", "time.first"),
            *linear("t_embedder.mlp.2", "time.second"),
            *linear("blocks.{i}.adaLN_modulation.1", "blocks.modulation.linear"),
            *linear("blocks.{i}.attn.qkv", "blocks.qkv"),
            *linear("blocks.{i}.attn.proj", "blocks.out"),
            *linear("blocks.{i}.mlp.fc1", "blocks.up"),
            *linear("blocks.{i}.mlp.fc2", "blocks.down"),
            *linear("final_layer.adaLN_modulation.1", "modulation.linear"),
            *linear("final_layer.linear", "out"),
        )
    )


def recognise(checkpoint: Checkpoint, beside: Mapping[str, Any] | None = None) -> Found | None:
    """A SiT by its keys; everything but the heads follows from shapes.

    Heads are those of the published width, or `beside["heads"]`. A table of 1,001 labels is
    ImageNet's and one for none, of 1,000 without; of any other size `beside["num_classes"]` says
    whether the last stands for none. ValueError where one of these is missing, where shapes
    contradict each other, or where `beside` is of a DiT or of another path or prediction.

    Otherwise a DiT, which has the same keys and shapes, is taken for a SiT, with a note.
    """
    wanted = ("pos_embed", "x_embedder.proj.weight", "y_embedder.embedding_table.weight",
              "blocks.0.attn.qkv.weight", "final_layer.linear.weight")  # fmt: skip
    if any(key not in checkpoint for key in wanted):
        return None
    place, patches, labels, _, out = (tuple(checkpoint[key].shape) for key in wanted)
    width, channels, patch = patches[:3]
    beside = beside or {}
    _check_kind(beside)
    heads = beside.get("heads", _HEADS.get(width))
    if heads is None:
        raise ValueError(
            f"a SiT of width {width} is none of {sorted(_HEADS)}: its heads do not follow from "
            'the shapes, give {"heads": ...} in config.json beside it'
        )
    config = SiTConfig(
        width=width,
        depth=depth(checkpoint, "blocks."),
        heads=heads,
        size=_side(place[1]) * patch,
        patch=patch,
        channels=channels,
        **_classes(labels[0], beside.get("num_classes", beside.get("classes"))),
        learn_sigma=_learns_sigma(out[0], patch**2 * channels),
    )
    own = table(config, "original")
    if beside.get("prediction"):
        return Found(config, "original", own)
    if not config.learn_sigma:
        return Found(config, "original", own, (_LIKE_DIT_WITHOUT,))
    own = dataclasses.replace(own, ignored=(*own.ignored, NoVariance(channels)))
    return Found(config, "original", own, (_LIKE_DIT,))


def check_names(paths: Iterable[Path]) -> None:
    """ValueError if files that were taken for a SiT's are called DiT, as published ones are."""
    for path in paths:
        if re.search(r"(?<![a-z])dit(?![a-z])", path.name, re.IGNORECASE):
            raise ValueError(
                f"{path.name} is called a DiT, which has the keys of a SiT and predicts noise, and "
                "is not supported; give --family sit if it is a SiT after all"
            )


def _check_kind(beside: Mapping[str, Any]) -> None:
    """ValueError if the settings beside a checkpoint are of what is run otherwise."""
    for key in ("_class_name", "model_type", "architectures", "model"):
        if re.search(r"\bDiT", str(beside.get(key, "")), re.IGNORECASE):
            raise ValueError(
                f"config.json says {key} {beside[key]!r}, expected a SiT: a DiT has the same keys "
                "and predicts noise and its variance, which is not supported"
            )
    # What the original code calls its settings.
    for key, wanted in (("path_type", "Linear"), ("prediction", "velocity")):
        if str(beside.get(key, wanted)).lower() != wanted.lower():
            raise ValueError(f"config.json says {key} {beside[key]!r}, expected {wanted!r}")


def _classes(rows: int, classes: int | None) -> dict[str, Any]:
    """Classes, and whether the last row stands for none."""
    if classes is None:
        if rows not in (_IMAGENET, _IMAGENET + 1):
            raise ValueError(
                f"a table of {rows} labels is of {rows} classes, or of {rows - 1} and one that "
                'stands for none: expected --classes, or {"num_classes": ...} in config.json '
                "beside it"
            )
        classes = _IMAGENET
    if not isinstance(classes, int) or rows - classes not in (0, 1):
        raise ValueError(
            f"num_classes must be {rows - 1} or {rows} for a table of {rows} labels, "
            f"got {classes!r}"
        )
    return {"classes": classes, "unlabelled": rows > classes}


def _side(tokens: int) -> int:
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise ValueError(f"pos_embed has {tokens} positions, expected a square number")
    return side


def _learns_sigma(outputs: int, values: int) -> bool:
    if outputs not in (values, 2 * values):
        raise ValueError(
            f"final_layer.linear.weight has {outputs} outputs, expected {values} or {2 * values}"
        )
    return outputs == 2 * values


FAMILY = convertible(sit.FAMILY, recognise, table)
