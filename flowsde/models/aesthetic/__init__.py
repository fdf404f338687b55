"""The aesthetic head on CLIP features (LAION)."""

from flowsde.models.aesthetic.model import AestheticConfig, AestheticHead
from flowsde.models.family import Family

FAMILY = Family(name="aesthetic", config=AestheticConfig, build=AestheticHead)
