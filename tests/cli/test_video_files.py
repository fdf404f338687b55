"""Videos and their contact sheets as files, out of arrays."""

import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flowsde as fs
from flowsde.cli import video_files, video_sheet
from flowsde.cli.lineage import Shot, Trace
from flowsde.pictures import pixels


def smooth(frames, height=32, width=48):
    """A video that no encoder finds hard, of frames that all differ."""
    k, y, x = np.mgrid[0:frames, 0:height, 0:width].astype(np.float32)
    colours = (np.sin(x / 16 + k / 3), np.cos(y / 16 - k / 4), 0 * x + k / frames - 0.5)
    return np.stack(colours, axis=-1)


def read_mp4(path):
    """(frames, rate, seconds)."""
    pytest.importorskip("av")
    import av

    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        rate, seconds = float(stream.average_rate), float(stream.duration * stream.time_base)
        frames = [one.to_ndarray(format="rgb24") for one in file.decode(stream)]
        return np.stack(frames), rate, seconds


def close(found, video):
    """As far as eye and lossy files go: by less than 2 % of the range, on average."""
    assert found.shape == video.shape
    assert np.abs(found.astype(int) - pixels(video)).mean() < 4.0


@pytest.mark.parametrize(("height", "width", "fps"), [(32, 48, 16.0), (31, 47, 7.5)])
def test_mp4(tmp_path, height, width, fps):
    pytest.importorskip("av")
    video = smooth(9, height, width)
    video_files.save_video(tmp_path / "video.mp4", video, fps)
    found, rate, seconds = read_mp4(tmp_path / "video.mp4")
    close(found, video)
    assert rate == fps and seconds == pytest.approx(9 / fps, abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_mp4_says_how_its_colours_are_coded(tmp_path):
    """By BT.601, 6 in ITU-T H.273: the luma of red is 16 + 65.481."""
    pytest.importorskip("av")
    import av

    red = np.full((2, 32, 32, 3), -1.0, np.float32)
    red[..., 0] = 1.0
    video_files.save_video(tmp_path / "video.mp4", red, 16.0)
    with av.open(str(tmp_path / "video.mp4")) as file:
        frame = next(file.decode(video=0))
    assert frame.colorspace == 6
    assert frame.to_ndarray()[16, 16] == pytest.approx(81.481, abs=2.0)


@pytest.mark.parametrize("fps", [16.0, 7.5])
def test_webp(tmp_path, fps):
    video = smooth(9)
    video_files.save_video(tmp_path / "video.webp", video, fps)
    found, times = [], []
    with Image.open(tmp_path / "video.webp") as file:
        for i in range(file.n_frames):
            file.seek(i)
            found.append(np.asarray(file.convert("RGB")))
            times.append(file.info["duration"])
    close(np.stack(found), video)
    # Every frame is within a millisecond of its time: the roundings do not add up.
    np.testing.assert_allclose(np.cumsum(times), 1000 * np.arange(1, 10) / fps, atol=1.0)


def test_a_video_that_is_not_finite_is_refused(tmp_path):
    video = smooth(3)
    video[2, 0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="the model's video has numbers"):
        video_files.save_video(tmp_path / "video.webp", video, 16.0)
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_is_webp(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    video_files.kind.cache_clear()
    try:
        assert video_files.kind() == "webp"
    finally:
        video_files.kind.cache_clear()


def test_names_of_videos():
    found = [video_files.beside(f"image{end}.png", "mp4") for end in ("", "-2", "-10")]
    assert found == ["video.mp4", "video-2.mp4", "video-10.mp4"]


def greys(path, rows, columns):
    """The grey in the middle of each frame of a sheet of frames of 40 x 20."""
    with Image.open(path) as file:
        sheet = np.asarray(file.convert("RGB"))
    corner = (video_sheet._TOP, video_sheet._LEFT)
    high, wide = 28 + video_sheet._GAP, 40 + video_sheet._GAP
    middles = [[sheet[corner[0] + 10 + i * high, corner[1] + 20 + j * wide] for j in range(columns)]
               for i in range(rows)]  # fmt: skip
    middles = np.asarray(middles, int)
    assert (middles == middles[..., :1]).all()
    return middles[..., 0]


def flat(levels):
    """A video whose frames are each of one grey, of 0 to 255."""
    levels = np.asarray(levels, np.float32)[:, None, None, None]
    return np.broadcast_to(levels / 127.5 - 1.0, (len(levels), 20, 40, 3))


def test_a_sheet_has_frames_evenly_from_the_first_to_the_last(tmp_path):
    rows = [video_sheet.Row(["one"], flat(np.arange(17))),
            video_sheet.Row(["two"], flat(100 + np.arange(17)))]  # fmt: skip
    video_sheet.write_sheet(tmp_path / "frames.png", "title", rows)
    wanted = np.asarray([0, 3, 6, 10, 13, 16])
    np.testing.assert_array_equal(greys(tmp_path / "frames.png", 2, 6), [wanted, 100 + wanted])


def test_a_sheet_shows_the_steps_that_led_to_the_answer(tmp_path):
    """Latents of one number a frame; the line of the answer has seven steps, another has one."""
    trace = Trace(SimpleNamespace())
    for i in range(8):
        latents = np.full((2, 1, 1, 1), 10.0 * i, np.float32)
        parent = -1 if i in (0, 3) else 1 if i == 4 else i - 1
        reward = 0.25 if i == 7 else np.nan
        trace.shots.append(Shot("chain 1", i, 1 - i / 8, reward, i, parent, latents))

    def decode(x0):
        return jnp.broadcast_to(x0 / 127.5 - 1.0, (x0.shape[0], 2, 20, 40, 3))

    flow = fs.Flow.from_callable(lambda *_: None, None, (2, 1, 1, 1), decode=decode)
    result = SimpleNamespace(t=np.float32(0.125), reward=np.float32(0.25), image=flat([200, 210]))
    video_sheet.draw(tmp_path / "frames.png", "title", trace, result, flow)
    # 0, 1, 4, 5, 6 led to 7; of the five before the answer the sheet has four.
    found = greys(tmp_path / "frames.png", 5, 2)
    assert found[:-1, 0].tolist() in ([0, 10, 40, 60], [0, 10, 50, 60], [0, 40, 50, 60])
    np.testing.assert_array_equal(found[-1], [200, 210])
    np.testing.assert_array_equal(found[:-1, 0], found[:-1, 1])
    # An answer that no line accepted is alone.
    lost = SimpleNamespace(**vars(result) | {"t": np.float32(0.0)})
    video_sheet.draw(tmp_path / "frames.png", "title", trace, lost, flow)
    np.testing.assert_array_equal(greys(tmp_path / "frames.png", 1, 2), [[200, 210]])
