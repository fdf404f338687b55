"""SiT: class-conditional, on latents of an autoencoder."""

from flowsde.flow import Flow
from flowsde.models.family import Family
from flowsde.models.sit.model import SiT, SiTConfig


def _flow(model: SiT, config: SiTConfig) -> Flow:
    return Flow.from_nnx(model, shape=(config.size, config.size, config.channels))


FAMILY = Family(name="sit", config=SiTConfig, build=SiT, flow=_flow)
