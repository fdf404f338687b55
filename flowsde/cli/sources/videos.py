"""A model of videos as the source of a command: which it is, and rewards of pictures over frames.

A reward that knows pictures is asked about some frames of a video. A function of the user's own is
given whole videos, unless an option says how it is to be asked about frames. One that is itself of
videos looks at as many frames as an option says.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flowsde._checks import check_count
from flowsde._text import shown
from flowsde.cli.options import Sample
from flowsde.cli.settings import flag
from flowsde.cli.sources.base import RewardSource
from flowsde.cli.sources.outside import HostFunction
from flowsde.models.family import Sampled, SampledVideo
from flowsde.models.video_rewards import By, Consistent, over_frames
from flowsde.rewards.base import Reward

FRAMES = 4
"""That a reward of pictures is asked about, unless told otherwise."""
_BY: dict[str, By] = {"mean": "mean", "minimum": "min"}
_OPTIONS = ("reward_frames", "over_frames")


def as_video(command: Sample, model: Sampled, title: str) -> SampledVideo | None:
    """A model that makes videos, None for pictures; ValueError for an option without effect."""
    if not isinstance(model, SampledVideo):
        _refuse(command, title)
        return None
    if (image := command.beginning.image) is not None:
        raise ValueError(f"--image has no effect with {title}, got {shown(image)}")
    if model.frames == 1:
        _refuse(command, "--frames 1")
        return None
    return model


def _refuse(command: Sample, why: str) -> None:
    for name in _OPTIONS:
        if (value := getattr(command.converted, name)) is not None:
            raise ValueError(f"{flag(name)} has no effect with {why}, got {value}")


class _OverFrames:
    """A reward of pictures as one of videos."""

    def __init__(self, pictures: RewardSource, frames: int, by: By):
        self._pictures, self._frames, self._by = pictures, frames, by
        self.reads_text, self.on_device = pictures.reads_text, pictures.on_device

    def load(self, prompts: Sequence[str]) -> tuple[Reward, list[Any]]:
        reward, told = self._pictures.load(prompts)
        return over_frames(reward, frames=self._frames, by=self._by), told


def of_videos(
    command: Sample, parts: Mapping[str, RewardSource], frames: int
) -> tuple[dict[str, RewardSource], dict[str, Any]]:
    """Rewards of videos, and the settings that they are of: of several, by name.

    Args:
      command: with its options.
      parts: by name, of pictures, or functions.
      frames: of a video.

    Raises:
      ValueError: naming an option that is wrong, or has no effect on any of them.
    """
    made = {name: _of_videos(command, name, part, frames) for name, part in parts.items()}
    for option in _OPTIONS:
        given = getattr(command.converted, option)
        if given is not None and not any(option in own for _, own in made.values()):
            names = ", ".join(map(shown, made))
            raise ValueError(f"{flag(option)} has no effect with --reward {names}, got {given}")
    rewards = {name: reward for name, (reward, _) in made.items()}
    if len(made) == 1:
        return rewards, next(iter(made.values()))[1]
    over = {
        option: {name: own.get(option) for name, (_, own) in made.items()} for option in _OPTIONS
    }
    return rewards, over


def _of_videos(
    command: Sample, name: str, reward: RewardSource, frames: int
) -> tuple[RewardSource, dict[str, Any]]:
    """One of them, and its settings."""
    count, by = command.converted.reward_frames, command.converted.over_frames
    if by is not None and by not in _BY:
        raise ValueError(f"--over-frames must be one of {', '.join(_BY)}, got '{shown(by)}'")
    if count is not None:
        check_count("--reward-frames", count, most=frames)
    if name == "none":
        _refuse(command, "--reward none")
        return reward, {}
    if isinstance(reward, HostFunction):
        if count is None and by is None:
            return reward, {}
        if reward.reward.combination is not None:
            raise ValueError(
                f"--reward {name} is of several rewards, which are given whole videos: "
                f"--reward-frames and --over-frames have no effect"
            )
    if isinstance(reward, Consistent):
        if count == 1:
            raise ValueError(f"--reward-frames must be 2 at least for --reward {name}, got 1")
        count = min(reward.frames, frames) if count is None else count
        return reward.over(count), {"reward_frames": count}
    count, by = count or min(FRAMES, frames), by or "mean"
    return _OverFrames(reward, count, _BY[by]), {"reward_frames": count, "over_frames": by}
