"""Weights files of the embedded networks: bfloat16 safetensors with their configuration.

Keys are the parameters' paths joined by dots; the header's metadata holds the name of
the network and its configuration as JSON. Weights are used as float32.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.flax import save as serialise

from flowsde._checks import check_path
from flowsde._files import replacing

Params = Any
FOLDER = Path(__file__).parent / "weights"


def save(path: Path, params: Params, name: str, config: dict[str, Any]) -> None:
    """Write parameters as bfloat16 to a temporary file, then rename it to `path`.

    Equal arguments give equal bytes, so that a file's hash identifies its weights.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    flat = {".".join(key.key for key in keys): leaf for keys, leaf in leaves}
    tensors = {key: jnp.asarray(leaf, jnp.bfloat16) for key, leaf in flat.items()}
    metadata = {"name": name, "config": json.dumps(config)}
    with replacing(path) as temporary:
        temporary.write_bytes(_sort_header(serialise(tensors, metadata)))


def _sort_header(file: bytes) -> bytes:
    """The same file with sorted keys in its header, where safetensors orders metadata at random."""
    end = 8 + int.from_bytes(file[:8], "little")
    text = json.dumps(json.loads(file[8:end]), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[end:]


def load(path: Path, name: str) -> tuple[Params, dict[str, Any]]:
    """Parameters, float32 in nested dicts, and configuration of the network `name`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file holds another network.
    """
    path = check_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"no weights of {name!r} at {path}")
    params: dict[str, Any] = {}
    with safe_open(path, framework="flax") as file:
        metadata = file.metadata() or {}
        if metadata.get("name") != name:
            raise ValueError(f"{path} holds {metadata.get('name')!r}, expected weights of {name!r}")
        for key in file.keys():
            *parents, leaf = key.split(".")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            # Converted by NumPy: JAX would compile a conversion for every shape.
            node[leaf] = jnp.asarray(np.asarray(file.get_tensor(key)).astype(np.float32))
    return params, json.loads(metadata["config"])


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
