"""Weights files of the embedded networks: bfloat16 safetensors with their configuration.

Keys are the parameters' paths joined by dots; the header's metadata holds the name of
the network and its configuration as JSON. Weights are used as float32.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import save as serialise

from flowsde._checks import check_path
from flowsde._files import replacing
from flowsde._schema import mapping
from flowsde._text import shown

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


NAMES = ("shapes", "turbo", "scorer")
"""Of the networks: the flow, the one that is distilled from it, and their given reward."""


def packaged(name: str) -> Path:
    """The file of the weights that come with the package."""
    return FOLDER / f"{name}.safetensors"


def chosen(option: str, paths: Sequence[Path], flow: str = "shapes") -> dict[str, Path]:
    """The files of a flow and of the scorer: the packaged ones but for those that are given.

    Args:
      option: names the paths in errors.
      paths: files that ``flowsde train`` wrote, or folders of its runs.
      flow: the network that samples.

    Returns:
      The flow's, then the scorer's, by the name of the network.

    Raises:
      ValueError: a path holds no weights of one of the two, or two hold those of one.
    """
    names = (flow, "scorer")
    found: dict[str, Path] = {}
    for path in paths:
        inside = [path / packaged(name).name for name in names] if path.is_dir() else [path]
        files = [file for file in inside if file.is_file()]
        if not files:
            raise ValueError(
                f"{option} must be a file that flowsde train wrote, or the folder of a run that "
                f"ended, got {shown(path)}"
            )
        for file in files:
            name = _metadata(file).get("name")
            if name not in NAMES:
                raise ValueError(f"{option}: {shown(file)} was not written by flowsde train")
            if name not in names:
                raise ValueError(
                    f"{option}: {shown(file)} holds weights of {name}, expected those of "
                    f"{' or '.join(names)}"
                )
            if name in found:
                raise ValueError(
                    f"{option}: both {shown(found[name])} and {shown(file)} hold weights of {name}"
                )
            found[name] = file
    return {name: packaged(name) for name in names} | found


def _metadata(path: Path) -> dict[str, str]:
    """ValueError naming the file if it is no safetensors."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{shown(path)} cannot be read: {error}") from None


def load(path: Path, name: str) -> tuple[Params, dict[str, Any]]:
    """Parameters, float32 in nested dicts, and configuration of the network `name`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or holds another network.
    """
    path = check_path("path", path)
    if not path.exists():
        raise FileNotFoundError(f"no weights of {name!r} at {path}")
    metadata = _metadata(path)
    if metadata.get("name") != name:
        raise ValueError(f"{path} holds {metadata.get('name')!r}, expected weights of {name!r}")
    params: dict[str, Any] = {}
    with safe_open(path, framework="numpy") as file:
        for key in file.keys():
            *parents, leaf = key.split(".")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            # Converted by NumPy, and put there: JAX would compile either for every shape.
            node[leaf] = jax.device_put(file.get_tensor(key).astype(np.float32))
    try:
        config = mapping(json.loads(metadata["config"]), f"{path}: config")
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} has no configuration that can be read: {error}") from None
    return params, config


def check(path: Path, params: Params, like: Any) -> None:
    """ValueError unless parameters have the names and shapes of a model's state.

    Args:
      path: for the error.
      params: of `load`.
      like: arrays or their shapes, in nested dicts.
    """
    wanted, found = (
        {jax.tree_util.keystr(at): leaf.shape for at, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (like, params)
    )
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{path}: {name} has shape {found.get(name)}, expected {wanted.get(name)}"
            )


def count(params: Params) -> int:
    """Number of parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
