"""What `--reward` may be.

    NAME               one of `flowsde.cli.sources.known`, which converted models serve, or none
    MODULE:FUNCTION    function(images, prompts) -> n floats, outside JAX: images are float32
                       [n, h, w, 3] in [-1, 1], of videos [n, frames, h, w, 3], prompts n strings;
                       or what `flowsde.rewards` made of such functions. One that has an argument
                       `fps` is told the frames a second of videos
    URL#MODEL          a judge at an OpenAI-compatible endpoint, `flowsde.rewards.judge(URL, MODEL)`

Making a `RewardSource` checks the options and imports the function; `load` reads weights.
"""

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowsde._text import shown
from flowsde.cli.errors import NoJudge
from flowsde.cli.sources.known import KNOWN, RewardSource
from flowsde.models.owlv2.counts import CountsError
from flowsde.models.qwen3_vl.atoms import AtomsError, read_atoms
from flowsde.rewards.base import DeviceReward, HostReward, Reward, RewardError, host
from flowsde.rewards.endpoint import DEADLINE
from flowsde.rewards.judge import judge


class HostFunction:
    """A user's function, which is told the prompts themselves.

    Args:
      name: MODULE:FUNCTION, or URL#MODEL of a judge.
      timeout: seconds that a call may take; what the function says itself, or an hour, by default.
      fps: of videos, for a function that has an argument of that name.
      option: that names it.

    Attributes:
      reward: as `flowsde.run` takes it.
      judge: version of a judge, by which results know it again; None of another function.
    """

    reads_text, on_device = True, False

    def __init__(
        self, name: str, timeout: float | None, fps: float | None = None, option: str = "--reward"
    ):
        judged = is_url(name)
        if judged and fps is not None:
            raise ValueError(f"{option} {shown(name)} judges pictures, and the model makes videos")
        self.judge: str | None = None
        function = _judge(name, option, timeout) if judged else imported(name, option)
        if isinstance(function, HostReward):  # made by `host` or `remote`, or of several such
            own = timeout or function.timeout or _HOUR
            self.reward = dataclasses.replace(function, timeout=own)
            self.judge = function.version if judged else None
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


_HOUR = 3600.0


def reads_text(name: str) -> bool:
    """Whether a reward looks at the prompt; one that nobody knows does not."""
    return ":" in name or (name in KNOWN and KNOWN[name].reads_text)


def is_url(name: str) -> bool:
    """Whether a judge is named."""
    return name.startswith(("http://", "https://"))


def is_function(name: str) -> bool:
    """Whether a reward runs outside JAX, by its name."""
    return ":" in name


def folders(name: str) -> int:
    """Converted models that a reward needs."""
    return len(KNOWN[name].folders) if name in KNOWN else 0


def counts(name: str) -> bool:
    """Whether a reward counts what a text says."""
    return name in KNOWN and KNOWN[name].counts


def asks(name: str) -> bool:
    """Whether a reward asks questions that a file says."""
    return name in KNOWN and KNOWN[name].asks


def reward_source(
    name: str,
    folders: Sequence[Path],
    timeout: float | None = None,
    fps: float | None = None,
    option: str = "--reward",
    counts: str | None = None,
    questions: Path | None = None,
) -> RewardSource:
    """A reward by name.

    Args:
      name: as above.
      folders: of --reward-model, as many as it needs.
      timeout: of --reward-timeout, seconds, for a function; an hour by default.
      fps: of videos, for a function; None for pictures.
      option: that names it; its folders are those of the same with -model behind.
      counts: of --reward-counts, for a reward that counts; what the prompt says by default.
      questions: of --reward-questions, for a reward that asks them.

    Raises:
      ValueError, FileNotFoundError: naming the option that is wrong.
    """
    outside = is_function(name)
    if not outside and name not in KNOWN:
        raise ValueError(
            f"{option} must be one of {', '.join(KNOWN)}, URL#MODEL or MODULE:FUNCTION, "
            f"got '{shown(name)}'"
        )
    if not outside and KNOWN[name].videos and fps is None:
        raise ValueError(
            f"{option} {name} is a reward of videos, and what it is given are pictures"
        )
    if timeout is not None and not outside:
        raise ValueError(f"--reward-timeout has no effect with --reward {name}, got {timeout}")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"--reward-timeout must be above 0, got {timeout}")
    if counts is not None and (outside or not KNOWN[name].counts):
        raise ValueError(
            f"{option}-counts has no effect with {option} {name}, got '{shown(counts)}'"
        )
    _check_questions(name, questions, option)
    wanted = () if outside else KNOWN[name].folders
    if len(folders) != len(wanted):
        what = " and then ".join(wanted) or "no folder"
        got = " and ".join(map(str, folders)) or "none"
        raise ValueError(f"{option}-model must be {what} for {option} {name}, got {got}")
    if outside:
        return HostFunction(name, timeout, fps, option)
    told: list[Any] = [counts] if counts is not None else []
    if questions is not None:
        try:
            told = [read_atoms(questions)]
        except (ValueError, OSError) as error:
            raise ValueError(f"{option}-questions: {error}") from None
    try:
        return KNOWN[name].make(*folders, *told)
    except CountsError as error:
        raise ValueError(f"{option}-counts: {error}") from None
    except AtomsError as error:
        raise ValueError(f"{option}-questions: {error}") from None


def _check_questions(name: str, questions: Path | None, option: str) -> None:
    if questions is not None and not asks(name):
        raise ValueError(
            f"{option}-questions has no effect with {option} {shown(name)}, got {questions}"
        )
    if questions is None and asks(name):
        raise ValueError(
            f"{option}-questions is missing for {option} {name}, expected a JSON file of questions"
            if option == "--reward"
            else f"{option} cannot be {name}, which asks what --reward-questions says"
        )
