"""What the tests of files, conversion and loading share."""

import pytest
import toy
from safetensors.numpy import save_file

from flowsde.models import registry
from flowsde_converters import detect


@pytest.fixture
def families(monkeypatch):
    """Only the small family is known."""
    known = {"toy": toy.FAMILY}
    for module in (detect, registry):
        monkeypatch.setattr(module, "families", lambda: known)
    return known


@pytest.fixture
def source(families, tmp_path):
    """A checkpoint of it."""
    path = tmp_path / "model.safetensors"
    save_file(toy.tensors(), path)
    return path
