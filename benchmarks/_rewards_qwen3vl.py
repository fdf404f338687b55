"""Qwen3-VL as a reward, and the class of transformers whose files it is converted from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from _ports_pairs import BATCH, filled, port

from flowsde.models.qwen3_vl.questions import Asked
from flowsde.models.qwen3_vl.rewards import Judging, judge
from flowsde.rewards import DeviceReward


def qwen3vl(blocks: int, pixels: int) -> tuple[DeviceReward, Callable[..., torch.Tensor], Asked]:
    """P(yes) at the first token of an answer, over the whole vocabulary: ours, theirs, its cond.

    Args:
      blocks: of the image tower, and of the language model.
      pixels: a side of a picture.
    """
    image, yes, side = 999, 7, pixels // 16
    text = {
        "vocab_size": 1000, "hidden_size": 2560, "intermediate_size": 9728, "head_dim": 128,
        "num_hidden_layers": blocks, "num_attention_heads": 32, "num_key_value_heads": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
    }  # fmt: skip
    vision = {
        "depth": blocks, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
        "patch_size": 16, "out_hidden_size": 2560,
        "deepstack_visual_indexes": list(range(min(blocks, 3))),
    }  # fmt: skip
    config = transformers.Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, tie_word_embeddings=True
    )
    module: Any = filled(transformers.Qwen3VLForConditionalGeneration(config))
    held = {key: value.detach().numpy() for key, value in module.named_parameters()}
    model = port("qwen3_vl", held, config.to_dict())
    rng, length = np.random.default_rng(0), 64
    before, after = (rng.integers(1, 990, (BATCH, n), dtype=np.int32) for n in (4, length))
    words = np.full((BATCH, 1, 1), yes, np.int32)
    last, weight = np.full((BATCH, 1), length - 1, np.int32), np.ones((BATCH, 1), np.float32)
    asked = Asked(before, after[:, None], last, words, words + 1, weight)
    pictures = np.full((BATCH, side**2 // 4), image, np.int32)
    ids = torch.from_numpy(np.concatenate([before, pictures, after], axis=1).astype(np.int64))
    grid = torch.tensor([[1, side, side]] * BATCH)

    def theirs(x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(BATCH, 3, side // 2, 2, 16, side // 2, 2, 16).permute(0, 2, 5, 3, 6, 1, 4, 7)
        patches = torch.stack([x, x], dim=6).reshape(BATCH * side**2, -1)
        said = module(
            input_ids=ids, pixel_values=patches, image_grid_thw=grid,
            mm_token_type_ids=(ids == image).int(), logits_to_keep=1,
        )  # fmt: skip
        return said.logits[:, 0].softmax(-1)[:, yes]

    reward = judge(model, Judging(least=32**2))
    return reward, theirs, jax.tree.map(jnp.asarray, asked)
