"""Compilation is most of the time here: quick tests do with little optimisation of the program.

Tests marked slow compile as users do.
"""

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation(request):
    before = jax.config.values["jax_disable_most_optimizations"]
    quick = request.node.get_closest_marker("slow") is None
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
