"""The embedded networks: how each is trained, and what its model card says of it."""

import dataclasses
from typing import Any, NamedTuple

from flax import nnx

from flowsde._text import shown
from flowsde.shapes import load_flow, weights
from flowsde.shapes.captions import COLOURS, KINDS, MAX_COUNT, MAX_GROUPS, caption
from flowsde.shapes.data import HELD_OUT, SIZE
from flowsde.shapes.flow_task import flow_task
from flowsde.shapes.model import ModelConfig
from flowsde.shapes.scorer import ScorerConfig
from flowsde.shapes.scorer_task import scorer_task
from flowsde.shapes.train import Task, TrainConfig
from flowsde.shapes.turbo_task import STEPS, turbo_task

_WORLD = (
    f"Procedural {SIZE}x{SIZE} RGB scenes (`flowsde.shapes.data`): anti-aliased, non-touching "
    f"{', '.join(k + 's' for k in KINDS[:-1])} and {KINDS[-1]}s in {', '.join(COLOURS)}, of "
    f"varying size and place on a dark background. Scene i of seed s depends on (s, i) alone."
)
_CAPTIONS = (
    f"Captions name one (a third) or {MAX_GROUPS} groups of 1 to {MAX_COUNT} objects. "
    f"{len(HELD_OUT)} (count, colour, shape) triples never occur in training: "
    f"{'; '.join(caption([g]) for g in sorted(HELD_OUT))}."
)


class Network(NamedTuple):
    """An embedded network: what makes its task, its sizes, how the packaged weights were trained,
    and text of its card."""

    task: Any
    sizes: Any
    recipe: TrainConfig
    title: str
    architecture: str
    data: str
    use: str


def _packaged_flow() -> str:
    """Name and hash of the file that the embedded flow is loaded from."""
    path = weights.packaged("shapes")
    return f"{path.name} {weights.sha256(path)}"


def _scorer_task(sizes: ScorerConfig) -> Task:
    return scorer_task(sizes, load_flow(), _packaged_flow())


def _turbo_task(sizes: ModelConfig) -> Task:
    # The sizes are the teacher's. Optimisers tell parameters by the names in nested dicts.
    flow = load_flow()
    teacher = dataclasses.replace(flow, params=nnx.to_pure_dict(flow.params))
    return turbo_task(teacher, _packaged_flow())


NETWORKS = {
    "shapes": Network(
        flow_task,
        ModelConfig(),
        TrainConfig(),
        "text-to-image flow of the shapes world",
        "Convolutional stem and head around a transformer over pixel patches with the caption's "
        "words as context tokens and adaLN time conditioning (`flowsde.shapes.model`, Flax NNX). "
        "It predicts the velocity noise - data of the linear interpolant; a tenth of the captions "
        "is dropped, so that classifier-free guidance works.",
        f"{_WORLD} {_CAPTIONS}",
        "Demonstrations and measurements of inference-time search. It knows nothing but these "
        "captions, and gets the counts wrong often, on purpose: that is what search is to mend.",
    ),
    "turbo": Network(
        _turbo_task,
        ModelConfig(),
        TrainConfig(
            steps=4000,
            learning_rate=2e-3,
            adam_learning_rate=2e-4,
            warmup=50,
            ema=0.995,
            save_every=100,
            sheet_every=1000,
        ),
        "few-step text-to-image flow of the shapes world",
        "The network of `shapes`, distilled from it by distribution matching "
        f"(`flowsde.shapes.turbo_task`): it samples in {STEPS} steps of Euler's method, and "
        "its x - t u is a sharp picture at every time.",
        f"{_WORLD} {_CAPTIONS}",
        "The kind of model that people run, few-step distilled, for demonstrations and "
        "measurements of inference-time search. `--model shapes-turbo` samples it.",
    ),
    "scorer": Network(
        _scorer_task,
        ScorerConfig(gaussian=True),
        TrainConfig(steps=6000, batch_size=48, adam_learning_rate=3e-3, warmup=100),
        "given reward of the shapes world",
        "Convolutional network whose soft detections are summed over an 8x8 grid and read out as "
        "log-probabilities of the count of each colour and shape: a discrete Gaussian about the "
        "sum, with learned precision and corrections (`flowsde.shapes.scorer`, Flax NNX).",
        f"{_WORLD} Two thirds of the scenes are captions', a quarter of those with triples that "
        "the flow never saw, and about half with one object too many or too few; the others hold 0 "
        "to 12 objects of any kind. A quarter of the pictures are the flow's posterior means of "
        "such scenes at random times; many of the others are damaged, blended, blurred, faded and "
        "made noisy (`flowsde.shapes.scorer_task`).",
        "The reward that searches maximise. Judge results by `flowsde.shapes.checker`, which "
        "shares no weights and no code with it.",
    ),
}


def network_named(name: str) -> Network:
    """An embedded network; ValueError names those that there are."""
    if name not in NETWORKS:
        raise ValueError(f"NETWORK must be one of {', '.join(NETWORKS)}, got '{shown(name)}'")
    return NETWORKS[name]


def make_task(name: str) -> Task:
    """The task of an embedded network."""
    network = network_named(name)
    return network.task(network.sizes)
