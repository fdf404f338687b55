"""Attention of tokens that devices share is the attention that NumPy gives, and its gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flowsde.models.common.layers import Numerics, attention
from flowsde.models.common.ring import ring_attention
from flowsde.sharding import ShardingRules

RULES = ShardingRules()
N, QUERIES, KEYS, HEADS, D = 2, 8, 16, 3, 8


def inputs(n=N, queries=QUERIES, keys=KEYS, heads=HEADS, d=D):
    random = np.random.default_rng(0)
    shapes = [(n, tokens, heads, d) for tokens in (queries, keys, keys)]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def masks():
    """None; some keys, none of the third and last device's of four; of an example, nothing."""
    some = np.random.default_rng(1).uniform(size=(N, KEYS)) < 0.6
    some[0, 8:12], some[:, 12:] = False, False
    nothing = some.copy()
    nothing[1] = False
    return {"all": None, "some": some, "nothing": nothing}


def by_numpy(q, k, v, seen, scale):
    """In float64; the mean of v where a query may look at nothing."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) * scale
    scores = np.where(True if seen is None else seen[:, None, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("nhqk,nkhd->nqhd", weights / weights.sum(-1, keepdims=True), v)


def mesh_of(*sizes, names=("token",)):
    devices = jax.devices()[: np.prod(sizes)]
    return jax.make_mesh(sizes, names, (AxisType.Auto,) * len(sizes), devices=devices)


def ring(seen=None, scale=0.3, rules=RULES):
    seen = None if seen is None else jnp.asarray(seen)
    return lambda q, k, v: ring_attention(q, k, v, seen=seen, scale=scale, rules=rules)


def close(made, wanted, error=1e-5):
    made, wanted = (np.asarray(a, np.float64) for a in (made, wanted))
    assert made.shape == wanted.shape and np.isfinite(made).all()
    assert np.abs(made - wanted).max() <= error * np.abs(wanted).max()


@pytest.mark.slow_but_one
@pytest.mark.parametrize("devices", [4, 2])
@pytest.mark.parametrize("mask", masks())
def test_attention(mask, devices):
    seen = masks()[mask]
    with jax.set_mesh(mesh_of(devices)):
        made = jax.jit(ring(seen))(*inputs())
    assert made.addressable_shards[0].data.shape == (N, QUERIES // devices, HEADS, D)
    close(made, by_numpy(*inputs(), seen, 0.3))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4, 2])
@pytest.mark.parametrize("mask", masks())
def test_gradient(mask, devices):
    """That of the plain formula, of which JAX differentiates every step."""
    seen, pull = masks()[mask], np.random.default_rng(2).normal(size=(N, QUERIES, HEADS, D))
    pull = pull.astype(np.float32)

    def plain(q, k, v):
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) * np.float32(0.3)
        scores = scores if seen is None else jnp.where(seen[:, None, None], scores, -1e30)
        return jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)

    def gradients(f):
        return jax.jit(jax.grad(lambda *a: jnp.sum(f(*a) * pull), (0, 1, 2)))(*inputs())

    with jax.set_mesh(mesh_of(devices)):
        made = gradients(ring(seen))
    for one, wanted in zip(made, gradients(plain), strict=True):
        close(one, wanted)


@pytest.mark.slow
def test_of_16_bits_scores_and_sums_are_float32():
    """A step of bfloat16 is 1/128 of what is rounded: weights, and the result."""
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in inputs(keys=1024))
    with jax.set_mesh(mesh_of(4)):
        made = jax.jit(ring())(q, k, v)
        gradients = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.square(ring()(*a))), (0, 1, 2)))
        assert {g.dtype for g in gradients(q, k, v)} == {jnp.dtype(jnp.bfloat16)}
    assert made.dtype == jnp.bfloat16
    close(made, by_numpy(*(np.asarray(a, np.float32) for a in (q, k, v)), None, 0.3), 1 / 128)


@pytest.mark.slow
def test_rows_heads_and_tokens_have_axes_of_their_own():
    mesh = mesh_of(2, 2, names=("token", "model"))
    q, k, v = inputs(heads=4)
    wanted = by_numpy(q, k, v, None, 0.3)
    with jax.set_mesh(mesh):
        made = jax.jit(ring())(q, k, v)
    assert made.addressable_shards[0].data.shape == (N, QUERIES // 2, 2, D)
    close(made, wanted)
    # Over two axes at once.
    both = ShardingRules(token=("token", "model"), heads=None)
    with jax.set_mesh(mesh):
        made = jax.jit(ring(rules=both))(q, k, v)
    assert made.addressable_shards[0].data.shape == (N, QUERIES // 4, 4, D)
    close(made, wanted)
    # An axis that heads are split over leaves tokens whole.
    with jax.set_mesh(mesh_of(2, names=("model",))):
        assert ring(rules=ShardingRules(token="model"))(q, k, v) is None


def collectives(text):
    return re.findall(
        r"= .*? (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(",
        text,
    )


@pytest.mark.slow
def test_blocks_go_around_and_nothing_is_gathered():
    """Keys and values from each device to the next; for the gradient with theirs, and home."""
    mesh = mesh_of(4)
    args = [jax.device_put(a, NamedSharding(mesh, PartitionSpec(None, "token"))) for a in inputs()]
    with jax.set_mesh(mesh):
        forward = jax.jit(ring()).lower(*args).compile().as_text()
        backward = jax.jit(jax.grad(lambda *a: jnp.sum(ring()(*a)), (0, 1, 2)))
        both = backward.lower(*args).compile().as_text()
    assert collectives(forward) == ["collective-permute"] * 2
    assert collectives(both) == ["collective-permute"] * (2 + 4 + 2)


@pytest.mark.slow
def test_it_is_chosen_where_tokens_are_split_evenly():
    """Elsewhere the result is the same without it."""

    def chosen(q, k, v, **how):
        def call(q, k, v):
            return attention(q, k, v, numerics=Numerics(), **how)

        with jax.set_mesh(mesh_of(4)):
            made, text = jax.jit(call)(q, k, v), str(jax.make_jaxpr(call)(q, k, v))
        mask = how.get("mask")
        seen = None if mask is None else np.asarray(mask[:, 0, 0])
        close(made, by_numpy(q, k, v, seen, D**-0.5).reshape(*made.shape))
        return "ppermute" in text

    q, k, v = inputs()
    some = jnp.asarray(masks()["some"])[:, None, None]
    assert chosen(q, k, v, split=True) and chosen(q, k, v, split=True, mask=some)
    assert chosen(q, k, v, split=True, mask=some[:1])
    assert not chosen(q, k, v)
    assert not chosen(*inputs(queries=QUERIES + 1), split=True)
    assert not chosen(*inputs(keys=KEYS + 2), split=True)
    assert not chosen(q, k, v, split=True, bias=jnp.zeros((1, HEADS, QUERIES, KEYS)))
