"""The programs of a search compiled together, a thread each.

XLA compiles a program on one core, and a round has several. Each is lowered here, from shapes, and
compiled while the others are; JAX finds what was compiled when the round calls for it. On a mesh
programs are compiled when they are called: how their arguments are split is known only then.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from flowsde.runner.mesh import Placement


def results_of(program: Any, placement: Placement, *args: Any) -> Any:
    """Shapes of what a compiled function gives, and the device that it is committed to."""
    shapes = program.eval_shape(*args)
    if placement.device is None:
        return shapes
    sharding = SingleDeviceSharding(placement.device)
    return jax.tree.map(lambda a: a.update(sharding=sharding), shapes)


def compile_together(calls: Sequence[tuple[Any, tuple[Any, ...]]]) -> None:
    """Compile functions for arguments, arrays or their shapes; errors are those of compiling."""
    lowered = [program.lower(*args) for program, args in calls]
    with ThreadPoolExecutor(len(lowered)) as pool:
        for _ in pool.map(lambda one: one.compile(), lowered):
            pass
