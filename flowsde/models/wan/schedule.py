"""The times that a Wan was made for, as `scheduler/scheduler_config.json` says them.

n steps start from the first n of n + 1 even times from 1 to 1 / 1000, and end at 0. They are
shifted by s t / (1 + (s - 1) t): s = 3 for videos of 480 rows, 5 for 720.
"""

from pathlib import Path

import numpy as np

from flowsde._checks import check_count, check_positive
from flowsde.grids import MOST_STEPS, Grid
from flowsde.models.common import scheduler

_CLASS = "UniPCMultistepScheduler"
_TIMES = 1000
_EXPECTED = {
    "prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": _TIMES,
    "final_sigmas_type": "zero",
}  # fmt: skip
_DEFAULTS = {"prediction_type": "epsilon", "use_flow_sigmas": False}
"""What the class takes where nothing is said, if that is not what is expected."""
# Other ways to space the times; no Wan has them.
_UNKNOWN = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "shift_terminal",
    "thresholding",
)


def grid(n: int, shift: float) -> Grid:
    """n + 1 times from 1 to 0; ValueError for steps or a shift that cannot be."""
    check_count("n", n, most=MOST_STEPS)
    check_positive("shift", shift)
    t = np.linspace(1.0, 1.0 / _TIMES, n + 1)
    t = shift * t / (1.0 + (shift - 1.0) * t)
    t[-1] = 0.0
    return t


def read(folder: Path) -> float:
    """The shift of a `scheduler` folder.

    Raises:
      ValueError: there is none, it is of another class, a field is of the wrong kind, or it spaces
        times in a way that is not known here.
    """
    path, says = scheduler.fields(folder, _CLASS, "Wan")
    found = {name: says.get(name, _DEFAULTS.get(name, value)) for name, value in _EXPECTED.items()}
    wrong = {name: value for name, value in found.items() if value != _EXPECTED[name]}
    wrong |= {name: says[name] for name in _UNKNOWN if says.get(name)}
    if wrong:
        got = ", ".join(f"{name} {value!r}" for name, value in wrong.items())
        raise ValueError(f"{path} has {got}, expected the times of a flow, shifted by flow_shift")
    shift = says.get("flow_shift", 1.0)
    if not scheduler.is_finite(shift) or shift <= 0:
        raise ValueError(f"{path}: flow_shift must be positive and finite, got {shift!r}")
    return float(shift)
