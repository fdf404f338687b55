"""`flowsde batch`: the options, and what it writes beside every prompt's folder.

batch.json
    ``version``, ``method``, ``seed``, ``preset``, ``settings``, ``prompts``, ``total_nfe``;
    ``finished`` (how many prompts have ended), ``reached`` (of these, the target; null without
    one), ``exact`` (what the held-out checker says of the embedded model's pictures, a share),
    ``reward`` (mean); ``nfe``, ``evaluations``, ``backward_passes`` and ``verifier_calls`` of the
    prompts that have ended; ``occupancy``, the share of all rows computed that were charged to
    them; and ``runs``, one for each time that the command was given: ``prompts``, ``batch_size``,
    ``batches``, ``evaluations``, ``nfe``, ``surplus``, ``padding``, ``occupancy``, ``widths`` as in
    `flowsde.packing.Totals`, ``seconds`` and ``prompts_per_second``, compilation included.
    ``failed`` lists the prompts without a result, each with its ``number`` in the list, from 1, its
    ``prompt`` and the ``reason``.
sheet.png
    The pictures in the order of the list, 400 at most, with their numbers, rewards and prompts; a
    green frame is exactly what was asked, by the held-out checker.

A prompt that never has a finite reward, or whose picture is not finite, fails alone: it is said at
the end, the others are searched, and the exit code is 1. The same command tries those again that
have not ended, the failed ones among them; with --total-nfe what they have spent stays spent.

What is on disk of each prompt is in `flowsde.cli.batch_folder`. In its result.json,
``seconds.total`` is the time since the prompt before it ended: they share the device.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from flowsde import _own, _schema, _text, interrupts
from flowsde._checks import check_count
from flowsde._files import write_json
from flowsde._keys import from_seed
from flowsde.cli import presets, settings
from flowsde.cli.batch_folder import Folder
from flowsde.cli.failures import one_line
from flowsde.cli.options import Flag, Int, Sample, Task, shown
from flowsde.cli.sheet import Cell, write_sheet
from flowsde.cli.sources import about, source_of
from flowsde.cli.sources.base import Source
from flowsde.runner.arguments import Job, prepare
from flowsde.runner.found import blame
from flowsde.runner.packed.batch import as_list, prompts_of
from flowsde.runner.packed.budget import attempts, check_total
from flowsde.runner.packed.engine import Engine
from flowsde.runner.result import COUNTERS, Result

_BAR = (
    "{desc}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} prompts, {elapsed}<{remaining}{postfix}"
)
_SIZE = 32
_MOST = {"batch_size": 10_000, "slots": 100_000, "total_nfe": 2**31 - 1}
_EVERY = 2.0
"""Seconds between two batch.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch(Task):
    """Search for a picture of every prompt of a file, many at once in full batches.

    Each prompt gets the picture that flowsde sample finds for it with the same options, whatever it
    shares the batches with, and an image.png and a result.json like those. The same command again
    goes on after a stop: it leaves what is finished as it is.
    """

    prompts_file: Annotated[Path, shown("FILE")]
    """A prompt a line; blank lines and lines that start with # are skipped."""
    out: Annotated[Path, shown("DIR")]
    """Folder of the results: one below it for each prompt, batch.json, and sheet.png."""
    batch_size: Int = None
    """Candidates evaluated at once: 32, or what suits the images of --model."""
    slots: Int = None
    """Prompts under way at once, at most; by default as many as keep the batches full."""
    total_nfe: Int = None
    """Budget of all prompts together, a hard cap, with --target-reward: what those leave that reach
    the target goes to further attempts of the others."""
    overwrite: Flag = False
    """Begin anew in a folder that holds results."""

    def run(self) -> int:
        """Search, write and say what came out; the exit code.

        Raises:
          ValueError, TypeError: naming an option, before any work.
          Failed: in the work.
        """
        sample = Sample(
            prompt=(), prompts_file=self.prompts_file,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Task)},
        )  # fmt: skip
        offer = source_of(sample)
        for name, most in _MOST.items():
            if getattr(self, name) is not None:
                check_count(settings.flag(name), getattr(self, name), most=most)
        if self.total_nfe is not None:
            cost = offer.evaluations
            check_total(
                "--total-nfe", self.total_nfe, "--target-reward", self.target_reward,
                offer.search.with_nfe(offer.search.nfe // cost), cost, len(offer.prompts),
            )  # fmt: skip
        folder = Folder(self.out, offer, [about(sample, offer, text) for text in offer.prompts])
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out: cannot make folder {self.out}: {error.strerror}") from None
        with _own.locked(self.out) as hidden:
            return self._run(offer, folder, hidden)

    def _run(self, offer: Source, folder: Folder, hidden: Path) -> int:
        """Search in the folder whose lock is held; the exit code."""
        folder.open(hidden, self.total_nfe, self.overwrite)
        settings = presets.describe(self.method, offer.settings, offer.named)
        print(_text.shown(settings, 2000), flush=True)
        done = len(offer.prompts) - len(folder.missing)
        if done:
            print(f"resume  {done} of {len(offer.prompts)} prompts are finished", flush=True)
        on = f"what has ended is in {_text.shown(self.out)}; the same command goes on"
        with one_line("failed", on):
            return self._search(offer, folder)

    def _search(self, offer: Source, folder: Folder) -> int:
        """Find what is missing; the exit code."""
        runs, failed = list(folder.before), _Failures(offer.prompts)
        if folder.missing:
            runs.append(_search(self, offer, folder, runs, failed))
        values = _values(self, offer, folder, runs, failed)
        write_json(self.out / "batch.json", values)
        ended = [(i, one) for i, one in enumerate(folder.values) if one is not None]
        cells = [_cell(i, one, folder.folders[i] / "image.png") for i, one in ended]
        if cells:
            _try_sheet(self.out / "sheet.png", cells)
        if not folder.missing:
            _own.release(self.out)
        _say(values, self.out)
        if failed.reasons:
            title = f"flowsde batch: {len(failed.reasons)} prompts failed"
            print(_text.listed(failed.lines(), title), file=sys.stderr)
        return 1 if failed.reasons else 0


class _Failures:
    """Prompts that came to nothing, and why, by their place in the list."""

    def __init__(self, prompts: list[str]):
        self._prompts, self.reasons = prompts, dict[int, str]()

    def lines(self) -> list[str]:
        """One a prompt."""
        return [
            f"prompt {i + 1} of {len(self._prompts)}, '{_text.shown(self._prompts[i])}': {why}"
            for i, why in sorted(self.reasons.items())
        ]

    def values(self) -> list[dict[str, Any]]:
        """For batch.json."""
        return [
            {"number": i + 1, "prompt": self._prompts[i], "reason": why}
            for i, why in sorted(self.reasons.items())
        ]


def _try_sheet(path: Path, cells: list[Cell]) -> None:
    """The sheet, or why there is none."""
    try:
        write_sheet(path, cells)
    except Exception as error:  # Pillow's are of many kinds.
        said = _text.shown(f"{type(error).__name__}: {error}", 500)
        print(f"flowsde batch: sheet.png could not be drawn: {said}", file=sys.stderr)
        path.unlink(missing_ok=True)


def _job(command: Batch, offer: Source, prompts: list[str], size: int | None) -> tuple[Job, int]:
    """Of some prompts, and the size of a batch; the weights are read here."""
    loaded = offer.load(prompts)
    size = size or loaded.chunk_size or _SIZE
    # Every prompt runs as number 0, as by `flowsde sample`: its place in the list is nothing to it.
    cond, ids = as_list([task.cond for task in loaded.tasks], np.arange(len(prompts)))
    told = [task.reward_cond for task in loaded.tasks]
    job = prepare(
        from_seed(command.seed), loaded.flow, offer.search, loaded.reward, cond=cond,
        reward_cond=None if told[0] is None else told, prompt_ids=0 * ids, chunk_size=size,
        target_reward=command.target_reward, nfe=None, invalid="error", resume=None,
    )  # fmt: skip
    return job, size


def _search(
    command: Batch, offer: Source, folder: Folder, runs: list[dict[str, Any]], failed: _Failures
) -> dict[str, Any]:
    """Search for all that is missing under a bar; what there is to say of this run."""
    began = last = time.perf_counter()
    # A shared budget is one of all prompts, also of those that have ended.
    numbers = folder.missing if command.total_nfe is None else list(range(len(offer.prompts)))
    job, size = _job(command, offer, [offer.prompts[i] for i in numbers], command.batch_size)
    engine = Engine(job, size, command.slots)
    ended, total, written = 0, len(offer.prompts), began

    def this_run() -> dict[str, Any]:
        seconds = time.perf_counter() - began
        t = engine.totals
        return {
            "prompts": ended,
            "batch_size": size,
            "batches": t.batches,
            "evaluations": t.evaluations,
            "nfe": t.nfe,
            "surplus": t.surplus,
            "padding": t.padding,
            "occupancy": t.occupancy,
            "widths": list(t.widths),
            "seconds": round(seconds, 3),
            "prompts_per_second": ended / seconds,
        }

    def write() -> None:
        nonlocal written
        written = time.perf_counter()
        values = _values(command, offer, folder, [*runs, this_run()], failed)
        write_json(command.out / "batch.json", values)

    write()
    with tqdm(total=total, initial=total - len(folder.missing), bar_format=_BAR) as bar:
        bar.set_postfix_str("compiling")
        try:
            for i, result, finish in _endings(command, job, engine, folder, numbers):
                now = time.perf_counter()
                why = _unusable(job, result)
                if why is None:
                    finish(now - last)
                    ended += 1
                else:
                    failed.reasons[i] = why
                last = now
                interrupts.check()
                if now - written > _EVERY:
                    write()
                bar.set_postfix_str(f"occupancy {engine.totals.occupancy:.2f}", refresh=False)
                bar.update()
        finally:
            engine.close()
    return this_run()


def _unusable(job: Job, result: Result) -> str | None:
    """Why a prompt's answer is none; None if it is one."""
    if np.isneginf(np.float32(result.reward)):
        # What is kept of attempts is no x0.
        answers = None if result.x0 is None else (result.x0, result.image)
        return _text.shown(blame(job, np.ones(1, bool), answers), 500)
    if not np.isfinite(np.asarray(result.image)).all():
        return "the model's picture has numbers that are not finite"
    return None


def _endings(
    command: Batch, job: Job, engine: Engine, folder: Folder, numbers: list[int]
) -> Iterator[tuple[int, Result, Callable[[float], None]]]:
    """Of each prompt that ends: its number, its result, the function of its seconds to write it."""
    if command.total_nfe is None:
        for number, result in engine.run(prompts_of(job)):
            i = numbers[number]
            yield i, result, partial(folder.end, i, result)
        return
    for one in attempts(job, engine, command.total_nfe, folder.known()):
        folder.add(one.prompt, one.result)
        if one.outcome.reward >= job.target:
            yield one.prompt, one.result, partial(folder.end_attempts, one.prompt)
    for i in folder.missing:
        yield i, folder.best(i), partial(folder.end_attempts, i)


def _values(
    command: Batch,
    offer: Source,
    folder: Folder,
    runs: list[dict[str, Any]],
    failed: _Failures,
) -> dict[str, Any]:
    """What batch.json says."""
    every = [one for one in folder.values if one is not None]
    read = _schema.maybe(_schema.number)
    rewards = [r for r in (read(one["reward"], "reward") for one in every) if r is not None]
    target = command.target_reward
    exact = [one["heldout"]["exact"] for one in every if "heldout" in one]
    computed, charged = (sum(run[name] for run in runs) for name in ("evaluations", "nfe"))
    first = folder.abouts[0]
    return {
        **{name: first[name] for name in ("version", "method", "seed", "preset", "settings")},
        "prompts": offer.prompts,
        "total_nfe": command.total_nfe,
        "finished": len(every),
        "reached": None if target is None else sum(bool(r >= np.float32(target)) for r in rewards),
        "exact": float(np.mean(exact)) if exact else None,
        "reward": sum(rewards) / len(rewards) if rewards else None,
        **{name: sum(one[name] for one in every) for name in COUNTERS},
        "occupancy": charged / computed if computed else None,
        "failed": failed.values(),
        "runs": runs,
    }


def _cell(i: int, values: dict[str, Any], picture: Path) -> Cell:
    reward = _schema.maybe(_schema.number)(values["reward"], "reward")
    exact = values.get("heldout", {}).get("exact")
    verdict = "" if exact is None else " exact" if exact else " not exact"
    label = f"{i + 1}" if reward is None else f"{i + 1}: {reward:.3g}{verdict}"
    return Cell(picture, label, values["prompt"], exact)


def _say(values: dict[str, Any], out: Path) -> None:
    judged = "" if values["exact"] is None else f", {values['exact']:.0%} exactly what was asked"
    print(f"prompts {values['finished']}{judged}")
    if values["reached"] is not None:
        print(f"reached {values['reached']} have the target")
    spent = f"{values['nfe']} NFE in {sum(run['seconds'] for run in values['runs']):.1f} s"
    full = (
        "" if values["occupancy"] is None else f", {values['occupancy']:.0%} of what was computed"
    )
    print(f"spent   {spent}{full}\nfolder  {_text.shown(out, 4096)}", flush=True)
