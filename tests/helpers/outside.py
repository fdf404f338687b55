"""Packages that only some tests compare with: imported when first used, skipped where absent.

Every worker collects every test, and most run none of these.
"""

from typing import Any

import pytest


class Later:
    """Stands for the module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # which pytest looks for, collecting
            raise AttributeError(name)
        return getattr(pytest.importorskip(self._name), name)


torch: Any = Later("torch")
diffusers: Any = Later("diffusers")
transformers: Any = Later("transformers")
