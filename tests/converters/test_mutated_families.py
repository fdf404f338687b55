"""Files of the families that were tampered with: a clear error or the right model.

Ten kinds of damage, five of each, to each of thirteen files. What the right model is, is said by
the safetensors library's own reading of the file and by the table.
"""

import json

import mutations
import numpy as np
import pytest
import test_autoencoder_wan_table
import test_flux2_table
import test_sd3_table
import test_wan_table
import test_zimage_table
from safetensors.numpy import load_file, save
from test_mutated import SAYS

import flowsde as fs
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.t5.model import UMT5Config
from flowsde_converters import convert, detect
from flowsde_converters.tables import convert as in_memory
from flowsde_converters.tables import unconvert

EACH = 5
FILES = {
    "flux2": (test_flux2_table.SMALL, test_flux2_table.AXES),
    "sd3": (test_sd3_table.SMALL["dual"], test_sd3_table.HEADS),
    "zimage": (test_zimage_table.SMALL["zimage"], test_zimage_table.AXES),
    "wan": (test_wan_table.SMALL, test_wan_table.HEADS),
    "autoencoder_wan": (test_autoencoder_wan_table.SMALL, test_autoencoder_wan_table.MOMENTS),
    "qwen3": (test_zimage_table.SMALL["qwen3"], None),
    "umt5_encoder": (UMT5Config(vocab=9, width=8, depth=2, heads=2, head=4, mlp=12), None),
}
BOTH = ("diffusers", "original")
LAYOUTS = {"qwen3": ("transformers",), "umt5_encoder": ("transformers", "original")}


def checkpoint(name, layout):
    """A file's bytes, and what is beside it."""
    config, beside = FILES[name]
    family, rng = detect.families()[name], np.random.default_rng(0)
    params = {
        path: rng.normal(size=like.shape).astype(np.float32)
        for path, like in parameters(abstract(family, config)).items()
    }
    tensors = unconvert(family.table(config, layout), params)
    return save({key: np.ascontiguousarray(a) for key, a in tensors.items()}), beside


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [(name, layout) for name in FILES for layout in LAYOUTS.get(name, BOTH)],
)
def test_an_error_or_the_right_model(name, layout, tmp_path):
    file, beside = checkpoint(name, layout)
    rng = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    if beside is not None:
        (tmp_path / "config.json").write_text(json.dumps(beside))
    outcomes = {"error": 0, "model": 0}
    for i, mutation in enumerate(mutations.MUTATIONS * EACH):
        path.write_bytes(mutation(file, rng))
        out = tmp_path / f"out{i}"
        try:
            job = convert.prepare(path)
            convert.run(job, out)
        except ValueError as error:
            outcomes["error"] += 1
            assert SAYS.search(str(error)), error
            assert not out.exists()
            continue
        outcomes["model"] += 1
        tensors = load_file(path)
        one = job.plans[""]
        wanted = in_memory(one.found.table, tensors, one.model)
        found = parameters(fs.load(out))
        assert found.keys() == wanted.keys()
        for parameter, array in wanted.items():
            assert np.isfinite(array).all()
            np.testing.assert_array_equal(found[parameter], array, strict=True)
    assert min(outcomes.values()) > 0, outcomes
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()
