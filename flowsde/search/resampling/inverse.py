"""What several schemes share: reading indices off the cumulative weights."""

import jax
import jax.numpy as jnp
import numpy as np

_BELOW_1 = float(np.nextafter(np.float32(1.0), np.float32(0.0)))


def inverse_cdf(weights: jax.Array, u: jax.Array) -> jax.Array:
    """Index at which the share u of the total weight is passed, int32 shaped as u.

    Args:
      weights: float32 [N], not negative, not all zero.
      u: in [0, 1]; 1 counts as the float below it.

    Returns:
      Indices of positive weight: those of weight zero add nothing to be passed.
    """
    total = jnp.cumsum(weights)
    # Divided by its last entry, the sum reaches 1 exactly, at the last positive weight.
    share = total / total[-1]
    return jnp.searchsorted(share, jnp.minimum(u, _BELOW_1), side="right").astype(jnp.int32)
