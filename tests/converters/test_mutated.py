"""Files that were tampered with: a clear error or the right model, five hundred times.

What the right model is, is said by the safetensors library's own reading of the file and by the
table; or, where only values were changed, by the changed values themselves.
"""

import json
import re

import numpy as np
import pytest
import safetensors
import toy
from quick import slow_but
from safetensors.numpy import load_file, save
from test_convert import expected

import flowsde as fs
from flowsde.models.common.paths import parameters
from flowsde_converters import convert

SAYS = re.compile(
    r"truncated|not JSON|expected|cannot be|does not fit|missing|unexpected|NaN|more than|times"
)
CLEAN = save(toy.tensors(), {"format": "pt"})
HEADER = 8 + int.from_bytes(CLEAN[:8], "little")
EACH = 50


def with_header(change):
    """The file with another header."""
    header = json.loads(CLEAN[8:HEADER])
    text = json.dumps(change(header)).encode()
    return len(text).to_bytes(8, "little") + text + CLEAN[HEADER:]


def keys(header):
    return [key for key in header if key != "__metadata__"]


def flip_bits(rng):
    """One bit of the header, its length included."""
    at = rng.integers(HEADER)
    return CLEAN[:at] + bytes([CLEAN[at] ^ (1 << rng.integers(8))]) + CLEAN[at + 1 :]


def other_bytes(rng):
    """Up to three bytes of the header are other printable ones."""
    file = bytearray(CLEAN)
    for at in rng.integers(8, HEADER, rng.integers(1, 4)):
        file[at] = rng.integers(32, 127)
    return bytes(file)


def digits(rng):
    """A digit is another one: shapes, offsets, dtypes, numbers of blocks."""
    file = bytearray(CLEAN)
    places = [i for i in range(8, HEADER) if chr(file[i]).isdigit()]
    file[rng.choice(places)] = ord(str(rng.integers(10)))
    return bytes(file)


def truncate(rng):
    """Anywhere."""
    return CLEAN[: rng.integers(len(CLEAN))]


def insert(rng):
    """Some bytes more, anywhere."""
    at = rng.integers(len(CLEAN) + 1)
    return CLEAN[:at] + rng.bytes(rng.integers(1, 9)) + CLEAN[at:]


def rename(rng):
    """A key is another one."""

    def change(header):
        old = rng.choice(keys(header))
        new = rng.choice([old + "x", old[:-1], f"b.9{old}", "", "b.1.ids", "é"])
        return {new if key == old else key: value for key, value in header.items()}

    return with_header(change)


def swap(rng):
    """Two keys change places: a wrong model, unless their shapes say so, that nobody can tell."""

    def change(header):
        a, b = rng.choice(keys(header), 2, replace=False)
        header[a], header[b] = header[b], header[a]
        return header

    return with_header(change)


def reshape(rng):
    """Another shape, of the same size or not."""

    def change(header):
        entry = header[rng.choice(keys(header))]
        shape = entry["shape"]
        entry["shape"] = [
            shape[::-1], [*shape, 1], [1, *shape], shape[1:], [int(np.prod(shape))],
            [-n for n in shape], [n + 1 for n in shape], [2**40, *shape], [str(n) for n in shape],
        ][rng.integers(9)]  # fmt: skip
        return header

    return with_header(change)


def far(rng):
    """A tensor without values, of a block that would make the model cost more than there is."""

    def change(header):
        end = len(CLEAN) - HEADER
        name = f"b.{rng.integers(4, 10**9)}.{rng.choice(['x', 'y', 'bias', 'ids'])}"
        header[name] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
        return header

    return with_header(change)


def not_finite(rng):
    """Some values are NaN or infinite."""
    tensors = toy.tensors()
    values = tensors[rng.choice(list(tensors))].reshape(-1)
    values[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -np.inf])
    return save(tensors)


def values(rng):
    """A bit of a value is another one: a valid checkpoint, unless it makes a NaN."""
    at = rng.integers(HEADER, len(CLEAN))
    return CLEAN[:at] + bytes([CLEAN[at] ^ (1 << rng.integers(8))]) + CLEAN[at + 1 :]


MUTATIONS = [flip_bits, other_bytes, digits, truncate, insert, rename, swap, reshape, far,
             not_finite, values]  # fmt: skip
HARMLESS = (flip_bits, digits, swap, reshape, values)
"""Some of their files hold a model."""


@pytest.mark.parametrize(
    "mutation",
    slow_but(set(MUTATIONS) - {values, swap, not_finite}, MUTATIONS),
    ids=lambda mutation: mutation.__name__,
)
def test_an_error_or_the_right_model(families, tmp_path, mutation):
    rng = np.random.default_rng(sum(mutation.__name__.encode()))
    path = tmp_path / "model.safetensors"
    outcomes = set()
    for i in range(EACH):
        path.write_bytes(mutation(rng))
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
        path.write_bytes(mutation(rng))
        try:
            with safetensors.safe_open(path, "numpy"):
                continue
        except safetensors.SafetensorError:
            refused += 1
        with pytest.raises(ValueError, match=SAYS):
            convert.prepare(path)
    assert refused > 0
