"""The settings that race: all methods, with what has mattered in `benchmarks/tasks.py`.

Each has two at least, in most cases one of about 10 steps, for a model with blurred posterior
means, and one of 4 or fewer, for a distilled one.

A method of `flowsde.search.makers` that has no setting here races with its maker's defaults, but
for finishing and the temperature.

What differs between two of a method is the path (interpolant and kernel), the grid, the steps, and
the method's own: chains, the rule of acceptance, the value, the temperature. Temperatures are in
units of the reward's spread over plain samples, which differs from reward to reward.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from flowsde._checks import check_positive
from flowsde.search import METHODS
from flowsde.tuning.settings import Setting

BASELINE = "bon"
_AMPLE = 10_000
"""A budget that is enough for any method."""

_ODE: dict[str, Any] = {"interpolant": "linear", "kernel": "ode_euler"}
_VP: dict[str, Any] = {
    "interpolant": "vp", "kernel": "ddim", "eta": 1.0, "data_variance": 0.25
}  # fmt: skip
_LINEAR: dict[str, Any] = {
    "interpolant": "linear", "kernel": "ddim", "eta": 1.0, "data_variance": 0.0
}  # fmt: skip
_EM: dict[str, Any] = {
    "interpolant": "vp", "kernel": "euler_maruyama", "diffusion": "square", "diffusion_scale": 3.0
}  # fmt: skip

_FROM_THE_START: dict[str, Any] = {"branch_at": 2}
"""Of two steps, whose start competes too: its posterior means are pictures of a distilled model."""
_RESTARTS: dict[str, Any] = {"restart_at": 0.5, "particles": 4}
"""Of SMC in six steps."""


def _times(steps: int, finish: int | None = None, grid: str = "uniform") -> dict[str, Any]:
    """A grid, and evaluations of finishing: 0 for none, None where a method does not finish."""
    own: dict[str, Any] = {"grid": grid, "steps": steps}
    if finish is None:
        return own
    return own | ({"finish": "complete", "finish_steps": finish} if finish else {"finish": "mean"})


def _baseline() -> Iterator[Setting]:
    """Best-of-N, tuned like the rest."""
    for steps in (2, 4, 6, 10, 20):
        yield Setting.of("bon", **_ODE, **_times(steps))
    yield Setting.of("bon", **_ODE, **_times(10, grid="quadratic"))
    yield Setting.of("bon", **_VP, **_times(6))


def _shares(spread: float) -> tuple[float, ...]:
    """Temperatures, the highest first."""
    return tuple(float(f"{share * spread:.3g}") for share in (0.8, 0.2, 0.05))


def _drafts(spread: float) -> Iterator[Setting]:
    """What chooses among finished pictures, or among first noises."""
    middle = _shares(spread)[1]
    for steps in (6, 10):
        yield Setting.of("halving", **_ODE, **_times(steps))
    for children, parents in ((4, 1), (8, 2)):
        yield Setting.of(
            "evolution", **_ODE, **_times(4), children=children, parents=parents, mutate_at=0.75
        )
    yield Setting.of("sop", **_ODE, **_times(10, 3), paths=2, start=2, forward=2, backward=4)
    yield Setting.of("sop", **_ODE, **_times(4, 0), paths=2, start=1, forward=1, backward=2)
    for steps in (4, 2):
        yield Setting.of("zero_order", **_ODE, **_times(steps), neighbours=4, perturbation=0.5)
    for steps, size in ((4, 0.5), (2, 0.8)):
        yield Setting.of(
            "pcn", **_ODE, **_times(steps), chains=4, step_size=size, temperature=middle
        )
    for steps, scale in ((10, 4.0), (4, 1.0)):
        yield Setting.of(
            "lidar", **_ODE, **_times(steps), trajectories=2, temperature=middle, scale=scale
        )
    for steps, finish in ((10, 3), (4, 0)):
        yield Setting.of(
            "dfs", **_ODE, **_times(steps, finish), chains=1, check_at=3, tries=3, backtrack=2
        )


def _branching(spread: float) -> Iterator[Setting]:
    """What chooses among particles on their way."""
    ten, four = _times(10, 3), _times(4, 0)
    ahead: dict[str, Any] = {"branch_at": 3, "value": "ode", "value_steps": 3}
    soft, middle, hard = _shares(spread)
    # The first is what is recommended, .25 for a reward that spreads over 5.
    for beta in (hard, middle):
        yield Setting.of(
            "smc", **_VP, **_times(6, 3), temperature=beta, potential="difference", **_RESTARTS
        )
    for beta in (hard, middle, soft):
        yield Setting.of("smc", **_VP, **ten, temperature=beta, potential="difference")
    yield Setting.of("smc", **_VP, **four, temperature=hard, potential="difference")
    for path, times in ((_LINEAR, ten), (_EM, ten)):
        yield Setting.of("smc", **path, **times, temperature=middle, potential="difference")
    yield Setting.of("smc", **_VP, **ten, temperature=middle, potential="max")
    yield Setting.of("svdd", **_VP, **ten, chains=4)
    yield Setting.of("svdd", **_VP, **ten, chains=2)
    yield Setting.of("svdd", **_VP, **four, chains=4)
    yield Setting.of("svdd", **_LINEAR, **ten, chains=4)
    yield Setting.of("svdd", **_VP, **ten, **ahead, chains=2)
    yield Setting.of("code", **_VP, **ten, chains=2, block=3)
    yield Setting.of("code", **_VP, **four, chains=2, block=2)
    for accept in ("improve", "calibrated"):
        yield Setting.of("rbf", **_VP, **ten, chains=2, accept=accept)
    yield Setting.of("rbf", **_VP, **four, chains=2, accept="calibrated")
    yield Setting.of("rbf", **_VP, **ten, **ahead, chains=2, accept="calibrated")
    paper = {"chains": 2, "seeds": 25, "allocation": "reserve"}
    yield Setting.of("rbf", **_EM, **_times(10, 0, "quadratic"), **paper)
    for times in (ten, four):
        yield Setting.of("epsilon_greedy", **_VP, **times, neighbours=4, perturbation=0.8)
        yield Setting.of("psi", **_VP, **times, temperature=middle, chains=4, step_size=0.5)
    # What is recommended for a distilled model.
    yield Setting.of(
        "epsilon_greedy", **_VP, **_times(2, 0), **_FROM_THE_START, neighbours=4, perturbation=0.5
    )
    # What explores is in units of the reward, as temperatures are.
    for steps in (6, 4):
        tree = {"select": "bound", "branch_at": 2, "explore": float(f"{spread:.3g}")}
        yield Setting.of("dts", **_VP, **_times(steps), **tree, temperature=middle)


def _listed(method: str, spread: float) -> Iterator[Setting]:
    """A method that has no setting above: its own defaults, on the first path that it takes."""
    options = inspect.signature(METHODS[method]).parameters
    own = _times(10, 3 if "finish_steps" in options else None)
    if "temperature" in options and options["temperature"].default:
        own["temperature"] = _shares(spread)[1]
    for path in (_VP, _ODE):
        setting = Setting.of(method, **path, **own)
        try:
            setting.search(_AMPLE)
        except ValueError:
            continue
        yield setting
        return


def declared(methods: Sequence[str] | None = None, spread: float = 1.0) -> tuple[Setting, ...]:
    """The settings that race, Best-of-N's first.

    Args:
      methods: by name, all by default; Best-of-N is there in any case.
      spread: standard deviation of the reward over plain samples of a prompt.

    Raises:
      ValueError: naming a method that there is not.
    """
    check_positive("spread", spread)
    methods = tuple(METHODS) if methods is None else tuple(methods)
    for name in methods:
        if name not in METHODS:
            raise ValueError(f"methods must be some of {', '.join(METHODS)}, got {name!r}")
    own = (*_baseline(), *_drafts(spread), *_branching(spread))
    others = set(methods) - {setting.method for setting in own}
    every = (*own, *(setting for name in sorted(others) for setting in _listed(name, spread)))
    return tuple(s for s in every if s.method in (BASELINE, *methods))


def recommended(settings: Sequence[Setting], sharp: bool | None = None) -> list[Setting]:
    """Those of some settings that are recommended where nothing was tuned, in their order.

    SMC along VP with restarts, and epsilon-greedy search in two steps for a distilled model, as in
    `docs/searches.md`; of several temperatures the first, which is a twentieth of the reward's
    spread in `declared`.

    Args:
      settings: of which they are.
      sharp: as `flowsde.tuning.screen.Verdict`; None where it is not known, for both.
    """
    kinds = {
        False: ("smc", _VP | _times(6, 3) | {"potential": "difference"} | _RESTARTS),
        True: ("epsilon_greedy", _VP | _times(2, 0) | _FROM_THE_START),
    }
    chosen = []
    for method, options in kinds.values() if sharp is None else [kinds[sharp]]:
        wanted = set(options.items())
        like = (s for s in settings if s.method == method and wanted <= set(s.options))
        chosen += list(like)[:1]
    return chosen


def diagnosed(settings: Sequence[Setting]) -> list[Setting]:
    """A setting for each stochastic path on which some choose: the first of each."""
    first: dict[Any, Setting] = {}
    for setting in settings:
        if setting.method != BASELINE and setting.kernel().stochastic:
            first.setdefault(setting.path, setting)
    return list(first.values())


def unique(settings: Sequence[Setting]) -> None:
    """ValueError if two settings are the same."""
    names = [setting.name for setting in settings]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"settings must be different ones, got {twice!r} twice")
