"""Z-Image and Z-Image-Turbo as ``flowsde sample --model`` takes them."""

from flowsde.models.common.guided_pictures import GuidedPictures
from flowsde.models.family import Sampling
from flowsde.models.zimage.pipeline import LENGTH, PIPELINE, ZImagePipeline, check_length


class SampledZImage(GuidedPictures):
    """A Z-Image; see `flowsde.models.family.Sampled`."""

    opened = ZImagePipeline
    length = LENGTH
    check_length = staticmethod(check_length)


SAMPLING = Sampling(of=PIPELINE.name, title="a Z-Image", make=SampledZImage)
