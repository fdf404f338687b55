"""Compiled programs that the commands keep between runs: JAX's persistent compilation cache.

Most of a short run is XLA compiling what the run before has compiled. The commands keep programs in
the user's cache folder, `folder`, which may be deleted at any time; importing the library does not.
JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder, and
JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing. A program is found again by the same JAX on the same
kind of device and, on a CPU, by one with the same instructions.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

_SHORTEST = "jax_persistent_cache_min_compile_time_secs"


def folder() -> Path:
    """Where programs are kept: in XDG_CACHE_HOME, or where the system's caches are.

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


def keep() -> None:
    """Keep what is compiled from now on, unless JAX's settings say otherwise.

    Without a folder that can be written to, says so on stderr and does without.
    """
    settings: Any = jax.config
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    try:
        path = folder()
        # What is in it is run: nobody else may write to it.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:
        print(f"flowsde: compiled programs are not kept: {error}", file=sys.stderr)
        return
    settings.update("jax_compilation_cache_dir", str(path))
    if _SHORTEST.upper() not in os.environ:
        # The embedded model's programs take less than the second that JAX keeps programs from.
        settings.update(_SHORTEST, 0.0)
