"""FLUX.1: the transformer, its schedule, and the whole pipeline."""

from flowsde.models.flux.model import FAMILY as FAMILY
from flowsde.models.flux.pipeline import PIPELINE as PIPELINE
from flowsde.models.flux.sampled import SAMPLING as SAMPLING
