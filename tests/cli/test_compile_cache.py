"""Commands keep their programs in the user's cache folder; the library does not."""

import contextlib
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from flowsde.cli import compile_cache

_FAST = ["--method", "ode", "--steps", "2"]


def _python(cache: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process, with a cache folder of its own and without the settings of these tests."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    own |= {"XDG_CACHE_HOME": str(cache), **environment}
    command = [sys.executable, *args]
    return subprocess.run(command, env=own, cwd=cache.parent, capture_output=True, text=True)


def _entries(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*-cache")}


@pytest.mark.slow
def test_a_command_keeps_programs_and_the_next_one_finds_them(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = ["-m", "flowsde", "sample", "a red circle", *_FAST, "--out", "out", "--overwrite"]
    found = _python(cache, *command, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert found.returncode == 0, found.stderr
    kept = _entries(cache / "flowsde" / "compiled")
    assert kept
    # Were one not found, it would be written; JAX says what it compiles.
    logged = {"JAX_LOGGING_LEVEL": "DEBUG", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    found = _python(cache, *command, **logged)
    assert found.returncode == 0, found.stderr
    assert _entries(cache / "flowsde" / "compiled") == kept
    assert "Persistent compilation cache hit" in found.stderr
    assert "PERSISTENT COMPILATION CACHE MISS" not in found.stderr


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, object]:
    """JAX as it is without settings; what is updated is written down and nothing changes."""
    updated: dict[str, object] = {}

    class Config:
        jax_compilation_cache_dir = None
        jax_enable_compilation_cache = True

        def update(self, name: str, value: object) -> None:
            updated[name] = value

    monkeypatch.setattr(compile_cache.jax, "config", Config())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    return updated


def test_short_programs_are_kept_too(unset: dict[str, object], tmp_path: Path) -> None:
    compile_cache.enable()
    wanted = {
        "jax_compilation_cache_dir": str(tmp_path / "flowsde" / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    assert unset == wanted
    assert (tmp_path / "flowsde" / "compiled").stat().st_mode & 0o77 == 0


def test_settings_of_jax_come_first(
    unset: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "2")
    compile_cache.enable()
    assert unset.keys() == {"jax_compilation_cache_dir"}
    unset.clear()
    monkeypatch.setattr(compile_cache.jax.config, "jax_compilation_cache_dir", "elsewhere")
    compile_cache.enable()
    monkeypatch.setattr(compile_cache.jax.config, "jax_compilation_cache_dir", None)
    monkeypatch.setattr(compile_cache.jax.config, "jax_enable_compilation_cache", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "unused"))
    compile_cache.enable()
    assert unset == {}
    assert not (tmp_path / "unused").exists()


def test_without_a_folder_it_goes_on_and_says_so_once(
    unset: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compile_cache.enable()
    assert unset == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flowsde: compiled programs are not kept: ") and "file" in line


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda kept, own: kept.chmod(0o770), "may be written to by other users"),
        (lambda kept, own: kept.chmod(0o707), "may be written to by other users"),
        (lambda kept, own: (kept.rename(own), kept.symlink_to(own)), "compiled is a link"),
        (
            lambda kept, own: (kept.parent.rename(own), kept.parent.symlink_to(own)),
            "flowsde is a link",
        ),
        (lambda kept, own: os.chown(kept, 65534, -1), "belongs to another user"),
    ],
)
def test_a_folder_of_others_is_not_used(
    spoil: Callable[[Path, Path], object],
    says: str,
    unset: dict[str, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = tmp_path / "flowsde" / "compiled"
    kept.mkdir(mode=0o700, parents=True)
    try:
        spoil(kept, tmp_path / "own")
    except PermissionError:
        pytest.skip("only root may give a folder away")
    compile_cache.enable()
    assert unset == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flowsde: compiled programs are not kept: ") and says in line


def test_torn_programs_are_removed_and_compiled_again(
    unset: dict[str, object], tmp_path: Path
) -> None:
    kept = tmp_path / "flowsde" / "compiled"
    compile_cache.enable()
    whole = {"zlib": zlib.compress(bytes(range(256)) * 99)}
    with contextlib.suppress(ImportError):
        import zstandard

        whole["zstd"] = zstandard.ZstdCompressor().compress(bytes(range(256)) * 99)
    for name, data in whole.items():
        for cut in (0, 1, len(data) // 2, len(data) - 1, len(data)):
            (kept / f"{name}-{cut}-cache").write_bytes(data[:cut])
    time.sleep(0.05)  # longer than the clock of the file system ticks
    compile_cache.enable()
    assert _entries(kept) == {f"{name}-{len(data)}-cache" for name, data in whole.items()}
    # Each is looked at once.
    looked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_cache, "_is_whole", lambda path: looked.append(path) or True)
        compile_cache.enable()
    assert not looked


@pytest.mark.slow
def test_a_disk_that_was_full_spoils_no_program_for_good(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = ["-m", "flowsde", "sample", "a red circle", *_FAST, "--out", "out", "--overwrite"]
    fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    assert _python(cache, *command, **fast).returncode == 0
    kept = cache / "flowsde" / "compiled"
    before = _entries(kept)
    for path in kept.glob("*-cache"):
        os.truncate(path, path.stat().st_size // 3)
    again = _python(cache, *command, **fast)
    assert again.returncode == 0 and "cache entry" not in again.stderr
    assert _entries(kept) == before
    assert all(compile_cache._is_whole(path) for path in kept.glob("*-cache"))


def test_folder_is_where_the_system_has_its_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache.Path, "home", lambda: Path("/home/me"))
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    for given in (None, "", "relative"):
        if given is None:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", given)
        for platform, where in (
            ("linux", ".cache"),
            ("darwin", "Library/Caches"),
            ("win32", "AppData/Local"),
        ):
            monkeypatch.setattr(sys, "platform", platform)
            assert compile_cache.folder() == Path("/home/me") / where / "flowsde" / "compiled"


@pytest.mark.slow
def test_importing_the_library_is_light_and_keeps_nothing(tmp_path: Path) -> None:
    code = """
import sys
import flowsde
import jax
heavy = "matplotlib PIL tyro tqdm orbax tensorstore tokenizers scipy torch".split()
print([name for name in heavy if name in sys.modules], jax.config.jax_compilation_cache_dir)
"""
    found = _python(tmp_path / "cache", "-c", code)
    assert found.stdout.split("\n")[0] == "[] None", found.stderr
