"""T5, whole or its encoder."""

from flowsde.models.family import Family
from flowsde.models.t5.model import T5, T5Config, T5Encoder

ENCODER = Family(name="t5_encoder", config=T5Config, build=T5Encoder)
FAMILY = Family(name="t5", config=T5Config, build=T5)
