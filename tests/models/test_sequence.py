"""Transformers whose tokens are split over devices compute what they do on one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.common.sequence import Split
from flowsde.models.family import abstract
from flowsde.models.flux import model as flux
from flowsde.models.flux2 import model as flux2
from flowsde.models.sd3 import model as sd3
from flowsde.models.sit import model as sit
from flowsde.models.wan import model as wan
from flowsde.models.zimage import model as zimage
from flowsde.sharding import ShardingRules, place

RULES = ShardingRules()
TEXT, POOLED = 20, 12
SIZES = {"heads": 2, "mlp": 48, "text": TEXT}
PURE = {"heads": None, "mlp": None, "vocab": None}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pooled(text):
    return flux.FluxCond(text, normal(len(text), POOLED, seed=3))


def some(text):
    """Of 32 tokens, of which not all are text."""
    return zimage.ZImageCond(normal(len(text), 32, TEXT, seed=2), np.asarray([5, 31], np.int32))


CASES = {
    "flux": (
        flux.FAMILY,
        flux.FluxConfig(
            channels=16, axes=(4, 6, 6), double=2, single=2, pooled=POOLED, guidance=False, **SIZES
        ),
        pooled,
    ),
    "wan": (wan.FAMILY, wan.WanConfig(channels=4, head=12, depth=2, **SIZES), lambda text: text),
    "flux2": (
        flux2.FAMILY,
        flux2.Flux2Config(channels=16, axes=(4, 4, 4, 4), double=1, single=2, **SIZES),
        flux2.Flux2Cond,
    ),
    "sd3": (
        sd3.FAMILY,
        sd3.SD3Config(
            channels=4, head=16, depth=3, dual=1, qk_norm=True, pooled=POOLED, side=8, **SIZES
        ),
        lambda text: sd3.SD3Cond(*pooled(text)[:2]),
    ),
    "zimage": (
        zimage.FAMILY,
        zimage.ZImageConfig(
            channels=4, axes=(4, 6, 6), depth=2, refiners=1, time=16, condition=8, **SIZES
        ),
        some,
    ),
    "sit": (
        sit.FAMILY,
        sit.SiTConfig(width=24, depth=2, heads=2, size=6, classes=3, channels=4),
        lambda text: np.arange(len(text), dtype=np.int32),
    ),
}
# Sizes of axes, their names, rules.
MESHES = {
    "token": ((4,), ("token",), {}),
    "prompt x token": ((2, 2), ("prompt", "token"), {}),
    "token x model": ((2, 2), ("token", "model"), {}),
    "prompt x model": ((2, 2), ("prompt", "model"), {"token": "model"}),
    "prompt x model, tokens alone": ((2, 2), ("prompt", "model"), {"token": "model", **PURE}),
    "token, fully sharded": ((4,), ("token",), {"embed": "token"}),
}


def inputs(name, tall, wide, words):
    """Latents, times and cond of two particles."""
    shape = (2, 3, tall, wide, 4) if name == "wan" else (2, tall, wide, 4)
    text = normal(2, words, TEXT, seed=2)
    return normal(*shape, seed=1), np.asarray([0.3, 0.9], np.float32), CASES[name][2](text)


@functools.cache
def weights(name):
    family, config, _ = CASES[name]
    shapes = parameters(abstract(family, config))
    random = np.random.default_rng(4)
    return {key: 0.3 * random.normal(size=p.shape).astype(np.float32) for key, p in shapes.items()}


def model_of(name, rules=RULES):
    """A program of parameters, latents, times and cond; and parameters."""
    family, config, _ = CASES[name]
    model = with_parameters(abstract(family, config, Numerics(rules=rules)), weights(name))
    graph, state = nnx.split(model)
    return jax.jit(lambda state, *args: nnx.merge(graph, state)(*args)), state


def on(mesh, name, args, rules, run=lambda program: program):
    """The program on a mesh, and all of its arguments there."""
    program, state = model_of(name, rules)
    rows = PartitionSpec("prompt" if "prompt" in mesh.shape else None)
    put = place(state, mesh, rules.on(mesh)), *jax.device_put(args, NamedSharding(mesh, rows))
    return jax.jit(run(program)), put


def mesh_of(sizes, names):
    kinds, devices = (AxisType.Auto,) * len(sizes), jax.devices()[: np.prod(sizes)]
    return jax.make_mesh(sizes, names, kinds, devices=devices)


def close(made, wanted, error=1e-5):
    made, wanted = np.asarray(made), np.asarray(wanted)
    assert made.shape == wanted.shape
    assert np.abs(made - wanted).max() <= error * np.abs(wanted).max()


EVEN, UNEVEN = (4, 8, 8), (6, 6, 5)
"""Rows and columns of latents, and words: tokens that four and two devices share, or not."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh", "size"),
    [
        *(
            (name, mesh, size)
            for name in ("flux", "wan")
            for mesh, size in zip(MESHES, (UNEVEN, EVEN, UNEVEN, EVEN, UNEVEN, EVEN), strict=True)
        ),
        *((name, "prompt x token", UNEVEN) for name in ("flux2", "sd3", "zimage", "sit")),
    ],
)
def test_velocity_is_that_of_one_device(name, mesh, size):
    sizes, names, rules = MESHES[mesh]
    mesh, args = mesh_of(sizes, names), inputs(name, *size)
    program, state = model_of(name)
    split, put = on(mesh, name, args, ShardingRules(**rules))
    with jax.set_mesh(mesh):
        close(split(*put), program(state, *args))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_gradient_is_that_of_one_device(name):
    args = inputs(name, *UNEVEN)
    pull = normal(*args[0].shape, seed=5)

    def gradient(program):
        return jax.grad(lambda s, x, t, c: jnp.sum(program(s, x, t, c) * pull), argnums=1)

    program, state = model_of(name)
    mesh = mesh_of((4,), ("token",))
    split, put = on(mesh, name, args, RULES, gradient)
    with jax.set_mesh(mesh):
        close(split(*put), gradient(program)(state, *args))


def computations(text):
    """Lines of each computation of a compiled program, by name."""
    found, name = {}, None
    for line in text.splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = begins[1]
        found.setdefault(name, []).append(line)
    return found


def in_loops(text):
    """Lines of all loops, and of what they call."""
    every = computations(text)
    wanted = set(re.findall(r"body=%?([\w.-]+)", text))
    assert wanted
    while True:
        lines = [line for name in wanted for line in every[name]]
        called = {
            name
            for line in lines
            for name in re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)", line)
        }
        if called <= wanted:
            return lines
        wanted |= called


def lengths(lines):
    """Of all axes of arrays."""
    shapes = (re.findall(r"\b(?:f32|bf16|pred)\[([\d,]+)\]", line) for line in lines)
    return {int(n) for shape in shapes for one in shape for n in one.split(",")}


# Of a text and an image, together, and a device's part of them; weights have no such sizes.
LONG = {"flux": ((38, 8, 92), (92, 76, 168), 42), "wan": ((38, 8, 7), (228,), 57)}


@pytest.mark.slow
@pytest.mark.parametrize("rules", [RULES, ShardingRules(embed="token")], ids=["whole", "shared"])
@pytest.mark.parametrize("name", LONG)
def test_blocks_have_a_part_of_the_tokens_and_keys_go_around(name, rules):
    """Read off the compiled program; beside them, shared weights are gathered."""
    size, whole, part = LONG[name]
    # Of one particle: two with two heads would have as many rows as there are tokens.
    args, mesh = jax.tree.map(lambda a: a[:1], inputs(name, *size)), mesh_of((4,), ("token",))
    program, state = model_of(name)
    alone = lengths(in_loops(program.lower(state, *args).compile().as_text()))
    assert set(whole) <= alone and part not in alone
    split, put = on(mesh, name, args, rules)
    with jax.set_mesh(mesh):
        lines = in_loops(split.lower(*put).compile().as_text())
    found = lengths(lines)
    assert part in found and not any(n % many == 0 for n in found for many in whole)
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    moved = [m[1] for line in lines if (m := re.search(rf" ({kinds})(?:-start)?\(", line))]
    # Keys and values, in one kind of block or in two.
    assert moved.count("collective-permute") == (4 if name == "flux" else 2)
    if rules == RULES:
        assert set(moved) == {"collective-permute"}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_memory_falls_with_the_number_of_devices(name):
    """On two it is half or less, and on four that of two: of scores, there is a quarter."""
    found = []
    for devices in (1, 2, 4):
        mesh = mesh_of((devices,), ("token",))
        split, put = on(mesh, name, inputs(name, 32, 64, 64), RULES)
        with jax.set_mesh(mesh):
            found.append(split.lower(*put).compile().memory_analysis().temp_size_in_bytes)
    assert found[1] < 0.5 * found[0] and found[2] < 0.5 * found[1]


def test_parts_are_joined_where_they_are():
    """As the module's docstring draws it, and taken apart again; nothing moves."""
    text, image = np.arange(4)[None], np.arange(10, 15)[None]
    padded = np.pad(image, ((0, 0), (0, 1)))

    def filled(text, image):
        split = Split.of(RULES)
        every = jnp.concatenate([text, image], axis=1)
        seen = split.seen(4, 5), split.seen(4, 6)
        return [split.fill(a) for a in (text, image)], split.arrange(every, (4, 5)), seen

    def joined(*parts):
        split = Split.of(RULES)
        whole = split.keep(split.join(parts))
        return whole, split.keep(split.part(whole, [a.shape[1] for a in parts]))

    wanted = [[0, 1, 10, 11, 12, 2, 3, 13, 14, 0]]
    mesh = mesh_of((2,), ("token",))
    parts = jax.device_put((text, padded), NamedSharding(mesh, PartitionSpec(None, "token")))
    with jax.set_mesh(mesh):
        found, every, (seen, unfilled) = jax.jit(filled)(text, image)
        program = jax.jit(joined).lower(*parts).compile()
        whole, apart = program(*parts)
    for one, other, given in zip(found, apart, (text, padded), strict=True):
        assert one.tolist() == other.tolist() == given.tolist()
    assert whole.tolist() == every.tolist() == wanted
    assert whole.addressable_shards[0].data.tolist() == [wanted[0][:5]]
    assert not re.search("all-|permute|scatter", program.as_text())
    assert seen.tolist() == [[[[True] * 9 + [False]]]] and unfilled is None
    # On one device they are one after the other.
    found, every, seen = filled(text, image)
    assert joined(*found)[0].tolist() == every.tolist() == [[*text[0], *image[0]]]
    assert seen == (None, None)
