"""The best of several finalists by pairwise comparisons: a Swiss tournament.

A judge that looks at two pictures and says which is better is asked of a search's last candidates
alone. In every round finalists of about equal points meet that have not met before (the Swiss
system), n // 2 pairs. Then each has the strength s_i that a Bradley-Terry model,

    P(i beats j) = 1 / (1 + exp(s_j - s_i)),

most likely gave it, were it drawn once with a player of strength 0: the maximum is finite, and
unlike Elo's running estimate it does not depend on the order of the games.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde._keys import as_key

Compare = Callable[[Any, Any, Any], Any]
_TRIES = 10_000
"""Steps of looking for pairs that have not met, before some may meet again."""


class Tournament(NamedTuple):
    """How finalists compare.

    Attributes:
      ranking: int32 [n], their numbers, the best first; of equals in their order.
      strength: float64 [n], in units of log odds.
      pairs: int32 [g, 2], the games in their order.
      outcome: float64 [g], 1 where the first of a pair was better, 0 the second, .5 neither.
      calls: pairs that `compare` was asked of.
    """

    ranking: np.ndarray
    strength: np.ndarray
    pairs: np.ndarray
    outcome: np.ndarray
    calls: int


def tournament(
    key: jax.Array,
    compare: Compare,
    images: Any,
    cond: Any = None,
    *,
    rounds: int | None = None,
    both_orders: bool = False,
) -> Tournament:
    """Rank finalists by comparing pairs of them.

    It is asked of ``rounds * (n // 2)`` pairs, twice that with `both_orders`. Which pairs meet
    depends on the key and on the outcomes alone.

    Args:
      key: a JAX random key, which draws whom those of equal points meet.
      compare: ``compare(images_a, images_b, cond) -> m floats`` of m pairs, NumPy [m, ...]: how
        sure it is that a is better, 1 for yes, 0 for no, .5 or NaN for a tie.
      images: of the n finalists, [n, ...]; of equals the first is ranked first.
      cond: what `compare` is told, as it is.
      rounds: ceil(log2 n) + 1 by default, at most as many as let everyone meet everyone. With odd
        n one of the last sits out, another each round as long as there is one.
      both_orders: ask of each pair in both orders and take the mean, for a judge that prefers the
        first or the second.

    Raises:
      ValueError, TypeError: naming the argument, or what `compare` returned.

    Example:
      >>> images = np.array([[2.0], [5.0], [3.0]])
      >>> larger = lambda a, b, cond: (a > b)[:, 0].astype(float)
      >>> fs.tournament(jax.random.key(0), larger, images, rounds=3).ranking.tolist()
      [1, 2, 0]
    """
    if not callable(compare):
        raise TypeError(f"compare must be callable, compare(a, b, cond), got {compare!r}")
    try:
        given = np.asarray(images)
    except ValueError:
        raise ValueError(
            "images must be an array [n, ...], or n of one shape, as [answer.image for answer in "
            "result.top(n)]"
        ) from None
    if given.ndim == 0 or len(given) == 0:
        raise ValueError(f"images must have at least one finalist, got shape {given.shape}")
    n = len(given)
    key, wins, met = as_key(key), np.zeros(n), np.zeros((n, n), int)
    pairs, outcome, calls = [np.zeros((0, 2), np.int32)], [np.zeros(0)], 0
    for number in range(_rounds(n, rounds)):
        drawn = np.asarray(jax.random.permutation(jax.random.fold_in(key, number), jnp.arange(n)))
        round_pairs = _pair(drawn[np.argsort(-wins[drawn], kind="stable")], met)
        told = _ask(compare, given, round_pairs, cond)
        calls += len(told)
        if both_orders:
            told = 0.5 * (told + 1.0 - _ask(compare, given, round_pairs[:, ::-1], cond))
            calls += len(told)
        first, second = round_pairs.T
        np.add.at(wins, first, told)
        np.add.at(wins, second, 1.0 - told)
        met[first, second] += 1
        met[second, first] += 1
        pairs.append(round_pairs)
        outcome.append(told)
        if sat_out := set(range(n)) - set(round_pairs.reshape(-1).tolist()):
            # As good as a win, as ever.
            wins[sat_out.pop()] += 1.0
    games, results = np.concatenate(pairs), np.concatenate(outcome)
    strength = strengths(n, games, results)
    ranking = np.argsort(-np.round(strength, 9), kind="stable").astype(np.int32)
    return Tournament(ranking, strength, games, results, calls)


def games(n: int, rounds: int | None = None) -> int:
    """Pairs that `tournament` asks of n finalists, without `both_orders`."""
    return _rounds(check_count("n", n), rounds) * (n // 2)


def _rounds(n: int, rounds: int | None) -> int:
    """Of n finalists: as many as are wanted, and let everyone meet everyone at most."""
    wanted = int(np.ceil(np.log2(n))) + 1 if rounds is None else check_count("rounds", rounds)
    return min(wanted, n - 1 + n % 2) if n > 1 else 0


def strengths(n: int, pairs: Any, outcome: Any) -> np.ndarray:
    """Bradley-Terry strengths float64 [n] of n players, each drawn once with one of strength 0.

    Args:
      n: players.
      pairs: int [g, 2].
      outcome: [g], 1 where the first won.
    """
    first, second = np.asarray(pairs, int).reshape(-1, 2).T
    s = np.zeros(n)
    for _ in range(200):
        p, q = _logistic(s[first] - s[second]), _logistic(s)
        slope = 0.5 - q
        np.add.at(slope, first, outcome - p)
        np.add.at(slope, second, p - outcome)
        weight, curvature = p * (1.0 - p), np.diag(q * (1.0 - q))
        np.add.at(curvature, (first, first), weight)
        np.add.at(curvature, (second, second), weight)
        np.add.at(curvature, (first, second), -weight)
        np.add.at(curvature, (second, first), -weight)
        step = np.linalg.solve(curvature, slope)
        # Newton's, of bounded length: far out the curvature vanishes.
        s = s + step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-12:
            break
    return s


def _logistic(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _pair(order: np.ndarray, met: np.ndarray) -> np.ndarray:
    """Pairs int32 [n // 2, 2] of players, those next to each other in `order` that have not met.

    Of an odd number one of the last sits out, who has played most.
    """
    players = [int(i) for i in order]
    if len(players) % 2:
        games = met.sum(0)
        most = max(games[i] for i in players)
        players.remove(next(i for i in reversed(players) if games[i] == most))
    tries = iter(range(_TRIES))

    def matched(left: list[int]) -> list[tuple[int, int]] | None:
        if not left:
            return []
        one, *others = left
        for other in others:
            if met[one, other] or next(tries, None) is None:
                continue
            rest = matched([i for i in others if i != other])
            if rest is not None:
                return [(one, other), *rest]
        return None

    found = matched(players)
    return np.asarray(_again(players, met) if found is None else found, np.int32)


def _again(players: Sequence[int], met: np.ndarray) -> list[tuple[int, int]]:
    """Pairs where some have to meet again: each with whom it has met least."""
    left, pairs = list(players), []
    while left:
        one = left.pop(0)
        other = min(left, key=lambda i: int(met[one, i]))
        left.remove(other)
        pairs.append((one, other))
    return pairs


def _ask(compare: Compare, images: np.ndarray, pairs: np.ndarray, cond: Any) -> np.ndarray:
    """What `compare` says of pairs, float64 [m]; a tie for NaN."""
    told = np.asarray(compare(images[pairs[:, 0]], images[pairs[:, 1]], cond))
    if told.shape != (len(pairs),) or told.dtype.kind not in "biuf":
        raise ValueError(
            f"compare returned shape {told.shape} and dtype {told.dtype}, expected "
            f"{len(pairs)} numbers from 0 to 1"
        )
    told = np.where(np.isnan(told), 0.5, told.astype(np.float64))
    if not ((told >= 0.0) & (told <= 1.0)).all():
        raise ValueError(f"compare must return numbers from 0 to 1, got {told.tolist()}")
    return told
