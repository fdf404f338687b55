"""CLIP, whole or one of its towers, and rewards of it."""

from flowsde.models.clip.model import (
    CLIP,
    CLIPConfig,
    CLIPText,
    CLIPTextConfig,
    CLIPVision,
    CLIPVisionConfig,
)
from flowsde.models.family import Family

TEXT = Family(name="clip_text", config=CLIPTextConfig, build=CLIPText)
VISION = Family(name="clip_vision", config=CLIPVisionConfig, build=CLIPVision)
FAMILY = Family(name="clip", config=CLIPConfig, build=CLIP)
