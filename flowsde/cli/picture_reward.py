"""A reward by its name that scores finished pictures, as they are in files.

`flowsde score` prints what it says; `flowsde.cli.heldout` writes it beside what a search found.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsde import interrupts, shapes
from flowsde._text import shown
from flowsde.cli import named_rewards
from flowsde.cli.errors import OptionError
from flowsde.cli.named_rewards import EMBEDDED
from flowsde.cli.picture_files import as_array, opened
from flowsde.cli.sources.base import RewardSource
from flowsde.cli.sources.known import KNOWN
from flowsde.cli.sources.rewards import reads_text, reward_source
from flowsde.models.converted.store import checksum
from flowsde.models.qwen3_vl.atoms import AtomsError, read_atoms
from flowsde.shapes.data import SIZE

AT_ONCE = 8
"""Pictures that a reward is given in one call, at most."""


class Picture(NamedTuple):
    """A file, what it is said to show (None where that does not matter), and its pixels."""

    path: Path
    prompt: str | None
    image: np.ndarray


class PictureReward:
    """A reward of pictures, checked; weights are read when they are first needed.

    Args:
      name: likelihood or rss, a reward of converted models, URL#MODEL or MODULE:FUNCTION.
      folders: of the converted models that it needs.
      timeout: seconds that a call of a function may take; an hour by default.
      option: that names it; its folders are those of the same with -model behind.
      questions: file of --reward-questions, for a reward that asks them.

    Attributes:
      name, folders: as above.
      reads_text: whether it looks at the prompt.

    Raises:
      ValueError, FileNotFoundError: naming the option that is wrong.
    """

    def __init__(
        self,
        name: str,
        folders: Sequence[Path] = (),
        timeout: float | None = None,
        option: str = "--reward",
        questions: Path | None = None,
    ):
        self.name, self.folders, self._questions = name, folders, questions
        self.reads_text = name in EMBEDDED or reads_text(name)
        self._source: RewardSource | None = None
        if name == "none":
            raise OptionError(option, "pictures are scored by one, expected another than none")
        if name not in EMBEDDED:
            self._source = reward_source(name, folders, timeout, option=option, questions=questions)
        elif questions is not None:
            raise OptionError(f"{option}-questions", f"has no effect with {option} {name}")
        elif timeout is not None:
            raise OptionError(f"{option}-timeout", f"has no effect with {option} {name}")
        elif folders:
            raise OptionError(f"{option}-model", f"must be no folder for {option} {name}")
        if self._is_function and self._fn.latents:
            raise OptionError(option, f"{shown(name)} is of latents, and scores no pictures")
        self._atoms = None if questions is None else read_atoms(questions)

    @property
    def _is_function(self) -> bool:
        return ":" in self.name

    @cached_property
    def _fn(self) -> Any:
        """Of (images, prompts) -> n floats."""
        if self._is_function:
            assert self._source is not None
            return self._source.load([])[0]
        fn = named_rewards.load(self.name, self.folders, self._questions).fn
        return partial(_of_objects, fn) if self.name in EMBEDDED else fn

    @cached_property
    def version(self) -> str | None:
        """What stands for all that its scores depend on; None if it does not say."""
        if self._is_function:
            return getattr(self._fn, "version", None)
        return named_rewards.version_of(self.name, self.folders, self._questions)

    def picture(self, option: str, path: Path, prompt: str | None) -> Picture:
        """A picture in a file; ValueError naming the option and the file."""
        return self.seen(path, prompt, as_array(opened(option, path)))

    def seen(self, path: Path, prompt: str | None, image: np.ndarray) -> Picture:
        """A picture as the reward sees it, of RGB float32 [h, w, 3] in [-1, 1] as in its file."""
        if self.name in EMBEDDED:
            shapes.encode(prompt or "")
            image = _reduced(path, image)
        if self._atoms is not None:
            try:
                self._atoms(prompt or "")
            except AtomsError as error:
                raise OptionError("--reward-questions", str(error)) from None
        return Picture(path, prompt, image)

    def scores(
        self, pictures: Sequence[Picture], done: Callable[[int], Any] = lambda n: None
    ) -> np.ndarray:
        """Rewards float64 [n].

        Args:
          pictures: of any sizes; those of one size are scored together.
          done: told the number of pictures after each call of the reward.

        Raises:
          RewardError: it failed.
          Interrupted: a signal came.
        """
        found = np.zeros(len(pictures))
        for rows in _alike(pictures):
            interrupts.check()
            # What is compiled gets as many always, so that a size is compiled once.
            more = 0 if self._is_function else AT_ONCE - len(rows)
            given = [pictures[i] for i in [*rows, *[rows[-1]] * more]]
            images = np.stack([one.image for one in given])
            said = np.asarray(self._fn(images, [one.prompt for one in given]), np.float64)
            found[rows] = said[: len(rows)]
            done(len(rows))
        return found


def several(names: Sequence[str], folders: Sequence[Path], option: str) -> list[PictureReward]:
    """Rewards of different names, each with as many folders as it needs, in the order of the names.

    Args, Raises: as `PictureReward`.
    """
    found, left = [], list(folders)
    for i, name in enumerate(names):
        if name in names[:i]:
            raise OptionError(option, f"{shown(name)} is given twice")
        many = len(KNOWN[name].folders) if name in KNOWN else 0
        own, left = left[:many], left[many:]
        found.append(PictureReward(name, own, option=option))
    if left:
        raise OptionError(f"{option}-model", f"is needed by no {option}, got {shown(left[0])}")
    return found


def contents(folders: Sequence[Path]) -> list[str]:
    """Checksums of converted models."""
    return [checksum(folder) for folder in folders]


def _of_objects(fn: Callable[..., Any], images: np.ndarray, prompts: Sequence[str]) -> Any:
    return fn(images, np.stack([shapes.encode(prompt) for prompt in prompts]))


def _alike(pictures: Sequence[Picture]) -> Iterator[list[int]]:
    """Numbers of pictures of one size, a few at a time."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(pictures):
        sizes.setdefault(one.image.shape, []).append(i)
    for rows in sizes.values():
        for begin in range(0, len(rows), AT_ONCE):
            yield rows[begin : begin + AT_ONCE]


def _reduced(path: Path, image: np.ndarray) -> np.ndarray:
    """A picture of the embedded model as it was before `sample` enlarged it for its file."""
    times = image.shape[0] // SIZE
    small = image[:: max(times, 1), :: max(times, 1)]
    if small.shape[:2] != (SIZE, SIZE) or (small.repeat(times, 0).repeat(times, 1) != image).any():
        raise ValueError(
            f"IMAGE {shown(path, 500)}: expected a picture of the embedded model, {SIZE} x {SIZE} "
            f"or enlarged from that without smoothing, got {image.shape[1]} x {image.shape[0]}"
        )
    return small
