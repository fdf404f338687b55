"""Stable Diffusion 3 and 3.5: the transformer, its times, guidance, and the whole pipeline."""

from flowsde.models.sd3.model import FAMILY as FAMILY
from flowsde.models.sd3.pipeline import PIPELINE as PIPELINE
from flowsde.models.sd3.sampled import SAMPLING as SAMPLING
