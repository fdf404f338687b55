"""Several processes of one job on this machine, their collectives through Gloo."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import two_processes
from problems import batch, flow, reward

import flowsde as fs

HERE = Path(two_processes.__file__).parent
KEY = jax.random.key(two_processes.SEED)
LOST_AFTER = 4


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return str(probe.getsockname()[1])


def started(folder, *lost_after):
    """(exit status, output, errors) of two processes; again if another job took their port."""
    folder.mkdir(exist_ok=True)
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), *filter(None, sys.path)]))
    for _ in range(3):
        port = free_port()
        command = [sys.executable, two_processes.__file__, str(folder), port, "2"]
        both = [
            subprocess.Popen([*command, str(process), *map(str, lost_after)], env=env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for process in range(2)
        ]  # fmt: skip
        try:
            ends = [(*process.communicate(timeout=240), process.returncode) for process in both]
        finally:
            for process in both:
                process.kill()
        if not any("address already in use" in errors.lower() for _, errors, _ in ends):
            break
    return ends


@pytest.mark.slow
def test_a_lost_process_ends_the_job_which_then_ends_as_one_process_would(tmp_path):
    (_, errors, status), (*_, lost) = started(tmp_path, LOST_AFTER)
    assert lost == -signal.SIGKILL and status in (-signal.SIGABRT, fs.distributed.FAILED), errors
    message = r"process 0 of 2 did not get to its end: .* another process was lost .* Start the job"
    assert re.search(message, errors), errors
    assert not list(tmp_path.glob("*.npz"))

    ends = started(tmp_path)
    assert [status for *_, status in ends] == [0, 0], ends
    assert all(f"from round {LOST_AFTER - 1}\n" in output for output, *_ in ends)
    # Each has written its own prompts.
    ids, cond = batch(two_processes.PROMPTS)
    found = {int(p.name.split(".")[0]): int(p.name.split(".")[1]) for p in tmp_path.glob("*.npz")}
    assert found == dict(zip(ids.tolist(), [0, 0, 1, 1], strict=True))

    alone = fs.run(KEY, flow(), two_processes.SEARCH, reward, cond=cond,
                   prompt_ids=ids, mesh=jax.make_mesh((4,), ("prompt",)))  # fmt: skip
    for prompt, own in fs.distributed.own_prompts(alone, ids):
        with np.load(tmp_path / f"{prompt}.{found[prompt]}.npz") as written:
            for name, value in written.items():
                wanted = own.info.accepted if name == "accepted" else getattr(own, name)
                np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_own_prompts_are_of_the_result():
    ids, cond = batch(2)
    result = fs.run(KEY, flow(), two_processes.SEARCH, reward, cond=cond, prompt_ids=ids)
    (first, one), (second, _) = fs.distributed.own_prompts(result, ids)
    assert (first, second) == tuple(ids) and one.info.time.ndim == 2
    with pytest.raises(ValueError, match=r"prompt_ids must be those of the result, of \(2,\), got"):
        next(fs.distributed.own_prompts(result, [1]))
