"""A kernel of one's own that says it is stochastic: a search of children sees whether it is."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import flowsde as fs
from flowsde.kernels.base import Kernel
from flowsde.search.grid import UnusableKernel

LINEAR, GRID = fs.interpolants.linear(), fs.grids.uniform(4)


@dataclasses.dataclass(frozen=True)
class Own(Kernel):
    until: float  # time below which no noise is drawn

    def moments(self, x, x0, x1, t, s):
        p = self.interpolant
        rho = jnp.where(t > self.until, 0.5, 1.0)
        mean = p.alpha(s) * x0 + p.sigma(s) * rho * x1
        return mean, p.sigma(s) * jnp.sqrt(1.0 - rho**2)


@dataclasses.dataclass(frozen=True)
class OfPictures(Kernel):
    def moments(self, x, x0, x1, t, s):
        return x, jnp.where(x.shape == (2, 2, 3), 0.0, jnp.mean(x, axis=(0, 1, 2)))


@dataclasses.dataclass(frozen=True)
class OwnGuided(Own):
    uses_gradient = True

    def moments(self, x, x0, x1, t, s, gradient):
        mean, std = super().moments(x, x0, x1, t, s)
        return mean + gradient, std


MAKERS = [fs.search.svdd, fs.search.rbf, fs.search.smc, fs.search.dts]


@pytest.mark.parametrize("make", MAKERS)
def test_without_noise_on_the_grid_it_is_deterministic(make):
    said = "kernel Own is stochastic by its word, but its std is 0 at all steps"
    with pytest.raises(UnusableKernel, match=said):
        make(nfe=40, kernel=Own(LINEAR, until=1.0), grid=GRID)


@pytest.mark.parametrize("make", MAKERS)
def test_noise_at_one_step_is_enough(make):
    assert make(nfe=40, kernel=Own(LINEAR, until=0.8), grid=GRID).kernel.until == 0.8


def test_the_step_to_data_which_searches_do_not_make_does_not_count():
    coarse = fs.grids.uniform(2)
    with pytest.raises(UnusableKernel, match="std is 0 at all steps"):
        fs.search.svdd(nfe=40, kernel=Own(LINEAR, until=1.0), grid=coarse)
    fs.search.svdd(nfe=40, kernel=Own(LINEAR, until=0.6), grid=coarse)


def test_a_guided_one_is_given_a_gradient():
    fs.search.svdd(nfe=40, kernel=OwnGuided(LINEAR, until=0.0), grid=GRID)
    with pytest.raises(UnusableKernel, match="std is 0 at all steps"):
        fs.search.svdd(nfe=40, kernel=OwnGuided(LINEAR, until=1.0), grid=GRID)


def test_where_it_cannot_be_tried_on_any_particle_it_is_believed():
    fs.search.svdd(nfe=40, kernel=OfPictures(LINEAR), grid=GRID)


def test_within_a_compiled_function_it_is_tried_too():
    def made(x, until):
        return x + fs.search.svdd(nfe=40, kernel=Own(LINEAR, until), grid=fs.grids.uniform(5)).nfe

    assert jax.jit(made, static_argnums=1)(0, 0.7) > 0
    with pytest.raises(UnusableKernel, match="std is 0 at all steps"):
        jax.jit(made, static_argnums=1)(0, 1.0)
