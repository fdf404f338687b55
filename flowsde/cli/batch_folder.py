"""What `flowsde batch` keeps on disk, so that it can go on: every prompt as it ends.

    OUT/batch.json                       settings, prompts and totals
    OUT/PROMPT/image.png, result.json    of a prompt that has ended, as `flowsde sample` writes them
    OUT/.flowsde/prompts.json            folders in which results are this run's, until it is done
    OUT/.flowsde/attempts/PROMPT.npz     with --total-nfe, of one that has not ended: its attempts

Each is written whole or not at all; a prompt has ended when its result.json is there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowsde import _own
from flowsde._files import read_arrays, read_json, speakable, write_arrays, write_json
from flowsde._schema import array, fields, items, mapping, maybe, number, text, whole
from flowsde.cli import results, resume
from flowsde.cli.sources.base import Source
from flowsde.runner.packed.budget import Outcome, added
from flowsde.runner.result import COUNTERS, Result

_COUNT = whole(0, 2**63 - 1)
_RUN = fields(nfe=_COUNT, evaluations=_COUNT, seconds=number)
_BATCH = fields(
    runs=items(_RUN), total_nfe=maybe(_COUNT), prompts=items(text), settings=mapping,
    seed=_COUNT, method=text,
)  # fmt: skip
_NAMES = ("image.png", results.RESULT)
_ANOTHER = "expected another --out or --overwrite"


class Folder:
    """Results of a list of prompts.

    Args:
      out: the folder.
      offer: of the model.
      abouts: what each prompt's result is of.
    """

    def __init__(self, out: Path, offer: Source, abouts: Sequence[dict[str, Any]]):
        self.out, self._offer, self.abouts = out, offer, abouts
        self.folders = [out / offer.slug(about["prompt"]) for about in abouts]
        self.values: list[dict[str, Any] | None] = [None] * len(abouts)
        self.before: list[dict[str, Any]] = []
        self._attempts: dict[int, dict[str, Any]] = {}

    def open(self, hidden: Path, total_nfe: int | None, overwrite: bool) -> None:
        """Read what is there, in the folder whose lock is held.

        Raises:
          ValueError: it is of other settings, or none of ours.
        """
        self._hidden = hidden
        self._kept = hidden / "attempts"
        mine = self._mine()
        if overwrite:
            self._remove()
        else:
            self._check_batch(total_nfe)
        for i, (folder, about) in enumerate(zip(self.folders, self.abouts, strict=True)):
            if resume.is_there(folder):
                raise ValueError(
                    f"{folder} holds an unfinished run of flowsde sample; expected it to be ended "
                    f"with --resume, another --out or --overwrite"
                )
            if (folder / results.RESULT).exists() and not overwrite:
                self.values[i] = self._ended(folder, about, total_nfe)
                # A kill may have come between the two.
                self._file(i).unlink(missing_ok=True)
            elif (folder / "attempts.npz").exists() and total_nfe is not None and not overwrite:
                raise ValueError(
                    f"{folder} holds attempts of an earlier version of flowsde, with which this "
                    f"one cannot go on; {_ANOTHER}"
                )
            else:
                if folder.name not in mine:
                    results.check_writable(folder, _NAMES, overwrite)
                self._read_attempts(i)
        if not (mine or self.before) and len(self.missing) == len(self.folders):
            results.check_writable(self.out, ["batch.json", "sheet.png"], overwrite)
        if self.missing:
            self._kept.mkdir(exist_ok=True)
            write_json(hidden / "prompts.json", {"folders": [f.name for f in self.folders]})

    def _mine(self) -> list[str]:
        """Folders in which a picture without a result.json is this run's."""
        path = self._hidden / "prompts.json"
        try:
            return fields(folders=items(text))(read_json(path), str(path))["folders"]
        except (FileNotFoundError, ValueError):
            return []

    def _ended(self, folder: Path, about: dict[str, Any], total_nfe: int | None) -> dict[str, Any]:
        """The result of a prompt that has ended."""
        try:
            values = results.read(folder)
        except ValueError as error:
            raise ValueError(f"{error}; {_ANOTHER}") from None
        assert values is not None
        self._check(folder, about, values)
        if ("attempts" in values) != (total_nfe is not None):
            how = "with" if "attempts" in values else "without"
            raise ValueError(
                f"the finished run in {folder} is of a prompt {how} --total-nfe; {_ANOTHER}"
            )
        return values

    def _file(self, i: int) -> Path:
        """Of a prompt's attempts."""
        return self._kept / f"{self.folders[i].name}.npz"

    def _read_attempts(self, i: int) -> None:
        """Attempts on disk; those that are damaged are made again."""
        try:
            self._attempts[i] = _checked(read_arrays(self._file(i)), str(self._file(i)))
        except FileNotFoundError:
            pass
        except ValueError as error:
            print(f"flowsde batch: {error}; its attempts are made again", file=sys.stderr)

    def _remove(self) -> None:
        for folder in self.folders:
            if resume.is_there(folder):
                with _own.locked(folder):
                    _own.release(folder)
            (folder / results.RESULT).unlink(missing_ok=True)
        for path in (self._kept, self._hidden / "prompts.json"):
            _own.discard(path)
        (self.out / "batch.json").unlink(missing_ok=True)

    def _check(self, folder: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
        try:
            results.check_same(folder, "finished", wanted, found)
        except ValueError as error:
            said = str(error).removeprefix("--resume: ")
            raise ValueError(f"{said}; {_ANOTHER}") from None

    def _check_batch(self, total_nfe: int | None) -> None:
        """A shared budget is of one list with one setting."""
        path = self.out / "batch.json"
        try:
            found = _BATCH(read_json(path), str(path))
        except FileNotFoundError:
            return
        except ValueError as error:
            raise ValueError(f"{error}; {_ANOTHER}") from None
        self.before = found["runs"]
        prompts = [about["prompt"] for about in self.abouts]
        wanted: dict[str, Any] = {"--total-nfe": total_nfe}
        theirs = {"--total-nfe": found["total_nfe"]}
        if total_nfe is not None:
            one = self.abouts[0]
            wanted |= {"list of prompts": prompts, "settings": speakable(one["settings"])}
            wanted |= {"--seed": one["seed"], "--method": one["method"]}
            theirs |= {"list of prompts": found["prompts"], "settings": found["settings"]}
            theirs |= {"--seed": found["seed"], "--method": found["method"]}
        for name, value in wanted.items():
            if value != theirs[name]:
                short = name.startswith("--")
                what = f"{name} {theirs[name]}, not {value}" if short else f"another {name}"
                raise ValueError(f"the run in {self.out} is of {what}; {_ANOTHER}")

    @property
    def missing(self) -> list[int]:
        """Prompts that have not ended."""
        return [i for i, values in enumerate(self.values) if values is None]

    def known(self) -> list[dict[int, Outcome]]:
        """Outcomes of all attempts on disk, by number of the attempt and of the prompt."""
        lists = {}
        for i, values in enumerate(self.values):
            if values is not None:
                lists[i] = [Outcome(**one) for one in values["attempts"]]
            elif i in self._attempts:
                a = self._attempts[i]
                lists[i] = [
                    Outcome(int(n), float(r))
                    for n, r in zip(a["nfe_each"], a["reward_each"], strict=True)
                ]
        most = max(map(len, lists.values()), default=0)
        return [{i: own[k] for i, own in lists.items() if k < len(own)} for k in range(most)]

    def add(self, i: int, result: Result) -> None:
        """Keep an attempt of a prompt that has not ended."""
        small = {name: np.asarray(getattr(result, name)) for name in ("image", "reward", *COUNTERS)}
        old = self._attempts.get(i)
        if old is not None:
            best = added(self.best(i), result)
            small = {name: np.asarray(getattr(best, name)) for name in small}
        for name in ("nfe", "reward"):
            before = [] if old is None else old[f"{name}_each"]
            small[f"{name}_each"] = np.append(before, np.asarray(getattr(result, name)))
        self._attempts[i] = small
        write_arrays(self._file(i), small)

    def best(self, i: int) -> Result:
        """What a prompt that has not ended has found in its attempts."""
        return _as_result(self._attempts[i])

    def end_attempts(self, i: int, seconds: float) -> None:
        """A prompt's attempts are over: its best is the result."""
        own = self._attempts[i]
        each = zip(own["nfe_each"], own["reward_each"], strict=True)
        attempts = [{"nfe": int(n), "reward": float(r)} for n, r in each]
        self.end(i, self.best(i), seconds, attempts)
        self._file(i).unlink(missing_ok=True)

    def end(
        self, i: int, result: Result, seconds: float, attempts: list[dict[str, Any]] | None = None
    ) -> None:
        """Write a prompt's picture and result.json."""
        folder, about, image = self.folders[i], self.abouts[i], np.asarray(result.image)
        folder.mkdir(exist_ok=True)
        self._offer.save(folder / "image.png", image)
        judged = self._offer.has_reward
        values = {
            **about,
            "reward": float(result.reward) if judged else None,
            **self._offer.heldout(about["prompt"], image),
            **{name: int(getattr(result, name)) for name in COUNTERS},
            # Prompts share the device: parts are nobody's own.
            "seconds": {"total": round(seconds, 3), "model": None, "verifier": None, "other": None},
        }
        values |= {} if attempts is None else {"attempts": attempts}
        values |= {} if judged else {"verifier_calls": 0}
        write_json(folder / results.RESULT, values)
        self.values[i] = values


def _checked(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """What was kept of attempts, read back."""

    def read(name: str, of: Any) -> np.ndarray:
        return of(arrays.get(name), f"{where}: {name}")

    n = len(read("nfe_each", array(int, None)))
    read("reward_each", array(float, n))
    for name in COUNTERS:
        read(name, array(int))
    _COUNT(int(arrays["nfe"]), f"{where}: nfe")
    read("image", array(np.float32, *[None] * np.ndim(arrays.get("image", 0))))
    read("reward", array(np.float32))
    return arrays


def _as_result(arrays: dict[str, Any]) -> Result:
    """What was kept of attempts."""
    own = {name: int(arrays[name]) for name in COUNTERS}
    nothing: dict[str, Any] = dict.fromkeys(Result._fields)
    return Result(**(nothing | own | {"verifier_cost": 0.0}) | {
        "image": arrays["image"], "reward": float(arrays["reward"])
    })  # fmt: skip
