"""The times that a Stable Diffusion 3 was made for, as `scheduler/scheduler_config.json` says them.

n steps start from n even times from 1 to a least one, and end at 0. All are shifted by
s t / (1 + (s - 1) t), with s = 3 as published. The least is 1 / 1000 shifted: as in the published
scheduler it is shifted twice, so that the last step begins near the picture.
"""

from pathlib import Path

import numpy as np

from flowsde._checks import check_count, check_positive
from flowsde.grids import MOST_STEPS, Grid
from flowsde.models.common import scheduler

SHIFT = 3.0
"""Of all that are published."""
_CLASS = "FlowMatchEulerDiscreteScheduler"
_TIMES = 1000
# Other ways to space the times; no Stable Diffusion 3 has them.
_UNKNOWN = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
)


def grid(n: int, shift: float = SHIFT) -> Grid:
    """n + 1 times from 1 to 0; ValueError for steps or a shift that cannot be."""
    check_count("n", n, most=MOST_STEPS)
    check_positive("shift", shift)
    even = np.linspace(1.0, float(_shifted(np.asarray(1.0 / _TIMES), shift)), n)
    return np.append(_shifted(even, shift), 0.0)


def time_after(share: float, shift: float = SHIFT) -> float:
    """The time at which about this share of a grid's steps is taken."""
    return float(_shifted(np.asarray(1.0 - share), shift))


def _shifted(t: np.ndarray, shift: float) -> np.ndarray:
    return shift * t / (1.0 + (shift - 1.0) * t)


def read(folder: Path) -> float:
    """The shift of a `scheduler` folder.

    Raises:
      ValueError: there is none, it is of another class, a field is of the wrong kind, or it spaces
        times in a way that is not known here.
    """
    path, says = scheduler.fields(folder, _CLASS, "Stable Diffusion 3")
    unknown = [name for name in _UNKNOWN if says.get(name)]
    if says.get("num_train_timesteps", _TIMES) != _TIMES:
        unknown.append("num_train_timesteps")
    if unknown:
        got = ", ".join(f"{name} {says[name]!r}" for name in unknown)
        raise ValueError(f"{path} has {got}, expected times that are shifted by shift alone")
    shift = says.get("shift", 1.0)
    if not scheduler.is_finite(shift) or shift <= 0:
        raise ValueError(f"{path}: shift must be positive and finite, got {shift!r}")
    return float(shift)
