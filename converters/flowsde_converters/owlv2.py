"""OWLv2 of `transformers`: CLIP's keys under `owlv2.`, and the heads beside them.

Shapes give all sizes; heads are of 64 features in all published models, and others are as
`config.json` says.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from flowsde.models import owlv2
from flowsde.models.clip.model import CLIPTextConfig, CLIPVisionConfig
from flowsde.models.owlv2.model import Owlv2Config
from flowsde_converters.clip import blocks, sizes
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Positions, Unused
from flowsde_converters.relayout import CONV, LINEAR
from flowsde_converters.tables import Checkpoint, Row, Table, linear, norm

LAYOUT = "transformers"
_TEXT, _VISION = "owlv2.text_model.", "owlv2.vision_model."
_NEEDED = (
    f"{_TEXT}embeddings.token_embedding.weight",
    f"{_TEXT}encoder.layers.0.mlp.fc1.weight",
    f"{_VISION}embeddings.patch_embedding.weight",
    f"{_VISION}encoder.layers.0.mlp.fc1.weight",
    "owlv2.text_projection.weight",
    "class_head.dense0.weight",
)


def _text() -> Iterator[Row]:
    yield Row(f"{_TEXT}embeddings.token_embedding.weight", "text.tokens")
    yield Row(f"{_TEXT}embeddings.position_embedding.weight", "text.positions")
    yield from blocks(_TEXT, "text.")
    yield from norm(f"{_TEXT}final_layer_norm", "text.norm")
    yield Row("owlv2.text_projection.weight", "text.projection.kernel", LINEAR)


def _detector() -> Iterator[Row]:
    vision = "detector.vision."
    yield Row(f"{_VISION}embeddings.class_embedding", f"{vision}class_token")
    yield Row(f"{_VISION}embeddings.patch_embedding.weight", f"{vision}patches.kernel", CONV)
    yield Row(f"{_VISION}embeddings.position_embedding.weight", f"{vision}positions")
    yield from norm(f"{_VISION}pre_layernorm", f"{vision}norm_in")
    yield from blocks(_VISION, vision)
    yield from norm(f"{_VISION}post_layernorm", f"{vision}norm_out")
    yield from norm("layer_norm", "detector.norm")
    heads = {
        "class_head": {"dense0": "embed", "logit_shift": "shift", "logit_scale": "scale"},
        "box_head": {"dense0": "first", "dense1": "second", "dense2": "out"},
        "objectness_head": {"dense0": "first", "dense1": "second", "dense2": "out"},
    }
    for head, layers in heads.items():
        for key, name in layers.items():
            yield from linear(f"{head}.{key}", f"detector.{head}.{name}")


def _table(config: Owlv2Config, layout: str) -> Table:
    if layout != LAYOUT:
        raise ValueError(f"layout must be {LAYOUT}, got {layout!r}")
    return Table(
        (*_text(), *_detector()),
        (
            # Of the contrastive loss between whole images and texts.
            Unused(r"owlv2\.(visual_projection\.weight|logit_scale)"),
            # Buffers of early files.
            Positions(r"owlv2\.(text|vision)_model\.embeddings\.position_ids"),
        ),
    )


def _recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    if any(key not in tensors for key in _NEEDED):
        return None
    vocab, text_width = tensors[f"{_TEXT}embeddings.token_embedding.weight"].shape
    width, channels, patch, _ = tensors[f"{_VISION}embeddings.patch_embedding.weight"].shape
    places = tensors[f"{_VISION}embeddings.position_embedding.weight"].shape[0]
    config = Owlv2Config(
        text=CLIPTextConfig(
            vocab=vocab,
            positions=tensors[f"{_TEXT}embeddings.position_embedding.weight"].shape[0],
            projection=tensors["owlv2.text_projection.weight"].shape[0],
            **sizes(tensors, _TEXT, text_width, json, "text_config"),
        ),
        vision=CLIPVisionConfig(
            image=patch * round((places - 1) ** 0.5),
            patch=patch,
            channels=channels,
            **sizes(tensors, _VISION, width, json, "vision_config"),
        ),
    )
    return Found(config, LAYOUT, _table(config, LAYOUT))


FAMILY = convertible(owlv2.FAMILY, _recognise, _table)
