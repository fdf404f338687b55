"""Encoders of texts and pictures and decoders of latents, beside the public classes."""

from typing import Any

import diffusers
import torch
import transformers
from _ports_pairs import BATCH, Pair, filled, normal, pair, tokens


def autoencoder(blocks: int) -> Pair:
    """Decoding alone: what a search does."""
    module: Any = filled(
        diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 768), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=16, layers_per_block=1,
            use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.0, shift_factor=0.0,
        )
    )  # fmt: skip

    def theirs(z: torch.Tensor) -> torch.Tensor:
        return module.decode(z.permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1)

    side = 4 * blocks
    inputs = [normal(BATCH, side, side, 16)]
    return pair("autoencoder_kl", module, lambda model, z: model.decode(z), theirs, inputs)


def clip_text(blocks: int) -> Pair:
    """The text tower of ViT-L/14."""
    config = transformers.CLIPTextConfig(
        vocab_size=1000, hidden_size=768, intermediate_size=3072, num_hidden_layers=blocks,
        num_attention_heads=12, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    module: Any = filled(transformers.CLIPTextModel(config))
    return pair(
        "clip_text", module, lambda model, ids: model(ids).last,
        lambda ids: module(ids).last_hidden_state, [tokens(1000, 77)],
    )  # fmt: skip


def clip_vision(blocks: int) -> Pair:
    """The image tower of ViT-L/14."""
    config = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=blocks,
        num_attention_heads=16, patch_size=14,
    )  # fmt: skip
    module: Any = filled(transformers.CLIPVisionModel(config))
    return pair(
        "clip_vision", module, lambda model, x: model(x).pooled,
        lambda x: module(x.permute(0, 3, 1, 2)).pooler_output, [normal(BATCH, 224, 224, 3)],
    )  # fmt: skip


def t5(blocks: int) -> Pair:
    """The encoder of T5 v1.1."""
    return _t5("t5_encoder", transformers.T5Config, transformers.T5EncoderModel, blocks)


def umt5(blocks: int) -> Pair:
    """UMT5's encoder, whose every block has its own positions."""
    return _t5("umt5_encoder", transformers.UMT5Config, transformers.UMT5EncoderModel, blocks)


def _t5(family: str, config: Any, model: Any, blocks: int) -> Pair:
    sizes = config(
        vocab_size=1000, d_model=768, d_kv=64, d_ff=2048, num_layers=blocks, num_heads=12,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    module: Any = filled(model(sizes))
    return pair(
        family, module, lambda model, ids: model(ids),
        lambda ids: module(ids).last_hidden_state, [tokens(1000, 128)],
    )  # fmt: skip


def qwen3(blocks: int) -> Pair:
    """Qwen3, whose queries share keys by fours, as those of 4B do."""
    config = transformers.Qwen3Config(
        vocab_size=1000, hidden_size=768, intermediate_size=3072, num_hidden_layers=blocks,
        num_attention_heads=12, num_key_value_heads=3, head_dim=64,
    )  # fmt: skip
    module: Any = filled(transformers.Qwen3Model(config))
    return pair(
        "qwen3", module, lambda model, ids: model(ids).last,
        lambda ids: module(ids).last_hidden_state, [tokens(1000, 128)],
    )  # fmt: skip


def autoencoder_wan(blocks: int) -> Pair:
    """Decoding two latent frames to five."""
    module: Any = filled(
        diffusers.AutoencoderKLWan(
            base_dim=64, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[False, True],
        )
    )  # fmt: skip
    mean, std = (torch.tensor(module.config[name]) for name in ("latents_mean", "latents_std"))

    def theirs(latents: torch.Tensor) -> torch.Tensor:
        z = (latents * std + mean).permute(0, 4, 1, 2, 3)
        return module.decode(z, return_dict=False)[0].permute(0, 2, 3, 4, 1)

    inputs = [0.1 * normal(BATCH, 2, 2 * blocks, 2 * blocks, 16)]
    return pair("autoencoder_wan", module, lambda model, z: model.decode(z), theirs, inputs)
