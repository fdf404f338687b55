"""FLUX.2-klein: checkpoints of the original code and of diffusers.

Both hold the same tensors, but that diffusers keeps q, k and v of double blocks apart, and that its
last modulation is (scale, shift) where the original's, and ours, is (shift, scale). No layer has a
bias. FLUX.2-dev, which takes a scale of guidance, is refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from flowsde.models import flux2
from flowsde.models.flux2.model import THETA, Flux2Config
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.relayout import LINEAR, SWAPPED_LINEAR
from flowsde_converters.tables import Checkpoint, Keys, Row, Table

_DOUBLE = {"original": "double_blocks", "diffusers": "transformer_blocks"}
_SINGLE = {"original": "single_blocks", "diffusers": "single_transformer_blocks"}
LAYOUTS = tuple(_DOUBLE)
_OUTSIDE = {
    "original": {
        "img_in": "image_in",
        "txt_in": "text_in",
        "time_in.in_layer": "time.first",
        "time_in.out_layer": "time.second",
        "double_stream_modulation_img.lin": "image_modulation.linear",
        "double_stream_modulation_txt.lin": "text_modulation.linear",
        "single_stream_modulation.lin": "single_modulation.linear",
        "final_layer.adaLN_modulation.1": "modulation.linear",
        "final_layer.linear": "out",
    },
    "diffusers": {
        "x_embedder": "image_in",
        "context_embedder": "text_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time.first",
        "time_guidance_embed.timestep_embedder.linear_2": "time.second",
        "double_stream_modulation_img.linear": "image_modulation.linear",
        "double_stream_modulation_txt.linear": "text_modulation.linear",
        "single_stream_modulation.linear": "single_modulation.linear",
        "norm_out.linear": "modulation.linear",
        "proj_out": "out",
    },
}
"""Layers outside of blocks."""
_GUIDANCE = ("guidance_in.in_layer.weight", "time_guidance_embed.guidance_embedder.linear_1.weight")
_EXPECTED = {"patch_size": 1, "rope_theta": THETA, "eps": 1e-6, "guidance_embeds": False}
"""Settings of diffusers that change what the same tensors compute."""


def _matrix(keys: Keys, target: str) -> Row:
    names = (keys,) if isinstance(keys, str) else keys
    return Row(tuple(f"{key}.weight" for key in names), f"{target}.kernel", LINEAR)


def _original() -> Iterator[Row]:
    for name, stream in (("img", "image"), ("txt", "text")):
        block, target = f"double_blocks.{{i}}.{name}", f"double.{stream}"
        yield _matrix(f"{block}_attn.qkv", f"{target}.qkv")
        yield _matrix(f"{block}_attn.proj", f"{target}.out")
        yield _matrix(f"{block}_mlp.0", f"{target}.up")
        yield _matrix(f"{block}_mlp.2", f"{target}.down")
        for of in ("query", "key"):
            yield Row(f"{block}_attn.norm.{of}_norm.scale", f"{target}.norm.{of}.scale")
    yield _matrix("single_blocks.{i}.linear1", "single.enter")
    yield _matrix("single_blocks.{i}.linear2", "single.leave")
    for of in ("query", "key"):
        yield Row(f"single_blocks.{{i}}.norm.{of}_norm.scale", f"single.norm.{of}.scale")


def _diffusers() -> Iterator[Row]:
    block = "transformer_blocks.{i}"
    for stream, end, read, norm, out in (
        ("image", "", "to_{}", "norm_", "to_out.0"),
        ("text", "_context", "add_{}_proj", "norm_added_", "to_add_out"),
    ):
        target = f"double.{stream}"
        qkv = tuple(f"{block}.attn.{read.format(x)}" for x in "qkv")
        yield _matrix(qkv, f"{target}.qkv")
        yield _matrix(f"{block}.attn.{out}", f"{target}.out")
        yield _matrix(f"{block}.ff{end}.linear_in", f"{target}.up")
        yield _matrix(f"{block}.ff{end}.linear_out", f"{target}.down")
        for x, of in (("q", "query"), ("k", "key")):
            yield Row(f"{block}.attn.{norm}{x}.weight", f"{target}.norm.{of}.scale")
    single = "single_transformer_blocks.{i}.attn"
    yield _matrix(f"{single}.to_qkv_mlp_proj", "single.enter")
    yield _matrix(f"{single}.to_out", "single.leave")
    for x, of in (("q", "query"), ("k", "key")):
        yield Row(f"{single}.norm_{x}.weight", f"single.norm.{of}.scale")


def _rows(layout: str) -> Iterator[Row]:
    for key, target in _OUTSIDE[layout].items():
        swapped = key == "norm_out.linear"
        relayouts = SWAPPED_LINEAR if swapped else LINEAR
        yield Row(f"{key}.weight", f"{target}.kernel", relayouts)
    yield from _original() if layout == "original" else _diffusers()


def table(config: Flux2Config, layout: str) -> Table:
    """The table of a layout, "original" or "diffusers"; ValueError for another."""
    if layout not in LAYOUTS:
        raise ValueError(f"FLUX.2 has the layouts {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    return Table(tuple(_rows(layout)))


def recognise(checkpoint: Checkpoint, beside: Mapping[str, Any] | None = None) -> Found | None:
    """A FLUX.2-klein by its keys; everything but the axes of positions follows from shapes.

    The axes are the published ones for heads of 128, or `beside["axes_dims_rope"]`; ValueError
    where both are missing, and for FLUX.2-dev.
    """
    for layout in LAYOUTS:
        needed = {key for row in _rows(layout) for key in row.sources}
        if all(key.replace("{i}", "0") in checkpoint for key in needed):
            config = _config(checkpoint, layout, beside or {})
            return Found(config, layout, table(config, layout))
    return None


def _config(checkpoint: Checkpoint, layout: str, beside: Mapping[str, Any]) -> Flux2Config:
    guides = next((key for key in _GUIDANCE if key in checkpoint), None)
    if guides is not None:
        raise ValueError(
            f"{guides} takes a scale of guidance, as FLUX.2-dev does: of FLUX.2, FLUX.2-klein is "
            "supported"
        )
    for name, wanted in _EXPECTED.items():
        if beside.get(name, wanted) != wanted:
            raise ValueError(f"{name} in config.json must be {wanted}, got {beside[name]!r}")
    keys = {target: f"{key}.weight" for key, target in _OUTSIDE[layout].items()}
    width, channels = checkpoint[keys["image_in"]].shape
    given = checkpoint[keys["out"]].shape[0]
    if given != channels:
        raise ValueError(
            f"{keys['image_in']} takes {channels} values and {keys['out']} gives {given}, "
            "expected as many"
        )
    norm, down = {
        "original": ("norm.query_norm.scale", "linear2.weight"),
        "diffusers": ("attn.norm_q.weight", "attn.to_out.weight"),
    }[layout]
    first = f"{_SINGLE[layout]}.0"
    (head,) = checkpoint[f"{first}.{norm}"].shape
    published = Flux2Config.axes if head == sum(Flux2Config.axes) else None
    axes = beside.get("axes_dims_rope", published)
    if axes is None or sum(axes) != head:
        raise ValueError(
            f"axes of positions must have the {head} features of a head between them, got {axes}; "
            'give {"axes_dims_rope": [...]} in config.json beside the checkpoint'
        )
    return Flux2Config(
        channels=channels,
        heads=width // head,
        axes=axes,
        double=depth(checkpoint, f"{_DOUBLE[layout]}."),
        single=depth(checkpoint, f"{_SINGLE[layout]}."),
        mlp=checkpoint[f"{first}.{down}"].shape[1] - width,
        text=checkpoint[keys["text_in"]].shape[1],
    )


FAMILY = convertible(flux2.FAMILY, recognise, table, LAYOUTS)
