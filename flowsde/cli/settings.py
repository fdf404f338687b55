"""Settings of `flowsde sample`, the words that they can be, and what each preset sets.

Without JAX, so that the command line can be read, and its help be printed, without waiting for it.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from flowsde.cli.makers import Option, makers, names

TRAJECTORIES = {"ode": False, "sde": True}
"""Methods that follow one trajectory, the best of one, and whether that is stochastic."""
SEARCHES = makers("flowsde.search")
MOVES = makers("flowsde.kernels")
METHODS = (*TRAJECTORIES, *SEARCHES)
KERNELS = tuple(MOVES)
INTERPOLANTS = ("linear", "vp", "cosine", "linear_vp", "polynomial")
DIFFUSIONS = (
    *("constant", "sigma", "linear", "square", "sin"),
    *("clipping", "exp", "tan", "flow_grpo", "forward"),
)
EMBEDDED = ("shapes", "shapes-turbo")
"""Models that come with the package."""
_FEW_STEPS = ("shapes-turbo",)
MOST_IN_SECONDS = 2_000
"""Model evaluations that a budget in seconds may buy, unless told otherwise."""
GRIDS = ("uniform", "quadratic", "cosine", "shifted")


def _by_option(table: Mapping[str, Mapping[str, Option]]) -> dict[str, dict[str, Option]]:
    """The options of all makers by name, and of each the makers that have it."""
    found: dict[str, dict[str, Option]] = {}
    for maker, options in table.items():
        for name, option in options.items():
            found.setdefault(name, {})[maker] = option
    return found


TUNING = _by_option(SEARCHES)
"""Options of some methods' searches, which take them by these names."""
MOVING = _by_option(MOVES)
"""Options of some kernels, likewise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    nfe: int | None = 500
    interpolant: str = "linear"
    kernel: str = "euler_maruyama"
    diffusion: str | None = "square"
    diffusion_scale: float | None = None
    grid: str = "uniform"
    steps: int | None = 20
    reward: str = "likelihood"
    guidance: float = 1.0
    gradient_temperature: float | None = 0.0
    strength: float | None = None
    gradient_curvature: float | None = None
    noise_tilt: float | None = None


_DOC = """The settings of one run: its own, and the options of all makers.

In a preset None is the maker's default, and of `nfe`, `diffusion_scale` and `steps` one
trajectory's worth, the coefficient's own, and a fifth of the budget but at most 10. After `resolve`
None means that the setting has no effect. A `gradient_temperature` of 0 is no guidance, a
`gradient_curvature` of None no damping of it. Of the `steps` the last `strength` are run, of a
picture to begin from.
"""

if TYPE_CHECKING:

    class Settings:  # noqa: D101
        __dataclass_fields__: ClassVar[dict[str, Any]]

        def __init__(self, **settings: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
else:
    Settings = dataclasses.make_dataclass(
        "Settings",
        [(name, Any, None) for name in (*MOVING, *TUNING)],
        bases=(_Run,),
        namespace={"__doc__": _DOC, "__module__": __name__},
        frozen=True,
        kw_only=True,
    )

# Trajectories have no budget of their own: they take the grid's steps.
_ODE: dict[str, Any] = {"nfe": None, "kernel": "ode_euler", "steps": 40}
_BON: dict[str, Any] = {"kernel": "ode_euler", "steps": 10}
_RECOMMENDED: dict[str, Any] = {
    "interpolant": "vp", "kernel": "ddim", "data_variance": 0.25, "steps": None
}  # fmt: skip
_PAPER: dict[str, Any] = {"interpolant": "vp", "grid": "quadratic", "steps": 10, "finish": "mean"}

# Of models of a few steps, whose posterior means are pictures at every time.
_DISTILLED = _RECOMMENDED | {"steps": 4, "finish": "mean"}

_DIFFERENT: dict[str, dict[str, dict[str, Any]]] = {
    "recommended": {
        "ode": _ODE,
        "sde": {"nfe": None, "steps": 40},
        "bon": _BON | {"steps": 6},
        "halving": _BON,
        "zero_order": _BON | {"steps": 6},
        "lidar": _BON | {"temperature": 0.25},
        "sop": {"kernel": "ode_euler", "backward": 5},
        "evolution": {"kernel": "ode_euler", "steps": 4},
        "dfs": {"kernel": "ode_euler", "steps": None},
        # Of the embedded scorer's log-likelihood; the scale of a reward decides.
        "pcn": {"kernel": "ode_euler", "steps": 4, "temperature": 0.25},
        "smc": _RECOMMENDED | {"steps": 6, "temperature": 0.25, "restart_at": 0.5},
        "dts": _RECOMMENDED | {"temperature": 0.25},
        "psi": _RECOMMENDED | {"temperature": 0.25},
        "rbf": _RECOMMENDED | {"width": 3},
    },
    "distilled": {
        "ode": _ODE | {"steps": 4},
        "sde": {"nfe": None, "steps": 4},
        "bon": _BON | {"steps": 2},
        "halving": _BON | {"steps": 4},
        "zero_order": _BON | {"steps": 2},
        "lidar": _BON | {"steps": 4, "temperature": 0.25},
        "sop": {
            "kernel": "ode_euler", "steps": 4, "start": 1, "forward": 1, "backward": 2,
            "finish": "mean",
        },
        "evolution": {"kernel": "ode_euler", "steps": 4, "children": 8, "parents": 2},
        "dfs": {"kernel": "ode_euler", "steps": 4, "finish": "mean"},
        "dts": _DISTILLED | {"temperature": 0.25},
        "pcn": {"kernel": "ode_euler", "steps": 2, "temperature": 0.25},
        "smc": _DISTILLED | {"temperature": 0.25},
        "psi": _DISTILLED | {"temperature": 0.25},
        "svdd": _DISTILLED | {"chains": 4},
        # The start competes too.
        "epsilon_greedy": _DISTILLED | {"steps": 2, "branch_at": 2},
        "rbf": _DISTILLED | {"width": 3},
    },
    # Kim et al., 2025, arXiv 2503.19385: 10 steps; best-of-N and SoP follow the linear ODE.
    "paper": {
        "ode": _ODE | {"steps": 10},
        "sde": {**_PAPER, "nfe": None},
        "bon": _BON,
        "halving": _BON,
        "zero_order": _BON,
        "lidar": _BON,
        # Theirs takes 10 ODE steps in each of 5 rounds of K = 5 children of N = 2 paths, to and
        # from times of their own; on a grid, this is nearest.
        "sop": {
            "kernel": "ode_euler", "steps": 14, "start": 8, "forward": 7, "backward": 8,
            "finish": "mean",
        },
        "dfs": {"kernel": "ode_euler", "steps": 10, "finish": "mean"},
        "pcn": _BON,
        # As in the public code: a chain begins from the best of 25 draws, and the last transition
        # has what the others leave, of 500 evaluations 48 a chain.
        "rbf": _PAPER | {"width": 3, "seeds": 25, "allocation": "reserve"},
    },
}  # fmt: skip
_OF_OTHERS = {"recommended": _RECOMMENDED, "distilled": _DISTILLED, "paper": _PAPER}

PRESETS = {
    preset: {
        # cps redraws all noise too, unless --eta says otherwise.
        method: Settings(**{"eta": 1.0, **different.get(method, _OF_OTHERS[preset])})
        for method in METHODS
    }
    for preset, different in _DIFFERENT.items()
}
"""What differs from the makers' defaults; methods that are not listed share one setting."""


def preset_of(preset: str, model: str) -> str:
    """The preset by its name for an embedded model: what is recommended depends on its kind."""
    return "distilled" if preset == "recommended" and model in _FEW_STEPS else preset


def method_of(preset: str, model: str) -> str:
    """The method where none is named: the best that was measured.

    Of models of others it needs no temperature: nobody knows the scale of their rewards.
    """
    kind = preset_of(preset, model)
    if kind == "distilled":
        return "epsilon_greedy"
    return "smc" if kind == "recommended" and model in EMBEDDED else "svdd"


def default(method: str, name: str, preset: str = "recommended") -> Any:
    """What an option of a method's search is if it is not given."""
    own = getattr(PRESETS[preset][method], name)
    return SEARCHES[method][name].default if own is None else own


def default_of_kernel(kernel: str, name: str) -> Any:
    """What an option of a kernel is if it is not given, where a preset uses the kernel."""
    own = getattr(PRESETS["recommended"]["rbf"], name)
    return MOVES[kernel][name].default if own is None else own


CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "preset": tuple(PRESETS),
    "interpolant": INTERPOLANTS,
    "kernel": KERNELS,
    "diffusion": DIFFUSIONS,
    "grid": GRIDS,
    "reward": ("likelihood", "rss"),
    "task": names("flowsde.shapes.tasks", "TASKS"),
    "split": ("dev", "test"),
}
"""What each option that is a word can be."""
COUNTS = {"nfe", "steps"}
"""Options that are whole numbers from 1."""
for _name, _makers in (TUNING | MOVING).items():
    for _option in _makers.values():
        if _option.kind is str:
            CHOICES[_name] = tuple(dict.fromkeys((*CHOICES.get(_name, ()), *_option.choices)))
        elif _option.kind is int:
            COUNTS.add(_name)


ALWAYS = (
    *("nfe", "interpolant", "kernel", "eta", "data_variance", "diffusion", "diffusion_scale"),
    *("grid", "steps", "reward", "chains", "seeds", "last", "allocation", "temperature", "block"),
    *("potential", "scheme", "threshold", "interval", "paths", "start", "forward", "backward"),
    *("finish", "finish_steps", "guidance", "gradient_temperature", "width"),
)
"""Settings that results have also where they have no effect; those of later makers only where."""


_UNSAID = {
    "accept": "improve",
    "value": "mean",
    "tempering": "none",
    "funnel": 1.0,
    "mass": "value",
    "restart_at": 0.0,
}
"""What an earlier version did, before it was an option."""


def as_values(s: Settings) -> dict[str, Any]:
    """Settings as result.json has them; a maker's new option changes those of no other run."""
    every = dataclasses.asdict(s)
    return {
        name: value
        for name, value in every.items()
        if name in ALWAYS or value not in (None, _UNSAID.get(name))
    }


def flag(name: str) -> str:
    """How an option is written on the command line."""
    # "seeds" alone would be mistaken for those of the random numbers.
    return "--" + {"seeds": "chain-seeds"}.get(name, name.replace("_", "-"))
