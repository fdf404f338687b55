"""A flow and a reward for the command that compile fast; as a script, a command that kills itself.

python stand_in.py SAVES ARGS…: `flowsde ARGS`, saved after every round, killed after SAVES saves;
what `compare` saves are its parts, what `batch` saves are prompts and attempts that end.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp

import flowsde as fs
from flowsde import shapes
from flowsde.cli import main as cli
from flowsde.cli import resume
from flowsde.cli.batch_folder import Folder

# The package's name `measure` is its function.
measure: Any = import_module("flowsde.cli.compare.measure")
attempts: Any = import_module("flowsde.cli.batch_folder")


def _velocity(params: jax.Array, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
    centre = params * jnp.mean(cond.astype(jnp.float32), axis=1)[:, None, None, None]
    return (x - centre) / jnp.maximum(t, 0.05)[:, None, None, None] * 0.5


def _reward(images: jax.Array, cond: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.square(images), axis=(1, 2, 3))


def _uneven_reward(images: jax.Array, cond: jax.Array) -> jax.Array:
    """Harder for some prompts than for others."""
    hardness = (jnp.sum(cond, axis=1) % 4).astype(jnp.float32)
    return _reward(images, cond) * (1.0 + 0.3 * hardness)


FLOW = fs.Flow.from_callable(_velocity, jnp.float32(0.01), (32, 32, 3))


def use(setattr: Any) -> None:
    """Put them in the place of the embedded ones."""
    setattr(shapes, "load_flow", lambda *_: FLOW)
    rewards = {"likelihood": _reward, "rss": _uneven_reward}
    setattr(shapes, "load_reward", lambda name, *_: rewards[name])


def _main(saves: int, args: list[str]) -> None:
    use(setattr)

    def deadly(save: Callable[..., None]) -> Callable[..., None]:
        def save_and_die(*given: Any, **named: Any) -> None:
            nonlocal saves
            save(*given, **named)
            saves -= 1
            if saves == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        return save_and_die

    resume.EVERY, resume.save_state = 0.0, deadly(resume.save_state)
    measure.write_arrays = deadly(measure.write_arrays)
    attempts.write_arrays = deadly(attempts.write_arrays)
    Folder.end = deadly(Folder.end)
    cli.main(args)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
