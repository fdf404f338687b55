"""What a command samples, and the settings that identify a result."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from flowsde._checks import check_count, check_float, check_positive
from flowsde._text import shown
from flowsde._version import __version__
from flowsde.cli import beginning
from flowsde.cli.options import Sample
from flowsde.cli.settings import EMBEDDED, TRAJECTORIES, as_values
from flowsde.cli.sources.base import Source
from flowsde.cli.sources.shapes import ShapesSource
from flowsde.runner.deadline import TooFewSeconds
from flowsde.search import keep

_MOST_KEPT = 1000
"""Pictures of a prompt."""


def source_of(command: Sample) -> Source:
    """The model that is asked for; ValueError or TypeError naming an option that is wrong."""
    source: Source
    beginning.check(command.beginning)
    if command.seconds is not None:
        check_seconds(command.seconds, [command.method])
    model = command.converted.model
    if model is None or str(model) in EMBEDDED:
        source = ShapesSource(command)
    else:
        # Imported here: the embedded model does without the ports.
        from flowsde.cli.sources.published import PublishedSource

        if command.weights:
            raise ValueError("--weights has no effect with --model, whose are converted")
        if command.task != "counts":
            raise ValueError(f"--task has no effect with --model, got {command.task}")
        source = PublishedSource(command)
    if not 0 <= command.seed < 2**32:
        raise ValueError(
            f"--seed must be an integer from 0 to 2**32 - 1, got {shown(command.seed)}"
        )
    if command.keep is not None:
        _keep(source, command)
    if command.seconds is not None:
        source.named["seconds"] = command.seconds
    target = command.target_reward
    if target is not None:
        check_float("--target-reward", target)
    return source


def check_seconds(seconds: float, methods: Sequence[str]) -> None:
    """ValueError naming the option, unless it is a budget, and of some of these methods."""
    check_positive("--seconds", seconds)
    if all(method in TRAJECTORIES for method in methods):
        raise ValueError(
            f"--seconds has no effect with method {' and '.join(methods)}, which takes one "
            f"trajectory, got {seconds:g}"
        )


@contextlib.contextmanager
def naming_seconds(prompts: int = 1) -> Iterator[None]:
    """What is said of too few seconds is said of the option, which is of one of some prompts."""
    try:
        yield
    except TooFewSeconds as error:
        least = error.least / prompts
        raise ValueError(f"--seconds must be at least {least:.3g}: {error.why}") from error


def _keep(source: Source, command: Sample) -> None:
    """Have the search remember so many answers; ValueError naming the option."""
    k = check_count("--keep", command.keep, most=_MOST_KEPT)
    if command.method in TRAJECTORIES:
        raise ValueError(
            f"--keep has no effect with method {command.method}, which comes to one picture, got "
            f"{k}"
        )
    if k > 1:
        source.search = keep(source.search, k)
        source.named["keep"] = k


def about(command: Sample, source: Source, prompt: str) -> dict[str, Any]:
    """What identifies a prompt's result, as in result.json."""
    settings = as_values(source.settings) | {"target_reward": command.target_reward}
    return {
        "prompt": prompt,
        "method": command.method,
        "seed": command.seed,
        "preset": command.preset,
        "settings": settings
        | source.named
        | source.named_of(prompt)
        | beginning.named(command.beginning),
        "version": __version__,
    }
