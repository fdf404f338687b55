"""FLUX.2-klein: the transformer, its schedule, and the whole pipeline."""

from flowsde.models.flux2.model import FAMILY as FAMILY
from flowsde.models.flux2.pipeline import PIPELINE as PIPELINE
from flowsde.models.flux2.sampled import SAMPLING as SAMPLING
