"""Qwen3-VL, a language model that sees images: a judge of them."""

from flowsde.models.qwen3_vl.model import FAMILY as FAMILY
