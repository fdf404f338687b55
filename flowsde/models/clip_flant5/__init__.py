"""CLIP-FlanT5, which answers questions on an image: VQAScore's own model."""

from flowsde.models.clip_flant5.model import FAMILY as FAMILY
