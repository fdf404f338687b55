"""Rewards that no search sees: those of ``--heldout``.

They score the pictures in a prompt's folder once its result.json is there, as `flowsde score` does
with those files. So none is part of a search, or counted as one of its evaluations or calls; a
folder that lacks one gains it by the same command, and what others said before stays. In
result.json are

    heldout_rewards     {NAME: number}, and the same in each of ``kept``
    heldout_versions    {NAME: version} of those that have one

A name is scored by one version of a reward: another one is refused, as another run is.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowsde import _own
from flowsde._files import write_json
from flowsde._text import shown
from flowsde.cli import progress, results
from flowsde.cli.errors import OptionError
from flowsde.cli.failures import one_line
from flowsde.cli.options import Sample
from flowsde.cli.settings import CHOICES, EMBEDDED
from flowsde.cli.sources.base import Source

if TYPE_CHECKING:
    from flowsde.cli.picture_reward import PictureReward

OPTION = "--heldout"
_SOME = 8
"""Results that are scored together."""
_REWARDS, _VERSIONS = "heldout_rewards", "heldout_versions"


def rewards_of(
    names: Sequence[str],
    folders: Sequence[Path],
    *,
    searched: Mapping[str, Sequence[Path]],
    embedded: bool = True,
) -> "Heldout":
    """The rewards, checked; ValueError or FileNotFoundError naming the option that is wrong.

    Args:
      names: of --heldout.
      folders: of --heldout-model.
      searched: the rewards that are searched by, with their folders of --reward-model.
      embedded: whether the pictures are those of an embedded model.
    """
    if not names and not folders:
        return Heldout()
    # Imported here: the embedded model does without the ports.
    from flowsde.cli import picture_reward

    if not embedded and (strange := [name for name in names if name in CHOICES["reward"]]):
        raise OptionError(OPTION, f"{strange[0]} scores pictures of the embedded models alone")
    found = picture_reward.several(names, folders, OPTION)
    for one in found:
        theirs = searched.get(one.name)
        if theirs is not None and picture_reward.contents(one.folders) == picture_reward.contents(
            theirs
        ):
            raise OptionError(
                OPTION,
                f"{shown(one.name)} is the reward that is searched by, which sees every candidate; "
                f"expected one that it does not see",
            )
    return Heldout(found)


def heldout_of(command: Sample, source: Source) -> "Heldout":
    """`rewards_of` the options of `sample`, and `batch`."""
    model = command.converted.model
    if command.heldout and source.video is not None:
        raise OptionError(OPTION, f"scores pictures, and {shown(model)} makes videos")
    return rewards_of(
        command.heldout,
        command.heldout_model,
        searched=source.rewards,
        embedded=model is None or str(model) in EMBEDDED,
    )


class Heldout:
    """Rewards that score results.

    Args:
      rewards: of different names; there may be none.
    """

    def __init__(self, rewards: Sequence["PictureReward"] = ()):
        self.rewards = rewards

    @property
    def versions(self) -> dict[str, str | None]:
        """By name; None of one that does not say."""
        return {one.name: one.version for one in self.rewards}

    def check(self, folders: Iterable[Path]) -> None:
        """ValueError if a result in these folders was scored by another version of a reward."""
        for folder in folders if self.rewards else ():
            self._lacking(folder, results.read(folder) or {})

    def _lacking(self, folder: Path, values: dict[str, Any]) -> list["PictureReward"]:
        """Rewards that have not scored a result."""
        scored = [one for one in self.rewards if one.name in values.get(_REWARDS, {})]
        for one in scored:
            theirs = values.get(_VERSIONS, {}).get(one.name)
            if theirs != one.version:
                raise ValueError(
                    f"the result in {folder} was scored by {OPTION} {shown(one.name)} of version "
                    f"{theirs}, not {one.version}; {results.OTHERWISE}"
                )
        return [one for one in self.rewards if one not in scored]

    def add(self, folders: Sequence[Path]) -> None:
        """Score the results in these folders, but for those that are scored; others are left out.

        Raises:
          CommandError: a reward failed; what was scored by then is written.
          Interrupted: a signal came.
        """
        for reward in self.rewards:
            # A few at a time: what was scored is written soon.
            each = range(0, len(folders), _SOME)
            about = {"unit": "result", "leave": False, "desc": f"held-out {shown(reward.name, 30)}"}
            with progress.bar(total=len(folders), **about) as bar:
                for some in (folders[begin : begin + _SOME] for begin in each):
                    with one_line(f"{OPTION} {shown(reward.name)}"):
                        self._score(reward, some)
                    bar.update(len(some))

    def _score(self, reward: "PictureReward", folders: Sequence[Path]) -> None:
        """Score a few results by a reward, and write what it says into their result.json."""
        with contextlib.ExitStack() as held:
            for folder in folders:
                held.enter_context(_own.locked(folder))
            found = {folder: results.read(folder) or {} for folder in folders}
            todo = {f: v for f, v in found.items() if v and reward in self._lacking(f, v)}
            pictures = [
                reward.picture(OPTION, folder / name, values["prompt"])
                for folder, values in todo.items()
                for name in _images(values)
            ]
            scores = iter(reward.scores(pictures).tolist())
            for folder, values in todo.items():
                own = [next(scores) for _ in _images(values)]
                entries = [values, *values.get("kept", ())]
                for entry, score in zip(entries, [own[0], *own], strict=False):
                    entry[_REWARDS] = entry.get(_REWARDS, {}) | {reward.name: score}
                if reward.version is not None:
                    values[_VERSIONS] = values.get(_VERSIONS, {}) | {reward.name: reward.version}
                write_json(folder / results.RESULT, values)

    def report(self, folders: Sequence[Path]) -> None:
        """`add`, and print what they say of each result."""
        self.add(folders)
        for folder in folders if self.rewards else ():
            for line in self.said(results.read(folder) or {}):
                print(line + f" in {shown(folder, 4096)}" * (len(folders) > 1), flush=True)

    def said(self, values: dict[str, Any]) -> list[str]:
        """Lines of what they say, given a result.json or a batch.json."""
        found = values.get(_REWARDS, {})
        names = [one.name for one in self.rewards if one.name in found]
        return [f"heldout {found[name]:.4f} by {shown(name)}" for name in names]


def _images(values: dict[str, Any]) -> list[str]:
    """Names of a result's pictures, the best first."""
    return [one["image"] for one in values.get("kept", ())] or [results.IMAGE]


def means(every: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``heldout_rewards`` of a batch.json: means of those that have scored all of its results."""
    scored = [one.get(_REWARDS, {}) for one in every]
    names = [name for name in (scored[0] if scored else ()) if all(name in s for s in scored)]
    found = {name: sum(s[name] for s in scored) / len(scored) for name in names}
    return {_REWARDS: found} if found else {}
