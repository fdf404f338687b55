"""Files copied out of a folder of others: what its links lead to must be in it.

A folder of the Hugging Face hub's cache holds links into the store of files beside it, which are
followed, too:

    models--OWNER--NAME/snapshots/COMMIT/vae/config.json -> ../../../blobs/DIGEST
"""

import os
import shutil
from pathlib import Path

_DEPTH = 32
"""Of folders in folders."""


def contained(path: Path, folder: Path) -> Path:
    """Where `path` is, links followed.

    Raises:
      ValueError: that is not in `folder`, nor in the hub's store of files beside it.
    """
    root, found = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if not any(found.is_relative_to(place) for place in (root, *_stores(root))):
        raise ValueError(
            f"{path} leads to {found}, outside of {folder}: expected the file itself there"
        )
    return found


def _stores(root: Path) -> list[Path]:
    """The hub's store of files, for one of its snapshots or a folder in one."""
    return [
        model / "blobs"
        for snapshots in root.parents
        for model in [snapshots.parent]
        if snapshots.name == "snapshots" and model.name.startswith("models--")
    ]


def copy_file(path: Path, folder: Path, to: Path) -> None:
    """Copy a file of `folder` to the new path `to`; errors as of `contained`."""
    found = contained(path, folder)
    if not found.is_file():
        raise ValueError(f"{path} is no file, expected one")
    shutil.copyfile(found, to)


def copy_tree(path: Path, folder: Path, to: Path, depth: int = _DEPTH) -> None:
    """Copy a folder in `folder` into `to`, made if need be.

    Raises:
      ValueError: as of `contained`; or it holds a link to a folder, which may lead around in a
        circle, or what is neither file nor folder.
      OSError: the disk.
    """
    if not depth:
        raise ValueError(f"{path} is more than {_DEPTH} folders deep")
    to.mkdir(exist_ok=True)
    for one in sorted(contained(path, folder).iterdir()):
        if one.is_dir() and not one.is_symlink():
            copy_tree(one, folder, to / one.name, depth - 1)
        else:
            copy_file(one, folder, to / one.name)
