"""What the docs say that OWLv2's reward takes at full size."""

import math

import jax
import jax.numpy as jnp
import pytest
from _flops import flops

from flowsde.models.clip.model import CLIPTextConfig, CLIPVisionConfig
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.owlv2.counts import CLASSES
from flowsde.models.owlv2.model import FAMILY, Owlv2Config
from flowsde.models.owlv2.rewards import Wanted, count_reward

SIDE = 1024
LARGE = Owlv2Config(
    text=CLIPTextConfig(positions=16, projection=768), vision=CLIPVisionConfig(image=1008)
)


def on_paper(text, vision):
    """Two for each multiplication of resizing, patches, blocks and heads."""
    w, mlp, to = vision.width, vision.mlp, text.projection
    patches = (vision.image // vision.patch) ** 2
    tokens = patches + 1
    resizing = 2 * 3 * vision.image * SIDE * (SIDE + vision.image)
    embedding = 2 * patches * w * 3 * vision.patch**2
    block = 8 * tokens * w**2 + 4 * tokens**2 * w + 4 * tokens * w * mlp
    classes = 2 * patches * (w * (to + 2) + to * CLASSES)
    boxes_and_objectness = 2 * patches * (2 * 2 * w**2 + 5 * w)
    return resizing + embedding + vision.depth * block + classes + boxes_and_objectness


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"),
    [(Owlv2Config(), (1.13, 0.36, 0.62)), (LARGE, (5.85, 1.25, 1.72))],
    ids=["base-patch16", "large-patch14"],
)
def test_full_size(config, said):
    """TFLOP of an image; GB of the weights that are held, and of the scores of a layer."""
    model, like = abstract(FAMILY, config), jax.ShapeDtypeStruct
    told = Wanted(
        like((1, CLASSES, config.text.projection), jnp.float32), like((1, CLASSES), jnp.float32)
    )
    images = like((1, SIDE, SIDE, 3), jnp.float32)
    counted = flops(lambda reward, *args: reward(*args), count_reward(model), images, told)
    assert counted == on_paper(config.text, config.vision)
    held = 4 * sum(math.prod(p.shape) for p in parameters(model.detector).values())
    tokens = (config.vision.image // config.vision.patch) ** 2 + 1
    scores = 4 * config.vision.heads * tokens**2
    assert (round(counted / 1e12, 2), round(held / 1e9, 2), round(scores / 1e9, 2)) == said
