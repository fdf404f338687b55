"""What `benchmarks/peers.py` compares with is the same model and the same search, in PyTorch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from outside import Later, torch

import flowsde as fs
from flowsde import shapes
from flowsde.cli import presets
from flowsde.search.grid import fold_in_ids
from flowsde.shapes import captions
from flowsde_converters.tables import convert, unconvert

_torch_search, _torch_shapes = Later("_torch_search"), Later("_torch_shapes")
PROMPT = "three red circles and two blue squares"
RESAMPLE = np.iinfo(np.int32).max


@pytest.fixture(scope="module")
def loaded():
    return _torch_shapes.load()


def in_torch(x):
    return torch.from_numpy(np.asarray(x)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["shapes", "scorer"])
def test_packaged_weights_come_back_bit_for_bit(loaded, name):
    module = loaded[0] if name == "shapes" else loaded[1]
    params, sizes = _torch_shapes.packaged(name)
    make = {"shapes": (_torch_shapes.shapes_table, _torch_shapes.ModelConfig),
            "scorer": (_torch_shapes.scorer_table, _torch_shapes.ScorerConfig)}  # fmt: skip
    table, config = make[name]
    tensors = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    assert tensors.keys() == unconvert(table(config(**sizes)), params).keys()
    back = convert(table(config(**sizes)), tensors, params)
    assert back.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(back[path], array, strict=True)


@pytest.mark.slow
def test_model_and_reward_are_ours(loaded):
    model, scorer = loaded
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 32, 32, 3)).astype(np.float32), np.float32([0, 0.3, 0.7, 1])
    prompts = [PROMPT, "a green triangle", "five cyan squares", "two red circles"]
    tokens = np.stack([shapes.encode(prompt) for prompt in prompts])
    flow, reward = shapes.load_flow(), shapes.load_reward()
    velocity = jax.jit(flow.velocity_fn)(flow.params, x, t, tokens)
    rewards = jax.jit(lambda reward, *args: reward(*args))(reward, x, tokens)
    with torch.inference_mode():
        theirs = model(in_torch(x), torch.from_numpy(t), torch.from_numpy(tokens).long())
        log_probs = scorer(in_torch(x))
        wanted = [torch.from_numpy(captions.counts(captions.parse(p))).long() for p in prompts]
        told = [
            _torch_shapes.log_likelihood(log_probs[i : i + 1], own).item()
            for i, own in enumerate(wanted)
        ]
    scale = float(np.abs(velocity).max())
    assert np.abs(theirs.permute(0, 2, 3, 1).numpy() - np.asarray(velocity)).max() < 1e-5 * scale
    np.testing.assert_allclose(told, rewards, rtol=1e-5, atol=1e-5)


class SameNoise:
    """The random numbers that flowsde draws for the same chains, steps and draws."""

    def __init__(self, key):
        self.key = jax.random.fold_in(key, 0)
        self._normal = jax.jit(
            lambda key, ids: jax.random.normal(fold_in_ids(key, *ids), (32, 32, 3), jnp.float32)
        )

    def normal(self, ids):
        rows = [self._normal(self.key, tuple(map(jnp.int32, own))) for own in ids]
        return in_torch(np.stack(rows))

    def uniform(self, step):
        key = fold_in_ids(self.key, jnp.int32(RESAMPLE), jnp.int32(step))
        return float(jax.random.uniform(key, (), jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "nfe"), [("rbf", 45), ("svdd", 30), ("smc", 30), ("bon", 35)])
def test_search_is_the_same_given_the_same_noise(loaded, method, nfe):
    given: dict[str, Any] = {"nfe": nfe, "steps": 5}
    if method == "smc":
        given["restart_at"] = 0.0  # in one pass, as PyTorch's loop
    settings = presets.resolve("recommended", method, given)
    if method == "bon":
        settings = dataclasses.replace(settings, width=4)
    search = presets.build(method, settings)
    key = jax.random.key(3)
    flow, reward = shapes.load_flow(), shapes.load_reward()
    ours = fs.run(key, flow, search, reward, cond=shapes.encode(PROMPT))
    tokens = torch.from_numpy(shapes.encode(PROMPT)).long()[None]
    wanted = torch.from_numpy(captions.counts(captions.parse(PROMPT))).long()
    problem = _torch_search.Problem(*loaded, tokens, wanted)
    with torch.inference_mode():
        theirs = _torch_search.METHODS[method](problem, SameNoise(key), settings)
    assert problem.nfe == ours.nfe
    assert theirs.rewards[0] == pytest.approx(float(ours.reward), abs=1e-3)
    np.testing.assert_allclose(theirs.x0[0].permute(1, 2, 0), ours.x0, atol=1e-3)
