"""What `flowsde.diagnose` gives back: numbers, a table, a picture, and words."""

import base64
import dataclasses
import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsde.diagnosis import advice, figure
from flowsde.diagnosis.record import Record
from flowsde.pictures import figure_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis(Record):
    """When a reward is worth asking: the numbers of a `Record`, to print, draw and read."""

    def advice(self) -> list[str]:
        """What the numbers say, in sentences."""
        return advice.words(self)

    def figure(self) -> "Figure":
        """The estimates against time, as a Matplotlib figure."""
        return figure.draw(self)

    def __str__(self) -> str:
        return "\n".join([*_aligned([_HEAD, *_cells(self)]), "", *advice.wrapped(self.advice())])

    def __repr__(self) -> str:
        prompts, n, times = self.rewards.shape
        return (
            f"Diagnosis(prompts={prompts}, n={n}, times={times}, nfe={self.nfe}, "
            f"verifier_calls={self.verifier_calls})"
        )

    def _repr_png_(self) -> bytes:
        """What a notebook shows that shows no HTML."""
        return figure_png(self.figure())

    def _repr_html_(self) -> str:
        """The picture, the table, and the words."""
        source = base64.b64encode(self._repr_png_()).decode()
        said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.advice())
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in _HEAD)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in _cells(self)
        )
        return (
            f'<img alt="estimates against time" style="max-width:100%" '
            f'src="data:image/png;base64,{source}">\n<ul>{said}</ul>\n'
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )


_HEAD = (
    *("t", "rank correlation", "gain", "± sd", "rises"),
    *("siblings' spread", "final spread", "agreement", "worth"),
)


def _cells(d: Record) -> list[list[str]]:
    """The table in words."""
    rows = []
    for i, t in enumerate(d.times):
        row = [f"{t:.3f}", d.correlation.at(i)]
        if i < len(d.times) - 1:
            row += [_signed(d.gain.value[i]), _signed(d.gain_spread.value[i], "")]
            row += [d.rises.at(i)]
            row += [own.at(i) for own in (d.spread, d.final_spread, d.agreement, d.worth)]
        else:
            row[1] = "the picture"
        rows.append(row + [""] * (len(_HEAD) - len(row)))
    return rows


def _signed(value: float, sign: str = "+") -> str:
    return f"{value:{sign}.3g}".replace("-", "−") if np.isfinite(value) else "–"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    columns: Any = zip(*rows, strict=True)
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
