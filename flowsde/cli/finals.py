"""`--tournament`: the answers that a search kept, compared in pairs by a judge.

As `flowsde.cli.heldout` it comes after the searches, looks at the files that were written, and
changes none of them: its calls are not among ``verifier_calls``, a folder without one gains it by
the same command, and one by another judge is refused. ``tournament`` in result.json has

    judge, version      as the option names it; what stands for its model and question, or null
    asked               of --tournament-rounds, or null
    calls               pairs that were asked about
    winner              the picture that came first
    ranking             the pictures, the best first
    strength            of each in that order, in log-odds
    pairs, outcome      numbers of the pictures in the order of ``kept``, from 1, of each game, and
                        how sure the judge was that the first is better
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowsde import _own
from flowsde._checks import check_count
from flowsde._files import write_json
from flowsde._keys import from_seed
from flowsde._text import shown
from flowsde.cli import results
from flowsde.cli.errors import NoJudge, OptionError
from flowsde.cli.failures import one_line
from flowsde.cli.options import Sample
from flowsde.cli.picture_files import as_array, opened
from flowsde.cli.sources.base import Source
from flowsde.cli.sources.outside import imported, is_url
from flowsde.pairwise import Compare, games, tournament
from flowsde.rewards import RewardError, judge_pairs

OPTION = "--tournament"


class Finals:
    """A tournament of every prompt's answers.

    Args:
      name: of the judge, as the option has it; None for no tournament.
      keep: answers to a prompt, at most.
      rounds: of --tournament-rounds.

    Raises:
      OptionError, ValueError: naming the option that is wrong; the judge does not answer.
    """

    def __init__(self, name: str | None, keep: int = 1, rounds: int | None = None):
        self.name, self.rounds = name, rounds
        if name is None:
            if rounds is not None:
                raise OptionError(f"{OPTION}-rounds", f"has no effect without {OPTION}")
            return
        if keep < 2:
            raise OptionError(
                OPTION, f"compares several answers, expected --keep 2 or more, got {keep}"
            )
        if rounds is not None:
            check_count(f"{OPTION}-rounds", rounds)
        self._most = games(keep, rounds)
        self._compare, self.version = _compare(name)

    def announce(self, prompts: int) -> None:
        """Say how many calls there will be, before any work."""
        if self.name is not None and prompts:
            print(
                f"tournament of a prompt's answers: {self._most} pairs at most, of {prompts} "
                f"prompt{'s' * (prompts > 1)} {prompts * self._most}, asked of {shown(self.name)}",
                flush=True,
            )

    def lacking(self, folders: Sequence[Path]) -> list[Path]:
        """Those with a result that have had none; ValueError if one was another judge's."""
        found = []
        for folder in folders if self.name is not None else ():
            values = results.read(folder)
            if values is None:
                continue
            theirs = values.get("tournament")
            if theirs is None:
                found.append(folder)
                continue
            ours = {"judge": self.name, "version": self.version, "asked": self.rounds}
            differ = [name for name, own in ours.items() if theirs.get(name) != own]
            if differ:
                option = f"{OPTION}-rounds" if differ[0] == "asked" else differ[0]
                raise ValueError(
                    f"the tournament in {folder} was of {option} {theirs.get(differ[0])}, not "
                    f"{ours[differ[0]]}; {results.OTHERWISE}"
                )
        return found

    def add(self, folders: Sequence[Path]) -> None:
        """Hold those that are lacking, and write them into result.json.

        Raises:
          CommandError: the judge failed; what was held by then is written.
        """
        for folder in self.lacking(folders):
            with one_line(f"{OPTION} {shown(self.name)}"), _own.locked(folder):
                values = results.read(folder) or {}
                own = self._held(folder, values)
                write_json(folder / results.RESULT, values | {"tournament": own})

    def _held(self, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
        names = [one["image"] for one in values.get("kept", ())] or [results.IMAGE]
        images = np.stack([as_array(opened(OPTION, folder / name)) for name in names])
        key = from_seed(values["seed"])
        found = tournament(key, self._compare, images, values["prompt"], rounds=self.rounds)
        ranking = [names[i] for i in found.ranking]
        return {
            "judge": self.name,
            "version": self.version,
            "asked": self.rounds,
            "calls": found.calls,
            "winner": ranking[0],
            "ranking": ranking,
            "strength": found.strength[found.ranking].tolist(),
            "pairs": (found.pairs + 1).tolist(),
            "outcome": found.outcome.tolist(),
        }

    def report(self, folders: Sequence[Path]) -> None:
        """`add`, and print the winners."""
        self.add(folders)
        for folder in folders if self.name is not None else ():
            own = (results.read(folder) or {}).get("tournament")
            if own is not None:
                where = f" in {shown(folder, 4096)}" * (len(folders) > 1)
                print(f"winner  {own['winner']} after {own['calls']} pairs{where}", flush=True)


def _called(compare: Compare, a: np.ndarray, b: np.ndarray, prompt: str) -> Any:
    """What a user's function says; whatever it raises is a line."""
    try:
        return compare(a, b, prompt)
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(f"it raised {type(error).__name__}: {error}") from error


def of(command: Sample, source: Source) -> Finals:
    """That of the options of `sample`, and `batch`."""
    choosing = command.choosing
    if choosing.tournament is not None and source.video is not None:
        raise OptionError(OPTION, "compares pictures, and the model makes videos")
    return Finals(choosing.tournament, command.keep or 1, choosing.tournament_rounds)


def _compare(name: str) -> tuple[Compare, str | None]:
    """What is asked, and its version."""
    if not is_url(name):
        if ":" not in name:
            raise OptionError(OPTION, f"expected URL#MODEL or MODULE:FUNCTION, got '{shown(name)}'")
        found = imported(name, OPTION)
        return partial(_called, found), getattr(found, "version", None)
    url, _, model = name.partition("#")
    try:
        judge = judge_pairs(url, model or None)
    except (ValueError, RewardError) as error:
        kind = NoJudge if isinstance(error, RewardError) else ValueError
        raise kind(f"{OPTION} {shown(name)}: {error}") from None
    return judge, judge.version
