"""InstructBLIP, which answers questions on an image: VQAScore by another model."""

from flowsde.models.instructblip.model import FAMILY as FAMILY
