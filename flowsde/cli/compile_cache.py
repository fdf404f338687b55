"""JAX's persistent compilation cache, in which the commands keep compiled programs between runs.

Most of a short run is spent compiling what the run before has compiled. The commands keep programs
in the user's cache folder, `folder`, which may be deleted at any time; importing the library does
not. JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder, and
JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing. A program is reused by the same JAX on the same kind
of device; on a CPU, by one with the same instructions.

JAX writes an entry in place and never rewrites it, so an entry torn by a full disk would stay torn.
Every entry that is new since the last command is therefore decompressed once, and removed if that
fails.
"""

import os
import stat
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import jax

_SHORTEST = "jax_persistent_cache_min_compile_time_secs"
_CHECKED = ".checked"
_ZSTD = b"\x28\xb5\x2f\xfd"


def folder() -> Path:
    """Folder of the programs: in XDG_CACHE_HOME, or in the system's folder for caches.

    Raises:
      RuntimeError: the user has no home.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        caches = given
    elif sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path.home() / ".cache"
    return caches / "flowsde" / "compiled"


def enable() -> None:
    """Keep what is compiled from now on, unless JAX's settings say otherwise.

    Without a folder that this user alone can write to, says so on stderr and keeps nothing.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    try:
        path = folder()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(path)
        with tempfile.TemporaryFile(dir=path):
            pass
        _repair(path)
    except (OSError, RuntimeError) as error:
        print(f"flowsde: compiled programs are not kept: {error}", file=sys.stderr)
        return
    settings.update("jax_compilation_cache_dir", str(path))
    if _SHORTEST.upper() not in os.environ:
        # The embedded model's programs take less than the second that JAX keeps programs from.
        settings.update(_SHORTEST, 0.0)


def _check_private(path: Path) -> None:
    """RuntimeError if anybody else may write to a folder, whose contents are executed."""
    if not hasattr(os, "geteuid"):
        return  # Windows, where it is in the user's own.
    for one in (path.parent, path):
        found = one.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise RuntimeError(f"{one} is a link, expected a folder")
        if found.st_uid != os.geteuid():
            raise RuntimeError(f"{one} belongs to another user")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuntimeError(f"{path} may be written to by other users, expected mode 700")


def _repair(path: Path) -> None:
    """Remove empty and torn entries among those that are new since the last call."""
    mark = path / _CHECKED
    last = mark.stat().st_mtime_ns if mark.exists() else 0
    # Touched first: what is written meanwhile is looked at the next time.
    mark.touch()
    for entry in os.scandir(path):
        if not entry.name.endswith("-cache") or entry.stat().st_mtime_ns < last:
            continue
        if not _is_whole(Path(entry.path)):
            Path(entry.path).unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Whether an entry, compressed in either of JAX's two ways, is complete."""
    try:
        data = path.read_bytes()
        if not data.startswith(_ZSTD):
            zlib.decompress(data)
            return True
        import zstandard  # JAX's choice where it is installed.

        zstandard.ZstdDecompressor().decompress(data)
    except ImportError:
        return True  # JAX cannot read it either, and says so.
    except FileNotFoundError:
        return True
    except Exception:
        return False
    return True
