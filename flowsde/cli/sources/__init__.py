"""What a command is asked for: the model's offer, and the settings that identify a result."""

import dataclasses
from typing import Any

from flowsde._checks import check_float
from flowsde._text import shown
from flowsde._version import __version__
from flowsde.cli.options import Sample
from flowsde.cli.sources.base import Offer
from flowsde.cli.sources.shapes import Embedded


def offered(command: Sample) -> Offer:
    """What the model offers; ValueError or TypeError naming an option that is wrong."""
    offer: Offer
    if command.converted.model is None:
        offer = Embedded(command)
    else:
        # Imported here: the embedded model does without the ports.
        from flowsde.cli.sources.published import Offered

        if command.weights:
            raise ValueError("--weights has no effect with --model, whose are converted")
        offer = Offered(command)
    if not 0 <= command.seed < 2**32:
        raise ValueError(
            f"--seed must be an integer from 0 to 2**32 - 1, got {shown(command.seed)}"
        )
    target = command.target_reward
    if target is not None:
        check_float("--target-reward", target)
    return offer


def about(command: Sample, offer: Offer, prompt: str) -> dict[str, Any]:
    """What a prompt's result is of, as in result.json."""
    settings = dataclasses.asdict(offer.settings) | {"target_reward": command.target_reward}
    return {
        "prompt": prompt,
        "method": command.method,
        "seed": command.seed,
        "preset": command.preset,
        "settings": settings | offer.named,
        "version": __version__,
    }
