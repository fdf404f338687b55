"""Keys of open_clip, in which HPSv2 is published: a table, and what shapes leave open.

Queries, keys and values of a block are one tensor, `attn.in_proj_weight`, in this order;
projections are [features, embedding], as kernels are here. Files have no config.json: heads follow
from the published widths, and a text is pooled at its highest token.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flowsde.models import clip
from flowsde.models.clip.model import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from flowsde_converters.depth import depth
from flowsde_converters.family import Found, convertible
from flowsde_converters.relayout import CONV, LINEAR
from flowsde_converters.tables import Checkpoint, Row, Table, linear, norm

LAYOUT = "open_clip"
VERSION = "hps_version"
"""In config.json: "v2.0" or "v2.1", the version of HPSv2 that the weights are."""
_VERSIONS = {"hpsv2": "v2.0", "hpsv2.1": "v2.1"}
_FILE = re.compile(r"HPS_?v2(?:\.(\d))?(?!\.?\d)", re.IGNORECASE)
_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
"""Of ViT-B, L, H, g and bigG's image towers, by their width."""
_TEXT_HEADS = {512: 8, 768: 12, 1024: 16, 1280: 20}
_NEEDED = (
    "token_embedding.weight",
    "transformer.resblocks.0.attn.in_proj_weight",
    "visual.class_embedding",
    "visual.transformer.resblocks.0.attn.in_proj_weight",
)


def _blocks(keys: str, target: str) -> Iterator[Row]:
    keys, target = f"{keys}transformer.resblocks.{{i}}.", f"{target}blocks."
    for k, name in enumerate(("query", "key", "value")):
        part = (k, 3)
        yield Row(f"{keys}attn.in_proj_weight", f"{target}{name}.kernel", LINEAR, part=part)
        yield Row(f"{keys}attn.in_proj_bias", f"{target}{name}.bias", part=part)
    yield from linear(f"{keys}attn.out_proj", f"{target}out")
    yield from linear(f"{keys}mlp.c_fc", f"{target}up")
    yield from linear(f"{keys}mlp.c_proj", f"{target}down")
    yield from norm(f"{keys}ln_1", f"{target}norm1")
    yield from norm(f"{keys}ln_2", f"{target}norm2")


def table() -> Table:
    """The table of both towers."""
    return Table(
        (
            Row("token_embedding.weight", "text.tokens"),
            Row("positional_embedding", "text.positions"),
            *_blocks("", "text."),
            *norm("ln_final", "text.norm"),
            Row("text_projection", "text.projection.kernel"),
            Row("visual.class_embedding", "vision.class_token"),
            Row("visual.conv1.weight", "vision.patches.kernel", CONV),
            Row("visual.positional_embedding", "vision.positions"),
            *norm("visual.ln_pre", "vision.norm_in"),
            *_blocks("visual.", "vision."),
            *norm("visual.ln_post", "vision.norm_out"),
            Row("visual.proj", "vision.projection.kernel"),
            Row("logit_scale", "logit_scale"),
        )
    )


def recognise(tensors: Checkpoint, beside: Mapping[str, Any] | None) -> Found | None:
    """A CLIP by its keys, of whatever version; None for other keys.

    ValueError for a width that no published model has, unless `beside` says the heads.
    """
    if any(key not in tensors for key in _NEEDED):
        return None
    config = CLIPConfig(
        text=_text(tensors, _settings(beside, "text_config")),
        vision=_vision(tensors, _settings(beside, "vision_config")),
    )
    return Found(config, LAYOUT, table())


def _settings(beside: Mapping[str, Any] | None, tower: str) -> Mapping[str, Any]:
    return {**(beside or {}), **((beside or {}).get(tower) or {})}


def _common(
    tensors: Checkpoint, keys: str, says: Mapping[str, Any], known: Mapping[int, int]
) -> dict[str, Any]:
    """Settings that both towers have."""
    blocks = f"{keys}transformer.resblocks."
    width = tensors[f"{blocks}0.attn.out_proj.weight"].shape[0]
    heads = says.get("num_attention_heads", known.get(width))
    if heads is None:
        raise ValueError(
            f"{keys}transformer has {width} features, and its heads do not follow from that: "
            f"expected {', '.join(map(str, known))}, or num_attention_heads in the text_config and "
            "the vision_config of a config.json beside it"
        )
    return {
        "width": width,
        "depth": depth(tensors, blocks),
        "heads": heads,
        "mlp": tensors[f"{blocks}0.mlp.c_fc.weight"].shape[0],
        "activation": says.get("hidden_act", "gelu"),
        "epsilon": says.get("layer_norm_eps", 1e-5),
    }


def _text(tensors: Checkpoint, says: Mapping[str, Any]) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab=tensors["token_embedding.weight"].shape[0],
        positions=tensors["positional_embedding"].shape[0],
        projection=tensors["text_projection"].shape[1],
        **_common(tensors, "", says, _TEXT_HEADS),
    )


def _vision(tensors: Checkpoint, says: Mapping[str, Any]) -> CLIPVisionConfig:
    _, channels, patch, _ = tensors["visual.conv1.weight"].shape
    places = tensors["visual.positional_embedding"].shape[0]
    return CLIPVisionConfig(
        image=patch * round((places - 1) ** 0.5),
        patch=patch,
        channels=channels,
        projection=tensors["visual.proj"].shape[1],
        **_common(tensors, "visual.", says, _HEADS),
    )


def told(family: str | None, paths: Iterable[Path]) -> dict[str, str]:
    """The version of HPSv2, as in config.json: of the family asked for, or by a file's name.

    ValueError where these differ. Another family that is asked for has none.
    """
    names = [path.name for path in paths]
    found = {f"v2.{match[1] or 0}": name for name in names if (match := _FILE.search(name))}
    version = None if family is None else _VERSIONS.get(family)
    for other, name in found.items():
        if version is not None and version != other:
            raise ValueError(f"--family {family}: {name} is called HPSv2 {other}")
    if family is None and len(found) == 1:
        (version,) = found
    return {} if version is None else {VERSION: version}


def is_other(beside: Mapping[str, Any] | None) -> bool:
    """Whether the settings beside a checkpoint say that it is one of HPSv2's."""
    version = (beside or {}).get(VERSION)
    if version not in (None, *_VERSIONS.values()):
        raise ValueError(
            f"{VERSION} must be {' or '.join(_VERSIONS.values())}, got {version!r}: other versions "
            "are not known"
        )
    return version is not None


def _of(name: str) -> Any:
    """How checkpoints of a version are recognised: those that are said to be of it."""

    def recognised(tensors: Checkpoint, beside: Mapping[str, Any] | None) -> Found | None:
        if (beside or {}).get(VERSION) != _VERSIONS[name]:
            return None
        return recognise(tensors, beside)

    return recognised


def _table(config: CLIPConfig, layout: str) -> Table:
    if layout != LAYOUT:
        raise ValueError(f"layout must be {LAYOUT}, got {layout!r}")
    return table()


HPSV2 = convertible(clip.HPSV2, _of("hpsv2"), _table)
HPSV2_1 = convertible(clip.HPSV2_1, _of("hpsv2.1"), _table)
