"""What the docs say that Qwen3-VL's rewards take at full size."""

import math

import jax
import jax.numpy as jnp
import pytest
from _flops import flops

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.qwen3_vl.model import FAMILY, QWEN3_VL_4B, QWEN3_VL_8B
from flowsde.models.qwen3_vl.questions import Asked
from flowsde.models.qwen3_vl.rewards import judge

SIDE, BEFORE, LENGTH = 1024, 4, 64


def on_paper(config, questions):
    """Two for each multiplication of positions, the image tower, its mergers, and Qwen3."""
    v, t = config.vision, config.text
    side = SIDE // v.patch
    patches, tokens = side**2, side**2 // 4
    places = 2 * v.width * side * v.places * (v.places + side)
    block = 8 * patches * v.width**2 + 4 * patches**2 * v.width + 4 * patches * v.width * v.mlp
    wide = 4 * v.width
    merger = 2 * tokens * wide * (wide + t.width)
    tower = 2 * patches * 3 * v.patch**2 * v.width + v.depth * block + (1 + len(v.deep)) * merger
    read = questions * LENGTH
    past = BEFORE + tokens
    inner = t.heads * t.head
    each = 4 * t.width * (inner + t.shared * t.head) + 6 * t.width * t.mlp
    looking = 4 * inner * (past**2 + read * (past + read))
    text = t.depth * ((past + read) * each + looking)
    return places + tower + text + 2 * questions * t.width * t.vocab


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"),
    [(QWEN3_VL_4B, (13.0, 16.6, 8.9)), (QWEN3_VL_8B, (21.6, 28.3, 17.5))],
    ids=["4b", "8b"],
)
def test_full_size(config, said):
    """TFLOP of an image with one question and with eight, and GB of weights in bfloat16."""
    model, like = abstract(FAMILY, config), jax.ShapeDtypeStruct
    images, found = like((1, SIDE, SIDE, 3), jnp.float32), []
    for questions in (1, 8):
        told = Asked(
            like((1, BEFORE), jnp.int32),
            like((1, questions, LENGTH), jnp.int32),
            like((1, questions), jnp.int32),
            *[like((1, questions, 1), jnp.int32)] * 2,
            like((1, questions), jnp.float32),
        )
        counted = flops(lambda reward, *args: reward(*args), judge(model), images, told)
        assert counted == on_paper(config, questions)
        found.append(round(counted / 1e12, 1))
    held = 2 * sum(math.prod(p.shape) for p in parameters(model).values())
    assert (*found, round(held / 1e9, 1)) == said
