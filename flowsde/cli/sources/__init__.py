"""What a command samples, and the settings that identify a result."""

from typing import Any

from flowsde._checks import check_float
from flowsde._text import shown
from flowsde._version import __version__
from flowsde.cli import beginning
from flowsde.cli.options import Sample
from flowsde.cli.settings import EMBEDDED, as_values
from flowsde.cli.sources.base import Source
from flowsde.cli.sources.shapes import ShapesSource


def source_of(command: Sample) -> Source:
    """The model that is asked for; ValueError or TypeError naming an option that is wrong."""
    source: Source
    beginning.check(command.beginning)
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
    target = command.target_reward
    if target is not None:
        check_float("--target-reward", target)
    return source


def about(command: Sample, source: Source, prompt: str) -> dict[str, Any]:
    """What identifies a prompt's result, as in result.json."""
    settings = as_values(source.settings) | {"target_reward": command.target_reward}
    return {
        "prompt": prompt,
        "method": command.method,
        "seed": command.seed,
        "preset": command.preset,
        "settings": settings | source.named | beginning.named(command.beginning),
        "version": __version__,
    }
