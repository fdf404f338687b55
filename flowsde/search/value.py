"""What an intermediate particle is worth: the reward of its posterior mean, or a look ahead.

A posterior mean at high noise is an average of many pictures, which a reward was not made for. A
`LookAhead` scores ends of short trajectories instead, m evaluations each, of the model alone:

* "ode": one end, of m Euler steps of the ODE to where finishing ends (`flowsde.search.complete`):
  evenly spaced in linear time down to `END`.
* "samples": k ends, approximate samples of p(x0 | x_t), each m steps of DDIM(1) (Song et al., 2021,
  arXiv 2010.02502, eta = 1) from t to linear times t (1 - j / (m + 1)), j = 1 … m, and the
  posterior mean there. A step from t to s draws from q(x_s | x_t, x0) with x0 at its mean: noise
  is taken off and drawn anew. With more steps the ends' law tends to p(x0 | x_t).

Rewards r_1 … r_k of the ends are averaged, or combined to beta log mean exp(r / beta) where a
temperature is given: the value that soft selection by exp(r / beta) is optimal with (Wu et al.,
2023, arXiv 2306.17775, section 3).

Looking ahead is for comparing particles on their way. What is scored at the last time of a search,
where its answer is chosen, is the posterior mean, as in finishing: only those compete for the
answer, and only they meet a target.

A kernel guided by the reward's gradient is given that of the reward of the posterior mean, as
without: no gradient goes through what is seen ahead. A candidate that is looked ahead from and
wants a gradient takes 1 + k m evaluations, of which the first is differentiated, and k + 1 rewards.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde._static import Static
from flowsde.interpolants import Interpolant
from flowsde.kernels import ddim
from flowsde.search.finishing import finishing_time, line_time

Value = Literal["mean", "ode", "samples"]
_AHEAD = np.iinfo(np.int32).max - 1
"""In place of a draw's number, the key of what is seen ahead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookAhead(Static):
    """How particles above a time are scored.

    Attributes:
      kind: "ode" or "samples".
      steps: m, of a trajectory.
      samples: k; 1 for "ode".
      until: the time, of the search's interpolant, at and below which posterior means are scored.
      temperature: beta; 0 averages.
    """

    kind: str
    steps: int
    samples: int
    until: float
    temperature: float = 0.0

    @property
    def cost(self) -> int:
        """Evaluations of the model for a particle, besides its own."""
        return self.steps * self.samples

    @property
    def draws(self) -> bool:
        """Whether it takes random keys."""
        return self.kind == "samples"

    def looks(self, t: Any) -> jax.Array:
        """Whether a particle at a time is scored by looking ahead."""
        return t > jnp.float32(self.until)

    def keys(self, keys: jax.Array) -> jax.Array | None:
        """`Candidates.key` from the keys [w] of candidates' draws."""
        if not self.draws:
            return None
        ahead = jax.vmap(jax.random.fold_in, (0, None))(keys, _AHEAD)
        return jax.vmap(jax.random.key_data)(ahead)

    def ends(
        self,
        interpolant: Interpolant,
        means: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
        x: jax.Array,
        t: jax.Array,
        x0: jax.Array,
        x1: jax.Array,
        keys: jax.Array | None,
    ) -> jax.Array:
        """x0 at the ends of trajectories, [n, k, *shape].

        Args:
          interpolant: of x and t.
          means: ``(x, t) -> (x0, x1)`` of n particles; called k m times.
          x, t, x0, x1: the particles and their posterior means.
          keys: uint32 [n, 2], of `keys`.
        """
        kernel = ddim(interpolant, eta=1.0 if self.draws else 0.0)
        move = jax.vmap(lambda *args: kernel(*args))
        data = jnp.zeros((*t.shape, 2), jnp.uint32) if keys is None else keys
        wrapped = jax.vmap(lambda k: jax.random.wrap_key_data(k, impl="threefry2x32"))(data)

        def one(sample: jax.Array) -> jax.Array:
            def step(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                x, now, x0, x1 = carry
                s = self._time(interpolant, t, j + 1)
                drawn = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, sample), j))
                x = move(drawn(wrapped), x, x0, x1, now, s)
                return x, s, *means(x, s)

            return jax.lax.fori_loop(0, self.steps, step, (x, t, x0, x1))[2]

        return jnp.moveaxis(jax.lax.map(one, jnp.arange(self.samples)), 0, 1)

    def _time(self, interpolant: Interpolant, start: jax.Array, j: jax.Array) -> jax.Array:
        """Time after j steps from `start`."""
        done = j.astype(jnp.float32)
        if self.kind == "ode":
            return finishing_time(interpolant, start, done / self.steps, self.steps)[1]
        return line_time(interpolant, start, 1.0 - done / (self.steps + 1))

    def combine(self, rewards: jax.Array) -> jax.Array:
        """The value [n] from the rewards [n, k] of the ends."""
        if self.temperature == 0.0:
            return jnp.sum(rewards / self.samples, -1)
        # Less the best first: scaled differences are finite for rewards of any size.
        best = jnp.max(rewards, -1, keepdims=True)
        scaled = jnp.where(rewards == best, 0.0, rewards - best) / self.temperature
        return best[..., 0] + self.temperature * jnp.log(jnp.mean(jnp.exp(scaled), -1))


def value_of(search: Any) -> LookAhead | None:
    """How a search's particles are scored; None by their means, as those of users' own are."""
    return getattr(search, "value", None)


def as_value(
    value: str, steps: int, samples: int, grid: Sequence[float], temperature: float = 0.0
) -> LookAhead | None:
    """The look-ahead of a search down a grid, or None for posterior means.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    if value not in ("mean", "ode", "samples"):
        raise ValueError(f"value must be 'mean', 'ode' or 'samples', got {value!r}")
    steps = check_count("value_steps", steps)
    samples = check_count("value_samples", samples)
    if value == "mean":
        return None
    if value == "ode":
        samples, temperature = 1, 0.0
    until = float(np.float32(grid[-2]))
    return LookAhead(kind=value, steps=steps, samples=samples, until=until, temperature=temperature)
