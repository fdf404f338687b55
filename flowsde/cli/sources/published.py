"""A converted model, as `flowsde sample` offers it.

`Offered` is what all of them share. A family says what is its own in a `Model`: which options it
takes, its times, and what a prompt becomes.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from PIL import Image

from flowsde._checks import check_float
from flowsde._text import shown
from flowsde.classifier_free import guide
from flowsde.cli import pictures, presets, prompts
from flowsde.cli.options import Converted, Sample
from flowsde.cli.settings import Settings, flag
from flowsde.cli.sources import rewards
from flowsde.cli.sources.base import Ask, Loaded
from flowsde.flow import Flow, VelocityFn
from flowsde.grids import Grid
from flowsde.models import pipelines
from flowsde.models.autoencoder_kl.decoder import WHOLE
from flowsde.models.converted.parts import configuration, read
from flowsde.models.flux.pipeline import LENGTH, FluxPipeline, check_length
from flowsde.models.sit.pipeline import FAMILY as SIT
from flowsde.models.sit.pipeline import SiTPipeline
from flowsde.runner.evaluate import decode

_AT_ONCE = 4 * WHOLE
"""Latents that are evaluated at once: four images of 1,024 x 1,024 pixels."""
_THUMBNAIL = 160
_SLUG, _DIGEST = 56, 10
"""Bytes of a prompt, and letters of its digest, in the name of a folder."""


class Model(Protocol):
    """What differs between families.

    Attributes:
      steps: of a trajectory, by method, where the preset leaves them to the model.
      named: settings that are no `Settings`, by option.
      guidance: scale that costs a second evaluation; 1 for none.
    """

    steps: dict[str, int]
    named: dict[str, Any]
    guidance: float

    def prompts(self, command: Sample, reads_text: bool) -> list[str]:
        """What is asked for, checked."""
        ...

    def grid(self, n: int) -> Grid | None:
        """Times that the model was made for, None where they are uniform."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        """Conds without a batch axis; what was read for it is dropped."""
        ...

    def flow(self) -> Flow:
        """With the weights, after `encode`."""
        ...


def _refuse(options: Converted, names: Sequence[str], what: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None:
            raise ValueError(f"{flag(name)} has no effect with {what}, got {value}")


def _pixels(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", size)
    if found is None:
        raise ValueError(
            f"--size must be HEIGHTxWIDTH or one number of pixels, of five digits at most, "
            f"got '{shown(size)}'"
        )
    height = int(found[1])
    return height, height if found[2] is None else int(found[2])


class Flux:
    """A FLUX.1."""

    def __init__(self, pipeline: FluxPipeline, options: Converted, guidance: float | None):
        _refuse(options, ("label", "vae"), "a FLUX.1")
        self._pipeline = pipeline
        self._size = _pixels(options.size)
        try:
            pipeline.latents(*self._size)
        except ValueError as error:
            # The names of the arguments are those of the option.
            raise ValueError(f"--size: {error}") from None
        length = LENGTH if options.text_tokens is None else options.text_tokens
        self._length = check_length("--text-tokens", length)
        self._negative = options.negative_prompt
        # A scale is an input of the model, or costs a second evaluation.
        self._scale, self.guidance = self._guidance(guidance)
        sides = [pipeline.side if side is None else side for side in self._size]
        self.named = {
            "size": "x".join(map(str, sides)),
            "guidance": self._scale if self._negative is None else self.guidance,
            "negative_prompt": self._negative,
            "text_tokens": self._length,
        }
        self.steps = {"ode": pipeline.steps, "sde": pipeline.steps}

    def _guidance(self, given: float | None) -> tuple[float | None, float]:
        """Scales: that the model is given, and that of classifier-free guidance."""
        distilled = self._pipeline.config.guidance
        if self._negative is None:
            try:
                return self._pipeline.scale(given), 1.0
            except ValueError as error:
                hint = "" if distilled else "; with --negative-prompt it guides, at two evaluations"
                raise ValueError(f"--guidance: {error}{hint}") from None
        if distilled:
            raise ValueError(
                "--negative-prompt has no effect with a model that takes its guidance scale as an "
                f"input, got {self._negative!r}"
            )
        if given is None or given < 0 or given == 1.0:
            got = "none" if given is None else given
            raise ValueError(f"--negative-prompt wants a --guidance other than 1, got {got}")
        return None, given

    def prompts(self, command: Sample, reads_text: bool) -> list[str]:
        return prompts.collect(command.prompt, command.prompts_file, slug)

    def grid(self, n: int) -> Grid | None:
        return self._pipeline.grid(n, *self._size)

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        texts = [*prompts, *([] if self._negative is None else [self._negative])]
        cond = self._pipeline.encode(texts, guidance=self._scale, length=self._length)
        self._pipeline.drop_text_encoders()
        conds = [jax.tree.map(lambda a, i=i: a[i], cond) for i in range(len(texts))]
        self._null = conds[-1]
        return conds[: len(prompts)]

    def flow(self) -> Flow:
        flow = self._pipeline.flow(*self._size)
        return flow if self._negative is None else guide(flow, self.guidance, self._null)


class SiT:
    """A SiT."""

    def __init__(self, folder: Path, options: Converted, guidance: float | None):
        _refuse(options, ("size",), "a SiT, whose images are of one size")
        _refuse(options, ("text_tokens", "negative_prompt"), "a SiT")
        config = configuration(folder, SIT)
        if options.label is None:
            raise ValueError(f"--label is missing, expected 0 to {config.classes - 1} for a SiT")
        if not 0 <= options.label < config.classes:
            last = config.classes - 1
            raise ValueError(f"--label must be from 0 to {last}, got {options.label}")
        if options.vae is None:
            raise ValueError(
                "--vae is missing, expected the folder of a converted autoencoder "
                "(stabilityai/sd-vae-ft-ema): a SiT's own checkpoint has none"
            )
        self._pipeline = SiTPipeline(folder, options.vae)
        self._label = options.label
        if guidance is not None and guidance < 0:
            raise ValueError(f"--guidance must be at least 0, got {guidance}")
        try:
            self.guidance = self._pipeline.scale(guidance)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
        self.named = {"label": options.label, "vae": str(options.vae)}
        self.steps = {"ode": 50, "sde": 250}

    def prompts(self, command: Sample, reads_text: bool) -> list[str]:
        if reads_text:
            return prompts.collect(command.prompt, command.prompts_file, slug)
        words = " ".join(command.prompt)
        for name, value in (("PROMPT", words), ("--prompts-file", command.prompts_file)):
            if value:
                raise ValueError(
                    f"{name} has no effect on a SiT without a reward that reads it, got {value}"
                )
        return [f"label {self._label}"]

    def grid(self, n: int) -> Grid | None:
        return None

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        return [self._pipeline.encode([self._label])[0] for _ in prompts]

    def flow(self) -> Flow:
        return self._pipeline.flow(self.guidance)


def _model(options: Converted, guidance: float | None) -> Model:
    from flowsde.models.converted.store import is_pipeline

    folder = options.model
    assert folder is not None
    if is_pipeline(folder):
        return Flux(pipelines.load(folder, read), options, guidance)
    return SiT(folder, options, guidance)


def slug(prompt: str) -> str:
    """A prompt as the name of a folder, with a digest unless the prompt can be read off it."""
    if not prompt.strip():
        raise ValueError(f"PROMPT must have at least one word, got '{shown(prompt)}'")
    name = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")
    name = name.encode(errors="replace")[:_SLUG].decode(errors="ignore").strip("-")
    # Letters beyond ASCII are spelt in several ways that file systems take for one.
    says_all = name.isascii() and prompt == name.replace("-", " ")
    if says_all and not re.search(f"-[0-9a-f]{{{_DIGEST}}}$", name):
        return name
    digest = hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    return f"{name}-{digest}" if name else digest


def _reward(command: Sample) -> tuple[str, rewards.Verifier]:
    """By name, and checked."""
    trajectory = command.method in ("ode", "sde")
    name = command.reward or ("none" if trajectory else None)
    if name is None:
        raise ValueError(
            f"--reward is missing for --method {command.method}, expected clip, pick, aesthetic or "
            "MODULE:FUNCTION, or --method ode or sde"
        )
    if name == "none":
        if not trajectory:
            raise ValueError(f"--method {command.method} searches by a reward, got --reward none")
        if command.target_reward is not None:
            said = f"got {command.target_reward}"
            raise ValueError(f"--target-reward has no effect with --reward none, {said}")
    own = command.converted
    if own.reward_timeout is not None:
        check_float("--reward-timeout", own.reward_timeout)
    verifier = rewards.verifier(name, own.reward_model, own.reward_timeout)
    if not verifier.on_device and command.given.get("gradient_temperature"):
        raise ValueError(f"--gradient-temperature wants a JAX reward, got --reward {name}")
    return name, verifier


def _settings(command: Sample, model: Model) -> tuple[Settings, Grid | None]:
    """Resolved settings, and the model's own times if they are used.

    Of the recommended preset, measured on the embedded model, what belongs to that model gives way:
    the variance of its data, and the times along the model's own path.
    """
    given = {k: v for k, v in command.given.items() if k not in ("reward", "guidance")}
    presets.check("preset", command.preset)
    presets.check("method", command.method)
    base = presets.PRESETS[command.preset][command.method]
    base = dataclasses.replace(base, guidance=model.guidance)
    own = False
    if command.preset == "recommended":
        steps = model.steps.get(command.method, base.steps)
        base = dataclasses.replace(base, data_variance=0.0, steps=steps)
        path = given.get("interpolant", base.interpolant)
        own = "grid" not in given and path == "linear"
    times_of: Callable[[int], Grid | None] = model.grid if own else lambda steps: None
    settings = presets.resolve_from(base, command.method, given, times_of)
    assert settings.steps is not None
    times = times_of(settings.steps)
    if times is not None:
        settings = dataclasses.replace(settings, grid="flux")
    return settings, times


@dataclasses.dataclass(frozen=True)
class _OfModel:
    velocity_fn: VelocityFn

    def __call__(self, params: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        return self.velocity_fn(params, x, t, cond.model)


class Offered:
    """An `Offer`; ValueError or TypeError naming an option that is wrong, before weights."""

    def __init__(self, command: Sample):
        guidance = command.given.get("guidance")
        if guidance is not None:
            presets.check("guidance", guidance)
        options = command.converted
        try:
            self._model = _model(options, guidance)
        except FileNotFoundError as error:
            raise ValueError(f"--model {options.model}: {error}") from None
        name, self._verifier = _reward(command)
        self.judged = name != "none"
        self.prompts = self._model.prompts(command, self._verifier.reads_text)
        settings, times = _settings(command, self._model)
        self.settings = dataclasses.replace(settings, reward=name)
        self.search = presets.build(command.method, self.settings, times)
        self.evaluations = presets.evaluations(self.settings)
        self.named = {"model": str(options.model), **self._model.named}
        if options.reward_model:
            self.named["reward_model"] = [str(folder) for folder in options.reward_model]

    def slug(self, prompt: str) -> str:
        return slug(prompt)

    def load(self, prompts: Sequence[str]) -> Loaded:
        # Texts first: the encoders are gone again when the large model comes.
        conds, embedded = self._model.encode(prompts), self._verifier.embed(prompts)
        asks = [
            Ask(rewards.Condition(*both), self._verifier.make(prompt))
            for prompt, *both in zip(prompts, conds, embedded, strict=True)
        ]
        flow = self._model.flow()
        flow = dataclasses.replace(flow, velocity_fn=_OfModel(flow.velocity_fn))
        rows, columns, _ = flow.shape
        return Loaded(flow, asks, max(1, _AT_ONCE // (rows * columns)))

    def save(self, path: Path, image: np.ndarray) -> None:
        pictures.save_image(path, image, None)

    def thumbnails(self, flow: Flow) -> Callable[[Any], Any]:
        def small(x0: np.ndarray) -> np.ndarray:
            image = Image.fromarray(pictures.pixels(np.asarray(decode(flow, x0[None])[0])))
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            return np.asarray(image, np.float32) / 127.5 - 1.0

        # One at a time: there may be many.
        return lambda x0: np.stack([small(one) for one in np.asarray(x0)])

    def heldout(self, prompt: str, image: np.ndarray) -> dict[str, Any]:
        return {}

    def said(self, values: dict[str, Any]) -> list[str]:
        return []
