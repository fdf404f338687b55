"""InstructBLIP with Flan-T5, of `transformers`.

    vision_model.              EVA's image tower, with the keys of BLIP's there, see `blip`
    query_tokens, qformer.     the Q-Former, whose every second block looks at the image
    language_projection.       what leads from it to the T5
    language_model.            the T5's keys, see `t5`

Shapes give all sizes. A config.json must be beside it and say the activation of the T5; heads and
what else it leaves out are the defaults of `transformers`, which are the published model's.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flowsde.models import instructblip
from flowsde.models.clip.model import CLIPVisionConfig
from flowsde.models.instructblip.model import InstructBLIPConfig
from flowsde.models.instructblip.qformer import QFormerConfig
from flowsde_converters import blip, t5
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Positions, under
from flowsde_converters.relayout import Reshape
from flowsde_converters.tables import Checkpoint, Row, Table, linear, norm

TOKENIZER = "qformer_tokenizer"
"""Folder of the Q-Former's tokenizer, beside the weights."""
_VISION, _QFORMER, _TEXT = "vision_model.", "qformer.", "language_model."
_LAYER = f"{_QFORMER}encoder.layer."
_NEEDED = (
    "query_tokens",
    "language_projection.weight",
    f"{_VISION}embeddings.patch_embedding.weight",
    f"{_VISION}embeddings.position_embedding",
    f"{_VISION}encoder.layers.0.mlp.fc1.weight",
    f"{_QFORMER}embeddings.word_embeddings.weight",
    f"{_QFORMER}embeddings.position_embeddings.weight",
    f"{_LAYER}0.crossattention.attention.key.weight",
    f"{_LAYER}0.intermediate_query.dense.weight",
)
_EXPECTED = {
    "vision_config": {"hidden_act": "gelu", "qkv_bias": True},
    "qformer_config": {"hidden_act": "gelu", "cross_attention_frequency": 2, "pad_token_id": 0},
}
"""Settings that change what the same tensors compute."""


def _qformer(config: QFormerConfig) -> Iterator[Row]:
    queries = (config.queries, config.width)
    yield Row("query_tokens", "qformer.queries", (Reshape((1, *queries), queries),))
    yield Row(f"{_QFORMER}embeddings.word_embeddings.weight", "qformer.tokens")
    yield Row(f"{_QFORMER}embeddings.position_embeddings.weight", "qformer.positions")
    yield from norm(f"{_QFORMER}embeddings.layernorm", "qformer.norm")
    for number, block in (("{2i}", "looking"), ("{2i+1}", "other")):
        keys, target = f"{_LAYER}{number}.", f"qformer.blocks.{block}."
        attentions = {"attention": ""}
        if block == "looking":
            attentions["crossattention"] = "image_"
        for key, own in attentions.items():
            for name in ("query", "key", "value"):
                yield from linear(f"{keys}{key}.attention.{name}", f"{target}{own}attention.{name}")
            yield from linear(f"{keys}{key}.output.dense", f"{target}{own}attention.out")
            yield from norm(f"{keys}{key}.output.LayerNorm", f"{target}{own}norm")
        for end, own in (("_query", "query_mlp"), ("", "text_mlp")):
            yield from linear(f"{keys}intermediate{end}.dense", f"{target}{own}.up")
            yield from linear(f"{keys}output{end}.dense", f"{target}{own}.down")
            yield from norm(f"{keys}output{end}.LayerNorm", f"{target}{own}.norm")


def _table(config: InstructBLIPConfig, layout: str) -> Table:
    text = t5.FAMILY.table(config.text, layout)
    rows = [
        dataclasses.replace(
            row, source=tuple(f"{_TEXT}{key}" for key in row.sources), target=f"text.{row.target}"
        )
        for row in text.rows
    ]
    return Table(
        (
            *blip.vision(config.vision, _VISION, blip.TRANSFORMERS),
            *_qformer(config.qformer),
            *linear("language_projection", "projection"),
            *rows,
        ),
        (
            *(under(one, _TEXT) for one in text.ignored),
            # A buffer of early files.
            Positions(re.escape(f"{_QFORMER}embeddings.position_ids")),
        ),
    )


def _recognise(tensors: Checkpoint, beside: Mapping[str, Any] | None) -> Found | None:
    if any(key not in tensors for key in _NEEDED):
        return None
    says = {name: _section(beside, name) for name in (*_EXPECTED, "text_config")}
    for section, wanted in _EXPECTED.items():
        for name, value in wanted.items():
            if says[section].get(name, value) != value:
                raise ValueError(
                    f"{name} in {section} of config.json must be {value!r}, got "
                    f"{says[section][name]!r}"
                )
    if "dense_act_fn" not in says["text_config"]:
        raise ValueError(
            "text_config in config.json must say dense_act_fn, which no shape tells: InstructBLIP "
            'was trained with "gelu", and Flan-T5 itself with "gelu_new"'
        )
    begin = len(_TEXT)
    own = {key[begin:]: tensor for key, tensor in tensors.items() if key.startswith(_TEXT)}
    text = t5.recognise(own, says["text_config"])
    if text is None:
        raise ValueError(f"{_TEXT} must have the keys of a T5, of which both halves are there")
    config = InstructBLIPConfig(
        vision=_vision_config(tensors, says["vision_config"]),
        qformer=_qformer_config(tensors, says["qformer_config"]),
        text=text.config,
    )
    return Found(config, text.layout, _table(config, text.layout))


def _vision_config(tensors: Checkpoint, says: Mapping[str, Any]) -> CLIPVisionConfig:
    width, channels, patch, _ = tensors[f"{_VISION}embeddings.patch_embedding.weight"].shape
    places = tensors[f"{_VISION}embeddings.position_embedding"].shape[1]
    return CLIPVisionConfig(
        width=width,
        depth=depth(tensors, f"{_VISION}encoder.layers."),
        heads=says.get("num_attention_heads", 16),
        mlp=tensors[f"{_VISION}encoder.layers.0.mlp.fc1.weight"].shape[0],
        image=patch * round((places - 1) ** 0.5),
        patch=patch,
        channels=channels,
        activation="gelu",
        epsilon=says.get("layer_norm_eps", 1e-6),
    )


def _qformer_config(tensors: Checkpoint, says: Mapping[str, Any]) -> QFormerConfig:
    vocab, width = tensors[f"{_QFORMER}embeddings.word_embeddings.weight"].shape
    return QFormerConfig(
        vocab=vocab,
        width=width,
        depth=depth(tensors, _LAYER),
        heads=says.get("num_attention_heads", 12),
        mlp=tensors[f"{_LAYER}0.intermediate_query.dense.weight"].shape[0],
        positions=tensors[f"{_QFORMER}embeddings.position_embeddings.weight"].shape[0],
        image=tensors[f"{_LAYER}0.crossattention.attention.key.weight"].shape[1],
        epsilon=says.get("layer_norm_eps", 1e-12),
        queries=tensors["query_tokens"].shape[1],
    )


def _section(beside: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    says = (beside or {}).get(name)
    if not isinstance(says, Mapping):
        raise ValueError(
            f"an InstructBLIP wants its config.json beside it, of which {name} is an object, got "
            f"{says!r}"
        )
    return says


FAMILY = convertible(instructblip.FAMILY, _recognise, _table, tokenizers=(TOKENIZER,))
