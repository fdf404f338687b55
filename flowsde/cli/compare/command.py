"""`flowsde compare`: the options, and the files that it writes.

compare.json
    ``title``, ``version``, ``prompts``, ``seeds``, ``command``, and ``rows`` as in
    `flowsde.compare.summarise`.
compare.csv
    The same rows.
compare.html
    One self-contained page: tables, plots, pictures.
accuracy.png, given.png, rss.png, diversity.png
    The plots, TABLE-accuracy.png and so on when there is more than one table.
.flowsde/parts/
    What was measured, a file for each row, seed and batch of prompts; --resume goes on from these.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

import flowsde as fs
from flowsde import _own, _text
from flowsde._checks import check_count
from flowsde._files import HIDDEN, read_json, replacing, write_json
from flowsde._schema import fields, items, mapping, text
from flowsde.cli import prompts, results
from flowsde.cli.compare.figures import MEASURES, figure
from flowsde.cli.compare.measure import Measured, Study, captions, measure
from flowsde.cli.compare.page import page
from flowsde.cli.compare.rows import Row, plan
from flowsde.cli.compare.summary import summarise
from flowsde.cli.failures import one_line
from flowsde.cli.options import Flag, Trajectory, Tuning, Weights, given, number, shown, word
from flowsde.cli.pictures import try_to_draw
from flowsde.shapes import weights

_MOST_PROMPTS, _MOST_SEEDS, _MOST_SEARCHES = 10_000, 1_000, 100_000
PARTS = f"{HIDDEN}/parts"
"""Folder, below that of the results, of what was measured."""
FILES = ("compare.json", "compare.csv", "compare.html")
_READ = fields(title=text, version=text, prompts=items(text), rows=items(mapping))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare methods on the embedded text-to-image flow, with 95 % intervals.

    Every row is a method with an interpolant, a kernel and a budget; every row searches the same
    prompts with the same seeds. Pictures are judged by the held-out checker, which no search sees.
    Writes tables (JSON, CSV), plots, and a page with all of them and the pictures. What has been
    measured is kept: --resume goes on after a stop, and adds rows, prompts or seeds.
    """

    methods: Annotated[tuple[str, ...], word("method")] = ("ode", "bon", "svdd", "rbf")
    """Which ones: ode bon svdd rbf by default."""
    interpolants: Annotated[tuple[str, ...], word("interpolant")] = ()
    """In which particles move; the preset's by default. Methods that follow the ODE (ode, bon, sop)
    have one row for all: its path is the same in each."""
    kernels: Annotated[tuple[str, ...], word("kernel")] = ()
    """How they move; the preset's by default."""
    nfe: Annotated[tuple[int, ...], shown("N...")] = (50, 100)
    """Budgets, in evaluations of the model for each picture: 50 100 by default."""
    prompts: Annotated[int, number(int, "an integer")] = 25
    """How many captions; every fifth has a count, colour and shape that training never showed."""
    objects: Annotated[int, number(int, "an integer")] = 1
    """Least number of objects in a caption, up to 10: more are harder."""
    prompts_file: Annotated[Path | None, shown("FILE")] = None
    """These prompts instead, one a line."""
    seeds: Annotated[int, number(int, "an integer")] = 2
    """Searches for each prompt."""
    preset: Annotated[str, word("preset")] = "recommended"
    """Of all settings that are not given: what measures best (the default), or the RBF paper's."""
    reward: Annotated[str | None, word("reward")] = None
    """What the searches see."""
    weights: Weights = ()
    """Weights that flowsde train wrote, of the flow or of the scorer, in the place of the packaged
    ones: a file, or the folder of a run. Given twice for both."""
    out: Annotated[Path, shown("DIR")] = Path("flowsde-compare")
    """Folder of the results, flowsde-compare by default."""
    resume: Flag = False
    """Go on with what is in the folder, also with more rows, prompts or seeds."""
    overwrite: Flag = False
    """Begin anew in a folder that holds results."""
    trajectory: Annotated[Trajectory, tyro.conf.OmitArgPrefixes] = Trajectory()
    search: Annotated[Tuning, tyro.conf.OmitArgPrefixes] = Tuning()

    def run(self) -> None:
        """Measure, write and say what came out.

        Raises:
          ValueError, TypeError: naming an option, before any work.
        """
        own = {name: value for name, value in given(self).items() if name != "nfe"}
        rows, left_out = plan(
            self.methods,
            nfe=self.nfe,
            interpolants=self.interpolants,
            kernels=self.kernels,
            preset=self.preset,
            given=own,
        )
        if self.prompts_file is not None:
            texts = prompts.collect((), self.prompts_file)
        else:
            check_count("--objects", self.objects, most=10)
            check_count("--prompts", self.prompts, most=_MOST_PROMPTS)
        check_count("--seeds", self.seeds, most=_MOST_SEEDS)
        many = self.prompts if self.prompts_file is None else len(texts)
        if many * self.seeds > _MOST_SEARCHES:
            raise ValueError(
                f"--seeds must be at most {_MOST_SEARCHES // many} for {many} prompts, "
                f"got {self.seeds}"
            )
        if self.prompts_file is None:
            texts = captions(self.prompts, self.objects)
        study = Study(texts, self.seeds, weights.chosen("--weights", self.weights))
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"--out: cannot make folder {_text.shown(self.out)}: {error.strerror}"
            ) from None
        with _own.locked(self.out):
            prepare(self.out, self.resume, self.overwrite)
            for words in left_out:
                print(f"without {_text.shown(words)}", flush=True)
            with one_line("failed", "the same command with --resume goes on"):
                report(self.out, "Methods compared", rows, study)


def prepare(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make room for parts; ValueError if a folder holds what may not be touched."""
    _own.claim(folder)
    parts = folder / PARTS
    if not parts.exists():
        names = [*FILES, *(f"{name}.png" for name in MEASURES)]
        if resume and is_ours(folder / "compare.json"):
            raise ValueError(
                f"{folder} holds results of an earlier version of flowsde, with which this one "
                f"cannot go on; expected another --out or --overwrite"
            )
        if is_ours(folder / "compare.json") and not overwrite:
            raise _holds(folder)
        results.check_writable(folder, names, overwrite)
    elif overwrite:
        _own.discard(parts)
    elif not resume and any(parts.iterdir()):
        raise _holds(folder)
    parts.mkdir(exist_ok=True)


def _holds(folder: Path) -> ValueError:
    return ValueError(f"{folder} holds results, expected another --out, --resume or --overwrite")


def is_ours(path: Path) -> bool:
    """Whether a file is a compare.json."""
    try:
        _READ(read_json(path), str(path))
    except (FileNotFoundError, ValueError):
        return False
    return True


def report(folder: Path, title: str, rows: Sequence[Row], study: Study) -> list[dict[str, Any]]:
    """Measure what is missing, write all files, and print the table, which is returned."""
    measured = measure(rows, study, folder / PARTS)
    table = summarise(rows, measured)
    _write(folder, title, rows, study, measured, table)
    print(describe(table))
    print(f"page    {_text.shown(folder / 'compare.html', 4096)}", flush=True)
    return table


def _write(
    folder: Path,
    title: str,
    rows: Sequence[Row],
    study: Study,
    measured: dict[Row, Measured],
    table: list[dict[str, Any]],
) -> None:
    with replacing(folder / "compare.html") as temporary:
        temporary.write_text(page(title, study, rows, measured, table), encoding="utf-8")
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, fieldnames=list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    with replacing(folder / "compare.csv") as temporary:
        temporary.write_text(lines.getvalue(), encoding="utf-8", newline="")
    values = {
        "title": title,
        "version": fs.__version__,
        "prompts": list(study.prompts),
        "seeds": study.seeds,
        "settings": [dataclasses.asdict(row.settings) for row in rows],
        "rows": table,
    }
    write_json(folder / "compare.json", values)
    _draw(folder, table)


def _draw(folder: Path, table: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(line["table"] for line in table))
    for name in names:
        prefix = "" if len(names) == 1 else f"{name.replace(' ', '-')}-"
        lines = [line for line in table if line["table"] == name]
        for key in MEASURES:
            path = folder / f"{prefix}{key}.png"
            try_to_draw("flowsde compare", path, partial(figure, lines, key))


def describe(table: Sequence[dict[str, Any]]) -> str:
    """The table in plain text."""
    width = max(len(row["label"]) for row in table)
    lines = [
        f"{'':{width}} {'NFE':>5} {'exact captions':>19} {'given reward':>12} {'RSS':>6} "
        f"{'diversity':>9} {'s/prompt':>8}"
    ]
    for row in table:
        spread = "–" if row["diversity"] is None else f"{row['diversity']:.3f}"
        accuracy = f"{row['accuracy']:.2f} [{row['accuracy_low']:.2f}, {row['accuracy_high']:.2f}]"
        lines.append(
            f"{row['label']:{width}} {row['nfe']:5} {accuracy:>19} {row['given']:12.3f} "
            f"{row['rss']:6.2f} {spread:>9} {row['seconds']:8.2f}"
        )
    return "\n".join(lines)
