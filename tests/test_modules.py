"""Modules in training mode: rows do not depend on their neighbours; modules in the wrong place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import flowsde as fs

KEY = jax.random.key(0)
X = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
T = np.full(4, 0.5, np.float32)
SEARCH = fs.search.bon(
    nfe=8, kernel=fs.kernels.ode_euler(fs.interpolants.linear()), grid=fs.grids.uniform(2)
)


class Net(nnx.Module):
    """With dropout and a batch norm, whose running averages are not those of a new one."""

    def __init__(self, rngs, features=2):
        self.up = nnx.Linear(2, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.norm.mean.set_value(jnp.linspace(-1.0, 1.0, 8))
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.down = nnx.Linear(8, features, rngs=rngs)

    def __call__(self, x, t=None):
        return self.down(self.drop(self.norm(self.up(x))))

    def score(self, x, cond=None):
        return jnp.sum(self(x), axis=-1)


def exact(net, x):
    """By hand, in evaluation mode."""
    mean, var = net.norm.mean.get_value(), net.norm.var.get_value()
    h = (net.up(x) - mean[None]) / jnp.sqrt(var + net.norm.epsilon)[None]
    return net.down(h * net.norm.scale.get_value()[None] + net.norm.bias.get_value()[None])


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_model_in_training_mode_is_evaluated_in_evaluation_mode():
    net = Net(nnx.Rngs(0))
    before = jax.tree.leaves(nnx.state(net))
    flow = fs.Flow.from_nnx(net, (2,))
    close(flow.velocity_fn(flow.params, X, T, None), exact(net, X))
    close(flow.velocity_fn(flow.params, X[:1], T[:1], None), exact(net, X[:1]))
    # Nothing was done to the user's, and nothing done to it is seen.
    assert not net.drop.deterministic and not net.norm.use_running_average
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(net)), strict=True))
    wanted = exact(net, X)
    net.down.kernel.set_value(jnp.zeros((8, 2)))
    close(flow.velocity_fn(flow.params, X, T, None), wanted)


@pytest.mark.slow
def test_a_search_does_not_depend_on_chunks():
    net, judge = Net(nnx.Rngs(0)), Net(nnx.Rngs(1), features=1)
    flow = fs.Flow.from_nnx(net, (2,), decode=Net(nnx.Rngs(2)))
    found = [
        fs.run(KEY, flow, SEARCH, judge.score, chunk_size=size, invalid="error")
        for size in (None, 1)
    ]
    close(found[0].image, found[1].image)
    close(found[0].reward, found[1].reward)
    close(found[0].reward, jnp.sum(exact(judge, found[0].image[None])))
    assert not judge.drop.deterministic


@pytest.mark.slow
def test_decoders_and_rewards():
    net = Net(nnx.Rngs(0))

    def call(module, *args):
        return module(*args)

    for decode in (net, net.__call__, jax.tree_util.Partial(call, net)):
        flow = fs.Flow.from_callable(lambda params, x, t, cond: x, None, (2,), decode=decode)
        assert jax.tree.leaves(flow.decode), "parameters are arguments"
        close(jax.jit(lambda flow: flow.decode(X))(flow), exact(net, X))
    reward = fs.rewards.device(Net(nnx.Rngs(0), features=1).score, name="net")
    close(reward(X, None), jnp.sum(exact(Net(nnx.Rngs(0), features=1), X), axis=-1))


@pytest.mark.slow
def test_modules_as_the_params_of_a_function():
    net = Net(nnx.Rngs(0))
    flow = fs.Flow.from_callable(lambda net, x, t, cond: net(x), net, (2,))
    close(flow.velocity_fn(flow.params, X, T, None), exact(net, X))


class Stubborn(nnx.Module):
    """In training mode whatever it is told."""

    def __init__(self, rngs, what):
        self.what = what
        self.norm, self.drop = nnx.BatchNorm(2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, t):
        if self.what == "norm":
            return self.norm(x, use_running_average=False)
        return self.drop(x, deterministic=False)


class LinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x, t, train=True):
        return nn.BatchNorm(use_running_average=not train)(x)


class LinenDrop(nn.Module):
    @nn.compact
    def __call__(self, x, t, train=True):
        return nn.Dropout(0.5, deterministic=not train)(x)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("what", ["norm", "drop"])
@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_what_stays_in_training_mode_is_refused_before_any_work(kind, what):
    if kind == "nnx":
        flow = fs.Flow.from_nnx(Stubborn(nnx.Rngs(0), what), (2,))
        moves = {"norm": r"norm\.mean changes", "drop": r"drop\.rngs\.count changes"}[what]
        message = rf"Stubborn draws random .*\({moves}\).* evaluation mode"
    else:
        module = LinenNorm() if what == "norm" else LinenDrop()
        variables = module.init({"params": KEY, "dropout": KEY}, X, T) or {}
        flow = fs.Flow.from_linen(module, variables, (2,))
        message = rf"{type(module).__name__} draws random .*kwargs=.*'train': False"
        still = fs.Flow.from_linen(module, variables, (2,), kwargs={"train": False})
        # A new norm's averages are 0 and 1.
        np.testing.assert_allclose(
            still.velocity_fn(variables, X, T, None), X, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match=message):
        fs.run(KEY, flow, SEARCH, lambda images, cond: images[:, 0])


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(2)(x)


def torch_module():
    return pytest.importorskip("torch").nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.Flow.from_nnx(Plain(), (2,)), "model is a linen module, Plain.*from_linen"),
        (lambda: fs.Flow.from_nnx(torch_module(), (2,)), "model is a torch module, Linear"),
        (lambda: fs.Flow.from_nnx(Net, (2,)), "model must be a flax.nnx.Module, got the class Net"),
        (lambda: fs.Flow.from_linen(Net(nnx.Rngs(0)), {}, (2,)), "module is an NNX mod.*from_nnx"),
        (lambda: fs.Flow.from_linen(torch_module(), {}, (2,)), "module is a torch module"),
        (lambda: fs.Flow.from_linen(Plain, {}, (2,)), "module must be .* got the class Plain"),
        (
            lambda: fs.Flow.from_linen(Plain(), {"Dense_0": {}}, (2,)),
            r"the variables that Plain.init returned, .*got the keys \['Dense_0'\]",
        ),
        (lambda: fs.Flow.from_linen(Plain(), None, (2,)), "Plain.init returned.*got NoneType"),
        (lambda: fs.Flow.from_callable(Net(nnx.Rngs(0)), None, (2,)), "fn is an NNX module"),
        (lambda: fs.Flow.from_callable(Plain(), None, (2,)), "fn is a linen module"),
        (lambda: fs.Flow.from_callable(torch_module(), None, (2,)), "fn is a torch module"),
        (lambda: fs.rewards.device(torch_module()), "reward is a torch module.*rewards.host"),
        (lambda: fs.rewards.device(Plain()), "reward is a linen module.*module.apply, variables"),
    ],
)
def test_modules_in_the_wrong_place(make, message):
    with pytest.raises(TypeError, match=message):
        make()


class Centred(nnx.Module):
    """With a running mean of its own, in a plain variable."""

    def __init__(self, rngs, kind):
        self.up = nnx.Linear(2, 2, rngs=rngs)
        self.mean = kind(jnp.zeros(2))

    def __call__(self, x, t):
        y = self.up(x)
        self.mean.set_value(0.9 * self.mean.get_value() + 0.1 * jnp.mean(y, axis=0))
        return y


@pytest.mark.parametrize("kind", [nnx.Variable, nnx.Param, nnx.BatchStat])
def test_a_variable_that_changes_when_the_model_is_called_is_refused(kind):
    flow = fs.Flow.from_nnx(Centred(nnx.Rngs(0), kind), (2,))
    with pytest.raises(ValueError, match=r"Centred .* \(mean changes\)"):
        flow.velocity_fn(flow.params, X, T, None)
    # A cache, or what is recorded, is made anew in each call.
    kept = fs.Flow.from_nnx(Centred(nnx.Rngs(0), nnx.Cache), (2,))
    assert kept.velocity_fn(kept.params, X, T, None).shape == X.shape
