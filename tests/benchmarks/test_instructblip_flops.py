"""What the docs say that VQAScore by InstructBLIP takes at full size."""

import math

import jax
import jax.numpy as jnp
import pytest
from _flops import flops

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.instructblip.model import FAMILY, XL, XXL
from flowsde.models.instructblip.questions import Question
from flowsde.models.instructblip.rewards import instructblip_score

SIDE, LENGTH, ANSWER = 1024, 64, 2


def on_paper(config):
    """Two for each multiplication of resizing, the image tower, the Q-Former, and the T5."""
    v, q, t = config.vision, config.qformer, config.text
    resizing = 2 * 3 * v.image * SIDE * (SIDE + v.image)
    patches = (v.image // v.patch) ** 2
    tokens = patches + 1
    block = 8 * tokens * v.width**2 + 4 * tokens**2 * v.width + 4 * tokens * v.width * v.mlp
    tower = 2 * patches * v.width * 3 * v.patch**2 + v.depth * block
    both = q.queries + LENGTH
    block = 8 * both * q.width**2 + 4 * both**2 * q.width + 4 * both * q.width * q.mlp
    looking = 4 * q.queries * q.width**2 + 4 * tokens * v.width * q.width
    looking += 4 * q.queries * tokens * q.width
    qformer = q.depth * block + q.depth // 2 * looking + 2 * q.queries * q.width * t.width
    d, inner, tokens = t.width, t.heads * t.head, q.queries + LENGTH
    encoder = 8 * tokens * d * inner + 4 * tokens**2 * inner + 6 * tokens * d * t.mlp
    answer = 8 * ANSWER * d * inner + 4 * ANSWER**2 * inner + 6 * ANSWER * d * t.mlp
    reading = 4 * (ANSWER + tokens) * d * inner + 4 * ANSWER * tokens * inner
    t5 = t.depth * encoder + t.decoder_depth * (answer + reading) + 2 * ANSWER * d * t.vocab
    return resizing + tower + qformer + t5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"), [(XL, (0.8, 8.0)), (XXL, (1.6, 24.6))], ids=["xl", "xxl"]
)
def test_full_size(config, said):
    """TFLOP of an image, and GB of weights in bfloat16."""
    model, like = abstract(FAMILY, config), jax.ShapeDtypeStruct
    told = Question(*(like((1, n), jnp.int32) for n in (LENGTH, LENGTH, ANSWER)))
    images = like((1, SIDE, SIDE, 3), jnp.float32)
    counted = flops(lambda reward, *args: reward(*args), instructblip_score(model), images, told)
    assert counted == on_paper(config)
    held = 2 * sum(math.prod(p.shape) for p in parameters(model).values())
    assert (round(counted / 1e12, 1), round(held / 1e9, 1)) == said
