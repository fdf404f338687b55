"""What is installed: from a wheel, outside the checkout, without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
