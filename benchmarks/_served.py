"""Rewards of `flowsde serve-reward`, in processes of their own on this machine."""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def served(reward: str, **environment: str) -> Iterator[str]:
    """The URL of a server of a reward, MODULE:FUNCTION of this folder.

    Args:
      reward: by name.
      environment: variables that its module reads.
    """
    words = ["-m", "flowsde", "serve-reward", "--reward", reward, "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=pathlib.Path(__file__).parent,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = dict(process.stdout.readline().split() for _ in range(3))
        yield said["url"]
    finally:
        process.terminate()
        process.wait(60)
