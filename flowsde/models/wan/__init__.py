"""Wan 2.1, text to video: the transformer."""

from flowsde.models.wan.model import FAMILY as FAMILY
