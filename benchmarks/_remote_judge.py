"""A reward that is computed elsewhere: it takes its time without taking any of this machine's.

Served by ``flowsde serve-reward --reward _remote_judge:judge``; without JAX.
"""

import os
import time
from typing import Any

import numpy as np

SECONDS = float(os.environ.get("REWARD_SECONDS", "0"))
"""Of one image."""
VERSION = 1


def judge(images: np.ndarray, cond: Any) -> np.ndarray:
    """Brightness, float32 [n], after `SECONDS` for each image."""
    time.sleep(SECONDS * len(images))
    return images.reshape(len(images), -1).mean(axis=1, dtype=np.float32)
