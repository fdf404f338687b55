"""Rewards outside JAX that need no converted model, of a user's own.

MODULE:FUNCTION    function(images, prompts) -> n floats, outside JAX: images are float32
                   [n, h, w, 3] in [-1, 1], of videos [n, frames, h, w, 3], prompts n strings;
                   or what `flowsde.rewards` made of such functions. One that has an argument
                   `fps` is told the frames a second of videos
URL#MODEL          a judge at an OpenAI-compatible endpoint, `flowsde.rewards.judge(URL, MODEL)`
"""

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowsde._checks import check_float, check_positive
from flowsde._text import shown
from flowsde.cli.errors import NoJudge
from flowsde.rewards.base import DeviceReward, HostReward, Reward, RewardError, host
from flowsde.rewards.endpoint import DEADLINE
from flowsde.rewards.judge import judge

_HOUR = 3600.0


def is_outside(name: str) -> bool:
    """Whether a reward runs outside JAX, by its name."""
    return ":" in name


def is_url(name: str) -> bool:
    """Whether a judge is named."""
    return name.startswith(("http://", "https://"))


class HostFunction:
    """A user's function, which is told the prompts themselves.

    Args:
      name: MODULE:FUNCTION, or URL#MODEL of a judge.
      timeout: seconds that a call may take; what the function says itself, or an hour, by default.
      fps: of videos, for a function that has an argument of that name.
      option: that names it.

    Attributes:
      reward: as `flowsde.run` takes it.
      judge, reward_version: what a judge, or another reward that says so, has for its version, by
        which results know it again; None otherwise.
    """

    reads_text, on_device = True, False

    def __init__(
        self, name: str, timeout: float | None, fps: float | None = None, option: str = "--reward"
    ):
        if timeout is not None:
            check_positive("--reward-timeout", check_float("--reward-timeout", timeout))
        judged = is_url(name)
        if judged and fps is not None:
            raise ValueError(f"{option} {shown(name)} judges pictures, and the model makes videos")
        self.judge: str | None = None
        self.reward_version: str | None = None
        function = _judge(name, option, timeout) if judged else imported(name, option)
        if isinstance(function, HostReward):  # made by `host` or `remote`, or of several such
            own = timeout or function.timeout or _HOUR
            self.reward = dataclasses.replace(function, timeout=own)
            self.judge = function.version if judged else None
            self.reward_version = None if judged else function.version
            return
        if fps is not None and _takes_fps(function):
            function = partial(function, fps=fps)
        try:
            latents = isinstance(function, DeviceReward) and function.latents
            self.reward = host(function, name, timeout=timeout or _HOUR, latents=latents)
        except TypeError as error:
            raise ValueError(f"{option} {shown(name)}: {error}") from None

    def load(self, prompts: Sequence[str]) -> tuple[Reward, list[Any]]:
        return self.reward, list(prompts)


def versions(parts: Sequence[object]) -> dict[str, Any]:
    """The settings of a result that say which judges and servers there are among some rewards.

    Another model may take the place of this one, under the same name or at the same URL.
    """
    said = {}
    for name in ("judge", "reward_version"):
        found = [own for part in parts if (own := getattr(part, name, None)) is not None]
        if found:
            said[name] = found[0] if len(parts) == 1 else found
    return said


def _takes_fps(function: Callable[..., Any]) -> bool:
    try:
        return "fps" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False  # some wrappers and builtins have none


def imported(name: str, option: str) -> Callable[..., Any]:
    """The function MODULE:FUNCTION of a user's; ValueError naming the option if there is none."""
    module, _, function = name.partition(":")
    before = list(sys.path)
    try:
        # As `python -m` does: a file of the folder in which the command is given.
        sys.path.insert(0, str(Path.cwd()))
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:
        why = shown(f"{type(error).__name__}: {error}", 400)
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            why += f"; expected {shown(module)}.py in this folder, or a module that is installed"
        raise ValueError(f"{option} {shown(name)} cannot be imported: {why}") from error
    finally:
        # For what it imports when it is called; last, so that it stands before nothing of ours.
        sys.path[:] = [*before, *[here for here in [str(Path.cwd())] if here not in before]]
    if not callable(found):
        raise ValueError(f"{option} {shown(name)} must be a function, got '{shown(found)}'")
    return found


def _judge(name: str, option: str, timeout: float | None) -> HostReward:
    url, _, model = name.partition("#")
    try:
        return judge(url, model or None, name=name, deadline=timeout or DEADLINE)
    except (ValueError, RewardError) as error:
        kind = NoJudge if isinstance(error, RewardError) else ValueError
        raise kind(f"{option} {shown(name)}: {error}") from None
