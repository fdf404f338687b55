"""What has been measured so far, in one file that is written anew after every block.

The file says what it is of; a block that it has is not measured again, whichever process asks.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowsde._files import read_json, speakable, write_json
from flowsde._schema import fields, flag, items, mapping, number, table, text, whole
from flowsde._text import shown
from flowsde.tuning.device import device
from flowsde.tuning.measure import Block
from flowsde.tuning.prices import Price
from flowsde.tuning.screen import Verdict
from flowsde.tuning.split import Unit

_COUNT = whole(0, 2**63 - 1)
_BLOCK = fields(
    units=items(items(_COUNT, 2)),
    rewards=items(number),
    heldout=items(number),
    nfe=_COUNT,
    evaluations=_COUNT,
    verifier_calls=_COUNT,
    seconds=number,
)
_DIAGNOSED = fields(
    blind=text, poor=text, rising=text, spread=number, sharp=flag, nfe=_COUNT, evaluations=_COUNT,
    verifier_calls=_COUNT, seconds=number,
)  # fmt: skip
_PRICED = fields(
    buys=_COUNT, evaluation=number, reward=number, round=number, least=number, why=text,
    evaluations=_COUNT, verifier_calls=_COUNT, seconds=number, device=text,
)  # fmt: skip
_READ = fields(
    about=mapping,
    devices=items(text),
    priced=table(_PRICED),
    probe=items(number, 3),
    diagnosed=table(_DIAGNOSED),
    race=table(items(_BLOCK)),
    final=table(items(_BLOCK)),
)
_CLOSE = 1e-2
"""Relative difference of a probe's numbers that other devices may make."""


class Ledger:
    """Blocks by half and setting, what seconds buy by setting, and what diagnoses say by path.

    Args:
      path: of the file; None keeps nothing.
      about: what the tuning is of, JSON; each key in words.
      probe: numbers of `flowsde.tuning.measure.probe`.

    Attributes:
      devices: on which anything was measured, in words.

    Raises:
      ValueError: the file is of another tuning, or none of ours; it names what differs.
    """

    def __init__(self, path: Path | None, about: dict[str, Any], probe: Sequence[float]):
        self._path, self._about, self._probe = path, speakable(about), list(probe)
        self._found: dict[str, dict[str, Any]] = {
            "diagnosed": {}, "priced": {}, "race": {}, "final": {}
        }  # fmt: skip
        self.devices: list[str] = []
        if path is None:
            return
        if path.exists():
            values = _READ(read_json(path), str(path))
            self._check_same(values)
            self._found = {name: values[name] for name in self._found}
            self.devices = values["devices"]
        else:
            self._write()

    def _check_same(self, values: dict[str, Any]) -> None:
        theirs = values["about"]
        differ = [name for name in self._about if theirs.get(name) != self._about[name]]
        used = [
            f"{name} {shown(theirs.get(name), 80)}, not {shown(self._about[name], 80)}"
            for name in differ
        ]
        both = zip(values["probe"], self._probe, strict=True)
        if not differ and not all(_close(a, b) for a, b in both):
            used = ["another model or reward"]
        if used:
            raise ValueError(
                f"the tuning in {self._path} used {'; '.join(used)}: expected the same, or another "
                f"file"
            )

    def _write(self) -> None:
        if self._path is not None:
            own = {"about": self._about, "probe": self._probe, "devices": self.devices}
            write_json(self._path, own | self._found)

    def _keep(self) -> None:
        """Write what this process has measured."""
        if (here := device()) not in self.devices:
            self.devices.append(here)
        self._write()

    def block(self, half: str, name: str, units: Sequence[Unit]) -> Block | None:
        """What is known of a setting on some units."""
        for own in self._found[half].get(name, ()):
            if own["units"] == [list(unit) for unit in units]:
                values = {key: own[key] for key in Block._fields}
                arrays = {key: np.asarray(own[key], np.float64) for key in ("rewards", "heldout")}
                return Block(**values | arrays)
        return None

    def add(self, half: str, name: str, units: Sequence[Unit], block: Block) -> None:
        """Keep what was measured."""
        values = block._asdict() | {"rewards": block.rewards.tolist()}
        values |= {"heldout": block.heldout.tolist(), "units": [list(unit) for unit in units]}
        self._found[half].setdefault(name, []).append(values)
        self._keep()

    @property
    def searches(self) -> int:
        """How many searches it has."""
        return sum(len(block["units"]) for block in self._blocks())

    def price(self, name: str) -> Price | None:
        """What is known of what seconds buy of a setting.

        What another kind of device said of seconds is forgotten, unless settings have already
        raced with it: all race with the seconds of one.
        """
        own = self._found["priced"].get(name)
        if own is None or (own["device"] != device() and not self.searches):
            return None
        return Price(**{key: own[key] for key in Price._fields})

    def add_price(self, name: str, price: Price) -> None:
        """Keep what seconds buy of a setting; what finding it out took before is added to it."""
        before = self._found["priced"].get(name, {})
        took = ("evaluations", "verifier_calls", "seconds")
        sums = {key: getattr(price, key) + before.get(key, 0) for key in took}
        self._found["priced"][name] = price._asdict() | sums
        self._keep()

    def verdict(self, path: str) -> Verdict | None:
        """What is known of a path."""
        own = self._found["diagnosed"].get(path)
        return None if own is None else Verdict(*(own[name] for name in Verdict._fields))

    def add_verdict(self, path: str, verdict: Verdict, **took: float) -> None:
        """Keep what a diagnosis said, and what it took, by name as in a `Block`."""
        self._found["diagnosed"][path] = verdict._asdict() | took
        self._keep()

    def total(self, name: str) -> float:
        """The sum of a count over all that was done, in whichever process."""
        others = [*self._found["diagnosed"].values(), *self._found["priced"].values()]
        return sum(one.get(name, 0) for one in [*others, *self._blocks()])

    def _blocks(self) -> list[dict[str, Any]]:
        return [b for half in ("race", "final") for own in self._found[half].values() for b in own]

    def seconds_of(self, name: str) -> float:
        """Seconds of one search of a setting: of its fastest block, which did not compile."""
        own = [b for half in ("race", "final") for b in self._found[half].get(name, ())]
        return min((b["seconds"] / len(b["units"]) for b in own), default=math.nan)


def _close(a: float, b: float) -> bool:
    same = a == b or (math.isnan(a) and math.isnan(b))
    return same or math.isclose(a, b, rel_tol=_CLOSE, abs_tol=1e-3)
