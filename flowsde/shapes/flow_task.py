"""What the embedded flow is trained on: flow matching with captions (Lipman et al., 2023)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from flowsde._keys import from_seed
from flowsde.pictures import pixels
from flowsde.shapes import data
from flowsde.shapes.captions import parse, tokenize
from flowsde.shapes.model import ModelConfig, ShapesModel, split
from flowsde.shapes.train import Params, Task

_DROP = 0.1
"""Share of captions replaced by padding, so that guidance has an unconditional velocity."""
Velocity = Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
_SHEET = (
    "three red circles and two blue squares",
    "one yellow triangle",
    "five cyan circles",
    "two green squares and four magenta triangles",
    "five blue triangles and five red squares",
    "four yellow circles and one green triangle",
    "three red triangles",
    "two magenta circles and three yellow squares",
)


def sample_times(key: jax.Array, n: int) -> jax.Array:
    """Training times [n]: logit-normal (Esser et al., 2024), rather noisy: objects form there."""
    return jax.nn.sigmoid(0.5 + 1.2 * jax.random.normal(key, (n,), jnp.float32))


def drop_captions(key: jax.Array, tokens: Any) -> jax.Array:
    """Replaces a tenth of the captions [n, MAX_TOKENS] by padding."""
    keep = jax.random.bernoulli(key, 1.0 - _DROP, (tokens.shape[0], 1))
    return jnp.where(keep, tokens, 0)


def noised(x0: Any, t: jax.Array, noise: jax.Array) -> jax.Array:
    """(1 - t) x0 + t noise, the linear interpolant, of pictures [n, h, w, c] at times [n]."""
    ratio = t[:, None, None, None]
    return (1.0 - ratio) * x0 + ratio * noise


def sample(
    velocity: Velocity, params: Params, key: jax.Array, tokens: jax.Array, steps: int
) -> jax.Array:
    """Pictures [n, 32, 32, 3] of captions, by Euler's method on a uniform grid."""
    shape = (tokens.shape[0], data.SIZE, data.SIZE, 3)

    def body(x: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
        return x - velocity(params, x, jnp.full(x.shape[:1], t), tokens) / steps, None

    times = jnp.linspace(1.0, 1.0 / steps, steps, dtype=jnp.float32)
    return jax.lax.scan(body, jax.random.normal(key, shape, jnp.float32), times)[0]


def make_sheet(velocity: Velocity, steps: int) -> Callable[[Params, Path], None]:
    """(params, path) -> None: writes eight pictures of each of eight captions."""
    draw = jax.jit(partial(sample, velocity, steps=steps))

    def sheet(params: Params, path: Path) -> None:
        tokens = np.repeat(np.stack([tokenize(parse(c)) for c in _SHEET]), 8, axis=0)
        images = np.asarray(draw(params, from_seed(0), jnp.asarray(tokens)))
        tiles = np.pad(
            pixels(images).reshape(8, 8, 32, 32, 3), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))
        )
        Image.fromarray(tiles.transpose(0, 2, 1, 3, 4).reshape(272, 272, 3)).resize(
            (816, 816), Image.Resampling.NEAREST
        ).save(path)

    return sheet


def flow_task(config: ModelConfig) -> Task:
    """Regress the velocity noise - data of the linear interpolant."""
    graphdef, _ = split(config)

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(ShapesModel(config, rngs=nnx.Rngs(key))))

    def velocity(params: Params, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(x, t, cond)

    def loss(params: Params, key: jax.Array, scenes: data.Scenes) -> jax.Array:
        time_key, noise_key, drop_key = jax.random.split(key, 3)
        t = sample_times(time_key, scenes.images.shape[0])
        noise = jax.random.normal(noise_key, scenes.images.shape, jnp.float32)
        x = noised(scenes.images, t, noise)
        u = velocity(params, x, t, drop_captions(drop_key, scenes.tokens))
        return jnp.mean(jnp.square(u - (noise - scenes.images)))

    return Task("shapes", init, loss, make_sheet(velocity, steps=40))
