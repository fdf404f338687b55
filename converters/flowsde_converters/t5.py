"""T5 v1.1 and Flan-T5 of `transformers`: the encoder alone, and both halves; UMT5's encoder.

Shapes give all sizes; `config.json`, where there is one, the few settings that are not sizes. The
token table is `shared.weight`, of which files often have copies; in some there is only
`encoder.embed_tokens.weight` (layout "transformers-unshared"). UMT5's encoder has other names in
the file of Wan's own code (layout "original"). A head that is in the file is used, whatever
`tie_word_embeddings` says: so `transformers` 5 does.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from flowsde._text import names
from flowsde.models import t5
from flowsde.models.t5.model import START, T5Config, UMT5Config
from flowsde_converters.depth import depth, of_block
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Copy, Unused
from flowsde_converters.relayout import LINEAR
from flowsde_converters.tables import Checkpoint, Row, Table

_TOKENS = {
    "transformers": "shared.weight",
    "transformers-unshared": "encoder.embed_tokens.weight",
}
"""The token table's key in each layout, the first one that a file has."""
_ORIGINAL = {
    "token_embedding.weight": "tokens",
    "norm.weight": "encoder.norm.scale",
    "blocks.{i}.pos_embedding.embedding.weight": "encoder.blocks.relative",
    "blocks.{i}.norm1.weight": "encoder.blocks.norm.scale",
    "blocks.{i}.norm2.weight": "encoder.blocks.mlp_norm.scale",
    "blocks.{i}.attn.q.weight": "encoder.blocks.attention.query.kernel",
    "blocks.{i}.attn.k.weight": "encoder.blocks.attention.key.kernel",
    "blocks.{i}.attn.v.weight": "encoder.blocks.attention.value.kernel",
    "blocks.{i}.attn.o.weight": "encoder.blocks.attention.out.kernel",
    "blocks.{i}.ffn.gate.0.weight": "encoder.blocks.gate.kernel",
    "blocks.{i}.ffn.fc1.weight": "encoder.blocks.up.kernel",
    "blocks.{i}.ffn.fc2.weight": "encoder.blocks.down.kernel",
}
"""From the keys of Wan's own code to the parameters of UMT5's encoder."""
_RELATIVE = "blocks.{i}.pos_embedding.embedding.weight"
_HEAD = "lm_head.weight"
_ACTIVATIONS: dict[str, Literal["gelu_tanh", "gelu"]] = {"gelu_new": "gelu_tanh", "gelu": "gelu"}
"""By their names in `transformers`."""
READS_IMAGES = "mm_projector.0.weight"
"""A key of CLIP-FlanT5 (`clip_flant5`), which has T5's beside it."""
_TOKENIZER = Unused("spiece_model")
"""Some files have the tokenizer's own among the tensors."""
_SELF = "layer.0.SelfAttention"
_POSITIONS = f"{_SELF}.relative_attention_bias.weight"


def _attention(keys: str, target: str) -> tuple[Row, ...]:
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return tuple(
        Row(f"{keys}.{key}.weight", f"{target}.{name}.kernel", LINEAR)
        for key, name in names.items()
    )


def _stack(name: str, cross: bool, shared: bool = True) -> tuple[Row, ...]:
    keys, target = f"{name}.block.{{i}}.", f"{name}.blocks."
    gated = f"layer.{2 if cross else 1}"
    names = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
    # One table for all blocks, or one each.
    block, holder = (f"{name}.block.0.", f"{name}.") if shared else (keys, target)
    rows = [
        Row(f"{block}{_POSITIONS}", f"{holder}relative"),
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
    tokens = _tokens(layout)
    stack = _stack("encoder", cross=False, shared=config.shared_positions)
    rows = (Row(tokens, "tokens"), *stack)
    return Table(rows, (*_copies(tokens, "encoder"), _TOKENIZER))


def _table(config: T5Config, layout: str) -> Table:
    encoder, tokens = _encoder_table(config, layout), _tokens(layout)
    head = () if config.tied_head else (Row(_HEAD, "head.kernel", LINEAR),)
    return Table(
        (*encoder.rows, *_stack("decoder", cross=True), *head),
        (
            *encoder.ignored,
            *_copies(tokens, "decoder"),
            # In early files: attention to the encoder's tokens has no positions.
            Unused(
                r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
            ),
        ),
    )


def _copies(tokens: str, stack: str) -> tuple[Copy, ...]:
    """The table of a stack, unless it is the only one."""
    key = f"{stack}.embed_tokens.weight"
    return () if key == tokens else (Copy(re.escape(key), tokens),)


def _tokens(layout: str) -> str:
    if layout not in _TOKENS:
        raise ValueError(f"layout must be {' or '.join(_TOKENS)}, got {layout!r}")
    return _TOKENS[layout]


def _layout(tensors: Checkpoint) -> str | None:
    bias = f"encoder.block.0.{_POSITIONS}"
    there = [layout for layout, key in _TOKENS.items() if key in tensors]
    return there[0] if there and bias in tensors else None


def _config(tensors: Checkpoint, json: Mapping[str, Any], layout: str) -> T5Config:
    first = "encoder.block.0.layer."
    kind = json.get("feed_forward_proj", "gated-gelu")
    if kind != "gated-gelu" or f"{first}1.DenseReluDense.wi_0.weight" not in tensors:
        raise ValueError(
            "T5 is supported from v1.1 on, with gated-gelu feed-forward layers; "
            f"got {kind if kind != 'gated-gelu' else 'layers without a gate'}"
        )
    own = _has_own_positions(tensors, json)
    vocab, width = tensors[_TOKENS[layout]].shape
    buckets, heads = tensors[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape
    decoder_depth = depth(tensors, "decoder.block.")
    if decoder_depth and own:
        raise ValueError(
            "got relative positions in every block (UMT5), expected in the first only; of UMT5 "
            "the encoder alone is supported"
        )
    if decoder_depth and json.get("decoder_start_token_id") not in (None, START):
        start = json["decoder_start_token_id"]
        raise ValueError(f"decoder_start_token_id in config.json must be {START}, got {start!r}")
    return (UMT5Config if own else T5Config)(
        vocab=vocab,
        width=width,
        depth=depth(tensors, "encoder.block."),
        decoder_depth=decoder_depth,
        heads=heads,
        head=tensors[f"{first}0.SelfAttention.q.weight"].shape[0] // heads,
        mlp=tensors[f"{first}1.DenseReluDense.wi_0.weight"].shape[0],
        buckets=buckets,
        max_distance=json.get("relative_attention_max_distance", 128),
        epsilon=json.get("layer_norm_epsilon", 1e-6),
        activation=_activation(json),
        **(_head(tensors, json) if decoder_depth else {}),
    )


def _activation(json: Mapping[str, Any]) -> Literal["gelu_tanh", "gelu"]:
    said = json.get("dense_act_fn", "gelu_new")
    if said not in _ACTIVATIONS:
        raise ValueError(
            f"dense_act_fn in config.json must be {' or '.join(_ACTIVATIONS)}, got {said!r}"
        )
    return _ACTIVATIONS[said]


def _has_own_positions(tensors: Checkpoint, json: Mapping[str, Any]) -> bool:
    """Whether each block has a table of positions, as UMT5's have."""
    return f"encoder.block.1.{_POSITIONS}" in tensors or json.get("model_type") == "umt5"


def _head(tensors: Checkpoint, json: Mapping[str, Any]) -> dict[str, bool]:
    """Where logits come from, and whether features are scaled for them."""
    tied = json.get("tie_word_embeddings") is not False if json else _HEAD not in tensors
    # `transformers` 5 writes whether they are scaled, and calls every head tied.
    scaled = json.get("scale_decoder_outputs", tied)
    return {"tied_head": tied and _HEAD not in tensors, "scaled": bool(scaled)}


def _recognise_encoder(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    return _encoder(tensors, json or {}, own=False)


def _recognise_umt5(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    if of_block(_RELATIVE, 0) not in tensors:
        return _encoder(tensors, json or {}, own=True)
    needed = [of_block(key, 0) for key in _ORIGINAL]
    if missing := [key for key in needed if key not in tensors]:
        raise ValueError(f"missing {names(missing)}, which a UMT5 of Wan's own code has")
    vocab, width = tensors["token_embedding.weight"].shape
    buckets, heads = tensors[of_block(_RELATIVE, 0)].shape
    config = UMT5Config(
        vocab=vocab,
        width=width,
        depth=depth(tensors, "blocks."),
        heads=heads,
        head=tensors["blocks.0.attn.q.weight"].shape[0] // heads,
        mlp=tensors["blocks.0.ffn.fc1.weight"].shape[0],
        buckets=buckets,
    )
    return Found(config, "original", _umt5_table(config, "original"))


def _umt5_table(config: T5Config, layout: str) -> Table:
    if layout != "original":
        return _encoder_table(config, layout)
    return Table(
        tuple(
            Row(key, path, LINEAR if path.endswith(".kernel") else ())
            for key, path in _ORIGINAL.items()
        )
    )


def _encoder(tensors: Checkpoint, json: Mapping[str, Any], own: bool) -> Found | None:
    layout = _layout(tensors)
    if layout is None or depth(tensors, "decoder.block."):
        return None
    if _has_own_positions(tensors, json) != own:
        return None
    config = _config(tensors, json, layout)
    return Found(config, layout, _encoder_table(config, layout))


def recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    """What a checkpoint is that has T5's keys, and perhaps others."""
    layout = _layout(tensors)
    if layout is None or not depth(tensors, "decoder.block."):
        return None
    config = _config(tensors, json or {}, layout)
    return Found(config, layout, _table(config, layout))


def _recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    return None if READS_IMAGES in tensors else recognise(tensors, json)


ENCODER = convertible(t5.ENCODER, _recognise_encoder, _encoder_table)
FAMILY = convertible(t5.FAMILY, _recognise, _table)
UMT5 = convertible(t5.UMT5, _recognise_umt5, _umt5_table)
