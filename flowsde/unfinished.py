"""What a run keeps in its folder so that it can go on when it is interrupted.

    unfinished.json   the settings, written at the start, and the seconds at each save
    trace.npz         what was accepted so far (`flowsde.trace`)
    search/           the state, by `flowsde.save_search`

They are saved in this order, each whole or not at all. A kill between two leaves the first ones
newer than the state, so that what they say of later rounds is left out on the way back. All are
removed once there is a result.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsde._files import write_arrays, write_json
from flowsde.checkpoint import restore_search, save_search
from flowsde.search import Result, Search
from flowsde.shapes import captions
from flowsde.trace import Trace

EVERY = 10.0
"""Seconds between saves."""


class Saved(NamedTuple):
    """A run to go on with: seconds so far, rounds at which it was begun or resumed."""

    result: Result
    trace: dict[str, np.ndarray]
    seconds: float
    begins: list[int]


def _read(path: Path) -> dict[str, Any] | None:
    """JSON, None if there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _named(about: dict[str, Any]) -> dict[str, Any]:
    """What a run is about, by option."""
    named = {"--" + name.replace("_", "-"): value for name, value in about["settings"].items()}
    prompt = about["prompt"]
    if "model" not in about["settings"]:
        prompt = captions.caption(captions.parse(prompt))
    own = {"--method": about["method"], "--seed": about["seed"]}
    return {"PROMPT": prompt} | own | named | {"version": about["version"]}


def check_same(folder: Path, kind: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """ValueError naming what differs between a run that is asked for and one that is there."""
    ours, theirs = _named(wanted), _named(found)
    differ = [name for name in ours if ours[name] != theirs.get(name)]
    # What another method brings along need not be said.
    for first in ("PROMPT", "--method"):
        differ = [first] if first in differ else differ
    if differ:
        got = ", ".join(f"{name} {theirs.get(name)}, not {ours[name]}" for name in differ)
        raise ValueError(f"--resume: the {kind} run in {folder} is of {got}")


def finished(folder: Path) -> dict[str, Any] | None:
    """The result in a folder that holds one and nothing to go on with."""
    return None if (folder / "unfinished.json").exists() else _read(folder / "result.json")


def find(folder: Path, about: dict[str, Any], search: Search) -> Saved | None:
    """What was saved in a folder, None if nothing was yet.

    Raises:
      ValueError: it is of other settings.
    """
    found = _read(folder / "unfinished.json")
    if found is None:
        return None
    check_same(folder, "unfinished", about, found)
    try:
        result = restore_search(folder / "search", search)
    except FileNotFoundError:
        return None
    rounds = len(result.info.time)
    with np.load(folder / "trace.npz") as file:
        trace = dict(file)
    seconds = [s for at, s in found["saves"] if at == rounds][-1]
    return Saved(result, trace, seconds, [at for at in found["begins"] if at < rounds])


def discard(folder: Path) -> None:
    """Remove what was kept."""
    for name in ("unfinished.json", "trace.npz"):
        (folder / name).unlink(missing_ok=True)
    if (folder / "search").exists():
        shutil.rmtree(folder / "search")


class Keeper:
    """Records a run and saves it now and then.

    Args:
      folder: of the result.
      about: with prompt, method, seed, settings and version.
      search: that is run.
      evaluations: of the model that a candidate costs.
      saved: a run to go on with; else what the folder keeps of one is removed.
    """

    def __init__(
        self,
        folder: Path,
        about: dict[str, Any],
        search: Search,
        evaluations: int,
        saved: Saved | None,
    ):
        self._folder, self._about, self._search = folder, about, search
        self._started = self._last_save = time.perf_counter()
        self.trace, self.result = Trace(search, evaluations), saved and saved.result
        self._before, self._begins, self._rounds = 0.0, [0], 0
        if saved:
            self._rounds = len(saved.result.info.time)
            self.trace.restore(saved.trace, self._rounds)
            self._before, self._begins = saved.seconds, [*saved.begins, self._rounds]
        else:
            discard(folder)
        self._saves = [(self._rounds, self._before)]
        write_json(folder / "unfinished.json", self._values())

    def _values(self) -> dict[str, Any]:
        return {**self._about, "begins": self._begins, "saves": self._saves}

    @property
    def nfe(self) -> int:
        """Evaluations charged so far."""
        return 0 if self.result is None else self.result.nfe

    def record(self, result: Result) -> None:
        """Take in a round's result."""
        self.trace.record(result)
        self.result = result
        if time.perf_counter() - self._last_save >= EVERY:
            self.save()

    def save(self) -> None:
        """Save the last round recorded."""
        if self.result is None or len(self.result.info.time) == self._rounds:
            return
        self._rounds = len(self.result.info.time)
        self._saves.append((self._rounds, self.total()))
        write_json(self._folder / "unfinished.json", self._values())
        write_arrays(self._folder / "trace.npz", self.trace.arrays())
        save_search(self._folder / "search", self._search, self.result)
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
