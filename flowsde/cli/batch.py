"""`flowsde batch`: the options, and what it writes beside every prompt's folder.

batch.json
    ``version``, ``method``, ``seed``, ``preset``, ``settings``, ``prompts``, ``total_nfe``,
    ``part`` (of the list, as --part says; null without), with --id-column ``ids``, of each the
    name of the folder, in the order of ``prompts``;
    ``finished`` (number of finished prompts), ``reached`` (those that reached the target; null
    without one), ``exact`` (share of the embedded model's pictures with just the objects of their
    prompts, by the held-out checker), with a task ``success`` (share of those that are what it asks
    for), ``reward`` (mean), ``heldout_rewards`` (means by name, of
    the rewards of --heldout that have scored all finished prompts); ``nfe``, ``evaluations``,
    ``backward_passes`` and ``verifier_calls`` of the finished prompts, and ``part_calls`` of the
    dear part of a cascade; ``weighted_samples`` of methods that weigh particles, the ``log_z`` and
    ``ess`` of every prompt in the order of ``prompts``, null of one that is not finished (its
    result.json has the weights); ``occupancy``, the share of all rows computed that were charged to
    them; and ``runs``, one for each time that the command was given: ``prompts``, ``batch_size``,
    ``batches``, ``evaluations``, ``nfe``, ``surplus``, ``padding``, ``occupancy``, ``widths`` as in
    `flowsde.runner.packed.engine.Totals`, ``seconds`` and ``prompts_per_second``, compilation
    included; with --seconds also ``timing``, as `flowsde.runner.clock.Timing`; with --shared
    ``worker``, which process it was. ``failed`` lists the prompts without a result, each with its
    ``number`` in the list, from 1, its ``prompt``, its ``id`` if it has one, and the ``reason``.
sheet.png
    The pictures in the order of the list, with --keep several of each, 400 at most, with their
    numbers, rewards and prompts; a green frame marks what the held-out checker calls right.

A prompt that never has a finite reward, or whose picture is not finite, fails alone: it is reported
at the end, the others are searched, and the exit code is 1. The same command tries unfinished
prompts again, failed ones included; with --total-nfe what they have spent stays spent.

`flowsde.cli.batch_folder` describes each prompt's files. In its result.json, ``seconds.total`` is
the time since the prompt before it finished: prompts share the device.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from flowsde import _own, _text, interrupts
from flowsde._checks import check_count
from flowsde._files import write_json
from flowsde._keys import from_seed
from flowsde.cli import (
    batch_part,
    batch_seconds,
    batch_shared,
    beginning,
    devices,
    finals,
    heldout,
    presets,
    progress,
    prompt_files,
    results,
    settings,
)
from flowsde.cli.batch_folder import Folder
from flowsde.cli.batch_report import Failures, contents, looked_at, sheet, show
from flowsde.cli.claims import Claims
from flowsde.cli.described import described
from flowsde.cli.errors import NoJudge
from flowsde.cli.failures import one_line
from flowsde.cli.options import Flag, Int, Sample, Task, shown
from flowsde.cli.sources import about, naming_seconds, source_of
from flowsde.cli.sources.base import Source
from flowsde.runner.arguments import Job, prepare
from flowsde.runner.found import blame
from flowsde.runner.packed.batch import as_list
from flowsde.runner.packed.budget import attempts, check_total
from flowsde.runner.packed.engine import Engine, Totals
from flowsde.runner.packed.timed import prompts_of, timed
from flowsde.runner.records import Program
from flowsde.runner.result import Result

_BAR = (
    "{desc}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} prompts, {elapsed}<{remaining}{postfix}"
)
_SIZE = 32
_MOST = {"batch_size": 10_000, "slots": 100_000, "total_nfe": 2**31 - 1}
After = tuple[heldout.Heldout, finals.Finals]
"""What looks at the results of all prompts."""
_EVERY = 2.0
"""Seconds between two batch.json."""


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Batch(Task):
    """Search for a picture of every prompt in a file, many at once in full batches.

    Each prompt gets the picture that flowsde sample finds for it with the same options, whatever it
    shares batches with, and the same image.png and result.json. The same command again resumes:
    finished prompts stay as they are.
    """

    prompts_file: Annotated[Path, shown("FILE")]
    """Prompts, one a line, # for comments; of .csv, .tsv and .jsonl the column "prompt"."""
    out: Annotated[Path, shown("DIR")]
    """Folder of the results: a folder for each prompt, batch.json and sheet.png."""
    part: Annotated[str | None, shown("I/N")] = None
    """Part I of N of the prompts, each Nth from the Ith on: for a machine, and a folder, of its
    own; a folder of another part is refused. Numbers of prompts are those in the part."""
    id_column: Annotated[str | None, shown("NAME")] = None
    """Column of a .csv or .tsv file, or entry of a .jsonl file, with an id of your own for each
    prompt: result.json has it, and batch.json the folder of each id."""
    batch_size: Int = None
    """Candidates evaluated at once: 32 by default, or what suits the images of --model."""
    slots: Int = None
    """Most prompts in flight at once; by default as many as keep the batches full."""
    total_nfe: Int = None
    """Budget of all prompts together, a hard cap. Needs --target-reward: what is left by prompts
    that reach it goes to further attempts of the others."""
    shared: Flag = False
    """Share the folder with other processes that were given the same command, one a device, on one
    machine or many: each takes prompts that nobody has, and those of one that died."""
    overwrite: Flag = False
    """Discard the results in the folder and begin anew."""

    def run(self) -> int:
        """Search, write, and print the totals; the exit code.

        Raises:
          ValueError, TypeError: naming an option, before any work.
          CommandError, Interrupted: the work failed, or a signal came.
        """
        sample = Sample(
            prompt=(), prompts_file=self.prompts_file,
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Task)},
        )  # fmt: skip
        try:
            offer = source_of(sample)
            offer.prompts = batch_part.of(self.part, offer.prompts)
            rewards, chosen = heldout.heldout_of(sample, offer), finals.of(sample, offer)
        except NoJudge as error:
            if self.overwrite or not looked_at(self, str(error)):
                raise
            return 0
        for name, most in _MOST.items():
            if getattr(self, name) is not None:
                check_count(settings.flag(name), getattr(self, name), most=most)
        batch_seconds.check(self.seconds, self.total_nfe)
        if self.shared:
            batch_shared.check(self)
        if self.total_nfe is not None:
            if "keep" in offer.named:
                raise ValueError(
                    f"--keep has no effect with --total-nfe, whose attempts keep one picture, "
                    f"got {self.keep}"
                )
            cost = offer.evaluations
            check_total(
                "--total-nfe", self.total_nfe, "--target-reward", self.target_reward,
                Program.of(offer.search, cost).search, cost, len(offer.prompts),
            )  # fmt: skip
        abouts = [about(sample, offer, text) for text in offer.prompts]
        if self.id_column is not None:
            ids = batch_part.of(self.part, prompt_files.ids(self.prompts_file, self.id_column))
            abouts = [one | {"id": id} for one, id in zip(abouts, ids, strict=True)]
        folder = Folder(self.out, offer, abouts, batch_part.named(self.part))
        results.make(self.out)
        if self.shared:
            with _own.shared(self.out) as hidden, closing(Claims(hidden)) as claims:
                with claims.alone():
                    claims.check_same(batch_shared.asked_for(folder))
                    folder.open(hidden, None, overwrite=False)
                code = self._run(offer, folder, (rewards, chosen), claims)
            if not folder.missing:
                _own.release_unless_shared(self.out)
            return code
        with batch_shared.alone(self.out) as hidden:
            folder.open(hidden, self.total_nfe, self.overwrite)
            code = self._run(offer, folder, (rewards, chosen), None)
            if not folder.missing:
                _own.release(self.out)
            return code

    def _run(self, offer: Source, folder: Folder, after: After, claims: Claims | None) -> int:
        """Search in the folder whose lock is held; the exit code."""
        rewards, chosen = after
        rewards.check(folder.finished)
        many = len(offer.prompts)
        chosen.announce(len(folder.missing) + len(chosen.lacking(folder.finished)))
        if not folder.missing:
            print(f"flowsde batch: {_text.shown(self.out, 4096)} is already complete", flush=True)
        else:
            settings = presets.describe(self.method, offer.settings, offer.named)
            print(_text.shown(settings, 2000), flush=True)
            for note in devices.idle(self.devices, "prompt"):
                print(f"note    {note}", flush=True)
            if done := many - len(folder.missing):
                print(f"resume  {done} of {many} prompts are finished", flush=True)
        try:
            with one_line("failed"):
                return self._search(offer, folder, after, claims)
        except KeyboardInterrupt as stop:
            share = f"{many - len(folder.missing)} of {many} prompts finished"
            kept = "start over" if self.total_nfe is None else "keep their finished attempts"
            said = f"interrupted with {share}; the others {kept}"
            raise interrupts.said_of(stop, said) from None

    def _search(self, offer: Source, folder: Folder, after: After, claims: Claims | None) -> int:
        """Find what is missing, and score all that is there; the exit code."""
        runs, failed, own = list(folder.before), Failures(folder.abouts), []
        if folder.missing:
            own = [_search(self, offer, folder, runs, failed, claims)]
        with _alone(claims):
            if claims is not None:
                runs = failed.joined(folder, claims)
            folder.score(*after)
            values = contents(folder, [*runs, *own], failed, self.total_nfe, self.target_reward)
            write_json(self.out / "batch.json", values)
            sheet(self.out / "sheet.png", folder)
        show(values, self.out, after[0])
        failed.show()
        return 1 if failed.reasons else 0


def _alone(claims: Claims | None) -> AbstractContextManager[None]:
    """Where what all have found is written by one process at a time."""
    return nullcontext() if claims is None else claims.alone()


@devices.fitting()
def _job(
    command: Batch, offer: Source, prompts: list[str], size: int | None, seconds: float | None
) -> tuple[Job, int]:
    """The job of some prompts, and the size of a batch; the weights are read here."""
    loaded = offer.load(prompts)
    size = size or loaded.chunk_size or _SIZE
    # Every prompt runs as number 0, as in `flowsde sample`: its place in the list changes nothing.
    cond, ids = as_list([task.cond for task in loaded.tasks], np.arange(len(prompts)))
    told = [task.reward_cond for task in loaded.tasks]
    job = prepare(
        from_seed(command.seed), loaded.flow, offer.search, loaded.reward, cond=cond,
        reward_cond=None if told[0] is None else told, prompt_ids=0 * ids, chunk_size=size,
        target_reward=command.target_reward, nfe=None, seconds=seconds, invalid="error",
        packed=True,
        **devices.spread(command.devices)._asdict(),
        **beginning.read(command.beginning, loaded.flow),
    )  # fmt: skip
    return job, size


def _search(
    command: Batch, offer: Source, folder: Folder, runs: list[dict[str, Any]], failed: Failures,
    claims: Claims | None,
) -> dict[str, Any]:  # fmt: skip
    """Search for all that is missing, under a bar; the entry of this run in batch.json."""
    began = last = time.perf_counter()
    # A shared budget belongs to all prompts, finished ones included.
    numbers = folder.missing if command.total_nfe is None else list(range(len(offer.prompts)))
    left = batch_seconds.left(command.seconds, runs)
    if left is not None and left <= 0.0:
        raise ValueError(f"nothing is left of --seconds {command.seconds:g}; {results.OTHERWISE}")
    texts = [offer.prompts[i] for i in numbers]
    job, size = _job(command, offer, texts, command.batch_size, left)
    engine = Engine(job, size, command.slots)
    ended, total, written = 0, len(offer.prompts), began

    def this_run() -> dict[str, Any]:
        return _entry(engine, ended, time.perf_counter() - began, claims)

    def write() -> None:
        nonlocal written
        with _alone(claims):
            before = runs if claims is None else failed.joined(folder, claims)
            runs_now = [*before, this_run()]
            values = contents(folder, runs_now, failed, command.total_nfe, command.target_reward)
            write_json(command.out / "batch.json", values)
        written = time.perf_counter()

    write()
    done = total - len(folder.missing)
    with progress.bar(total=total, initial=done, bar_format=_BAR) as bar:

        def seen(left: int) -> None:  # others may have finished some
            bar.update(total - left - bar.n)

        bar.set_postfix_str("compiling")
        engine.computed = partial(_show, bar)
        try:
            for i, result, finish in _endings(command, job, engine, folder, numbers, claims, seen):
                now = time.perf_counter()
                why = _unusable(job, result)
                if why is None:
                    finish(now - last)
                    ended += 1
                else:
                    failed.reasons[i] = why
                    if claims is not None:
                        claims.fail(folder.folders[i].name, why)
                last = now
                seen(len(folder.missing) - len(failed.reasons))
                if folder.missing:
                    # After the last prompt there is nothing left to interrupt.
                    interrupts.check()
                if now - written > _EVERY:
                    write()
        finally:
            engine.close()
    for i in folder.missing if command.seconds is not None else ():
        failed.reasons.setdefault(i, batch_seconds.NONE)
    return this_run()


def _entry(engine: Engine, ended: int, seconds: float, claims: Claims | None) -> dict[str, Any]:
    """What batch.json says of a run in which so many prompts have ended."""
    t = engine.totals
    return {
        "prompts": ended,
        "batch_size": engine.size,
        "batches": t.batches,
        "evaluations": t.evaluations,
        "nfe": t.nfe,
        "surplus": t.surplus,
        "padding": t.padding,
        "occupancy": t.occupancy,
        "widths": list(t.widths),
        "seconds": round(seconds, 3),
        "prompts_per_second": ended / seconds,
        **({} if engine.watch is None else {"timing": engine.watch.timing._asdict()}),
        **({} if claims is None else {"worker": claims.id}),
    }


def _show(bar: tqdm, totals: Totals) -> None:
    """Show what the batches so far have computed."""
    rows = totals.evaluations - totals.padding
    # What prompts in flight are charged is known when they end.
    share = f", occupancy {totals.occupancy:.2f}" if totals.prompts else ""
    bar.set_postfix_str(f"{rows:,} evaluations{share}", refresh=False)
    bar.update(0)


def _unusable(job: Job, result: Result) -> str | None:
    """Why a prompt has failed; None if it has not."""
    if np.isneginf(np.float32(result.reward)):
        # Attempts are kept without their x0.
        answers = None if result.x0 is None else (result.x0, result.image)
        return _text.shown(blame(job, np.ones(1, bool), answers), 500)
    if not np.isfinite(np.asarray(result.image)).all():
        return "the model's picture has numbers that are not finite"
    return None


def _endings(
    command: Batch, job: Job, engine: Engine, folder: Folder, numbers: list[int],
    claims: Claims | None, seen: Callable[[int], None],
) -> Iterator[tuple[int, Result, Callable[[float], None]]]:  # fmt: skip
    """Yield each prompt as it ends: number, result, and a function of its seconds to write it."""
    if claims is not None:
        yield from batch_shared.endings(job, engine, folder, numbers, claims, seen)
        return
    if command.total_nfe is None:
        with naming_seconds():
            found = engine.run(prompts_of(job)) if job.seconds is None else timed(job, engine)
            for number, result in found:
                i = numbers[number]
                yield i, result, partial(folder.end, i, result)
        return
    for one in attempts(job, engine, command.total_nfe, folder.known()):
        folder.add(one.prompt, one.result)
        if one.outcome.reward >= job.target:
            yield one.prompt, one.result, partial(folder.end_attempts, one.prompt)
    for i in folder.missing:
        yield i, folder.best(i), partial(folder.end_attempts, i)
