"""Wan 2.1, text to video: the transformer, its times, and the whole pipeline."""

from flowsde.models.wan.model import FAMILY as FAMILY
from flowsde.models.wan.pipeline import PIPELINE as PIPELINE
from flowsde.models.wan.sampled import SAMPLING as SAMPLING
