"""What a run keeps in its folder so that it can go on when it is interrupted.

    OUT/.flowsde/unfinished.json   what the run is of; while it is there, results in OUT are this
                                   run's, and not all that there will be
    OUT/.flowsde/search/           states: of the search, what was accepted, seconds

All is removed once there is a result. A state is one file, whole or not there (`flowsde._states`).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsde import _own, _states
from flowsde._files import HIDDEN, write_json
from flowsde._schema import array, fields, mapping
from flowsde._states import save as save_state
from flowsde.cli import lineage, results
from flowsde.runner.result import Result
from flowsde.runner.saved import SEARCH, pack, unpack
from flowsde.search import Search

EVERY = 10.0
"""Seconds between saves."""


class Saved(NamedTuple):
    """A run to go on with: seconds so far, rounds at which it was begun or resumed."""

    result: Result
    trace: dict[str, np.ndarray]
    seconds: float
    begins: list[int]


_MARK = "unfinished.json"
_PARTICLE = "particle_"
_ABOUT = fields(result=mapping, run=fields(**results.ABOUT))


def is_there(folder: Path) -> bool:
    """Whether a folder holds a run that has not ended."""
    return _own.is_ours(folder / HIDDEN) and (folder / HIDDEN / _MARK).exists()


def has_state(folder: Path) -> bool:
    """Whether it can be gone on with, rather than begun anew."""
    return is_there(folder) and bool(_states.paths(folder / HIDDEN / SEARCH))


def is_old(folder: Path) -> bool:
    """Whether a folder holds a run that an earlier version has not ended."""
    return (folder / _MARK).is_file() and not (folder / results.RESULT).exists()


def is_done(
    folder: Path, about: dict[str, Any], names: Sequence[str], resume: bool, overwrite: bool
) -> bool:
    """Whether a folder holds the result that is asked for.

    Args:
      folder: of the result.
      about: what is asked for.
      names: of the files that a run writes.
      resume, overwrite: whether the user has given these options.

    Raises:
      ValueError: it holds what may not be overwritten, another process's run, or one to go on with
        that is of other settings.
    """
    _own.check_free(folder)
    going_on, there = is_there(folder), (folder / results.RESULT).exists()
    if resume and going_on:
        return False
    if there and not resume and not overwrite:
        raise ValueError(f"{folder} holds a finished result, expected another --out or --overwrite")
    if there and resume:
        try:
            results.check_same(folder, "finished", about, results.read(folder) or {})
            return True
        except ValueError:
            if not overwrite:
                raise
    if resume and is_old(folder):
        raise ValueError(
            f"--resume: the unfinished run in {folder} is of an earlier version of flowsde, which "
            f"this one cannot go on with; expected another --out, or the command without --resume"
        )
    if has_state(folder) and not overwrite:
        raise ValueError(
            f"{folder} holds an unfinished run; expected --resume to go on with it, --overwrite to "
            f"throw it away, or another --out"
        )
    if not going_on:
        results.check_writable(folder, names, overwrite)
    return False


def seen(folder: Path) -> list[tuple[str, int]]:
    """What tells whether another process has been at work in a folder."""
    hidden = folder / HIDDEN
    paths = [folder / results.RESULT, hidden / _MARK, *_states.paths(hidden / SEARCH)]
    return [(str(path), path.stat().st_mtime_ns) for path in paths if path.exists()]


def find(folder: Path, about: dict[str, Any], search: Search) -> tuple[Saved | None, list[str]]:
    """What was saved in a folder, None if nothing was yet, and what is wrong with later states.

    Raises:
      ValueError: it is of other settings.
    """
    if not is_there(folder):
        return None, []

    def read(path: Path) -> Saved:
        arrays, said = _states.load(path)
        said = _ABOUT(said, str(path))
        try:
            results.check_same(folder, "unfinished", about, said["run"])
        except ValueError as error:
            raise _states.OtherRun(str(error)) from None
        result = unpack(arrays, said["result"], search, path)
        rounds = len(result.info.time)
        columns = {name: arrays.get(_PARTICLE + name) for name in lineage.Shot._fields}
        accepted = lineage.check(columns, rounds, np.shape(result.x0), str(path))
        seconds = array(float)(arrays.get("seconds"), f"{path}: seconds")
        begins = array(int, None)(arrays.get("begins"), f"{path}: begins")
        return Saved(result, accepted, float(seconds), begins.tolist())

    return _states.newest(folder / HIDDEN / SEARCH, read)


class Keeper:
    """Records a run and saves it now and then.

    Args:
      hidden: the result's hidden folder, whose lock is held.
      about: with prompt, method, seed, settings and version.
      search: that is run.
      evaluations: of the model that a candidate costs.
      saved: a run to go on with; else what is kept of one is removed.
    """

    def __init__(
        self,
        hidden: Path,
        about: dict[str, Any],
        search: Search,
        evaluations: int,
        saved: Saved | None,
    ):
        self._hidden, self._about, self._search = hidden, about, search
        self._started = self._last_save = time.perf_counter()
        self.trace, self.result = lineage.Trace(search), saved and saved.result
        self._before, self._begins, self._rounds = 0.0, [0], 0
        if saved:
            self._rounds = len(saved.result.info.time)
            self.trace.restore(saved.trace)
            self._before, self._begins = saved.seconds, [*saved.begins, self._rounds]
        else:
            _own.discard(hidden / SEARCH)
        write_json(hidden / _MARK, about)

    @property
    def nfe(self) -> int:
        """Evaluations charged so far."""
        return 0 if self.result is None else self.result.nfe

    def record(self, result: Result) -> None:
        """Take in a round's result."""
        # A search that had ended when it was saved gives its last result once more.
        if self.result is None or len(result.info.time) > len(self.result.info.time):
            self.trace.record(result)
        self.result = result
        if time.perf_counter() - self._last_save >= EVERY:
            self.save()

    def save(self) -> None:
        """Save the last round recorded."""
        if self.result is None or len(self.result.info.time) == self._rounds:
            return
        arrays, packed = pack(self._search, self.result)
        arrays |= {_PARTICLE + name: a for name, a in self.trace.arrays().items()}
        arrays |= {"seconds": np.asarray(self.total()), "begins": np.asarray(self._begins)}
        about = {"result": packed, "run": self._about}
        save_state(self._hidden / SEARCH, arrays, about)
        self._rounds = len(self.result.info.time)
        self._last_save = time.perf_counter()

    def total(self) -> float:
        """Seconds since the start, without those between an interruption and going on."""
        return self._before + time.perf_counter() - self._started

    def seconds(self) -> dict[str, float]:
        """Of the wall clock, by what took them; see `flowsde.cli`."""
        assert self.result is not None
        compiled = np.ones(len(self.result.info.time), bool)
        compiled[[at for at in self._begins if at < len(compiled)]] = False
        model, verifier, _ = np.asarray(self.result.info.seconds)[compiled].sum(0, np.float64)
        total = self.total()
        parts = {"total": total, "model": model, "verifier": verifier}
        parts["other"] = total - model - verifier
        return {name: round(float(value), 3) for name, value in parts.items()}
