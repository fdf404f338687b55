"""Options of `flowsde sample`, what each preset means for each method, and what they build.

A preset gives every setting of every method; options that the user gives replace some. `resolve`
checks the whole, drops what has no effect, and `build` makes the search.
"""

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from flowsde import diffusion, grids, interpolants, kernels
from flowsde._checks import check_count
from flowsde.search import Search, bon, rbf

INTERPOLANTS = ("linear", "vp", "cosine", "linear_vp", "polynomial")
KERNELS = ("euler_maruyama", "ddim", "cps", "ode_euler")
DIFFUSIONS = (
    *("constant", "sigma", "linear", "square", "sin"),
    *("clipping", "exp", "tan", "flow_grpo", "forward"),
)
GRIDS = ("uniform", "quadratic", "cosine", "shifted")
_SHIFT = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run; after `resolve`, None means that the setting has no effect.

    Attributes are those of `flowsde sample`; `nfe` and `diffusion_scale` may be None in a preset
    for one trajectory's worth and for the coefficient's own default.
    """

    nfe: int | None = 500
    interpolant: str = "linear"
    kernel: str = "euler_maruyama"
    eta: float | None = 1.0
    data_variance: float | None = 0.0
    diffusion: str | None = "square"
    diffusion_scale: float | None = None
    grid: str = "uniform"
    steps: int = 20
    reward: Literal["likelihood", "rss"] = "likelihood"
    chains: int | None = 2
    seeds: int | None = 1
    last: str | None = "exhaust"
    finish: str | None = "complete"
    finish_steps: int | None = 10
    guidance: float = 1.0
    width: int | None = 4


# Trajectories have no budget of their own: they take the grid's steps.
_ODE = Settings(nfe=None, kernel="ode_euler", steps=40)
_PAPER = Settings(interpolant="vp", grid="quadratic", steps=10, finish="mean")

PRESETS: dict[str, dict[str, Settings]] = {
    "recommended": {
        "ode": _ODE,
        "sde": Settings(nfe=None, steps=40),
        "bon": Settings(kernel="ode_euler", width=16),
        "rbf": Settings(interpolant="vp", kernel="ddim", data_variance=0.25),
    },
    # Kim et al., 2025, arXiv 2503.19385: 10 steps; best-of-N follows the linear ODE.
    "paper": {
        "ode": dataclasses.replace(_ODE, steps=10),
        "sde": dataclasses.replace(_PAPER, nfe=None),
        "bon": Settings(kernel="ode_euler", steps=10, width=16),
        "rbf": _PAPER,
    },
}
METHODS = tuple(PRESETS["recommended"])

CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "preset": tuple(PRESETS),
    "interpolant": INTERPOLANTS,
    "kernel": KERNELS,
    "diffusion": DIFFUSIONS,
    "grid": GRIDS,
    "reward": ("likelihood", "rss"),
    "last": ("exhaust", "improve"),
    "finish": ("complete", "mean"),
}
"""What each option that is a word can be."""

_RBF = ("nfe", "chains", "seeds", "last", "finish", "finish_steps", "width")
_COUNTS = ("nfe", "steps", "chains", "seeds", "finish_steps", "width")


def flag(name: str) -> str:
    """How an option is written on the command line."""
    return "--" + name.replace("_", "-")


def _check(name: str, value: Any) -> None:
    if name in CHOICES and value not in CHOICES[name]:
        known = ", ".join(CHOICES[name])
        raise ValueError(f"{flag(name)} must be one of {known}, got {value!r}")
    if name in _COUNTS:
        check_count(flag(name), value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{flag(name)} must be a finite number, got {value}")


def _unused(method: str, s: Settings) -> dict[str, str]:
    """Settings that have no effect, and why."""
    unused: dict[str, str] = {}
    for names, used, why in (
        (("eta", "data_variance"), s.kernel in ("ddim", "cps"), f"kernel {s.kernel}"),
        (("diffusion", "diffusion_scale"), s.kernel == "euler_maruyama", f"kernel {s.kernel}"),
        (("finish_steps",), s.finish == "complete", f"finish {s.finish}"),
        (("chains", "seeds", "last", "finish", "finish_steps"), method == "rbf", "method"),
        (("width",), method in ("bon", "rbf"), "method"),
    ):
        if not used:
            why = f"method {method}" if why == "method" else why
            unused |= dict.fromkeys(names, why)
    return unused


def _one_trajectory(method: str, s: Settings, given: dict[str, Any]) -> Settings:
    """The budget of one trajectory is its steps, twice that with guidance."""
    cost = evaluations(s)
    if s.nfe is None:
        return dataclasses.replace(s, nfe=s.steps * cost)
    steps = s.steps if "steps" in given else s.nfe // cost
    if steps * cost != s.nfe:
        raise ValueError(
            f"--nfe must be {cost} x --steps = {cost * max(steps, 1)} for the one trajectory of "
            f"method {method}, got {s.nfe}"
        )
    return dataclasses.replace(s, steps=steps)


def evaluations(s: Settings) -> int:
    """Model evaluations a candidate costs."""
    return 1 if s.guidance == 1.0 else 2


def resolve(preset: str, method: str, given: dict[str, Any]) -> Settings:
    """A preset's settings for a method, with some replaced by the user.

    Args:
      preset, method: by name.
      given: fields of `Settings`.

    Raises:
      ValueError: naming an option that is wrong, or that would have no effect.
    """
    for name, value in {"preset": preset, "method": method, **given}.items():
        _check(name, value)
    s = dataclasses.replace(PRESETS[preset][method], **given)
    if (method == "ode") != (s.kernel == "ode_euler") and method in ("ode", "sde"):
        wanted = "ode_euler" if method == "ode" else "euler_maruyama, ddim or cps"
        raise ValueError(f"--kernel must be {wanted} for method {method}, got {s.kernel!r}")
    unused = _unused(method, s)
    for name in given:
        if name in unused:
            raise ValueError(f"{flag(name)} has no effect with {unused[name]}, got {given[name]!r}")
    if method in ("ode", "sde"):
        s = _one_trajectory(method, s, given)
    if s.diffusion_scale is None and s.diffusion is not None:
        make = getattr(diffusion, s.diffusion)
        default = inspect.signature(make).parameters["scale"].default
        s = dataclasses.replace(s, diffusion_scale=default)
    nothing: dict[str, Any] = dict.fromkeys(unused)
    return dataclasses.replace(s, **nothing)


def _kernel(s: Settings) -> kernels.Kernel:
    p = getattr(interpolants, s.interpolant)()
    if s.kernel == "ode_euler":
        return kernels.ode_euler(p)
    if s.kernel == "euler_maruyama":
        return kernels.euler_maruyama(p, getattr(diffusion, str(s.diffusion))(s.diffusion_scale))
    return getattr(kernels, s.kernel)(p, s.eta, s.data_variance)


def build(method: str, s: Settings) -> Search:
    """The search of resolved settings; errors name the setting."""
    kernel = _kernel(s)
    shift = (_SHIFT,) if s.grid == "shifted" else ()
    grid = getattr(grids, s.grid)(s.steps, *shift)
    names = ("nfe", "width") if method != "rbf" else _RBF
    options = {name: getattr(s, name) for name in names if getattr(s, name) is not None}
    make: Any = rbf if method == "rbf" else bon
    made: Search = make(kernel=kernel, grid=grid, **options)
    # The runner divides the budget by what a candidate costs; is that enough?
    made.with_nfe(made.nfe // evaluations(s))
    return made


def describe(method: str, s: Settings) -> str:
    """The effective settings in one line."""
    values = [(k, v) for k, v in dataclasses.asdict(s).items() if v is not None]
    shown = (f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values)
    return " ".join([method, *shown])


def _number(kind: type, name: str) -> PrimitiveConstructorSpec:
    def convert(words: list[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"expected {name}, got {words[0]!r}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="N" if kind is int else "X",
        instance_from_str=convert,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


_QUIET = tyro.conf.arg(help_behavior_hint="")
Int = Annotated[int | None, _number(int, "an integer"), _QUIET]
Float = Annotated[float | None, _number(float, "a number"), _QUIET]


def _shown(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def _word(name: str) -> Any:
    return _shown("{" + ",".join(CHOICES[name]) + "}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Search for a picture of PROMPT with the embedded text-to-image flow.

    A prompt is one or two groups, for example "three red circles and two blue squares"; several
    quoted prompts are searched one after the other. What is not given comes from the preset.
    """

    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, _shown("PROMPT...")]
    """What the picture should show."""
    method: Annotated[str, _word("method")] = "rbf"
    """One ODE or SDE trajectory, Best-of-N, or Rollover Budget Forcing (the default)."""
    nfe: Int = None
    """Budget in evaluations of the model, a hard cap: 500, or one trajectory's steps."""
    preset: Annotated[str, _word("preset")] = "recommended"
    """What measures best on the embedded model (the default), or the setting of the RBF paper."""
    interpolant: Annotated[str | None, _word("interpolant")] = None
    """In which the search moves; the flow is converted."""
    kernel: Annotated[str | None, _word("kernel")] = None
    """How a particle moves from one time to the next."""
    eta: Float = None
    """Share of fresh noise of the ddim and cps kernels, 0 to 1."""
    data_variance: Float = None
    """Variance of the data that the ddim and cps kernels assume; 0 uses the posterior mean."""
    diffusion: Annotated[str | None, _word("diffusion")] = None
    """Diffusion coefficient of the euler_maruyama kernel."""
    diffusion_scale: Float = None
    """Its scale; by default the coefficient's own."""
    grid: Annotated[str | None, _word("grid")] = None
    """Spacing of the times; shifted is Stable Diffusion 3's, by 3."""
    steps: Int = None
    """Steps of the grid."""
    reward: Annotated[str | None, _word("reward")] = None
    """Of the learned scorer: log-likelihood of the counts, or minus their squared error."""
    chains: Int = None
    """Independent chains of rbf, which share the budget."""
    seeds: Int = None
    """Draws of noise of which a chain of rbf starts from the best."""
    last: Annotated[str | None, _word("last")] = None
    """What the last step of rbf does with the rest of the budget."""
    finish: Annotated[str | None, _word("finish")] = None
    """How rbf ends: complete the best trajectory by ODE steps, or return the posterior mean."""
    finish_steps: Int = None
    """Evaluations of the budget for completing."""
    guidance: Float = None
    """Classifier-free guidance scale; other than 1 it doubles the cost of every candidate."""
    width: Int = None
    """Candidates evaluated at once (of a chain, for rbf): speed, not the answer."""
    target_reward: Float = None
    """Stop as soon as a reward is this high."""
    seed: Annotated[int, _number(int, "an integer")] = 0
    """Of all random numbers."""
    overwrite: bool = False
    """Replace a finished result."""
    out: Annotated[Path | None, _shown("DIR")] = None
    """Folder of the results, with one below it for each of several prompts; by default
    flowsde-out/PROMPT-METHOD-seedSEED."""
