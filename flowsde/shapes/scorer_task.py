"""What the given reward is trained on: counting, in scenes and in posterior means.

Maximum likelihood of the true counts, so that probabilities are calibrated: with targets ``q``,

    loss = - mean_n sum_cs sum_k q_ncs(k) log p(count_cs = k | x_n) + detection,

where the second term, the binary cross-entropy of the first detector of each pair in each cell
("the centre of such an object is here"), only makes the first learn many times faster.

Three quarters of the pictures are scenes, some of them damaged (`flowsde.shapes.scorer_data`). Six
in ten of these stay clean; the rest are blended with another scene, blurred, faded towards the
background and made noisy. The other quarter are posterior means of the embedded flow
(`flowsde.shapes.posterior`), which is what searches score on their way.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.flow import Flow
from flowsde.shapes import data, posterior, scorer_data
from flowsde.shapes.scorer import Params, ScorerConfig, init, split
from flowsde.shapes.scorer_data import Batch
from flowsde.shapes.train import Task

_CLEAN = 0.6
"""Share of the pictures that are not augmented, but for a trace of noise."""
_BLUR = 1.0
"""Largest standard deviation of the blur, pixels."""
_NOISE = 0.1
"""Largest standard deviation of the noise."""
_FADE = 0.3
"""Largest loss of contrast."""
_GHOST = 0.2
"""Largest weight of a ghost of another scene."""
_MEANS = 4
"""One in so many pictures is a posterior mean."""


def blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Gaussian blur, each image [32, 32, 3] of the batch by its own sigma [n], in pixels.

    The picture goes on mirrored at its edges, so that its mean stays.
    """
    at = jnp.arange(data.SIZE, dtype=jnp.float32)
    mirrored = [at, -1.0 - at, 2.0 * data.SIZE - 1.0 - at]
    width = jnp.maximum(sigma, 0.05)[:, None, None]
    kernel = sum(
        jnp.exp(-0.5 * jnp.square((at[None, :, None] - source[None, None, :]) / width))
        for source in mirrored
    )
    kernel = kernel / jnp.sum(kernel, axis=2, keepdims=True)
    return jnp.einsum("nij,nkl,njlc->nikc", kernel, kernel, images)


def augment(key: jax.Array, batch: Batch) -> Batch:
    """Blends, blurs, fades and noises most pictures, each to its own degree."""
    n = batch.images.shape[0]
    keys = jax.random.split(key, 6)
    dirty = jax.random.uniform(keys[0], (n,), jnp.float32) >= _CLEAN

    def uniform(i: int, high: float, share: float) -> jax.Array:
        draw, coin = jax.random.uniform(keys[i], (2, n), jnp.float32)
        return jnp.where(dirty & (coin < share), high * draw, 0.0)

    def blend(x: jax.Array) -> jax.Array:
        weight = ghost.reshape(n, *[1] * (x.ndim - 1))
        return (1.0 - weight) * x + weight * jnp.roll(x, 1, axis=0)

    ghost = uniform(1, _GHOST, 0.2)
    batch = jax.tree.map(blend, batch)
    x = blur(batch.images, uniform(2, _BLUR, 0.8))
    background = jnp.asarray(2.0 * data.BACKGROUND - 1.0)[None, None, None, :]
    x = background + (1.0 - uniform(3, _FADE, 0.5)[:, None, None, None]) * (x - background)
    noise = jnp.where(dirty, uniform(4, _NOISE, 0.7), 0.01)[:, None, None, None]
    x = x + noise * jax.random.normal(keys[5], x.shape, jnp.float32)
    return batch._replace(images=x)


def cross_entropy(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over pictures of the sum over pairs, a scalar."""
    return -jnp.mean(jnp.sum(targets * log_probs, axis=(1, 2, 3)))


def detection_loss(logits: jax.Array, centres: jax.Array) -> jax.Array:
    """Binary cross-entropy, the mean over pictures of the sum over cells and pairs, a scalar."""
    terms = jax.nn.softplus(logits) - centres * logits
    return jnp.mean(jnp.sum(terms, axis=(1, 2, 3)))


def scorer_task(config: ScorerConfig, flow: Flow, uses: str = "") -> Task:
    """Likelihood of the counts of augmented scenes and of the flow's posterior means.

    Args:
      config: sizes.
      flow: the embedded one.
      uses: its name and hash, for the record.
    """
    graphdef, _ = split(config)

    def pictures(seed: int, step: int, size: int) -> tuple[Batch, Batch]:
        def part(n: int) -> range:
            return range(step * n, (step + 1) * n)

        if size < 2:
            raise ValueError(f"batch_size must be at least 2 for the scorer, got {size}")
        means = max(1, size // _MEANS)
        scenes = scorer_data.batch(seed, part(size - means))
        return scenes, posterior.batch(flow, seed, part(means))

    def loss(params: Params, key: jax.Array, pictures: tuple[Batch, Batch]) -> jax.Array:
        scenes, means = pictures
        both = jax.tree.map(lambda *parts: jnp.concatenate(parts), augment(key, scenes), means)
        logits, log_probs = nnx.merge(graphdef, params).detect_and_count(both.images)
        counting = cross_entropy(log_probs, both.targets)
        return counting + detection_loss(logits[..., 0], both.centres)

    return Task("scorer", lambda key: init(config, key), loss, batch=pictures, uses=uses)
