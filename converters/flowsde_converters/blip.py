"""ImageReward's published file: BLIP's own keys, with the image tower's as in timm.

Queries, keys and values of the image tower are one tensor, `attn.qkv`, in this order. The file has
no config.json: heads are of 64 features, as in the ViT and the BERT that it was made of.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from flowsde.models import blip
from flowsde.models.aesthetic.model import AestheticConfig
from flowsde.models.blip.model import BLIPTextConfig, ImageRewardConfig
from flowsde.models.clip.model import CLIPVisionConfig
from flowsde_converters.clip import heads
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Positions, Unused
from flowsde_converters.relayout import CONV, LINEAR, Reshape
from flowsde_converters.tables import Checkpoint, Row, Table, linear, norm

LAYOUT = "original"
_VISION, _TEXT = "blip.visual_encoder.", "blip.text_encoder."
_PLACES = (0, 2, 4, 6, 7)
"""Of the head's layers in a sequence with dropouts."""
_NEEDED = (
    f"{_VISION}cls_token",
    f"{_VISION}blocks.0.attn.qkv.weight",
    f"{_TEXT}embeddings.word_embeddings.weight",
    f"{_TEXT}encoder.layer.0.crossattention.self.query.weight",
    *(f"mlp.layers.{place}.weight" for place in _PLACES),
)


ORIGINAL = {
    "class": "cls_token", "positions": "pos_embed", "patches": "patch_embed.proj", "norm": "norm",
    "block": "blocks.{i}.", "qkv": "attn.qkv", "out": "attn.proj", "up": "mlp.fc1",
    "down": "mlp.fc2", "norm1": "norm1", "norm2": "norm2",
}  # fmt: skip
"""Keys of the image tower in the published file."""
TRANSFORMERS = ORIGINAL | {
    "class": "embeddings.class_embedding", "positions": "embeddings.position_embedding",
    "patches": "embeddings.patch_embedding", "norm": "post_layernorm",
    "block": "encoder.layers.{i}.", "qkv": "self_attn.qkv", "out": "self_attn.projection",
    "norm1": "layer_norm1", "norm2": "layer_norm2",
}  # fmt: skip
"""And in `transformers`."""


def vision(config: CLIPVisionConfig, begin: str, named: Mapping[str, str]) -> Iterator[Row]:
    """Rows of the image tower, in the layout of `named`, behind the beginning of its keys."""
    keys = {name: f"{begin}{key}" for name, key in named.items()}
    width, places = config.width, (config.image // config.patch) ** 2 + 1
    yield Row(keys["class"], "vision.class_token", (Reshape((1, 1, width), (width,)),))
    flat = Reshape((1, places, width), (places, width))
    yield Row(keys["positions"], "vision.positions", (flat,))
    yield Row(f"{keys['patches']}.weight", "vision.patches.kernel", CONV)
    yield Row(f"{keys['patches']}.bias", "vision.patches.bias")
    yield from norm(keys["norm"], "vision.norm")
    block, target = keys["block"], "vision.blocks."
    for k, name in enumerate(("query", "key", "value")):
        part = (k, 3)
        yield Row(f"{block}{named['qkv']}.weight", f"{target}{name}.kernel", LINEAR, part=part)
        yield Row(f"{block}{named['qkv']}.bias", f"{target}{name}.bias", part=part)
    for name in ("out", "up", "down"):
        yield from linear(f"{block}{named[name]}", f"{target}{name}")
    for name in ("norm1", "norm2"):
        yield from norm(f"{block}{named[name]}", f"{target}{name}")


def _text() -> Iterator[Row]:
    yield Row(f"{_TEXT}embeddings.word_embeddings.weight", "text.tokens")
    yield Row(f"{_TEXT}embeddings.position_embeddings.weight", "text.positions")
    yield from norm(f"{_TEXT}embeddings.LayerNorm", "text.norm")
    keys, target = f"{_TEXT}encoder.layer.{{i}}.", "text.blocks."
    for key, own in (("attention", ""), ("crossattention", "image_")):
        for name in ("query", "key", "value"):
            yield from linear(f"{keys}{key}.self.{name}", f"{target}{own}attention.{name}")
        yield from linear(f"{keys}{key}.output.dense", f"{target}{own}attention.out")
        yield from norm(f"{keys}{key}.output.LayerNorm", f"{target}{own}norm")
    yield from linear(f"{keys}intermediate.dense", f"{target}up")
    yield from linear(f"{keys}output.dense", f"{target}down")
    yield from norm(f"{keys}output.LayerNorm", f"{target}mlp_norm")


def _table(config: ImageRewardConfig, layout: str) -> Table:
    if layout != LAYOUT:
        raise ValueError(f"layout must be {LAYOUT}, got {layout!r}")
    head = (
        row
        for i, place in enumerate(_PLACES)
        for row in linear(f"mlp.layers.{place}", f"head.layers.{i}")
    )
    return Table(
        (*vision(config.vision, _VISION, ORIGINAL), *_text(), *head),
        (
            # Of BLIP's contrastive loss.
            Unused(r"blip\.(vision|text)_proj\.(weight|bias)"),
            Positions(r"blip\.text_encoder\.embeddings\.position_ids"),
        ),
    )


def _recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    if any(key not in tensors for key in _NEEDED):
        return None
    says = json or {}
    width, channels, patch, _ = tensors[f"{_VISION}patch_embed.proj.weight"].shape
    places = tensors[f"{_VISION}pos_embed"].shape[1]
    vocab, text_width = tensors[f"{_TEXT}embeddings.word_embeddings.weight"].shape
    layer = f"{_TEXT}encoder.layer."
    config = ImageRewardConfig(
        vision=CLIPVisionConfig(
            width=width,
            depth=depth(tensors, f"{_VISION}blocks."),
            heads=heads(width, says, "vision_config"),
            mlp=tensors[f"{_VISION}blocks.0.mlp.fc1.weight"].shape[0],
            image=patch * round((places - 1) ** 0.5),
            patch=patch,
            channels=channels,
            activation="gelu",
            epsilon=1e-6,
        ),
        text=BLIPTextConfig(
            vocab=vocab,
            width=text_width,
            depth=depth(tensors, layer),
            heads=heads(text_width, says, "text_config"),
            mlp=tensors[f"{layer}0.intermediate.dense.weight"].shape[0],
            positions=tensors[f"{_TEXT}embeddings.position_embeddings.weight"].shape[0],
            image=tensors[f"{layer}0.crossattention.self.key.weight"].shape[1],
        ),
        head=AestheticConfig(
            widths=tuple(tensors[f"mlp.layers.{place}.weight"].shape[1] for place in _PLACES)
        ),
    )
    return Found(config, LAYOUT, _table(config, LAYOUT))


FAMILY = convertible(blip.FAMILY, _recognise, _table)
