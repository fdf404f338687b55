"""What is installed, from a wheel, outside the checkout, without a network; what is declared."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import flowsde as fs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder holding nothing but what the wheel installs."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.glob("flowsde-*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True
    )
    return site


def run(site, tmp_path, *command):
    # An unreachable proxy: any attempt to use the network fails.
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    environment = {**os.environ, **proxy, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(site):
    top = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")}
    assert top - {"bin"} == {"flowsde", "flowsde_converters"}
    weights = {p.name for p in (site / "flowsde" / "shapes" / "weights").iterdir()}
    assert {"shapes.safetensors", "scorer.safetensors", "MODEL_CARD.md"} <= weights
    assert sum(p.stat().st_size for p in (site / "flowsde").rglob("*.safetensors")) < 15e6


@pytest.mark.slow
def test_description_has_no_link_to_a_file_that_is_not_there(site):
    (metadata,) = site.glob("flowsde-*.dist-info/METADATA")
    text = metadata.read_text()
    assert "# flowsde" in text and "(`docs/guide.md`)" in text
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all(target.startswith("https://") for target in targets), targets


@pytest.mark.slow
def test_converters_do_not_claim_a_generic_name(site, tmp_path):
    found = run(
        site, tmp_path, "-c", "import flowsde_converters; print(flowsde_converters.__file__)"
    )
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).is_relative_to(site)


@pytest.mark.slow
def test_first_command_works_outside_the_checkout(site, tmp_path):
    out = tmp_path / "out"
    command = ["-m", "flowsde", "sample", "three red circles and two blue squares", "--out", out]
    found = run(site, tmp_path, *map(str, command))
    assert found.returncode == 0, found.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["nfe"] <= 500
    assert (out / "image.png").exists()


DISTRIBUTIONS = {"PIL": "pillow", "orbax": "orbax-checkpoint"}
"""Of the modules whose distribution has another name."""
NOT_IMPORTED = {"jaxlib"}
IF_THERE = {"zstandard"}
"""What JAX compresses its compiled programs with, where it is installed."""
TOOLS = {"pytest-xdist", "ruff", "mypy"}


def _declared(requirements):
    return {re.match(r"[\w.-]+", one)[0] for one in requirements}


@cache
def _parsed(folder):
    return [ast.parse(path.read_text()).body for path in (ROOT / folder).rglob("*.py")]


def _statements(body):
    """Those of a block and of the blocks in it: a small part of a tree, and all that can import."""
    for node in body:
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from _statements(getattr(node, field, ()))


def _imported(*folders, late=True):
    """Distributions of the modules that files import; within functions too, if `late`."""
    own = {
        path.stem for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    }
    own |= {"flowsde", "flowsde_converters", *sys.stdlib_module_names}
    names = set()
    for body in (body for folder in folders for body in _parsed(folder)):
        for node in _statements(body) if late else body:
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.partition(".")[0])
    return {DISTRIBUTIONS.get(name, name) for name in names - own}


def _project():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    optional = extras["convert"] + extras["video"]
    return [_declared(group) for group in (project["dependencies"], optional, extras["test"])]


def test_what_is_declared_is_imported_and_nothing_else_is():
    needed, optional, _ = _project()
    assert _imported("flowsde", "converters") == (needed - NOT_IMPORTED) | optional | IF_THERE
    assert not _imported("flowsde", "converters", late=False) & (optional | IF_THERE)


def test_what_the_tests_import_is_declared():
    needed, optional, test = _project()
    found = _imported("tests", "benchmarks")
    # A module that is neither installed nor declared is one that a test writes itself.
    installed = {DISTRIBUTIONS.get(name, name) for name in packages_distributions()}
    assert (found & (installed | test)) - needed - optional == test - TOOLS - optional


def test_the_version_is_one():
    with (ROOT / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'__version__ = "{version}"' in (ROOT / "flowsde" / "_version.py").read_text()
    entries = re.findall("^## (.*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [entry for entry in entries if entry != "Unreleased"]
    assert released[0].partition(" ")[0] == version


def test_public_names_are_found():
    # Asked of the package itself: what a test has imported is there without it.
    missing = [
        name for name in fs.__all__ if name != "__version__" and fs.__getattr__(name) is None
    ]
    assert not missing and len(fs.__all__) == len(set(fs.__all__)), missing
    assert set(fs.__all__) == {"__version__", *fs._MODULES, *fs._HOMES}


def test_importing_does_not_load_jax():
    code = (
        "import sys, flowsde as fs\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
        "try: fs.nothing\n"
        "except AttributeError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "module 'flowsde' has no attribute 'nothing'\n"
