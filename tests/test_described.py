"""A search with functions of its own is known again in another process, and told from others."""

import functools
import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

import flowsde as fs
from flowsde._described import described

PROGRAM = """
import flowsde as fs
from flowsde._described import described

class Plain:
    def __init__(self, scale):
        self.scale = scale

def of(scale):
    return lambda p, t: scale * t

print(described((of(2.0), Plain(of(3.0)), frozenset("abcdef"))))
"""


def of(scale):
    return lambda p, t: scale * t


def square(p, t):
    return t * t


class Plain:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, p, t):
        return self.scale * t


def search(diffusion):
    kernel = fs.kernels.euler_maruyama(fs.interpolants.linear(), diffusion)
    return fs.search.svdd(nfe=20, kernel=kernel, grid=fs.grids.uniform(4))


def test_written_again_it_is_the_same():
    for make in (lambda: of(2.0), lambda: Plain(of(2.0)), lambda: functools.partial(Plain(1.0))):
        one, other = search(make()), search(make())
        assert one != other  # as objects
        assert repr(one) == repr(other)
        assert " at 0x" not in repr(one)


@pytest.mark.parametrize(
    "other", [of(3.0), lambda p, t: t * 2.0, square, Plain(2.0), functools.partial(of(2.0))]
)
def test_another_one_is_not(other):
    assert repr(search(of(2.0))) != repr(search(other))


def test_what_is_no_function_is_as_python_says():
    for value in (
        1,
        1.0,
        "a",
        (),
        (1,),
        (1, "a"),
        None,
        frozenset({1}),
        fs.kernels.ddim(fs.interpolants.vp()),
    ):
        assert described(value) == repr(value)


def test_what_is_worked_out_when_asked_for_is_no_part_of_it():
    class Squared(Plain):
        @functools.cached_property
        def square(self):
            return self.scale**2

    one = Squared(3.0)
    before = described(one)
    assert one.square == 9.0 and described(one) == before != described(Squared(2.0))


def test_of_what_names_itself():
    def diffusion(p, t):
        return t if diffusion is None else jnp.square(t)

    assert described(diffusion).startswith("<function test_of_what_names_itself.")


@pytest.mark.slow
def test_in_another_process():
    said = set()
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PROGRAM]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said.add(run.stdout)
    assert len(said) == 1 and " at 0x" not in said.pop()
