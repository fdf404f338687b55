"""The times that a Z-Image was made for, as `scheduler/scheduler_config.json` says them.

n steps start from the uniform times (1, 1 - 1/n, ..., 1/n), shifted by s t / (1 + (s - 1) t), and
end at 0.
"""

from pathlib import Path

from flowsde.models.common import scheduler

_CLASS = "FlowMatchEulerDiscreteScheduler"
# Other ways to space the times; no Z-Image has them.
_UNKNOWN = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
)


def read(folder: Path) -> float:
    """The shift of a `scheduler` folder.

    Raises:
      ValueError: there is none, it is of another class, a field is of the wrong kind, or it spaces
        times in a way that is not known here.
    """
    path, says = scheduler.fields(folder, _CLASS, "Z-Image")
    wrong = [name for name in _UNKNOWN if says.get(name)]
    if says.get("num_train_timesteps", 1000) != 1000:
        wrong.append("num_train_timesteps")
    if wrong:
        got = ", ".join(f"{name} {says[name]!r}" for name in wrong)
        raise ValueError(f"{path} has {got}, expected times that are shifted by a fixed amount")
    shift = says.get("shift", 1.0)
    if not scheduler.is_finite(shift) or shift <= 0:
        raise ValueError(f"{path}: shift must be positive and finite, got {shift!r}")
    return float(shift)
