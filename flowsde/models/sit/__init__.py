"""SiT: class-conditional, on latents of an autoencoder."""

from flowsde.models.sit.model import FAMILY as FAMILY
from flowsde.models.sit.sampled import SAMPLING as SAMPLING
