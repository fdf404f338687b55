"""Flow: every adapter equals a direct call under every transformation; guidance; errors."""

import itertools
import os
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import flowsde as fs

SHAPE, WIDTH, DEPTH, N = (3,), 5, 3, 4
LINEAR = fs.interpolants.linear()


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond=None):
        h = jnp.concatenate([x, t[:, None]] + ([] if cond is None else [cond]), axis=1)
        return nn.Dense(SHAPE[0])(nn.tanh(nn.Dense(WIDTH)(h)))


class StackedModel(nnx.Module):
    """Blocks of equal shape, stacked and looped by `jax.lax.scan`."""

    def __init__(self, conditional, *, rngs):
        self.first = nnx.Linear(SHAPE[0] + 1 + 2 * conditional, WIDTH, rngs=rngs)

        @nnx.split_rngs(splits=DEPTH)
        @nnx.vmap(in_axes=0, out_axes=0)
        def build(rngs):
            return nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        self.blocks = build(rngs)
        self.last = nnx.Linear(WIDTH, SHAPE[0], rngs=rngs)

    def __call__(self, x, t, cond=None):
        h = jnp.concatenate([x, t[:, None]] + ([] if cond is None else [cond]), axis=1)
        graphdef, stacked = nnx.split(self.blocks)

        def body(h, block):
            return h + jnp.tanh(nnx.merge(graphdef, block)(h)), None

        return self.last(jax.lax.scan(body, self.first(h), stacked)[0])


def plain(params, x, t, cond):
    h = x * params["scale"] + t[:, None]
    return h if cond is None else h + jnp.sum(cond, axis=1, keepdims=True)


def inputs(conditional):
    x = jax.random.normal(jax.random.key(1), (N, *SHAPE), jnp.float32)
    t = jnp.linspace(0.1, 0.9, N, dtype=jnp.float32)
    cond = jax.random.normal(jax.random.key(2), (N, 2), jnp.float32) if conditional else None
    return x, t, cond


def build(kind, conditional):
    """A flow and its velocity called without flowsde, (params, x, t, cond) -> velocity."""
    x, t, cond = inputs(conditional)
    optional = () if cond is None else (cond,)
    if kind == "linen":
        module = LinenModel()
        params = module.init(jax.random.key(0), x, t, *optional)
        direct = lambda p, x, t, c: module.apply(p, x, t, *(() if c is None else (c,)))  # noqa: E731
        return fs.Flow.from_linen(module, params, SHAPE), direct
    if kind == "nnx":
        model = StackedModel(conditional, rngs=nnx.Rngs(0))
        graphdef, _ = nnx.split(model)
        direct = lambda p, x, t, c: nnx.merge(graphdef, p)(x, t, *(() if c is None else (c,)))  # noqa: E731
        return fs.Flow.from_nnx(model, SHAPE), direct
    params = {"scale": jnp.asarray([0.5, -1.0, 2.0], jnp.float32)[None]}
    return fs.Flow.from_callable(plain, params, SHAPE), plain


def assert_close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-6)


assert_trees_close = partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)


CASES = [(k, c) for k in ("linen", "nnx", "callable") for c in (False, True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, conditional, x64", [(*case, x64) for case in CASES for x64 in (False, True)]
)
def test_adapters_under_transformations(kind, conditional, x64):
    """For the linear source x0 = x - t u and x1 = x + (1 - t) u."""
    with jax.enable_x64(x64):
        flow, direct = build(kind, conditional)
        x, t, cond = inputs(conditional)

        def means(flow, x, t, cond):
            return flow.means(x, t, cond, LINEAR)

        def direct_means(params, x, t, cond):
            u = direct(params, x, t, cond)
            return x - t[:, None] * u, x + (1.0 - t)[:, None] * u

        wanted = direct_means(flow.params, x, t, cond)
        got = means(flow, x, t, cond)
        assert all(a.shape == x.shape and a.dtype == jnp.float32 for a in got)
        assert_trees_close(got, wanted)
        assert_trees_close(jax.jit(means)(flow, x, t, cond), wanted)

        # Batches of one particle, so that every row must come out as it did above.
        rows = jax.tree.map(lambda a: a[:, None], (x, t, cond))

        @jax.jit
        def loops(flow):
            vmapped = jax.vmap(lambda row: means(flow, *row))(rows)
            mapped = jax.lax.map(lambda row: means(flow, *row), rows)
            scanned = jax.lax.scan(lambda _, row: (None, means(flow, *row)), None, rows)[1]
            return vmapped, mapped, scanned

        for out in loops(flow):
            assert_trees_close(jax.tree.map(lambda a: a[:, 0], out), wanted)

        # Through vmap and scan, too.
        def loss(params, fn):
            return sum(jnp.sum(jnp.sin(a)) for a in fn(params, x, t, cond))

        def of_params(params, x, t, cond):
            inner = flow_with(flow, params)
            rows = jax.tree.map(lambda a: a[:, None], (x, t, cond))
            out = jax.lax.scan(lambda _, row: (None, means(inner, *row)), None, rows)[1]
            return jax.tree.map(lambda a: a[:, 0], out)

        gradients = [jax.jit(jax.grad(partial(loss, fn=fn))) for fn in (of_params, direct_means)]
        assert_trees_close(*(gradient(flow.params) for gradient in gradients))


def flow_with(flow, params):
    leaves = jax.tree.leaves(params)
    return jax.tree.unflatten(jax.tree.structure(flow), leaves)


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    "kind, conditional",
    [
        ("linen", True),
        ("nnx", False),
        ("nnx", True),
    ],
)
def test_adapters_under_sample(kind, conditional, x64):
    """`sample` wraps lax.map, scan and vmap around the model: here in a Python loop instead."""
    with jax.enable_x64(x64):
        flow, direct = build(kind, conditional)
        _, _, cond = inputs(conditional)
        key, grid = jax.random.key(3), fs.grids.quadratic(3)
        got = fs.sample(
            key, flow, kernel=fs.kernels.ode_euler(LINEAR), grid=grid, n=N, cond=cond, chunk_size=3
        )
        assert got.dtype == jnp.float32
        ids = jnp.arange(N)
        keys = [jax.random.fold_in(jax.random.fold_in(key, i), 0) for i in ids]
        x = jnp.stack([jax.random.normal(k, SHAPE, jnp.float32) for k in keys])
        for t, s in itertools.pairwise(grid):
            u = direct(flow.params, x, jnp.full((N,), t, jnp.float32), cond)
            x = x + np.float32(s - t) * u
        assert_close(got, x)


SHARDED = """
import sys
sys.path.insert(0, {tests!r})
import jax, numpy as np
from jax.sharding import PartitionSpec as P
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
import flowsde as fs, test_flow
assert jax.device_count() == 2
mesh = jax.make_mesh((2,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
for kind, conditional in test_flow.CASES:
    flow, _ = test_flow.build(kind, conditional)
    x, t, cond = test_flow.inputs(conditional)
    means = lambda flow, x, t, cond: flow.means(x, t, cond, fs.interpolants.linear())
    spec = (P(), P("n"), P("n"), P("n"))
    sharded = jax.jit(jax.shard_map(means, mesh=mesh, in_specs=spec, out_specs=P("n")))
    got, wanted = sharded(flow, x, t, cond), means(flow, x, t, cond)
    assert len(got[0].sharding.device_set) == 2
    for a, b in zip(got, wanted):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-6)
    print(kind, conditional)
print("done")
"""


@pytest.mark.slow
def test_adapters_under_shard_map():
    """On two devices, hence in a process of its own: particles split, parameters whole."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    code = SHARDED.format(tests=os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        cwd=os.path.dirname(os.path.dirname(__file__)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "done"


@pytest.mark.slow
def test_another_interpolant_is_reached_by_matching_the_angle():
    """The means at a point of VP are those of an exact flow that was given on VP itself."""
    vp = fs.interpolants.vp()
    data = fs.analytic.mixture([0.4, 0.6], [[-1.0, 0.0, 0.5], [1.0, 0.3, -0.5]], [0.2, 0.4])
    x, t, _ = inputs(False)
    assert_trees_close(data.flow().means(x, t, None, vp), (data.x0(vp, x, t), data.x1(vp, x, t)))
    assert_trees_close(data.flow(vp).means(x, t, None, vp), (data.x0(vp, x, t), data.x1(vp, x, t)))


@pytest.mark.slow
def test_bfloat16_velocity_gives_float32_means():
    x, t, _ = inputs(False)
    seen = []

    def velocity(params, x, t, cond):
        seen.append((x.dtype, t.dtype))
        return (params * x).astype(jnp.bfloat16)

    scale = jnp.full((1, 1), 0.37, jnp.float32)
    flow = fs.Flow.from_callable(velocity, scale, SHAPE)
    x0, x1 = flow.means(x, t, None, LINEAR)
    assert x0.dtype == x1.dtype == jnp.float32
    assert seen == [(jnp.float32, jnp.float32)]
    rounded = np.asarray((scale * x).astype(jnp.bfloat16).astype(jnp.float32))
    assert_close(x0, np.asarray(x) - np.asarray(t)[:, None] * rounded)


@pytest.mark.parametrize(
    "velocity, got",
    [
        (lambda p, x, t, c: x[:, :2], r"shape \(4, 2\)"),
        (lambda p, x, t, c: x[0], r"shape \(3,\)"),
        (lambda p, x, t, c: x.astype(jnp.int32), "dtype int32"),
    ],
)
def test_a_wrong_velocity_is_named(velocity, got):
    x, t, _ = inputs(False)
    flow = fs.Flow.from_callable(velocity, None, SHAPE)
    message = rf"model <lambda> returned.*{got}.*expected shape \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        flow.means(x, t, None, LINEAR)
    with pytest.raises(ValueError, match="model <lambda> returned"):
        kernel = fs.kernels.ode_euler(LINEAR)
        fs.sample(jax.random.key(0), flow, kernel=kernel, grid=[1.0, 0.0], n=4)


def test_points_are_shaped_as_the_flow():
    """Rather than as whatever the model's layers make of them."""
    x, t, _ = inputs(False)
    flow = fs.Flow.from_callable(lambda p, x, t, c: x, None, SHAPE)
    for wrong in (x[0], x[:, :2], x[:, None]):
        with pytest.raises(AssertionError, match="x of a flow"):
            flow.means(wrong, t, None, LINEAR)


def test_wrong_construction():
    with pytest.raises(TypeError, match="fn must be callable"):
        fs.Flow.from_callable(3, None, SHAPE)
    with pytest.raises(TypeError, match="decode must be callable"):
        fs.Flow.from_callable(plain, None, SHAPE, decode=3)
    with pytest.raises(TypeError, match="shape must be a tuple"):
        fs.Flow.from_callable(plain, None, 3)
    for shape in [(3.0,), ("3",)]:
        with pytest.raises(TypeError, match="shape must be an integer"):
            fs.Flow.from_callable(plain, None, shape)
    with pytest.raises(ValueError, match="shape must be an integer of at least 1"):
        fs.Flow.from_callable(plain, None, (0, 3))


def test_a_flow_is_a_pytree_of_its_parameters_and_decoder():
    def decode(params, x0):
        return params * x0

    weights = jnp.full((1, 1), 2.0, jnp.float32)
    decoder = jax.tree_util.Partial(decode, weights)
    flow = fs.Flow.from_callable(plain, {"scale": weights}, SHAPE, decode=decoder)
    assert len(jax.tree.leaves(flow)) == 2
    x0 = jnp.ones((N, *SHAPE))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def images(flow, x0):
        return flow.decode(x0)

    assert_close(images(flow, x0), 2.0 * np.ones((N, *SHAPE)))
    assert_close(images(jax.tree.map(lambda a: 2.0 * a, flow), x0), 4.0 * np.ones((N, *SHAPE)))
    bare = fs.Flow.from_callable(plain, None, SHAPE)
    np.testing.assert_array_equal(bare.decode(x0), x0)
    assert bare.shape == SHAPE and bare.interpolant == LINEAR and bare.evaluations == 1


# Guidance


def test_guidance():
    """u(null) + scale (u(cond) - u(null)), on twice the rows, charged twice."""
    x, t, cond = inputs(True)
    rows = []

    def velocity(params, x, t, cond):
        rows.append((x.shape[0], t.shape[0], cond["a"].shape[0]))
        return params * x * jnp.sum(cond["a"], axis=1, keepdims=True) + jnp.sin(cond["b"])[:, None]

    params = jnp.full((1, 1), 0.7, jnp.float32)
    cond = {"a": cond, "b": cond[:, 0]}
    null = {"a": jnp.array([0.3, -0.1]), "b": jnp.float32(0.2)}
    nulls = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (N, *a.shape)), null)
    wanted, free = velocity(params, x, t, cond), velocity(params, x, t, nulls)
    flow = fs.Flow.from_callable(velocity, params, SHAPE)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def guided(flow, x, t, cond):
        return flow.velocity_fn(flow.params, x, t, cond)

    for scale in (0.0, 1.0, 3.5):
        rows.clear()
        new = fs.guide(flow, scale, null)
        assert new.evaluations == 2 and fs.guide(new, scale, null).evaluations == 4
        assert_close(guided(new, x, t, cond), free + scale * (wanted - free))
        assert rows == ([(2 * N,) * 3] if scale == 0.0 else [])


@pytest.mark.slow
def test_guidance_of_a_linen_model_through_sample():
    flow, _ = build("linen", True)
    _, _, cond = inputs(True)
    settings = {"kernel": fs.kernels.ode_euler(LINEAR), "grid": fs.grids.uniform(3), "n": N}
    key, null = jax.random.key(0), np.zeros(2, np.float32)
    once = fs.sample(key, flow, cond=cond, **settings)
    assert_close(fs.sample(key, fs.guide(flow, 1.0, null), cond=cond, **settings), once)
    free = fs.sample(key, flow, cond=np.zeros((N, 2), np.float32), **settings)
    assert_close(fs.sample(key, fs.guide(flow, 0.0, null), cond=cond, **settings), free)
