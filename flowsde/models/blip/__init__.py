"""ImageReward, a BLIP that scores how well an image shows what its prompt says."""

from flowsde.models.blip.model import FAMILY as FAMILY
