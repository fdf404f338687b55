"""The aesthetic head on CLIP features (LAION)."""

from flowsde.models.aesthetic.model import FAMILY as FAMILY
