"""Qwen3 without its head, as an encoder of texts."""

from flowsde.models.qwen3.model import FAMILY as FAMILY
