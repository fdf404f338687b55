"""The embedded model as the source of a command."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsde import shapes
from flowsde.cli import devices, pictures, preset_files, presets, prompts, settings
from flowsde.cli.options import Converted, Sample
from flowsde.cli.sources import combined
from flowsde.cli.sources.base import LoadedSource, PromptTask
from flowsde.flow import Flow
from flowsde.rewards.base import Reward, device
from flowsde.shapes import captions, verdict, weights
from flowsde.shapes.tasks import TASKS, Challenge


class _Measure(NamedTuple):
    """One of several rewards of the embedded model, as a `RewardSource`."""

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


class ShapesSource:
    """A `Source`; ValueError or TypeError naming an option that is wrong."""

    has_reward = True
    video: str | None = None

    def __init__(self, command: Sample):
        model = command.converted.model
        without = "without --model" if model is None else f"with --model {model}"
        for name, value in vars(command.converted).items():
            if name != "model" and value != getattr(Converted, name):
                raise ValueError(f"{settings.flag(name)} has no effect {without}, got {value}")
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
        names, given = command.reward, command.given
        combined.check(names, command.combining)
        for name in names:
            presets.check("reward", name)
        if len(names) > 1:
            base, given = dataclasses.replace(base, reward=given.pop("reward")), given
        self.settings = presets.resolve_from(base, command.method, given)
        self.rewards: dict[str, Sequence[Path]] = dict.fromkeys(names or [self.settings.reward], ())
        self.named |= combined.named(names, command.combining)
        self._pools = {
            prompt: combined.pool(names, command.combining, self.slug(prompt))
            for prompt in self.prompts
        }
        self._combining = command.combining
        self.search = presets.build(command.method, self.settings)
        self.evaluations = presets.evaluations(self.settings)

    def slug(self, prompt: str) -> str:
        self._task.parse(prompt)
        return prompts.slug(prompt) + f"-{self._task.name}" * ("task" in self.named)

    def named_of(self, prompt: str) -> dict[str, Any]:
        return combined.said(self._pools[prompt])

    def load(self, prompts: Sequence[str]) -> LoadedSource:
        flow = shapes.load_flow(self._files[self._flow], self.settings.guidance, self._model)
        conds = [self._task.encode(one) for one in prompts]
        if len(self.rewards) == 1:
            reward = self._task.load_reward(self.settings.reward, self._files["scorer"])
            return LoadedSource(self._task.flow(flow), reward, list(map(PromptTask, conds)))
        parts = [_Measure(name, self._task, self._files["scorer"]) for name in self.rewards]
        both = combined.Combined([*self.rewards], parts, self._combining, self._pools)
        of_both, told = both.load(prompts)
        tasks = [PromptTask(*one) for one in zip(conds, told, strict=True)]
        return LoadedSource(self._task.flow(flow), of_both, tasks)

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
