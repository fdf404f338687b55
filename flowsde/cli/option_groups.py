"""Options of several rewards, and of several answers, which `sample` and `batch` share."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from flowsde.cli.described import described
from flowsde.cli.kinds import Int, shown

COMBINATIONS = ("weighted", "minimum", "lexicographic", "normalised")


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Combining:
    """Make one reward of several, as `flowsde.rewards` does."""

    combine: Annotated[str | None, shown("{" + ",".join(COMBINATIONS) + "}")] = None
    """How several --reward become one: their weighted sum; the least of them; the first, and where
    that is equal the next; or the sum of each less its mean and by its standard deviation over
    --reward-pool. What each says is under parts in result.json."""
    reward_weights: Annotated[tuple[float, ...], shown("X...")] = ()
    """A number for each --reward, in their order: the weights of weighted; the steps of
    lexicographic, within which pictures are equal; the scales of minimum and the weights of
    normalised (default of both: 1)."""
    reward_pool: Annotated[Path | None, shown("FOLDER")] = None
    """Normalised: results of the same prompts and rewards by an earlier sample or batch with
    --keep, such as a Best-of-N that kept all of its pictures; what the rewards said of these."""

    def name_of(self, rewards: Sequence[str]) -> str:
        """The reward of these, as results have it."""
        return rewards[0] if len(rewards) == 1 else f"{self.combine}({', '.join(rewards)})"


@dataclasses.dataclass(frozen=True, kw_only=True)
@described
class Choosing:
    """Choose among the answers of --keep, as `flowsde.tournament` does."""

    tournament: Annotated[str | None, shown("URL#MODEL|MODULE:FUNCTION")] = None
    """Compare the pictures of --keep in pairs, after the search: by a judge at an OpenAI-compatible
    URL, or a function (a, b, prompt) of pictures [m, h, w, 3] that tells of m pairs how sure it is
    that a is better, 0 to 1. How many pairs is said before; the ranking is in result.json."""
    tournament_rounds: Int = None
    """Rounds, of half as many pairs as there are pictures (default: log2 of their number, and
    one)."""
