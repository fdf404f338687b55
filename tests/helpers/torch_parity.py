"""A port beside the PyTorch module it was converted from, both tiny and in float32."""

from functools import partial

import jax
import numpy as np
from flax import nnx
from outside import torch

from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.family import abstract
from flowsde_converters.tables import convert, unconvert


def randomised(module, seed=0, std=0.15):
    """`module` with all its parameters from N(0, std), scales of norms from N(1, std).

    Zeros and ones hide mistakes, and so do activations so small that all is linear.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, float(scale), std, generator=generator)
    return module.eval()


def tensors(module):
    """Its checkpoint, in which, as in those of the libraries, tied weights are once."""
    once = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    state = module.state_dict()
    return {key: tensor.detach().numpy() for key, tensor in state.items() if key in once}


def port(family, module, json=None, numerics=Numerics()):  # noqa: B008
    """The port of a PyTorch module, and what its checkpoint was found to be."""
    checkpoint = tensors(module)
    found = family.recognise(checkpoint, json)
    model = abstract(family, found.config, numerics)
    return with_parameters(model, convert(found.table, checkpoint, parameters(model))), found


def apply(model, call, *args):
    """call(model, *args), compiled once for each call and shapes, the parameters an argument."""
    return _apply(call, *nnx.split(model), args)


@partial(jax.jit, static_argnums=(0, 1))
def _apply(call, graph, state, args):
    return call(nnx.merge(graph, state), *args)


def error(ours, torchs):
    """Largest difference over the largest value."""
    torchs = torchs.detach().numpy() if hasattr(torchs, "detach") else torchs
    ours = np.asarray(ours)
    assert ours.shape == torchs.shape
    return np.abs(ours - torchs).max() / np.abs(torchs).max()


def gradient_error(model, found, module, loss, scalar):
    """The worst error of the gradients of all parameters, by PyTorch's keys.

    `loss(model)` and `scalar`, a tensor made by `module`, are the same number.
    """
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    grads = jax.jit(jax.grad(lambda params: loss(nnx.merge(graph, params, rest))))(params)
    ours = unconvert(found.table, parameters(nnx.merge(graph, grads, rest)))
    module.zero_grad()
    scalar.backward()
    theirs = {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
    assert theirs.keys() >= ours.keys()
    # Of what a checkpoint has as one tensor the largest value may be rounding alone (a key's bias,
    # which softmax forgets), so differences are measured against the largest of all gradients.
    largest = max(np.abs(g).max() for g in theirs.values())
    return max(np.abs(ours[key] - theirs[key]).max() for key in ours) / largest
