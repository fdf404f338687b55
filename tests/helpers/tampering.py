"""Seeded damage to a folder's files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

_ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, "", "Infinity", "\x1b[31m" * 99, [], {}, [[]],
)  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in JSON."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    own = [(value, key) for key in keys]
    return own + [place for _, key in own for place in _places(value[key])]


def _bytes(path: Path, rng: np.random.Generator) -> str:
    """Cut, emptied, flipped, or random."""
    data = bytearray(path.read_bytes())
    how = rng.integers(4)
    if how == 0:
        data = data[: rng.integers(len(data) + 1)]
    elif how == 1 and data:
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    elif how == 2:
        data = bytearray()
    else:
        data = bytearray(rng.bytes(rng.integers(1, 200)))
    path.write_bytes(data)
    return f"bytes {how}"


def _json(path: Path, rng: np.random.Generator) -> str:
    """A field dropped, or of another kind."""
    value = json.loads(path.read_text())
    places = _places(value)
    container, key = places[rng.integers(len(places))]
    odd = _ODD[rng.integers(len(_ODD))]
    if rng.random() < 0.3:
        del container[key]
    else:
        container[key] = odd
    path.write_text(json.dumps(value))
    return f"field {key}"


def _npz(path: Path, rng: np.random.Generator) -> str:
    """An array dropped, of another type, shape or value; or what is said of them."""
    with np.load(path) as file:
        arrays = dict(file)
    name = list(arrays)[rng.integers(len(arrays))]
    array, how = arrays[name], rng.integers(6)
    if name == "about" and how != 0:
        said = json.loads(array.tobytes())
        places = _places(said)
        container, key = places[rng.integers(len(places))]
        container[key] = _ODD[rng.integers(len(_ODD))]
        arrays[name] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    elif how == 0:
        del arrays[name]
    elif how == 1:
        arrays[name] = array.astype(np.complex64 if array.dtype.kind != "U" else "S9")
    elif how == 2:
        arrays[name] = array[None]
    elif how == 3:
        arrays[name] = array.reshape(-1)[:1]
    elif how == 4:
        arrays[name] = np.asarray(["words"] * 3)
    else:
        # What is of another kind: that two of one kind were exchanged, nothing shows.
        others = [a for a in arrays.values() if (a.dtype, a.ndim) != (array.dtype, array.ndim)]
        arrays[name] = others[rng.integers(len(others))]
    with path.open("wb") as opened:
        np.savez(opened, **arrays)
    return f"array {name} {how}"


def tamper(folder: Path, rng: np.random.Generator) -> str:
    """Damage one file, drawn from all that can be; what was done."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".png")
    path = files[rng.integers(len(files))]
    how = rng.random()
    if how < 0.1:
        path.unlink()
        done = "deleted"
    elif how < 0.2:
        path.write_bytes(files[rng.integers(len(files))].read_bytes())
        done = "exchanged"
    elif how < 0.75 and path.suffix == ".json":
        done = _json(path, rng)
    elif how < 0.75 and path.suffix == ".npz":
        done = _npz(path, rng)
    else:
        done = _bytes(path, rng)
    return f"{path.relative_to(folder)}: {done}"
