"""`flowsde score`: what a reward says of pictures in files."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from flowsde import interrupts, shapes
from flowsde._checks import check_path
from flowsde._files import read_json, write_json
from flowsde._text import shown as quoted
from flowsde.cli import named_rewards, progress
from flowsde.cli.described import described
from flowsde.cli.errors import CommandError, OptionError
from flowsde.cli.options import Float, shown
from flowsde.cli.picture_files import as_array, opened
from flowsde.cli.settings import CHOICES
from flowsde.cli.sources.rewards import KNOWN, reward_source
from flowsde.rewards import RewardError
from flowsde.shapes.data import SIZE

EMBEDDED = CHOICES["reward"]
"""Rewards of the embedded model, which are told what `shapes.encode` makes of prompts."""
_AT_ONCE = 8


class Picture(NamedTuple):
    """A file, what it is said to show (None where that does not matter), and its pixels."""

    path: Path
    prompt: str | None
    image: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Score:
    """Score pictures by a reward.

    Prints a line a picture; --json also keeps them in a file. A reward that reads the prompt takes
    it from --prompt, or from the result.json that sample has written beside a picture.
    """

    image: Annotated[tuple[Path, ...], tyro.conf.Positional, shown("IMAGE...")]
    """Pictures: PNG, JPEG, WebP and what else Pillow reads."""
    reward: Annotated[str, shown("NAME|MODULE:FUNCTION")]
    """likelihood or rss, the embedded model's; one with a converted model, such as clip; or a
    function of (images, prompts) -> n floats, as for sample. `flowsde rewards` lists them."""
    reward_model: Annotated[tuple[Path, ...], shown("FOLDER"), tyro.conf.UseAppendAction] = ()
    """Folder of a converted model, if the reward needs one, as for sample."""
    reward_timeout: Float = None
    """Seconds that a call of MODULE:FUNCTION may take (default: an hour)."""
    prompt: Annotated[tuple[str, ...], shown("TEXT"), tyro.conf.UseAppendAction] = ()
    """What the pictures show: once for all of them, or once for each in their order."""
    json: Annotated[Path | None, shown("FILE")] = None
    """Write the scores to this file, with the reward's name and version."""

    def run(self) -> int:
        """Score, print, and write.

        Raises:
          ValueError, TypeError, OSError: naming the option that is wrong.
          CommandError: the reward failed.
        """
        if self.json is not None:
            check_path("--json", self.json)
        fn, version, reads_text = self._loaded()
        pictures = list(self._pictures(reads_text))
        scores = np.zeros(len(pictures))
        with progress.bar(total=len(pictures), unit="image", leave=False) as shown_bar:
            for rows in _alike(pictures):
                interrupts.check()
                # Always as many, so that a size is compiled once.
                padded = [pictures[i] for i in [*rows, *[rows[-1]] * (_AT_ONCE - len(rows))]]
                scores[rows] = self._scored(fn, padded)[: len(rows)]
                shown_bar.update(len(rows))
        found: list[dict[str, Any]] = [
            {"image": str(one.path), "prompt": one.prompt, "reward": float(score)}
            for one, score in zip(pictures, scores, strict=True)
        ]
        if self.json is not None:
            write_json(self.json, {"reward": self.reward, "version": version, "images": found})
        for one, score in zip(pictures, scores, strict=True):
            print(f"{score:10.4f}  {one.path}")
        return 0

    def _loaded(self) -> tuple[Callable[..., Any], str | None, bool]:
        """The reward, its version, and whether it reads the prompt."""
        if self.reward in EMBEDDED:
            if self.reward_timeout is not None:
                raise OptionError("--reward-timeout", f"has no effect with --reward {self.reward}")
            served = named_rewards.load(self.reward, self.reward_model)
            return partial(_of_objects, served.fn), served.version, True
        if self.reward == "none":
            raise OptionError("--reward", "pictures are scored by one, expected another than none")
        if self.reward in KNOWN and self.reward_timeout is None:
            served = named_rewards.load(self.reward, self.reward_model)
            return served.fn, served.version, KNOWN[self.reward].reads_text
        source = reward_source(self.reward, self.reward_model, self.reward_timeout)
        reward, _ = source.load([])
        return reward, getattr(reward, "version", None), True

    def _pictures(self, reads_text: bool) -> Iterator[Picture]:
        if len(self.prompt) not in (0, 1, len(self.image)):
            raise OptionError(
                "--prompt",
                f"expected one, or one for each of {len(self.image)} pictures, "
                f"got {len(self.prompt)}",
            )
        prompts = self.prompt * (len(self.image) if len(self.prompt) == 1 else 1)
        for i, path in enumerate(self.image):
            image = as_array(opened("IMAGE", path))
            if self.reward in EMBEDDED:
                image = _reduced(path, image)
            prompt = prompts[i] if prompts else _prompt_beside(path) if reads_text else None
            if self.reward in EMBEDDED:
                shapes.encode(prompt or "")
            yield Picture(path, prompt, image)

    def _scored(self, fn: Callable[..., Any], pictures: Sequence[Picture]) -> np.ndarray:
        try:
            images = np.stack([one.image for one in pictures])
            return np.asarray(fn(images, [one.prompt for one in pictures]), np.float64)
        except RewardError as error:
            raise CommandError(str(error), permanent=True) from error


def _of_objects(fn: Callable[..., Any], images: np.ndarray, prompts: Sequence[str]) -> Any:
    return fn(images, np.stack([shapes.encode(prompt) for prompt in prompts]))


def _alike(pictures: Sequence[Picture]) -> Iterator[list[int]]:
    """Numbers of pictures of one size, a few at a time."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(pictures):
        sizes.setdefault(one.image.shape, []).append(i)
    for rows in sizes.values():
        for begin in range(0, len(rows), _AT_ONCE):
            yield rows[begin : begin + _AT_ONCE]


def _reduced(path: Path, image: np.ndarray) -> np.ndarray:
    """A picture of the embedded model as it was before `sample` enlarged it for its file."""
    times = image.shape[0] // SIZE
    small = image[:: max(times, 1), :: max(times, 1)]
    if small.shape[:2] != (SIZE, SIZE) or (small.repeat(times, 0).repeat(times, 1) != image).any():
        raise ValueError(
            f"IMAGE {quoted(path, 500)}: expected a picture of the embedded model, {SIZE} x {SIZE} "
            f"or enlarged from that without smoothing, got {image.shape[1]} x {image.shape[0]}"
        )
    return small


def _prompt_beside(path: Path) -> str:
    """What the result.json beside a picture says that it is of."""
    file = path.parent / "result.json"
    prompt = read_json(file).get("prompt") if file.is_file() else None
    if not isinstance(prompt, str):
        raise OptionError(
            "--prompt", f"is missing, and no result.json beside {quoted(path)} has it"
        )
    return prompt
