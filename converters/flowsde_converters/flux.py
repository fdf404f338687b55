"""FLUX.1: checkpoints of the original code and of diffusers.

Diffusers keeps q, k, v and a single block's MLP apart where the original has one layer of all, and
its last modulation is (scale, shift) where the original's, and ours, is (shift, scale).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flowsde.models import flux
from flowsde.models.flux.model import FluxConfig
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.tables import Checkpoint, Row, Table, linear


def table(config: FluxConfig, layout: str) -> Table:
    """The table of a layout, "original" or "diffusers"; ValueError for another."""
    if layout not in _ROWS:
        raise ValueError(f"FLUX.1 has the layouts {', '.join(map(repr, _ROWS))}, got {layout!r}")
    rows = _ROWS[layout](config)
    return Table(rows if config.guidance else tuple(row for row in rows if not _guides(row)))


def _guides(row: Row) -> bool:
    return row.target.startswith("guidance.")


def _original(_: FluxConfig) -> tuple[Row, ...]:
    single = "single_blocks.{i}"
    return (
        *linear("img_in", "image_in"),
        *linear("txt_in", "text_in"),
        *_embedding("time_in", "in_layer", "out_layer", "time"),
        *_embedding("vector_in", "in_layer", "out_layer", "pooled"),
        *_embedding("guidance_in", "in_layer", "out_layer", "guidance"),
        *_original_stream("img", "image"),
        *_original_stream("txt", "text"),
        *linear(f"{single}.modulation.lin", "single.modulation.linear"),
        *linear(f"{single}.linear1", "single.enter"),
        *linear(f"{single}.linear2", "single.leave"),
        Row(f"{single}.norm.query_norm.scale", "single.norm.query.scale"),
        Row(f"{single}.norm.key_norm.scale", "single.norm.key.scale"),
        *linear("final_layer.adaLN_modulation.1", "modulation.linear"),
        *linear("final_layer.linear", "out"),
    )


def _original_stream(name: str, stream: str) -> tuple[Row, ...]:
    keys, target = f"double_blocks.{{i}}.{name}", f"double.{stream}"
    return (
        *linear(f"{keys}_mod.lin", f"{target}.modulation.linear"),
        *linear(f"{keys}_attn.qkv", f"{target}.qkv"),
        Row(f"{keys}_attn.norm.query_norm.scale", f"{target}.norm.query.scale"),
        Row(f"{keys}_attn.norm.key_norm.scale", f"{target}.norm.key.scale"),
        *linear(f"{keys}_attn.proj", f"{target}.out"),
        *linear(f"{keys}_mlp.0", f"{target}.up"),
        *linear(f"{keys}_mlp.2", f"{target}.down"),
    )


def _diffusers(config: FluxConfig) -> tuple[Row, ...]:
    single = "single_transformer_blocks.{i}"
    joined = tuple(
        f"{single}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    )
    return (
        *linear("x_embedder", "image_in"),
        *linear("context_embedder", "text_in"),
        *_embedding("time_text_embed.timestep_embedder", "linear_1", "linear_2", "time"),
        *_embedding("time_text_embed.text_embedder", "linear_1", "linear_2", "pooled"),
        *_embedding("time_text_embed.guidance_embedder", "linear_1", "linear_2", "guidance"),
        *_diffusers_stream("image", "", "to_{}", "norm_", "to_out.0"),
        *_diffusers_stream("text", "_context", "add_{}_proj", "norm_added_", "to_add_out"),
        *linear(f"{single}.norm.linear", "single.modulation.linear"),
        *linear(joined, "single.enter", sizes=(*(config.width,) * 3, config.mlp)),
        *linear(f"{single}.proj_out", "single.leave"),
        Row(f"{single}.attn.norm_q.weight", "single.norm.query.scale"),
        Row(f"{single}.attn.norm_k.weight", "single.norm.key.scale"),
        *linear("norm_out.linear", "modulation.linear", swapped=True),
        *linear("proj_out", "out"),
    )


def _diffusers_stream(stream: str, end: str, read: str, norm: str, out: str) -> tuple[Row, ...]:
    block, target = "transformer_blocks.{i}", f"double.{stream}"
    return (
        *linear(f"{block}.norm1{end}.linear", f"{target}.modulation.linear"),
        *linear(tuple(f"{block}.attn.{read.format(x)}" for x in "qkv"), f"{target}.qkv"),
        Row(f"{block}.attn.{norm}q.weight", f"{target}.norm.query.scale"),
        Row(f"{block}.attn.{norm}k.weight", f"{target}.norm.key.scale"),
        *linear(f"{block}.attn.{out}", f"{target}.out"),
        *linear(f"{block}.ff{end}.net.0.proj", f"{target}.up"),
        *linear(f"{block}.ff{end}.net.2", f"{target}.down"),
    )


def _embedding(keys: str, first: str, second: str, target: str) -> tuple[Row, ...]:
    return (
        *linear(f"{keys}.{first}", f"{target}.first"),
        *linear(f"{keys}.{second}", f"{target}.second"),
    )


_ROWS = {"original": _original, "diffusers": _diffusers}


_KIN = {
    (384, 64): "FLUX.1 Fill and others that take a picture and a mask besides the latents",
    (128, 64): "FLUX.1 Canny, Depth and others that take a picture besides the latents",
}
"""Relatives by the values of a token that go in and come out."""


@dataclasses.dataclass(frozen=True)
class _Signs:
    """Keys of a layout whose presence and shapes tell the configuration."""

    image: str
    text: str
    pooled: str
    guidance: str
    norm: str
    up: str
    out: str
    double: str
    single: str

    @property
    def needed(self) -> tuple[str, ...]:
        return (self.image, self.text, self.pooled, self.norm, self.up, self.out)


_SIGNS = {
    "original": _Signs(
        image="img_in.weight",
        text="txt_in.weight",
        pooled="vector_in.in_layer.weight",
        guidance="guidance_in.in_layer.weight",
        norm="single_blocks.0.norm.query_norm.scale",
        up="double_blocks.0.txt_mlp.0.weight",
        out="final_layer.linear.weight",
        double="double_blocks.",
        single="single_blocks.",
    ),
    "diffusers": _Signs(
        image="x_embedder.weight",
        text="context_embedder.weight",
        pooled="time_text_embed.text_embedder.linear_1.weight",
        guidance="time_text_embed.guidance_embedder.linear_1.weight",
        norm="single_transformer_blocks.0.attn.norm_q.weight",
        up="transformer_blocks.0.ff_context.net.0.proj.weight",
        out="proj_out.weight",
        double="transformer_blocks.",
        single="single_transformer_blocks.",
    ),
}


def recognise(checkpoint: Checkpoint, beside: Mapping[str, Any] | None = None) -> Found | None:
    """A FLUX.1 by its keys; everything but the axes of positions follows from shapes.

    The axes are the published ones for heads of 128, or `beside["axes_dims_rope"]`; ValueError
    where both are missing, and for relatives whose input has more values than their output.
    """
    for layout, signs in _SIGNS.items():
        if all(key in checkpoint for key in signs.needed):
            config = _config(checkpoint, signs, beside or {})
            return Found(config, layout, table(config, layout))
    return None


def _config(checkpoint: Checkpoint, signs: _Signs, beside: Mapping[str, Any]) -> FluxConfig:
    image, text, pooled, norm, up, out = (tuple(checkpoint[key].shape) for key in signs.needed)
    if image[1] != out[0]:
        kin = _KIN.get((image[1], out[0]), "models that take an image besides the latents")
        raise ValueError(
            f"{signs.image} takes {image[1]} values and {signs.out} gives {out[0]}, expected as "
            f"many: {kin} are not supported"
        )
    axes = beside.get("axes_dims_rope", _published_axes(norm[0]))
    if axes is None or sum(axes) != norm[0]:
        raise ValueError(
            f"axes of positions must have the {norm[0]} features of a head between them, got "
            f'{axes}; give {{"axes_dims_rope": [...]}} in config.json beside the checkpoint'
        )
    guidance = signs.guidance in checkpoint
    if beside.get("guidance_embeds", guidance) != guidance:
        raise ValueError(
            f"config.json says guidance_embeds {beside['guidance_embeds']}, and "
            f"{signs.guidance} is {'there' if guidance else 'missing'}"
        )
    return FluxConfig(
        channels=image[1],
        heads=image[0] // norm[0],
        axes=axes,
        double=depth(checkpoint, signs.double),
        single=depth(checkpoint, signs.single),
        mlp=up[0],
        text=text[1],
        pooled=pooled[1],
        guidance=guidance,
    )


def _published_axes(head: int) -> tuple[int, ...] | None:
    return FluxConfig.axes if head == sum(FluxConfig.axes) else None


FAMILY = convertible(flux.FAMILY, recognise, table, tuple(_ROWS))
