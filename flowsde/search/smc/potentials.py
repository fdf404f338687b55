"""What particles are weighed by on their way: log potentials phi, accumulated up to time i.

With rewards r and temperature beta_i, those of Feynman-Kac steering (Singhal et al., 2025, arXiv
2501.06848), which differ in when particles are weighed:

* difference: phi_i = r_i / beta_i;
* current: phi_i = phi_{i-1} + r_i / beta_i;
* max: phi_i = phi_{i-1} + max_{j <= i} r_j / beta_i;
* sum: phi_i = phi_{i-1} + sum_{j <= i} r_j / beta_i;
* final: phi_i = 0 until the last time, importance sampling without resampling on the way.

At the last time phi is reward / beta for all of them: what has accumulated is divided out. Tempered
by a share lambda_i, what is added, or for "difference" is, at time i is lambda_i times this.
"""

import jax
import jax.numpy as jnp

POTENTIALS = ("difference", "current", "max", "sum", "final")
_LARGE = 1e30


def bounded(values: jax.Array) -> jax.Array:
    """Infinity less infinity is no weight; +inf is a very large number here."""
    return jnp.clip(values, -_LARGE, _LARGE)


def initial_memory(kind: str, n: int) -> jax.Array:
    """Of n particles without rewards, float32 [n]."""
    return jnp.full(n, -jnp.inf if kind == "max" else 0.0, jnp.float32)


def remembered(kind: str, memory: jax.Array, reward: jax.Array) -> jax.Array:
    """The maximum or the sum of rewards so far, with these; all [N]."""
    match kind:
        case "max":
            return jnp.maximum(memory, bounded(reward))
        case "sum":
            return memory + bounded(reward)
    return memory


def accumulated(
    kind: str,
    potential: jax.Array,
    memory: jax.Array,
    scaled: jax.Array,
    beta: jax.Array,
    share: jax.Array | None = None,
) -> jax.Array:
    """phi_i before the last time, [N].

    Args:
      kind: of `POTENTIALS`.
      potential: phi_{i-1}, [N].
      memory: of `remembered`, with the rewards of time i.
      scaled: r_i / beta_i, [N].
      beta: beta_i.
      share: lambda_i; None is 1.
    """
    if kind == "final":
        return potential
    gain = memory / beta if kind in ("max", "sum") else scaled
    if share is not None:
        gain = share * gain
    return gain if kind == "difference" else potential + gain
