"""Tokens hold the patches they should, in the order each family wants."""

import jax.numpy as jnp
import numpy as np
import pytest

from flowsde.models.common.patches import grid_ids, pack, unpack


@pytest.fixture
def latents():
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32))


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
@pytest.mark.parametrize("patch", [1, 2])
def test_unpack_undoes_pack(latents, patch, order):
    tokens = pack(latents, patch, order)
    assert tokens.shape == (2, 24 // patch**2, 3 * patch**2)
    np.testing.assert_array_equal(unpack(tokens, 4, 6, patch, order), latents)


def test_a_token_is_the_patch_of_its_id_in_order(latents):
    last, first = pack(latents), pack(latents, order="channels_first")
    ids = grid_ids(4, 6)
    assert ids.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    for token, (_, row, column) in enumerate(ids):
        patch = latents[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(last[:, token], patch.reshape(2, 12))
        np.testing.assert_array_equal(first[:, token], patch.transpose(0, 3, 1, 2).reshape(2, 12))


def test_sizes_that_do_not_fit_are_errors(latents):
    with pytest.raises(ValueError, match="patches of 4 must divide the latents, got 4 x 6"):
        pack(latents, 4)
    with pytest.raises(ValueError, match="patches of 2 must divide the latents, got 3 x 6"):
        grid_ids(3, 6)
    with pytest.raises(ValueError, match="4 x 4 latents have 4 tokens, got 6"):
        unpack(pack(latents), 4, 4)
