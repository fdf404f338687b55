"""SiT's published sizes fit the table, key by key, and checkpoints come back bit for bit."""

import math

import numpy as np
import pytest

from flowsde.models.autoencoder_kl.model import AutoencoderKLConfig
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.sit.model import SIZES, SiTConfig
from flowsde_converters.sit import FAMILY
from flowsde_converters.tables import convert, unconvert

# Keys and millions of parameters, as published.
PUBLISHED = {"S/2": (132, 33.0), "B/2": (132, 130.5), "L/2": (252, 458.1), "XL/2": (292, 675.1)}


BESIDE = {"heads": 2, "num_classes": 5}


def shapes_of(config):
    return parameters(abstract(FAMILY, config))


def zeros(config):
    """The checkpoint of a configuration by the table's inverse, taking no memory."""
    params = {
        path: np.broadcast_to(np.float32(0), a.shape) for path, a in shapes_of(config).items()
    }
    return unconvert(FAMILY.table(config, "original"), params)


def small(heads=2, **sizes):
    config = SiTConfig(width=16, depth=2, heads=heads, size=8, classes=5, **sizes)
    rng = np.random.default_rng(0)
    return config, {
        key: rng.normal(size=a.shape).astype(np.float32) for key, a in zeros(config).items()
    }


@pytest.mark.slow_but_one
@pytest.mark.parametrize("pixels", [256, 512])
@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_have_their_keys_and_parameters(name, pixels):
    config = SiTConfig.preset(name, pixels)
    tensors = zeros(config)
    keys, millions = PUBLISHED[name]
    assert len(tensors) == keys
    # Positions of 512 pixels are four times as many.
    extra = 768 * config.width if pixels == 512 else 0
    count = sum(math.prod(a.shape) for a in tensors.values()) - extra
    assert count / 1e6 == pytest.approx(millions, abs=0.051)
    found = FAMILY.recognise(tensors, None)
    assert found[:2] == (config, "original")
    assert found.table.rows == FAMILY.table(config, "original").rows


def test_shapes_of_the_largest_are_the_published_ones():
    shapes = {key: a.shape for key, a in zeros(SiTConfig.preset("XL/2")).items()}
    wanted = {
        "pos_embed": (1, 256, 1152),
        "x_embedder.proj.weight": (1152, 4, 2, 2),
        "t_embedder.mlp.0.weight": (1152, 256),
        "y_embedder.embedding_table.weight": (1001, 1152),
        "blocks.27.attn.qkv.weight": (3456, 1152),
        "blocks.27.adaLN_modulation.1.bias": (6912,),
        "blocks.0.mlp.fc1.weight": (4608, 1152),
        "blocks.0.mlp.fc2.weight": (1152, 4608),
        "final_layer.linear.weight": (32, 1152),
        "final_layer.adaLN_modulation.1.weight": (2304, 1152),
    }
    assert {key: shapes[key] for key in wanted} == wanted


@pytest.mark.slow_but_one
@pytest.mark.parametrize("sizes", [{}, {"learn_sigma": False}, {"patch": 4, "channels": 3}])
def test_round_trip_is_bit_exact(sizes):
    config, tensors = small(**sizes)
    found = FAMILY.recognise(tensors, BESIDE | {"prediction": "velocity"})
    assert found.config == config
    back = unconvert(found.table, convert(found.table, tensors, shapes_of(config)))
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


@pytest.mark.slow
def test_values_tell_a_dit_apart():
    """Its loss learns a variance, of which a SiT's sees nothing: that half stays as it began, 0.

    The last layer gives the patch's pixels in turn, each with its means before its variances.
    """
    config, tensors = small()
    last = {f"final_layer.linear.{name}" for name in ("weight", "bias")}
    for key in last:
        rows = tensors[key].reshape(config.patch**2, 2, config.channels, -1)
        rows[:, 1] = 0.0
    found = FAMILY.recognise(tensors, BESIDE)
    convert(found.table, tensors, shapes_of(config))
    for key in last:
        learnt = {**tensors, key: tensors[key].copy()}
        learnt[key].reshape(config.patch**2, 2, config.channels, -1)[-1, 1, -1, -1] = 1e-6
        with pytest.raises(
            ValueError, match=f"{key} has values for a variance.*a DiT has the same"
        ):
            convert(found.table, learnt, shapes_of(config))
        # Whoever says what it predicts knows what it is.
        said = FAMILY.recognise(learnt, BESIDE | {"prediction": "velocity"})
        convert(said.table, learnt, shapes_of(config))


def test_other_checkpoints_are_not_a_sit():
    _, tensors = small()
    del tensors["pos_embed"]
    assert FAMILY.recognise(tensors, None) is None


def test_what_shapes_leave_open_or_contradict_is_an_error():
    _, tensors = small()
    with pytest.raises(ValueError, match=r"width 16 is none of .*give {\"heads\": ...}"):
        FAMILY.recognise(tensors, None)
    odd = tensors | {"pos_embed": np.zeros((1, 15, 16), np.float32)}
    with pytest.raises(ValueError, match="15 positions, expected a square number"):
        FAMILY.recognise(odd, BESIDE)
    odd = tensors | {"final_layer.linear.weight": np.zeros((20, 16), np.float32)}
    with pytest.raises(ValueError, match="20 outputs, expected 16 or 32"):
        FAMILY.recognise(odd, BESIDE)
    with pytest.raises(ValueError, match="\"original\", got 'diffusers'"):
        FAMILY.table(SiTConfig(), "diffusers")


@pytest.mark.slow
def test_classes_are_those_of_the_table_or_have_to_be_said():
    def found(rows, **beside):
        config = SiTConfig(width=16, depth=1, heads=2, size=8, classes=rows, unlabelled=False)
        found = FAMILY.recognise(zeros(config), {"heads": 2, **beside})
        return found.config.classes, found.config.unlabelled

    # ImageNet has 1,000 classes.
    assert found(1001) == (1000, True) and found(1000) == (1000, False)
    assert found(11, num_classes=10) == (10, True) and found(10, num_classes=10) == (10, False)
    assert found(10, classes=9) == (9, True)
    for rows in (10, 999, 1002):
        with pytest.raises(ValueError, match=f"of {rows} classes, or of {rows - 1} and one that"):
            found(rows)
    for classes in (8, 11, "ten"):
        with pytest.raises(ValueError, match=f"must be 9 or 10 for .*, got {classes!r}"):
            found(10, num_classes=classes)


@pytest.mark.parametrize("unlabelled", [True, False])
def test_a_table_with_and_without_a_label_for_none_is_whole(unlabelled):
    config = SiTConfig(width=16, depth=1, heads=2, size=8, classes=5, unlabelled=unlabelled)
    tensors = zeros(config)
    assert tensors["y_embedder.embedding_table.weight"].shape == (5 + unlabelled, 16)
    found = FAMILY.recognise(tensors, BESIDE)
    assert found.config == config
    assert found.table.problems(tensors, shapes_of(config)) == []


def test_a_dit_is_refused_where_its_files_say_it():
    tensors = zeros(SiTConfig.preset("S/2"))
    (note,) = FAMILY.recognise(tensors, None).notes
    assert "a DiT has the same keys" in note
    assert not FAMILY.recognise(tensors, {"prediction": "velocity", "path_type": "Linear"}).notes
    for beside, says in (
        ({"_class_name": "DiTTransformer2DModel"}, "expected a SiT: a DiT has the same keys"),
        ({"model": "DiT-S/2"}, "model 'DiT-S/2', expected a SiT"),
        ({"prediction": "noise"}, "prediction 'noise', expected 'velocity'"),
        ({"path_type": "GVP"}, "path_type 'GVP', expected 'Linear'"),
    ):
        with pytest.raises(ValueError, match=says):
            FAMILY.recognise(tensors, beside)


@pytest.mark.parametrize(
    "wrong", [{"size": 2**31 - 2}, {"width": 2**20}, {"heads": 0}, {"patch": 0}, {"depth": 2**30}]
)
def test_a_configuration_of_a_few_bytes_takes_no_memory(wrong):
    """Positions are computed, and blocks laid out, before any weight is looked at."""
    ((name, _),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} must be an integer of at"):
        SiTConfig(**wrong)
    with pytest.raises(ValueError, match="blocks must be an integer of at most"):
        AutoencoderKLConfig(blocks=2**31 - 1)
