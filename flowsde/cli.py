"""The `flowsde` command: `flowsde sample PROMPT…` and `flowsde train {shapes,scorer}`.

Wrong values end with one line on stderr and exit code 2, before any work. In a result.json,
``seconds`` are of the wall clock: ``total`` of the prompt, ``model`` of the search's rounds after
the first, ``other`` of the rest, mostly compilation in the first round. The reward runs inside
the same compiled program as the model, so that ``verifier`` is null: its time is in ``model``.
"""

import contextlib
import dataclasses
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from tqdm import tqdm

import flowsde as fs
from flowsde import presets, report, shapes
from flowsde.presets import Sample, Settings
from flowsde.search import Result, Search
from flowsde.shapes import captions


class Job(NamedTuple):
    """One prompt, checked and ready to run."""

    prompt: str
    folder: Path
    method: str
    seed: int
    target: float | None
    preset: str
    settings: Settings
    search: Search
    flow: fs.Flow
    rounds: Iterator[Result]


def _parse_prompts(words: Sequence[str]) -> list[str]:
    """One prompt a word, or one prompt of all words if they make one only together."""
    if not words:
        raise ValueError(
            "PROMPT is missing, expected e.g. 'three red circles and two blue squares'"
        )
    errors = []
    for word in words:
        try:
            captions.parse(word)
        except ValueError as error:
            errors.append(error)
    if not errors:
        return list(words)
    if len(errors) < len(words):
        raise errors[0]
    captions.parse(" ".join(words))
    return [" ".join(words)]


def _folders(command: Sample, prompts: list[str]) -> list[Path]:
    """Where each prompt's result goes; none is finished, or may be overwritten."""
    slugs = [captions.caption(captions.parse(p)).replace(" ", "-") for p in prompts]
    for i, slug in enumerate(slugs):
        if slug in slugs[:i]:
            raise ValueError(f"PROMPT {prompts[i]!r} is given twice")
    if command.out is None:
        name = "{}-" + f"{command.method}-seed{command.seed}"
        folders = [Path("flowsde-out") / name.format(slug) for slug in slugs]
    else:
        folders = [command.out / slug if len(slugs) > 1 else command.out for slug in slugs]
    for folder in folders:
        if (folder / "result.json").exists() and not command.overwrite:
            raise ValueError(
                f"{folder} holds a finished result, expected another --out or --overwrite"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out: cannot make folder {folder}: {error.strerror}") from None
    return folders


def prepare(command: Sample) -> list[Job]:
    """Check everything; ValueError or TypeError naming what is wrong."""
    given = {
        f.name: getattr(command, f.name)
        for f in dataclasses.fields(Settings)
        if getattr(command, f.name) is not None
    }
    prompts = _parse_prompts(command.prompt)
    settings = presets.resolve(command.preset, command.method, given)
    search = presets.build(command.method, settings)
    if not 0 <= command.seed < 2**32:
        raise ValueError(f"--seed must be an integer from 0 to 2**32 - 1, got {command.seed}")
    target = command.target_reward
    if target is not None and not math.isfinite(target):
        raise ValueError(f"--target-reward must be a finite number, got {target}")
    folders = _folders(command, prompts)
    flow, reward = shapes.load_flow(), shapes.load_reward(settings.reward)
    if presets.evaluations(settings) > 1:
        flow = fs.flow.guide(flow, settings.guidance, np.zeros(captions.MAX_TOKENS, np.int32))
    # As it runs: the runner divides the budget by what a candidate costs.
    as_run = search.with_nfe(search.nfe // presets.evaluations(settings))
    key = jax.random.key(command.seed)
    return [
        Job(
            prompt, folder, command.method, command.seed, target, command.preset, settings,
            as_run, flow,
            fs.iterate(key, flow, search, reward, cond=shapes.encode(prompt), target_reward=target),
        )
        for prompt, folder in zip(prompts, folders, strict=True)
    ]  # fmt: skip


_BAR = (
    "{desc}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} NFE, "
    "{rate_fmt}, {elapsed}<{remaining}{postfix}"
)


def _search(job: Job) -> tuple[Result, report.Trace, float]:
    """Run a job's rounds under a progress bar; also the seconds of all rounds but the first."""
    trace = report.Trace(job.search, job.flow.decode)
    started, result = time.perf_counter(), None
    with tqdm(total=job.settings.nfe, unit="NFE", bar_format=_BAR, mininterval=0.3) as bar:
        bar.set_postfix_str("compiling")
        for result in job.rounds:
            trace.record(result)
            if len(result.info.charged) == 1:
                # The rate is that of the search, without compilation.
                bar.unpause()
                started = time.perf_counter()
            bar.set_postfix_str(f"best reward {float(result.reward):.3f}", refresh=False)
            bar.update(result.nfe - bar.n)
    assert result is not None
    return result, trace, time.perf_counter() - started


def _run(job: Job) -> None:
    """Search, write the folder, and say what came out."""
    started = time.perf_counter()
    print(f"{job.prompt!r}\n{presets.describe(job.method, job.settings)}", flush=True)
    result, trace, rounds = _search(job)
    image, reward = np.asarray(result.image), float(result.reward)
    title, cost = f"{job.prompt} · {job.method}", job.flow.evaluations
    (job.folder / "result.json").unlink(missing_ok=True)
    report.save_image(job.folder / "image.png", image)
    report.save_figure(job.folder / "path.png", report.path_figure(title, trace.lines, reward))
    figure = report.search_figure(title, job.search, result, cost)
    report.save_figure(job.folder / "search.png", figure)
    heldout = report.judge(job.prompt, image)
    total = time.perf_counter() - started
    seconds = {"total": total, "model": rounds, "verifier": None, "other": total - rounds}
    values = {
        "prompt": job.prompt,
        "method": job.method,
        "seed": job.seed,
        "preset": job.preset,
        "settings": {**dataclasses.asdict(job.settings), "target_reward": job.target},
        "reward": reward,
        "heldout": heldout,
        "nfe": result.nfe,
        "evaluations": result.evaluations,
        "verifier_calls": result.verifier_calls,
        "seconds": {name: value and round(value, 3) for name, value in seconds.items()},
        "version": fs.__version__,
    }
    report.write_json(job.folder / "result.json", values)
    print(f"asked   {captions.caption(captions.parse(job.prompt))}")
    print(f"seen    {report.describe(heldout)}, says the held-out checker")
    print(f"reward  {reward:.4f} for {result.nfe} NFE in {total:.1f} s")
    print(f"folder  {job.folder}", flush=True)


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
    """The command; SystemExit 0 after help, ValueError in one line for what tyro rejects."""
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            if argv[:1] == ["sample"]:
                return tyro.cli(Sample, prog="flowsde sample", args=argv[1:], config=config)
            if argv[:1] == ["train"]:
                from flowsde.shapes.card import Train

                return tyro.cli(Train, prog="flowsde train", args=argv[1:], config=config)
            from flowsde.shapes.card import Train

            commands: dict[str, Callable[..., Any]] = {"sample": Sample, "train": Train}
            description = "Inference-time scaling of flow models. --version prints the version."
            return tyro.extras.subcommand_cli_from_dict(
                commands, prog="flowsde", description=description, args=argv, config=config
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_one_line(errors.getvalue())) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 for wrong values and 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args == ["--version"]:
        print(f"flowsde {fs.__version__}")
        return
    name = f"flowsde {args[0]}" if args[:1] in (["sample"], ["train"]) else "flowsde"
    try:
        try:
            command = _parse(args)
            if not isinstance(command, Sample):
                return command.run()
            jobs = prepare(command)
        except (ValueError, TypeError, OSError) as error:
            print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
            raise SystemExit(2) from None
        for job in jobs:
            _run(job)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
