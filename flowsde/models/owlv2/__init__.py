"""OWLv2, which finds what texts name in an image, and the reward that counts it."""

from flowsde.models.owlv2.model import FAMILY as FAMILY
