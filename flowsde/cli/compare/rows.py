"""What is compared: a row is a method with all its settings."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flowsde.cli import preset_files, presets
from flowsde.cli.settings import (
    EMBEDDED,
    MOST_IN_SECONDS,
    TRAJECTORIES,
    Settings,
    as_values,
    flag,
)
from flowsde.search import BudgetTooSmall

SINGLE = TRAJECTORIES
"""Methods that follow one trajectory."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A method, its settings as `presets.resolve` gives them, and the table that it is for.

    With a budget in `seconds` a picture, that of the settings is the most that they may buy.
    """

    method: str
    settings: Settings
    table: str = "methods"
    seconds: float | None = None

    @property
    def is_single(self) -> bool:
        """Whether it is one trajectory, whose budget is its own."""
        return self.method in SINGLE

    @property
    def budget(self) -> str:
        """In words."""
        return f"{self.settings.nfe} NFE" if self.seconds is None else f"{self.seconds:g} s"

    @property
    def values(self) -> dict[str, Any]:
        """What identifies it, but for its method."""
        own = as_values(self.settings)
        return own if self.seconds is None else own | {"seconds": self.seconds}

    @property
    def family(self) -> tuple[str, Settings]:
        """The row but for its budget: rows of one family share a compiled program."""
        return self.method, dataclasses.replace(self.settings, nfe=None)


class Plan(NamedTuple):
    """Rows, and in words those whose budget is too small for their method."""

    rows: list[Row]
    left_out: list[str]


def _bases(preset: str, methods: Sequence[str], model: str) -> list[tuple[str, Settings]]:
    """The preset's settings of each method; those of a file come after all as recommended."""
    named = "recommended" if preset_files.is_file(preset) else preset
    bases = [(name, preset_files.settings_of(named, name, model)) for name in methods]
    if named != preset:
        own, settings, _ = preset_files.read(preset)
        bases.append((own, settings))
    return bases


def plan(
    methods: Sequence[str],
    *,
    nfe: Sequence[int],
    seconds: Sequence[float] = (),
    interpolants: Sequence[str] = (),
    kernels: Sequence[str] = (),
    preset: str = "recommended",
    model: str = EMBEDDED[0],
    given: Mapping[str, Any] | None = None,
    table: str = "methods",
) -> Plan:
    """Rows of every method x interpolant x kernel x budget.

    A method whose preset follows the ODE (ode, bon, sop, evolution, …) has one row for all
    interpolants and kernels: the ODE's path is the same under each. A single trajectory (ode, sde)
    has one row, of its own budget. Budgets that are too small for a method are left out, unless all
    are. A preset of a file adds its method to the others, which are as recommended.

    Args:
      methods, interpolants, kernels, preset: by name; those of the preset when empty. The preset
        may be a file.
      model: the embedded one, on whose kind depends what is recommended.
      nfe: budgets.
      seconds: budgets in their place, of a picture.
      given: further fields of `Settings`, used by the rows in which they have an effect.
      table: of the rows.

    Raises:
      ValueError: naming an option that is wrong, or that has an effect in no row.
    """
    for name, values in (("methods", methods), ("nfe", nfe)):
        if not values:
            raise ValueError(f"{flag(name)} is empty, expected at least one")
    for name, words in (("method", methods), ("interpolant", interpolants), ("kernel", kernels)):
        for word in words:
            presets.check(name, word, of_many=True)
    bases = _bases(preset, methods, model)
    methods = list(dict.fromkeys(method for method, _ in bases))
    rows: list[Row] = []
    left_out: list[str] = []
    effective: set[str] = set()
    for method, base in bases:
        moves = presets.stochastic(base.kernel)
        budgets: Iterable[float | None] = [None] if method in SINGLE else seconds or nfe
        choices: list[Sequence[Any]]
        choices = [values if moves and values else [None] for values in (interpolants, kernels)]
        for interpolant in choices[0]:
            for kernel in choices[1]:
                own = {"interpolant": interpolant, "kernel": kernel, **(given or {})}
                own = {name: value for name, value in own.items() if value is not None}
                unused = presets.unused(base, method, own)
                own = {name: value for name, value in own.items() if name not in unused}
                effective |= set(own)
                fitting, error = [], None
                for budget in budgets:
                    own_seconds = budget if seconds else None
                    most = MOST_IN_SECONDS if seconds else budget
                    more = {} if budget is None else {"nfe": most}
                    settings = presets.resolve_from(base, method, own | more)
                    try:
                        presets.build(method, settings)
                    except ValueError as reason:
                        if not isinstance(reason.__cause__ or reason, BudgetTooSmall):
                            raise
                        error = reason
                        left_out.append(f"{method} at {budget} NFE: {reason}")
                    else:
                        fitting.append(Row(method, settings, table, own_seconds))
                if not fitting and error is not None:
                    raise error
                rows += fitting
    wanted = {"interpolant": interpolants, "kernel": kernels, **(given or {})}
    for name, value in wanted.items():
        if value not in ((), [], None) and name not in effective:
            raise ValueError(f"{flag(name)} has no effect on {', '.join(methods)}, got {value!r}")
    return Plan(list(dict.fromkeys(rows)), list(dict.fromkeys(left_out)))


def labels(rows: Sequence[Row]) -> list[str]:
    """What distinguishes each row but for its budget: method, interpolant, kernel, and the rest.

    Of the other settings those are named that vary among the rows of a method in a table, beyond
    what follows from their budgets.
    """
    values = collections.defaultdict[tuple[Any, ...], set[Any]](set)
    for row in rows:
        for name, value in vars(row.settings).items():
            values[row.table, row.method, name, row.settings.nfe].add(value)
    varying = {key[:3] for key, found in values.items() if len(found) > 1}
    names = []
    for row in rows:
        parts = [row.method]
        for name, value in vars(row.settings).items():
            if name == "nfe" or value is None:
                continue
            if name in ("interpolant", "kernel"):
                parts += [value] if presets.stochastic(row.settings.kernel) else []
            elif (row.table, row.method, name) in varying:
                shown = f"{value:g}" if isinstance(value, float) else str(value)
                parts.append(f"{name.replace('_', ' ')} {shown}")
        names.append(" ".join(parts))
    return names
