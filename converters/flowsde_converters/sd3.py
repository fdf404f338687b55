"""Stable Diffusion 3 and 3.5: checkpoints of the original code and of diffusers.

Diffusers keeps q, k and v apart where the original has one layer of all, and two of its
modulations, the last one and that of the last block's text, are (scale, shift) where the
original's, and ours, are (shift, scale).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from flowsde.models import sd3
from flowsde.models.sd3.model import PATCH, SD3Config
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.relayout import LINEAR, Reshape
from flowsde_converters.tables import Checkpoint, Row, Table, linear


@dataclasses.dataclass(frozen=True)
class _Names:
    """What a layout calls its layers, in a block or outside.

    Attributes:
      blocks: what the number of a block follows.
      outside: layers by ours; "modulation.linear" may be swapped.
      image: of the image tokens, and `text` of the text tokens, by ours.
      second: of the second attention.
      swapped: whether the last modulations are (scale, shift).
    """

    patches: str
    positions: str
    blocks: str
    outside: Mapping[str, str]
    image: "_Stream"
    text: "_Stream"
    second: "_Stream"
    swapped: bool


@dataclasses.dataclass(frozen=True)
class _Stream:
    """Names in a block: of layers, of what makes q, k and v, and of their norms."""

    qkv: str | tuple[str, ...]
    norms: tuple[str, str]
    out: str
    modulation: str = ""
    up: str = ""
    down: str = ""


def _original(name: str, attention: str = "attn") -> _Stream:
    block, keys = f"{name}_block", f"{name}_block.{attention}"
    return _Stream(
        qkv=f"{keys}.qkv",
        norms=(f"{keys}.ln_q.weight", f"{keys}.ln_k.weight"),
        out=f"{keys}.proj",
        modulation=f"{block}.adaLN_modulation.1",
        up=f"{block}.mlp.fc1",
        down=f"{block}.mlp.fc2",
    )


def _diffusers(attention: str, read: str, norm: str, out: str, end: str = "") -> _Stream:
    return _Stream(
        qkv=tuple(f"{attention}.{read.format(x)}" for x in "qkv"),
        norms=(f"{attention}.{norm}q.weight", f"{attention}.{norm}k.weight"),
        out=f"{attention}.{out}",
        modulation=f"norm1{end}.linear",
        up=f"ff{end}.net.0.proj",
        down=f"ff{end}.net.2",
    )


_NAMES = {
    "diffusers": _Names(
        patches="pos_embed.proj",
        positions="pos_embed.pos_embed",
        blocks="transformer_blocks.",
        outside={
            "text_in": "context_embedder",
            "time.first": "time_text_embed.timestep_embedder.linear_1",
            "time.second": "time_text_embed.timestep_embedder.linear_2",
            "pooled.first": "time_text_embed.text_embedder.linear_1",
            "pooled.second": "time_text_embed.text_embedder.linear_2",
            "modulation.linear": "norm_out.linear",
            "out": "proj_out",
        },
        image=_diffusers("attn", "to_{}", "norm_", "to_out.0"),
        text=_diffusers("attn", "add_{}_proj", "norm_added_", "to_add_out", "_context"),
        second=_diffusers("attn2", "to_{}", "norm_", "to_out.0"),
        swapped=True,
    ),
    "original": _Names(
        patches="x_embedder.proj",
        positions="pos_embed",
        blocks="joint_blocks.",
        outside={
            "text_in": "context_embedder",
            "time.first": "t_embedder.mlp.0",
            "time.second": "t_embedder.mlp.2",
            "pooled.first": "y_embedder.mlp.0",
            "pooled.second": "y_embedder.mlp.2",
            "modulation.linear": "final_layer.adaLN_modulation.1",
            "out": "final_layer.linear",
        },
        image=_original("x"),
        text=_original("context"),
        second=_original("x", "attn2"),
        swapped=False,
    ),
}


def table(config: SD3Config, layout: str) -> Table:
    """The table of a layout, "diffusers" or "original"; ValueError for another."""
    if layout not in _NAMES:
        raise ValueError(f"SD3 has the layouts {', '.join(map(repr, _NAMES))}, got {layout!r}")
    return Table(tuple(_rows(config, _NAMES[layout])))


def _rows(config: SD3Config, names: _Names) -> Iterator[Row]:
    width, side = config.width, config.side
    patch, values = (width, config.channels, PATCH, PATCH), PATCH**2 * config.channels
    flat = Reshape(patch, (width, values))
    yield Row(f"{names.patches}.weight", "latents_in.kernel", (flat, *LINEAR))
    yield Row(f"{names.patches}.bias", "latents_in.bias")
    square = Reshape((1, side * side, width), (side, side, width))
    yield Row(names.positions, "positions", (square,))
    for target, key in names.outside.items():
        swapped = names.swapped and target == "modulation.linear"
        yield from linear(key, target, swapped=swapped)
    if config.dual:
        yield from _block(config, names, "{i}", "dual")
        yield from _attention(config, f"{names.blocks}{{i}}.", names.second, "dual.second")
    if config.plain:
        number = f"{{i+{config.dual}}}" if config.dual else "{i}"
        yield from _block(config, names, number, "plain")
    yield from _block(config, names, str(config.depth - 1), "last")


def _block(config: SD3Config, names: _Names, number: str, block: str) -> Iterator[Row]:
    last, keys = block == "last", f"{names.blocks}{number}."
    for kind, stream in (("image", names.image), ("text", names.text)):
        ends = last and kind == "text"
        target = f"{block}.{kind}"
        yield from linear(
            keys + stream.modulation, f"{target}_modulation.linear", swapped=ends and names.swapped
        )
        yield from _attention(config, keys, stream, target, kept=not ends)
        if not ends:
            yield from linear(keys + stream.up, f"{target}_mlp.up")
            yield from linear(keys + stream.down, f"{target}_mlp.down")


def _attention(
    config: SD3Config, keys: str, stream: _Stream, target: str, kept: bool = True
) -> Iterator[Row]:
    joined = stream.qkv
    sources = keys + joined if isinstance(joined, str) else tuple(keys + key for key in joined)
    yield from linear(sources, f"{target}.qkv")
    if config.qk_norm:
        for name, key in zip(("query", "key"), stream.norms, strict=True):
            yield Row(keys + key, f"{target}.norm.{name}.scale")
    if kept:
        yield from linear(keys + stream.out, f"{target}.out")


def recognise(checkpoint: Checkpoint, beside: Mapping[str, Any] | None = None) -> Found | None:
    """A Stable Diffusion 3 by its keys.

    Heads, where queries have no norm, are of 64 features unless `beside` says how many there are.
    """
    for layout, names in _NAMES.items():
        needed = [f"{names.patches}.weight", names.positions, f"{names.outside['out']}.weight"]
        needed += [f"{names.outside[key]}.weight" for key in ("text_in", "pooled.first")]
        needed += [f"{names.blocks}0.{names.image.up}.weight"]
        if all(key in checkpoint for key in needed):
            config = _config(checkpoint, names, beside or {})
            return Found(config, layout, table(config, layout))
    return None


def _config(checkpoint: Checkpoint, names: _Names, beside: Mapping[str, Any]) -> SD3Config:
    width, channels, *patch = checkpoint[f"{names.patches}.weight"].shape
    out = checkpoint[f"{names.outside['out']}.weight"].shape[0]
    if patch != [PATCH, PATCH] or out != PATCH**2 * channels:
        raise ValueError(
            f"patches must be {PATCH} x {PATCH} latents, of as many channels going in as coming "
            f"out, got {' x '.join(map(str, patch))} and {channels} in, {out} values a patch out: "
            "models that take an image besides are not supported"
        )
    places = checkpoint[names.positions].shape[1]
    side = round(places**0.5)
    if side**2 != places:
        raise ValueError(f"{names.positions} must be of a square of places, got {places}")
    blocks = depth(checkpoint, names.blocks)
    if beside.get("qk_norm") not in (None, "rms_norm"):
        raise ValueError(f"qk_norm in config.json must be rms_norm, got {beside['qk_norm']!r}")
    norm = checkpoint.get(f"{names.blocks}0.{names.image.norms[0]}")
    heads = _heads(width, None if norm is None else norm.shape[0], beside)
    first = f"{names.blocks}0."
    return SD3Config(
        channels=channels,
        heads=heads,
        head=width // heads,
        depth=blocks,
        dual=_dual(checkpoint, names, blocks),
        qk_norm=norm is not None,
        mlp=checkpoint[f"{first}{names.image.up}.weight"].shape[0],
        text=checkpoint[f"{names.outside['text_in']}.weight"].shape[1],
        pooled=checkpoint[f"{names.outside['pooled.first']}.weight"].shape[1],
        side=side,
    )


def _heads(width: int, head: int | None, beside: Mapping[str, Any]) -> int:
    said = beside.get("num_attention_heads")
    heads = width // (head or SD3Config.head) if said is None else said
    if heads < 1 or width % heads or head not in (None, width // heads):
        of = f"{head or SD3Config.head} features"
        raise ValueError(
            f"{width} features must be those of whole heads, of {of} unless num_attention_heads in "
            f"config.json says how many there are, got {heads}"
        )
    return heads


def _dual(checkpoint: Checkpoint, names: _Names, blocks: int) -> int:
    """How many blocks have a second attention; ValueError unless they are the first."""
    key = f"{names.second.out}.weight"
    found = [i for i in range(blocks) if f"{names.blocks}{i}.{key}" in checkpoint]
    if found != list(range(len(found))):
        raise ValueError(f"the blocks with a second attention must be the first, got {found}")
    return len(found)


FAMILY = convertible(sd3.FAMILY, recognise, table, tuple(_NAMES))
