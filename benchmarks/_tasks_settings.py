"""What `tasks.py` compares: methods with all settings that make them what they are.

A setting names every option in which it could differ, so that its name, the identity of its rows,
does not depend on defaults. One with an option that its method does not have is unknown.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from flowsde.cli import presets, settings
from flowsde.cli.settings import Settings
from flowsde.search import Search
from flowsde.search.protocol import BudgetTooSmall
from flowsde.tuning import settings as tuning

METHODS = (
    *("ode", "bon", "sop", "evolution", "smc", "code", "svdd", "rbf", "halving", "zero_order"),
    *("lidar", "dfs", "dts", "pcn", "psi", "epsilon_greedy"),
)
GUIDED = ("noise_tilt", "tds", "das")
"""Searches with the gradient of the reward, methods of their own in rows: NoiseTilt, twisted
diffusion sampling and DAS (its tempered form)."""
RESTARTS = "restarts"
"""SMC with restarts, a method of its own in rows too."""


def _labelled(name: str) -> Callable[["Setting"], bool]:
    return lambda setting: setting.label == name


VARIANTS: dict[str, Callable[["Setting"], bool]] = {
    **{name: _labelled(name) for name in (*GUIDED, RESTARTS)},
    "current": lambda setting: setting.get("potential") == "current",
    "window": lambda setting: bool(setting.get("resample_from") or setting.get("resample_until")),
    "variance": lambda setting: setting.get("mass") is not None,
    "glass": lambda setting: setting["kernel"] == "glass",
}
"""Further names of settings, beside their methods."""
MODELS = ("shapes", "shapes-turbo")
DISTILLED = ("shapes-turbo",)
"""Models of a few steps, whose posterior means are pictures from the start."""

_BASE = Settings(eta=1.0, nfe=None)
_WIDTH = {"bon": 8, "rbf": 1}
"""Candidates of a round; changes no answer."""


class Unknown(ValueError):
    """A setting has an option that this version has not."""


class Setting(tuning.Setting):
    """A method and options by name, as the command has them; all budgets share it."""

    @property
    def guided(self) -> bool:
        """Whether it takes gradients of the reward."""
        return bool(self.get("gradient_temperature") or self.get("noise_tilt"))

    @property
    def label(self) -> str:
        """The method of its rows: of `GUIDED`, `RESTARTS`, or its own."""
        if self.get("noise_tilt"):
            return "noise_tilt"
        if self.method == "smc" and self.guided:
            return "das" if self.get("tempering") else "tds"
        return RESTARTS if self.get("restart_at") else self.method

    def is_a(self, name: str) -> bool:
        """Whether a name of `METHODS` or of `VARIANTS` is one of its own."""
        return VARIANTS[name](self) if name in VARIANTS else self.label == name

    def search(self, nfe: int) -> Search:
        """The search with a budget.

        Raises:
          Unknown: this version has no such option.
          ValueError: as of `flowsde.cli.presets.build`.
        """
        given = dict(self.options)
        fields = {field.name for field in dataclasses.fields(Settings)}
        for name, value in given.items():
            if name not in fields or value not in settings.CHOICES.get(name, (value,)):
                raise Unknown(f"this version has no {name}={value}")
        if self.method not in settings.TRAJECTORIES:
            given["nfe"] = nfe
        resolved = presets.resolve_from(_BASE, self.method, given)
        if self.method in _WIDTH:
            resolved = dataclasses.replace(resolved, width=_WIDTH[self.method])
        return presets.build(self.method, resolved)

    def fits(self, nfe: int) -> bool:
        """Whether a budget is enough; that of one trajectory is its steps."""
        if self.method in settings.TRAJECTORIES:
            return nfe == self.get("steps")
        try:
            self.search(nfe)
        except ValueError as error:
            if isinstance(error.__cause__ or error, BudgetTooSmall):
                return False
            raise
        return True


def make(method: str, *groups: dict[str, Any], **more: Any) -> Setting:
    """A setting of groups of options, later ones first."""
    options: dict[str, Any] = {}
    for group in (*groups, more):
        options |= group
    return Setting(method, tuple(options.items()))


ODE: dict[str, Any] = {"interpolant": "linear", "kernel": "ode_euler"}
VP: dict[str, Any] = {"interpolant": "vp", "kernel": "ddim", "data_variance": 0.25}
VP_MEAN = VP | {"data_variance": 0.0}
LINEAR: dict[str, Any] = {"interpolant": "linear", "kernel": "ddim", "data_variance": 0.0}
CPS: dict[str, Any] = {"interpolant": "linear", "kernel": "cps", "eta": 0.75}
_EM: dict[str, Any] = {
    "kernel": "euler_maruyama", "diffusion": "square", "diffusion_scale": 3.0
}  # fmt: skip
EM = {"interpolant": "linear"} | _EM
VP_EM = {"interpolant": "vp"} | _EM
PAPER: dict[str, Any] = {"grid": "quadratic", "steps": 10, "finish": "mean"}

PLAIN_NFE = 40
TRAJECTORY = make("ode", ODE, steps=PLAIN_NFE)
"""A plain sample: how hard a task is."""


def _steps(n: int, finish: int) -> dict[str, Any]:
    """Steps, and evaluations of finishing; 0 for none."""
    return {"steps": n} | ({"finish_steps": finish} if finish else {"finish": "mean"})


def best_of_n() -> Iterator[Setting]:
    """The baseline, tuned to each task and budget."""
    for n in (3, 4, 6, 8, 10, 20, 40):
        yield make("bon", ODE, steps=n)
    for n in (6, 10):
        yield make("bon", LINEAR, steps=n)
    for n in (6, 10, 20):
        yield make("bon", VP, steps=n)


def _accepting(accept: str) -> dict[str, Any]:
    """Rules that `rbf` may not have yet; that of the paper is there without a name."""
    return {} if accept == "improve" else {"accept": accept}


def paper(interpolants: tuple[str, ...] = ("linear", "vp")) -> Iterator[Setting]:
    """Kim et al., 2025: 10 steps of Euler-Maruyama on their grid, and the posterior mean."""
    for path in (EM, VP_EM):
        if path["interpolant"] in interpolants:
            yield make("smc", path, PAPER, temperature=0.1, potential="difference")
            yield make("code", path, PAPER, chains=2, block=2)
            yield make("svdd", path, PAPER, chains=2)
            yield make("rbf", path, PAPER, chains=2, seeds=25, allocation="reserve")


def undistilled() -> Iterator[Setting]:
    """Of a model with blurred posterior means."""
    yield from best_of_n()
    ten, six = _steps(10, 3), _steps(6, 3)
    for steps in (ten, six, _steps(14, 4)):
        for beta in (0.25, 0.5, 1.0):
            yield make("smc", VP, steps, temperature=beta, potential="difference")
    for path, beta in ((LINEAR, 1.0), (CPS, 0.5), (VP_EM, 0.5), (EM, 0.5)):
        yield make("smc", path, ten, temperature=beta, potential="difference")
    yield make("smc", VP, ten, temperature=0.5, potential="max")
    yield make("smc", VP, ten, temperature=0.25, potential="difference", interval=3)
    for n in (2, 4, 8):
        yield make("svdd", VP, ten, chains=n)
    for n in (2, 4):
        yield make("svdd", VP, six, chains=n)
    for path in (LINEAR, VP):
        yield make("code", path, ten, chains=2, block=3)
    yield make("code", VP, six, chains=2, block=2)
    for n in (1, 2):
        yield make("sop", ODE, ten, paths=n, start=2, forward=2, backward=4)
    for n, children, parents in ((4, 4, 1), (4, 8, 2), (5, 4, 1)):
        drawn = {"children": children, "parents": parents, "mutate_at": 1.0 - 1.0 / n}
        yield make("evolution", ODE, drawn, steps=n)
    for accept in ("improve", "calibrated", "quantile"):
        yield make("rbf", VP, ten, _accepting(accept), chains=2)
    yield make("rbf", VP, ten, _accepting("calibrated"), chains=4)
    yield from _looking_ahead()
    yield from _few_rewards((6, 10), (4, 6))
    yield from _redrawing(ten, _steps(5, 2))
    yield from _by_gradients(ten, (10, 20))
    yield from _weighing(ten, {"resample_from": 2, "resample_until": 8, "interval": 2}, 3)
    yield from _restarting()


def _looking_ahead() -> Iterator[Setting]:
    """Rewards of ends of trajectories, and branching at chosen times."""
    ten, ode = _steps(10, 3), {"value": "ode", "value_steps": 3}
    few, calibrated = {"branch_at": 3}, {"accept": "calibrated"}
    smc = {"temperature": 0.25, "potential": "difference"}
    for branching in (few, few | ode):
        yield make("smc", VP, ten, smc, branching)
    yield make("svdd", VP, ten, few | ode, chains=2)
    yield make("rbf", VP, ten, few, calibrated, ode, chains=2)


def _few_rewards(long: tuple[int, int], short: tuple[int, int]) -> Iterator[Setting]:
    """Searches that ask for the rewards of finished pictures alone, of long and short ones."""
    for n in long:
        yield make("halving", ODE, steps=n, factor=4, draft_steps=short[0])
        for scale in (1.0, 4.0):
            pull = {"temperature": 0.25, "scale": scale, "pull_until": 0.2}
            yield make("lidar", ODE, pull, steps=n, trajectories=2, draft_steps=short[0])
        for select in ("bound", "sample"):
            tree = {"select": select, "temperature": 0.25, "explore": 1.0, "branch_at": 2}
            yield make("dts", VP, tree, steps=n)
    for n in short:
        for share in (0.5, 0.8):
            yield make("zero_order", ODE, steps=n, neighbours=4, perturbation=share)
            yield make("pcn", ODE, steps=n, chains=4, step_size=share, temperature=0.25)


def _redrawing(many: dict[str, Any], few: dict[str, Any]) -> Iterator[Setting]:
    """Searches over the noise of steps, and kernels that redraw more of it or less."""
    smc = {"temperature": 0.25, "potential": "difference"}
    for tries, backtrack in ((3, 2), (2, 1)):
        drawn = {"chains": 1, "check_at": 3, "tries": tries, "backtrack": backtrack}
        yield make("dfs", ODE, many, drawn)
    for share in (0.5, 0.8):
        rates = {"perturbation": share, "epsilon": 0.5, "epsilon_middle": 0.1}
        yield make("epsilon_greedy", VP, many, rates, neighbours=4)
    for beta in (0.25, 0.5):
        yield make("psi", VP, many, temperature=beta, chains=4, step_size=0.5)
    for path in ({"interpolant": "vp"}, {"interpolant": "linear"}):
        exact = path | {"kernel": "exact", "diffusion": "square", "diffusion_scale": 3.0}
        yield make("smc", exact, many, smc)
        glass = path | {"kernel": "glass", "inner_steps": 2, "rho": 0.4}
        yield make("smc", glass, few, smc)
    redrawn = {"interpolant": "vp", "kernel": "correlated", "rho": 0.4, "data_variance": 0.25}
    yield make("smc", redrawn, many, smc)
    glass = {"interpolant": "vp", "kernel": "glass", "inner_steps": 2}
    yield make("svdd", glass | {"rho": 0.4}, few, chains=2)
    yield make("smc", glass, few, smc, kappa=1.0)
    tree = {"select": "bound", "temperature": 0.25, "explore": 1.0, "branch_at": 1}
    yield make("dts", glass | {"rho": 0.4}, tree, steps=few["steps"] + 1)
    yield make("smc", VP, many, smc, tempering="adaptive")
    yield make("smc", VP, many, smc, funnel=0.5)


def _by_gradients(many: dict[str, Any], whole: tuple[int, int]) -> Iterator[Setting]:
    """NoiseTilt, of whole trajectories of so many steps and with SVDD; TDS and DAS."""
    for n in whole:
        for share in (0.05, 0.15, 0.4):
            yield make("bon", VP, steps=n, noise_tilt=share)
    yield make("svdd", VP, many, chains=2, noise_tilt=0.15)
    for beta in (0.25, 0.5, 1.0):
        smc = {"temperature": beta, "potential": "difference", "gradient_temperature": beta}
        yield make("smc", VP, many, smc)
        for tempering in ("exponential", "adaptive"):
            yield make("smc", VP, many, smc, tempering=tempering)


def _weighing(many: dict[str, Any], window: dict[str, Any], ahead: int) -> Iterator[Setting]:
    """SMC with the options of Feynman-Kac steering, and with masses of least variance.

    Args:
      many: steps.
      window: when particles may be resampled.
      ahead: evaluations of a sample from a particle on.
    """
    for beta in (0.5, 1.0, 4.0):
        yield make("smc", VP, many, temperature=beta, potential="current")
    for beta, potential in ((0.25, "difference"), (0.5, "difference"), (0.5, "max")):
        yield make("smc", VP, many, window, temperature=beta, potential=potential)
    samples = {"value": "samples", "value_steps": ahead, "value_samples": 2}
    for beta in (0.25, 0.5):
        smc = {"temperature": beta, "potential": "difference"}
        # Resampled by the values themselves to compare with.
        for mass in ("variance", "value"):
            yield make("smc", VP, many, smc, samples, mass=mass, branch_at=3 if ahead > 1 else 2)
        yield make("smc", VP, many, smc, samples, mass="variance")


def _restarting() -> Iterator[Setting]:
    """SMC from the best particle of the pass before, noised up to the middle of the times."""
    few, smc = _steps(4, 2), {"temperature": 0.25, "potential": "difference"}
    for n in (4, 8):
        yield make("smc", VP, few, smc, restart_at=0.5, particles=n)
    yield make("smc", VP, few, smc, temperature=0.5, restart_at=0.5, particles=4)
    for n in (1, 2):
        yield make("smc", VP, few, smc, branch_at=n, restart_at=0.5, particles=4)
    yield make("smc", VP, _steps(5, 2), smc, restart_at=0.4, particles=4)
    for n in (4, 6):
        yield make("smc", VP, _steps(6, 3), smc, restart_at=0.5, particles=n)
    for beta in (0.02, 1.0):
        six = _steps(6, 3) | smc | {"temperature": beta}
        yield make("smc", VP, six, restart_at=0.5, particles=6)
    yield make("smc", VP, _steps(6, 3), smc, restart_at=0.5, particles=8)
    yield make("smc", VP, _steps(8, 3), smc, restart_at=0.5, particles=6)


def _from_the_start() -> Iterator[Setting]:
    """Where the start competes too: its means are pictures."""
    rates = {"epsilon": 0.5, "epsilon_middle": 0.1}
    tried = ((2, 0.35, 8), (2, 0.5, 4), (2, 0.5, 8), (2, 0.65, 4), (2, 0.65, 8))
    for steps, share, n in (*tried, (3, 0.5, 4), (4, 0.8, 4)):
        drawn = {"perturbation": share, "neighbours": n, "branch_at": steps}
        yield make("epsilon_greedy", VP, _steps(steps, 0), drawn, rates)
    yield make("zero_order", ODE, steps=1, neighbours=4, perturbation=0.5)
    for path in (VP_EM, EM):
        few = PAPER | {"steps": 6, "temperature": 0.1}
        yield make("smc", path, few, potential="difference")


def distilled() -> Iterator[Setting]:
    """Of a model of a few steps: few of them, and nothing to finish."""
    for n in (1, 2, 3, 4, 6, 8):
        yield make("bon", ODE, steps=n)
    for path, n in ((LINEAR, 2), (LINEAR, 3), (LINEAR, 4), (VP_MEAN, 2), (VP_MEAN, 4), (VP, 8)):
        yield make("bon", path, steps=n)
    four, eight, ten = _steps(4, 0), _steps(8, 0), _steps(10, 0)
    paths = ((VP, four), (VP_MEAN, four), (VP, eight), (LINEAR, four), (VP_EM, ten))
    for path, steps in (*paths, (VP, _steps(6, 2))):
        for beta in (0.25, 0.5, 1.0) if path is VP else (0.5,):
            yield make("smc", path, steps, temperature=beta, potential="difference")
    for path, steps in ((VP, four), (VP_EM, ten)):
        yield make("svdd", path, steps, chains=4)
        yield make("code", path, steps, chains=2, block=2)
        for accept in ("improve", "calibrated"):
            yield make("rbf", path, steps, _accepting(accept), chains=2)
    for n in (1, 2, 8):
        yield make("svdd", VP, four, chains=n)
    for path in (LINEAR, VP_MEAN):
        yield make("svdd", path, four, chains=4)
    yield make("rbf", VP, four, _accepting("quantile"), chains=2)
    for n, children, parents in ((4, 4, 1), (4, 8, 2), (3, 4, 1)):
        drawn = {"children": children, "parents": parents, "mutate_at": 1.0 - 1.0 / n}
        yield make("evolution", ODE, drawn, steps=n)
    yield make("sop", ODE, four, paths=2, start=1, forward=1, backward=2)
    yield make("sop", ODE, eight, paths=2, start=2, forward=2, backward=4)
    yield from _few_rewards((4, 8), (2, 4))
    yield from _redrawing(four, _steps(2, 0))
    yield from _by_gradients(four, (4, 8))
    yield from _weighing(four, {"resample_from": 2}, 1)
    yield from _from_the_start()
    for n, at in ((4, 0.75), (4, 0.5), (3, 0.67)):
        smc = {"temperature": 0.25, "potential": "difference"}
        yield make("smc", VP, _steps(n, 0), smc, restart_at=at, particles=4)
    # Times closer to each other near the noise, where most is decided.
    near: dict[str, Any] = {"grid": "shifted"}
    for n in (4, 6):
        made = _steps(n, 0) | near | {"temperature": 0.25}
        yield make("smc", VP, made, potential="difference")
    yield make("bon", ODE, {"steps": 2}, near)


def declared(model: str) -> tuple[Setting, ...]:
    """All settings of a kind of model, Best-of-N's first."""
    made = distilled() if model in DISTILLED else undistilled()
    return tuple(dict.fromkeys(made))
