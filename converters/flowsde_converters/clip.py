"""CLIP of `transformers`: either tower alone, with or without its projection, and both.

Both together may also have open_clip's keys (`open_clip`).

Published checkpoints put `text_model.` and `vision_model.` before a tower's keys (layout
"transformers"); `transformers` 5 leaves them out where a tower is saved alone and has no
projection (layout "transformers-bare"). Shapes give all sizes but the heads; those, the
activation and the end of a text come from `config.json`.
"""

import re
from collections.abc import Mapping
from typing import Any

from flowsde.models import clip
from flowsde.models.clip.model import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
)
from flowsde_converters import open_clip
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Ignored, Positions
from flowsde_converters.relayout import CONV, LINEAR
from flowsde_converters.tables import Checkpoint, Row, Table, norm

LAYOUTS = ("transformers", "transformers-bare")
_HEAD = 64
_NOTES = (
    "open_clip's keys do not say the activation, which is GELU in LAION's weights: for OpenAI's "
    'and DFN\'s give {"hidden_act": "quick_gelu"} in config.json beside them',
    "HPSv2 has the same keys: if it is that, give --family hpsv2 or hpsv2.1, its version",
)


def blocks(keys: str, target: str) -> tuple[Row, ...]:
    """Rows of a tower's blocks, in the layout of `transformers`."""
    layers = {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.out_proj": "out",
        "mlp.fc1": "up",
        "mlp.fc2": "down",
    }
    keys, target = f"{keys}encoder.layers.{{i}}.", f"{target}blocks."
    linear = [
        row
        for key, name in layers.items()
        for row in (
            Row(f"{keys}{key}.weight", f"{target}{name}.kernel", LINEAR),
            Row(f"{keys}{key}.bias", f"{target}{name}.bias"),
        )
    ]
    norms = [norm(f"{keys}layer_norm{n}", f"{target}norm{n}") for n in (1, 2)]
    return (*linear, *norms[0], *norms[1])


def heads(width: int, json: Mapping[str, Any], tower: str) -> int:
    """Of a published model whose tensors do not say them: of 64 features each.

    Args:
      width: features of the tower.
      json: which may say others.
      tower: name of the tower's settings in it.

    Raises:
      ValueError: 64 does not divide the width, and nothing is said.
    """
    said = (json.get(tower) or {}).get("num_attention_heads")
    if said is None and width % _HEAD:
        raise ValueError(
            f"{width} features are not those of heads of {_HEAD}: expected num_attention_heads in "
            f"{tower} of a config.json beside it"
        )
    return width // _HEAD if said is None else said


def sizes(
    tensors: Checkpoint, keys: str, width: int, json: Mapping[str, Any] | None, tower: str
) -> dict[str, Any]:
    """Settings of either tower, which are OpenAI's where a config.json says no others.

    Args:
      tensors: with keys as of `blocks`.
      keys: beginning of the tower's.
      width, json, tower: as of `heads`.
    """
    says = (json or {}).get(tower) or {}
    return {
        "width": width,
        "depth": depth(tensors, f"{keys}encoder.layers."),
        "heads": heads(width, json or {}, tower),
        "mlp": tensors[f"{keys}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "activation": says.get("hidden_act", "quick_gelu"),
        "epsilon": says.get("layer_norm_eps", 1e-5),
    }


def _text(config: CLIPTextConfig, keys: str, target: str) -> tuple[Row, ...]:
    projection = Row("text_projection.weight", f"{target}projection.kernel", LINEAR)
    return (
        Row(f"{keys}embeddings.token_embedding.weight", f"{target}tokens"),
        Row(f"{keys}embeddings.position_embedding.weight", f"{target}positions"),
        *blocks(keys, target),
        *norm(f"{keys}final_layer_norm", f"{target}norm"),
        *([] if config.projection is None else [projection]),
    )


def _vision(config: CLIPVisionConfig, keys: str, target: str) -> tuple[Row, ...]:
    projection = Row("visual_projection.weight", f"{target}projection.kernel", LINEAR)
    return (
        Row(f"{keys}embeddings.class_embedding", f"{target}class_token"),
        Row(f"{keys}embeddings.patch_embedding.weight", f"{target}patches.kernel", CONV),
        Row(f"{keys}embeddings.position_embedding.weight", f"{target}positions"),
        # Misspelt in the published keys.
        *norm(f"{keys}pre_layrnorm", f"{target}norm_in"),
        *blocks(keys, target),
        *norm(f"{keys}post_layernorm", f"{target}norm_out"),
        *([] if config.projection is None else [projection]),
    )


def _ignored(keys: str) -> tuple[Ignored, ...]:
    # A buffer of early files.
    return (Positions(re.escape(f"{keys}embeddings.position_ids")),)


def _text_table(config: CLIPTextConfig, layout: str) -> Table:
    keys = _prefix("text_model.", layout)
    return Table(_text(config, keys, ""), _ignored(keys))


def _vision_table(config: CLIPVisionConfig, layout: str) -> Table:
    keys = _prefix("vision_model.", layout)
    return Table(_vision(config, keys, ""), _ignored(keys))


def _table(config: CLIPConfig, layout: str) -> Table:
    if layout == open_clip.LAYOUT:
        return open_clip.table()
    if layout != "transformers":
        raise ValueError(f"layout must be transformers or {open_clip.LAYOUT}, got {layout!r}")
    return Table(
        (
            *_text(config.text, "text_model.", "text."),
            *_vision(config.vision, "vision_model.", "vision."),
            Row("logit_scale", "logit_scale"),
        ),
        (*_ignored("text_model."), *_ignored("vision_model.")),
    )


def _prefix(prefix: str, layout: str) -> str:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return prefix if layout == "transformers" else ""


def _layout(tensors: Checkpoint, prefix: str, key: str) -> str | None:
    layer = "encoder.layers.0.self_attn.q_proj.weight"
    for layout in LAYOUTS:
        keys = _prefix(prefix, layout)
        if keys + key in tensors and keys + layer in tensors:
            return layout
    return None


def _text_layout(tensors: Checkpoint) -> str | None:
    return _layout(tensors, "text_model.", "embeddings.token_embedding.weight")


def _vision_layout(tensors: Checkpoint) -> str | None:
    return _layout(tensors, "vision_model.", "embeddings.class_embedding")


def _needed(config: Mapping[str, Any] | None, part: str) -> Mapping[str, Any]:
    if config is None:
        raise ValueError(
            "a CLIP checkpoint needs its config.json: heads and activation are not in its tensors"
        )
    # Old files repeat a tower's settings under a second name, which counts.
    nested = {**(config.get(part) or {}), **(config.get(f"{part}_dict") or {})}
    return nested or config


def _projection(tensors: Checkpoint, key: str) -> int | None:
    return tensors[key].shape[0] if key in tensors else None


def _text_config(tensors: Checkpoint, json: Mapping[str, Any], layout: str) -> CLIPTextConfig:
    keys = _prefix("text_model.", layout)
    vocab, width = tensors[f"{keys}embeddings.token_embedding.weight"].shape
    eos = json.get("eos_token_id", 49407)
    if not isinstance(eos, int):
        raise ValueError(f"eos_token_id in config.json must be one integer, got {eos!r}")
    return CLIPTextConfig(
        vocab=vocab,
        width=width,
        depth=depth(tensors, f"{keys}encoder.layers."),
        # What config.json leaves out is the default of `transformers`.
        heads=json.get("num_attention_heads", 8),
        mlp=tensors[f"{keys}encoder.layers.0.mlp.fc1.weight"].shape[0],
        positions=tensors[f"{keys}embeddings.position_embedding.weight"].shape[0],
        activation=json.get("hidden_act", "quick_gelu"),
        epsilon=json.get("layer_norm_eps", 1e-5),
        # 2 is what early files have by mistake; by convention the highest token is meant.
        eos=None if eos == 2 else eos,
        projection=_projection(tensors, "text_projection.weight"),
    )


def _vision_config(tensors: Checkpoint, json: Mapping[str, Any], layout: str) -> CLIPVisionConfig:
    keys = _prefix("vision_model.", layout)
    width, channels, patch, _ = tensors[f"{keys}embeddings.patch_embedding.weight"].shape
    places = tensors[f"{keys}embeddings.position_embedding.weight"].shape[0]
    return CLIPVisionConfig(
        width=width,
        depth=depth(tensors, f"{keys}encoder.layers."),
        heads=json.get("num_attention_heads", 12),
        mlp=tensors[f"{keys}encoder.layers.0.mlp.fc1.weight"].shape[0],
        image=patch * round((places - 1) ** 0.5),
        patch=patch,
        channels=channels,
        activation=json.get("hidden_act", "quick_gelu"),
        epsilon=json.get("layer_norm_eps", 1e-5),
        projection=_projection(tensors, "visual_projection.weight"),
    )


def _recognise_text(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    layout = _text_layout(tensors)
    if layout is None or _vision_layout(tensors):
        return None
    config = _text_config(tensors, _needed(json, "text_config"), layout)
    return Found(config, layout, _text_table(config, layout))


def _recognise_vision(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    layout = _vision_layout(tensors)
    if layout is None or _text_layout(tensors):
        return None
    config = _vision_config(tensors, _needed(json, "vision_config"), layout)
    return Found(config, layout, _vision_table(config, layout))


def _recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    if (found := _of_open_clip(tensors, json)) is not None:
        return found
    layout = _text_layout(tensors)
    if layout != "transformers" or _vision_layout(tensors) != layout:
        return None
    config = CLIPConfig(
        text=_text_config(tensors, _needed(json, "text_config"), layout),
        vision=_vision_config(tensors, _needed(json, "vision_config"), layout),
    )
    return Found(config, layout, _table(config, layout))


def _of_open_clip(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    found = open_clip.recognise(tensors, json)
    return None if found is None or open_clip.is_other(json) else found._replace(notes=_NOTES)


TEXT = convertible(clip.TEXT, _recognise_text, _text_table, ("transformers", "transformers-bare"))
VISION = convertible(clip.VISION, _recognise_vision, _vision_table)
FAMILY = convertible(clip.FAMILY, _recognise, _table)
