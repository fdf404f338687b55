"""The weights of a training run's file: the averaged ones, out of whatever wraps them."""

import numpy as np
import pytest
import toy
from outside import torch
from safetensors.numpy import save_file
from test_command import refused, say

from flowsde_converters.detect import plan
from flowsde_converters.entries import is_averaged
from flowsde_converters.files import open_checkpoint

RAW = toy.tensors()
AVERAGED = {key: tensor + 1 for key, tensor in RAW.items()}
NAMES = ["ema", "EMA", "state_dict_ema", "model_ema", "ema_model", "params_ema", "modelEMA",
         "ema_0.9999", "swa_model", "model_averaged", "emaModel"]  # fmt: skip


def tensors(arrays, before=""):
    return {before + key: torch.from_numpy(a) for key, a in arrays.items()}


def state():
    return {0: {"exp_avg": torch.ones(3), "step": torch.ones(())}}


def planned(tmp_path, held, entry=None):
    torch.save(held, tmp_path / "a.pt")
    return plan(open_checkpoint(tmp_path / "a.pt"), entry=entry)


def assert_weights(found, wanted):
    assert found.checkpoint.tensors.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(found.checkpoint.read(key), array, strict=True)


@pytest.mark.parametrize("raw", ["model", "state_dict", "params", "net"])
@pytest.mark.parametrize("name", NAMES)
def test_averaged_weights_are_taken_first(families, tmp_path, name, raw):
    held = {raw: tensors(RAW), name: tensors(AVERAGED), "opt": {"state": state()}, "step": 3}
    found = planned(tmp_path, held)
    assert_weights(found, AVERAGED)
    assert found.checkpoint.notes == (f"a.pt: {name!r} of {raw}, {name}, opt, step",)


@pytest.mark.parametrize("name", ["schema", "model", "exp_avg", "emanate", "optimizer", "blocks"])
def test_other_names_are_not_of_averages(name):
    assert not is_averaged(name)


WRAPPED = {
    "model": lambda: {"model": tensors(RAW)},
    "model.module": lambda: {"model": tensors(RAW, "module.")},
    "ema.module": lambda: {"model": tensors(AVERAGED), "ema": tensors(RAW, "module.")},
    "state_dict.net": lambda: {"state_dict": tensors(RAW, "net."), "epoch": 3},
    "model_state_dict": lambda: {"model_state_dict": tensors(RAW), "optimizer_state_dict": state()},
    "module": lambda: {
        "module": tensors(RAW),
        "optimizer": {"state": state()},
        "ds_version": "0.1",
    },
    "module.model": lambda: tensors(RAW, "module.model."),
    "ema.shadow": lambda: {
        "model": tensors(AVERAGED),
        "ema": {"decay": 0.9, "shadow": tensors(RAW)},
    },
    "callbacks.EMA.weights": lambda: {
        "state_dict": tensors(AVERAGED, "net."),
        "callbacks": {"EMA": {"weights": tensors(RAW)}},
    },
    "generator": lambda: {"generator": tensors(RAW), "critic": {"last.weight": torch.ones(1, 2)}},
    "net": lambda: {**tensors(RAW, "net."), "loss.scale": torch.ones(2)},
    "ema_net": lambda: {**tensors(AVERAGED, "net."), **tensors(RAW, "ema_net.")},
    "weights": lambda: {
        "weights": tensors(RAW),
        "optimizer": {"exp_avg": tensors(AVERAGED), "exp_avg_sq": tensors(AVERAGED)},
    },
}


@pytest.mark.parametrize("entry", WRAPPED)
def test_what_wraps_the_weights_is_taken_off_and_said(families, tmp_path, entry):
    found = planned(tmp_path, WRAPPED[entry]())
    assert_weights(found, RAW)
    (note,) = found.checkpoint.notes
    assert f"'{entry}'" in note or f"'{entry}.'" in note
    assert_weights(planned(tmp_path, WRAPPED[entry](), entry), RAW)


@pytest.mark.parametrize("before", ["", "_orig_mod.", "module._orig_mod."])
def test_what_compiling_and_sharding_put_in_keys_is_taken_out(families, tmp_path, before):
    inside = {key.replace("b.1.", "b.1._orig_mod."): a for key, a in tensors(RAW, before).items()}
    found = planned(tmp_path, {"ema": inside})
    assert_weights(found, RAW)
    assert "keys without '_orig_mod'" in found.checkpoint.notes[0]


def test_beginnings_are_taken_off_keys_of_safetensors_too(families, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({f"module.{key}": a for key, a in RAW.items()}, path)
    assert_weights(plan(open_checkpoint(path)), RAW)
    both = {f"model.{k}": a for k, a in RAW.items()} | {f"ema.{k}": a for k, a in AVERAGED.items()}
    save_file(both, path)
    found = plan(open_checkpoint(path))
    assert_weights(found, AVERAGED)
    said = "a.safetensors: keys that begin with 'ema.', without it, and leaves model"
    assert found.checkpoint.notes == (said,)
    assert_weights(plan(open_checkpoint(path), entry="model"), RAW)


def test_averaged_weights_beside_bare_ones(families, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(RAW | {f"ema.{key}": a for key, a in AVERAGED.items()}, path)
    assert_weights(plan(open_checkpoint(path)), AVERAGED)
    assert_weights(plan(open_checkpoint(path), entry="."), RAW)
    save_file(RAW | {"ema.x": np.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"averaged weights in ema .*--entry to take others: \."):
        plan(open_checkpoint(path))


@pytest.mark.slow
def test_an_average_that_cannot_be_read_is_not_passed_over(families, tmp_path):
    """Names of parameters are what such a helper does not keep."""
    helper = {"decay": 0.9, "shadow_params": [torch.ones(2), torch.ones(3)]}
    held = {"model": tensors(RAW), "ema": helper}
    with pytest.raises(
        ValueError, match=r"averaged weights in ema\.shadow_params .*--entry.*model"
    ):
        planned(tmp_path, held)
    assert_weights(planned(tmp_path, held, "model"), RAW)
    with pytest.raises(ValueError, match=r"averaged weights in ema .*--entry.*model"):
        planned(tmp_path, {"model": tensors(RAW), "ema": {"x": torch.ones(2)}})
    for average in (
        {0.9999: tensors(AVERAGED)},
        {9999: tensors(AVERAGED)},
        [tensors(AVERAGED), tensors(AVERAGED)],
        (tensors(AVERAGED),),
        {"stds": [0.05, 0.1], "emas": [tensors(AVERAGED), tensors(AVERAGED)]},
        torch.ones(7),
    ):
        held = {"model": tensors(RAW), "ema": average}
        with pytest.raises(ValueError, match=r"averaged weights in ema.*--entry.*model"):
            planned(tmp_path, held)
        assert_weights(planned(tmp_path, held, "model"), RAW)
    for held in (
        {"model": tensors(RAW), ("ema", 0.99): tensors(AVERAGED)},
        {"model": tensors(RAW), "optimizer": {"ema": tensors(AVERAGED)}},
        {"model": tensors(RAW), "optimizer_ema": tensors(AVERAGED)},
        {"model": tensors(RAW), "optimizer": {"opt": {"state": state()}, "ema": [torch.ones(2)]}},
    ):
        with pytest.raises(ValueError, match=r"averaged weights in \S*ema.*--entry.*model"):
            planned(tmp_path, held)
    # Counts of a helper are no weights.
    counts = {"decay": torch.ones(()), "updates": torch.ones(())}
    assert_weights(planned(tmp_path, {"model": tensors(RAW), "ema": counts}), RAW)


def test_a_broken_average_is_not_passed_over(families, tmp_path):
    broken = {key: a for key, a in tensors(AVERAGED).items() if key != "b.1.x"}
    with pytest.raises(ValueError, match=r"missing key b\.1\.x"):
        planned(tmp_path, {"model": tensors(RAW), "ema": broken})


def test_of_several_that_are_alike_one_must_be_named(families, tmp_path):
    held = {"ema_0.9": tensors(RAW), "ema_0.99": tensors(AVERAGED), "model": tensors(RAW)}
    with pytest.raises(ValueError, match=r"weights in ema_0\.9, ema_0\.99; expected --entry"):
        planned(tmp_path, held)
    assert_weights(planned(tmp_path, held, "ema_0.99"), AVERAGED)
    with pytest.raises(
        ValueError, match=r"no entry ema_1, expected one of ema_0\.9, ema_0\.99, mo"
    ):
        planned(tmp_path, held, "ema_1")
    with pytest.raises(ValueError, match="weights in student, teacher; expected --entry"):
        planned(tmp_path, {"teacher": tensors(RAW), "student": tensors(AVERAGED)})


def test_a_file_without_a_known_model_says_what_it_holds(families, tmp_path):
    held = {"one": {"x": torch.ones(1)}, "two": {"y": torch.ones(1)}}
    with pytest.raises(
        ValueError, match=r"its 2 keys begin with one\.x, two\.y; it holds one, two"
    ):
        planned(tmp_path, held)


def test_the_command_takes_an_entry_and_says_so(families, tmp_path, capsys):
    torch.save({"model": tensors(RAW), "ema": tensors(AVERAGED)}, tmp_path / "a.pt")
    out, _ = say(capsys, tmp_path / "a.pt", "--check")
    assert "takes   a.pt: 'ema' of model, ema\n" in out
    out, _ = say(capsys, tmp_path / "a.pt", "--check", "--entry", "model")
    assert "takes   a.pt: 'model' of model, ema\n" in out
    said = refused(capsys, tmp_path / "a.pt", "--check", "--entry", "gone")
    assert "no entry gone, expected one of ema, model" in said
    assert "--to-torch takes" in refused(capsys, "--to-torch", tmp_path, tmp_path, "--entry", "a")
