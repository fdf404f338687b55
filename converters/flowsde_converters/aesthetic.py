"""LAION's aesthetic head: linear layers at 0, 2, 4, 6 and 7 of a sequence with dropouts."""

from collections.abc import Mapping
from typing import Any

from flowsde.models import aesthetic
from flowsde.models.aesthetic.model import AestheticConfig
from flowsde_converters.family import Found, convertible
from flowsde_converters.relayout import LINEAR
from flowsde_converters.tables import Checkpoint, Row, Table

LAYOUT = "original"
_PLACES = (0, 2, 4, 6, 7)


def _table(config: AestheticConfig, layout: str) -> Table:
    if layout != LAYOUT:
        raise ValueError(f"layout must be {LAYOUT}, got {layout!r}")
    return Table(
        tuple(
            row
            for i, place in enumerate(_PLACES)
            for row in (
                Row(f"layers.{place}.weight", f"layers.{i}.kernel", LINEAR),
                Row(f"layers.{place}.bias", f"layers.{i}.bias"),
            )
        )
    )


def _recognise(tensors: Checkpoint, json: Mapping[str, Any] | None) -> Found | None:
    if tensors.keys() != {f"layers.{i}.{part}" for i in _PLACES for part in ("weight", "bias")}:
        return None
    config = AestheticConfig(
        widths=tuple(tensors[f"layers.{place}.weight"].shape[1] for place in _PLACES)
    )
    return Found(config, LAYOUT, _table(config, LAYOUT))


FAMILY = convertible(aesthetic.FAMILY, _recognise, _table)
