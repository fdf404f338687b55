"""AutoencoderKL of `diffusers` and of FLUX's own release.

Layouts: "diffusers"; "diffusers-early", whose attention has other names (Stable Diffusion's
autoencoders of 2022); "original", which counts the decoder's levels from the largest image and
has the attention's layers as convolutions of one pixel. Scale and shift are in no tensor:
`config.json` has them. Without one, an "original" of 16 channels is taken for FLUX's. FLUX.2's has
the mean and variance of latents among its tensors instead.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flowsde.models import autoencoder_kl
from flowsde.models.autoencoder_kl.model import VARIANCE, AutoencoderKLConfig
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Unused
from flowsde_converters.relayout import CONV, LINEAR, Relayout, Reshape
from flowsde_converters.tables import Checkpoint, Row, Table

_ATTENTION = {
    "diffusers": ("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    "diffusers-early": ("group_norm", "query", "key", "value", "proj_attn"),
    "original": ("norm", "q", "k", "v", "proj_out"),
}
LAYOUTS = tuple(_ATTENTION)
_SILU = ("silu", "swish")
"""Two names for one function."""
_OF_FLUX = (
    "scale and shift are taken to be FLUX.1's: if it is Stable Diffusion 3's, whose keys are the "
    'same, give {"scaling_factor": 1.5305, "shift_factor": 0.0609} in config.json beside it'
)
_STATISTICS = {"bn.running_mean": "mean", "bn.running_var": "variance"}
_COUNTED = Unused(r"bn\.num_batches_tracked")
_EXPECTED = {"batch_norm_eps": VARIANCE, "patch_size": [2, 2]}
"""Settings of FLUX.2's that change what the same tensors compute."""
_LEAST = 8
"""Tensors of a block: of two norms and two convolutions."""


def _conv(key: str, target: str) -> tuple[Row, Row]:
    return Row(f"{key}.weight", f"{target}.kernel", CONV), Row(f"{key}.bias", f"{target}.bias")


def _norm(key: str, target: str) -> tuple[Row, Row]:
    return Row(f"{key}.weight", f"{target}.scale"), Row(f"{key}.bias", f"{target}.bias")


def _block(key: str, target: str, shortcut: str | None) -> Iterator[Row]:
    for n in (1, 2):
        yield from _norm(f"{key}.norm{n}", f"{target}.norm{n}")
        yield from _conv(f"{key}.conv{n}", f"{target}.conv{n}")
    if shortcut:
        yield from _conv(f"{key}.{shortcut}", f"{target}.shortcut")


def _middle(half: str, width: int, layout: str) -> Iterator[Row]:
    original = layout == "original"
    keys = [f"{half}.mid.block_1", f"{half}.mid.attn_1", f"{half}.mid.block_2"]
    if not original:
        middle = f"{half}.mid_block"
        keys = [f"{middle}.resnets.0", f"{middle}.attentions.0", f"{middle}.resnets.1"]
    target = f"{half}.middle"
    yield from _block(keys[0], f"{target}.block1", None)
    yield from _block(keys[2], f"{target}.block2", None)
    norm, *linear = _ATTENTION[layout]
    yield from _norm(f"{keys[1]}.{norm}", f"{target}.attention.norm")
    pixel: tuple[Relayout, ...] = (Reshape((width, width, 1, 1), (width, width)),)
    relayouts = (*(pixel if original else ()), *LINEAR)
    for key, name in zip(linear, ("query", "key", "value", "out"), strict=True):
        to = f"{target}.attention.{name}"
        yield Row(f"{keys[1]}.{key}.weight", f"{to}.kernel", relayouts)
        yield Row(f"{keys[1]}.{key}.bias", f"{to}.bias")


def _half(half: str, config: AutoencoderKLConfig, layout: str) -> Iterator[Row]:
    encoder, original = half == "encoder", layout == "original"
    widths = config.widths if encoder else config.widths[::-1]
    blocks = config.blocks if encoder else config.blocks + 1
    level, resample = _level_names(encoder, original, len(widths))
    yield from _conv(f"{half}.conv_in", f"{half}.conv_in")
    yield from _middle(half, config.widths[-1], layout)
    for i, width in enumerate(widths):
        key, target = f"{half}.{level(i)}", f"{half}.levels.{i}"
        for j in range(blocks):
            block = f"{key}.{'block' if original else 'resnets'}.{j}"
            changes = j == 0 and widths[max(i - 1, 0)] != width
            shortcut = "nin_shortcut" if original else "conv_shortcut"
            yield from _block(block, f"{target}.blocks.{j}", shortcut if changes else None)
        if i < len(widths) - 1:
            yield from _conv(f"{key}.{resample}.conv", f"{target}.resample")
    yield from _norm(f"{half}.{'norm_out' if original else 'conv_norm_out'}", f"{half}.norm")
    yield from _conv(f"{half}.conv_out", f"{half}.conv_out")


def _level_names(encoder: bool, original: bool, levels: int) -> tuple[Callable[[int], str], str]:
    """The name of each level in the order they are run, and of what changes the size."""
    if not original:
        way = "down" if encoder else "up"
        return lambda i: f"{way}_blocks.{i}", f"{way}samplers.0"
    if encoder:
        return lambda i: f"down.{i}", "downsample"
    return lambda i: f"up.{levels - 1 - i}", "upsample"


def _table(config: AutoencoderKLConfig, layout: str) -> Table:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    rows = [*_half("encoder", config, layout), *_half("decoder", config, layout)]
    if config.quant:
        # FLUX.2's own code has them in the two halves.
        inside = config.normalised and layout == "original"
        encoder, decoder = ("encoder.", "decoder.") if inside else ("", "")
        rows.extend(_conv(f"{encoder}quant_conv", "quant"))
        rows.extend(_conv(f"{decoder}post_quant_conv", "post_quant"))
    if not config.normalised:
        return Table(tuple(rows))
    rows.extend(Row(key, target) for key, target in _STATISTICS.items())
    return Table(tuple(rows), (_COUNTED,))


def _layout(tensors: Checkpoint) -> str | None:
    # Other autoencoders, of videos say, share these names; their convolutions have other shapes.
    first = tensors.get("encoder.conv_in.weight")
    if first is None or len(first.shape) != 4:
        return None
    for layout in LAYOUTS:
        middle = "mid.attn_1" if layout == "original" else "mid_block.attentions.0"
        if f"encoder.{middle}.{_ATTENTION[layout][1]}.weight" in tensors:
            return layout
    return None


def _blocks(tensors: Checkpoint, level: str, levels: int, block: str) -> int:
    """Blocks of each level, by those of the first; ValueError if so many cannot be there."""
    found = depth(tensors, f"{level}0.{block}.")
    if levels * found * _LEAST > len(tensors):
        raise ValueError(
            f"{levels} levels of {found} blocks, as by {level}0, take {_LEAST} tensors each, "
            f"got {len(tensors)}"
        )
    return found


def _normalising(json: Mapping[str, Any]) -> dict[str, Any]:
    for name, wanted in _EXPECTED.items():
        got = json.get(name, wanted)
        if (list(got) if isinstance(got, tuple) else got) != wanted:
            raise ValueError(f"{name} in config.json must be {wanted}, got {got!r}")
    return {"scale": 1.0, "shift": 0.0, "normalised": True}


def _scaling(json: Mapping[str, Any], layout: str, latents: int) -> dict[str, Any]:
    if any(json.get(name) is not None for name in ("latents_mean", "latents_std")):
        raise ValueError("latents_mean and latents_std in config.json are not supported")
    if "scaling_factor" in json:
        scale, shift = json["scaling_factor"], json.get("shift_factor") or 0.0
        for name, value in (("scaling_factor", scale), ("shift_factor", shift)):
            if not _is_number(value):
                raise ValueError(f"{name} in config.json must be a finite number, got {value!r}")
        if not scale > 0:
            raise ValueError(f"scaling_factor in config.json must be positive, got {scale!r}")
        return {"scale": scale, "shift": shift}
    if json.get("_class_name") == "AutoencoderKL":
        # What diffusers takes where it is not said, as by sd-vae-ft-ema, older than the setting.
        return {"scale": 0.18215, "shift": 0.0}
    if layout == "original" and latents == 16:
        return {}
    raise ValueError(
        "an autoencoder needs its config.json with scaling_factor: the scale is in no tensor"
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    layout = _layout(tensors)
    if layout is None:
        return None
    json, original = json or {}, layout == "original"
    if json.get("act_fn", "silu") not in _SILU:
        raise ValueError(f"act_fn in config.json must be silu, got {json['act_fn']!r}")
    level, block = ("encoder.down.", "block") if original else ("encoder.down_blocks.", "resnets")
    levels = depth(tensors, level)
    latents = tensors["decoder.conv_in.weight"].shape[1]
    other = json.get("decoder_block_out_channels")
    if other is not None and list(other) != list(json.get("block_out_channels", ())):
        raise ValueError(
            f"decoder_block_out_channels in config.json must be those of the encoder, got {other}"
        )
    normalised = any(key in tensors for key in _STATISTICS)
    scaling = _normalising(json) if normalised else _scaling(json, layout, latents)
    config = AutoencoderKLConfig(
        channels=tensors["encoder.conv_in.weight"].shape[1],
        latents=latents,
        widths=tuple(tensors[f"{level}{i}.{block}.0.conv2.weight"].shape[0] for i in range(levels)),
        blocks=_blocks(tensors, level, levels, block),
        groups=json.get("norm_num_groups", 32),
        quant=any(f"{half}quant_conv.weight" in tensors for half in ("", "encoder.")),
        **scaling,
    )
    return Found(config, layout, _table(config, layout), () if scaling else (_OF_FLUX,))


FAMILY = convertible(autoencoder_kl.FAMILY, _recognise, _table)
