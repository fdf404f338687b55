"""FLUX.1: the transformer, its schedule, and the whole pipeline."""

from flowsde.models.family import Family
from flowsde.models.flux.model import Flux, FluxConfig

FAMILY = Family(name="flux", config=FluxConfig, build=Flux)
