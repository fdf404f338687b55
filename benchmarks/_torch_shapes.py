"""The embedded model and its given reward as plain PyTorch modules, and their weights.

Written as one writes them in PyTorch: convolutions in the channels-last memory format, a list of
blocks, `scaled_dot_product_attention`. The weights are the packaged ones, brought to these modules'
keys by tables of the converter, undone as ``flowsde convert --to-torch`` undoes them: the same
values bit for bit.
"""

from typing import Any

import numpy as np
import torch

from flowsde.shapes import weights
from flowsde.shapes.captions import MAX_TOKENS, VOCABULARY
from flowsde.shapes.data import SIZE
from flowsde.shapes.model import ModelConfig
from flowsde.shapes.scorer import CLASSES, PAIRS, ScorerConfig
from flowsde_converters.relayout import CONV, Permute, Reshape
from flowsde_converters.tables import Row, Table, linear, unconvert

_EPSILON = 1e-6
_F = torch.nn.functional


class Block(torch.nn.Module):
    """Attention and squared-ReLU MLP, shifted, scaled and gated by the time embedding."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.q_norm = torch.nn.RMSNorm(width // config.heads, eps=_EPSILON)
        self.k_norm = torch.nn.RMSNorm(width // config.heads, eps=_EPSILON)
        self.norm = torch.nn.LayerNorm(width, eps=_EPSILON, elementwise_affine=False)
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)
        self.up = torch.nn.Linear(width, 4 * width)
        self.down = torch.nn.Linear(4 * width, width)
        self.modulation = torch.nn.Linear(width, 6 * width)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """x: [n, tokens, width]; time: [n, width], already activated."""
        n, tokens, width = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)[:, None].chunk(6, -1)
        qkv = self.qkv(self.norm(x) * (1.0 + scale1) + shift1)
        q, k, v = qkv.view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = _F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        x = x + gate1 * self.out(y.transpose(1, 2).reshape(n, tokens, width))
        hidden = _F.relu(self.up(self.norm(x) * (1.0 + scale2) + shift2)).square()
        return x + gate2 * self.down(hidden)


class TorchShapes(torch.nn.Module):
    """Velocity of the shapes flow, `model(x, t, tokens)`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width, stem, patch = config.width, config.stem, config.patch
        self.side = SIZE // patch
        self.stem = torch.nn.Conv2d(3, stem, 3, padding=1)
        self.patchify = torch.nn.Conv2d(stem, width, patch, stride=patch)
        self.positions = torch.nn.Parameter(torch.zeros(self.side**2, width))
        self.words = torch.nn.Embedding(len(VOCABULARY), width)
        self.word_positions = torch.nn.Parameter(torch.zeros(MAX_TOKENS, width))
        self.time = torch.nn.Sequential(
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
        )
        self.blocks = torch.nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = torch.nn.LayerNorm(width, eps=_EPSILON, elementwise_affine=False)
        self.modulation = torch.nn.Linear(width, 2 * width)
        self.unpatchify = torch.nn.Linear(width, patch * patch * stem)
        self.head = torch.nn.Conv2d(2 * stem, 3, 3, padding=1)
        self.skip = torch.nn.Linear(width, 3)
        half = width // 2
        frequencies = torch.exp(-np.log(1e4) * torch.arange(half) / half)
        self.register_buffer("frequencies", 1000.0 * frequencies, persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Velocity [n, 3, 32, 32] at x [n, 3, 32, 32], t [n] and caption tokens [n, 8]."""
        n, patch = len(x), self.config.patch
        pixels = self.stem(x)
        image = self.patchify(pixels).flatten(2).transpose(1, 2) + self.positions
        h = torch.cat([image, self.words(tokens) + self.word_positions], 1)
        angles = t[:, None] * self.frequencies
        time = self.time(torch.cat([angles.cos(), angles.sin()], 1))
        for block in self.blocks:
            h = block(h, time)
        shift, scale = self.modulation(time)[:, None].chunk(2, -1)
        h = self.unpatchify(self.norm(h[:, : self.side**2]) * (1.0 + scale) + shift)
        h = h.view(n, self.side, self.side, patch, patch, -1).permute(0, 1, 3, 2, 4, 5)
        h = torch.cat([h.reshape(n, SIZE, SIZE, -1).permute(0, 3, 1, 2), pixels], 1)
        return self.head(_F.silu(h)) + self.skip(time)[:, :, None, None] * x


class ScorerBlock(torch.nn.Module):
    """Residual 3x3 convolution of normalised channels."""

    def __init__(self, config: ScorerConfig):
        super().__init__()
        self.norm = ChannelNorm(config.width)
        self.conv = torch.nn.Conv2d(config.width, config.width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width, 8, 8] -> the same."""
        return x + self.conv(_F.silu(self.norm(x)))


class ChannelNorm(torch.nn.Module):
    """RMS norm over the channels [n, channels, h, w]."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shaped as x."""
        scale = torch.rsqrt(x.square().mean(1, keepdim=True) + _EPSILON)
        return x * scale * self.weight[:, None, None]


class TorchScorer(torch.nn.Module):
    """Log-probabilities [n, colours, kinds, CLASSES] of counts in images [n, 3, 32, 32]."""

    def __init__(self, config: ScorerConfig):
        super().__init__()
        width, self.detectors, self.gaussian = config.width, config.detectors, config.gaussian
        self.stem = torch.nn.Conv2d(3, width, 8, stride=4, padding=2)
        self.blocks = torch.nn.Sequential(*(ScorerBlock(config) for _ in range(config.depth)))
        self.norm = ChannelNorm(width)
        self.detect = torch.nn.Linear(width, PAIRS[0] * PAIRS[1] * config.detectors)
        self.summary = torch.nn.Linear(width, config.context)
        self.read1 = torch.nn.Linear(config.detectors + config.context, config.hidden)
        self.read2 = torch.nn.Linear(config.hidden, CLASSES + config.gaussian)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Values beyond [-1, 1] are clipped."""
        x = self.norm(self.blocks(self.stem(images.clamp(-1.0, 1.0))))
        x = _F.silu(x).flatten(2).transpose(1, 2)
        counted = self.detect(x).sigmoid().sum(1).view(len(x), *PAIRS, self.detectors)
        context = self.summary(x).mean(1)[:, None, None].expand(-1, *PAIRS, -1)
        h = _F.silu(self.read1(torch.cat([counted, context], -1)))
        scores = self.read2(h)
        if self.gaussian:
            scores, precision = scores[..., :-1], scores[..., -1:].clamp(max=4.0).exp()
            total = counted[..., :1].clamp(max=CLASSES - 1.0)
            scores = (
                scores - precision * (torch.arange(CLASSES, device=total.device) - total).square()
            )
        return scores.log_softmax(-1)


def log_likelihood(log_probs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The given reward [n]: of counts [colours, kinds] that a caption asks for."""
    index = wanted[None, :, :, None].expand(len(log_probs), -1, -1, 1)
    return log_probs.gather(-1, index).sum((1, 2, 3))


def shapes_table(config: ModelConfig) -> Table:
    """From the keys of `TorchShapes` to the embedded model's parameters."""
    width, patch, stem = config.width, config.patch, config.stem
    patches = Reshape((patch, patch, stem, width), (patch * patch * stem, width))
    return Table(
        (
            Row("stem.weight", "stem.kernel", CONV),
            Row("stem.bias", "stem.bias"),
            Row("patchify.weight", "patchify.kernel", (*CONV, patches)),
            Row("patchify.bias", "patchify.bias"),
            Row("positions", "positions"),
            Row("words.weight", "words.embedding"),
            Row("word_positions", "word_positions"),
            *linear("time.0", "time1"),
            *linear("time.2", "time2"),
            Row("blocks.{i}.q_norm.weight", "blocks.q_norm.scale"),
            Row("blocks.{i}.k_norm.weight", "blocks.k_norm.scale"),
            linear("blocks.{i}.qkv", "blocks.qkv")[0],
            linear("blocks.{i}.out", "blocks.out")[0],
            *linear("blocks.{i}.up", "blocks.up"),
            *linear("blocks.{i}.down", "blocks.down"),
            *linear("blocks.{i}.modulation", "blocks.modulation"),
            *linear("modulation", "modulation"),
            *linear("unpatchify", "unpatchify"),
            Row("head.weight", "head.kernel", CONV),
            Row("head.bias", "head.bias"),
            *linear("skip", "skip"),
        )
    )


def scorer_table(config: ScorerConfig) -> Table:
    """From the keys of `TorchScorer` to the scorer's parameters."""
    width = config.width
    # Ours takes the 8 x 8 pixels as 2 x 2 cells of 4 x 4, one after the other.
    stem = (
        Reshape((width, 3, 8, 8), (width, 3, 2, 4, 2, 4)),
        Permute((2, 4, 3, 5, 1, 0)),
        Reshape((2, 2, 4, 4, 3, width), (192, width)),
    )
    conv = (*CONV, Reshape((3, 3, width, width), (9 * width, width)))
    return Table(
        (
            Row("stem.weight", "stem.kernel", stem),
            Row("stem.bias", "stem.bias"),
            Row("blocks.{i}.norm.weight", "blocks.norm.scale"),
            Row("blocks.{i}.conv.weight", "blocks.linear.kernel", conv),
            Row("blocks.{i}.conv.bias", "blocks.linear.bias"),
            Row("norm.weight", "norm.scale"),
            *linear("detect", "detect"),
            *linear("summary", "summary"),
            *linear("read1", "read1"),
            *linear("read2", "read2"),
        )
    )


def packaged(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Parameters of a packaged network by dotted path, and its configuration."""
    nested, config = weights.load(weights.FOLDER / f"{name}.safetensors", name)
    flat: dict[str, np.ndarray] = {}

    def walk(node: dict[str, Any], path: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")
            else:
                flat[f"{path}{key}"] = np.asarray(value)

    walk(nested, "")
    return flat, config


def _filled(module: torch.nn.Module, table: Table, params: dict[str, np.ndarray]) -> Any:
    tensors = unconvert(table, params)
    module.load_state_dict({key: torch.from_numpy(a.copy()) for key, a in tensors.items()})
    return module.eval().to(memory_format=torch.channels_last)


def load() -> tuple[TorchShapes, TorchScorer]:
    """Model and scorer with the packaged weights."""
    params, sizes = packaged("shapes")
    config = ModelConfig(**sizes)
    model = _filled(TorchShapes(config), shapes_table(config), params)
    params, sizes = packaged("scorer")
    scorer = ScorerConfig(**sizes)
    return model, _filled(TorchScorer(scorer), scorer_table(scorer), params)
