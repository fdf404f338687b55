"""A plain PyTorch forward pass of a SiT, which no public class computes."""

from typing import Any

import torch

_F = torch.nn.functional


class PlainSiT(torch.nn.Module):
    """SiT-B/2's forward pass, in modules with the published names."""

    def __init__(self, blocks: int, width: int = 768, heads: int = 12, side: int = 32):
        super().__init__()
        linear, self.heads, self.side = torch.nn.Linear, heads, side

        def named(**layers: torch.nn.Module) -> torch.nn.ModuleDict:
            return torch.nn.ModuleDict(layers)

        def modulation(chunks: int) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.SiLU(), linear(width, chunks * width))

        self.pos_embed = torch.nn.Parameter(torch.zeros(1, (side // 2) ** 2, width))
        self.x_embedder = named(proj=torch.nn.Conv2d(4, width, 2, 2))
        mlp = torch.nn.Sequential(linear(256, width), torch.nn.SiLU(), linear(width, width))
        self.t_embedder = named(mlp=mlp)
        self.y_embedder = named(embedding_table=torch.nn.Embedding(1001, width))
        self.blocks = torch.nn.ModuleList(
            named(
                adaLN_modulation=modulation(6),
                attn=named(qkv=linear(width, 3 * width), proj=linear(width, width)),
                mlp=named(fc1=linear(width, 4 * width), fc2=linear(4 * width, width)),
            )
            for _ in range(blocks)
        )
        self.final_layer = named(adaLN_modulation=modulation(2), linear=linear(width, 32))
        self.register_buffer("frequencies", 1e4 ** (-torch.arange(128) / 128), persistent=False)

    @staticmethod
    def _modulated(h: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return _F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def forward(self, x: torch.Tensor, tau: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Data - noise [n, 4, side, side] of latents shaped alike."""
        layers: Any = self
        n = len(x)
        h = layers.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = tau[:, None] * layers.frequencies
        c = layers.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], 1))
        c = c + layers.y_embedder["embedding_table"](labels)
        for block in layers.blocks:
            m = [a[:, None] for a in block["adaLN_modulation"](c).chunk(6, 1)]
            qkv = block["attn"]["qkv"](self._modulated(h, m[0], m[1]))
            q, k, v = qkv.reshape(n, h.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = _F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            h = h + m[2] * block["attn"]["proj"](y)
            y = block["mlp"]["fc1"](self._modulated(h, m[3], m[4]))
            h = h + m[5] * block["mlp"]["fc2"](_F.gelu(y, approximate="tanh"))
        shift, scale = (a[:, None] for a in layers.final_layer["adaLN_modulation"](c).chunk(2, 1))
        y = layers.final_layer["linear"](self._modulated(h, shift, scale))
        half = self.side // 2
        y = y.reshape(n, half, half, 2, 2, 8).permute(0, 5, 1, 3, 2, 4)
        return y.reshape(n, 8, self.side, self.side)[:, :4]
