"""A converted model as the source of a command.

What is a family's own, the options that it reads, its times, what a prompt becomes, it says itself:
`flowsde.models.family.Sampling`.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from flowsde._text import shown
from flowsde.cli import pictures, preset_files, presets, prompts, video_files
from flowsde.cli.devices import Spread, spread
from flowsde.cli.options import Converted, Sample
from flowsde.cli.settings import TRAJECTORIES, Settings, flag
from flowsde.cli.sources import combined, rewards, videos
from flowsde.cli.sources.base import LoadedSource, PromptTask, RewardSource
from flowsde.cli.sources.known import KNOWN
from flowsde.cli.sources.outside import is_outside, versions
from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.autoencoder_kl.decoder import WHOLE
from flowsde.models.common.quantised import FORMATS
from flowsde.models.converted.parts import reading
from flowsde.models.converted.store import checksum
from flowsde.models.family import Sampled, Sampling
from flowsde.models.load import nbytes, sampling_of
from flowsde.models.qwen3_vl.atoms import AtomsError, read_atoms
from flowsde.runner.evaluate import decode

_AT_ONCE = 4 * WHOLE
"""Latents that are evaluated at once: four images of 1,024 x 1,024 pixels."""
_THUMBNAIL = 160
_SLUG, _DIGEST = 56, 10
"""Bytes of a prompt, and letters of its digest, in the name of a folder."""
_OF_ALL = (
    "model",
    "reward_model",
    "reward_timeout",
    "reward_frames",
    "over_frames",
    "reward_counts",
    "reward_questions",
)
"""Options that are no family's own."""
_OWN_TIMES = "model"
"""What --grid calls them."""


def _model(options: Converted, guidance: float | None, spread: Spread) -> tuple[Sampling, Sampled]:
    """The model, set up by the options that it reads; ValueError for others that were given."""
    assert options.model is not None
    sampling = sampling_of(options.model)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    for name in _OF_ALL:
        del given[name]
    quantise = given.pop("quantise")
    if not sampling.reads:
        given["quantise"] = quantise
    for name, value in given.items():
        if value is not None and name not in sampling.options:
            raise ValueError(f"{flag(name)} has no effect with {sampling.title}, got {value}")
    if quantise not in (None, *FORMATS):
        expected = " or ".join(FORMATS)
        raise ValueError(f"--quantise must be {expected}, got '{shown(quantise)}'")
    own = {name: given[name] for name in sampling.options}
    if sampling.reads:
        own["read"] = reading(quantise, *spread)
    elif spread.fully:
        raise ValueError(f"--fully-sharded has no effect with {sampling.title}")
    return sampling, sampling.make(options.model, guidance=guidance, **own)


def _prompts(command: Sample, title: str, unprompted: str | None, reads_text: bool) -> list[str]:
    """What is asked for, checked; what `unprompted` says if nothing reads a prompt."""
    if unprompted is None or reads_text:
        _check_quoted(command.prompt)
        return prompts.collect(command.prompt, command.prompts_file, slug)
    words = " ".join(command.prompt)
    for name, value in (("PROMPT", words), ("--prompts-file", command.prompts_file)):
        if value:
            raise ValueError(
                f"{name} has no effect on {title} without a reward that reads it, got {value}"
            )
    return [unprompted]


def _check_quoted(words: Sequence[str]) -> None:
    """ValueError for a prompt without quotes, of which each word would be one."""
    if len(words) > 2 and not any(" " in word for word in words):
        raise ValueError(
            f"PROMPT: {len(words)} prompts of one word each; expected one in quotes, "
            f'"{shown(" ".join(words))}"; several of one word are for --prompts-file'
        )


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


def _rewards(command: Sample, fps: float | None) -> dict[str, RewardSource]:
    """By name, and checked; of videos with so many frames a second, None for pictures."""
    trajectory = command.method in TRAJECTORIES
    names = command.reward or ("none",) * trajectory
    combined.check(names, command.combining)
    if not names:
        known = ", ".join(name for name in KNOWN if name != "none")
        raise ValueError(
            f"--reward is missing for --method {command.method}, expected {known} or "
            "MODULE:FUNCTION, or --method ode or sde"
        )
    if names == ("none",):
        if not trajectory:
            raise ValueError(f"--method {command.method} searches by a reward, got --reward none")
        if command.target_reward is not None:
            said = f"got {command.target_reward}"
            raise ValueError(f"--target-reward has no effect with --reward none, {said}")
    own = command.converted
    folders = combined.folders_of(names, own.reward_model, list(map(rewards.folders, names)))
    waits, counts, asks = (
        [of(name) for name in names] for of in (is_outside, rewards.counts, rewards.asks)
    )
    found = {
        name: rewards.reward_source(
            name,
            folders[i],
            # Of several it is for those that it has an effect on.
            own.reward_timeout if waits[i] or not any(waits) else None,
            fps,
            counts=own.reward_counts if counts[i] or not any(counts) else None,
            questions=own.reward_questions if asks[i] or not any(asks) else None,
        )
        for i, name in enumerate(names)
    }
    combined.check_gradient(command.given, [n for n, one in found.items() if not one.on_device])
    return found


def _asked(path: Path | None, prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What a file asks about each prompt, for its result; ValueError if it is nothing of one."""
    if path is None:
        return {}
    atoms = read_atoms(path)
    try:
        each = {prompt: list(map(dataclasses.asdict, atoms(prompt))) for prompt in prompts}
    except AtomsError as error:
        raise ValueError(f"--reward-questions: {error}") from None
    return {prompt: {"reward_questions": asked} for prompt, asked in each.items()}


def _cost(model: Sampled) -> int | None:
    """Model evaluations of a candidate; None for those of its guidance."""
    return getattr(model, "evaluations", None)


def _check_memory(folder: Path, quantise: Any, shares: int) -> None:
    """ValueError if one of a folder's models, or one of so many shares of it, is more than the
    device has; not all devices say."""
    device, held = jax.local_devices()[0], nbytes(folder, quantise)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    name = max(held, key=lambda name: held[name])
    if limit and held[name] > shares * limit:
        raise ValueError(
            f"--model {folder}: the weights{f' of its {name}' if name else ''} take "
            f"{held[name] / 1e9:.1f} GB, and JAX has {limit / 1e9:.1f} GB of {device.device_kind}, "
            "of a GPU three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise: "
            f"expected a smaller model, {'' if quantise else '--quantise int8, '}more devices that "
            f"share them (--mesh), or a larger device"
        )


def _settings(command: Sample, model: Sampled, title: str) -> tuple[Settings, Grid | None]:
    """Resolved settings, and the model's own times if they are used.

    Of the recommended preset, measured on the embedded model, what belongs to that model gives way:
    the variance of its data, and the times along the model's own path.
    """
    given = {k: v for k, v in command.given.items() if k not in ("reward", "guidance")}
    presets.check("method", command.method)
    base = preset_files.settings_of(command.preset, command.method)
    base = dataclasses.replace(base, guidance=model.guidance)
    of_file = preset_files.is_file(command.preset)
    recommended = command.preset != "paper" and not of_file
    if recommended:
        steps = model.steps.get(command.method, base.steps)
        base = dataclasses.replace(base, data_variance=0.0, steps=steps)
    path = given.get("interpolant", base.interpolant)
    asked = given.get("grid", base.grid) == _OWN_TIMES
    if asked:
        given.pop("grid", None)
        base = dataclasses.replace(base, grid="uniform")
        if path != "linear":
            raise ValueError(f"--grid {_OWN_TIMES} wants --interpolant linear, got {path}")
    own = asked or (recommended and "grid" not in given and path == "linear")
    times_of: Callable[[int], Grid | None] = model.grid if own else lambda steps: None
    settings = presets.resolve_from(base, command.method, given, times_of, _cost(model))
    assert settings.steps is not None
    times = times_of(settings.steps)
    if times is not None:
        settings = dataclasses.replace(settings, grid=_OWN_TIMES)
    elif asked:
        raise ValueError(f"--grid {_OWN_TIMES} has no effect with {title}: its times are uniform")
    return settings, times


def _of_steps(command: Sample, model: Sampled, steps: int | None) -> list[str]:
    """That a search takes other steps than the model was made for, where nobody asked for them."""
    own = model.steps.get("ode")
    asked = command.preset != "recommended" or "steps" in command.given
    if asked or command.method in TRAJECTORIES or None in (own, steps) or own == steps:
        return []
    assert own is not None and steps is not None
    hint = f"--steps {own}" if steps < own else "--preset distilled"
    return [
        f"{command.method} takes {steps} steps, a plain picture of this model {own}: see {hint}"
    ]


class PublishedSource:
    """A `Source`; ValueError or TypeError naming an option that is wrong."""

    def __init__(self, command: Sample):
        guidance = command.given.get("guidance")
        if guidance is not None:
            presets.check("guidance", guidance)
        options = command.converted
        try:
            self._spread = spread(command.devices)
            sampling, self._model = _model(options, guidance, self._spread)
        except FileNotFoundError as error:
            raise ValueError(f"--model {options.model}: {error}") from None
        assert options.model is not None
        self._folder = options.model
        made = self._video = videos.as_video(command, self._model, sampling.title)
        self.video = None if made is None else video_files.kind()
        self._hinted = False
        parts = _rewards(command, None if made is None else made.fps)
        name = command.combining.name_of([*parts])
        self.has_reward = name != "none"
        over: dict[str, Any] = {}
        if made is not None:
            parts, over = videos.of_videos(command, parts, made.frames)
        self._pools: dict[str, combined.Statistics | None] = {}
        self._reward: RewardSource = next(iter(parts.values()))
        if len(parts) > 1:
            of_all = ([*parts], [*parts.values()], command.combining, self._pools)
            self._reward = combined.Combined(*of_all)
        reads_text = self._reward.reads_text or any(map(rewards.reads_text, command.heldout))
        self.prompts = _prompts(command, sampling.title, self._model.unprompted, reads_text)
        settings, times = _settings(command, self._model, sampling.title)
        self.settings = dataclasses.replace(settings, reward=name)
        self._notes = _of_steps(command, self._model, self.settings.steps)
        cost = _cost(self._model)
        self.search = presets.build(command.method, self.settings, times, cost)
        self.evaluations = cost or presets.evaluations(self.settings)
        self.named = {"model": str(options.model), **self._model.named, **over}
        self.named |= combined.named([*parts], command.combining)
        self._quantise = options.quantise
        if options.quantise is not None:
            self.named["quantise"] = options.quantise
        if options.reward_model:
            self.named["reward_model"] = [str(folder) for folder in options.reward_model]
        if options.reward_counts is not None:
            self.named["reward_counts"] = options.reward_counts
        self._asked = _asked(options.reward_questions, self.prompts)
        self.named |= versions([*parts.values()])
        needs = list(map(rewards.folders, parts))
        each = combined.folders_of([*parts], options.reward_model, needs)
        self.rewards = dict(zip(parts, each, strict=True))
        folders = [options.model, options.vae, *(options.reward_model or ())]
        self.named["contents"] = [checksum(folder)[:16] for folder in folders if folder]
        for prompt in self.prompts:
            own = self.named | self._asked.get(prompt, {})
            self._pools[prompt] = combined.pool([*parts], command.combining, slug(prompt), own)

    def slug(self, prompt: str) -> str:
        return slug(prompt)

    def named_of(self, prompt: str) -> dict[str, Any]:
        return combined.said(self._pools[prompt]) | self._asked.get(prompt, {})

    def load(self, prompts: Sequence[str]) -> LoadedSource:
        _check_memory(self._folder, self._quantise, self._spread.shares)
        for note in (*getattr(self._model, "notes", ()), *self._notes):
            print(f"note    {note}", flush=True)
        # Texts first: the encoders are gone again when the large model comes.
        conds, (reward, told) = self._model.encode(prompts), self._reward.load(prompts)
        tasks = [PromptTask(*both) for both in zip(conds, told, strict=True)]
        flow = self._model.flow()
        chunk = max(1, _AT_ONCE // math.prod(flow.shape[:-1]))
        return LoadedSource(flow, reward, tasks, chunk)

    def save(self, path: Path, image: np.ndarray) -> None:
        if self._video is not None and self.video is not None:
            if self.video == video_files.WEBP and not self._hinted:
                print("videos are animated WebP: for MP4, pip install 'flowsde[video]'", flush=True)
                self._hinted = True
            file = path.with_name(video_files.beside(path.name, self.video))
            video_files.save_video(file, image, self._video.fps)
            image = image[0]
        pictures.save_image(path, image, None)

    def thumbnails(self, flow: Flow) -> Callable[[Any], Any]:
        def picture(x0: np.ndarray) -> np.ndarray:
            if self._video is None:
                return np.asarray(decode(flow, x0[None])[0])
            # The first latent frame alone, at a fraction of the cost.
            return np.asarray(decode(flow, x0[None, :1])[0, 0])

        def small(x0: np.ndarray) -> np.ndarray:
            image = Image.fromarray(pictures.pixels(picture(x0)))
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            return np.asarray(image, np.float32) / 127.5 - 1.0

        # One at a time: there may be many.
        return lambda x0: np.stack([small(one) for one in np.asarray(x0)])

    def heldout(self, prompt: str, image: np.ndarray) -> dict[str, Any]:
        return {}

    def report(self, values: dict[str, Any]) -> list[str]:
        if (made := self._video) is None:
            return []
        seconds = made.frames / made.fps
        return [f"video   {values['video']}, {made.frames} frames in {seconds:.2f} s"]
