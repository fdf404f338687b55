"""The embedded model as the source of a command."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowsde import shapes
from flowsde.cli import pictures, preset_files, presets, prompts, settings
from flowsde.cli.options import Converted, Sample
from flowsde.cli.sources.base import LoadedSource, PromptTask
from flowsde.flow import Flow
from flowsde.shapes import captions, verdict, weights
from flowsde.shapes.tasks import TASKS


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
        self.settings = presets.resolve_from(base, command.method, command.given)
        self.search = presets.build(command.method, self.settings)
        self.evaluations = presets.evaluations(self.settings)

    def slug(self, prompt: str) -> str:
        self._task.parse(prompt)
        return prompts.slug(prompt) + f"-{self._task.name}" * ("task" in self.named)

    def load(self, prompts: Sequence[str]) -> LoadedSource:
        flow = shapes.load_flow(self._files[self._flow], self.settings.guidance, self._model)
        reward = self._task.load_reward(self.settings.reward, self._files["scorer"])
        tasks = [PromptTask(self._task.encode(one)) for one in prompts]
        return LoadedSource(self._task.flow(flow), reward, tasks)

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
