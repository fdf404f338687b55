"""`flowsde convert`: what it prints, and what it refuses."""

import numpy as np
import pytest
import toy
from safetensors.numpy import load_file, save_file

from flowsde.cli import main as cli
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.sit.model import SiTConfig
from flowsde_converters import sit
from flowsde_converters.tables import unconvert


def say(capsys, *args):
    cli.main(["convert", *map(str, args)])
    return capsys.readouterr()


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", *map(str, args)])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_says_what_was_found_and_written(source, tmp_path, capsys):
    save_file(toy.tensors() | {"b.0.ids": np.zeros(3, np.int64)}, source)
    out, err = say(capsys, source, tmp_path / "out", "--dtype", "bfloat16")
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert lines["found"].startswith("toy, original keys: 70 parameters in 11 tensors, float32")
    assert lines["config"] == "depth=3, width=4, sizes=(2,)"
    assert lines["ignores"] == (
        "b.0.ids: not used by the model; copies are compared when values are read"
    )
    assert lines["writes"] == "bfloat16"
    assert lines["folder"].startswith(f"{tmp_path / 'out'}: ")
    assert "100%" in err and "B/s" in err


@pytest.mark.slow
def test_the_same_command_again_has_nothing_to_do(source, tmp_path, capsys):
    out = tmp_path / "out"
    say(capsys, source, out, "--dtype", "bfloat16")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    said, _ = say(capsys, source, out, "--dtype", "bfloat16")
    assert said == f"flowsde convert: {out} is already complete\n"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    # Of another dtype, or of a source that has changed, it is another conversion.
    assert "holds another conversion" in refused(capsys, source, out)
    tensors = toy.tensors()
    tensors["head.bias"][0] += 1.0
    save_file(tensors, source)
    words = [source, out, "--dtype", "bfloat16"]
    assert "expected another one or --overwrite" in refused(capsys, *words)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    say(capsys, *words, "--overwrite")
    assert "already complete" in say(capsys, *words)[0]
    # What cannot be read is no conversion of anything.
    (out / "config.json").write_text((out / "config.json").read_text().replace("toy", "yot"))
    assert "holds another conversion" in refused(capsys, *words)


def test_check_writes_nothing(source, tmp_path, capsys):
    tensors = toy.tensors()
    tensors["head.bias"][0] = np.nan
    save_file(tensors, source)
    out, _ = say(capsys, source, "--check")
    assert "all keys and shapes fit" in out
    del tensors["b.1.x"]
    save_file(tensors, source)
    assert "\n  missing key b.1.x\n" in refused(capsys, source, tmp_path / "out", "--check")
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}


def test_there_and_back(source, tmp_path, capsys):
    say(capsys, source, tmp_path / "out")
    out, err = say(capsys, "--to-torch", tmp_path / "out", tmp_path / "back.safetensors")
    assert "toy, 4 parameters, float32" in out and "100%" in err
    for key, tensor in load_file(tmp_path / "back.safetensors").items():
        np.testing.assert_array_equal(tensor, toy.tensors()[key], strict=True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("{source}", "OUT is missing"),
        ("{source} {tmp}", "holds SOURCE"),
        ("{source} {full}", "exists, expected another one or --overwrite"),
        ("{source} {out} --dtype int8", "--dtype"),
        ("{source} {out} --family gone", "unknown family 'gone', expected one of toy"),
        ("{source} {out} --classes 3", "--classes is for a SiT, and SOURCE is of toy"),
        ("{source} {out} --classes 0", "--classes must be at least 1, got 0"),
        ("--to-torch {source} {out} --classes 3", "--to-torch takes SOURCE and OUT, not --classes"),
        ("{source} {out} --revision main", "--revision is for the hub"),
        ("{tmp}/none.safetensors {out}", "does not exist"),
        ("--to-torch {source} {out}", "expected what `flowsde convert` wrote"),
        ("--to-torch {source} {out} --dtype float16", "--to-torch takes SOURCE and OUT, not --dt"),
        ("--to-torch {source} {out} --check", "--to-torch takes SOURCE and OUT, not --check"),
    ],
)
def test_wrong_values_are_refused(source, tmp_path, tmp_path_factory, capsys, args, words):
    full = tmp_path_factory.mktemp("full")
    given = {"source": source, "out": tmp_path / "out", "tmp": tmp_path, "full": full}
    said = refused(capsys, *args.format(**given).split())
    assert said.startswith("flowsde convert: ") and words in said
    assert said.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}


@pytest.mark.slow
def test_classes_of_a_sit_and_files_called_dit(tmp_path, capsys):
    config = SiTConfig(width=384, depth=1, heads=6, size=4, classes=3, unlabelled=False)
    params = parameters(abstract(sit.FAMILY, config))
    zeros = {path: np.zeros(p.shape, np.float16) for path, p in params.items()}
    tensors = unconvert(sit.table(config, "original"), zeros)
    tensors = {key: np.ascontiguousarray(a) for key, a in tensors.items()}
    path = tmp_path / "labels.safetensors"
    save_file(tensors, path)
    said = refused(capsys, path, tmp_path / "out")
    assert "3 classes, or of 2 and one that stands for none: expected --classes" in said
    out, _ = say(capsys, path, tmp_path / "out", "--classes", 3)
    assert "classes=3, unlabelled=False" in out and "note    a DiT has the same keys" in out
    for name in ("DiT-XL-2-256x256.safetensors", "my_dit.safetensors"):
        path = path.rename(tmp_path / name)
        said = refused(capsys, path, "--check", "--classes", 3)
        assert f"{name} is called a DiT" in said
    say(capsys, path, "--check", "--classes", 3, "--family", "sit")
    path = path.rename(tmp_path / "edited.safetensors")
    say(capsys, path, "--check", "--classes", 3)


def test_help_reads_well(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", "--help"])
    assert not stop.value.code
    out, err = capsys.readouterr()
    for words in ("SOURCE", "OUT", "--dtype", "--check", "--to-torch", "--overwrite", "hub"):
        assert words in out
    assert not err
