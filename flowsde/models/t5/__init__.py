"""T5, whole or its encoder."""

from flowsde.models.t5.model import ENCODER as ENCODER
from flowsde.models.t5.model import FAMILY as FAMILY
