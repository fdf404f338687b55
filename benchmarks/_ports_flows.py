"""The models that make pictures and videos, beside the classes of diffusers."""

from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from _ports_pairs import BATCH, Pair, filled, normal, pair, port, sides
from _torch_sit import PlainSiT

from flowsde.models.flux2.model import Flux2Cond
from flowsde.models.sd3.model import SD3Cond
from flowsde.models.zimage.model import ZImageCond


def times() -> np.ndarray:
    """One for each of a batch, 1 being noise."""
    return np.linspace(0.1, 0.9, BATCH, dtype=np.float32)


def flux(blocks: int) -> Pair:
    """Packed tokens on both sides."""
    side = 16
    module: Any = filled(
        diffusers.FluxTransformer2DModel(
            in_channels=64, num_layers=blocks // 2, num_single_layers=blocks,
            attention_head_dim=128, num_attention_heads=6, joint_attention_dim=768,
            pooled_projection_dim=768, guidance_embeds=True, axes_dims_rope=(16, 56, 56),
        )
    )  # fmt: skip
    rows, columns = np.indices((side, side))
    ids = np.stack([np.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    at, text_at = torch.from_numpy(ids).float(), torch.zeros(64, 3)
    t = times()
    inputs = [normal(BATCH, side**2, 64), t, normal(BATCH, 64, 768), normal(BATCH, 768), t]

    def ours(model: Any, x: Any, t: Any, text: Any, pooled: Any, guidance: Any) -> jax.Array:
        return model.tokens(x, ids, t, text, pooled, guidance)

    def theirs(x: Any, t: Any, text: Any, pooled: Any, guidance: Any) -> torch.Tensor:
        return module(
            hidden_states=x, encoder_hidden_states=text, pooled_projections=pooled, timestep=t,
            img_ids=at, txt_ids=text_at, guidance=guidance, return_dict=False,
        )[0]  # fmt: skip

    return pair("flux", module, ours, theirs, inputs)


def klein(blocks: int) -> Pair:
    """FLUX.2's, with places of an image's and a text's tokens of their own."""
    side, words = 16, 64
    module: Any = filled(
        diffusers.Flux2Transformer2DModel(
            in_channels=128, num_layers=blocks // 2, num_single_layers=blocks,
            attention_head_dim=128, num_attention_heads=6, joint_attention_dim=768,
            axes_dims_rope=(32, 32, 32, 32), guidance_embeds=False,
        )
    )  # fmt: skip
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    nothing = torch.zeros_like(rows)
    at = torch.stack([nothing, rows, columns, nothing], -1).reshape(-1, 4)
    text_at = torch.nn.functional.pad(torch.arange(words)[:, None], (3, 0))

    def ours(model: Any, x: Any, t: Any, text: Any) -> jax.Array:
        return model(x, t, Flux2Cond(text))

    def theirs(x: Any, t: Any, text: Any) -> torch.Tensor:
        # A token has its four latents' values channel by channel.
        tokens = torch.nn.functional.pixel_unshuffle(x.permute(0, 3, 1, 2), 2).flatten(2).mT
        made = module(tokens, text, t, at[None], text_at[None], return_dict=False)[0]
        grid = made.mT.unflatten(2, (side, side))
        return torch.nn.functional.pixel_shuffle(grid, 2).permute(0, 2, 3, 1)

    inputs = [normal(BATCH, 2 * side, 2 * side, 32), times(), normal(BATCH, words, 768)]
    return pair("flux2", module, ours, theirs, inputs)


def sit(blocks: int) -> Pair:
    """Ours has time and output the other way round."""
    module: Any = filled(PlainSiT(blocks))
    with torch.no_grad():
        # Training leaves what a DiT would have of a variance at 0; the converter wants it so.
        for parameter in module.final_layer["linear"].parameters():
            parameter.view(4, 8, -1)[:, 4:] = 0.0
    tensors = {key: value.detach().numpy() for key, value in module.state_dict().items()}
    labels = np.arange(BATCH, dtype=np.int32)

    def ours(model: Any, x: Any, t: Any, labels: Any) -> jax.Array:
        return model(x, t, labels)

    def theirs(x: Any, t: Any, labels: Any) -> torch.Tensor:
        return -module(x.permute(0, 3, 1, 2), 1 - t, labels).permute(0, 2, 3, 1)

    return sides(
        port("sit", tensors, None), ours, theirs, [normal(BATCH, 32, 32, 4), times(), labels]
    )


def sd3(blocks: int) -> Pair:
    """Of SD3.5's kind: norms of queries and keys, a second attention in the first half."""
    module: Any = filled(
        diffusers.SD3Transformer2DModel(
            sample_size=32, num_layers=blocks, attention_head_dim=64, num_attention_heads=12,
            joint_attention_dim=768, caption_projection_dim=768, pooled_projection_dim=768,
            pos_embed_max_size=32, dual_attention_layers=tuple(range(blocks // 2)),
            qk_norm="rms_norm",
        )
    )  # fmt: skip

    def ours(model: Any, x: Any, t: Any, text: Any, pooled: Any) -> jax.Array:
        return model(x, t, SD3Cond(text, pooled))

    def theirs(x: Any, t: Any, text: Any, pooled: Any) -> torch.Tensor:
        made = module(x.permute(0, 3, 1, 2), text, pooled, 1000 * t, return_dict=False)[0]
        return made.permute(0, 2, 3, 1)

    inputs = [normal(BATCH, 32, 32, 16), times(), normal(BATCH, 64, 768), normal(BATCH, 768)]
    return pair("sd3", module, ours, theirs, inputs)


def zimage(blocks: int) -> Pair:
    """Texts of one length, which is full."""
    words = 64
    module: Any = filled(
        diffusers.ZImageTransformer2DModel(
            dim=768, n_layers=blocks, n_refiner_layers=1, n_heads=6, n_kv_heads=6,
            cap_feat_dim=768, axes_dims=[32, 48, 48], axes_lens=[256, 64, 64],
        )
    )  # fmt: skip
    counts = np.full(BATCH, words, np.int32)

    def ours(model: Any, x: Any, t: Any, text: Any) -> jax.Array:
        return model(x, t, ZImageCond(text, jnp.asarray(counts)))

    def theirs(x: Any, t: Any, text: Any) -> torch.Tensor:
        pictures = list(x.permute(0, 3, 1, 2)[:, :, None])
        made = module(pictures, 1 - t, list(text), return_dict=False)[0]
        return -torch.stack(made)[:, :, 0].permute(0, 2, 3, 1)

    inputs = [normal(BATCH, 32, 32, 16), times(), normal(BATCH, words, 768)]
    return pair("zimage", module, ours, theirs, inputs)


def wan(blocks: int) -> Pair:
    """Two latent frames."""
    module: Any = filled(
        diffusers.WanTransformer3DModel(
            num_attention_heads=6, attention_head_dim=128, text_dim=768, ffn_dim=3072,
            num_layers=blocks,
        )
    )  # fmt: skip

    def ours(model: Any, x: Any, t: Any, text: Any) -> jax.Array:
        return model(x, t, text)

    def theirs(x: Any, t: Any, text: Any) -> torch.Tensor:
        made = module(x.permute(0, 4, 1, 2, 3), 1000 * t, text, return_dict=False)[0]
        return made.permute(0, 2, 3, 4, 1)

    inputs = [normal(BATCH, 2, 24, 24, 16), times(), normal(BATCH, 64, 768)]
    return pair("wan", module, ours, theirs, inputs)
