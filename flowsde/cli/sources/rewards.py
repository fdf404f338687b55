"""Rewards of converted models, by what `--reward` calls them.

    clip               cosine of image and prompt, by a converted CLIP
    pick               PickScore, by its own
    hpsv2, hpsv2.1     HPSv2 of that version, by its own
    imagereward        ImageReward, by its own BLIP
    vqascore           VQAScore, by CLIP-FlanT5
    vqascore-odds      its log-odds, which do not tie where the model is sure
    owlv2              how wrong the counts are of what OWLv2 finds, by its own
    owlv2-smooth       the same with a gradient: boxes counted by how sure they are
    qwen3vl            how sure Qwen3-VL is that the picture shows the prompt, P(Yes)
    qwen3vl-share      the same against No, P(Yes) / (P(Yes) + P(No))
    qwen3vl-odds       its log-odds
    qwen3vl-counts     how wrong the counts are that it expects, by its own
    aesthetic          LAION's score, by a converted CLIP and head
    consistency        of videos: how alike neighbouring frames are, by a converted CLIP
    MODULE:FUNCTION    function(images, prompts) -> n floats, outside JAX: images are float32
                       [n, h, w, 3] in [-1, 1], of videos [n, frames, h, w, 3], prompts n strings;
                       or what `flowsde.rewards` made of such functions. One that has an argument
                       `fps` is told the frames a second of videos
    URL#MODEL          a judge at an OpenAI-compatible endpoint, `flowsde.rewards.judge(URL, MODEL)`
    none               no reward

A reward of your own model is one more line of `KNOWN`. Making a `RewardSource` checks the options
and imports the function; `load` reads weights.
"""

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flowsde._text import shown
from flowsde.cli.errors import NoJudge
from flowsde.models.blip.scored import ScoredByBLIP
from flowsde.models.clip.model import HPSV2, HPSV2_1
from flowsde.models.clip.rewards import clip_score, hps_score, pick_score
from flowsde.models.clip.scored import Aesthetic, Cosine
from flowsde.models.clip_flant5.scored import ScoredByCLIPFlanT5
from flowsde.models.owlv2.counts import CountsError
from flowsde.models.owlv2.scored import Counted, SmoothlyCounted
from flowsde.models.qwen3_vl.scored import CountedByQwen3VL, JudgedByQwen3VL
from flowsde.models.video_rewards import Consistent
from flowsde.rewards.base import HostReward, Reward, RewardError, device, host
from flowsde.rewards.endpoint import DEADLINE
from flowsde.rewards.judge import judge


class RewardSource(Protocol):
    """A reward, checked and not yet loaded.

    Attributes:
      reads_text: whether it looks at the prompt.
      on_device: whether it has a gradient.
    """

    @property
    def reads_text(self) -> bool: ...
    @property
    def on_device(self) -> bool: ...

    def load(self, prompts: Sequence[str]) -> tuple[Reward, list[Any]]:
        """The reward of all prompts, and what it is told of each, None where that is nothing."""
        ...


def _nothing(images: jax.Array, cond: Any) -> jax.Array:
    return jnp.zeros(images.shape[0], jnp.float32)


class NoReward:
    """Every picture is worth as much."""

    reads_text, on_device = False, True

    def load(self, prompts: Sequence[str]) -> tuple[Reward, list[Any]]:
        return device(_nothing, name="none"), [None] * len(prompts)


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
            self.reward = host(function, name, timeout=timeout or _HOUR)
        except TypeError as error:
            raise ValueError(f"{option} {shown(name)}: {error}") from None

    def load(self, prompts: Sequence[str]) -> tuple[Reward, list[Any]]:
        return self.reward, list(prompts)


def _takes_fps(function: Callable[..., Any]) -> bool:
    try:
        return "fps" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False  # some wrappers and builtins have none


class Known(NamedTuple):
    """A reward that has a name.

    Attributes:
      make: of a `RewardSource`, called with the folders of --reward-model.
      says: what it is, in words.
      folders: what each of them is, in words.
      families: of the models in them.
      counts: whether it counts what a text says: --reward-counts, or else the prompt.
      videos: whether it is of whole videos, and of no picture.
    """

    make: Callable[..., RewardSource]
    says: str
    folders: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    counts: bool = False
    videos: bool = False

    @property
    def reads_text(self) -> bool:
        """Whether it looks at the prompt; the class that is made says so."""
        return bool(self._made.reads_text)

    @property
    def on_device(self) -> bool:
        """Whether it has a gradient."""
        return bool(self._made.on_device)

    @property
    def _made(self) -> Any:
        return getattr(self.make, "func", self.make)


_CLIP = (("a converted CLIP",), ("clip",))
_CLIP_FLANT5 = (("a converted CLIP-FlanT5",), ("clip_flant5",))
_OWLV2: dict[str, Any] = {
    "folders": ("a converted OWLv2",), "families": ("owlv2",), "counts": True,
}  # fmt: skip
_QWEN3_VL = (("a converted Qwen3-VL",), ("qwen3_vl",))
KNOWN = {
    "none": Known(NoReward, "every picture is worth as much"),
    "clip": Known(partial(Cosine, score=clip_score), "cosine of image and prompt", *_CLIP),
    "pick": Known(partial(Cosine, score=pick_score), "PickScore, by its own CLIP", *_CLIP),
    "hpsv2": Known(
        partial(Cosine, score=partial(hps_score, version="2.0"), family=HPSV2),
        "HPSv2 (v2.0), by its own CLIP",
        folders=("a converted HPSv2 v2.0",),
        families=(HPSV2.name,),
    ),
    "hpsv2.1": Known(
        partial(Cosine, score=partial(hps_score, version="2.1"), family=HPSV2_1),
        "HPSv2.1, by its own CLIP",
        folders=("a converted HPSv2 v2.1",),
        families=(HPSV2_1.name,),
    ),
    "imagereward": Known(
        ScoredByBLIP,
        "ImageReward, by its own BLIP",
        folders=("a converted ImageReward",),
        families=("imagereward",),
    ),
    "vqascore": Known(ScoredByCLIPFlanT5, "VQAScore, by CLIP-FlanT5", *_CLIP_FLANT5),
    "vqascore-odds": Known(
        partial(ScoredByCLIPFlanT5, odds=True), "log-odds of VQAScore", *_CLIP_FLANT5
    ),
    "owlv2": Known(Counted, "squared error of OWLv2's counts, negative", **_OWLV2),
    "owlv2-smooth": Known(SmoothlyCounted, "the same, of boxes by how sure they are", **_OWLV2),
    "qwen3vl": Known(JudgedByQwen3VL, "P(Yes) by Qwen3-VL, asked about the prompt", *_QWEN3_VL),
    "qwen3vl-share": Known(
        partial(JudgedByQwen3VL, formula="share"), "P(Yes) / (P(Yes) + P(No))", *_QWEN3_VL
    ),
    "qwen3vl-odds": Known(
        partial(JudgedByQwen3VL, formula="log_odds"), "log-odds of Yes against No", *_QWEN3_VL
    ),
    "qwen3vl-counts": Known(
        CountedByQwen3VL,
        "squared error of the counts it expects, negative",
        *_QWEN3_VL,
        counts=True,
    ),
    "aesthetic": Known(
        Aesthetic,
        "LAION's aesthetic score",
        folders=("a converted CLIP", "the head"),
        families=("clip", "aesthetic"),
    ),
    "consistency": Known(
        Consistent, "cosine of a video's neighbouring frames, by a CLIP", *_CLIP, videos=True
    ),
}


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


def reward_source(
    name: str,
    folders: Sequence[Path],
    timeout: float | None = None,
    fps: float | None = None,
    option: str = "--reward",
    counts: str | None = None,
) -> RewardSource:
    """A reward by name.

    Args:
      name: as above.
      folders: of --reward-model, as many as it needs.
      timeout: of --reward-timeout, seconds, for a function; an hour by default.
      fps: of videos, for a function; None for pictures.
      option: that names it; its folders are those of the same with -model behind.
      counts: of --reward-counts, for a reward that counts; what the prompt says by default.

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
    wanted = () if outside else KNOWN[name].folders
    if len(folders) != len(wanted):
        what = " and then ".join(wanted) or "no folder"
        got = " and ".join(map(str, folders)) or "none"
        raise ValueError(f"{option}-model must be {what} for {option} {name}, got {got}")
    if outside:
        return HostFunction(name, timeout, fps, option)
    if counts is None:
        return KNOWN[name].make(*folders)
    try:
        return KNOWN[name].make(*folders, counts)
    except CountsError as error:
        raise ValueError(f"{option}-counts: {error}") from None
