"""Files that were tampered with: a clear error or the right model, five hundred times.

What the right model is, is said by the safetensors library's own reading of the file and by the
table; or, where only values were changed, by the changed values themselves.
"""

import re

import mutations
import numpy as np
import pytest
import safetensors
import toy
from mutations import (
    digits,
    flip_bits,
    insert,
    other_bytes,
    reshape,
    swap,
    truncate,
    values,
)
from safetensors.numpy import load_file, save
from test_convert import expected

import flowsde as fs
from flowsde.models.common.paths import parameters
from flowsde_converters import convert

SAYS = re.compile(
    r"truncated|not JSON|expected|cannot be|does not fit|missing|unexpected|NaN|more than|times"
)
CLEAN = save(toy.tensors(), {"format": "pt"})
EACH = 50


def far(file, rng):
    """A tensor without values, of a block that would make the model cost more than there is."""

    def change(header):
        end = len(file) - mutations.header_size(file)
        name = f"b.{rng.integers(4, 10**9)}.{rng.choice(['x', 'y', 'bias', 'ids'])}"
        header[name] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        return header

    return mutations.with_header(file, change)


MUTATIONS = (*mutations.MUTATIONS, far)
HARMLESS = (flip_bits, digits, swap, reshape, values)
"""Some of their files hold a model."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutation",
    MUTATIONS,
    ids=lambda mutation: mutation.__name__,
)
def test_an_error_or_the_right_model(families, tmp_path, mutation):
    rng = np.random.default_rng(sum(mutation.__name__.encode()))
    path = tmp_path / "model.safetensors"
    outcomes = set()
    for i in range(EACH):
        path.write_bytes(mutation(CLEAN, rng))
        out = tmp_path / f"out{i}"
        try:
            convert.run(convert.prepare(path), out)
        except ValueError as error:
            outcomes.add("error")
            assert SAYS.search(str(error)), error
            assert not out.exists()
            continue
        outcomes.add("model")
        # The library accepts the file too, and holds the same.
        tensors = {k: a for k, a in load_file(path).items() if not k.endswith("ids")}
        wanted = expected(tensors)
        found = parameters(fs.load(out))
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            assert np.isfinite(array).all()
            np.testing.assert_array_equal(found[name], array, strict=True)
    assert "error" in outcomes
    assert ("model" in outcomes) == (mutation in HARMLESS)
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()


@pytest.mark.parametrize("mutation", [flip_bits, other_bytes, digits, truncate, insert, reshape])
def test_what_the_library_refuses_is_refused(families, tmp_path, mutation):
    rng = np.random.default_rng(7)
    path = tmp_path / "model.safetensors"
    refused = 0
    for _ in range(EACH):
        path.write_bytes(mutation(CLEAN, rng))
        try:
            with safetensors.safe_open(path, "numpy"):
                continue
        except safetensors.SafetensorError:
            refused += 1
        with pytest.raises(ValueError, match=SAYS):
            convert.prepare(path)
    assert refused > 0
