"""Z-Image and Z-Image-Turbo: the transformer, its schedule, and the whole pipeline."""

from flowsde.models.zimage.model import FAMILY as FAMILY
from flowsde.models.zimage.pipeline import PIPELINE as PIPELINE
from flowsde.models.zimage.sampled import SAMPLING as SAMPLING
