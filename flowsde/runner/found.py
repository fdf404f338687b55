"""What is said of prompts that never had a reward, and of what is to blame."""

import warnings
from typing import Any

import numpy as np

from flowsde.runner.arguments import Job
from flowsde.runner.mesh import fetch


class NoAnswer(ValueError):
    """Prompts of which no candidate had a finite reward.

    Attributes:
      why: without the prompts.
    """

    def __init__(self, why: str, ids: list[int]):
        super().__init__(f"{why} of prompt ids {ids}")
        self.why = why


def check_found(job: Job, ids: np.ndarray, rewards: Any, answers: Any = None) -> None:
    """Raise or warn, as the job asks, about prompts that never had a reward.

    Args:
      job: to which they belong.
      ids: of the prompts that have ended, [n].
      rewards: of their answers, [n]; of one also [].
      answers: (x0, images) of them, with the same axes, which tell what is to blame.
    """
    hopeless = np.isneginf(np.atleast_1d(rewards))
    if not hopeless.any():
        return
    error = NoAnswer(blame(job, hopeless, answers), ids[hopeless].tolist())
    if job.invalid == "error":
        raise error
    # Two functions lie between this and the user's line.
    warnings.warn(str(error), stacklevel=4)


def blame(job: Job, hopeless: np.ndarray, answers: Any) -> str:
    """Why some prompts have no reward: the first of model, decoder and reward that failed.

    Args:
      job: to which they belong.
      hopeless: which prompts, bool [n].
      answers: (x0, images) of all, with leading axis n unless n is 1; None blames the reward.
    """
    if answers is not None:
        x0, images = (np.asarray(a).reshape(hopeless.size, -1)[hopeless] for a in fetch(answers))
        if bad := int((~np.isfinite(x0)).sum()):
            return (
                f"velocity_fn is not finite: {bad} of {x0.size} values of x0 are NaN or infinite "
                f"(weights that are, a float16 model that overflows, or too large a guidance "
                f"scale or step?), in the answer"
            )
        if bad := int((~np.isfinite(images)).sum()):
            return (
                f"decode is not finite: {bad} of {images.size} values of the image are NaN or "
                f"infinite, and those of x0 are not, in the answer"
            )
    return f"reward {job.reward.name!r} was NaN or -inf for every candidate"
