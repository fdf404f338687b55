"""Settings of `flowsde sample`: from a preset and the user's options to the search.

Options that the user gives replace a preset's, and makers' defaults fill what both leave open.
`resolve` checks the whole, drops what has no effect, and `build` makes the search.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flowsde import diffusion, grids, interpolants, kernels, search
from flowsde._checks import check_count, check_float, check_non_negative
from flowsde._text import shown
from flowsde.cli import preset_files, settings
from flowsde.cli.settings import CHOICES, Settings, flag
from flowsde.runner.records import Program
from flowsde.search import BudgetTooSmall, Search
from flowsde.search.complete import default_steps
from flowsde.search.grid import UnusableKernel

Moves = kernels.Kernel | kernels.Multistep
_SHIFT = 3.0

# Few steps leave more of a budget to the search: benchmarks/tasks.py.
_MOST_STEPS = 10
"""Steps that are left to the budget, at most."""
_MOST_FINISHING = 3
"""Evaluations of finishing that are left to the times, at most."""

MAKERS: dict[str, Callable[..., Search]] = {
    **dict.fromkeys(settings.TRAJECTORIES, search.bon),
    **search.METHODS,
}
"""The search of each method; a trajectory is the best of one."""

_RESAMPLING = (
    *("scheme", "threshold", "interval", "resample_from", "resample_until"),
    *("funnel", "tempering", "tempering_rate"),
)
"""Settings of SMC on its way; importance sampling has none."""

_GRADIENT = ("gradient_temperature", "gradient_curvature", "noise_tilt")
"""Settings of what the reward's gradient does."""

_MOST_NFE, _MOST_OTHERS = 1_000_000, 10_000
"""Largest counts: beyond what is of use, below where numbers wrap or memory runs out."""


def check(name: str, value: Any, of_many: bool = False) -> None:
    """ValueError unless a setting can have this value, whatever the method.

    Args:
      name: of the setting.
      value: to check.
      of_many: whether the option takes several values, and has the plural for its name.
    """
    if name in CHOICES and value not in CHOICES[name]:
        known = ", ".join(CHOICES[name])
        more = "; separate them by spaces" if of_many and "," in str(value) else ""
        option = flag(name) + "s" * of_many
        raise ValueError(f"{option} must be one of {known}, got '{shown(value)}'{more}")
    if name in settings.COUNTS:
        check_count(flag(name), value, most=_MOST_NFE if name == "nfe" else _MOST_OTHERS)
    if name in _GRADIENT:
        check_non_negative(flag(name), value)
    if name == "noise_tilt" and value > 1.0:
        raise ValueError(f"{flag(name)} is a share of the noise, 0 to 1, got {value}")
    if isinstance(value, float):
        check_float(flag(name), value)


def _parameters(method: str) -> list[str]:
    """Settings that a method's search takes."""
    # A single trajectory is one candidate wide, and takes none.
    return list(settings.SEARCHES.get(method, ()))


def _filled(method: str, s: Settings) -> Settings:
    """Settings with the makers' defaults for those that are None."""
    every = {**settings.SEARCHES.get(method, {}), **settings.MOVES[s.kernel]}
    open_ = {name: o.default for name, o in every.items() if getattr(s, name) is None}
    return dataclasses.replace(s, **open_)


@functools.cache
def stochastic(kernel: str) -> bool:
    """Whether a kernel adds noise; it says so itself."""
    return _made(kernel, interpolants.linear(), diffusion.square()).stochastic


@functools.cache
def _takes_gradient(method: str) -> bool:
    """Whether a method can use the gradient of the reward; its search says so itself."""
    if method in settings.TRAJECTORIES:
        return False  # There is no reward.
    kernel = kernels.reward_gradient(kernels.ddim(interpolants.linear()), 1.0)
    try:
        MAKERS[method](nfe=_MOST_NFE, kernel=kernel, grid=grids.uniform(20))
    except UnusableKernel:
        return False
    return True


def _unused(method: str, s: Settings) -> dict[str, str]:
    """Settings that have no effect, and why."""
    unused: dict[str, str] = {}
    takes_gradient = _takes_gradient(method) and stochastic(s.kernel)
    damping = ("gradient_curvature",)
    for names, used, why in (
        (set(settings.MOVING) - set(settings.MOVES[s.kernel]), False, f"kernel {s.kernel}"),
        (("diffusion", "diffusion_scale"), _diffuses(s.kernel), f"kernel {s.kernel}"),
        (_GRADIENT, takes_gradient, f"method {method}, kernel {s.kernel}"),
        (_GRADIENT[:2], not s.noise_tilt, f"{flag('noise_tilt')} {s.noise_tilt}"),
        (damping, s.gradient_temperature, "no --gradient-temperature"),
        (damping, "data_variance" in settings.MOVES[s.kernel], f"kernel {s.kernel}"),
        (("finish_steps",), s.finish != "mean", f"finish {s.finish}"),
        (("quantile",), s.accept == "quantile", f"accept {s.accept}"),
        (("particles",), s.restart_at, f"{flag('restart_at')} {s.restart_at}"),
        (("bar",), s.accept in (None, "threshold"), f"accept {s.accept}"),
        (("value_steps",), s.value not in (None, "mean"), f"value {s.value}"),
        (("value_samples", "mass"), s.value == "samples", f"value {s.value}"),
        (_RESAMPLING, s.potential != "final", f"potential {s.potential}"),
        (
            ("tempering_rate",),
            s.tempering in ("exponential", "polynomial"),
            f"tempering {s.tempering}",
        ),
        (set(settings.TUNING) - set(_parameters(method)), False, f"method {method}"),
    ):
        if not used:
            unused |= dict.fromkeys(names, why)
    return unused


def unused(base: Settings, method: str, given: dict[str, Any]) -> dict[str, str]:
    """Settings that have no effect on a method with some replaced by the user, and why."""
    return _unused(method, _filled(method, dataclasses.replace(base, **given)))


def _one_trajectory(method: str, s: Settings, given: dict[str, Any], cost: int) -> Settings:
    """The budget of one trajectory is its steps, times what a candidate costs.

    A step from one time to another takes the kernel's inner evaluations too. Of a picture to begin
    from, --steps says what the budget is.
    """
    inner = _inner_evaluations(s)
    assert s.steps is not None
    steps = s.steps
    if s.nfe is not None and s.strength is None and "steps" not in given:
        steps = (s.nfe // cost + inner) // (1 + inner)
    with _naming_options(s):
        run = steps if s.strength is None else len(cut(s, grids.uniform(steps))) - 1
    takes = (run + (run - 1) * inner) * cost
    if s.nfe is not None and s.nfe != takes:
        said = "--steps" if s.strength is None else f"the {run} of --steps that are run"
        said = f"(1 + ({said} - 1) x {1 + inner})" if inner else said
        raise ValueError(
            f"--nfe must be {cost} x {said} = {max(takes, cost)} for the one trajectory of "
            f"method {method}, got {s.nfe}"
        )
    return dataclasses.replace(s, steps=steps, nfe=takes)


def _by_budget(s: Settings, cost: int) -> Settings:
    """Steps that the preset leaves to the budget."""
    if s.steps is not None:
        return s
    assert s.nfe is not None
    each = cost * (1 + _inner_evaluations(s))
    return dataclasses.replace(s, steps=min(max(s.nfe // each // 5, 2), _MOST_STEPS))


def _for_times(
    s: Settings, base: Settings, given: Mapping[str, Any], times: grids.Grid
) -> Settings:
    """Settings of a preset for the times that are run: of restarts, and to compete at all."""
    if base.restart_at and "restart_at" not in given and len(times) < 4:
        s = dataclasses.replace(s, restart_at=0.0)
    if "branch_at" in given or base.branch_at is None or base.branch_at != base.steps:
        return s
    return dataclasses.replace(s, branch_at=len(times) - 1 if len(times) > 2 else None)


def _restarting(s: Settings, base: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings without a preset's restarts where the user's own do not go with them.

    One pass has the steps that are left to the budget.
    """
    if not base.restart_at or given.get("restart_at"):
        return s
    other = s.potential == "final" or s.funnel != 1.0 or s.gradient_temperature or s.noise_tilt
    if not other and "restart_at" not in given:
        return s
    return dataclasses.replace(s, restart_at=0.0, steps=given.get("steps"))


def _by_times(s: Settings, times: grids.Grid) -> Settings:
    """Evaluations of finishing that are left to the times; none is to end on the mean."""
    if s.finish in (None, "mean") or s.finish_steps is not None:
        return s
    path = _unguided(s).interpolant
    steps = default_steps(str(s.finish), path, times, _MOST_FINISHING)
    if steps == 0:
        return dataclasses.replace(s, finish="mean")
    return dataclasses.replace(s, finish_steps=steps)


def evaluations(s: Settings) -> int:
    """Model evaluations that a candidate costs by its guidance."""
    return 1 if s.guidance == 1.0 else 2


def resolve(preset: str, method: str, given: dict[str, Any]) -> Settings:
    """A preset's settings for a method, with some replaced by the user.

    Args:
      preset: by name, or a file.
      method: by name.
      given: fields of `Settings`.

    Raises:
      ValueError: naming an option that is wrong, or that would have no effect.
    """
    check("method", method)
    return resolve_from(preset_files.settings_of(preset, method), method, given)


def resolve_from(
    base: Settings,
    method: str,
    given: dict[str, Any],
    times: Callable[[int], grids.Grid | None] = lambda steps: None,
    cost: int | None = None,
) -> Settings:
    """As `resolve`, from settings that are no preset's.

    Args:
      base: the settings.
      method: by name.
      given: fields of `Settings`.
      times: of a model's own for a number of steps, in the place of those of `grid`; or None.
      cost: model evaluations of a candidate; those of guidance by default.
    """
    for name, value in given.items():
        check(name, value)
    s = _restarting(_filled(method, dataclasses.replace(base, **given)), base, given)
    adds_noise = settings.TRAJECTORIES.get(method)
    if adds_noise is not None and stochastic(s.kernel) != adds_noise:
        wanted = ", ".join(k for k in settings.KERNELS if stochastic(k) == adds_noise)
        raise ValueError(f"--kernel must be {wanted} for method {method}, got {s.kernel!r}")
    without = _unused(method, s)
    for name in given:
        if name in without:
            why = without[name]
            raise ValueError(f"{flag(name)} has no effect with {why}, got {given[name]!r}")
    if method in settings.TRAJECTORIES:
        s = _one_trajectory(method, s, given, cost or evaluations(s))
    s = _by_budget(s, cost or evaluations(s))
    if s.diffusion_scale is None and s.diffusion is not None:
        make = getattr(diffusion, s.diffusion)
        default = inspect.signature(make).parameters["scale"].default
        s = dataclasses.replace(s, diffusion_scale=default)
    nothing: dict[str, Any] = dict.fromkeys(without)
    s = dataclasses.replace(s, **nothing)
    assert s.steps is not None
    own = times(s.steps)
    with _naming_options(s):
        run = grid(s) if own is None else cut(s, own)
        return _by_times(_for_times(s, base, given, run), run)


@contextmanager
def _naming_options(s: Settings) -> Iterator[None]:
    """Arguments of kernels, grids and searches are options of nearly the same names."""
    try:
        yield
    except ValueError as error:
        first, _, rest = str(error).partition(" ")
        if isinstance(error, BudgetTooSmall) and first == "nfe":
            rest += f"; the least is {flag('nfe')} {error.least}"
        name = {"scale": "diffusion_scale"}.get(first, first)
        if name in vars(s):
            raise ValueError(f"{flag(name)} {rest}") from error
        raise


def _kernel(s: Settings) -> Moves:
    inner: Any = _unguided(s)
    if s.noise_tilt:
        return kernels.noise_tilt(inner, s.noise_tilt)
    beta = s.gradient_temperature
    return kernels.reward_gradient(inner, beta, s.gradient_curvature) if beta else inner


def _unguided(s: Settings) -> Moves:
    p = getattr(interpolants, s.interpolant)()
    options = {name: getattr(s, name) for name in settings.MOVES[s.kernel]}
    g = getattr(diffusion, str(s.diffusion))(s.diffusion_scale) if _diffuses(s.kernel) else None
    return _made(s.kernel, p, g, **options)


def _inner_evaluations(s: Settings) -> int:
    """Those between two times, which no kernel's coefficient has a part in."""
    options = {name: getattr(s, name) for name in settings.MOVES[s.kernel]}
    with _naming_options(s):
        made = _made(s.kernel, interpolants.linear(), diffusion.square(), **options)
    return made.inner_evaluations


def _diffuses(kernel: str) -> bool:
    return "diffusion" in inspect.signature(kernels.KERNELS[kernel]).parameters


def _made(kernel: str, p: interpolants.Interpolant, g: Any, **options: Any) -> Moves:
    """A kernel by name, with a diffusion coefficient if it takes one."""
    own = (p, g) if _diffuses(kernel) else (p,)
    return kernels.KERNELS[kernel](*own, **options)


def grid(s: Settings) -> grids.Grid:
    """The times of resolved settings."""
    if s.grid not in settings.GRIDS:
        raise ValueError(
            f"--grid must be {', '.join(settings.GRIDS)} for a model without times of its own, got "
            f"'{s.grid}'"
        )
    shift = (_SHIFT,) if s.grid == "shifted" else ()
    return cut(s, getattr(grids, s.grid)(s.steps, *shift))


def cut(s: Settings, times: grids.Grid) -> grids.Grid:
    """The times that are run: the last of them for a picture to begin from."""
    return times if s.strength is None else grids.tail(times, s.strength)


def build(
    method: str, s: Settings, times: grids.Grid | None = None, cost: int | None = None
) -> Search:
    """The search of resolved settings; errors name the setting.

    Args:
      method: by name.
      s: of `resolve`.
      times: of a model's own in the place of those of `s.grid`.
      cost: model evaluations of a candidate; those of guidance by default.
    """
    options = {name: getattr(s, name) for name in _parameters(method)}
    options = {name: value for name, value in options.items() if value is not None}
    with _naming_options(s):
        made = MAKERS[method](
            nfe=s.nfe,
            kernel=_kernel(s),
            grid=grid(s) if times is None else cut(s, times),
            **options,
        )
        # The runner divides the budget by what a candidate costs; is that enough?
        Program.of(made, cost or evaluations(s))
    return made


def describe(method: str, s: Settings, named: Mapping[str, Any] | None = None) -> str:
    """The effective settings in one line, with more of a model that take their place."""
    every = dataclasses.asdict(s) | dict(named or {})
    values = [(k, v) for k, v in every.items() if v is not None]
    words = (f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values)
    return " ".join([method, *words])
