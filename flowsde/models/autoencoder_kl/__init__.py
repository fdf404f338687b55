"""The KL autoencoder of latent models: in SD, SDXL, SD3, FLUX.1 and SiT."""

from flowsde.models.autoencoder_kl.model import FAMILY as FAMILY
