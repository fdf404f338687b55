"""Wan 2.1's autoencoder of `diffusers` (Qwen-Image's, too) and of the original code.

Mean and standard deviation of latents are in no tensor: `config.json` has them. Without one, those
of 16 channels are taken for the published.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flowsde.models import autoencoder_wan
from flowsde.models.autoencoder_wan.model import AutoencoderWanConfig
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.relayout import LINEAR, Permute, Reshape
from flowsde_converters.tables import Checkpoint, Row, Table

_BLOCK = {
    "diffusers": ("norm1", "conv1", "norm2", "conv2", "conv_shortcut"),
    "original": ("residual.0", "residual.2", "residual.3", "residual.6", "shortcut"),
}
_OURS = ("norm1", "conv1", "norm2", "conv2")
_MIDDLE = {
    "diffusers": tuple(f"mid_block.{n}" for n in ("resnets.0", "attentions.0", "resnets.1")),
    "original": ("middle.0", "middle.1", "middle.2"),
}
_ENDS = {
    "diffusers": ("conv_in", "norm_out", "conv_out"),
    "original": ("conv1", "head.0", "head.2"),
}
_QUANT = {"diffusers": ("quant_conv", "post_quant_conv"), "original": ("conv1", "conv2")}
_DOWN = {"diffusers": "encoder.down_blocks.", "original": "encoder.downsamples."}
LAYOUTS = tuple(_BLOCK)

_VIDEO = (Permute((2, 3, 4, 1, 0)),)
_IMAGE = (Permute((2, 3, 1, 0)),)
_UNLIKE: dict[str, Any] = {"is_residual": False, "patch_size": None, "attn_scales": []}
"""Settings of Wan 2.2's and others, and what they are in Wan 2.1."""


def _conv(key: str, target: str, relayouts: tuple[Permute, ...] = _VIDEO) -> Iterator[Row]:
    yield Row(f"{key}.weight", f"{target}.kernel", relayouts)
    yield Row(f"{key}.bias", f"{target}.bias")


def _norm(key: str, target: str, width: int, axes: int = 3) -> Row:
    flat = Reshape((width, *(1,) * axes), (width,))
    return Row(f"{key}.gamma", f"{target}.scale", (flat,))


def _block(key: str, target: str, features: int, to: int, layout: str) -> Iterator[Row]:
    *names, shortcut = _BLOCK[layout]
    for name, ours, width in zip(names, _OURS, (features, to, to, to), strict=True):
        if ours.startswith("norm"):
            yield _norm(f"{key}.{name}", f"{target}.{ours}", width)
        else:
            yield from _conv(f"{key}.{name}", f"{target}.{ours}")
    if features != to:
        yield from _conv(f"{key}.{shortcut}", f"{target}.shortcut")


def _middle(half: str, width: int, layout: str) -> Iterator[Row]:
    first, attention, second = (f"{half}.{name}" for name in _MIDDLE[layout])
    target = f"{half}.middle"
    yield from _block(first, f"{target}.block1", width, width, layout)
    yield from _block(second, f"{target}.block2", width, width, layout)
    yield _norm(f"{attention}.norm", f"{target}.attention.norm", width, axes=2)
    for key, name, many in (("to_qkv", "qkv", 3), ("proj", "out", 1)):
        flat = Reshape((many * width, width, 1, 1), (many * width, width))
        to = f"{target}.attention.{name}"
        yield Row(f"{attention}.{key}.weight", f"{to}.kernel", (flat, *LINEAR))
        yield Row(f"{attention}.{key}.bias", f"{to}.bias")


def _half(half: str, config: AutoencoderWanConfig, layout: str) -> Iterator[Row]:
    down = half == "encoder"
    step = 1 if down else -1
    widths, temporal = config.widths[::step], config.temporal[::step]
    blocks = config.blocks if down else config.blocks + 1
    named = _level_names(down, blocks, layout)
    conv_in, norm, conv_out = (f"{half}.{name}" for name in _ENDS[layout])
    yield from _conv(conv_in, f"{half}.conv_in")
    yield from _middle(half, config.widths[-1], layout)
    for i, width in enumerate(widths):
        target = f"{half}.levels.{i}"
        features = (widths[i - 1] // (1 if down else 2)) if i else width
        for j in range(blocks):
            before = width if j else features
            yield from _block(named(i, j), f"{target}.blocks.{j}", before, width, layout)
        if i < len(widths) - 1:
            yield from _conv(f"{named(i, blocks)}.resample.1", f"{target}.resample.conv", _IMAGE)
            if temporal[i]:
                yield from _conv(f"{named(i, blocks)}.time_conv", f"{target}.resample.time")
    yield _norm(norm, f"{half}.norm", widths[-1])
    yield from _conv(conv_out, f"{half}.conv_out")


def _level_names(down: bool, blocks: int, layout: str) -> Callable[[int, int], str]:
    """The key of a level's j-th block; what changes the size comes after the last."""
    if not down and layout == "diffusers":

        def nested(i: int, j: int) -> str:
            return f"decoder.up_blocks.{i}." + (f"resnets.{j}" if j < blocks else "upsamplers.0")

        return nested
    before = _DOWN[layout] if down else "decoder.upsamples."
    return lambda i, j: f"{before}{i * (blocks + 1) + j}"


def _table(config: AutoencoderWanConfig, layout: str) -> Table:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    rows = [*_half("encoder", config, layout), *_half("decoder", config, layout)]
    for key, target in zip(_QUANT[layout], ("quant", "post_quant"), strict=True):
        rows.extend(_conv(key, target))
    return Table(tuple(rows))


def _recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    for layout in LAYOUTS:
        first = tensors.get(f"encoder.{_ENDS[layout][0]}.weight")
        qkv = f"encoder.{_MIDDLE[layout][1]}.to_qkv.weight"
        if first is not None and len(first.shape) == 5 and qkv in tensors:
            config = _config(tensors, json or {}, layout)
            return Found(config, layout, _table(config, layout))
    return None


def _config(tensors: Checkpoint, json: Mapping[str, Any], layout: str) -> AutoencoderWanConfig:
    for name, value in _UNLIKE.items():
        if json.get(name, value) != value:
            raise ValueError(f"{name} in config.json must be {value}, got {json[name]!r}")
    down, (conv_in, _, _) = _DOWN[layout], _ENDS[layout]
    count = depth(tensors, down)
    halved = [i for i in range(count) if f"{down}{i}.resample.1.weight" in tensors]
    blocks = halved[0] if halved else count
    if not blocks or [*halved, count] != list(range(blocks, count + 1, blocks + 1)):
        raise ValueError(
            f"levels must have as many blocks each, got {count} of {down} with {halved} "
            "that change the size"
        )
    last = f"{_BLOCK[layout][3]}.weight"
    latents = tensors[f"decoder.{conv_in}.weight"].shape[1]
    return AutoencoderWanConfig(
        channels=tensors[f"encoder.{conv_in}.weight"].shape[1],
        latents=latents,
        widths=tuple(tensors[f"{down}{i - 1}.{last}"].shape[0] for i in (*halved, count)),
        blocks=blocks,
        temporal=tuple(f"{down}{i}.time_conv.weight" in tensors for i in halved),
        **_moments(json, latents),
    )


def _moments(json: Mapping[str, Any], latents: int) -> dict[str, tuple[float, ...]]:
    if "latents_mean" not in json and "latents_std" not in json and latents == 16:
        return {}
    return {name: _numbers(json, f"latents_{name}", latents) for name in ("mean", "std")}


def _numbers(json: Mapping[str, Any], name: str, count: int) -> tuple[float, ...]:
    values: Any = json.get(name)
    if (
        not isinstance(values, list | tuple)
        or [_is_number(one) for one in values] != [True] * count
    ):
        raise ValueError(
            f"config.json must have {name}, {count} finite numbers which are in no tensor, got "
            f"{values!r}"
        )
    return tuple(map(float, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2.0**31 and math.isfinite(value)


FAMILY = convertible(autoencoder_wan.FAMILY, _recognise, _table)
