"""How much of the reward particles are weighed and guided by on their way: shares lambda_i.

Early rewards, of blurred means, mislead. With tempering (DAS; Kim et al., 2025, arXiv 2501.05803)
time i, counted from 0, has the share lambda_i of exp(reward / beta), and the last time all of it:

* exponential: lambda_i = (1 + rate)^i - 1, at most 1;
* polynomial: lambda_i = (i / last)^rate;
* adaptive: as large as keeps the effective sample size at the threshold of resampling. That makes
  resampling due wherever the share rises to less than 1, and leaves it where it was as long as the
  weights are too uneven already.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

TEMPERINGS = ("none", "exponential", "polynomial", "adaptive")
_HALVINGS = 24
"""What float32 tells apart."""


def shares(kind: str, rate: float | None, steps: int) -> tuple[float, ...] | None:
    """lambda_i [steps] of a fixed tempering; None for the others.

    Args:
      kind: of `TEMPERINGS`.
      rate: above 0. By default that of an exponential that reaches 1 at the last time, or a
        square.
      steps: times at which particles are evaluated.
    """
    i, last = np.arange(steps), max(steps - 1, 1)
    match kind:
        case "exponential":
            log_rate = np.log(2.0) / last if rate is None else np.log1p(rate)
            values = np.expm1(np.minimum(i * log_rate, np.log(2.0)))
        case "polynomial":
            values = (i / last) ** (2.0 if rate is None else rate)
        case _:
            return None
    return (*np.minimum(values[:-1], 1.0).tolist(), 1.0)


def adapted(
    sample_size: Callable[[jax.Array], jax.Array], least: jax.Array, low: jax.Array
) -> jax.Array:
    """Smallest share from `low` at which the effective sample size is at most `least`, or 1.

    Args:
      sample_size: at a share.
      least: sample size, a scalar.
      low: the share so far, in [0, 1]; it stays where the sample size is no larger already.
    """

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        below, above = ends
        middle = 0.5 * (below + above)
        reached = sample_size(middle) <= least
        return jnp.where(reached, below, middle), jnp.where(reached, middle, above)

    _, share = jax.lax.fori_loop(0, _HALVINGS, halve, (low, jnp.ones_like(low)))
    return jnp.where(sample_size(low) <= least, low, share)
