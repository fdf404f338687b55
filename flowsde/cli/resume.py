"""What a run keeps in its folder to be resumed after an interruption.

    OUT/.flowsde/unfinished.json   what the run is of; while it is there, results in OUT are this
                                   run's, and incomplete
    OUT/.flowsde/search/           states: of the search, the particles accepted, seconds

All of it is removed once the result is complete. A state is one file, whole or not there
(`flowsde._states`).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsde import _own, _states
from flowsde._files import HIDDEN, write_json
from flowsde._schema import array, fields, mapping, whole
from flowsde._states import save as save_state
from flowsde._text import shown
from flowsde.cli import lineage, results
from flowsde.runner.result import Result
from flowsde.runner.saved import SEARCH, pack, unpack
from flowsde.search import Search

EVERY = 10.0
"""Seconds between saves."""


class SavedRun(NamedTuple):
    """A run to resume.

    Attributes:
      result: of the last round saved.
      trace: the particles accepted.
      seconds: so far.
      begins: rounds at which it was begun or resumed.
    """

    result: Result
    trace: dict[str, np.ndarray]
    seconds: float
    begins: list[int]


_MARK = "unfinished.json"
_PARTICLE = "particle_"
_ABOUT = fields(result=mapping, run=fields(**results.ABOUT))


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds an unfinished run."""
    return _own.is_ours(folder / HIDDEN) and (folder / HIDDEN / _MARK).exists()


def _is_old(folder: Path) -> bool:
    """Whether a folder holds an unfinished run of an earlier version."""
    return (folder / _MARK).is_file() and not (folder / results.RESULT).exists()


def is_complete(folder: Path, about: dict[str, Any], names: Sequence[str], overwrite: bool) -> bool:
    """Whether a folder holds the result that is wanted; never with `overwrite`.

    Args:
      folder: of the result.
      about: what is wanted.
      names: of the files that a run writes.
      overwrite: whether the user wants to begin anew.

    Raises:
      ValueError: the folder holds another run's result or files that are not ours, which may not be
        overwritten, or another process is writing to it. `find` compares an unfinished run.
    """
    _own.check_free(folder)
    if overwrite:
        results.check_writable(folder, names, overwrite)
    elif is_unfinished(folder):
        pass
    elif (folder / results.RESULT).exists():
        results.check_same(folder, "finished", about, results.read(folder) or {})
        return True
    elif _is_old(folder):
        raise ValueError(
            f"{folder} holds an unfinished run of an earlier version of flowsde, which this one "
            f"cannot resume; {results.OTHERWISE}"
        )
    else:
        results.check_writable(folder, names, overwrite)
    return False


def held(folder: Path) -> str:
    """What beginning anew in a folder discards, in words; empty if nothing."""
    if is_unfinished(folder):
        try:
            found, _ = _states.newest(folder / HIDDEN / SEARCH, _progress)
        except ValueError:
            found = None
        if found is not None:
            return f"{found[0]} of {found[1]} NFE of the unfinished run in {shown(folder, 4096)}"
    there = (folder / results.RESULT).exists()
    return f"the finished result in {shown(folder, 4096)}" if there else ""


def _progress(path: Path) -> tuple[int, int]:
    """NFE charged in a state, and its budget."""
    arrays, about = _states.load(path)
    run = _ABOUT(about, str(path))["run"]
    budget = whole(1)(run["settings"].get("nfe"), f"{path}: nfe")
    if ".timing.nfe" in arrays:
        budget = int(array(int)(arrays[".timing.nfe"], f"{path}: .timing.nfe"))
    return int(array(int)(arrays.get(".nfe"), f"{path}: .nfe")), budget


def discard(folder: Path, about: dict[str, Any], before: list[tuple[str, int]]) -> None:
    """Discard what a folder holds, and mark it as of an unfinished run, to be begun or resumed.

    Args:
      folder: of the results.
      about: what the new run is of.
      before: what `seen` said when the user's wish was checked.

    Raises:
      ValueError: another process is writing to the folder, or has since.
    """
    with _own.locked(folder) as hidden:
        check_unseen(folder, before)
        # In this order a process killed in between leaves something to resume.
        _own.discard(hidden / SEARCH)
        write_json(hidden / _MARK, about)
        (folder / results.RESULT).unlink(missing_ok=True)


def seen(folder: Path) -> list[tuple[str, int]]:
    """Files and times that change when another process works in a folder."""
    hidden = folder / HIDDEN
    paths = [folder / results.RESULT, hidden / _MARK, *_states.paths(hidden / SEARCH)]
    return [(str(path), path.stat().st_mtime_ns) for path in paths if path.exists()]


def check_unseen(folder: Path, before: list[tuple[str, int]]) -> None:
    """ValueError if another process has worked in a folder since `seen` said `before`."""
    if seen(folder) != before:
        raise ValueError(f"another flowsde process has written to {shown(folder, 4096)} meanwhile")


def find(folder: Path, about: dict[str, Any], search: Search) -> tuple[SavedRun | None, list[str]]:
    """The newest readable state of a folder's unfinished run.

    Returns:
      It, None if there is none, and what is wrong with newer ones.

    Raises:
      ValueError: it is of another run.
    """
    if not is_unfinished(folder):
        return None, []

    def read(path: Path) -> SavedRun:
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
        return SavedRun(result, accepted, float(seconds), begins.tolist())

    return _states.newest(folder / HIDDEN / SEARCH, read)


class RunRecorder:
    """Records a run's rounds, and saves its state every `EVERY` seconds.

    Args:
      hidden: the result's hidden folder, whose lock is held.
      about: what the run is of: prompt, method, seed, settings and version.
      search: that is run.
      saved: the run to resume; without one, older states are removed.
    """

    def __init__(
        self,
        hidden: Path,
        about: dict[str, Any],
        search: Search,
        saved: SavedRun | None,
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
        """Record a round's result."""
        # A search that was saved at its end yields its last result once more.
        if self.result is None or len(result.info.time) > len(self.result.info.time):
            self.trace.record(result)
        self.result = result
        if time.perf_counter() - self._last_save >= EVERY:
            self.save()

    def save(self) -> None:
        """Save the state after the last round recorded."""
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
        """Seconds of work, without those between an interruption and its resumption."""
        return self._before + time.perf_counter() - self._started

    def seconds(self) -> dict[str, float]:
        """Seconds of the wall clock by what took them; see `flowsde.cli.sample`."""
        assert self.result is not None
        compiled = np.ones(len(self.result.info.time), bool)
        compiled[[at for at in self._begins if at < len(compiled)]] = False
        model, verifier, _ = np.asarray(self.result.info.seconds)[compiled].sum(0, np.float64)
        total = self.total()
        parts = {"total": total, "model": model, "verifier": verifier}
        parts["other"] = total - model - verifier
        return {name: round(float(value), 3) for name, value in parts.items()}
