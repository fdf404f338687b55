"""`flowsde sample`: what it does, and what it writes for each prompt.

``result.json`` holds, next to what was asked for, ``nfe``, ``evaluations``, ``backward_passes`` and
``verifier_calls`` as in `flowsde.Result`, and ``seconds`` of the wall clock: ``total`` of the
prompt; ``model`` and ``verifier`` of the search's rounds but the first, which compiles; ``other``
of the rest, compilation included and pictures of the search not. A run that was interrupted has the
sum of its parts.

``trajectory.npz``, for --save-trajectory, holds the fields of `flowsde.search.Info` with a leading
axis of rounds (time, reward, counted, accepted, ancestors, ess, charged, …), and those of
`flowsde.cli.lineage.Shot`, with an entry for each accepted particle, as ``particle_line``,
``particle_round``, ``particle_time``, ``particle_reward``, ``particle_nfe``, ``particle_parent``
and ``particle_x0``.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import flowsde as fs
from flowsde import _own, interrupts
from flowsde._files import write_arrays, write_json
from flowsde._keys import from_seed
from flowsde._text import shown
from flowsde.cli import pictures, presets, results, resume
from flowsde.cli.failures import EXPECTED, Failed, failed, reason
from flowsde.cli.lines import complain
from flowsde.cli.options import Sample
from flowsde.cli.settings import Settings
from flowsde.cli.sources import about, source_of
from flowsde.cli.sources.base import PromptTask, Source
from flowsde.runner.result import Result
from flowsde.search import Search


class Job(NamedTuple):
    """One prompt, checked and ready to run."""

    folder: Path
    about: dict[str, Any]
    settings: Settings
    search: Search
    flow: fs.Flow
    saved: resume.Saved | None
    seen: list[tuple[str, int]]
    rounds: Iterator[Result]
    save_trajectory: bool
    offer: Source

    @property
    def prompt(self) -> str:
        """As the user wrote it."""
        return self.about["prompt"]


_MODEL = 40
"""Letters of a model's name in that of a folder, which has 255 bytes at most."""


def _folders(command: Sample, offer: Source) -> list[Path]:
    """Where each prompt's result goes."""
    slugs = [offer.slug(prompt) for prompt in offer.prompts]
    if command.out is None:
        model = command.converted.model
        first = "" if model is None else f"{model.resolve().name[:_MODEL]}-"
        rest = f"-{command.method}-seed{command.seed}"
        return [Path("flowsde-out") / f"{first}{slug}{rest}" for slug in slugs]
    alone = len(slugs) == 1 and command.prompts_file is None
    return [command.out if alone else command.out / slug for slug in slugs]


_PICTURES, _TRAJECTORY = ("image.png", "path.png", "search.png"), "trajectory.npz"


def _is_finished(command: Sample, folder: Path, about: dict[str, Any]) -> bool:
    """Whether there is nothing to do; ValueError if there is what may not be overwritten."""
    names = [*_PICTURES, results.RESULT, *[_TRAJECTORY] * command.save_trajectory]
    return resume.is_done(folder, about, names, command.resume, command.overwrite)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: cannot make folder {shown(folder)}: {error.strerror}") from None


def prepare(command: Sample) -> list[tuple[Path, Job | None]]:
    """Check everything; ValueError or TypeError naming what is wrong.

    Returns:
      The folder of each prompt, with None if its result is there already.
    """
    offer = source_of(command)
    folders = _folders(command, offer)
    abouts = [about(command, offer, prompt) for prompt in offer.prompts]
    done = [_is_finished(command, *both) for both in zip(folders, abouts, strict=True)]
    for folder in [] if all(done) else folders:
        _make(folder)
    every = zip(folders, abouts, done, strict=True)
    jobs = _jobs(
        command, offer, [(folder, about) for folder, about, is_done in every if not is_done]
    )
    return [(folder, jobs.get(folder)) for folder in folders]


def _jobs(
    command: Sample, offer: Source, asked: list[tuple[Path, dict[str, Any]]]
) -> dict[Path, Job]:
    """A job for each folder and what it is about; the weights are read here."""
    if not asked:
        return {}
    # As it runs: the runner divides the budget by what a candidate costs.
    as_run = offer.search.with_nfe(offer.search.nfe // offer.evaluations)
    saved, seen = [], []
    for folder, own in asked:
        seen.append(resume.seen(folder))
        state, passed = resume.find(folder, own, as_run) if command.resume else (None, [])
        for said in passed:
            print(f"flowsde sample: {said}; going on from what was saved before", file=sys.stderr)
        saved.append(state)
    loaded = offer.load([about["prompt"] for _, about in asked])
    key = from_seed(command.seed)

    def job(
        folder: Path, about: dict[str, Any], saved: resume.Saved | None, seen: Any, task: PromptTask
    ) -> Job:
        rounds = fs.iterate(
            key, loaded.flow, offer.search, loaded.reward, cond=task.cond,
            reward_cond=task.reward_cond,
            chunk_size=loaded.chunk_size, target_reward=command.target_reward,
            resume=saved and saved.result,
        )  # fmt: skip
        options = (offer.settings, as_run, loaded.flow, saved, seen)
        return Job(folder, about, *options, rounds, command.save_trajectory, offer)

    every = zip(asked, saved, seen, loaded.tasks, strict=True)
    return {
        folder: job(folder, own, state, found, task) for (folder, own), state, found, task in every
    }


_BAR = (
    "{desc}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} NFE, "
    "{rate_fmt}, {elapsed}<{remaining}{postfix}"
)


def _search(job: Job, keeper: resume.Keeper) -> Result:
    """Run a job's rounds under a progress bar."""
    first = True
    with tqdm(
        total=job.settings.nfe, initial=keeper.nfe, unit="NFE", bar_format=_BAR, mininterval=0.3
    ) as bar:
        bar.set_postfix_str("compiling")
        for result in job.rounds:
            keeper.record(result)
            interrupts.check()
            if first:
                # The rate is that of the search, without compilation.
                bar.unpause()
                first = False
            if job.offer.has_reward:
                bar.set_postfix_str(f"best reward {float(result.reward):.3f}", refresh=False)
            bar.update(result.nfe - bar.n)
    return result


def _write(job: Job, keeper: resume.Keeper, result: Result) -> dict[str, Any]:
    """What a search found: the picture, result.json, and what that says."""
    folder, image, offer = job.folder, np.asarray(result.image), job.offer
    (folder / results.RESULT).unlink(missing_ok=True)
    offer.save(folder / "image.png", image)
    if job.save_trajectory:
        particles = {f"particle_{name}": a for name, a in keeper.trace.arrays().items()}
        write_arrays(folder / _TRAJECTORY, result.info._asdict() | particles)
    values = {
        **job.about,
        "reward": float(result.reward) if offer.has_reward else None,
        **offer.heldout(job.prompt, image),
        "nfe": result.nfe,
        "evaluations": result.evaluations,
        "backward_passes": result.backward_passes,
        "verifier_calls": result.verifier_calls if offer.has_reward else 0,
        "seconds": keeper.seconds(),
    }
    write_json(folder / results.RESULT, values)
    interrupts.check()
    return values


def _draw(job: Job, keeper: resume.Keeper, result: Result) -> None:
    """Pictures of a search by a reward."""
    if not job.offer.has_reward:
        return
    # Imported here: Matplotlib takes half of what importing takes.
    from flowsde.cli import plots

    title = f"{shown(job.prompt, 100)} · {job.about['method']}"
    thumbnails = job.offer.thumbnails(job.flow)
    drawn = {
        "path.png": lambda: plots.path_figure(title, keeper.trace, result, thumbnails),
        "search.png": lambda: plots.search_figure(title, job.search, result, job.flow.evaluations),
    }
    for name, figure in drawn.items():
        pictures.try_to_draw("flowsde sample", job.folder / name, figure)
        interrupts.check()


def _begin(job: Job, hidden: Path, resumed: bool) -> resume.Keeper:
    """Say what is run, and from where."""
    settings = presets.describe(job.about["method"], job.settings, job.offer.named)
    print(f"'{shown(job.prompt)}'\n{shown(settings, 2000)}")
    keeper = resume.Keeper(hidden, job.about, job.search, job.flow.evaluations, job.saved)
    if job.saved is not None:
        print(f"resume  at {keeper.nfe} of {job.settings.nfe} NFE")
    elif resumed:
        print(f"resume  nothing was saved in {_path(job.folder)}: from the beginning")
    sys.stdout.flush()
    return keeper


def _ended(job: Job, keeper: resume.Keeper, error: BaseException, go_on: str) -> BaseException:
    """What is raised for what ended a search: how far it was, and how to go on."""
    at = f"at {keeper.nfe} of {job.settings.nfe} NFE"
    try:
        keeper.save()
    except EXPECTED as second:
        go_on += f"; its state could not be saved: {reason(second)}"
    if isinstance(error, KeyboardInterrupt):
        return interrupts.said_of(error, f"interrupted {at}; {go_on}")
    if isinstance(error, EXPECTED):
        return failed(f"'{shown(job.prompt)}': failed {at}", error, go_on)
    error.add_note(f"flowsde sample: failed {at}; {go_on}")
    return error


def _run(job: Job, resumed: bool, again: str) -> None:
    """Search, write the folder, and say what came out; `again` is the command to go on with."""
    go_on = f"go on with: {again}"
    with contextlib.ExitStack() as held:
        try:
            hidden = held.enter_context(_own.locked(job.folder))
            if resume.seen(job.folder) != job.seen:
                raise ValueError(f"another process has been at work in {_path(job.folder)}")
            keeper = _begin(job, hidden, resumed)
        except (OSError, ValueError) as error:
            raise Failed(f"{reason(error)}; {go_on}") from error
        try:
            result = _search(job, keeper)
            values = _write(job, keeper, result)
            _draw(job, keeper, result)
            _own.release(job.folder)
        except BaseException as error:
            raise _ended(job, keeper, error, go_on) from None
    for line in job.offer.report(values):
        print(line)
    spent = f"{values['nfe']} NFE in {values['seconds']['total']:.1f} s"
    print(
        f"reward  {values['reward']:.4f} for {spent}"
        if job.offer.has_reward
        else f"spent   {spent}"
    )
    print(f"folder  {_path(job.folder)}", flush=True)


def _path(path: Path) -> str:
    """To be printed, whatever is in its name."""
    return shown(path, 4096)


def run_all(jobs: list[tuple[Path, Job | None]], resumed: bool, again: str) -> int:
    """Run what is not finished; the exit code."""
    code = 0
    for i, (folder, job) in enumerate(jobs, 1):
        if len(jobs) > 1:
            print(f"prompt {i} of {len(jobs)}", flush=True)
        interrupts.check()
        if job is None:
            _own.tidy(folder)
            print(f"flowsde sample: {_path(folder)} is finished", flush=True)
            continue
        try:
            _run(job, resumed, again)
        except Failed as failure:
            # The others may yet be found, unless it is what they share.
            if not failure.for_good:
                raise
            complain("flowsde sample", str(failure))
            code = 1
    return code
