"""CLIP, whole or one of its towers, and rewards of it."""

from flowsde.models.clip.model import FAMILY as FAMILY
from flowsde.models.clip.model import HPSV2 as HPSV2
from flowsde.models.clip.model import HPSV2_1 as HPSV2_1
from flowsde.models.clip.model import TEXT as TEXT
from flowsde.models.clip.model import VISION as VISION
