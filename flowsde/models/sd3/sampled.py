"""Stable Diffusion 3 as ``flowsde sample --model`` takes it."""

from flowsde.models.common.guided_pictures import GuidedPictures
from flowsde.models.family import Sampling
from flowsde.models.sd3.pipeline import LENGTH, PIPELINE, SD3Pipeline, check_length


class SampledSD3(GuidedPictures):
    """A Stable Diffusion 3; see `flowsde.models.family.Sampled`."""

    opened = SD3Pipeline
    length = LENGTH
    check_length = staticmethod(check_length)


SAMPLING = Sampling(of=PIPELINE.name, title="a Stable Diffusion 3", make=SampledSD3)
