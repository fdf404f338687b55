"""On a mesh: the same results, everything where it belongs, and nothing moved that need not be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from problems import GRID, SDE, batch, decode, reward
from test_every_method import METHODS, assert_same

import flowsde as fs
from flowsde.models.layers import FLOAT32

KEY = jax.random.key(6)
PROMPTS = 7
MESHES = {"2x1x2": (2, 1, 2), "4x1x1": (4, 1, 1), "1x2x2": (1, 2, 2)}


class Net(nnx.Module):
    """A velocity that turns with the prompt, of parameters that are split over "model"."""

    def __init__(self, rngs):
        self.up = FLOAT32.linear(5, 8, ("embed", "mlp"), rngs=rngs)
        self.down = FLOAT32.linear(8, 2, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x, t, cond):
        h = jnp.concatenate([x, cond["frequency"], t[:, None]], axis=-1)
        return x - self.down(jnp.tanh(self.up(h)))


def flow():
    return fs.Flow.from_nnx(Net(nnx.Rngs(3)), (2,), decode=decode)


def mesh_of(*sizes, names=("prompt", "particle", "model"), kind=AxisType.Auto):
    return jax.make_mesh(sizes, names[: len(sizes)], (kind,) * len(sizes))


def options(n=PROMPTS):
    ids, cond = batch(PROMPTS, seed=2)
    return {"cond": jax.tree.map(lambda a: a[:n], cond), "prompt_ids": ids[:n]}


def sharded_over(mesh, *axes):
    return NamedSharding(mesh, PartitionSpec(*axes))


@pytest.fixture(scope="module", params=METHODS.values(), ids=METHODS)
def search(request):
    return request.param


@pytest.mark.slow
def test_the_results_are_those_without_a_mesh(search):
    alone = fs.run(KEY, flow(), search, reward, **options())
    size = options()["cond"]["size"]
    for sizes in MESHES.values():
        result = fs.run(KEY, flow(), search, reward, mesh=mesh_of(*sizes), **options())
        assert_same(jax.device_get(result._replace(state=None)), alone, size)


@pytest.mark.slow
def test_the_state_stays_where_it_is(search):
    mesh = mesh_of(2, 2)
    rounds = fs.iterate(KEY, flow(), search, reward, mesh=mesh, chunk_size=2, **options(6))
    for result in rounds:
        for leaf in jax.tree.leaves((result.state, result.x, result.image)):
            assert leaf.shape[0] == 6
            assert leaf.sharding.is_equivalent_to(sharded_over(mesh, "prompt"), leaf.ndim)
    whole = fs.run(KEY, flow(), search, reward, **options(6))
    assert_same(jax.device_get(result._replace(state=None)), whole, options(6)["cond"]["size"])
