"""A job of several processes, each with some of the devices of a mesh, through `jax.distributed`.

All processes run the same script, with the same arguments to every call on the mesh, as a single
one would:

    with fs.distributed.job():
        mesh = jax.make_mesh((jax.device_count(),), ("prompt",))
        for result in fs.iterate(key, flow, search, reward, prompt_ids=ids, cond=cond, mesh=mesh):
            fs.save_search(folder, search, result)       # in the folder that all processes share
        for prompt, own in fs.distributed.own_prompts(result, ids):
            np.savez(f"{prompt}.npz", image=own.image, reward=own.reward)

When a process is lost the others cannot go on: they end with an error, and the same script started
again goes on from the last save, by as many processes as there are then.
"""

import contextlib
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flowsde.runner.result import Result

__all__ = ["job", "own_prompts"]

FAILED = 1
"""Exit status of a process that raised."""
_HINT = (
    "did not get to its end: it failed, or another process was lost (see above). Start the job "
    "again: it goes on from what flowsde.save_search has saved, with as many processes as it has "
    "then."
)


@contextlib.contextmanager
def job(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat: int = 30,
) -> Iterator[None]:
    """Take part in a job, before anything else asks JAX for devices.

    An error inside ends the process at once, with its traceback and status 1, and the others then
    end too: without all of them there is no orderly way out. However a process comes to a bad end,
    it says that it did, and how to resume.

    Args:
      coordinator: "host:port" of process 0. None on a cluster that JAX knows (SLURM, TPU pods, …),
        where all is found out; with ``processes=1`` there is nothing to join.
      processes: how many there are.
      process: the number of this one.
      heartbeat: seconds after which a process that is not heard of is lost, and JAX ends the
        others (by SIGABRT).

    Example:
      >>> with fs.distributed.job(processes=1):  # else coordinator, processes and process
      ...     print(jax.process_count())
      1
    """
    if processes == 1:
        yield
        return
    # Of CPU devices; others have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=heartbeat)
    where = f"process {jax.process_index()} of {jax.process_count()}"
    # A process that JAX ends has no last word, so another one has it, when its input is closed.
    witness = subprocess.Popen(
        ["sh", "-c", 'read -r end || echo "$0" >&2', f"flowsde: {where} {_HINT}"],
        stdin=subprocess.PIPE,
    )
    try:
        yield
    except (Exception, KeyboardInterrupt):
        traceback.print_exc()
        sys.stdout.flush()
        # Python's own end would wait for the lost one.
        os._exit(FAILED)
    jax.distributed.shutdown()
    witness.communicate(b"end\n")


def own_prompts(result: Result, prompt_ids: Any) -> Iterator[tuple[int, Result]]:
    """Results of the prompts that this process is to write, which together are all of them.

    Args:
      result: of `flowsde.run` or `iterate` with `prompt_ids` on a mesh of all processes.
      prompt_ids: that were run.

    Yields:
      (prompt id, its result in NumPy, as of a run of its own but without the state).

    Raises:
      ValueError: the result is of another number of prompts.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.svdd(
      ...     nfe=40, kernel=fs.kernels.ddim(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> ids = [3, 1]
      >>> result = fs.run(jax.random.key(0), flow, search, reward, prompt_ids=ids)
      >>> {i: int(own.nfe) for i, own in fs.distributed.own_prompts(result, ids)}
      {3: 40, 1: 40}
    """
    ids = np.asarray(prompt_ids)
    if ids.shape != np.shape(result.nfe):
        raise ValueError(
            f"prompt_ids must be those of the result, of {np.shape(result.nfe)}, got {ids.shape}"
        )
    owners = _owners(result.x)
    for i in np.flatnonzero(owners == jax.process_index()):
        fields = {
            name: jax.tree.map(lambda leaf, i=i: _row(leaf, int(i)), value)
            for name, value in result._asdict().items()
            if name not in ("info", "state", "given", "run")
        }
        seconds = result.info.seconds
        info = jax.tree.map(lambda a, i=i: a[:, i], result.info._replace(seconds=None))
        yield int(ids[i]), Result(**fields, info=info._replace(seconds=seconds), state=None)


def _owners(x: jax.Array) -> np.ndarray:
    """The process, of those that hold a prompt's row, that writes it: they take turns."""
    holders: list[set[int]] = [set() for _ in range(x.shape[0])]
    places: dict[Any, Any] = dict(x.sharding.devices_indices_map(x.shape))
    for device, index in places.items():
        for i in range(*index[0].indices(x.shape[0])):
            holders[i].add(device.process_index)
    return np.asarray([sorted(some)[i % len(some)] for i, some in enumerate(holders)])


def _row(value: Any, i: int) -> Any:
    """Row i of an array of which this process has it."""
    if not isinstance(value, jax.Array):
        return np.asarray(value)[i]
    for shard in value.addressable_shards:
        rows = range(*shard.index[0].indices(value.shape[0]))
        if i in rows:
            return np.asarray(shard.data)[rows.index(i)]
    raise AssertionError(f"row {i} is not here")
