"""Wan 2.1, text to video: checkpoints of the original code and of diffusers.

Both hold the same tensors under other names. Beware of the norms: a block's `norm3` of the
original, the one with weights, is `norm2` in diffusers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from flowsde.models import wan
from flowsde.models.wan.model import EPSILON, WanConfig
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.relayout import LINEAR, Reshape
from flowsde_converters.tables import Checkpoint, Row, Table, linear

LAYOUTS = ("diffusers", "original")
_PATCHES = "patch_embedding"
_EMBEDDER = "condition_embedder"
_LINEAR = (
    (f"{_EMBEDDER}.time_embedder.linear_1", "time_embedding.0", "time.first"),
    (f"{_EMBEDDER}.time_embedder.linear_2", "time_embedding.2", "time.second"),
    (f"{_EMBEDDER}.time_proj", "time_projection.1", "modulation.linear"),
    (f"{_EMBEDDER}.text_embedder.linear_1", "text_embedding.0", "text_in"),
    (f"{_EMBEDDER}.text_embedder.linear_2", "text_embedding.2", "text_out"),
    ("blocks.{i}.ffn.net.0.proj", "blocks.{i}.ffn.0", "blocks.up"),
    ("blocks.{i}.ffn.net.2", "blocks.{i}.ffn.2", "blocks.down"),
    ("proj_out", "head.head", "out"),
)
"""Linear layers: in diffusers, in the original, and ours."""
_SAME = (
    ("scale_shift_table", "head.modulation", "table"),
    ("blocks.{i}.scale_shift_table", "blocks.{i}.modulation", "blocks.table"),
    ("blocks.{i}.norm2.weight", "blocks.{i}.norm3.weight", "blocks.text_norm.scale"),
    ("blocks.{i}.norm2.bias", "blocks.{i}.norm3.bias", "blocks.text_norm.bias"),
)
"""Tensors that are ours as they are."""
_ATTENTION = (
    ("attn1", "self_attn", "attention"),
    ("attn2", "cross_attn", "text_attention"),
)
_PARTS = (
    ("to_q", "q", "query"),
    ("to_k", "k", "key"),
    ("to_v", "v", "value"),
    ("to_out.0", "o", "out"),
)
_OF_IMAGES = (f"{_EMBEDDER}.image_embedder.", "img_emb.")
"""Keys of models that are given an image."""


def _rows(config: WanConfig, layout: str) -> Iterator[Row]:
    at = LAYOUTS.index(layout)
    shape = (config.width, config.channels, 1, 2, 2)
    flat = Reshape(shape, (config.width, 4 * config.channels))
    yield Row(f"{_PATCHES}.weight", "latents_in.kernel", (flat, *LINEAR))
    yield Row(f"{_PATCHES}.bias", "latents_in.bias")
    for names in _LINEAR:
        yield from linear(names[at], names[-1])
    for names in _SAME:
        yield Row(names[at], names[-1])
    for kind in _ATTENTION:
        keys, target = f"blocks.{{i}}.{kind[at]}", f"blocks.{kind[-1]}"
        for part in _PARTS:
            yield from linear(f"{keys}.{part[at]}", f"{target}.{part[-1]}")
        yield Row(f"{keys}.norm_q.weight", f"{target}.norm.query.scale")
        yield Row(f"{keys}.norm_k.weight", f"{target}.norm.key.scale")


def table(config: WanConfig, layout: str) -> Table:
    """The table of a layout, "diffusers" or "original"; ValueError for another."""
    if layout not in LAYOUTS:
        raise ValueError(f"Wan has the layouts {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    return Table(tuple(_rows(config, layout)))


def recognise(checkpoint: Checkpoint, beside: Mapping[str, Any] | None = None) -> Found | None:
    """A Wan by its keys; heads, of 128 features unless `beside` says so, are not in its shapes.

    ValueError for relatives that are given an image or a video besides the text.
    """
    for at, layout in enumerate(LAYOUTS):
        needed = [f"{_PATCHES}.weight", *(f"{names[at]}.weight" for names in _LINEAR)]
        if all(key.replace("{i}", "0") in checkpoint for key in needed):
            config = _config(checkpoint, at, beside or {})
            return Found(config, layout, table(config, layout))
    return None


def _config(checkpoint: Checkpoint, at: int, beside: Mapping[str, Any]) -> WanConfig:
    names = {target: names[at].replace("{i}", "0") for *names, target in _LINEAR}
    width, channels, *patch = checkpoint[f"{_PATCHES}.weight"].shape
    out = checkpoint[f"{names['out']}.weight"].shape[0]
    given = next((key for key in checkpoint if key.startswith(_OF_IMAGES)), None)
    if given is not None or out != 4 * channels:
        why = f"{given} is there" if given else f"it takes {channels} channels and gives {out // 4}"
        raise ValueError(f"Wan is supported from text to video, without an image besides: {why}")
    if patch != [1, 2, 2]:
        raise ValueError(f"patches must be 1 x 2 x 2 latents, got {patch}")
    _check_settings(beside)
    heads = beside.get("num_attention_heads", beside.get("num_heads", width // WanConfig.head))
    if heads < 1 or width % heads:
        raise ValueError(
            f"{width} features must be those of whole heads, of {WanConfig.head} features unless "
            f"num_attention_heads in config.json says how many there are, got {heads}"
        )
    return WanConfig(
        channels=channels,
        heads=heads,
        head=width // heads,
        depth=depth(checkpoint, "blocks."),
        mlp=checkpoint[f"{names['blocks.up']}.weight"].shape[0],
        text=checkpoint[f"{names['text_in']}.weight"].shape[1],
    )


def _check_settings(beside: Mapping[str, Any]) -> None:
    """ValueError for settings that change what the same tensors compute."""
    expected = {"eps": (EPSILON,), "qk_norm": ("rms_norm_across_heads", True),
                "cross_attn_norm": (True,)}  # fmt: skip
    for name, values in expected.items():
        if beside.get(name, values[0]) not in values:
            raise ValueError(f"{name} in config.json must be {values[0]}, got {beside[name]!r}")


FAMILY = convertible(wan.FAMILY, recognise, table, LAYOUTS)
