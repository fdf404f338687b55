"""Videos as files: MP4 by the extra ``video``, or animated WebP without it."""

import functools
from fractions import Fraction
from pathlib import Path

import numpy as np

from flowsde._files import replacing
from flowsde.pictures import pixels

MP4, WEBP = "mp4", "webp"
_ENCODER = "libx264"
_CRF = "18"
"""Constant quality of H.264, at which a video looks like its frames."""
_QUALITY = 90
_COLOURS = {"colorspace": 6, "color_primaries": 1, "color_trc": 13, "color_range": 1}
"""Of sRGB frames, as FFmpeg numbers them: players that are not told guess by the size."""


@functools.cache
def kind() -> str:
    """The kind of video that can be written here: "mp4" or "webp"."""
    try:
        import av

        av.codec.Codec(_ENCODER, "w")
    except (ImportError, ValueError):  # Builds of FFmpeg may lack the encoder.
        return WEBP
    return MP4


def beside(picture: str, kind: str) -> str:
    """Name of the video whose first frame a picture is: "image-2.png" is of "video-2.mp4"."""
    return f"video{picture.removeprefix('image').removesuffix('.png')}.{kind}"


def save_video(path: Path, video: np.ndarray, fps: float) -> None:
    """Write a video, of the kind that the file's name says.

    Args:
      path: that ends in .mp4 or .webp.
      video: RGB float [frames, height, width, 3] in [-1, 1].
      fps: frames a second.

    Raises:
      FloatingPointError: the video has values that are not finite.
    """
    if not np.isfinite(video).all():
        raise FloatingPointError("the model's video has numbers that are not finite")
    write = _write_mp4 if path.suffix == f".{MP4}" else _write_webp
    with replacing(path) as temporary:
        write(temporary, pixels(video), fps)


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    import av

    height, width = frames.shape[1:3]
    with av.open(str(path), "w", format=MP4) as file:
        rate = Fraction(fps).limit_denominator(1000)
        stream = file.add_stream(_ENCODER, rate=rate, options={"crf": _CRF})
        stream.height, stream.width = height, width
        # Most players want colours at half the size, for which sides are even.
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        for name, value in _COLOURS.items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def _write_webp(path: Path, frames: np.ndarray, fps: float) -> None:
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in frames)
    # Whole milliseconds, rounded so that the whole lasts as long as it should.
    ends = np.round(np.arange(len(frames) + 1) * 1000.0 / fps).astype(int)
    first.save(
        path, format="WEBP", save_all=True, append_images=others, loop=0, quality=_QUALITY,
        duration=np.diff(ends).tolist(),
    )  # fmt: skip
