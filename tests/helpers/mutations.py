"""Seeded mutations of a safetensors file: `mutation(file, rng)` to its new bytes."""

import json

import numpy as np
from safetensors.numpy import load, save


def header_size(file):
    """Bytes before the values."""
    return 8 + int.from_bytes(file[:8], "little")


def with_header(file, change):
    """The file with another header."""
    end = header_size(file)
    header = json.loads(file[8:end])
    text = json.dumps(change(header)).encode()
    return len(text).to_bytes(8, "little") + text + file[end:]


def keys(header):
    return [key for key in header if key != "__metadata__"]


def flip_bits(file, rng):
    """One bit of the header, its length included."""
    return _flipped(file, rng.integers(header_size(file)), rng)


def other_bytes(file, rng):
    """Up to three bytes of the header are other printable ones."""
    made = bytearray(file)
    for at in rng.integers(8, header_size(file), rng.integers(1, 4)):
        made[at] = rng.integers(32, 127)
    return bytes(made)


def digits(file, rng):
    """A digit is another one: shapes, offsets, dtypes, numbers of blocks."""
    made = bytearray(file)
    places = [i for i in range(8, header_size(file)) if chr(made[i]).isdigit()]
    made[rng.choice(places)] = ord(str(rng.integers(10)))
    return bytes(made)


def truncate(file, rng):
    """Anywhere."""
    return file[: rng.integers(len(file))]


def insert(file, rng):
    """Some bytes more, anywhere."""
    at = rng.integers(len(file) + 1)
    return file[:at] + rng.bytes(rng.integers(1, 9)) + file[at:]


def rename(file, rng):
    """A key is another one."""

    def change(header):
        old = rng.choice(keys(header))
        new = rng.choice([old + "x", old[:-1], f"b.9{old}", "", "b.1.ids", "é"])
        return {new if key == old else key: value for key, value in header.items()}

    return with_header(file, change)


def swap(file, rng):
    """Two keys change places: a wrong model, unless their shapes say so, that nobody can tell."""

    def change(header):
        a, b = rng.choice(keys(header), 2, replace=False)
        header[a], header[b] = header[b], header[a]
        return header

    return with_header(file, change)


def reshape(file, rng):
    """Another shape, of the same size or not."""

    def change(header):
        entry = header[rng.choice(keys(header))]
        shape = entry["shape"]
        entry["shape"] = [
            shape[::-1], [*shape, 1], [1, *shape], shape[1:], [int(np.prod(shape))],
            [-n for n in shape], [n + 1 for n in shape], [2**40, *shape], [str(n) for n in shape],
        ][rng.integers(9)]  # fmt: skip
        return header

    return with_header(file, change)


def not_finite(file, rng):
    """Some values are NaN or infinite."""
    tensors = load(file)
    values = tensors[rng.choice(list(tensors))].reshape(-1)
    values[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -np.inf])
    return save(tensors)


def values(file, rng):
    """A bit of a value is another one: a valid checkpoint, unless it makes a NaN."""
    return _flipped(file, rng.integers(header_size(file), len(file)), rng)


def _flipped(file, at, rng):
    return file[:at] + bytes([file[at] ^ (1 << rng.integers(8))]) + file[at + 1 :]


MUTATIONS = (
    flip_bits, other_bytes, digits, truncate, insert, rename, swap, reshape, not_finite, values,
)  # fmt: skip
