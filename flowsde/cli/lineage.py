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
from flowsde.search import Particle, Search

FINISH = "finish"
SINGLE = "trajectory"
SAMPLE = "sample"


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
    """

    def __init__(self, search: Search):
        self._search = search
        self._last: dict[str, int] = {}
        self.shots: list[Shot] = []

    def record(self, result: Result) -> None:
        """Take in a round's result."""
        info = jax.tree.map(lambda a: a[-1], result.info)
        lines = jax.tree.map(np.asarray, self._search.lines(result.state, info))
        if info.finishing:
            parent = self._last[FINISH] if FINISH in self._last else self._origin(result)
            return self._add(FINISH, lines.particle, 0, result, parent, result.nfe)
        before, kind = dict(self._last), self._search.path_name
        joined = np.flatnonzero(lines.number >= 0).tolist()
        for i in joined:
            parent = before.get(_name(kind, lines.parent[i]), -1)
            # Samples cost the same each, and are read in the order of their numbers.
            nfe = result.nfe
            if kind == SAMPLE:
                nfe = nfe * (lines.number[i] + 1) // (lines.number[joined[-1]] + 1)
            self._add(_name(kind, lines.number[i]), lines.particle, i, result, parent, nfe)

    def _origin(self, result: Result) -> int:
        """Number of the accepted particle that finishing began with; -1 if it is none of them."""
        reward = float(result.info.best_reward[-2])
        found = [(-s.time, i) for i, s in enumerate(self.shots) if s.reward == reward]
        return max(found)[1] if found else -1

    def _add(
        self, line: str, particles: Particle, i: int, result: Result, parent: int, nfe: int
    ) -> None:
        reward = float(particles.reward[i])
        self.shots.append(
            Shot(
                line=line,
                round=len(result.info.time) - 1,
                time=float(particles.t[i]),
                reward=reward if np.isfinite(reward) else np.nan,
                nfe=int(nfe),
                parent=parent,
                x0=np.asarray(particles.x0[i], np.float32),
            )
        )
        self._last[line] = len(self.shots) - 1

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


def _name(kind: str, number: int) -> str:
    """Of a line."""
    return kind if kind == SINGLE else f"{kind} {number + 1}"


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
