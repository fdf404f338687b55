"""The causal autoencoder of videos: in Wan 2.1 and Qwen-Image."""

from flowsde.models.autoencoder_wan.model import FAMILY as FAMILY
