"""The `flowsde` command: `sample`, `batch`, `compare`, `train {shapes,scorer}` and `convert`.

Exit codes:

    0     all was done; a picture of the search that could not be drawn is a line on stderr
    1     work that had begun failed, in one line: with the command to go on with where that helps,
          which is not so of a prompt without a finite reward or of a model that gives NaN; the
          prompts after such a one are searched. Or stdout could not be written, see below
    2     wrong values, in one line, before any work
    129, 130, 143   SIGHUP, Ctrl-C, SIGTERM: after the round that is under way, with the command to
          go on with; at a second signal at once (`flowsde.interrupts`)
    141   all was done, and the reader of stdout had gone

A lost stdout or stderr does not end the work, whose results are files: what is left to be printed
is dropped, and the exit code says so at the end. Where a reward outside JAX is still running then,
the process does not wait for it.

What a run keeps to go on with is in `flowsde.unfinished`, what all of them keep of compiled
programs in `flowsde.compiled`.

``result.json`` holds, next to what was asked for, ``nfe``, ``evaluations``, ``backward_passes`` and
``verifier_calls`` as in `flowsde.Result`, and ``seconds`` of the wall clock: ``total`` of the
prompt; ``model`` and ``verifier`` of the search's rounds but the first, which compiles; ``other``
of the rest, compilation included and pictures of the search not. A run that was interrupted has the
sum of its parts.

``trajectory.npz``, for --save-trajectory, holds the fields of `flowsde.search.Info` with a leading
axis of rounds (time, reward, counted, accepted, ancestors, ess, charged, …), and those of
`flowsde.trace.Shot`, with an entry for each accepted particle, as ``particle_line``,
``particle_round``, ``particle_time``, ``particle_reward``, ``particle_nfe``, ``particle_parent``
and ``particle_x0``.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

import flowsde as fs
from flowsde import _own, _streams, compiled, interrupts, presets, report, results, unfinished
from flowsde._failures import EXPECTED, Failed, failed, reason
from flowsde._files import write_arrays, write_json
from flowsde._keys import from_seed
from flowsde._lines import again_with, complain, of_path
from flowsde._text import shown
from flowsde.asked import about, offered
from flowsde.offer import Ask, Offer
from flowsde.options import Sample, check_paths
from flowsde.presets import Settings
from flowsde.rewards import threads
from flowsde.search import Result, Search


class Job(NamedTuple):
    """One prompt, checked and ready to run."""

    folder: Path
    about: dict[str, Any]
    settings: Settings
    search: Search
    flow: fs.Flow
    saved: unfinished.Saved | None
    seen: list[tuple[str, int]]
    rounds: Iterator[Result]
    save_trajectory: bool
    offer: Offer

    @property
    def prompt(self) -> str:
        """As the user wrote it."""
        return self.about["prompt"]


_MODEL = 40
"""Letters of a model's name in that of a folder, which has 255 bytes at most."""


def _folders(command: Sample, offer: Offer) -> list[Path]:
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
    return unfinished.is_done(folder, about, names, command.resume, command.overwrite)


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
    offer = offered(command)
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
    command: Sample, offer: Offer, asked: list[tuple[Path, dict[str, Any]]]
) -> dict[Path, Job]:
    """A job for each folder and what it is about; the weights are read here."""
    if not asked:
        return {}
    # As it runs: the runner divides the budget by what a candidate costs.
    as_run = offer.search.with_nfe(offer.search.nfe // offer.evaluations)
    saved, seen = [], []
    for folder, own in asked:
        seen.append(unfinished.seen(folder))
        state, passed = unfinished.find(folder, own, as_run) if command.resume else (None, [])
        for said in passed:
            print(f"flowsde sample: {said}; going on from what was saved before", file=sys.stderr)
        saved.append(state)
    loaded = offer.load([about["prompt"] for _, about in asked])
    key = from_seed(command.seed)

    def job(
        folder: Path, about: dict[str, Any], saved: unfinished.Saved | None, seen: Any, ask: Ask
    ) -> Job:
        rounds = fs.iterate(
            key, loaded.flow, offer.search, ask.reward, cond=ask.cond,
            chunk_size=loaded.chunk_size, target_reward=command.target_reward,
            resume=saved and saved.result,
        )  # fmt: skip
        options = (offer.settings, as_run, loaded.flow, saved, seen)
        return Job(folder, about, *options, rounds, command.save_trajectory, offer)

    every = zip(asked, saved, seen, loaded.asks, strict=True)
    return {
        folder: job(folder, own, state, found, ask) for (folder, own), state, found, ask in every
    }


_BAR = (
    "{desc}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} NFE, "
    "{rate_fmt}, {elapsed}<{remaining}{postfix}"
)


def _search(job: Job, keeper: unfinished.Keeper) -> Result:
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
            if job.offer.judged:
                bar.set_postfix_str(f"best reward {float(result.reward):.3f}", refresh=False)
            bar.update(result.nfe - bar.n)
    return result


def _write(job: Job, keeper: unfinished.Keeper, result: Result) -> dict[str, Any]:
    """What a search found: the picture, result.json, and what that says."""
    folder, image, offer = job.folder, np.asarray(result.image), job.offer
    (folder / results.RESULT).unlink(missing_ok=True)
    offer.save(folder / "image.png", image)
    if job.save_trajectory:
        particles = {f"particle_{name}": a for name, a in keeper.trace.arrays().items()}
        write_arrays(folder / _TRAJECTORY, result.info._asdict() | particles)
    values = {
        **job.about,
        "reward": float(result.reward) if offer.judged else None,
        **offer.heldout(job.prompt, image),
        "nfe": result.nfe,
        "evaluations": result.evaluations,
        "backward_passes": result.backward_passes,
        "verifier_calls": result.verifier_calls if offer.judged else 0,
        "seconds": keeper.seconds(),
    }
    write_json(folder / results.RESULT, values)
    interrupts.check()
    return values


def _draw(job: Job, keeper: unfinished.Keeper, result: Result) -> None:
    """Pictures of a search by a reward."""
    if not job.offer.judged:
        return
    # Imported here: Matplotlib takes half of what importing takes.
    from flowsde import plots

    title = f"{shown(job.prompt, 100)} · {job.about['method']}"
    thumbnails = job.offer.thumbnails(job.flow)
    drawn = {
        "path.png": lambda: plots.path_figure(title, keeper.trace, result, thumbnails),
        "search.png": lambda: plots.search_figure(title, job.search, result, job.flow.evaluations),
    }
    for name, figure in drawn.items():
        report.try_to_draw("flowsde sample", job.folder / name, figure)
        interrupts.check()


def _begin(job: Job, hidden: Path, resume: bool) -> unfinished.Keeper:
    """Say what is run, and from where."""
    settings = presets.describe(job.about["method"], job.settings, job.offer.named)
    print(f"'{shown(job.prompt)}'\n{shown(settings, 2000)}")
    keeper = unfinished.Keeper(hidden, job.about, job.search, job.flow.evaluations, job.saved)
    if job.saved is not None:
        print(f"resume  at {keeper.nfe} of {job.settings.nfe} NFE")
    elif resume:
        print(f"resume  nothing was saved in {_path(job.folder)}: from the beginning")
    sys.stdout.flush()
    return keeper


def _ended(job: Job, keeper: unfinished.Keeper, error: BaseException, go_on: str) -> BaseException:
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


def _run(job: Job, resume: bool, again: str) -> None:
    """Search, write the folder, and say what came out; `again` is the command to go on with."""
    go_on = f"go on with: {again}"
    with contextlib.ExitStack() as held:
        try:
            hidden = held.enter_context(_own.locked(job.folder))
            if unfinished.seen(job.folder) != job.seen:
                raise ValueError(f"another process has been at work in {_path(job.folder)}")
            keeper = _begin(job, hidden, resume)
        except (OSError, ValueError) as error:
            raise Failed(f"{reason(error)}; {go_on}") from error
        try:
            result = _search(job, keeper)
            values = _write(job, keeper, result)
            _draw(job, keeper, result)
            _own.release(job.folder)
        except BaseException as error:
            raise _ended(job, keeper, error, go_on) from None
    for line in job.offer.said(values):
        print(line)
    spent = f"{values['nfe']} NFE in {values['seconds']['total']:.1f} s"
    print(f"reward  {values['reward']:.4f} for {spent}" if job.offer.judged else f"spent   {spent}")
    print(f"folder  {_path(job.folder)}", flush=True)


def _path(path: Path) -> str:
    """To be printed, whatever is in its name."""
    return shown(path, 4096)


def _run_all(jobs: list[tuple[Path, Job | None]], resume: bool, again: str) -> int:
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
            _run(job, resume, again)
        except Failed as failure:
            # The others may yet be found, unless it is what they share.
            if not failure.for_good:
                raise
            complain("flowsde sample", str(failure))
            code = 1
    return code


def _one_line(box: str) -> str:
    """The message inside a box of tyro's, drawn in Unicode or in ASCII: up to its first rule."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    lines = [line for line in lines if line]
    framed = box.startswith("╭")
    body = lines[1 if framed else 2 :]
    rules = [i for i, line in enumerate(body) if set(line) <= {"─", "-"}]
    message = " ".join(body[: rules[0] if rules else None])
    return message.removeprefix("Error parsing ")


def _parse(argv: list[str]) -> Any:
    """The command; SystemExit after help, ValueError in one line for what tyro rejects."""
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            if argv[:1] == ["sample"]:
                return tyro.cli(Sample, prog="flowsde sample", args=argv[1:], config=config)
            from flowsde.compare.command import Compare
            from flowsde.packing.command import Batch
            from flowsde.shapes.card import Train
            from flowsde_converters.command import Convert

            commands: dict[str, Callable[..., Any]]
            commands = {
                "sample": Sample,
                "batch": Batch,
                "compare": Compare,
                "train": Train,
                "convert": Convert,
            }
            if argv and argv[0] in commands:
                name = f"flowsde {argv[0]}"
                return tyro.cli(commands[argv[0]], prog=name, args=argv[1:], config=config)
            description = "Inference-time scaling of flow models. --version prints the version."
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog="flowsde", description=description, args=argv, config=config
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_one_line(errors.getvalue())) from None


def _name(args: list[str]) -> str:
    named = args[:1] in (["sample"], ["batch"], ["compare"], ["train"], ["convert"])
    return f"flowsde {args[0]}" if named else "flowsde"


def _do(args: list[str]) -> int:
    """Parse, prepare and run; the exit code."""
    name = _name(args)
    # What is wrong with a checkpoint is a list.
    between = "\n  " if args[:1] == ["convert"] else " "
    try:
        try:
            command = _parse(args)
            check_paths(command)
            interrupts.check()
            compiled.keep()
            if not isinstance(command, Sample):
                code = command.run() or 0
                interrupts.check()
                return code
            jobs = prepare(command)
        except OSError as error:
            complain(name, of_path(args, error), between)
            return 2
        except (ValueError, TypeError, ImportError) as error:
            complain(name, str(error), between)
            return 2
        code = _run_all(jobs, command.resume, again_with(args))
        interrupts.check()
        return code
    except Failed as failure:
        complain(name, str(failure))
        return 1
    except KeyboardInterrupt as stop:
        said = str(stop) or "interrupted"
        if args[:1] == ["convert"]:
            said += "; nothing was written"
        elif args and "go on with" not in said:
            said += f"; go on with: {again_with(args)}"
        print(f"\n{name}: {said}", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)


def _leave(code: int) -> None:
    """End the process."""
    for number in interrupts.SIGNALS:
        if signal.getsignal(number) is signal.default_int_handler:
            # There is nothing left to tidy up.
            signal.signal(number, signal.SIG_DFL)
    if threads.given_up():
        # A thread that is in JAX when the interpreter goes away aborts the process.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with the codes above.

    Args:
      argv: arguments; those of the process, which then ends here, by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _streams.keep_numbers()
    helped = False
    with _streams.guarded() as (out, err), interrupts.handling():
        if args == ["--version"]:
            print(f"flowsde {fs.__version__}")
            code = 0
        else:
            try:
                code = _do(args)
            except SystemExit:
                code, helped = 0, True
        out.flush()
        if out.error is not None and out.code == 1:
            complain(_name(args), f"stdout cannot be written: {reason(out.error)}")
        err.flush()
    code = code or out.code
    if argv is None:
        _leave(code)
    if code or helped:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
