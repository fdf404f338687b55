"""Rewards of videos [n, frames, h, w, 3] out of rewards of pictures."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde._static import Static
from flowsde.models.clip.model import CLIP, FAMILY, CLIPVision
from flowsde.models.clip.rewards import image_embeddings
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.modules import bind
from flowsde.rewards.base import DeviceReward, HostReward, Reward, device

By = Literal["mean", "min"]
CONSISTENT = 8
"""Frames whose likeness is looked at, unless told otherwise."""


def over_frames(
    reward: Reward | Callable[..., jax.Array], *, frames: int = 4, by: By = "mean"
) -> Reward:
    """The mean or the least of a picture's reward over some frames of a video.

    Args:
      reward: of pictures [n, h, w, 3] and of what is told of each: in JAX or outside.
      frames: how many are looked at, spread evenly from the first to the last; all of a video that
        has no more.
      by: "mean", or "min" for the worst of them.

    Returns:
      A reward of the same kind; its cost is that of so many pictures.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    count = check_count("frames", frames)
    if by not in ("mean", "min"):
        raise ValueError(f"by must be 'mean' or 'min', got {by!r}")
    known = reward if isinstance(reward, DeviceReward | HostReward) else device(reward)
    if known.combination is not None:
        raise TypeError(
            f"reward is one of several, {known.name}: expected one of its parts; take over_frames "
            f"of each, and combine these"
        )
    if known.latents:
        raise TypeError(f"reward {known.name!r} is of latents, expected one of pictures")
    batch = None if known.minibatch is None else max(1, known.minibatch // count)
    how: dict[str, Any] = {
        "name": f"{known.name} ({by} of {count} frames)",
        "cost": count * known.cost,
        "minibatch": batch,
    }
    if isinstance(known, HostReward):
        return dataclasses.replace(known, fn=_OnHost(known.fn, count, by), **how)
    fn = jax.tree_util.Partial(_InJAX(count, by), known.fn)
    return dataclasses.replace(known, fn=fn, **how)


def consistency(
    model: CLIP, *, frames: int = CONSISTENT, minibatch: int | None = None
) -> DeviceReward:
    """How alike neighbouring frames of a video are: the mean cosine of their CLIP embeddings.

    A video without any motion has the highest, 1: take it together with a reward of what is shown
    (`flowsde.rewards.weighted`). cond is not looked at.

    Args:
      model: whose image tower is used, with its projection.
      frames: how many are looked at, 2 at least, spread evenly from the first to the last; all of
        a video that has no more.
      minibatch: videos judged at once; as many as the model evaluates at once by default.

    Raises:
      ValueError, TypeError: naming the argument; at a call, of a video of a single frame.
    """
    count = check_count("frames", frames, least=2)
    fn = jax.tree_util.Partial(*bind(_Consistency(count), model.vision))
    return device(fn, name=f"consistency (of {count} frames)", minibatch=minibatch)


class Consistent:
    """`consistency` as ``flowsde sample --reward`` takes it.

    Args:
      folder: of the converted CLIP.
      frames: how many are looked at.
    """

    reads_text, on_device = False, True

    def __init__(self, folder: Path, frames: int = CONSISTENT):
        self._folder, self.frames = folder, frames
        open_as(folder, FAMILY)

    def over(self, frames: int) -> "Consistent":
        """Of so many frames."""
        return Consistent(self._folder, frames)

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        reward = consistency(read(self._folder, FAMILY), frames=self.frames)
        return reward, [None] * len(prompts)


def chosen_frames(found: int, wanted: int) -> np.ndarray:
    """Numbers of some of the frames found, int32, evenly from the first to the last; all if few."""
    return np.linspace(0, found - 1, min(found, wanted)).round().astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _Consistency(Static):
    frames: int

    def __call__(self, vision: CLIPVision, videos: jax.Array, cond: Any) -> jax.Array:
        if videos.ndim != 5 or videos.shape[1] < 2:
            raise ValueError(
                f"videos must have shape [n, frames, height, width, 3] of two frames at least, got "
                f"{list(videos.shape)}"
            )
        chosen = videos[:, chosen_frames(videos.shape[1], self.frames)]
        n, count = chosen.shape[:2]
        unit = image_embeddings(vision, chosen.reshape(n * count, *chosen.shape[2:]))
        unit = unit.reshape(n, count, -1)
        return jnp.sum(unit[:, 1:] * unit[:, :-1], axis=-1).mean(axis=1)


@dataclasses.dataclass(frozen=True)
class _InJAX(Static):
    frames: int
    by: By

    def __call__(self, reward: Any, videos: jax.Array, cond: Any) -> jax.Array:
        chosen = videos[:, chosen_frames(videos.shape[1], self.frames)]
        n, count = chosen.shape[:2]
        told = jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), cond)
        rewards = reward(chosen.reshape(n * count, *chosen.shape[2:]), told).reshape(n, count)
        return rewards.mean(axis=1) if self.by == "mean" else rewards.min(axis=1)


@dataclasses.dataclass(frozen=True)
class _OnHost:
    fn: Callable[[np.ndarray, Any], Any]
    frames: int
    by: By

    def __call__(self, videos: np.ndarray, cond: Any) -> np.ndarray:
        chosen = videos[:, chosen_frames(videos.shape[1], self.frames)]
        n, count = chosen.shape[:2]
        if isinstance(cond, list):
            told: Any = [one for one in cond for _ in range(count)]
        else:
            told = jax.tree.map(lambda a: np.repeat(a, count, axis=0), cond)
        rewards = np.asarray(self.fn(chosen.reshape(n * count, *chosen.shape[2:]), told))
        rewards = rewards.reshape(n, count)
        return rewards.mean(axis=1) if self.by == "mean" else rewards.min(axis=1)
