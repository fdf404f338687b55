"""The kernel for TPUs, interpreted on a CPU, gives the attention that NumPy does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from flowsde.models.common import layers
from flowsde.models.common.layers import Numerics, attention
from flowsde.models.common.splash import LANES, blocks_of, filled, splash_attention
from flowsde.sharding import ShardingRules


def inputs(n, queries, keys, heads, features):
    random = np.random.default_rng(0)
    shapes = [(n, tokens, heads, features) for tokens in (queries, keys, keys)]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def by_numpy(q, k, v, seen, causal, scale):
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) * scale
    looks = np.broadcast_to(seen[:, None, None], scores.shape)
    if causal:
        looks = looks & np.tri(*scores.shape[2:], dtype=bool)
    weights = np.where(looks, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    return np.einsum("nhqk,nkhd->nqhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "causal", "masked"),
    [((2, 40, 130, 3, 24), False, True), ((1, 128, 128, 2, 128), False, False),
     ((1, 77, 77, 2, 64), True, False), ((1, 1152, 1152, 1, 16), False, False)],
    ids=["filled up", "whole", "causal", "blocks that are not square"],
)  # fmt: skip
def test_attention(shape, causal, masked):
    q, k, v = inputs(*shape)
    seen = np.ones(k.shape[:2], bool)
    if masked:
        seen[0, 100:], seen[1, :7] = False, False

    def call(q, k, v):
        return splash_attention(
            q, k, v, seen=jnp.asarray(seen) if masked else None, causal=causal, scale=0.2,
            rules=ShardingRules(), interpret=True,
        )  # fmt: skip

    wanted = by_numpy(q, k, v, seen, causal, 0.2)
    np.testing.assert_allclose(jax.jit(call)(q, k, v), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
def test_gradient():
    q, k, v = inputs(1, 40, 50, 1, 24)

    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(24.0), axis=-1)
        return jnp.sum(jnp.sin(jnp.einsum("nhqk,nkhd->nqhd", weights, v)))

    def kernel(q, k, v):
        return jnp.sum(jnp.sin(splash_attention(q, k, v, rules=ShardingRules(), interpret=True)))

    for made, wanted in zip(
        *(jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v) for f in (kernel, plain)), strict=True
    ):
        np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rules", [ShardingRules(), ShardingRules(heads=None, token="model")])
def test_each_device_has_rows_and_heads_or_queries_of_its_own(rules):
    q, k, v = inputs(2, 6, 5, 2, 8)
    mesh = jax.make_mesh((2, 1, 2), ("prompt", "particle", "model"), (AxisType.Auto,) * 3)
    call = jax.jit(lambda *a: splash_attention(*a, rules=rules, interpret=True))
    with jax.set_mesh(mesh):
        made = call(q, k, v)
    assert {shard.data.size for shard in made.addressable_shards} == {q.size // 4}
    wanted = by_numpy(q, k, v, np.ones((2, 5), bool), False, 8**-0.5)
    np.testing.assert_allclose(made, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
def test_what_the_mesh_does_not_divide_is_whole_on_each_device():
    q, k, v = inputs(1, 3, 5, 3, 8)
    mesh = jax.make_mesh((2, 2), ("prompt", "model"), (AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        made = splash_attention(q, k, v, rules=ShardingRules(), interpret=True)
    wanted = by_numpy(q, k, v, np.ones((1, 5), bool), False, 8**-0.5)
    np.testing.assert_allclose(made, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("tokens", [1, 128, 129, 1024, 1025, 1280, 1560, 4352, 4608, 16384])
def test_blocks_are_whole_lanes_and_little_is_filled_up(tokens):
    wholes = filled(tokens, tokens)
    for block, whole in zip(blocks_of(tokens, tokens), wholes, strict=True):
        assert block % LANES == 0 and whole % block == 0
        assert tokens <= whole <= max(1.25 * tokens, tokens + LANES - 1)
    queries, keys = blocks_of(tokens, tokens)
    assert queries * keys <= 1024**2


def test_nothing_is_filled_up_where_blocks_fit_that_are_not_square():
    # FLUX.1-schnell at 1024 pixels: 256 tokens of text and 4096 of the picture, 34 times 128.
    assert filled(4352, 4352) == (4352, 4352)
    assert blocks_of(4608, 4608) == (768, 768)
    # More keys than fit beside so many queries, and no other size divides them.
    assert filled(1408, 1408) == (1536, 1536)


def test_on_a_tpu_queries_and_keys_stay_in_bfloat16_until_they_are_normalised():
    q, k, _ = (jnp.asarray(a, jnp.bfloat16) for a in inputs(2, 3, 3, 2, 8))
    made = {}
    for name in (None, "tpu"):
        low = Numerics(dtype=jnp.bfloat16, attention=name)
        norm = layers.QKNorm(8, low, nnx.Rngs(0))
        kept = "optimization_barrier" in str(jax.make_jaxpr(norm)(q, k))
        assert kept == (name == "tpu")
        made[name] = norm(q, k)
    jax.tree.map(np.testing.assert_array_equal, made[None], made["tpu"])


@pytest.mark.slow
def test_it_is_chosen_on_a_tpu_where_it_can_be(monkeypatch):
    q, k, v = (jnp.asarray(a) for a in inputs(2, 3, 3, 1, 8))
    monkeypatch.setattr(layers, "splash_attention", lambda q, k, v, **_: jnp.full_like(q, 7.0))
    plain = attention(q, k, v, numerics=Numerics(attention="xla"))
    assert not np.any(plain == 7.0)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    np.testing.assert_array_equal(attention(q, k, v, numerics=Numerics()), plain)
    monkeypatch.setattr(layers, "LONG", 3)
    padding = jnp.ones((2, 1, 1, 3), bool)
    for given in ({}, {"mask": padding}, {"causal": True}):
        assert np.all(attention(q, k, v, numerics=Numerics(), **given) == 7.0)
    scores, by_query = jnp.zeros((1, 1, 3, 3)), jnp.ones((1, 1, 3, 3), bool)
    for given in ({"bias": scores}, {"mask": by_query}):
        made = attention(q, k, v, numerics=Numerics(), **given)
        np.testing.assert_allclose(made, plain, rtol=1e-6)
    np.testing.assert_array_equal(attention(q, k, v, numerics=Numerics(attention="xla")), plain)
