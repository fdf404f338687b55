"""The embedded model as the source of a command."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsde import shapes
from flowsde._text import shown
from flowsde.cli import devices, pictures, preset_files, presets, prompts, settings
from flowsde.cli.options import Converted, Sample
from flowsde.cli.sources import combined
from flowsde.cli.sources.base import LoadedSource, PromptTask, RewardSource
from flowsde.cli.sources.outside import HostFunction, is_outside, versions
from flowsde.flow import Flow
from flowsde.rewards.base import Reward, device
from flowsde.shapes import captions, verdict, weights
from flowsde.shapes.tasks import TASKS, Challenge

_OUTSIDE = "MODULE:FUNCTION or URL#MODEL"


class _Measure(NamedTuple):
    """A reward of the embedded model, as a `RewardSource`."""

    name: str
    task: Challenge
    scorer: Path

    @property
    def reads_text(self) -> bool:
        return True

    @property
    def on_device(self) -> bool:
        return True

    def load(self, prompts: Sequence[str]) -> tuple[Reward, list[Any]]:
        reward = device(self.task.load_reward(self.name, self.scorer), name=self.name)
        return reward, [self.task.encode(prompt) for prompt in prompts]


def _check_names(names: Sequence[str]) -> None:
    known = settings.CHOICES["reward"]
    for name in names:
        if name not in known and not is_outside(name):
            raise ValueError(
                f"--reward must be one of {', '.join(known)}, {_OUTSIDE}, got '{shown(name)}'; "
                "others need --model"
            )


class ShapesSource:
    """A `Source`; ValueError or TypeError naming an option that is wrong."""

    has_reward = True
    video: str | None = None

    def __init__(self, command: Sample):
        model = command.converted.model
        without = "without --model" if model is None else f"with --model {model}"
        outside = [name for name in command.reward if is_outside(name)]
        for name, value in vars(command.converted).items():
            if name not in ("model", "reward_timeout") and value != getattr(Converted, name):
                raise ValueError(f"{settings.flag(name)} has no effect {without}, got {value}")
        wait = command.converted.reward_timeout
        if wait is not None and not outside:
            raise ValueError(f"--reward-timeout wants --reward {_OUTSIDE}, got {wait}")
        if outside and command.task != "counts":
            raise ValueError(
                f"--task {command.task} cannot be with --reward {shown(outside[0])}: a task brings "
                f"its own reward along"
            )
        mesh = devices.spread(command.devices).mesh
        if mesh is not None and mesh.shape.get("token", 1) > 1:
            raise ValueError(f"--mesh: token has no effect {without}, got {command.devices.mesh}")
        self._model = str(model or "shapes")
        self._flow = shapes.MODELS[self._model]
        self._files = weights.chosen("--weights", command.weights, self._flow)
        given = {n: file for n, file in self._files.items() if file != weights.packaged(n)}
        digests = [f"{name} {weights.sha256(file)}" for name, file in given.items()]
        self._task = TASKS[command.task]
        self.named: dict[str, Any] = {"weights": digests} if digests else {}
        if command.task != "counts":
            self.named["task"] = command.task
        if self._model != "shapes":
            self.named["model"] = self._model
        self.prompts = prompts.collect(command.prompt, command.prompts_file, self.slug)
        presets.check("method", command.method)
        base = preset_files.settings_of(command.preset, command.method, self._model)
        names, options = command.reward, command.given
        combined.check(names, command.combining)
        _check_names(names)
        combined.check_gradient(options, outside)
        if names and "scorer" in given and len(outside) == len(names):
            raise ValueError(
                f"--weights of the scorer have no effect with --reward {shown(outside[0])}, got "
                f"{given['scorer']}"
            )
        if names:
            base = dataclasses.replace(base, reward=options.pop("reward"))
        self.settings = presets.resolve_from(base, command.method, options)
        self.rewards: dict[str, Sequence[Path]] = dict.fromkeys(names or [self.settings.reward], ())
        self.named |= combined.named(names, command.combining)
        self.search = presets.build(command.method, self.settings)
        self.evaluations = presets.evaluations(self.settings)
        # Last, for a module may do anything when it is imported, and a judge is asked.
        parts: list[RewardSource] = [
            HostFunction(name, wait) if name in outside
            else _Measure(name, self._task, self._files["scorer"])
            for name in self.rewards
        ]  # fmt: skip
        self.named |= versions(parts)
        self._pools = {
            prompt: combined.pool(names, command.combining, self.slug(prompt), self.named)
            for prompt in self.prompts
        }
        self._reward = parts[0]
        if len(parts) > 1:
            self._reward = combined.Combined(names, parts, command.combining, self._pools)

    def slug(self, prompt: str) -> str:
        self._task.parse(prompt)
        return prompts.slug(prompt) + f"-{self._task.name}" * ("task" in self.named)

    def named_of(self, prompt: str) -> dict[str, Any]:
        return combined.said(self._pools[prompt])

    def load(self, prompts: Sequence[str]) -> LoadedSource:
        flow = shapes.load_flow(self._files[self._flow], self.settings.guidance, self._model)
        conds = [self._task.encode(one) for one in prompts]
        if self.settings.reward in settings.CHOICES["reward"]:
            reward = self._task.load_reward(self.settings.reward, self._files["scorer"])
            return LoadedSource(self._task.flow(flow), reward, list(map(PromptTask, conds)))
        of_all, told = self._reward.load(prompts)
        tasks = [PromptTask(*one) for one in zip(conds, told, strict=True)]
        return LoadedSource(self._task.flow(flow), of_all, tasks)

    def save(self, path: Path, image: np.ndarray) -> None:
        pictures.save_image(path, image)

    def thumbnails(self, flow: Flow) -> Callable[[Any], Any]:
        return flow.decode

    def heldout(self, prompt: str, image: np.ndarray) -> dict[str, Any]:
        return {"heldout": verdict.judge(prompt, image, self._task)}

    def report(self, values: dict[str, Any]) -> list[str]:
        return [
            f"asked   {self._task.words(captions.caption(captions.parse(values['prompt'])))}",
            f"seen    {verdict.describe(values['heldout'])}, says the held-out checker",
        ]
