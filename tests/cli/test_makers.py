"""What is read of makers without importing them is what Python says of them."""

import inspect
import typing
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from flowsde import kernels, search
from flowsde.cli.makers import described, makers

TABLES = {"flowsde.search": search.METHODS, "flowsde.kernels": kernels.KERNELS}
EVERY = [
    pytest.param(package, name, maker, id=name)
    for package, every in TABLES.items()
    for name, maker in every.items()
]

OF_PYTHON = (Fraction | float | None,)
"""Of a second flow, which the command does not load."""


@pytest.mark.parametrize("package, name, maker", EVERY)
def test_signature(package: str, name: str, maker: Callable[..., Any]) -> None:
    read = makers(package)[name]
    hints = typing.get_type_hints(maker)
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(maker).parameters.values()
        if parameter.default is not parameter.empty and hints[parameter.name] not in OF_PYTHON
    }
    assert {own: option.default for own, option in read.items()} == defaults
    for own, option in read.items():
        first = (typing.get_args(hints[own]) or (hints[own],))[0]
        if option.kind is str:
            assert option.choices == typing.get_args(hints[own])
        else:
            assert option.choices == () and option.kind is first


@pytest.mark.parametrize("package, name, maker", EVERY)
def test_docstring(package: str, name: str, maker: Callable[..., Any]) -> None:
    words = " ".join((inspect.getdoc(maker) or "").split())
    for own, option in makers(package)[name].items():
        assert option.help and f" {own}: {option.help}" in words


@pytest.mark.parametrize("package", TABLES)
def test_order_is_that_of_the_table(package: str) -> None:
    assert list(makers(package)) == list(TABLES[package])


def test_the_names_are_those_of_the_functions() -> None:
    words = "bon halving zero_order lidar sop evolution dfs dts pcn smc psi code svdd"
    words += " epsilon_greedy rbf"
    assert {name: getattr(search, name) for name in words.split()} == search.METHODS
    words = (
        "euler_maruyama ddim cps exact correlated glass ode_euler ode_adams dpm_solver_2m uni_pc"
    )
    assert {name: getattr(kernels, name) for name in words.split()} == kernels.KERNELS


def test_entries_are_joined() -> None:
    text = "Do.\n\nArgs:\n  a, b: one\n    two.\n  c: three: four.\n\nRaises:\n  ValueError: d."
    assert described(text) == {"a": "one two.", "b": "one two.", "c": "three: four."}
