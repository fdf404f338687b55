"""A conversion in a process of its own that is killed in the middle, for `test_convert`."""

import os
import signal
import sys
from pathlib import Path

import toy

from flowsde_converters import convert, detect

if __name__ == "__main__":
    detect.register(toy.FAMILY)
    source, out = map(Path, sys.argv[1:])
    job = convert.prepare(source, family="toy")
    left = job.to_read

    def kill(size: int) -> None:
        """After half of the tensors."""
        global left
        left -= size
        if left < job.to_read // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    convert.run(job, out, advance=kill)
