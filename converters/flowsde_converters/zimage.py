"""Z-Image: checkpoints of the original code and of diffusers.

Both hold the same tensors, but that the original has q, k and v in one layer. In diffusers the
layers at both ends are named after the size of a patch, of which there is one: 2 x 2 latents.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from flowsde.models import zimage
from flowsde.models.zimage.model import EPSILON, THETA, ZImageConfig
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.ignored import Unused
from flowsde_converters.relayout import LINEAR
from flowsde_converters.tables import Checkpoint, Row, Table, linear

LAYOUTS = ("diffusers", "original")
_BLOCKS = {"noise_refiner": "image_blocks", "context_refiner": "text_blocks", "layers": "blocks"}
_MATRICES = {
    "attention.to_out.0": ("attention.out", "attention.out"),
    "feed_forward.w1": ("feed_forward.w1", "gate"),
    "feed_forward.w2": ("feed_forward.w2", "down"),
    "feed_forward.w3": ("feed_forward.w3", "up"),
}
"""Layers of a block without biases: in diffusers, in the original, and ours."""
_NORMS = {
    "attention.norm_q": ("attention.q_norm", "attention.norm.query"),
    "attention.norm_k": ("attention.k_norm", "attention.norm.key"),
    "attention_norm1": ("attention_norm1", "attention_in"),
    "attention_norm2": ("attention_norm2", "attention_out"),
    "ffn_norm1": ("ffn_norm1", "mlp_in"),
    "ffn_norm2": ("ffn_norm2", "mlp_out"),
}
_QKV = (tuple(f"attention.to_{x}" for x in "qkv"), ("attention.qkv",))
_ENDS = (("all_x_embedder.2-1", "all_final_layer.2-1"), ("x_embedder", "final_layer"))
_EXPECTED = {
    "all_patch_size": [2], "all_f_patch_size": [1], "norm_eps": EPSILON, "qk_norm": True,
    "rope_theta": THETA, "t_scale": 1000.0,
}  # fmt: skip
"""Settings that change what the same tensors compute."""


def _rows(layout: str) -> Iterator[Row]:
    at = LAYOUTS.index(layout)
    begin, end = _ENDS[at]
    yield from linear(begin, "image_in")
    yield from linear(f"{end}.adaLN_modulation.1", "modulation")
    yield from linear(f"{end}.linear", "out")
    yield from linear("t_embedder.mlp.0", "time_in")
    yield from linear("t_embedder.mlp.2", "time_out")
    yield Row("cap_embedder.0.weight", "text_norm.scale")
    yield from linear("cap_embedder.1", "text_in")
    yield Row("x_pad_token", "image_pad")
    yield Row("cap_pad_token", "text_pad")
    for name, target in _BLOCKS.items():
        block = f"{name}.{{i}}"
        qkv = tuple(f"{block}.{key}.weight" for key in _QKV[at])
        yield Row(qkv, f"{target}.attention.qkv.kernel", LINEAR)
        for theirs, (original, ours) in _MATRICES.items():
            key = (theirs, original)[at]
            yield Row(f"{block}.{key}.weight", f"{target}.{ours}.kernel", LINEAR)
        for theirs, (original, ours) in _NORMS.items():
            yield Row(f"{block}.{(theirs, original)[at]}.weight", f"{target}.{ours}.scale")
        if name != "context_refiner":
            yield from linear(f"{block}.adaLN_modulation.0", f"{target}.modulation")


def table(config: ZImageConfig, layout: str) -> Table:
    """The table of a layout, "diffusers" or "original"; ValueError for another."""
    if layout not in LAYOUTS:
        raise ValueError(f"Z-Image has the layouts {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    # The original had another norm at its end for a while.
    ignored = (Unused(r"norm_final\.weight"),) if layout == "original" else ()
    return Table(tuple(_rows(layout)), ignored)


def recognise(checkpoint: Checkpoint, beside: Mapping[str, Any] | None = None) -> Found | None:
    """A Z-Image by its keys; everything but the axes of positions follows from shapes.

    The axes are the published ones for heads of 128, or `beside["axes_dims"]`; ValueError where
    both are missing, and for relatives that are given images besides the text.
    """
    for layout in LAYOUTS:
        needed = {key for row in _rows(layout) for key in row.sources}
        if all(key.replace("{i}", "0") in checkpoint for key in needed):
            config = _config(checkpoint, LAYOUTS.index(layout), beside or {})
            return Found(config, layout, table(config, layout))
    return None


def _config(checkpoint: Checkpoint, at: int, beside: Mapping[str, Any]) -> ZImageConfig:
    given = next((key for key in checkpoint if key.startswith("siglip_")), None)
    if given is not None:
        raise ValueError(f"Z-Image is supported from text to images, without others: {given}")
    for name, wanted in _EXPECTED.items():
        got = beside.get(name, wanted)
        if (list(got) if isinstance(got, tuple) else got) != wanted:
            raise ValueError(f"{name} in config.json must be {wanted}, got {got!r}")
    begin, _ = _ENDS[at]
    width, values = checkpoint[f"{begin}.weight"].shape
    norm = ("norm_q", "q_norm")[at]
    (head,) = checkpoint[f"layers.0.attention.{norm}.weight"].shape
    published = ZImageConfig.axes if head == sum(ZImageConfig.axes) else None
    axes = beside.get("axes_dims", published)
    if axes is None or sum(axes) != head:
        raise ValueError(
            f"axes of positions must have the {head} features of a head between them, got {axes}; "
            'give {"axes_dims": [...]} in config.json beside the checkpoint'
        )
    refiners = depth(checkpoint, "noise_refiner.")
    if depth(checkpoint, "context_refiner.") != refiners:
        raise ValueError("noise_refiner and context_refiner must have as many blocks")
    condition, time = checkpoint["t_embedder.mlp.2.weight"].shape
    return ZImageConfig(
        channels=values // 4,
        heads=width // head,
        axes=axes,
        depth=depth(checkpoint, "layers."),
        refiners=refiners,
        mlp=checkpoint["layers.0.feed_forward.w1.weight"].shape[0],
        text=checkpoint["cap_embedder.1.weight"].shape[1],
        time=time,
        condition=condition,
    )


FAMILY = convertible(zimage.FAMILY, recognise, table, LAYOUTS)
