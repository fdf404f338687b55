"""What is measured: trajectories of one prompt, and siblings that branch off them.

A trajectory x_0, x_1, … follows the kernel down the grid, and its value at t_i is the reward of the
posterior mean E[x0 | x_i]. Its final picture is the last of these, or what the kernel's own step to
t = 0 gives. At every step some trajectories have further children, drawn as their own was and
followed down to the end, too.

Rows are in lockstep, all at one time. Draws belong to identities: those of trajectory n to (prompt
key, n, step), as in `flowsde.sample`; of a sibling to (prompt key, n, step of its birth, number,
step).
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._exact import Now
from flowsde._keys import IMPLEMENTATION
from flowsde.conds import for_reward, rows_on_host
from flowsde.flow import initial_noise
from flowsde.kernels import Kernel
from flowsde.rewards import HostReward
from flowsde.runner.arguments import Job
from flowsde.runner.evaluate import means, shown, verify

_BIRTH = 2**31
"""Folded into a trajectory's key with a step, which is below it, for the siblings born there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is drawn of each prompt.

    Attributes:
      kernel: how a particle moves.
      grid: times falling from 1 to 0.
      n: trajectories.
      families: trajectories that have siblings, 0 for a deterministic kernel.
      siblings: children of one state, the trajectory's own included.
      final: "mean" or "kernel", as for `flowsde.sample`.
    """

    kernel: Kernel
    grid: tuple[float, ...]
    n: int
    families: int
    siblings: int
    final: Literal["mean", "kernel"]

    @property
    def times(self) -> tuple[float, ...]:
        """At which there is a value; the last is that of the final picture."""
        return self.grid[:-1] if self.final == "mean" else self.grid

    @property
    def born(self) -> int:
        """Rows that begin at every step."""
        return self.families * (self.siblings - 1)

    @property
    def along(self) -> int:
        """Candidates evaluated along one trajectory."""
        steps = len(self.times) - 1
        return steps * self.kernel.evaluations + (self.final == "mean")

    @property
    def candidates(self) -> int:
        """Candidates evaluated for one prompt."""
        steps, each = len(self.times) - 1, self.kernel.evaluations
        # A sibling is born before its parent's children are evaluated at the next time.
        after = sum(each * (steps - 1 - i) + (each - 1) for i in range(steps))
        after += steps * (self.final == "mean")
        return self.n * self.along + self.born * after


class Measured(NamedTuple):
    """Rewards of one prompt's trajectories, at T times.

    Attributes:
      rewards: float32 [n, T], of posterior means, the last of final pictures; -inf for NaN.
      sibling_rewards: float32 [families, T - 1, siblings], of the children of one state at the time
        after it; the first is the trajectory's own.
      sibling_finals: of their final pictures, likewise.
      nfe: model evaluations charged.
      evaluations: model evaluations computed, padding of chunks included.
      verifier_calls: rewards.
      seconds: float64 [2], of one model evaluation of a candidate and of one reward, decoding
        included; medians over the chunks but the first, which compiles; NaN if there is no other.
    """

    rewards: np.ndarray
    sibling_rewards: np.ndarray
    sibling_finals: np.ndarray
    nfe: int
    evaluations: int
    verifier_calls: int
    seconds: np.ndarray


def _own(key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key, impl=IMPLEMENTATION)


@jax.jit
def _trajectory_keys(prompt: jax.Array, ids: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.vmap(partial(jax.random.fold_in, prompt))(ids))


@jax.jit
def _sibling_keys(keys: jax.Array, step: jax.Array, number: jax.Array) -> jax.Array:
    def one(key: jax.Array, number: jax.Array) -> jax.Array:
        born = jax.random.fold_in(_own(key), jnp.uint32(_BIRTH) + step)
        return jax.random.key_data(jax.random.fold_in(born, number))

    return jax.vmap(one)(keys, number)


@partial(jax.jit, static_argnames=("shape", "kernel"))
def _start(keys: jax.Array, shape: tuple[int, ...], kernel: Now) -> jax.Array:
    def one(key: jax.Array) -> jax.Array:
        return initial_noise(jax.random.fold_in(_own(key), 0), shape, kernel.value.interpolant)

    return jax.vmap(one)(keys)


@partial(jax.jit, static_argnames=("kernel",))
def _move(
    keys: jax.Array, x: jax.Array, x0: jax.Array, x1: jax.Array,
    step: jax.Array, t: jax.Array, s: jax.Array, kernel: Now,
) -> jax.Array:  # fmt: skip
    def one(key: jax.Array, x: jax.Array, x0: jax.Array, x1: jax.Array) -> jax.Array:
        own: Kernel = kernel.value
        draw = own.draw if own.inner_evaluations else own
        return draw(jax.random.fold_in(_own(key), step + 1), x, x0, x1, t, s)

    return jax.vmap(one)(keys, x, x0, x1)


@partial(jax.jit, static_argnames=("kernel",))
def _correct(*rows: jax.Array, t: jax.Array, s: jax.Array, kernel: Now) -> jax.Array:
    correct: Any = kernel.value.correct
    return jax.vmap(correct, (*[0] * len(rows), None, None))(*rows, t, s)


@partial(jax.jit, static_argnames=("kernel",))
def _observe(
    x: jax.Array, drawn: jax.Array, step: jax.Array, t: jax.Array, s: jax.Array, kernel: Now
) -> tuple[jax.Array, jax.Array]:
    return jax.vmap(lambda x, drawn: kernel.value.observe(step, x, drawn, t, s))(x, drawn)


@partial(jax.jit, static_argnames=("kernel",))
def _advance(
    x: jax.Array, drawn: jax.Array, x0: jax.Array,
    step: jax.Array, t: jax.Array, s: jax.Array, kernel: Now,
) -> jax.Array:  # fmt: skip
    return jax.vmap(lambda *rows: kernel.value.advance(step, *rows, t, s))(x, drawn, x0)


def _in_chunks(f: Callable[..., Any], size: int, *arrays: np.ndarray) -> Any:
    """NumPy arrays of f over rows, `size` at once; the last are filled up with the last row."""
    n, parts = len(arrays[0]), []
    for first in range(0, n, size):
        at = np.minimum(np.arange(first, first + size), n - 1)
        new = jax.device_get(f(*(a[at] for a in arrays)))
        parts.append(jax.tree.map(lambda a, left=n - first: a[:left], new))
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


class _Meter:
    """Evaluates rows of one prompt, counts, and takes the time."""

    def __init__(self, job: Job, prompt: int, kernel: Kernel, tell: Callable[[int], None]):
        self._job, self._tell, self.kernel, self.now = job, tell, kernel, Now(kernel)
        self.cost, self.size = job.flow.evaluations, job.sizes.model
        of_one = jax.tree.map(lambda a: a[prompt], job.model.cond)
        self._cond, self._told = (self._repeated(of_one, rows) for rows in job.sizes[:2])
        self.nfe = self.evaluations = self.verifier_calls = 0
        self._seconds: tuple[list[float], list[float]] = ([], [])

    @staticmethod
    def _repeated(cond: Any, rows: int) -> Any:
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (rows, *a.shape)), cond)

    def means(self, x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        """(x0, x1) of rows at one time."""
        flow, p, at = self._job.flow, self.kernel.interpolant, jnp.full(self.size, t, jnp.float32)
        left = len(x)

        def chunk(x: np.ndarray) -> Any:
            nonlocal left
            begun = time.perf_counter()
            found = jax.block_until_ready(means(flow, x, at, self._cond, interpolant=p))
            self._seconds[0].append((time.perf_counter() - begun) / self.size)
            self.nfe += self.cost * min(left, self.size)
            self.evaluations += self.cost * self.size
            left -= self.size
            self._tell(self.nfe)
            return found

        return _in_chunks(chunk, self.size, x)

    def rewards(self, x0: np.ndarray) -> np.ndarray:
        """Of the pictures of x0, float32 [rows]; -inf for NaN."""
        size, left = self._job.sizes.reward, len(x0)
        self.verifier_calls += left

        def chunk(x0: np.ndarray) -> np.ndarray:
            nonlocal left
            begun = time.perf_counter()
            rewards = self._judged(x0, min(left, size))
            self._seconds[1].append((time.perf_counter() - begun) / size)
            left -= size
            self._tell(self.nfe)
            return np.where(np.isnan(rewards), np.float32(-np.inf), rewards)

        return _in_chunks(chunk, size, x0)

    def _judged(self, x0: np.ndarray, wanted: int) -> np.ndarray:
        """Rewards of a chunk; a reward outside JAX sees what is wanted alone."""
        job = self._job
        if not isinstance(job.reward, HostReward):
            return np.asarray(verify(job.flow, job.reward, x0, self._told).reward)
        seen = shown(job.flow, x0, job.reward.latents)
        images, finite = (np.asarray(a)[:wanted] for a in seen)
        own = rows_on_host(for_reward(self._told), np.arange(wanted))
        rewards = np.full(len(x0), np.nan, np.float32)
        rewards[:wanted] = np.where(finite, job.reward(images, own), np.nan)
        return rewards

    def move(
        self, keys: np.ndarray, x: np.ndarray, x0: np.ndarray, x1: np.ndarray,
        step: int, t: float, s: float,
    ) -> np.ndarray:  # fmt: skip
        """x of every row's child at s."""
        times = {"t": jnp.float32(t), "s": jnp.float32(s), "kernel": self.now}
        draw = partial(_move, step=jnp.int32(step), **times)
        moved = _in_chunks(draw, self.size, keys, x, x0, x1)
        if self.kernel.inner_evaluations:
            return self._arrive(x, moved, t, s)
        if self.kernel.evaluations == 1:
            return moved
        following = self.means(moved, s)
        return _in_chunks(partial(_correct, **times), self.size, x, x0, x1, moved, *following)

    def _arrive(self, x: np.ndarray, drawn: np.ndarray, t: float, s: float) -> np.ndarray:
        """x of every row at s, by the kernel's inner evaluations, each counted on its own."""
        kernel: Any = self.kernel
        times = {"t": jnp.float32(t), "s": jnp.float32(s), "kernel": self.now}
        for step in range(1, kernel.inner_steps):
            own = {"step": jnp.int32(step), **times}
            point, at = _in_chunks(partial(_observe, **own), self.size, x, drawn)
            x0, _ = self.means(point, at[0])
            drawn = _in_chunks(partial(_advance, **own), self.size, x, drawn, x0)
        return drawn

    def seconds(self) -> np.ndarray:
        """Of one evaluation and of one reward."""
        kept = [one[1:] for one in self._seconds]
        return np.asarray([np.median(one) if one else np.nan for one in kept])


def _measure_values(
    meter: _Meter, key: jax.Array, plan: Plan, shape: tuple[int, ...]
) -> list[np.ndarray]:
    """Values of all rows at each time, [n + born * time]."""
    keys = np.asarray(_trajectory_keys(key, np.arange(plan.n, dtype=np.uint32)))
    begin = partial(_start, shape=shape, kernel=meter.now)
    x = _in_chunks(begin, meter.size, keys)
    values: list[np.ndarray] = []
    parents = np.repeat(np.arange(plan.families), plan.siblings - 1)
    numbers = np.tile(np.arange(1, plan.siblings, dtype=np.uint32), plan.families)
    for i, t in enumerate(plan.times):
        if t == 0.0:
            return [*values, meter.rewards(x)]
        x0, x1 = meter.means(x, t)
        values.append(meter.rewards(x0))
        if i == len(plan.times) - 1:
            break
        if parents.size:
            born = np.asarray(_sibling_keys(keys[parents], jnp.uint32(i), numbers))
            keys = np.concatenate([keys, born])
            x, x0, x1 = (np.concatenate([a, a[parents]]) for a in (x, x0, x1))
        x = meter.move(keys, x, x0, x1, i, t, plan.grid[i + 1])
    return values


def measure(
    job: Job, prompt: int, plan: Plan, tell: Callable[[int], None] = lambda nfe: None
) -> Measured:
    """Draw and evaluate what `plan` says of one prompt.

    Args:
      job: checked arguments, whose chunk sizes are used.
      prompt: its place among the job's.
      plan: what to draw.
      tell: called with the evaluations charged so far after every chunk; it may raise.
    """
    meter = _Meter(job, prompt, plan.kernel, tell)
    values = _measure_values(meter, job.keys[prompt], plan, job.flow.shape)
    n, steps, many = plan.n, len(plan.times) - 1, plan.families
    rewards = np.stack([own[:n] for own in values], 1)
    shape = (many, steps, plan.siblings if many else 0)
    near, last = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for i in range(steps if many else 0):
        rows = slice(n + plan.born * i, n + plan.born * (i + 1))
        for told, column, own in ((near, i + 1, values[i + 1]), (last, -1, values[-1])):
            told[:, i] = np.column_stack([rewards[:many, column], own[rows].reshape(many, -1)])
    counts = (meter.nfe, meter.evaluations, meter.verifier_calls)
    return Measured(rewards, near, last, *counts, meter.seconds())
