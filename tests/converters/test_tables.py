"""A table is applied and undone exactly, and everything wrong with it is said at once."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowsde.models.common.layers import Numerics, scan, stack
from flowsde.models.common.paths import parameters, with_parameters
from flowsde_converters.ignored import Unused
from flowsde_converters.relayout import CONV, LINEAR, SWAPPED_LINEAR, Permute, Reshape, SwapHalves
from flowsde_converters.tables import Row, Table, convert, unconvert

NUMERICS = Numerics()
TABLE = Table(
    (
        Row(("b.{i}.x", "b.{i}.y"), "blocks.kernel", LINEAR),
        Row("b.{i}.bias", "blocks.bias"),
        Row("head.weight", "head.kernel", SWAPPED_LINEAR),
        Row("head.bias", "head.bias", (SwapHalves(),)),
    ),
    ignored=(Unused(r"b\.\d+\.ids"),),
)


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = stack(lambda r: NUMERICS.linear(4, 4, ("embed", "mlp"), rngs=r), 3, rngs)
        self.head = NUMERICS.linear(4, 2, ("embed", None), rngs=rngs)

    def __call__(self, x):
        return self.head(scan(self.blocks, lambda block, x: block(x), x))


@pytest.fixture
def model():
    return nnx.eval_shape(lambda: Model(nnx.Rngs(0)))


@pytest.fixture
def checkpoint():
    rng = np.random.default_rng(0)
    shapes = {"head.weight": (2, 4), "head.bias": (2,)}
    for i in range(3):
        shapes |= {f"b.{i}.x": (2, 4), f"b.{i}.y": (2, 4), f"b.{i}.bias": (4,)}
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def test_converted_model_computes_what_the_tensors_say(model, checkpoint):
    made = with_parameters(model, convert(TABLE, checkpoint, parameters(model)))
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    h = x
    for i in range(3):
        weight = np.concatenate([checkpoint[f"b.{i}.x"], checkpoint[f"b.{i}.y"]])
        h = h @ weight.T + checkpoint[f"b.{i}.bias"]
    wanted = h @ checkpoint["head.weight"][::-1].T + checkpoint["head.bias"][::-1]
    np.testing.assert_allclose(made(jnp.asarray(x)), wanted, rtol=1e-5, atol=1e-5)


def test_unconvert_gives_back_the_same_bits(model, checkpoint):
    back = unconvert(TABLE, convert(TABLE, checkpoint, parameters(model)))
    assert back.keys() == checkpoint.keys()
    for key, tensor in checkpoint.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


def test_all_problems_are_said_in_one_error(model, checkpoint):
    checkpoint["head.weight"] = np.zeros((2, 5), np.float32)
    checkpoint["b.0.x"] = np.zeros((3, 4), np.float32)
    checkpoint["b.7.ids"] = np.zeros(1, np.float32)
    checkpoint["other"] = np.zeros(1, np.float32)
    del checkpoint["b.1.y"]
    with pytest.raises(ValueError) as error:
        convert(TABLE, checkpoint, parameters(model))
    lines = str(error.value).split("\n")[1:]
    assert len(lines) == 4
    for line, words in zip(
        lines, ("missing key b.1.y", "unexpected key other", "b.0.x", "head.weight"), strict=True
    ):
        assert words in line


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (TABLE.rows[:-1], "no row sets the parameter head.bias"),
        ((*TABLE.rows, Row("z", "z")), "a row sets z, which the model does not have"),
        ((*TABLE.rows, TABLE.rows[-1]), "2 rows set the parameter head.bias"),
        ((*TABLE.rows, TABLE.rows[-1]), "2 rows use the key head.bias"),
        ((*TABLE.rows, Row("head.bias", "head.bias", part=(0, 2))), "2 rows use the key head.bias"),
        (
            (*TABLE.rows[:-1], Row("head.bias", "head.bias", part=(1, 2))),
            "rows use the parts [(1, 2)] of the key head.bias, expected each part once",
        ),
    ],
)
def test_defects_of_a_table_are_found(model, checkpoint, rows, words):
    assert words in Table(rows).problems(checkpoint, parameters(model))


@pytest.mark.parametrize(
    ("moves", "shape"),
    [(LINEAR, (3, 4)), (CONV, (2, 3, 4, 5)), (SWAPPED_LINEAR, (4, 3)),
     ((Reshape((6, 4), (2, 3, 4)), Permute((2, 0, 1))), (6, 4))],
)  # fmt: skip
def test_moves_undo_themselves(moves, shape):
    a = np.random.default_rng(0).normal(size=shape)
    moved = a
    for move in moves:
        moved = move.apply(moved)
    assert moved.shape != a.shape or not np.array_equal(moved, a)
    for move in reversed(moves):
        moved = move.invert(moved)
    np.testing.assert_array_equal(moved, a, strict=True)


def test_unequal_parts_are_joined_and_split_by_their_sizes(model):
    row = Row(("q", "mlp"), "w", LINEAR, sizes=(2, 6))
    parts = [np.arange(8.0).reshape(2, 4), np.arange(24.0).reshape(6, 4)]
    for part, back in zip(parts, row.invert(row.apply(parts)), strict=True):
        np.testing.assert_array_equal(part, back)
    with pytest.raises(ValueError, match=r"first axes \[6, 2\], expected \[2, 6\]"):
        row.apply(parts[::-1])
