"""Whether pictures that a search noises and brings back stay samples of the model."""

import jax
import jax.numpy as jnp
import numpy as np

import flowsde as fs


def _blind(images, cond):
    """A reward that knows nothing of where a picture lies."""
    return jnp.sin(1e5 * images[:, 0])


def check_pictures_stay_the_models(once, again, moved):
    """Assert that answers by such a reward have the law of the data.

    Args:
      once: search of a budget for one picture.
      again: the same one, of a budget for more that come from it.
      moved: share of the answers that come from it, at least.
    """
    data, count = fs.analytic.mixture([0.7, 0.3], [[1.0], [-1.0]], 0.05), 4000

    def answers(search):
        found = fs.run(
            jax.random.key(4), data.flow(), search, _blind,
            cond=np.zeros(count, np.float32), prompt_ids=np.arange(count),
        )  # fmt: skip
        return np.asarray(found.x0[:, 0])

    plain, searched = answers(once), answers(again)
    assert np.mean(np.abs(plain - searched) > 1e-3) > moved
    for x in (plain, searched):
        # Four standard errors of the share, and a tenth of the spread.
        assert abs(np.mean(x > 0.0) - 0.7) < 4.0 * np.sqrt(0.21 / count)
        spread = np.std(x[x > 0.0])
        assert abs(spread / np.std(plain[plain > 0.0]) - 1.0) < 0.1
