"""How a result is shown: a short text, and its pictures in a notebook."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flowsde as fs

ODE = fs.kernels.ode_euler(fs.interpolants.linear())
SEARCH = fs.search.bon(nfe=6, kernel=ODE, grid=fs.grids.uniform(3))


def flow(shape):
    """All data are the one point cond."""

    def velocity(params, x, t, cond):
        return (x - cond.reshape(-1, *(1,) * len(shape))) / t.reshape(-1, *(1,) * len(shape))

    return fs.Flow.from_callable(velocity, None, shape)


def reward(images, cond):
    return jnp.mean(images.reshape(len(images), -1), axis=-1)


@functools.cache
def single():
    return go((4, 8, 3), 0.5)


def go(shape, cond, **options):
    cond = np.asarray(cond, np.float32)
    return fs.run(jax.random.key(0), flow(shape), SEARCH, reward, cond=cond, **options)


def picture(result):
    return np.asarray(Image.open(io.BytesIO(result._repr_png_())))


@pytest.mark.slow
def test_one_prompt():
    result = single()
    said = repr(result)
    assert said == (
        "Result(reward=0.5, nfe=6, evaluations=6, verifier_calls=2, "
        "image=float32[4, 8, 3], x0=float32[4, 8, 3])"
    )
    # 127.5 (0.5 + 1) is 191, halfway to even; enlarged to 256 pixels of the short side.
    shown = picture(result)
    assert shown.shape == (256, 512, 3) and set(np.unique(shown)) <= {191, 192}


@pytest.mark.slow
def test_several_prompts():
    """Side by side in rows, in their order, and white where there is no more."""
    result = go((2, 2, 3), [-1.0, 1.0, -1.0], prompt_ids=[0, 1, 2])
    assert repr(result).startswith("Result(reward=[-1.,  1., -1.], nfe=[6, 6, 6], ")
    shown = picture(result)
    assert shown.shape == (512, 512, 3)
    assert [shown[y, x, 0] for y in (0, 511) for x in (0, 511)] == [0, 255, 0, 255]
    many = jax.tree.map(
        lambda a: np.repeat(a, 50, axis=0), result._replace(info=None, state=None, given=None)
    )
    assert len(repr(many)) < 300


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3,), (4, 3), (4, 4, 1)])
def test_what_is_no_picture(shape):
    one = single()._replace(image=np.zeros(shape))
    several = one._replace(image=np.zeros((2, *shape)), reward=np.zeros(2))
    assert one._repr_png_() is None and several._repr_png_() is None


@pytest.mark.slow
def test_values_that_are_no_colours():
    """Pixels of 8 bits are shown as they are; others are clipped, and NaN is no colour."""
    result = single()
    eight = result._replace(image=np.full((2, 2, 3), 7, np.uint8))
    assert set(np.unique(picture(eight))) == {7}
    wild = np.array([np.nan, np.inf, -9.0], np.float32) * np.ones((2, 2, 1), np.float32)
    assert set(np.unique(picture(result._replace(image=wild)))) <= {0, 127, 128, 255}
