"""Compilation is most of the time here: tests do with little optimisation of the program.

Those that ask for `full_optimization` compile as users do.
"""

import jax
import pytest


@pytest.fixture
def full_optimization():
    """Asked for by name alone; see `quick_compilation`."""


@pytest.fixture(autouse=True)
def quick_compilation(request):
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, "full_optimization" not in request.fixturenames)
    yield
    jax.config.update(name, before)
