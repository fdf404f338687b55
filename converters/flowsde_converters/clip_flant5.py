"""CLIP-FlanT5 as it is published: a T5 of `transformers`, with the keys that LLaVA adds to it.

    shared, encoder, decoder, lm_head          the T5's, see `t5`
    vision_tower.vision_tower.vision_model.    CLIP's image tower
    mm_projector.0, mm_projector.2             what leads from one to the other

The image tower's last block and the norm behind it are in the file, and nothing reads them. Shapes
give all sizes; heads of the tower are of 64 features unless `vision_config` of `config.json` says
others.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flowsde.models import clip_flant5
from flowsde.models.clip.model import CLIPVisionConfig
from flowsde.models.clip_flant5.model import CLIPFlanT5Config
from flowsde_converters import t5
from flowsde_converters.clip import blocks, sizes
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Copy, Positions, Unused
from flowsde_converters.relayout import CONV
from flowsde_converters.tables import Checkpoint, Row, Table, linear, norm

_VISION = "vision_tower.vision_tower.vision_model."
_NEEDED = (
    t5.READS_IMAGES,
    "mm_projector.2.weight",
    f"{_VISION}embeddings.patch_embedding.weight",
    f"{_VISION}encoder.layers.0.mlp.fc1.weight",
)
_SETTINGS = {
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_projector_type": "mlp2x_gelu",
}
"""What `config.json` may say of them, and no other value is supported."""


def _vision() -> Iterator[Row]:
    yield Row(f"{_VISION}embeddings.class_embedding", "vision.class_token")
    yield Row(f"{_VISION}embeddings.patch_embedding.weight", "vision.patches.kernel", CONV)
    yield Row(f"{_VISION}embeddings.position_embedding.weight", "vision.positions")
    # Misspelt in the published keys.
    yield from norm(f"{_VISION}pre_layrnorm", "vision.norm_in")
    yield from blocks(_VISION, "vision.")


def _table(config: CLIPFlanT5Config, layout: str) -> Table:
    text, vision = t5.FAMILY.table(config.text, layout), re.escape(_VISION)
    tokens = next(row.sources[0] for row in text.rows if row.target == "tokens")
    return Table(
        (
            *(dataclasses.replace(row, target=f"text.{row.target}") for row in text.rows),
            *linear("mm_projector.0", "projector.up"),
            *linear("mm_projector.2", "projector.down"),
            *_vision(),
        ),
        (
            *text.ignored,
            Copy(r"embed_tokens\.weight", tokens),
            Unused(rf"{vision}encoder\.layers\.{config.vision.depth}\..*"),
            Unused(rf"{vision}post_layernorm\.(weight|bias)"),
            # A buffer of early files.
            Positions(rf"{vision}embeddings\.position_ids"),
        ),
    )


def _recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    if any(key not in tensors for key in _NEEDED):
        return None
    text = t5.recognise(tensors, json)
    if text is None:
        return None
    for name, wanted in _SETTINGS.items():
        said = (json or {}).get(name)
        if said not in (None, wanted):
            raise ValueError(f"{name} in config.json must be {wanted!r}, got {said!r}")
    width, channels, patch, _ = tensors[f"{_VISION}embeddings.patch_embedding.weight"].shape
    places = tensors[f"{_VISION}embeddings.position_embedding.weight"].shape[0]
    vision = sizes(tensors, _VISION, width, json, "vision_config")
    config = CLIPFlanT5Config(
        vision=CLIPVisionConfig(
            image=patch * round((places - 1) ** 0.5),
            patch=patch,
            channels=channels,
            **(vision | {"depth": vision["depth"] - 1}),
        ),
        text=text.config,
        words=min(text.config.vocab, CLIPFlanT5Config().words),
    )
    return Found(config, text.layout, _table(config, text.layout))


FAMILY = convertible(clip_flant5.FAMILY, _recognise, _table)
