"""What is counted in the detections of OWLv2, in plain PyTorch."""

import math

import torch

from flowsde.models.owlv2.rewards import Counting


def counted(logits: torch.Tensor, boxes: torch.Tensor, counting: Counting) -> torch.Tensor:
    """Of each class, in one image; boxes by centre and sides."""
    best, labels = logits.max(-1)
    order = best.argsort(descending=True)
    best, labels, boxes = best[order], labels[order], boxes[order]
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    inner = torch.minimum(high[:, None], high[None]) - torch.maximum(low[:, None], low[None])
    shared, area = inner.clamp(min=0).prod(-1), boxes[:, 2:].prod(-1)
    over = shared / (area[:, None] + area[None] - shared) > counting.overlap
    over &= labels[:, None] == labels[None]
    kept = torch.ones(len(best), dtype=torch.bool)
    for i in range(len(best)):
        if kept[i]:
            kept[i + 1 :] &= ~over[i, i + 1 :]
    edge = math.log(counting.threshold / (1 - counting.threshold))
    sure = ((best - edge) / counting.softness).sigmoid() * kept
    return torch.zeros(logits.shape[-1]).index_add(0, labels, sure)
