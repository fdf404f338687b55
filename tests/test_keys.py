"""Keys of any of JAX's implementations: draws belong to particles, and seeds and ids never wrap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde._keys import as_key, from_seed
from flowsde.search import fold_in_ids

LINEAR = fs.interpolants.linear()
KERNEL = fs.kernels.ddim(LINEAR)
GRID = fs.grids.uniform(3)
FAST = ("rbg", "unsafe_rbg")


def flow():
    return fs.Flow.from_callable(lambda params, x, t, cond: x - params, jnp.float32(0.3), (2,))


FLOW = flow()


def reward(images, cond):
    return -jnp.sum(jnp.square(images - 0.8), axis=-1)


def rbf(width=1):
    return fs.search.rbf(nfe=12, kernel=KERNEL, grid=GRID, chains=2, finish="mean", width=width)


def words(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def spent(key):
    """A key that no seed gives."""
    return jax.random.fold_in(jax.random.split(key)[1], 3)


@pytest.mark.slow
@pytest.mark.parametrize("impl", FAST)
def test_particles_do_not_depend_on_their_neighbours(impl):
    sample = partial(fs.sample, spent(jax.random.key(5, impl=impl)), FLOW, kernel=KERNEL, grid=GRID)
    whole = np.asarray(sample(n=6))
    assert len(np.unique(whole, axis=0)) == 6
    np.testing.assert_array_equal(sample(n=6, chunk_size=4), whole)
    np.testing.assert_array_equal(sample(n=4), whole[:4])


@pytest.mark.slow
@pytest.mark.parametrize("impl", FAST)
def test_a_prompt_does_not_depend_on_width_others_chunks_mesh_or_a_stop(impl):
    key = spent(jax.random.key(5, impl=impl))
    one = fs.run(key, FLOW, rbf(), reward, prompt_ids=[9])
    mesh = jax.make_mesh((2,), ("prompt",), (jax.sharding.AxisType.Auto,))
    first = next(fs.iterate(key, FLOW, rbf(), reward, prompt_ids=[9]))
    others = {
        "width, chunks": fs.run(key, FLOW, rbf(width=3), reward, prompt_ids=[9], chunk_size=4),
        "mesh, others": fs.run(key, FLOW, rbf(), reward, prompt_ids=[9, 4], mesh=mesh),
        "a stop": fs.run(key, FLOW, rbf(), reward, prompt_ids=[9], resume=first),
    }
    packed = dict(fs.batch(key, FLOW, rbf(), reward, prompt_ids=[4, 9], batch_size=2))
    found = {name: (other.x[0], other.nfe[0]) for name, other in others.items()}
    for name, (x, nfe) in {**found, "batch": (packed[9].x, packed[9].nfe)}.items():
        np.testing.assert_allclose(x, one.x[0], rtol=1e-6, atol=1e-6, err_msg=name)
        assert nfe == one.nfe[0], name


@pytest.mark.slow
@pytest.mark.parametrize("impl", FAST)
def test_of_a_seed_they_are_threefrys(impl):
    """Both seed two threefry keys alike; rbg splits and folds them so as well."""
    assert words(as_key(jax.random.key(7, impl=impl))) == words(jax.random.key(7))
    with jax.default_prng_impl(impl):
        assert words(as_key(jax.random.key(7))) == words(from_seed(7)) == (0, 7)
    for make in (spent, lambda key: jax.random.split(key, 5)[3]):
        same = words(as_key(make(jax.random.key(7, impl=impl)))) == words(make(jax.random.key(7)))
        assert same == (impl == "rbg")


@pytest.mark.slow
def test_a_threefry_key_stays_as_it_is():
    key = spent(jax.random.key(7))
    assert as_key(key) is key
    raw = jax.random.PRNGKey(7)
    for one in (raw, np.asarray(raw)):
        assert words(as_key(one)) == words(jax.random.key(7))
    sample = partial(fs.sample, flow=FLOW, kernel=KERNEL, grid=GRID, n=2)
    np.testing.assert_array_equal(sample(raw), sample(jax.random.key(7)))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(sample(jax.random.PRNGKey(7)), sample(raw))


@pytest.mark.slow
def test_other_keys_give_other_keys():
    """All words count: keys that differ in one bit of one of them do not meet."""
    data = np.zeros((129, 4), np.uint32)
    for bit in range(128):
        data[bit + 1, bit // 32] = np.uint32(1) << np.uint32(bit % 32)
    keys = jax.random.wrap_key_data(jnp.asarray(data), impl="unsafe_rbg")
    folded = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), 64)
    every = [words(k) for k in (*map(as_key, keys), *map(as_key, folded))]
    assert len(set(every)) == len(every)


@pytest.mark.slow
@pytest.mark.parametrize("impl", FAST)
def test_kernels_and_data_draw_by_threefry_too(impl):
    """A batch of keys draws for each what it draws alone."""
    keys = jax.random.split(jax.random.key(3, impl=impl), 3)
    x, t = jnp.ones((3, 2), jnp.float32), jnp.float32(0.9)

    def move(key, x):
        return KERNEL(key, x, x, x, t, jnp.float32(0.5))

    alone = [move(key, x[0]) for key in keys]
    np.testing.assert_allclose(jax.vmap(move)(keys, x), alone, rtol=1e-6)
    data = fs.analytic.gaussian([0.0, 1.0], 0.3)
    drawn = jax.vmap(lambda key: data.sample(key, 2))(keys)
    np.testing.assert_allclose(drawn, [data.sample(key, 2) for key in keys], rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (0, TypeError, r"key must be a JAX random key, for example jax.random.key\(0\), got 0"),
        (None, TypeError, "key must be .* got None"),
        (np.zeros(3, np.uint32), TypeError, r"key must be .* shape \(3,\) and dtype uint32"),
        (np.zeros(2, np.int32), TypeError, r"key must be .* shape \(2,\) and dtype int32"),
        (jax.random.split(jax.random.key(0)), ValueError, r"one JAX random key.*shape \(2,\)"),
    ],
)
def test_what_is_no_key_is_named(key, error, message):
    with pytest.raises(error, match=message):
        fs.sample(key, FLOW, kernel=KERNEL, grid=GRID, n=2)
    for go in (fs.run, fs.iterate, partial(fs.batch, prompt_ids=[0])):
        with pytest.raises(error, match=message):
            go(key, FLOW, rbf(), reward)


@pytest.mark.parametrize("ids", [[1, 2**32 + 1], [-5], np.array([2**32]), [2**70]])
def test_prompt_ids_do_not_wrap(ids):
    wrong = f"prompt_ids must lie in 0 to 4294967295, got {int(ids[-1])}"
    for go in (fs.run, fs.iterate, fs.batch):
        with pytest.raises(ValueError, match=wrong):
            go(jax.random.key(0), FLOW, rbf(), reward, prompt_ids=ids)


@pytest.mark.slow
def test_the_last_prompt_id_is_one_of_its_own():
    found = fs.run(jax.random.key(0), FLOW, rbf(), reward, prompt_ids=[2**32 - 1, 2**31, 0])
    assert len(np.unique(found.x, axis=0)) == 3


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 5])
def test_seeds_do_not_wrap(seed):
    with pytest.raises(ValueError, match=f"seed must be an integer of at .*{seed}"):
        from_seed(seed)


def test_a_large_seed_is_that_of_jax():
    assert words(from_seed(2**32 - 1)) == (0, 2**32 - 1) == words(jax.random.key(2**32 - 1))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("ids", [(), (4,), (2, 3_000_000_000), (np.int32(-1), 7, 0)])
def test_identities_are_folded_in_one_by_one(ids, backend, monkeypatch):
    """In a loop on a CPU, written out elsewhere; of traced numbers, too."""
    expected = jax.random.key(5)
    for i in ids:
        expected = jax.random.fold_in(expected, i)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    key, given = jax.random.key(5), [np.uint32(np.int64(i) % 2**32) for i in ids]
    assert words(fold_in_ids(key, *ids)) == words(expected)
    assert words(jax.jit(fold_in_ids)(key, *given)) == words(expected)
