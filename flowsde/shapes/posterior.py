"""Posterior means of the embedded flow, for its reward to learn from.

A scene of known counts is noised to a random time and denoised once by the flow, as a search sees
it on its way. The counts of the scene, not of the caption, are the target: so the scorer learns
p(counts | posterior mean), and its log-likelihood means the same at all times. Half of the captions
that the flow gets are off by one, as its own pictures often are.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._keys import from_seed
from flowsde.flow import Flow
from flowsde.interpolants import Linear
from flowsde.shapes.captions import MAX_COUNT, MAX_GROUPS, MAX_TOKENS, Group, tokenize
from flowsde.shapes.scorer_data import Batch, count_table, render, sample_layout, truth

_WRONG = 0.5
"""Share of captions that are off by one."""


def hint(rng: np.random.Generator, table: np.ndarray) -> np.ndarray:
    """A caption of counts [colours, kinds], perhaps off by one; zeros if there is no such caption.

    Returns:
      int32 [MAX_TOKENS].
    """
    named = np.argwhere(table)
    if not 0 < len(named) <= MAX_GROUPS or table.max() > MAX_COUNT:
        return np.zeros(MAX_TOKENS, np.int32)
    groups = [Group(int(table[c, k]), int(c), int(k)) for c, k in rng.permutation(named)]
    if rng.random() < _WRONG:
        i = rng.integers(len(groups))
        near = [n for n in (groups[i].count - 1, groups[i].count + 1) if 1 <= n <= MAX_COUNT]
        groups[i] = groups[i]._replace(count=int(rng.choice(near)))
    return tokenize(groups)


@jax.jit
def _means(flow: Flow, images: jax.Array, tokens: jax.Array, keys: jax.Array) -> jax.Array:
    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        time_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, images.shape[1:], jnp.float32)
        return jax.random.uniform(time_key, (), jnp.float32), noise

    t, noise = jax.vmap(draw)(keys)
    ratio = t[:, None, None, None]
    return flow.means((1.0 - ratio) * images + ratio * noise, t, tokens, Linear())[0]


def batch(flow: Flow, seed: int, indices: Sequence[int]) -> Batch:
    """Posterior means of scenes ``indices`` of ``seed`` at random times, with their true counts."""
    layouts, tokens = [], []
    for index in indices:
        # The trailing word sets this stream apart from those of other scenes.
        rng = np.random.default_rng((seed, index, 2))
        layouts.append(sample_layout(rng))
        tokens.append(hint(rng, count_table(layouts[-1])))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(from_seed(seed), jnp.asarray(indices))
    images = _means(flow, render(layouts), np.stack(tokens), keys)
    targets, centres = map(np.stack, zip(*map(truth, layouts), strict=True))
    return Batch(np.asarray(images), targets, centres)
