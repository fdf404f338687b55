"""T5 v1.1 and Flan-T5 of `transformers`: the encoder alone, and both halves.

Shapes give all sizes; `config.json`, where there is one, the few settings that are not sizes.
"""

import re
from collections.abc import Mapping
from typing import Any

from flowsde.models.t5 import T5, T5Config, T5Encoder
from flowsde_converters.family import Family, Found
from flowsde_converters.moves import LINEAR
from flowsde_converters.tables import Checkpoint, Row, Table

LAYOUT = "transformers"
_SELF = "layer.0.SelfAttention"


def _attention(keys: str, target: str) -> tuple[Row, ...]:
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return tuple(
        Row(f"{keys}.{key}.weight", f"{target}.{name}.kernel", LINEAR)
        for key, name in names.items()
    )


def _stack(name: str, cross: bool) -> tuple[Row, ...]:
    keys, target = f"{name}.block.{{i}}.", f"{name}.blocks."
    gated = f"layer.{2 if cross else 1}"
    names = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
    rows = [
        Row(f"{name}.block.0.{_SELF}.relative_attention_bias.weight", f"{name}.relative"),
        Row(f"{keys}layer.0.layer_norm.weight", f"{target}norm.scale"),
        *_attention(f"{keys}{_SELF}", f"{target}attention"),
        Row(f"{keys}{gated}.layer_norm.weight", f"{target}mlp_norm.scale"),
        *(
            Row(f"{keys}{gated}.DenseReluDense.{key}.weight", f"{target}{to}.kernel", LINEAR)
            for key, to in names.items()
        ),
        Row(f"{name}.final_layer_norm.weight", f"{name}.norm.scale"),
    ]
    if cross:
        rows.append(Row(f"{keys}layer.1.layer_norm.weight", f"{target}cross_norm.scale"))
        rows.extend(_attention(f"{keys}layer.1.EncDecAttention", f"{target}cross"))
    return tuple(rows)


def _encoder_table(config: T5Config, layout: str) -> Table:
    _check_layout(layout)
    rows = (Row("shared.weight", "tokens"), *_stack("encoder", cross=False))
    return Table(rows, (r"encoder\.embed_tokens\.weight",))


def _table(config: T5Config, layout: str) -> Table:
    encoder = _encoder_table(config, layout)
    rows, ignored = (
        (*encoder.rows, *_stack("decoder", cross=True)),
        (
            *encoder.ignored,
            r"decoder\.embed_tokens\.weight",
            # In early files, of no use.
            r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        ),
    )
    if config.tied_head:
        return Table(rows, (*ignored, r"lm_head\.weight"))
    return Table((*rows, Row("lm_head.weight", "head.kernel", LINEAR)), ignored)


def _check_layout(layout: str) -> None:
    if layout != LAYOUT:
        raise ValueError(f"layout must be {LAYOUT}, got {layout!r}")


def _depth(tensors: Checkpoint, name: str) -> int:
    pattern = re.compile(rf"{name}\.block\.(\d+)\.")
    return max((1 + int(found[1]) for key in tensors if (found := pattern.match(key))), default=0)


def _config(tensors: Checkpoint, json: Mapping[str, Any]) -> T5Config:
    first = "encoder.block.0.layer."
    kind = json.get("feed_forward_proj", "gated-gelu")
    if kind != "gated-gelu" or f"{first}1.DenseReluDense.wi_0.weight" not in tensors:
        raise ValueError(
            "T5 is supported from v1.1 on, with gated-gelu feed-forward layers; "
            f"got {kind if kind != 'gated-gelu' else 'layers without a gate'}"
        )
    if f"encoder.block.1.{_SELF}.relative_attention_bias.weight" in tensors:
        raise ValueError("got relative positions in every block (UMT5), expected in the first only")
    vocab, width = tensors["shared.weight"].shape
    buckets, heads = tensors[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
    decoder_depth = _depth(tensors, "decoder")
    tied = "lm_head.weight" not in tensors
    if json:
        # `transformers` 5 writes whether logits are scaled and calls every head tied.
        tied = json.get("scale_decoder_outputs", json.get("tie_word_embeddings", True))
    return T5Config(
        vocab=vocab,
        width=width,
        depth=_depth(tensors, "encoder"),
        decoder_depth=decoder_depth,
        heads=heads,
        head=tensors[f"{first}0.SelfAttention.q.weight"].shape[0] // heads,
        mlp=tensors[f"{first}1.DenseReluDense.wi_0.weight"].shape[0],
        buckets=buckets,
        max_distance=json.get("relative_attention_max_distance", 128),
        epsilon=json.get("layer_norm_epsilon", 1e-6),
        tied_head=tied and decoder_depth > 0,
    )


def _is_t5(tensors: Checkpoint) -> bool:
    bias = f"encoder.block.0.{_SELF}.relative_attention_bias.weight"
    return bias in tensors and "shared.weight" in tensors


def _recognise_encoder(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    if not _is_t5(tensors) or _depth(tensors, "decoder"):
        return None
    config = _config(tensors, json or {})
    return Found(config, LAYOUT, _encoder_table(config, LAYOUT))


def _recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    if not _is_t5(tensors) or not _depth(tensors, "decoder"):
        return None
    config = _config(tensors, json or {})
    return Found(config, LAYOUT, _table(config, LAYOUT))


ENCODER = Family(
    "t5_encoder",
    _recognise_encoder,
    T5Config,
    T5Encoder,
    _encoder_table,
)
FAMILY = Family(
    "t5",
    _recognise,
    T5Config,
    T5,
    _table,
)
