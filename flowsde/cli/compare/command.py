"""`flowsde compare`: the options, and the files that it writes.

compare.json
    ``title``, ``version``, ``task``, ``prompts``, ``seeds``, ``networks`` (SHA-256 of the weights),
    ``heldout`` (rewards of --heldout with their versions), ``settings`` of each row, and ``rows``
    as in `flowsde.cli.compare.summarise`.
compare.csv
    The same rows.
compare.html
    A self-contained page with tables, plots and pictures.
accuracy.png, given.png, rss.png, diversity.png
    The plots; TABLE-accuracy.png and so on when there is more than one table.
.flowsde/parts/
    Measurements, a file for each row, seed and batch of prompts, from which the command resumes.
.flowsde/heldout/
    What held-out rewards said of the pictures.
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
from flowsde._files import HIDDEN, read_json, replacing, speakable, write_json
from flowsde._schema import fields, items, mapping, maybe, table, text, whole
from flowsde.cli import heldout, prompts, results
from flowsde.cli.compare.figures import MEASURES, figure, measures
from flowsde.cli.compare.heldout import score
from flowsde.cli.compare.measure import Measured, Study, captions, counted, measure
from flowsde.cli.compare.page import page
from flowsde.cli.compare.rows import Row, plan
from flowsde.cli.compare.summary import describe, summarise
from flowsde.cli.described import described
from flowsde.cli.failures import one_line
from flowsde.cli.options import (
    Flag,
    HeldoutFolders,
    HeldoutNames,
    Int,
    Moving,
    Preset,
    Trajectory,
    Tuning,
    Weights,
    given,
    number,
    shown,
    word,
    words,
)
from flowsde.cli.pictures import try_to_draw
from flowsde.cli.settings import EMBEDDED
from flowsde.cli.sources import check_seconds
from flowsde.shapes import MODELS, weights
from flowsde.shapes.tasks import TASKS, Challenge

_MOST_PROMPTS, _MOST_SEEDS, _MOST_SEARCHES = 10_000, 1_000, 100_000
PARTS, SCORES = f"{HIDDEN}/parts", f"{HIDDEN}/heldout"
"""Folders, below that of the results, of what was measured, and what held-out rewards said."""
FILES = ("compare.json", "compare.csv", "compare.html")
_READ = fields(
    {"seeds": whole(1), "settings": items(mapping), "networks": items(text), "task": text,
     "heldout": table(maybe(text))},
    title=text, version=text, prompts=items(text), rows=items(mapping),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Compare:
    """Compare methods on the embedded text-to-image flow, with 95 % intervals.

    Every row is a method with an interpolant, a kernel and a budget, and searches the same prompts
    with the same seeds. A held-out checker, which no search sees, judges the pictures. On most
    --task a plain sample is seldom right, so that a search is needed. Writes
    tables (JSON, CSV), plots, and a page with all of them and the pictures. The same command again
    resumes; with more methods, budgets, prompts or seeds it extends the comparison.
    """

    methods: Annotated[tuple[str, ...], words("method")] = ("ode", "bon", "svdd", "rbf")
    """Methods to compare (default: ode bon svdd rbf)."""
    interpolants: Annotated[tuple[str, ...], words("interpolant")] = ()
    """Interpolants to sample in; the preset's by default. Methods that follow the ODE
    ({ode_methods}) have one row for all: its path is the same in each."""
    kernels: Annotated[tuple[str, ...], words("kernel")] = ()
    """Kernels to move particles by; the preset's by default."""
    nfe: Annotated[tuple[int, ...], shown("N...")] = (50, 100)
    """Budgets in model evaluations a picture (default: 50 100). ode and sde take one trajectory of
    the preset's steps, whatever the budget."""
    seconds: Annotated[tuple[float, ...], shown("X...")] = ()
    """Budgets in seconds a picture instead: what each method takes is measured first, without
    counting, and turned into evaluations. Of the prompts searched together, the mean."""
    task: Annotated[str, word("task")] = "counts"
    """What a picture must be beside its objects, as for flowsde sample: the task's own captions,
    reward and held-out checker (default: counts, just the objects of the prompt)."""
    split: Annotated[str | None, word("split")] = None
    """Captions of the task: dev, to choose settings by, or test, to report on; no caption is in
    both (default: dev; for counts, captions of both)."""
    prompts: Annotated[int, number(int, "an integer")] = 25
    """Number of captions. Of counts, every fifth has a count, colour and shape never shown in
    training."""
    objects: Annotated[Int, number(int, "an integer")] = None
    """Task counts: least number of objects in a caption, up to 10 (default: 1); more are harder."""
    prompts_file: Annotated[Path | None, shown("FILE")] = None
    """File of prompts to use instead, as for flowsde batch."""
    seeds: Annotated[int, number(int, "an integer")] = 2
    """Number of searches for each prompt."""
    preset: Preset = "recommended"
    """Defaults for all other settings: "recommended", measured best on the embedded model,
    "distilled", for models of a few steps (what is recommended for shapes-turbo), or "paper", those
    of the RBF paper. A FILE.json that flowsde tune wrote adds its method to the others, which are
    as recommended."""
    reward: Annotated[str | None, word("reward")] = None
    """Reward to search by; likelihood by default."""
    model: Annotated[str, shown("{" + ",".join(EMBEDDED) + "}")] = EMBEDDED[0]
    """Embedded model to sample; shapes-turbo is distilled to four steps (default: shapes)."""
    heldout: HeldoutNames = ()
    """Reward that no search sees, of the pictures found, as for flowsde sample."""
    heldout_model: HeldoutFolders = ()
    """Folder of a converted model for --heldout, as for flowsde sample."""
    weights: Weights = ()
    """Weights that flowsde train wrote, of the flow or of the scorer, instead of the packaged ones:
    a file, or the folder of a run. Give it twice for both."""
    out: Annotated[Path, shown("DIR")] = Path("flowsde-compare")
    """Folder of the results, flowsde-compare by default."""
    overwrite: Flag = False
    """Discard the results in the folder and begin anew."""
    trajectory: Annotated[Trajectory, tyro.conf.OmitArgPrefixes] = Trajectory()
    moves: Annotated[Moving, tyro.conf.OmitArgPrefixes] = Moving()
    search: Annotated[Tuning, tyro.conf.OmitArgPrefixes] = Tuning()

    def run(self) -> None:
        """Measure, write the files, and print the table.

        Raises:
          ValueError, TypeError: naming an option, before any work.
          CommandError, Interrupted: the work failed, or a signal came.
        """
        own = {name: value for name, value in given(self).items() if name != "nfe"}
        if self.seconds and self.nfe != Compare.nfe:
            raise ValueError(
                f"--nfe and --seconds are both given, {self.nfe} and {self.seconds}, expected one"
            )
        for budget in self.seconds:
            check_seconds(budget, self.methods)
        rows, left_out = plan(
            self.methods,
            nfe=self.nfe,
            seconds=self.seconds,
            interpolants=self.interpolants,
            kernels=self.kernels,
            preset=self.preset,
            model=self.model,
            given=own,
        )
        task = TASKS[self.task]
        texts = self._texts(task)
        if self.model not in EMBEDDED:
            raise ValueError(
                f"--model must be one of {', '.join(EMBEDDED)}, got '{_text.shown(self.model)}'"
            )
        networks = weights.chosen("--weights", self.weights, MODELS[self.model])
        study = Study(texts, self.seeds, networks, task, self.model)
        searched = dict.fromkeys((row.settings.reward for row in rows), ())
        rewards = heldout.rewards_of(self.heldout, self.heldout_model, searched=searched)
        results.make(self.out)
        with _own.locked(self.out):
            if not self.overwrite:
                check_extended(self.out, rows, study, rewards)
            prepare(self.out, self.overwrite)
            done, total = counted(rows, study, self.out / PARTS)
            if done == total:
                out = _text.shown(self.out, 4096)
                print(f"flowsde compare: {out} is already complete", flush=True)
            elif done:
                print(f"resume  {done} of {total} parts are measured", flush=True)
            for words in left_out:
                print(f"skipped {_text.shown(words)}", flush=True)
            with one_line("failed"):
                report(self.out, "Methods compared", rows, study, rewards)

    def _texts(self, task: Challenge) -> list[str]:
        """The prompts; ValueError naming an option that is wrong."""
        check_count("--seeds", self.seeds, most=_MOST_SEEDS)
        plain = task.name == "counts" and self.split is None and self.prompts_file is None
        if self.objects is not None and not plain:
            raise ValueError(
                f"--objects has no effect with --task, --split or --prompts-file, "
                f"got {self.objects}"
            )
        if self.prompts_file is not None:
            if self.split is not None:
                raise ValueError(f"--split has no effect with --prompts-file, got {self.split}")
            texts = prompts.collect((), self.prompts_file, partial(_slug, task))
        many = self.prompts if self.prompts_file is None else len(texts)
        check_count("--prompts", many, most=_MOST_PROMPTS)
        if many * self.seeds > _MOST_SEARCHES:
            raise ValueError(
                f"--seeds must be at most {_MOST_SEARCHES // many} for {many} prompts, "
                f"got {self.seeds}"
            )
        if self.prompts_file is not None:
            return texts
        if plain:
            objects = 1 if self.objects is None else self.objects
            return captions(many, check_count("--objects", objects, most=10))
        texts = task.captions(self.split or "dev", many)
        if (there := len(set(texts))) < many:
            raise ValueError(f"--prompts must be at most {there} for task {task.name}, got {many}")
        return texts


def _slug(task: Challenge, prompt: str) -> str:
    """What a prompt means; ValueError for one that the task cannot ask for."""
    task.parse(prompt)
    return prompts.slug(prompt)


def prepare(folder: Path, overwrite: bool) -> None:
    """Make room for parts in a folder whose lock is held; what is discarded is said first.

    Raises:
      ValueError: the folder holds an earlier version's results, or files that are not ours.
    """
    _own.claim(folder)
    parts, names = folder / PARTS, [*FILES, *(f"{name}.png" for name in MEASURES)]
    there = list(parts.iterdir()) if parts.is_dir() else []
    if overwrite:
        results.check_writable(folder, names, overwrite)
        if there:
            print(f"discard {len(there)} measured parts in {_text.shown(folder)}", flush=True)
        # The parts' folder stays: with it, the other files are known as ours.
        (folder / FILES[0]).unlink(missing_ok=True)
        for part in there:
            _own.discard(part)
        _own.discard(folder / SCORES)
    elif not parts.exists() and is_ours(folder / FILES[0]):
        raise ValueError(
            f"{folder} holds results of an earlier version of flowsde, which this one cannot "
            f"extend; {results.OTHERWISE}"
        )
    elif not parts.exists():
        results.check_writable(folder, names, overwrite)
    parts.mkdir(exist_ok=True)


def check_extended(
    folder: Path, rows: Sequence[Row], study: Study, rewards: heldout.Heldout
) -> None:
    """ValueError naming what a finished comparison has and the one that is wanted has not."""
    try:
        found = _READ(read_json(folder / FILES[0]), str(folder / FILES[0]))
    except (FileNotFoundError, ValueError):
        return  # What counts are the parts.
    ours = [(row.method, speakable(row.values)) for row in rows]
    theirs = zip(found["rows"], found.get("settings", []), strict=False)
    lost = [row for row, settings in theirs if (row.get("method"), settings) not in ours]
    many, seeds = len(found["prompts"]), found.get("seeds", 0)
    scored = dict(found.get("heldout", {}).items() - rewards.versions.items())
    if found.get("task", "counts") != study.task.name:
        has = f"--task {_text.shown(found.get('task', 'counts'), 20)}, not {study.task.name}"
    elif found.get("networks", study.digests) != study.digests:
        has = "other --model or --weights"
    elif list(study.prompts[:many]) != found["prompts"]:
        fewer = many > len(study.prompts)
        has = f"{many} prompts, not {len(study.prompts)}" if fewer else "other prompts"
    elif seeds > study.seeds:
        has = f"--seeds {seeds}, not {study.seeds}"
    elif scored:
        name, version = min(scored.items())
        of = "" if version is None else f" of version {version}"
        has = f"--heldout {_text.shown(name, 100)}{of}, which this command leaves out"
    elif lost:
        row = _text.shown(lost[0].get("label"), 100)
        has = f"{row} at {_text.shown(lost[0].get('nfe'), 20)} NFE, which this command leaves out"
    else:
        return
    raise ValueError(f"the comparison in {folder} has {has}; {results.OTHERWISE}")


def is_ours(path: Path) -> bool:
    """Whether a file is a compare.json."""
    try:
        _READ(read_json(path), str(path))
    except (FileNotFoundError, ValueError):
        return False
    return True


def report(
    folder: Path, title: str, rows: Sequence[Row], study: Study, rewards: heldout.Heldout
) -> list[dict[str, Any]]:
    """Measure what is missing, write all files, and print the table, which is returned."""
    measured = measure(rows, study, folder / PARTS)
    measured = score(rewards, study, measured, folder / SCORES)
    table = summarise(rows, measured)
    _write(folder, title, rows, study, rewards, measured, table)
    print(describe(table, "exact captions" if study.task.name == "counts" else "success"))
    print(f"page    {_text.shown(folder / 'compare.html', 4096)}", flush=True)
    return table


def _write(
    folder: Path,
    title: str,
    rows: Sequence[Row],
    study: Study,
    rewards: heldout.Heldout,
    measured: dict[Row, Measured],
    table: list[dict[str, Any]],
) -> None:
    with replacing(folder / "compare.html") as temporary:
        temporary.write_text(page(title, study, rows, measured, table), encoding="utf-8")
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(
        lines, fieldnames=list(dict.fromkeys(k for line in table for k in line))
    )
    writer.writeheader()
    writer.writerows(table)
    with replacing(folder / "compare.csv") as temporary:
        temporary.write_text(lines.getvalue(), encoding="utf-8", newline="")
    values = {
        "title": title,
        "version": fs.__version__,
        "task": study.task.name,
        "prompts": list(study.prompts),
        "seeds": study.seeds,
        "networks": study.digests,
        **({"heldout": rewards.versions} if rewards.rewards else {}),
        "settings": [row.values for row in rows],
        "rows": table,
    }
    write_json(folder / "compare.json", values)
    _draw(folder, table, study.task.name)


def _draw(folder: Path, table: list[dict[str, Any]], task: str) -> None:
    names = list(dict.fromkeys(line["table"] for line in table))
    for name in names:
        prefix = "" if len(names) == 1 else f"{name.replace(' ', '-')}-"
        lines = [line for line in table if line["table"] == name]
        for key, called in measures(task).items():
            path = folder / f"{prefix}{key}.png"
            try_to_draw("flowsde compare", path, partial(figure, lines, key, called))
