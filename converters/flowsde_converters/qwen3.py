"""Qwen3, dense, of `transformers`: the language model, with or without its head.

Shapes give all sizes; `config.json`, where there is one, the few settings that are not sizes. Keys
of the whole language model begin with "model.", which is taken off like any wrapper's name, and its
head is left.
"""

from collections.abc import Mapping
from typing import Any

from flowsde.models import qwen3
from flowsde.models.qwen3.model import Qwen3Config
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.relayout import LINEAR
from flowsde_converters.tables import Checkpoint, Row, Table

LAYOUT = "transformers"
_LINEAR = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_NORMS = {
    "input_layernorm": "norm",
    "post_attention_layernorm": "mlp_norm",
    "self_attn.q_norm": "attention.norm.query",
    "self_attn.k_norm": "attention.norm.key",
}
_TOKENS = "embed_tokens.weight"
_EXPECTED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
"""Settings that change what the same tensors compute."""


def table(config: Qwen3Config, layout: str) -> Table:
    """The table of the layout, "transformers"; ValueError for another."""
    if layout != LAYOUT:
        raise ValueError(f"Qwen3 has the layout {LAYOUT!r}, got {layout!r}")
    block = "layers.{i}"
    rows = [Row(_TOKENS, "tokens"), Row("norm.weight", "norm.scale")]
    rows += [Row(f"{block}.{a}.weight", f"blocks.{b}.kernel", LINEAR) for a, b in _LINEAR.items()]
    rows += [Row(f"{block}.{a}.weight", f"blocks.{b}.scale") for a, b in _NORMS.items()]
    return Table(tuple(rows))


def recognise(checkpoint: Checkpoint, beside: Mapping[str, Any] | None = None) -> Found | None:
    """A Qwen3 by its keys; ValueError for settings of `beside` that are not supported."""
    needed = (_TOKENS, *(f"layers.0.{name}.weight" for name in (*_LINEAR, *_NORMS)))
    if any(key not in checkpoint for key in needed):
        return None
    config = _config(checkpoint, beside or {})
    return Found(config, LAYOUT, table(config, LAYOUT))


def _config(checkpoint: Checkpoint, beside: Mapping[str, Any]) -> Qwen3Config:
    first = "layers.0.self_attn"
    vocab, width = checkpoint[_TOKENS].shape
    (head,) = checkpoint[f"{first}.q_norm.weight"].shape
    for name, wanted in _EXPECTED.items():
        if beside.get(name, wanted) != wanted:
            raise ValueError(f"{name} in config.json must be {wanted}, got {beside[name]!r}")
    return Qwen3Config(
        vocab=vocab,
        width=width,
        depth=depth(checkpoint, "layers."),
        heads=checkpoint[f"{first}.q_proj.weight"].shape[0] // head,
        shared=checkpoint[f"{first}.k_proj.weight"].shape[0] // head,
        head=head,
        mlp=checkpoint["layers.0.mlp.up_proj.weight"].shape[0],
        theta=_theta(beside),
        epsilon=beside.get("rms_norm_eps", Qwen3Config.epsilon),
    )


def _theta(beside: Mapping[str, Any]) -> float:
    """Of positions, as `transformers` 4 or 5 writes it."""
    rope = beside.get("rope_parameters") or beside.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"positions in config.json must be turned as by default, got {kind!r}")
    return float(rope.get("rope_theta", beside.get("rope_theta", Qwen3Config.theta)))


FAMILY = convertible(qwen3.FAMILY, recognise, table)
