"""What `flowsde batch` keeps on disk, so that it can go on: every prompt as it ends.

    OUT/batch.json                      settings, prompts and totals
    OUT/PROMPT/image.png, result.json   of a prompt that has ended, as `flowsde sample` writes them
    OUT/PROMPT/attempts.npz             with --total-nfe, of one that has not: its attempts so far

Each is written whole or not at all; a prompt has ended when its result.json is there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowsde import unfinished
from flowsde._files import write_arrays, write_json
from flowsde.offer import Offer
from flowsde.packing.budget import Outcome, added
from flowsde.search.result import COUNTERS, Result


class Folder:
    """Results of a list of prompts.

    Args:
      out: the folder.
      offer: of the model.
      abouts: what each prompt's result is of.
    """

    def __init__(self, out: Path, offer: Offer, abouts: Sequence[dict[str, Any]]):
        self.out, self._offer, self.abouts = out, offer, abouts
        self.folders = [out / offer.slug(about["prompt"]) for about in abouts]
        self.values: list[dict[str, Any] | None] = [None] * len(abouts)
        self._attempts: dict[int, dict[str, Any]] = {}

    def open(self, total_nfe: int | None, overwrite: bool) -> None:
        """Read what is there.

        Raises:
          ValueError: it is of other settings.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out: cannot make folder {self.out}: {error.strerror}") from None
        if overwrite:
            self._remove()
        self._check_batch(total_nfe)
        for i, (folder, about) in enumerate(zip(self.folders, self.abouts, strict=True)):
            values = unfinished.finished(folder)
            if values is not None:
                self._check(folder, about, values)
                if ("attempts" in values) != (total_nfe is not None):
                    how = "with" if "attempts" in values else "without"
                    raise ValueError(
                        f"the finished run in {folder} is of a prompt {how} --total-nfe; expected "
                        f"another --out or --overwrite"
                    )
                self.values[i] = values
                # A kill may have come between the two.
                (folder / "attempts.npz").unlink(missing_ok=True)
            elif (folder / "attempts.npz").exists():
                with np.load(folder / "attempts.npz") as file:
                    self._attempts[i] = dict(file)

    def _remove(self) -> None:
        for folder in self.folders:
            for name in ("result.json", "attempts.npz"):
                (folder / name).unlink(missing_ok=True)
        (self.out / "batch.json").unlink(missing_ok=True)

    def _check(self, folder: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
        try:
            unfinished.check_same(folder, "finished", wanted, found)
        except ValueError as error:
            said = str(error).removeprefix("--resume: ")
            raise ValueError(f"{said}; expected another --out or --overwrite") from None

    def _check_batch(self, total_nfe: int | None) -> None:
        """A shared budget is of one list with one setting."""
        self.before: list[dict[str, Any]] = []
        try:
            found = json.loads((self.out / "batch.json").read_text())
        except FileNotFoundError:
            return
        self.before = found["runs"]
        prompts = [about["prompt"] for about in self.abouts]
        wanted: dict[str, Any] = {"--total-nfe": total_nfe}
        theirs = {"--total-nfe": found["total_nfe"]}
        if total_nfe is not None:
            one = self.abouts[0]
            wanted |= {"list of prompts": prompts, "settings": one["settings"]}
            wanted |= {"--seed": one["seed"], "--method": one["method"]}
            theirs |= {"list of prompts": found["prompts"], "settings": found["settings"]}
            theirs |= {"--seed": found["seed"], "--method": found["method"]}
        for name, value in wanted.items():
            if value != theirs[name]:
                short = name.startswith("--")
                what = f"{name} {theirs[name]}, not {value}" if short else f"another {name}"
                raise ValueError(
                    f"the run in {self.out} is of {what}; expected another --out or --overwrite"
                )

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
        self.folders[i].mkdir(exist_ok=True)
        write_arrays(self.folders[i] / "attempts.npz", small)

    def best(self, i: int) -> Result:
        """What a prompt that has not ended has found in its attempts."""
        return _as_result(self._attempts[i])

    def end_attempts(self, i: int, seconds: float) -> None:
        """A prompt's attempts are over: its best is the result."""
        own = self._attempts[i]
        each = zip(own["nfe_each"], own["reward_each"], strict=True)
        attempts = [{"nfe": int(n), "reward": float(r)} for n, r in each]
        self.end(i, self.best(i), seconds, attempts)
        (self.folders[i] / "attempts.npz").unlink(missing_ok=True)

    def end(
        self, i: int, result: Result, seconds: float, attempts: list[dict[str, Any]] | None = None
    ) -> None:
        """Write a prompt's picture and result.json."""
        folder, about, image = self.folders[i], self.abouts[i], np.asarray(result.image)
        folder.mkdir(exist_ok=True)
        self._offer.save(folder / "image.png", image)
        judged = self._offer.judged
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
        write_json(folder / "result.json", values)
        unfinished.discard(folder)
        self.values[i] = values


def _as_result(arrays: dict[str, Any]) -> Result:
    """What was kept of attempts."""
    own = {name: int(arrays[name]) for name in COUNTERS}
    nothing: dict[str, Any] = dict.fromkeys(Result._fields)
    return Result(**(nothing | own | {"verifier_cost": 0.0}) | {
        "image": arrays["image"], "reward": float(arrays["reward"])
    })  # fmt: skip
