"""The times that a FLUX.2 was made for.

n steps start from the uniform times (1, 1 - 1/n, ..., 1/n), shifted by s t / (1 + (s - 1) t), and
end at 0. s is exp(mu); of images of up to 4,300 tokens mu is linear in the number of steps, through
one line in the number of tokens at 10 steps and another at 200; of larger ones it is the second
line, however many steps there are. Numbers of the scheduler's file are not used, as in published
pipelines.
"""

import math
from pathlib import Path

from flowsde._checks import check_count
from flowsde.grids import Grid, shifted
from flowsde.models.common import scheduler

_CLASS = "FlowMatchEulerDiscreteScheduler"
_EXPECTED = {
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "num_train_timesteps": 1000,
}
# Other ways to space the times; no FLUX.2 has them.
_UNKNOWN = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
    "use_flow_sigmas",
)
_FEW, _MANY = (10, (8.73809524e-05, 1.89833333)), (200, (0.00016927, 0.45666666))
"""Steps, and the slope and the offset of mu at them."""
_LARGEST = 4300
"""Tokens of an image, beyond which steps do not count."""


def check(folder: Path) -> None:
    """ValueError unless a `scheduler` folder shifts times as FLUX.2's does."""
    path, says = scheduler.fields(folder, _CLASS, "FLUX.2")
    usual = {"use_dynamic_shifting": False}
    wrong = [
        name
        for name, wanted in _EXPECTED.items()
        if says.get(name, usual.get(name, wanted)) != wanted
    ]
    wrong += [name for name in _UNKNOWN if says.get(name)]
    if wrong:
        got = ", ".join(f"{name} {says.get(name)!r}" for name in wrong)
        raise ValueError(
            f"{path} has {got}, expected times that are shifted exponentially by the size of the "
            "image (use_dynamic_shifting)"
        )


def grid(n: int, tokens: int) -> Grid:
    """n + 1 times for images of so many tokens."""
    return shifted(n, math.exp(_mu(check_count("n", n), tokens)))


def _mu(n: int, tokens: int) -> float:
    few, many = (slope * tokens + offset for _, (slope, offset) in (_FEW, _MANY))
    if tokens > _LARGEST:
        return many
    return many + (many - few) / (_MANY[0] - _FEW[0]) * (n - _MANY[0])
