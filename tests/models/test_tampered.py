"""Converted models that were tampered with: the same numbers, or one line that names the file.

FLOWSDE_TAMPERED=1000 tampers more often than the usual hundred times.
"""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

import flowsde as fs
from flowsde._files import speakable
from flowsde.models import registry
from flowsde.models.aesthetic.model import AestheticConfig
from flowsde.models.autoencoder_kl.model import AutoencoderKLConfig
from flowsde.models.clip.model import CLIPTextConfig
from flowsde.models.common.paths import parameters
from flowsde.models.converted import store
from flowsde.models.converted.load import load_module
from flowsde.models.converted.opened import open_model
from flowsde.models.family import abstract
from flowsde.models.flux.model import FluxConfig
from flowsde.models.t5.model import T5Config
from flowsde_converters import convert
from flowsde_converters.back import prepare_back, run_back
from flowsde_converters.detect import Plan, family_named
from flowsde_converters.family import Found
from flowsde_converters.files import open_checkpoint
from flowsde_converters.tables import unconvert

TIMES = int(os.environ.get("FLOWSDE_TAMPERED", "100"))
JSON = (".json", ".zarray", "METADATA")


def plan(folder, name, config, layout):
    """A conversion of a model with random weights."""
    family = family_named(name)
    table, model = family.table(config, layout), parameters(abstract(family, config))
    rng = np.random.default_rng(len(folder.name))
    params = {path: rng.normal(size=p.shape).astype(np.float32) for path, p in model.items()}
    tensors = {k: np.ascontiguousarray(a) for k, a in unconvert(table, params).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"a": [1, {"b": None}]}))
    checkpoint = open_checkpoint(folder / "model.safetensors")
    return Plan(checkpoint, family, Found(config, layout, table), model, tuple(tensors))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A pipeline, and a model with a tokenizer beside it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    words = tiny.write_clip_tokenizer(source / "tokenizer", 16)
    pieces = tiny.write_t5_tokenizer(source / "tokenizer_2")
    (source / "scheduler").mkdir()
    (source / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    )
    (source / "model_index.json").write_text(
        json.dumps({"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"]})
    )
    flux = FluxConfig(channels=16, heads=1, axes=(2, 2, 4), double=1, single=1, mlp=8, text=8,
                      pooled=8, guidance=False)  # fmt: skip
    parts = {
        "transformer": ("flux", flux, "diffusers"),
        "vae": ("autoencoder_kl",
                AutoencoderKLConfig(latents=4, widths=(4,), blocks=1, groups=2), "diffusers"),
        "text_encoder": ("clip_text",
                         CLIPTextConfig(vocab=words, width=8, depth=1, heads=2, mlp=8,
                                        positions=16), "transformers"),
        "text_encoder_2": ("t5_encoder",
                           T5Config(vocab=pieces, width=8, depth=1, heads=2, head=4, mlp=8,
                                    buckets=8, max_distance=16), "transformers"),
    }  # fmt: skip
    plans = {name: plan(source / name, *what) for name, what in parts.items()}
    copied = ("tokenizer", "tokenizer_2", "scheduler")
    convert.run(convert.Conversion(source, plans, copied), out / "pipeline")
    head = plan(source / "head", "aesthetic", AestheticConfig(widths=(6, 5, 4, 3, 2)), "original")
    tiny.write_clip_tokenizer(source / "head", 16)
    words = ("vocab.json", "merges.txt", "tokenizer_config.json")
    beside = {f"tokenizer/{name}": name for name in words}
    convert.run(convert.Conversion(source / "head", {"": head}, tokenizers=beside), out / "model")
    return out


def arrays(folder):
    found = parameters(load_module(open_model(folder, registry.families())))
    return {path: np.asarray(array).tobytes() for path, array in found.items()}


def loaded(folder, name):
    """What `load` makes of a folder; of a pipeline's models that of which a file was changed."""
    if folder.name == "model":
        return arrays(folder)
    pipeline = fs.load(folder)
    ids = [t(tiny.PROMPTS).ids.tolist() for t in (pipeline._clip, pipeline._t5)]
    part = name.split("/")[0]
    weights = arrays(folder / part) if (folder / part / "params").exists() else None
    return [ids, repr(pipeline._parts.configs), list(pipeline.grid(3)), weights]


def unconverted(folder, out):
    """What --to-torch makes of it, byte for byte."""
    run_back(folder, prepare_back(folder), out)
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


VALUES = [None, True, 0, -1, 1, 1.5, 10**9, 10**12, 10**30, float("inf"), float("nan"), "", "x",
          "../x", "/etc/passwd", "\x1b[31m", "x" * 9999, [], {}, [[]], [None], [3] * 9999,
          {"a": {"b": []}}]  # fmt: skip


def places(value, at=()):
    """All paths in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        yield (*at, key)
        if isinstance(one, dict | list):
            yield from places(one, (*at, key))


def change_json(rng, path):
    """A field is gone, or says something else."""
    value = json.loads(path.read_text())
    everywhere = list(places(value)) if isinstance(value, dict | list) else []
    if not everywhere:
        path.write_text("[" * 5000)
        return
    *above, last = everywhere[rng.integers(len(everywhere))]
    node = value
    for key in above:
        node = node[key]
    if rng.random() < 0.25:
        del node[last]
    elif rng.random() < 0.15 and isinstance(node, dict):
        node["new"] = node.pop(last)
    else:
        node[last] = VALUES[rng.integers(len(VALUES))]
    path.write_text(json.dumps(value))


def change_bytes(rng, path):
    """Bits are flipped, bytes are cut, come twice, or are others."""
    data = bytearray(path.read_bytes())
    at = int(rng.integers(len(data) + 1))
    kind = rng.integers(5)
    if kind == 0 and data:
        data[at % len(data)] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = data[at:]
    elif kind == 3:
        data[at:at] = rng.bytes(7)
    else:
        data[:] = rng.bytes(len(data))
    path.write_bytes(data)


def change_kind(rng, path):
    """It is gone, a folder, a pipe, or leads elsewhere."""
    path.unlink()
    kind = rng.integers(5)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to("/dev/zero")
    elif kind == 4:
        path.symlink_to(path)


def exchange(rng, path):
    """It is another one of the folder's."""
    others = sorted(p for p in path.parent.parent.rglob("*") if p.is_file() and p != path)
    if others:
        other = others[rng.integers(len(others))]
        data = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)


def reseal(folder):
    """As one would who knows the format: all hashes, but those of parameters, are right again."""
    for path in sorted(folder.rglob("config.json"), reverse=True):
        # What is no longer a configuration stays as it is.
        with contextlib.suppress(Exception):
            values = json.loads(path.read_text())
            for name in values["files"]:
                if (path.parent / name).is_file():
                    values["files"][name] = store.digest(iter([path.parent / name]))
            path.write_text(json.dumps(speakable(store.sealed(values))))


def outcome(act, *args):
    """What comes out, or the error; any but the two kinds is a failure."""
    try:
        return act(*args), None
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["model", "pipeline"])
@pytest.mark.parametrize("sealed", [False, True])
def test_the_same_numbers_or_one_line_that_names_the_file(whole, tmp_path, target, sealed):
    rng = np.random.default_rng([len(target), sealed])
    files = sorted(str(p.relative_to(whole / target)) for p in (whole / target).rglob("*")
                   if p.is_file())  # fmt: skip
    jsons = [name for name in files if name.endswith(JSON)]
    wanted = {"back": unconverted(whole / target, tmp_path / "good")}
    seen = set()
    for i in range(TIMES // 4):
        change = (change_json, change_json, change_bytes, change_kind, exchange)[i % 5]
        among = jsons if change is change_json else files
        name = among[rng.integers(len(among))]
        part = name.split("/")[0]
        back = i % 3 == 0
        if part not in wanted and not back:
            wanted[part] = loaded(whole / target, name)
        folder = tmp_path / str(i) / target
        shutil.copytree(whole / target, folder)
        change(rng, folder / name)
        if sealed:
            reseal(folder)
        begin = time.monotonic()
        out = folder.parent / "back"
        found, said = outcome(unconverted, folder, out) if back else outcome(loaded, folder, name)
        assert time.monotonic() - begin < 60, (change, name)
        seen.add("error" if said else "same")
        if said:
            assert str(folder) in said and len(said) < 2000 and said.isprintable(), said
            assert not out.exists()
        elif not sealed:
            assert found == wanted["back" if back else part], (change, name)
        shutil.rmtree(folder.parent)
    assert "error" in seen


@pytest.mark.slow
def test_every_bit_of_a_small_model_counts(whole, tmp_path):
    """Nothing of it may change unnoticed."""
    folder = tmp_path / "model"
    shutil.copytree(whole / "model", folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            fs.load(folder)
        assert Path(path).name in str(caught.value) or path.parent.name in str(caught.value)
        path.write_bytes(data)
    fs.load(folder)
