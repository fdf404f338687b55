"""`flowsde sample`: what it does, and what it writes for each prompt.

``result.json`` holds, next to what the run is of, ``nfe``, ``evaluations``, ``backward_passes`` and
``verifier_calls`` as in `flowsde.Result`, and ``seconds`` of the wall clock: ``total`` for the
prompt; ``model`` and ``verifier`` for the search's rounds but the first, which compiles; ``other``
for the rest, compilation included, plots of the search not. A run that was resumed has the sums
over its parts.

Of a search with --seconds, ``timing`` has `flowsde.runner.clock.Timing`, with the ``nfe`` that they
were turned into.

With --keep K the next best pictures are ``image-2.png`` and so on; ``kept`` lists all, each with
its ``image``, its ``reward``, and its ``heldout`` verdict where there is one. ``sheet.png`` shows
them with what they are worth.

Of methods that weigh particles, smc and psi, ``weighted_sample`` is what the run ended with before
any finishing: ``time``, the last that was reached; ``log_weights`` (normalised) and ``rewards`` of
the particles that have a weight; ``ess``, their effective sample size; ``log_z``, null of psi,
which has none. The result and each of ``kept`` have the ``log_weight`` of their own particle, null
where finishing led to the picture.

Of a model of videos ``image.png`` is the first frame of the file that ``video`` names, and
``frames.png`` has some frames of the answer, below those of steps that led to it.

``trajectory.npz``, for --save-trajectory, holds the fields of `flowsde.search.Info` with a leading
axis of rounds (time, reward, counted, accepted, ancestors, ess, charged, …), and those of
`flowsde.cli.lineage.Shot`, with an entry for each accepted particle, as ``particle_line``,
``particle_round``, ``particle_time``, ``particle_reward``, ``particle_nfe``, ``particle_parent``
and ``particle_x0``.
"""

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flowsde as fs
from flowsde import _own, interrupts
from flowsde._files import write_arrays
from flowsde._keys import from_seed
from flowsde._text import shown
from flowsde.cli import beginning, devices, drawings, finals, presets, progress, results, resume
from flowsde.cli.errors import CommandError
from flowsde.cli.failures import EXPECTED, failed, reason
from flowsde.cli.heldout import Heldout, heldout_of
from flowsde.cli.lines import complain
from flowsde.cli.options import Sample
from flowsde.cli.settings import Settings
from flowsde.cli.sources import about, naming_seconds, source_of
from flowsde.cli.sources.base import Source
from flowsde.runner.records import Program
from flowsde.runner.result import Result
from flowsde.search import Search
from flowsde.search.smc import weights_of


class PromptRun(NamedTuple):
    """One prompt, checked and ready to run.

    Attributes:
      folder: of its results.
      about: what the run is of, as in result.json.
      settings, search, flow, offer: of the run.
      unfinished: whether the folder held an unfinished run of it.
      saved: the state to resume; None to start at 0 NFE.
      seen: state of the folder when it was read.
      rounds: the search's results, round by round.
      save_trajectory: whether to write trajectory.npz.
    """

    folder: Path
    about: dict[str, Any]
    settings: Settings
    search: Search
    flow: fs.Flow
    unfinished: bool
    saved: resume.SavedRun | None
    seen: list[tuple[str, int]]
    rounds: Iterator[Result]
    save_trajectory: bool
    offer: Source

    @property
    def prompt(self) -> str:
        """As the user wrote it."""
        return self.about["prompt"]


_MODEL = 40
"""Most letters of a model's name in a folder's name, which has 255 bytes at most."""


def _folders(command: Sample, offer: Source) -> list[Path]:
    """The folder of each prompt's results."""
    slugs = [offer.slug(prompt) for prompt in offer.prompts]
    if command.out is None:
        model = command.converted.model
        first = "" if model is None else f"{model.resolve().name[:_MODEL]}-"
        rest = f"-{command.method}-seed{command.seed}"
        return [Path("flowsde-out") / f"{first}{slug}{rest}" for slug in slugs]
    alone = len(slugs) == 1 and command.prompts_file is None
    return [command.out if alone else command.out / slug for slug in slugs]


_TRAJECTORY = "trajectory.npz"


class Prepared(NamedTuple):
    """The folder of each prompt, with None if its result is complete; and what looks at results."""

    runs: list[tuple[Path, PromptRun | None]]
    heldout: Heldout
    finals: finals.Finals


def prepare(command: Sample) -> Prepared:
    """Check everything, read the weights, and discard what --overwrite is given for.

    Raises:
      ValueError, TypeError: naming what is wrong; nothing is lost.
    """
    devices.spread(command.devices, single=True)
    offer = source_of(command)
    rewards, chosen = heldout_of(command, offer), finals.of(command, offer)
    folders = _folders(command, offer)
    abouts = [about(command, offer, prompt) for prompt in offer.prompts]
    each = zip(folders, abouts, strict=True)
    wanted = [both for both in each if not _is_complete(command, offer, *both)]
    done = {*folders} - {folder for folder, _ in wanted}
    rewards.check(done)
    chosen.announce(len(wanted) + len(chosen.lacking([*done])))
    for folder in folders if wanted else []:
        results.make(folder)
    for note in devices.idle(command.devices, "particle") if wanted else []:
        print(f"note    {note}", flush=True)
    runs = _runs(command, offer, wanted)
    return Prepared([(folder, runs.get(folder)) for folder in folders], rewards, chosen)


def _is_complete(command: Sample, offer: Source, folder: Path, about: dict[str, Any]) -> bool:
    """As `resume.is_complete`, trajectory included."""
    names = [*results.files(offer, command.keep or 1), *drawings.names(offer)]
    names += [results.RESULT, *[_TRAJECTORY] * command.save_trajectory]
    complete = resume.is_complete(folder, about, names, command.overwrite)
    if complete and command.save_trajectory and not (folder / _TRAJECTORY).exists():
        raise ValueError(f"the finished run in {folder} has no {_TRAJECTORY}; {results.OTHERWISE}")
    return complete


@devices.fitting()
def _runs(
    command: Sample, offer: Source, wanted: list[tuple[Path, dict[str, Any]]]
) -> dict[Path, PromptRun]:
    """A run for each folder and what it is of."""
    if not wanted:
        return {}
    # As it runs: the runner divides the budget by what a candidate costs.
    as_run = Program.of(offer.search, offer.evaluations).search
    unfinished = {f: resume.is_unfinished(f) and not command.overwrite for f, _ in wanted}
    seen = {folder: resume.seen(folder) for folder, _ in wanted}
    saved = {f: _saved(f, own, as_run) if unfinished[f] else None for f, own in wanted}
    loaded = offer.load([own["prompt"] for _, own in wanted])
    key, runs = from_seed(command.seed), {}
    given = beginning.read(command.beginning, loaded.flow)
    given |= devices.spread(command.devices)._asdict()
    for (folder, own), task in zip(wanted, loaded.tasks, strict=True):
        before = saved[folder]
        rounds = fs.iterate(
            key, loaded.flow, offer.search, loaded.reward, cond=task.cond,
            reward_cond=task.reward_cond,
            chunk_size=loaded.chunk_size, target_reward=command.target_reward,
            resume=before and before.result, seconds=command.seconds, **given,
        )  # fmt: skip
        runs[folder] = PromptRun(
            folder, own, offer.settings, as_run, loaded.flow, unfinished[folder], before,
            seen[folder], rounds, command.save_trajectory, offer,
        )  # fmt: skip
    if command.overwrite:
        # Last of all: now nothing can be wrong any more.
        _discard(wanted, seen)
        runs = {folder: run._replace(seen=resume.seen(folder)) for folder, run in runs.items()}
    return runs


def _saved(folder: Path, about: dict[str, Any], search: Search) -> resume.SavedRun | None:
    """The state to resume in a folder; those that are damaged are named on stderr."""
    saved, damaged = resume.find(folder, about, search)
    instead = "starting over" if saved is None else "resuming from the save before it"
    for problem in damaged:
        print(f"flowsde sample: {problem}; {instead}", file=sys.stderr)
    return saved


def _discard(wanted: list[tuple[Path, dict[str, Any]]], seen: dict[Path, Any]) -> None:
    """Discard what the folders hold; what that is, is said first."""
    for folder, _ in wanted:
        if held := resume.held(folder):
            print(f"discard {held}", flush=True)
    for folder, own in wanted:
        resume.discard(folder, own, seen[folder])


_BAR = (
    "{desc}{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} NFE, "
    "{rate_fmt}, {elapsed}<{remaining}{postfix}"
)


_COMPILES = 1.0
"""Seconds after which a search that has not begun is compiling."""


def _search(run: PromptRun, recorder: resume.RunRecorder) -> Result:
    """Run the rounds under a progress bar."""
    first = True
    if run.offer.has_reward:
        # While XLA compiles. What has been compiled is read in less, without a core to spare; then
        # Matplotlib is imported beside the search, which leaves more of the interpreter to it.
        drawings.begin(after=_COMPILES)
    with progress.bar(
        total=run.settings.nfe, initial=recorder.nfe, unit="NFE", bar_format=_BAR
    ) as bar:
        bar.set_postfix_str("compiling")
        for result in run.rounds:
            recorder.record(result)
            interrupts.check()
            if first:
                # The rate is that of the search, without compilation.
                bar.unpause()
                bar.set_postfix_str("", refresh=False)
                if run.offer.has_reward:
                    drawings.begin()
                first = False
            if result.timing is not None:
                bar.total = result.timing.nfe
            if run.offer.has_reward:
                # That of the search's present x0, no record: it may fall from step to step.
                now = float(result.reward)
                said = f"current reward {now:.3f}" if math.isfinite(now) else "no reward yet"
                bar.set_postfix_str(said, refresh=False)
            bar.update(result.nfe - bar.n)
    return result


def _write(run: PromptRun, recorder: resume.RunRecorder, result: Result) -> dict[str, Any]:
    """Write what a search found; the contents of result.json."""
    if run.save_trajectory:
        particles = {f"particle_{name}": a for name, a in recorder.trace.arrays().items()}
        info = {name: a for name, a in result.info._asdict().items() if a is not None}
        parts = {f"part_{name}": a for name, a in info.pop("parts", {}).items()}
        write_arrays(run.folder / _TRAJECTORY, info | parts | particles)
    result = result._replace(weights=weights_of(run.search, result.state))
    values = results.write(run.folder, run.offer, run.about, result, recorder.seconds())
    interrupts.check()
    return values


def _budget(run: PromptRun, recorder: resume.RunRecorder) -> int:
    """Model evaluations; of seconds, those that they were turned into."""
    timing = recorder.result and recorder.result.timing
    return run.settings.nfe if timing is None else timing.nfe


def _begin(run: PromptRun, hidden: Path) -> resume.RunRecorder:
    """Say what is run, and from where."""
    settings = presets.describe(run.about["method"], run.settings, run.offer.named)
    print(f"'{shown(run.prompt)}'\n{shown(settings, 2000)}")
    recorder = resume.RunRecorder(hidden, run.about, run.search, run.saved)
    if run.saved is not None:
        print(f"resume  at {recorder.nfe} of {_budget(run, recorder)} NFE")
    elif run.unfinished:
        print(f"resume  no saved state in {_path(run.folder)}; starting over")
    sys.stdout.flush()
    return recorder


def _ended(run: PromptRun, recorder: resume.RunRecorder, error: BaseException) -> BaseException:
    """What to raise for what ended a search: it says how far that was."""
    at = f"at {recorder.nfe} of {_budget(run, recorder)} NFE"
    try:
        recorder.save()
    except EXPECTED as second:
        at += f"; its state could not be saved ({reason(second)})"
    if isinstance(error, KeyboardInterrupt):
        return interrupts.said_of(error, f"interrupted {at}")
    if isinstance(error, EXPECTED):
        return failed(f"'{shown(run.prompt)}' stopped {at}", error)
    error.add_note(f"flowsde sample: stopped {at}; the same command resumes")
    return error


def _run(run: PromptRun) -> None:
    """Search, write the folder, and say what was found."""
    with contextlib.ExitStack() as held:
        try:
            hidden = held.enter_context(_own.locked(run.folder))
            resume.check_unseen(run.folder, run.seen)
            recorder = _begin(run, hidden)
        except (OSError, ValueError) as error:
            raise CommandError(reason(error)) from error
        try:
            with naming_seconds():
                result = _search(run, recorder)
            values = _write(run, recorder, result)
            drawings.draw(run, recorder.trace, result, values)
            _own.release(run.folder)
        except BaseException as error:
            raise _ended(run, recorder, error) from None
    for line in run.offer.report(values):
        print(line)
    spent = f"{values['nfe']} NFE in {values['seconds']['total']:.1f} s"
    print(
        f"reward  {values['reward']:.4f} for {spent}"
        if run.offer.has_reward
        else f"spent   {spent}"
    )
    asked, found = run.about["settings"].get("keep", 1), len(values.get("kept", [None]))
    if asked > found:
        print(f"kept    {found} of {asked}: the search came to no more different pictures")
    if (weighted := values.get("weighted_sample")) is not None:
        print(f"weights {results.said_of_weights(weighted)}")
    if result.timing is not None:
        print(f"seconds {results.said(result.timing, run.settings.nfe)}")
    print(f"folder  {_path(run.folder)}", flush=True)


def _path(path: Path) -> str:
    """A path, safe to print."""
    return shown(path, 4096)


def run_all(prepared: Prepared) -> int:
    """Run what is incomplete, and score all results; the exit code.

    Raises:
      CommandError, Interrupted: the work failed, or a signal came.
    """
    code, runs = 0, prepared.runs
    for i, (folder, run) in enumerate(runs, 1):
        interrupts.check()
        if len(runs) > 1:
            print(f"prompt {i} of {len(runs)}", flush=True)
        if run is None:
            _own.tidy(folder)
            print(f"flowsde sample: {_path(folder)} is already complete", flush=True)
            continue
        try:
            _run(run)
        except CommandError as error:
            # The others may yet be found, unless it is what they share.
            if not error.permanent:
                raise
            complain("flowsde sample", str(error))
            code = 1
    for scored in (prepared.heldout, prepared.finals):
        scored.report([folder for folder, _ in runs])
    return code
