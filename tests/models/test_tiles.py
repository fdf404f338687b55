"""Tiles give back a local decoder's image, and fade linearly into each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowsde.models.autoencoder_kl.tiles import decode_in_tiles

FACTOR = 2


def local(x):
    """A decoder of which each pixel depends on one latent."""
    x = jnp.repeat(jnp.repeat(x, FACTOR, axis=1), FACTOR, axis=2)
    return jnp.stack([x[..., 0] + 2 * x[..., 1], jnp.sin(x[..., 0])], axis=-1)


def tiled(decode, latents, tile, overlap):
    return decode_in_tiles(decode, latents, tile=tile, overlap=overlap, factor=FACTOR, channels=2)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(20, 20, 8, 2), (9, 23, 8, 4), (8, 17, 8, 3), (5, 31, 12, 1), (4, 6, 8, 2)],
)
def test_what_is_local_is_decoded_exactly(height, width, tile, overlap):
    x = np.random.default_rng(0).normal(size=(2, height, width, 2)).astype(np.float32)
    ours = tiled(local, jnp.asarray(x), tile, overlap)
    np.testing.assert_allclose(ours, local(jnp.asarray(x)), rtol=1e-5, atol=1e-6)


def test_two_tiles_fade_linearly():
    def first_value(x):
        n, h, w, c = x.shape
        value = x[:, :1, :1, :]
        return jnp.broadcast_to(value, (n, h * FACTOR, w * FACTOR, c))

    latents = jnp.arange(14.0).reshape(1, 1, 14, 1) + jnp.zeros((1, 1, 1, 2))
    row = tiled(first_value, latents, 8, 2)[0, 0, :, 0]
    # Tiles start at latents 0 and 6: 12 pixels of one, 4 of both, 12 of the other.
    between = 6.0 * (np.arange(4) + 0.5) / 4
    np.testing.assert_allclose(row, [*[0.0] * 12, *between, *[6.0] * 12], rtol=1e-6)


def test_each_tile_is_decoded_once_and_alone():
    sizes = []

    def decode(x):
        sizes.append(x.shape)
        return local(x)

    tiled(decode, jnp.zeros((1, 20, 30, 2)), 8, 2)
    assert set(sizes) == {(1, 8, 8, 2)}


@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 5)])
def test_an_overlap_that_cannot_be_is_named(tile, overlap):
    with pytest.raises(ValueError, match=f"got overlap {overlap} and tile {tile}"):
        tiled(local, jnp.zeros((1, 9, 9, 2)), tile, overlap)


@pytest.mark.slow
def test_gradients_pass_through_the_seams():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 14, 2)), jnp.float32)
    loss = lambda decode: lambda x: (decode(x) ** 2).sum()  # noqa: E731
    ours = jax.grad(loss(lambda x: tiled(local, x, 6, 2)))(x)
    np.testing.assert_allclose(ours, jax.grad(loss(local))(x), rtol=1e-4, atol=1e-5)
