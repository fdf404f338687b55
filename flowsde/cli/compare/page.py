"""One self-contained HTML page of a comparison: tables, plots and pictures."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from flowsde.cli.compare.figures import figure, measures
from flowsde.cli.compare.measure import Measured, Study
from flowsde.cli.compare.rows import Row
from flowsde.cli.compare.summary import HELDOUT, heldout_columns

_SHOWN = 10
"""Most prompts to show pictures of."""

_COLUMNS = (
    ("label", "row"),
    ("nfe", "NFE"),
    ("accuracy", "exact captions"),
    ("exact", "exact counts"),
    ("gain", "gain, paired"),
    ("given", "given reward"),
    ("rss", "squared error"),
    ("diversity", "diversity"),
    ("clean", "clean objects"),
    ("charged", "charged NFE"),
    ("verifier_calls", "verifier calls"),
    ("seconds", "seconds a prompt"),
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 88rem; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #ddd; text-align: right;
         vertical-align: baseline; font-variant-numeric: tabular-nums }
td, td small { white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
td small { color: #777; display: block }
.scroll { overflow-x: auto }
.plots { display: flex; flex-wrap: wrap; gap: .5rem }
img.plot { max-width: 100%; max-height: 22rem; object-fit: contain }
.pictures td { padding: .15rem; border: 0; text-align: center }
.pictures th { border: 0; font-weight: normal; font-size: 11px; white-space: normal;
               vertical-align: bottom; max-width: 72px }
.pictures th[scope=row] { max-width: 12rem; text-align: left; font-size: 13px }
.pictures img { width: 64px; height: 64px; image-rendering: pixelated; border: 3px solid #d6604d }
.pictures img.exact { border-color: #4d9a4d }
summary { cursor: pointer; margin: .5rem 0 }
"""


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plot(drawn: Figure, words: str) -> str:
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="plot" alt="{html.escape(words)} against NFE" src="{source}">'


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if value is None:
        return "–"
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, int):
        return str(value)
    if name in ("charged", "verifier_calls"):
        return f"{value:.0f}"
    shown = f"{value:+.2f}" if name == "gain" else f"{value:.2f}"
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    if low is None or high is None:
        return shown
    return f"{shown}<small>[{low:.2f}, {high:.2f}]</small>"


def _columns(task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Columns by key, in the words of a task, and those of held-out rewards."""
    held_out = heldout_columns(rows)
    own = [(key, f"held-out {key.removeprefix(HELDOUT)}") for key in held_out]
    columns = dict([*_COLUMNS[:6], *own, *_COLUMNS[6:]])
    if task == "counts":
        del columns["exact"]
        return columns
    return columns | {"accuracy": "success"}


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    head = "".join(f'<th scope="col">{words}</th>' for words in columns.values())
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row, name)}</td>" for name in columns) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n{body}</table></div>'


def _chosen(study: Study) -> list[int]:
    """Prompts to show, evenly spread."""
    count = min(_SHOWN, len(study.prompts))
    return np.linspace(0, len(study.prompts) - 1, count).round().astype(int).tolist()


def _pictures(
    study: Study, named: Sequence[tuple[str, Row]], measured: Mapping[Row, Measured]
) -> str:
    """A grid of the first seed's pictures: a row for each row, a column for each prompt."""
    chosen = _chosen(study)
    asked = [html.escape(study.task.words(study.prompts[i])) for i in chosen]
    head = "".join(f'<th scope="col">{words}</th>' for words in asked)
    lines = []
    for label, row in named:
        found = measured[row]
        cells = []
        for i in chosen:
            source = _png(Image.fromarray(found.images[i, 0]))
            mark = ' class="exact"' if found.success[i, 0] else ""
            words = html.escape(f"{study.prompts[i]}, {label}")
            cells.append(f'<td><img{mark} alt="{words}" src="{source}"></td>')
        lines.append(f'<tr><th scope="row">{html.escape(label)}</th>{"".join(cells)}</tr>')
    body = "\n".join(lines)
    head = f"<tr><th></th>{head}</tr>"
    return f'<div class="scroll"><table class="pictures">{head}\n{body}</table></div>'


def page(
    title: str,
    study: Study,
    rows: Sequence[Row],
    measured: Mapping[Row, Measured],
    table: Sequence[dict[str, Any]],
) -> str:
    """The whole page; `table` as from `summarise`."""
    parts = []
    for name in dict.fromkeys(row.table for row in rows):
        own = [line for line in table if line["table"] == name]
        parts += [f"<h2>{html.escape(name)}</h2>", _table(own, _columns(study.task.name, own))]
        named_measures = measures(study.task.name).items()
        drawn = {words: figure(own, measure, words) for measure, words in named_measures}
        plots = "".join(_plot(shown, words) for words, shown in drawn.items() if shown)
        parts.append(f'<div class="plots">{plots}</div>')
        named = [
            (line["label"], row) for line, row in zip(table, rows, strict=True) if row.table == name
        ]
        # A single trajectory has a budget of its own: it stands beside the searches of every one.
        searches = [row for _, row in named if not row.is_single] or [row for _, row in named]
        most = sorted(searches, key=lambda row: -(row.seconds or row.settings.nfe or 0))
        budgets = list(dict.fromkeys(row.budget for row in most))
        for budget in budgets:
            here = [(label, row) for label, row in named if row.is_single or row.budget == budget]
            shown = "<details open>" if budget == budgets[0] else "<details>"
            grid = _pictures(study, here, measured)
            parts.append(f"{shown}<summary>Pictures, {budget}</summary>{grid}</details>")
    counts = study.task.name == "counts"
    what, green = ("exact captions", "an exact match") if counts else ("success", "success")
    about = (
        f"Task {study.task.name}: {study.task.summary}. "
        f"{len(study.prompts)} prompts × {study.seeds} seeds. Intervals are 95 % bootstraps over "
        f"prompts. Gain is the difference in {what} from the first row with the same "
        f"budget, paired over prompts. A green frame marks {green}, by the held-out "
        f"checker, which no search sees."
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n"
        f"<p>{about}</p>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
