"""What `flowsde batch` keeps on disk to be resumed: every prompt as it finishes.

    OUT/batch.json                       settings, prompts and totals
    OUT/PROMPT/image.png, result.json    of a finished prompt, as `flowsde sample` writes them, with
                                         --keep image-2.png and so on beside them
    OUT/.flowsde/prompts.json            folders whose results are this run's, until it is complete
    OUT/.flowsde/attempts/PROMPT.npz     with --total-nfe: the attempts of an unfinished prompt

Each file is written whole or not at all; a prompt is finished when its result.json is there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowsde import _own
from flowsde._files import read_arrays, read_json, speakable, write_arrays, write_json
from flowsde._schema import array, fields, items, mapping, maybe, number, table, text, whole
from flowsde._text import shown
from flowsde.cli import results, resume
from flowsde.cli.finals import Finals
from flowsde.cli.heldout import Heldout
from flowsde.cli.sources.base import Source
from flowsde.runner.packed.budget import Outcome, added
from flowsde.runner.result import COUNTERS, Result

_COUNT = whole(0, 2**63 - 1)
_RUN = fields(nfe=_COUNT, evaluations=_COUNT, seconds=number)
_BATCH = fields(
    {"part": maybe(text), "ids": table(text)},
    runs=items(_RUN), total_nfe=maybe(_COUNT), prompts=items(text), settings=mapping,
    seed=_COUNT, method=text,
)  # fmt: skip
_TOTALS = ("batch.json", "sheet.png")
_MARK = "prompts.json"


class Folder:
    """Results of a list of prompts.

    Args:
      out: the folder.
      offer: of the model.
      abouts: what each prompt's result is of, and its ``id`` if it has one.
      part: of a list, as batch.json has it; None for all of it.

    Attributes:
      values: contents of each prompt's result.json; None for one that is not finished.
      before: entries in batch.json of earlier runs.
    """

    def __init__(
        self, out: Path, offer: Source, abouts: Sequence[dict[str, Any]], part: str | None = None
    ):
        self.out, self._offer, self.abouts, self.part = out, offer, abouts, part
        self.folders = [out / offer.slug(about["prompt"]) for about in abouts]
        self.values: list[dict[str, Any] | None] = [None] * len(abouts)
        self.before: list[dict[str, Any]] = []
        self._attempts: dict[int, dict[str, Any]] = {}

    def open(self, hidden: Path, total_nfe: int | None, overwrite: bool) -> None:
        """Read what is there, or discard it, in the folder whose lock is held.

        Raises:
          ValueError: it is another run's, or not ours; nothing is lost.
        """
        self._hidden = hidden
        names = [*results.files(self._offer, self._offer.named.get("keep", 1)), results.RESULT]
        self._kept = hidden / "attempts"
        mine = self._mine()
        if overwrite:
            results.check_writable(self.out, _TOTALS, overwrite)
            for folder in self.folders:
                _own.check_free(folder)
                results.check_writable(folder, names, overwrite)
            self._discard()
            mine = [folder.name for folder in self.folders]
        else:
            self._check_batch(total_nfe)
        for i, (folder, about) in enumerate(zip(self.folders, self.abouts, strict=True)):
            if resume.is_unfinished(folder):
                raise ValueError(
                    f"{folder} holds an unfinished run of flowsde sample; expected that to be "
                    f"completed first, another --out, or --overwrite"
                )
            if (folder / results.RESULT).exists() and not overwrite:
                self.values[i] = self._finished(folder, about, total_nfe)
                # A kill may have come between the two files.
                self._file(i).unlink(missing_ok=True)
            elif (folder / "attempts.npz").exists() and total_nfe is not None and not overwrite:
                raise ValueError(
                    f"{folder} holds attempts of an earlier version of flowsde, which this one "
                    f"cannot resume; {results.OTHERWISE}"
                )
            else:
                if folder.name not in mine:
                    results.check_writable(folder, names, overwrite)
                self._read_attempts(i)
        if not (mine or self.before) and len(self.missing) == len(self.folders):
            results.check_writable(self.out, _TOTALS, overwrite)
        if self.missing:
            self._kept.mkdir(exist_ok=True)
            self._mark()

    def _mark(self) -> None:
        write_json(self._hidden / _MARK, {"folders": [f.name for f in self.folders]})

    def _mine(self) -> list[str]:
        """Folders in which a picture without a result.json is this run's."""
        path = self._hidden / _MARK
        try:
            return fields(folders=items(text))(read_json(path), str(path))["folders"]
        except (FileNotFoundError, ValueError):
            return []

    def _finished(
        self, folder: Path, about: dict[str, Any], total_nfe: int | None
    ) -> dict[str, Any]:
        """The result of a finished prompt."""
        values = results.read(folder)
        assert values is not None
        results.check_same(folder, "finished", about, values)
        if ("attempts" in values) != (total_nfe is not None):
            used = "--total-nfe" if "attempts" in values else "no --total-nfe"
            raise ValueError(f"the finished run in {folder} used {used}; {results.OTHERWISE}")
        return values

    def refresh(self) -> None:
        """Read what other processes have finished."""
        for i in self.missing:
            if self.is_done(i):
                self.values[i] = self._finished(self.folders[i], self.abouts[i], None)

    def is_done(self, i: int) -> bool:
        """Whether a prompt is finished on disk."""
        return (self.folders[i] / results.RESULT).exists()

    def runs(self) -> list[dict[str, Any]]:
        """Entries of batch.json, those of other processes included."""
        path = self.out / "batch.json"
        try:
            return _BATCH(read_json(path), str(path))["runs"]
        except FileNotFoundError:
            return []

    def _file(self, i: int) -> Path:
        """The file of a prompt's attempts."""
        return self._kept / f"{self.folders[i].name}.npz"

    def _read_attempts(self, i: int) -> None:
        """Read a prompt's attempts; those that are damaged are repeated."""
        try:
            self._attempts[i] = _checked(read_arrays(self._file(i)), str(self._file(i)))
        except FileNotFoundError:
            pass
        except ValueError as error:
            print(f"flowsde batch: {error}; its attempts are repeated", file=sys.stderr)

    def _discard(self) -> None:
        """Discard all that is there; what that is, is said first."""
        finished = sum((folder / results.RESULT).exists() for folder in self.folders)
        files = list(self._kept.glob("*.npz"))
        unfinished = [folder for folder in self.folders if resume.is_unfinished(folder)]
        lost = [
            *[f"{finished} of {len(self.folders)} prompts, finished"] * (finished > 0),
            *[f"the attempts of {len(files)} more"] * (len(files) > 0),
            *filter(None, map(resume.held, unfinished)),
        ]
        for what in lost:
            print(f"discard {what}", flush=True)
        # First: a process killed on the way leaves pictures that are this run's.
        self._mark()
        for folder in unfinished:
            with _own.locked(folder):
                _own.release(folder)
        for path in [*(folder / results.RESULT for folder in self.folders), *files]:
            path.unlink(missing_ok=True)
        (self.out / "batch.json").unlink(missing_ok=True)

    def _check_batch(self, total_nfe: int | None) -> None:
        """ValueError if batch.json is of another run: a shared budget has one list, one setting."""
        path = self.out / "batch.json"
        try:
            found = _BATCH(read_json(path), str(path))
        except FileNotFoundError:
            return
        except ValueError as error:
            raise ValueError(f"{error}; {results.OTHERWISE}") from None
        self.before = found["runs"]
        prompts = [about["prompt"] for about in self.abouts]
        wanted: dict[str, Any] = {"--total-nfe": total_nfe}
        theirs = {"--total-nfe": found["total_nfe"]}
        self._check_ids(found.get("ids", {}))
        if "part" in found:  # Earlier versions did not say.
            wanted["--part"], theirs["--part"] = self.part, found["part"]
        if total_nfe is not None:
            one = self.abouts[0]
            ours = results.as_called_now(speakable(one["settings"]))
            wanted |= {"list of prompts": prompts, "settings": ours}
            wanted |= {"--seed": one["seed"], "--method": one["method"]}
            theirs |= {"list of prompts": found["prompts"]}
            theirs |= {"settings": results.as_called_now(found["settings"])}
            if "contents" not in theirs["settings"]:
                wanted["settings"].pop("contents", None)  # An earlier version kept none.
            theirs |= {"--seed": found["seed"], "--method": found["method"]}
        for name, value in wanted.items():
            if value != theirs[name]:
                short = name.startswith("--")
                used = f"{name} {theirs[name]}, not {value}" if short else f"another {name}"
                raise ValueError(f"the run in {self.out} used {used}; {results.OTHERWISE}")

    @property
    def ids(self) -> dict[str, str]:
        """Names of the folders, by the prompts' ids; empty without ids."""
        each = zip(self.folders, self.abouts, strict=True)
        return {about["id"]: folder.name for folder, about in each if "id" in about}

    def _check_ids(self, theirs: dict[str, str]) -> None:
        """ValueError if an earlier run had another id of a prompt, or another prompt of an id."""
        known = {name: id for id, name in theirs.items()}
        for folder, about in zip(self.folders, self.abouts, strict=True):
            own, prompt = about.get("id"), shown(about["prompt"])
            if (name := folder.name) in known and known[name] != own:
                used = f"gave '{prompt}' the id {shown(known[name])}, not {shown(own)}"
            elif own in theirs and theirs[own] != name:
                used = f"gave the id {shown(own)} to {shown(theirs[own])}, not to '{prompt}'"
            else:
                continue
            raise ValueError(f"the run in {self.out} {used}; {results.OTHERWISE}")

    @property
    def missing(self) -> list[int]:
        """Prompts that are not finished."""
        return [i for i, values in enumerate(self.values) if values is None]

    @property
    def finished(self) -> list[Path]:
        """Folders of the prompts that are."""
        pairs = zip(self.folders, self.values, strict=True)
        return [folder for folder, values in pairs if values is not None]

    def score(self, rewards: Heldout, finals: Finals) -> None:
        """Have held-out rewards score what is finished, and hold its tournaments."""
        if rewards.rewards or finals.name is not None:
            rewards.add(self.finished)
            finals.add(self.finished)
            self.values = [results.read(folder) for folder in self.folders]

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
        """Keep an attempt of an unfinished prompt."""
        small = {name: np.asarray(getattr(result, name)) for name in ("image", "reward", *COUNTERS)}
        old = self._attempts.get(i)
        if old is not None:
            best = added(self.best(i), result)
            small = {name: np.asarray(getattr(best, name)) for name in small}
        for name in ("nfe", "reward"):
            own = np.atleast_1d(np.asarray(getattr(result, name)))
            # Nothing is no float array, which would make numbers of evaluations floats.
            small[f"{name}_each"] = own if old is None else np.append(old[f"{name}_each"], own)
        self._attempts[i] = small
        write_arrays(self._file(i), small)

    def best(self, i: int) -> Result:
        """The best of an unfinished prompt's attempts."""
        return _as_result(self._attempts[i])

    def end_attempts(self, i: int, seconds: float) -> None:
        """Finish a prompt whose attempts are over: the best is its result."""
        own = self._attempts[i]
        each = zip(own["nfe_each"], own["reward_each"], strict=True)
        attempts = [{"nfe": int(n), "reward": float(r)} for n, r in each]
        self.end(i, self.best(i), seconds, attempts)
        self._file(i).unlink(missing_ok=True)

    def end(
        self, i: int, result: Result, seconds: float, attempts: list[dict[str, Any]] | None = None
    ) -> None:
        """Write a finished prompt's picture and result.json."""
        # Prompts share the device: the parts of its time are no prompt's own.
        parts = {"total": round(seconds, 3), "model": None, "verifier": None, "other": None}
        self.values[i] = results.write(
            self.folders[i], self._offer, self.abouts[i], result, parts, attempts
        )


def _checked(arrays: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """A file of attempts, checked."""

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
    """The best attempt of such a file."""
    own = {name: int(arrays[name]) for name in COUNTERS}
    nothing: dict[str, Any] = dict.fromkeys(Result._fields)
    return Result(**(nothing | own | {"verifier_cost": 0.0}) | {
        "image": arrays["image"], "reward": float(arrays["reward"])
    })  # fmt: skip
