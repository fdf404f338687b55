"""What a search accepted, particle by particle, and from which particle each came.

A line is a particle's place among those that go on: a chain, one of the particles of SMC, a path of
SoP. Lines of SMC and SoP cross: what goes on in one may come from another.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from flowsde._schema import array
from flowsde.runner.result import Result
from flowsde.search import SMC, BestOfN, Complete, Particle, Search, SoP

FINISH = "finish"
_KINDS = {SMC: "particle", SoP: "path"}


class Shot(NamedTuple):
    """One accepted particle.

    Attributes:
      line: name of its place.
      round: in which it was accepted, from 0.
      time: of the search's interpolant.
      reward: of its x0; nan without one.
      nfe: evaluations charged by then.
      parent: number of the accepted particle that it comes from; -1 for none.
      x0: posterior mean.
    """

    line: str
    round: int
    time: float
    reward: float
    nfe: int
    parent: int
    x0: np.ndarray


class Trace:
    """Watches a search; `shots` is what was accepted, in order.

    Args:
      search: that is run.
      evaluations: of the model that a candidate costs.
    """

    def __init__(self, search: Search, evaluations: int = 1):
        self._complete = search if isinstance(search, Complete) else None
        self._search = search.inner if isinstance(search, Complete) else search
        self._evaluations = evaluations
        self._last: dict[str, int] = {}
        self.shots: list[Shot] = []

    def record(self, result: Result) -> None:
        """Take in a round's result."""
        search, state = self._search, result.state
        if self._complete:
            if int(state.step) > 0:
                return self._record_finishing(result)
            state = state.inner
        if not isinstance(search, BestOfN):
            return self._record_lines(search.path(state), result)
        if search.samples > 1:
            return self._record_samples(search, result)
        self._add("trajectory", state.particles, 0, result, self._last.get("trajectory", -1))

    def _add(
        self, line: str, particles: Particle, i: int, result: Result, parent: int, nfe: int = 0
    ) -> None:
        reward = float(particles.reward[i])
        self.shots.append(
            Shot(
                line=line,
                round=len(result.info.time) - 1,
                time=float(particles.t[i]),
                reward=reward if np.isfinite(reward) else np.nan,
                nfe=nfe or int(result.nfe),
                parent=parent,
                x0=np.asarray(particles.x0[i], np.float32),
            )
        )
        self._last[line] = len(self.shots) - 1

    def _record_lines(self, path: Particle, result: Result) -> None:
        """Lines that were decided in this round."""
        ancestors = np.asarray(result.info.ancestors[-1])
        decided = np.flatnonzero(ancestors >= 0)
        if not decided.size:
            return
        path = jax.tree.map(np.asarray, path)
        kind = _KINDS.get(type(self._search), "chain")
        origin = np.arange(len(ancestors))
        if isinstance(self._search, SMC):
            origin = ancestors
        elif isinstance(self._search, SoP):
            origin = ancestors % len(ancestors)
        before = dict(self._last)
        for i in decided.tolist():
            parent = before.get(f"{kind} {origin[i] + 1}", -1)
            self._add(f"{kind} {i + 1}", path, i, result, parent)

    def _record_samples(self, search: BestOfN, result: Result) -> None:
        """Finished samples of Best-of-N."""
        state = result.state
        if int(state.step) > 0:
            return
        first = (int(state.wave) - 1) * search.n_candidates
        for i in range(min(search.n_candidates, search.samples - first)):
            nfe = (first + i + 1) * search.steps * self._evaluations
            self._add(f"sample {first + i + 1}", state.particles, i, result, -1, nfe)

    def _record_finishing(self, result: Result) -> None:
        parent = self._last.get(FINISH, -1)
        if parent < 0:
            best = self._search.best(result.state.inner)
            at = (float(best.t), float(best.reward))
            found = [i for i, s in enumerate(self.shots) if (s.time, s.reward) == at]
            parent = found[-1] if found else -1
        one = jax.tree.map(lambda a: np.asarray(a)[None], result.state.particle)
        self._add(FINISH, one, 0, result, parent)

    def lineage(self, shot: Shot) -> list[Shot]:
        """A shot and those that it comes from, the earliest first."""
        line = [shot]
        while line[-1].parent >= 0:
            line.append(self.shots[line[-1].parent])
        return line[::-1]

    def arrays(self) -> dict[str, np.ndarray]:
        """`Shot`'s fields as columns."""
        columns = zip(*self.shots, strict=True) if self.shots else [()] * len(Shot._fields)
        return {name: np.asarray(c) for name, c in zip(Shot._fields, columns, strict=True)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from `arrays`, checked."""
        rows: Iterable[Any] = zip(*(arrays[name] for name in Shot._fields), strict=True)
        for line, at, time, reward, nfe, parent, x0 in rows:
            self._last[str(line)] = len(self.shots)
            self.shots.append(
                Shot(str(line), int(at), float(time), float(reward), int(nfe), int(parent), x0)
            )


def check(
    arrays: dict[str, Any], rounds: int, shape: tuple[int, ...], where: str
) -> dict[str, np.ndarray]:
    """`Trace.arrays` read back; ValueError naming the field that they cannot be.

    Args:
      arrays: by field.
      rounds: that there have been.
      shape: of an x0.
      where: they come from.
    """
    n = np.shape(arrays["line"])[:1]
    if n == (0,):
        return {name: np.zeros(0) for name in Shot._fields}
    readers = {name: array(np.int64, *n) for name in ("round", "nfe", "parent")}
    readers |= {name: array(np.float64, *n) for name in ("time", "reward")}
    readers |= {"line": array(str, None), "x0": array(np.float32, *n, *shape)}
    own = {name: read(arrays[name], f"{where}: {name}") for name, read in readers.items()}
    for name, most in (("round", rounds), ("parent", np.arange(*n))):
        if not ((own[name] >= (-1 if name == "parent" else 0)) & (own[name] < most)).all():
            raise ValueError(f"{where}: {name} leaves what there is, up to {np.max(most) - 1}")
    return own
