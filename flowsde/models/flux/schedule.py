"""The times that a FLUX.1 was made for, as `scheduler/scheduler_config.json` says them.

n steps start from the uniform times (1, 1 - 1/n, …, 1/n) and end at 0. They are shifted by
s t / (1 + (s - 1) t): in dev s = exp(mu), with mu linear in the number of image tokens; in schnell
s = 1, which changes nothing.

Steps are in no file. Uniform times are those of schnell, which was distilled to four steps; models
with shifted times take the 28 of the pipeline in `diffusers`.
"""

import dataclasses
from pathlib import Path

from flowsde import _schema, grids
from flowsde.models.common import scheduler

_CLASS = "FlowMatchEulerDiscreteScheduler"
_TIMES = 1000
"""Times that the model counts between data and noise."""
# Other ways to space the times; no FLUX.1 has them.
_UNKNOWN = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How times are spaced.

    Attributes:
      dynamic: whether the shift follows the number of tokens.
      shift: otherwise.
      low: a number of tokens, and mu at it.
      high: another.
    """

    dynamic: bool = True
    shift: float = 1.0
    low: tuple[float, float] = (256, 0.5)
    high: tuple[float, float] = (4096, 1.15)

    @property
    def steps(self) -> int:
        """That a trajectory takes unless told otherwise."""
        return 28 if self.dynamic or self.shift != 1.0 else 4

    def grid(self, n: int, tokens: int) -> grids.Grid:
        """n + 1 times for images of so many tokens."""
        if self.dynamic:
            return grids.flux(n, tokens, low=self.low, high=self.high)
        return grids.shifted(n, self.shift)


def read(folder: Path) -> Schedule:
    """The schedule of a `scheduler` folder.

    Raises:
      ValueError: there is none, it is of another class, a field is of the wrong kind, or it spaces
        times in a way that is not known here.
    """
    path, says = scheduler.fields(folder, _CLASS, "FLUX")
    unknown = [name for name in _UNKNOWN if says.get(name)]
    for name, usual in (("time_shift_type", "exponential"), ("num_train_timesteps", _TIMES)):
        if says.get(name, usual) != usual:
            unknown.append(name)
    if unknown:
        got = ", ".join(f"{name} {says[name]!r}" for name in unknown)
        raise ValueError(f"{path} has {got}, expected times that are shifted exponentially or not")
    positive = ("shift", "base_image_seq_len", "max_image_seq_len")
    for name in (*positive, "base_shift", "max_shift"):
        value = says.get(name, 1.0)
        if not scheduler.is_finite(value) or (name in positive and value <= 0):
            kind = "positive and finite" if name in positive else "finite"
            raise ValueError(f"{path}: {name} must be {kind}, got {value!r}")
    low, high = says.get("base_image_seq_len", 256), says.get("max_image_seq_len", 4096)
    if low >= high:
        raise ValueError(
            f"{path}: base_image_seq_len must be below max_image_seq_len, got {low} and {high}"
        )
    dynamic = says.get("use_dynamic_shifting", False)
    return Schedule(
        dynamic=_schema.flag(dynamic, f"{path}: use_dynamic_shifting"),
        shift=says.get("shift", 1.0),
        low=(low, says.get("base_shift", 0.5)),
        high=(high, says.get("max_shift", 1.15)),
    )
