"""Ports measured alone: their rows take the place of a file's, and all others stay."""

import dataclasses
import json
import os
import pathlib
import platform
from collections.abc import Collection
from typing import Any

import transformers
from _ports_pairs import BATCH

import flowsde as fs

VERSIONS = {"transformers": transformers.__version__, "python": platform.python_version()}


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds of the ports against those of PyTorch's classes.

    Attributes:
      quick: fewer blocks and repetitions, done in 45 seconds on two cores.
      json: where to write the results.
    """

    quick: bool = False
    json: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Some(Args):
    """Seconds of some of them.

    Attributes:
      only: names of models; all unless given.
    """

    only: tuple[str, ...] = ()


def how(repetitions: int, blocks: int) -> dict[str, Any]:
    """What all rows of a file have in common."""
    return {
        "version": fs.__version__,
        "cores": os.cpu_count(),
        "settings": {"batch": BATCH, "repetitions": repetitions, "blocks": blocks},
    }


def others_of(args: Some, names: Collection[str], same: dict[str, Any]) -> dict[str, Any] | None:
    """The file's results, if some models are measured again.

    Raises:
      SystemExit: a model is unknown, or the file was measured otherwise.
    """
    unknown = set(args.only) - set(names)
    if unknown:
        raise SystemExit(f"--only must be of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    if not args.only or args.json is None or not args.json.exists():
        return None
    old: dict[str, Any] = json.loads(args.json.read_text())
    for name, value in same.items():
        if old[name] != value:
            raise SystemExit(f"--only: {args.json} has {name} {old[name]}, this run {value}")
    return old


def joined(
    others: dict[str, Any] | None,
    found: dict[str, Any],
    same: dict[str, Any],
    about: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """A file's results: with rows of `others`, those measured now say themselves what is `about`.

    Args:
      others: of `others_of`.
      found: of `ratios`, and what else there is by name.
      same: of `how`.
      about: versions and load.
      seconds: that all took.
    """
    if others is None:
        return same | about | found | {"seconds": seconds}
    for own in found["details"].values():
        own |= about
    nested = {key: others[key] | value for key, value in found.items() if isinstance(value, dict)}
    return others | found | nested
