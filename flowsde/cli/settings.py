"""Settings of `flowsde sample`, and the words that they can be.

Names alone, so that the command line can be read, and its help be printed, without JAX.
"""

import dataclasses

METHODS = ("ode", "sde", "bon", "sop", "smc", "code", "svdd", "rbf")
INTERPOLANTS = ("linear", "vp", "cosine", "linear_vp", "polynomial")
KERNELS = ("euler_maruyama", "ddim", "cps", "ode_euler")
DIFFUSIONS = (
    *("constant", "sigma", "linear", "square", "sin"),
    *("clipping", "exp", "tan", "flow_grpo", "forward"),
)
GRIDS = ("uniform", "quadratic", "cosine", "shifted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run; after `resolve`, None means that the setting has no effect.

    Attributes are those of `flowsde sample`. In a preset `nfe`, `diffusion_scale`, `steps` and
    `finish_steps` may be None: one trajectory's worth, the coefficient's own default, a fifth of
    the budget but at most 20, half the steps or none. A `gradient_temperature` of 0 is no guidance.
    """

    nfe: int | None = 500
    interpolant: str = "linear"
    kernel: str = "euler_maruyama"
    eta: float | None = 1.0
    data_variance: float | None = 0.0
    diffusion: str | None = "square"
    diffusion_scale: float | None = None
    grid: str = "uniform"
    steps: int | None = 20
    reward: str = "likelihood"
    chains: int | None = 2
    seeds: int | None = 1
    last: str | None = "exhaust"
    allocation: str | None = "even"
    temperature: float | None = 0.0
    block: int | None = 2
    potential: str | None = "difference"
    scheme: str | None = "systematic"
    threshold: float | None = 0.5
    interval: int | None = 1
    paths: int | None = 2
    start: int | None = 2
    forward: int | None = 2
    backward: int | None = 4
    finish: str | None = "complete"
    finish_steps: int | None = None
    guidance: float = 1.0
    gradient_temperature: float | None = 0.0
    width: int | None = 4


CHOICES: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "preset": ("recommended", "paper"),
    "interpolant": INTERPOLANTS,
    "kernel": KERNELS,
    "diffusion": DIFFUSIONS,
    "grid": GRIDS,
    "reward": ("likelihood", "rss"),
    "last": ("exhaust", "improve"),
    "allocation": ("even", "reserve"),
    "potential": ("difference", "max", "sum", "final"),
    "scheme": ("multinomial", "stratified", "systematic", "residual", "ssp"),
    "finish": ("complete", "heun", "mean"),
}
"""What each option that is a word can be."""


def flag(name: str) -> str:
    """How an option is written on the command line."""
    # "seeds" alone would be mistaken for those of the random numbers.
    return "--" + {"seeds": "chain-seeds"}.get(name, name.replace("_", "-"))
