"""Files of low-rank adapters (LoRA), as their trainers write them.

An adapter of a layer is W + scale * alpha / rank * B A, of an A [rank, in] and a B [out, rank].
Files have A and B as `lora_A` and `lora_B` (PEFT, diffusers) or as `lora_down` and `lora_up`
(kohya), beside an `alpha` or without one: then it is in PEFT's own settings, or it is the rank.
Distilled models come with `diff_b` too, which is added to a bias, and `diff`, to any other weight.

Reference: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models (2021).
"""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowsde._text import listed, names, shown
from flowsde_converters.bounded_json import parse
from flowsde_converters.files import Checkpoint, open_checkpoint, read_json
from flowsde_converters.names import SAFETENSORS, ends
from flowsde_converters.safetensors_file import SafetensorsFile

MODEL = "transformer"
"""The part that makes the samples; other parts are called as diffusers calls its text encoders."""
_PARTS = (
    (
        re.compile(r"(?:base_model\.model\.)?(?:model\.)?(?:diffusion_model|transformer|unet)\."),
        MODEL,
    ),
    (re.compile(r"lora_(?:unet|transformer)_"), MODEL),
    (re.compile(r"lora_te1?_|text_encoder\."), "text_encoder"),
    (re.compile(r"lora_te[23]_|text_encoder_2\."), "text_encoder_2"),
    (re.compile(r"base_model\.model\."), MODEL),
)
"""Beginnings of keys; keys with another are of the model, as they are."""
_ROLES = {
    "down": r"lora_A(?:\.\w+)?\.weight|lora_down\.weight|lora\.down\.weight",
    "up": r"lora_B(?:\.\w+)?\.weight|lora_up\.weight|lora\.up\.weight",
    "up_bias": r"lora_B(?:\.\w+)?\.bias",
    "alpha": r"alpha",
    "diff": r"diff",
    "diff_b": r"diff_b",
}
_KEY = re.compile(rf"(.+)\.(?:{'|'.join(f'(?P<{r}>{end})' for r, end in _ROLES.items())})")
_OTHERS = re.compile(r"dora_scale|lora_magnitude_vector|hada_|lokr_|lora_mid|oft_|lora_embedding")
"""Of adapters of other kinds."""
_NAME = re.compile(r"\^?[\w.]+")
_SETTINGS = ("lora_alpha", "alpha_pattern", "use_rslora", "use_dora")
"""Of PEFT, that say what the tensors do not."""
_OF_PEFT = "lora_adapter_metadata"


def is_adapter(keys: Iterable[str]) -> bool:
    """Whether some keys are of LoRA's matrices."""
    return any((found := _KEY.fullmatch(key)) and found["down"] for key in keys)


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a file holds for one layer.

    Attributes:
      name: of the layer; with "_" for ".", if `flat`.
      flat: whether the name is so written.
      keys: in the file, by role: down, up, up_bias, alpha, diff, diff_b.
    """

    name: str
    flat: bool
    keys: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class LoraFile:
    """A file of adapters.

    Attributes:
      checkpoint: its tensors.
      parts: layers by the part of a pipeline that they are of.
      settings: of PEFT that change what is computed, by name: "transformer.lora_alpha" or
        "lora_alpha".
    """

    checkpoint: Checkpoint
    parts: Mapping[str, tuple[Layer, ...]]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the file."""
        return self.checkpoint.paths[0].name

    def read(self, key: str) -> np.ndarray:
        """A tensor as float32."""
        return self.checkpoint.read(key).astype(np.float32)

    def factor(self, part: str, layer: Layer, rank: int) -> float:
        """alpha / rank; ValueError for an alpha that is no finite number."""
        alpha = self._alpha(part, layer)
        if alpha is None:
            return 1.0
        if not math.isfinite(alpha):
            raise ValueError(f"{shown(layer.name)}: alpha is {alpha}, expected a finite number")
        return alpha / (rank**0.5 if self._setting(part, "use_rslora") else rank)

    def _alpha(self, part: str, layer: Layer) -> float | None:
        if "alpha" in layer.keys:
            held = self.read(layer.keys["alpha"])
            if held.size != 1:
                raise ValueError(f"{shown(layer.keys['alpha'])} is {held.shape}, expected a number")
            return float(held.reshape(()))
        patterns = self._setting(part, "alpha_pattern") or {}
        if not isinstance(patterns, dict) or not all(map(_NAME.fullmatch, patterns)):
            raise ValueError(
                f"alpha_pattern of PEFT's settings must have names of layers, got {shown(patterns)}"
            )
        found = [alpha for name, alpha in patterns.items() if _names(name, layer.name)]
        alpha = found[0] if found else self._setting(part, "lora_alpha")
        if alpha is not None and type(alpha) not in (int, float):
            raise ValueError(f"lora_alpha of PEFT's settings is {alpha!r}, expected a number")
        return alpha

    def _setting(self, part: str, name: str) -> Any:
        return self.settings.get(f"{part}.{name}", self.settings.get(name))


@dataclasses.dataclass(frozen=True)
class Merged:
    """A file of adapters in a plan.

    Attributes:
      file: of them.
      scale: of all of them.
      layers: how many are merged.
      rank: the highest.
      left: parts of the file that are of other models.
    """

    file: LoraFile
    scale: float
    layers: int
    rank: int
    left: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """What is merged, in words."""
        left = f", and leaves {names(self.left)}" if self.left else ""
        what = f"{self.layers} layers, rank {self.rank}, scale {self.scale:g}"
        return f"{self.file.name}: {what}{left}"


def open_lora(path: Path) -> LoraFile:
    """A file, or a folder with one.

    Raises:
      ValueError: listing the keys that are of no adapter, or of one of another kind.
      OSError: it cannot be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected a file of adapters")
    checkpoint = open_checkpoint(path)
    found: dict[str, dict[tuple[str, bool], dict[str, str]]] = {}
    problems = []
    for key in checkpoint.tensors:
        match = _KEY.fullmatch(key)
        if match is None or _OTHERS.search(key):
            kind = " of an adapter of another kind" if _OTHERS.search(key) else ""
            problems.append(f"unknown key {shown(key)}{kind}")
            continue
        part, name, flat = _part(match[1])
        roles = found.setdefault(part, {}).setdefault((name, flat), {})
        if match.lastgroup in roles:
            problems.append(f"{shown(key)} and {shown(roles[match.lastgroup])} are for one layer")
        roles[str(match.lastgroup)] = key
    settings = _settings(checkpoint.paths[0])
    if any(value and _last(name) == "use_dora" for name, value in settings.items()):
        problems.append("use_dora in PEFT's settings, which is not supported")
    if problems:
        expected = "expected lora_A and lora_B, or lora_down and lora_up, of each layer"
        title = f"{checkpoint.paths[0].name} holds what is no LoRA, {expected}"
        raise ValueError(listed(problems, title))
    parts = {
        part: tuple(Layer(name, flat, roles) for (name, flat), roles in layers.items())
        for part, layers in found.items()
    }
    return LoraFile(checkpoint, parts, settings)


def open_loras(loras: Sequence[tuple[Path, float]]) -> list[tuple[LoraFile, float]]:
    """Files, and the scale of each; errors as of `open_lora`, those of all files in one."""
    opened, problems = [], []
    for path, scale in loras:
        try:
            opened.append((open_lora(path), scale))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    return opened


def of_other_parts(
    loras: Sequence[tuple[LoraFile, float]], models: Collection[str]
) -> Iterator[str]:
    """In words, what files hold for parts that a pipeline of these models has not."""
    for file, _ in loras:
        for part in sorted(file.parts.keys() - set(models)):
            yield f"{file.name} has layers of {part}, expected {names(models)}"


def _names(pattern: str, layer: str) -> bool:
    """Whether a layer is meant by a name of PEFT's: by its end, or all of it after a "^"."""
    return layer == pattern[1:] if pattern[0] == "^" else f".{layer}".endswith(f".{pattern}")


def _part(layer: str) -> tuple[str, str, bool]:
    """The part that a layer is of, its name there, and whether "_" stands for "."."""
    for pattern, part in _PARTS:
        if begin := pattern.match(layer):
            return part, layer[begin.end() :], begin[0].endswith("_")
    return MODEL, layer, False


def _settings(path: Path) -> dict[str, Any]:
    """Of PEFT, beside the file or in it."""
    beside = path.parent / "adapter_config.json"
    if path.stem.startswith("adapter_model") and beside.exists():
        settings: Any = read_json(beside)
    elif ends(path.name, SAFETENSORS):
        said = SafetensorsFile(path).metadata.get(_OF_PEFT, "{}")
        try:
            settings = parse(said.encode())
        except ValueError:
            settings = None
        if not isinstance(settings, dict):
            found = shown(repr(said), 60)
            raise ValueError(f"{path.name}: {_OF_PEFT} is {found}, expected an object")
    else:
        settings = {}
    return {name: value for name, value in settings.items() if _last(name) in _SETTINGS}


def _last(name: str) -> str:
    return name.rpartition(".")[2]
