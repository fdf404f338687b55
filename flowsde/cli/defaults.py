"""What help says of methods' defaults: words of the recommended preset, for `described`."""

from collections.abc import Sequence
from typing import Any

from flowsde.cli.settings import METHODS, PRESETS, SEARCHES


def _listed(methods: Sequence[str]) -> str:
    """ "a, b and c"."""
    *first, last = methods
    return f"{', '.join(first)} and {last}" if first else last


def _by(name: str) -> dict[Any, list[str]]:
    """The methods that have each value of a setting, in the order of the first."""
    found: dict[Any, list[str]] = {}
    for method in METHODS:
        found.setdefault(getattr(PRESETS["recommended"][method], name), []).append(method)
    return found


def _but(name: str, rest: Any) -> str:
    """ "x for a and b, y for c", without the methods that have the rest's value."""
    return ", ".join(f"{v} for {_listed(of)}" for v, of in _by(name).items() if v != rest)


WORDS = {
    "searches": ", ".join(name for name in SEARCHES if name != "bon"),
    "ode_methods": ", ".join(_by("kernel")["ode_euler"]),
    "linear_methods": _listed(_by("interpolant")["linear"]),
    "interpolants": f"{_but('interpolant', 'linear')}, else linear",
    "kernels": f"{_but('kernel', 'ode_euler')}, else ode_euler",
    "steps": f"{_but('steps', None)}, for the other searches a fifth of the budget and at most 10",
}
"""What stands for {name} in a help text."""
