"""InstructBLIP as a reward, and the class of transformers whose files it is converted from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from _ports_pairs import BATCH, filled, port

from flowsde.models.instructblip.questions import Question
from flowsde.models.instructblip.rewards import instructblip_score
from flowsde.rewards import DeviceReward

_QUERIES, _VOCAB = 32, 1000


def instructblip(
    blocks: int, pixels: int
) -> tuple[DeviceReward, Callable[..., torch.Tensor], Question]:
    """VQAScore by the published formula: ours, theirs, its cond.

    Args:
      blocks: of the image tower, and of either half of the T5; the Q-Former has two of them at
        least.
      pixels: a side of a picture.
    """
    width, image = 2048, _VOCAB - 1
    text = {
        "model_type": "t5", "vocab_size": _VOCAB, "d_model": width, "d_kv": 64, "d_ff": 5120,
        "num_heads": 32, "num_layers": blocks, "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu", "scale_decoder_outputs": False, "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    config = transformers.InstructBlipConfig(
        vision_config={"num_hidden_layers": blocks, "image_size": pixels},
        qformer_config={"num_hidden_layers": 2 * -(-blocks // 2), "vocab_size": _VOCAB},
        text_config=text, num_query_tokens=_QUERIES, image_token_index=image,
    )  # fmt: skip
    module: Any = transformers.InstructBlipForConditionalGeneration(config)
    # Tied in the class, and not in the published files.
    module.language_model.lm_head.weight = torch.nn.Parameter(torch.zeros(_VOCAB, width))
    filled(module)
    held = {key: value.detach().numpy() for key, value in module.named_parameters()}
    model = port("instructblip", held, config.to_dict())
    rng = np.random.default_rng(0)
    asked = Question(*(rng.integers(1, image, (BATCH, n), dtype=np.int32) for n in (64, 64, 2)))
    seen, words, answer = (torch.from_numpy(ids.astype(np.int64)) for ids in asked)
    ids = torch.cat([torch.full((BATCH, _QUERIES), image), words], dim=1)

    def theirs(x: torch.Tensor) -> torch.Tensor:
        made = module(pixel_values=x, qformer_input_ids=seen, input_ids=ids, labels=answer)
        said = made.logits.log_softmax(-1)
        return said.gather(-1, answer[..., None])[..., 0].mean(-1).exp()

    return instructblip_score(model), theirs, jax.tree.map(jnp.asarray, asked)
