"""Counts by GroundingDINO and SAM, the given reward of Kim et al. (2025), to be served.

    pip install torch transformers
    flowsde serve-reward --reward grounded_counts:score --port 8321

A picture's reward is -sum (wanted - found)^2 over the classes of what the search gives as
``reward_cond``: "3 red circle, 2 blue square", in the singular, as the detector is asked for them.
Boxes are GroundingDINO's, each with a mask of SAM's; of masks that hide each other one counts.
"""

import os
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

DETECTOR = os.environ.get("DETECTOR", "IDEA-Research/grounding-dino-base")
SEGMENTER = os.environ.get("SEGMENTER", "facebook/sam-vit-base")
VERSION = f"{DETECTOR} and {SEGMENTER}"
"""Of the scores: say the revisions as well, if you pin them."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEAST = 0.2
"""Score of a box, and of the words that name it."""
SURE, SHARE = 0.32, 0.6
"""A box counts above this score, or above this share of its class's best."""


class Found(NamedTuple):
    """Objects of one picture: names [n], scores [n], masks bool [n, height, width]."""

    names: list[str]
    scores: np.ndarray
    masks: np.ndarray


def score(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Rewards, float32 [n], of pictures [n, height, width, 3] in [-1, 1], or of pixels, uint8."""
    if images.dtype != np.uint8:  # without as_pixels=True of `fs.rewards.remote`
        images = np.round(np.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)
    rewards = [reward(picture, prompt) for picture, prompt in zip(images, prompts, strict=True)]
    return np.asarray(rewards, np.float32)


def reward(picture: np.ndarray, prompt: str) -> float:
    """Of one picture, uint8 [height, width, 3]."""
    wanted = numbers(prompt)
    found = counts(detect(picture, list(wanted)), list(wanted))
    return float(-sum((number - found[name]) ** 2 for name, number in wanted.items()))


def numbers(prompt: str) -> dict[str, int]:
    """Wanted, by class in lower case."""
    parts = [re.fullmatch(r"\s*(\d+)\s+(.*\S)\s*", part) for part in str(prompt).split(",")]
    if None in parts:
        raise ValueError(f"a prompt must be as '3 red circle, 2 blue square', got {prompt!r}")
    return {part[2].lower(): int(part[1]) for part in parts if part}


def counts(found: Found, classes: Sequence[str]) -> dict[str, int]:
    """Of objects that are not parts of each other, by class."""
    names = np.asarray(found.names, object)
    kept: list[int] = []
    for name in classes:
        own = np.flatnonzero(names == name)
        best = found.scores[own].max(initial=0.0)
        own = own[(found.scores[own] > SHARE * best) | (found.scores[own] > SURE)]
        covered = np.zeros(found.masks.shape[1:], bool)
        # A box around several objects comes after each of them, and brings nothing new.
        for i in sorted(own, key=lambda i: found.masks[i].sum()):
            mask = found.masks[i]
            if (mask & ~covered).sum() > 0.5 * mask.sum():
                covered |= mask
                kept.append(i)
    seen = np.zeros(found.masks.shape[1:], bool)
    number = dict.fromkeys(classes, 0)
    # One object of two classes is of the surer one.
    for i in sorted(kept, key=lambda i: -found.scores[i]):
        if (found.masks[i] & seen).sum() < 0.5 * found.masks[i].sum():
            seen |= found.masks[i]
            number[found.names[i]] += 1
    return number


@cache
def loaded() -> tuple[Any, Any, Any, Any]:
    """Detector and segmenter, each with its processor."""
    from transformers import (
        AutoModelForMaskGeneration,
        AutoModelForZeroShotObjectDetection,
        AutoProcessor,
    )

    detector = AutoModelForZeroShotObjectDetection.from_pretrained(DETECTOR).eval().to(DEVICE)
    segmenter = AutoModelForMaskGeneration.from_pretrained(SEGMENTER).eval().to(DEVICE)
    read, cut = (AutoProcessor.from_pretrained(name) for name in (DETECTOR, SEGMENTER))
    return detector, read, segmenter, cut


@torch.inference_mode()
def detect(picture: np.ndarray, classes: Sequence[str]) -> Found:
    """Boxes of the classes, whose decoded words must be a class as it is written, and masks."""
    detector, read, segmenter, cut = loaded()
    size = picture.shape[:2]
    given = read(images=picture, text=f"{'. '.join(classes)}.", return_tensors="pt").to(DEVICE)
    said = read.post_process_grounded_object_detection(
        detector(**given), given["input_ids"], threshold=LEAST, text_threshold=LEAST,
        target_sizes=[size],
    )[0]  # fmt: skip
    own = [i for i, label in enumerate(said["text_labels"]) if label in classes]
    scores = said["scores"].float().cpu().numpy()[own]
    names = [said["text_labels"][i] for i in own]
    if not own:
        return Found(names, scores, np.zeros((0, *size), bool))
    boxes = said["boxes"][own].cpu()
    given = cut(images=picture, input_boxes=[boxes.tolist()], return_tensors="pt").to(DEVICE)
    made = segmenter(**given)
    masks = cut.post_process_masks(
        made.pred_masks.cpu(), given["original_sizes"].cpu(), given["reshaped_input_sizes"].cpu()
    )[0]
    # Of each box three masks, of a part and of the whole.
    return Found(names, scores, masks.bool().any(1).numpy())
