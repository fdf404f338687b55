"""What the first token of a model's answer says, given the likeliest tokens that a server lists.

A word has the probability of all its spellings that are listed, " Yes", "yes" and "YES" for "Yes".
A token that is not listed is no likelier than the least likely one that is, and no likelier than
all that is left:

    p <= b = min(min_listed p, 1 - sum_listed p)

This bound, and never 0, stands for a word of which no spelling is listed: 0 would be a log-odds of
-inf, and say of a picture what is only true of the list. For a word of one spelling it is where the
probability arrives as it falls off the list.
"""

import math
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

from flowsde._text import names
from flowsde.remote.problems import RemoteError

Formula = Literal["log_odds", "probability", "share"]
_UNKNOWN = -9999.0
"""What OpenAI lists, and vLLM for -inf, where the log-probability is not known."""
_EXACT = 2.0**-20
"""To which listed probabilities can add up to 1."""


class Listed(NamedTuple):
    """The likeliest first tokens, and their log-probabilities."""

    tokens: tuple[str, ...]
    logs: tuple[float, ...]

    def log_of(self, words: Collection[str]) -> float | None:
        """Log-probability of some words; None where no spelling is listed."""
        wanted = {plain(word) for word in words}
        each = zip(self.tokens, self.logs, strict=True)
        own = math.fsum(math.exp(log) for token, log in each if plain(token) in wanted)
        # Rounded, they may be more than 1 together.
        return math.log(min(own, 1.0)) if own > 0.0 else None

    def log_bound(self) -> float:
        """That a token which is not listed does not exceed."""
        left = 1.0 - math.fsum(math.exp(log) for log in self.logs)
        return min(min(self.logs), math.log(max(left, _EXACT)))


def read_listed(answer: Any) -> Listed:
    """The first token's, of an answer of ``/chat/completions``.

    Raises:
      RemoteError: it has none, or what it has are no log-probabilities.
    """
    try:
        entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(entry["token"], entry["logprob"]) for entry in entries]
    except (KeyError, IndexError, TypeError):
        raise RemoteError(
            "the answer has no choices[0].logprobs.content[0].top_logprobs: expected a model and "
            "a server that tell log-probabilities"
        ) from None
    for token, log in pairs:
        number = isinstance(log, int | float) and not isinstance(log, bool)
        if not isinstance(token, str) or not number or math.isnan(log) or log > 1e-3:
            raise RemoteError("the answer lists what is no log-probability of a token")
    known = [(token, min(float(log), 0.0)) for token, log in pairs if log > _UNKNOWN]
    if not known:
        raise RemoteError("the answer lists no token of which the log-probability is known")
    if math.fsum(math.exp(log) for _, log in known) > 1.01:
        raise RemoteError("the answer lists log-probabilities of more than 1 together")
    tokens, logs = zip(*known, strict=True)
    return Listed(tokens, logs)


def log_probabilities(
    listed: Listed, yes: Collection[str], no: Collection[str], *, neither: bool = False
) -> tuple[float, float]:
    """Log-probabilities of two answers, one of them bounded where it is not listed.

    Args:
      listed: the likeliest tokens.
      yes, no: words of either answer.
      neither: take an answer that is neither for no, where none of both is listed: P(yes) is then
        the bound b, and P(no) 1 - b.

    Raises:
      RemoteError: none of both is listed, without `neither`.
    """
    first, second = listed.log_of(yes), listed.log_of(no)
    bound = listed.log_bound()
    if first is None and second is None:
        if not neither:
            raise RemoteError(
                f"the likeliest first tokens hold neither {names(yes)} nor {names(no)}, got "
                f"{names([repr(token) for token in listed.tokens])}"
            )
        return bound, math.log1p(-math.exp(bound))
    return (bound if first is None else first), (bound if second is None else second)


def score(yes: float, no: float, formula: Formula) -> float:
    """A number of the log-probabilities of two answers; `log_odds` is the logit of `share`."""
    if formula == "log_odds":
        return yes - no
    if formula == "probability":
        return math.exp(yes)
    return share(yes - no)


def share(odds: float) -> float:
    """P(yes) / (P(yes) + P(no)) of their log-odds."""
    return 0.5 * (1.0 + math.tanh(0.5 * odds))


def plain(text: str) -> str:
    """What all spellings of a word have in common; some servers list "▁" for a blank."""
    return text.replace("▁", " ").strip().casefold()
