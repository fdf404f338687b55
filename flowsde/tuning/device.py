"""What a tuning is measured on, in words: seconds of one kind of device hold for no other."""

import os
import platform
from pathlib import Path

import jax


def device() -> str:
    """The kind of this process's devices and their number; of a CPU, its cores."""
    every = jax.local_devices()
    if every[0].platform == "cpu":
        return f"{_processor()}, {os.cpu_count()} cores"
    return f"{len(every)} x {every[0].device_kind}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
