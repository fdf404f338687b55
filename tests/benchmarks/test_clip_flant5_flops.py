"""What the docs say that VQAScore takes at full size."""

import math

import jax
import jax.numpy as jnp
import pytest
from _flops import flops

from flowsde.models.clip_flant5.model import FAMILY, XL, XXL
from flowsde.models.clip_flant5.questions import Question
from flowsde.models.clip_flant5.rewards import vqa_score
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract

SIDE, BEFORE, LENGTH, ANSWER = 1024, 40, 64, 2


def on_paper(vision, text):
    """Two for each multiplication of resizing, the image tower, the projector, and the T5."""
    w, d, inner = vision.width, text.width, text.heads * text.head
    patches = (vision.image // vision.patch) ** 2
    resizing = 2 * 3 * vision.image * SIDE * (SIDE + vision.image)
    tokens = patches + 1
    block = 8 * tokens * w**2 + 4 * tokens**2 * w + 4 * tokens * w * vision.mlp
    tower = 2 * patches * w * 3 * vision.patch**2 + vision.depth * block
    projector = 2 * patches * (w * d + d**2)
    tokens = BEFORE + patches + LENGTH
    encoder = 8 * tokens * d * inner + 4 * tokens**2 * inner + 6 * tokens * d * text.mlp
    answer = 8 * ANSWER * d * inner + 4 * ANSWER**2 * inner + 6 * ANSWER * d * text.mlp
    looking = 4 * (ANSWER + tokens) * d * inner + 4 * ANSWER * tokens * inner
    t5 = text.depth * encoder + text.decoder_depth * (answer + looking)
    return resizing + tower + projector + t5 + 2 * ANSWER * d * text.vocab


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"), [(XL, (2.3, 6.3)), (XXL, (8.0, 22.9))], ids=["xl", "xxl"]
)
def test_full_size(config, said):
    """TFLOP of an image, and GB of weights in bfloat16."""
    model, like = abstract(FAMILY, config), jax.ShapeDtypeStruct
    told = Question(*(like((1, n), jnp.int32) for n in (BEFORE, LENGTH, ANSWER)))
    images = like((1, SIDE, SIDE, 3), jnp.float32)
    counted = flops(lambda reward, *args: reward(*args), vqa_score(model), images, told)
    assert counted == on_paper(config.vision, config.text)
    held = 2 * sum(math.prod(p.shape) for p in parameters(model).values())
    assert (round(counted / 1e12, 1), round(held / 1e9, 1)) == said
