"""Attention one head after the other is the attention that NumPy gives, in little memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from flowsde.models.common.layers import Numerics, attention

F32 = Numerics()


def inputs(n, queries, keys, heads, d, of_keys=None):
    random = np.random.default_rng(0)
    shapes = [(n, queries, heads, d), *[(n, keys, of_keys or heads, d)] * 2]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def by_numpy(q, k, v, bias=0.0, mask=True, scale=None):
    """In float64, [n, queries, heads d]; the mean of v where a query may look at nothing."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    k, v = (np.repeat(a, q.shape[2] // a.shape[2], axis=2) for a in (k, v))
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = np.where(mask, scores + bias, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("nhqk,nkhd->nqhd", weights / weights.sum(-1, keepdims=True), v)
    return y.reshape(*y.shape[:2], -1)


@pytest.mark.parametrize("biased", [None, (1, 4), (2, 4)])
@pytest.mark.parametrize("masked", [None, (1, 1), (2, 1), (2, 4)])
def test_bias_and_mask_are_of_their_own_example_and_head(biased, masked):
    q, k, v = inputs(2, 5, 7, 4, 8)
    random = np.random.default_rng(1)
    bias = None if biased is None else random.normal(size=(*biased, 5, 7)).astype(np.float32)
    mask = None if masked is None else random.uniform(size=(*masked, 5, 7)) < 0.6
    if mask is not None:
        mask[..., 0, :] = False  # a query that may look at nothing
    wanted = by_numpy(q, k, v, 0.0 if bias is None else bias, True if mask is None else mask, 0.3)
    call = jax.jit(
        lambda q, k, v: attention(q, k, v, numerics=F32, bias=bias, mask=mask, scale=0.3)
    )
    np.testing.assert_allclose(call(q, k, v), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_no_later_keys_and_heads_that_share_keys():
    q, k, v = inputs(2, 6, 6, 4, 8, of_keys=2)
    seen = np.random.default_rng(1).uniform(size=(2, 1, 1, 6)) < 0.7
    earlier = np.tri(6, dtype=bool)
    made = attention(q, k, v, numerics=F32, causal=True)
    np.testing.assert_allclose(made, by_numpy(q, k, v, mask=earlier), rtol=1e-5, atol=2e-6)
    made = attention(q, k, v, numerics=F32, causal=True, mask=jnp.broadcast_to(seen, (2, 1, 6, 6)))
    np.testing.assert_allclose(made, by_numpy(q, k, v, mask=seen & earlier), rtol=1e-5, atol=2e-6)


@pytest.mark.slow
def test_of_16_bits_scores_are_float32():
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in inputs(1, 9, 300, 2, 64))
    made = attention(q, k, v, numerics=Numerics(dtype=jnp.bfloat16))
    assert made.dtype == jnp.bfloat16
    wanted = by_numpy(*(np.asarray(a, np.float32) for a in (q, k, v)))
    # Weights and the sum are rounded once each; scores in bfloat16 would be off by tenths.
    np.testing.assert_allclose(np.asarray(made, np.float32), wanted, atol=6e-3)


@pytest.mark.slow
def test_gradient():
    q, k, v = inputs(2, 5, 7, 2, 8)
    bias = np.random.default_rng(1).normal(size=(1, 2, 5, 7)).astype(np.float32)

    def loss(numerics, *given):
        *qkv, bias = given
        return jnp.sum(jnp.sin(attention(*qkv, numerics=numerics, bias=bias)))

    ours, plain = (
        jax.jit(jax.grad(lambda *a, own=own: loss(own, *a), (0, 1, 2, 3)))(q, k, v, bias)
        for own in (F32, Numerics(attention="xla"))
    )
    for made, wanted in zip(ours, plain, strict=True):
        np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_scores_of_one_head_are_in_memory_at_once():
    q, k, v = inputs(2, 256, 256, 8, 8)
    scores = 2 * 8 * 256 * 256 * 4

    def temporary(numerics):
        call = jax.jit(lambda *a: attention(*a, numerics=numerics))
        return call.lower(q, k, v).compile().memory_analysis().temp_size_in_bytes

    assert temporary(F32) < scores / 4 < temporary(Numerics(attention="xla"))


def test_under_a_mesh_heads_are_not_one_after_the_other():
    given, call = inputs(1, 5, 5, 2, 8), lambda *a: attention(*a, numerics=F32)
    assert "scan" in str(jax.make_jaxpr(call)(*given))
    mesh = jax.make_mesh((2,), ("model",), (AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert "scan" not in str(jax.make_jaxpr(call)(*given))
