"""The whole suite runs under strict dtype promotion and with rank promotion an error."""

import atexit
import gc
import importlib
import os
import shutil
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from zlib import crc32

import matplotlib

# Without fused multiply-adds, sums and products round alike in programs that fuse differently: what
# should be equal bit for bit is.
FLAGS = ["--xla_cpu_max_isa=AVX"]
# Most of a test is XLA compiling; without these emitters, which 0.10 can still turn off, that takes
# a third of the time.
if version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
# And half of that is LLVM's optimising, which few tests win back; for processes they start, too.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

# Programs compiled again, by another function object, after another file or in a process that a
# test starts, are found: small ones too, which are most.
CACHE = tempfile.mkdtemp(prefix="flowsde-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Rewriting the asserts of all files takes as long as the rest of collecting: it is kept, as pytest
# does by itself, whatever the caller's environment says.
sys.dont_write_bytecode = False

matplotlib.use("Agg")

import jax  # noqa: E402
import parsers  # noqa: E402
import pytest  # noqa: E402
from turned import Turned  # noqa: E402

from flowsde import changed, fresh  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
# Some tests shard prompts over devices; everything else runs on the first.
jax.config.update("jax_num_cpu_devices", 4)
parsers.keep()


def pytest_addoption(parser):
    parser.addoption(
        "--part", default="0/1", metavar="I/N", help="run one of N parts of the tests that are left"
    )


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Turned(Path(__file__).parent, config.workerinput))


def _mark_slow(items):
    """Mark tests of pipelines, which are made and converted first, and all cases but a first."""
    seen = set()
    for item in items:
        if {"folders", "others"} & set(item.fixturenames):
            item.add_marker("slow")
        if item.get_closest_marker("slow_but_one") and not item.get_closest_marker("slow"):
            function = item.nodeid.partition("[")[0]
            if function in seen:
                item.add_marker("slow")
            seen.add(function)


def pytest_collection_modifyitems(config, items):
    """Which part a test is in depends on its name alone: other tests come and go."""
    _mark_slow(items)
    part, parts = map(int, config.getoption("--part").split("/"))
    own = [crc32(item.nodeid.encode()) % parts == part % parts for item in items]
    config.hook.pytest_deselected(
        items=[one for one, mine in zip(items, own, strict=True) if not mine]
    )
    items[:] = [one for one, mine in zip(items, own, strict=True) if mine]


def pytest_collection_finish():
    """Tracing makes many objects and little garbage: looking for it took an eighth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Programs are let go after each file: a process has room for so many (its memory maps)."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def nothing_seen():
    """What one test has defined is no reason to warn in another."""
    yield
    changed.forget()
    fresh.forget()


@pytest.fixture
def full_optimization():
    """Compile as users do."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folders of tiny pipelines, saved as "source" and converted to "out", and diffusers' own
    of the same weights."""
    pytest.importorskip("diffusers")
    tiny = importlib.import_module("tiny")
    made = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("schnell", "dev"):
            made[name] = tmp_path_factory.mktemp(name)
            made[f"{name} of diffusers"] = tiny.flux_pipeline(made[name], dev=name == "dev")
            tiny.converted(made[name] / "source", made[name] / "out")
    return made


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """The folders of a converted CLIP, aesthetic head, SiT and its autoencoder, and diffusers'."""
    pytest.importorskip("diffusers")
    tiny = importlib.import_module("tiny")
    folder = tmp_path_factory.mktemp("others")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vae, converted = tiny.sd_vae(folder / "vae")
        return {
            "clip": tiny.clip(folder / "clip"),
            "head": tiny.aesthetic_head(folder / "head"),
            "sit": tiny.sit_model(folder / "sit"),
            "vae": converted,
            "vae of diffusers": vae,
        }
