"""Qwen3-VL, dense, of `transformers`: a Qwen3 with an image tower.

    model.language_model.      Qwen3's keys, see `qwen3`
    lm_head.weight             where the head is not the token table (8B)
    model.visual.              the image tower

Shapes give all sizes but heads, the blocks whose features the language model is given, and how
positions turn: a config.json says these, and there must be one, since no shape tells when they are
wrong.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from flowsde.models import qwen3_vl
from flowsde.models.qwen3_vl.model import Qwen3VLConfig
from flowsde.models.qwen3_vl.vision import FRAMES, MERGED, Qwen3VLVisionConfig
from flowsde_converters import qwen3
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Copy
from flowsde_converters.relayout import LINEAR, Permute, Reshape
from flowsde_converters.tables import Checkpoint, Row, Table, linear, norm

LAYOUT = qwen3.LAYOUT
_TEXT, _VISION, _HEAD = "model.language_model.", "model.visual.", "lm_head.weight"
_TOKENS = f"{_TEXT}embed_tokens.weight"
_NEEDED = (
    _TOKENS,
    f"{_VISION}patch_embed.proj.weight",
    f"{_VISION}pos_embed.weight",
    f"{_VISION}blocks.0.attn.qkv.weight",
    f"{_VISION}blocks.0.mlp.linear_fc1.weight",
    f"{_VISION}merger.linear_fc2.weight",
)
_EXPECTED = {
    "hidden_act": "gelu_pytorch_tanh",
    "in_channels": 3,
    "spatial_merge_size": MERGED,
    "temporal_patch_size": FRAMES,
}
"""Of `vision_config`: settings that change what the same tensors compute."""


def _vision(config: Qwen3VLVisionConfig) -> Iterator[Row]:
    keys, width, patch = _VISION, config.width, config.patch
    values = 3 * patch**2
    # [out, channels, frames, rows, columns] to [frames, rows columns channels, out].
    flat = Reshape((FRAMES, patch, patch, 3, width), (FRAMES, values, width))
    yield Row(f"{keys}patch_embed.proj.weight", "vision.kernel", (Permute((2, 3, 4, 1, 0)), flat))
    yield Row(f"{keys}patch_embed.proj.bias", "vision.bias")
    yield Row(f"{keys}pos_embed.weight", "vision.positions")
    block, target = f"{keys}blocks.{{i}}.", "vision.blocks."
    for k, name in enumerate(("query", "key", "value")):
        part = (k, 3)
        yield Row(f"{block}attn.qkv.weight", f"{target}{name}.kernel", LINEAR, part=part)
        yield Row(f"{block}attn.qkv.bias", f"{target}{name}.bias", part=part)
    yield from linear(f"{block}attn.proj", f"{target}out")
    yield from linear(f"{block}mlp.linear_fc1", f"{target}up")
    yield from linear(f"{block}mlp.linear_fc2", f"{target}down")
    yield from norm(f"{block}norm1", f"{target}norm1")
    yield from norm(f"{block}norm2", f"{target}norm2")
    mergers = {"merger": "merger"}
    if config.deep:
        mergers["deepstack_merger_list.{i}"] = "deep"
    for key, own in mergers.items():
        yield from norm(f"{keys}{key}.norm", f"vision.{own}.norm")
        yield from linear(f"{keys}{key}.linear_fc1", f"vision.{own}.up")
        yield from linear(f"{keys}{key}.linear_fc2", f"vision.{own}.down")


def _table(config: Qwen3VLConfig, layout: str) -> Table:
    rows = [
        dataclasses.replace(row, source=f"{_TEXT}{row.sources[0]}", target=f"text.{row.target}")
        for row in qwen3.table(config.text, layout).rows
    ]
    if config.tied:
        return Table((*rows, *_vision(config.vision)), (Copy(r"lm_head\.weight", _TOKENS),))
    return Table((*rows, *_vision(config.vision), Row(_HEAD, "head.kernel", LINEAR)))


def _recognise(tensors: Checkpoint, beside: Mapping[str, Any] | None) -> Found | None:
    if any(key not in tensors for key in _NEEDED):
        return None
    begin = len(_TEXT)
    text = {key[begin:]: tensor for key, tensor in tensors.items() if key.startswith(_TEXT)}
    says = _section(beside, "text_config")
    rope = says.get("rope_parameters") or says.get("rope_scaling") or {}
    if "rope_theta" not in rope and "rope_theta" not in says:
        raise _missing("text_config", "rope_theta")
    if not rope.get("mrope_interleaved", True):
        raise ValueError("mrope_interleaved in config.json must be true, got false")
    found = qwen3.recognise(text, says)
    if found is None:
        raise ValueError(f"{_TEXT} must have the keys of a Qwen3")
    tied = (beside or {}).get("tie_word_embeddings", says.get("tie_word_embeddings"))
    config = Qwen3VLConfig(
        vision=_vision_config(tensors, _section(beside, "vision_config")),
        text=found.config,
        sections=tuple(rope.get("mrope_section", Qwen3VLConfig.sections)),
        tied=_HEAD not in tensors if tied is None else bool(tied),
    )
    return Found(config, LAYOUT, _table(config, LAYOUT))


def _vision_config(tensors: Checkpoint, says: Mapping[str, Any]) -> Qwen3VLVisionConfig:
    for name, wanted in _EXPECTED.items():
        if says.get(name, wanted) != wanted:
            raise ValueError(f"{name} in config.json must be {wanted}, got {says[name]!r}")
    for name in ("num_heads", "deepstack_visual_indexes"):
        if name not in says:
            raise _missing("vision_config", name)
    width, *_, patch = tensors[f"{_VISION}patch_embed.proj.weight"].shape
    return Qwen3VLVisionConfig(
        width=width,
        depth=depth(tensors, f"{_VISION}blocks."),
        heads=says["num_heads"],
        mlp=tensors[f"{_VISION}blocks.0.mlp.linear_fc1.weight"].shape[0],
        patch=patch,
        places=round(tensors[f"{_VISION}pos_embed.weight"].shape[0] ** 0.5),
        deep=tuple(says["deepstack_visual_indexes"]),
    )


def _section(beside: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    says = (beside or {}).get(name)
    if not isinstance(says, Mapping):
        raise ValueError(
            f"a Qwen3-VL wants its config.json beside it, of which {name} is an object, "
            f"got {says!r}"
        )
    return says


def _missing(section: str, name: str) -> ValueError:
    return ValueError(f"{section} in config.json must say {name}, which no shape tells")


FAMILY = convertible(qwen3_vl.FAMILY, _recognise, _table)
