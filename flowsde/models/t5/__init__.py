"""T5, whole or its encoder, and UMT5's encoder."""

from flowsde.models.t5.model import ENCODER as ENCODER
from flowsde.models.t5.model import FAMILY as FAMILY
from flowsde.models.t5.model import UMT5 as UMT5
