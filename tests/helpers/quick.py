"""Marking tests slow: the quick ones have a few minutes together."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any, id: str | None = None) -> Any:
    """A parameter whose test is slow."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def slow_but(quick: Iterable[Any], every: Iterable[Any]) -> list[Any]:
    """All parameters of one value, slow but for some."""
    quick = list(quick)
    return [one if one in quick else slow(one) for one in every]
