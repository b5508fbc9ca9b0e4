"""Rendered clips: their streams, their length, and that the motion in the caption is the motion in the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from eao.demo import render
from eao.demo.captions import MOTIONS, OPPOSITES
from eao.demo.render import Clip, frames, load_picture, load_sound, render_clip, sound_track
from eao.errors import DataError, MediaError


@pytest.fixture(scope="module")
def picture(miniature: Path) -> Image.Image:
    return load_picture(miniature / "animals/dog.png")


def silent(motion: str) -> Clip:
    return Clip(f"dog-{motion}", motion, None, None, has_audio=False)


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]


def place_and_size(frame: np.ndarray) -> tuple[float, float, int]:
    """Centroid x, y and the number of pixels of the dark red ellipse."""
    rows, columns = np.nonzero((frame[..., 0] > 120) & (frame[..., 1] < 90) & (frame[..., 2] < 90))
    return columns.mean(), rows.mean(), rows.size


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_stamp_moves_as_the_caption_says(motion: str, picture: Image.Image, tmp_path: Path) -> None:
    render_clip(silent(motion), picture, tmp_path / "clip.mp4")
    decoded = decode(tmp_path / "clip.mp4")
    assert len(decoded) == render.FRAMES
    assert decoded[0].shape == (render.SIZE, render.SIZE, 3)
    x, y, size = np.array([place_and_size(frame) for frame in decoded]).T
    steps = {"left": -x, "right": x, "up": -y, "down": y, "growing": size, "shrinking": -size}
    assert np.all(np.diff(steps[motion]) > 0)
    for moving, values in {"left right": x, "up down": y}.items():
        if motion in moving.split():
            assert np.ptp(values) > 0.35 * render.SIZE
        else:
            assert np.ptp(values) < 0.03 * render.SIZE
    if motion in ("growing", "shrinking"):
        assert size.max() > 5 * size.min()


@pytest.mark.parametrize("pair", OPPOSITES)
def test_opposite_motions_show_the_same_frames_in_opposite_order(pair: tuple[str, str], picture: Image.Image) -> None:
    forth, back = (list(frames(Clip("same", motion, None, None, has_audio=False), picture)) for motion in pair)
    for one, other in zip(forth, reversed(back), strict=True):
        assert one.tobytes() == other.tobytes()


def test_the_streams_are_h264_and_aac_of_the_same_length(miniature: Path, picture: Image.Image, tmp_path: Path) -> None:
    clip = Clip(
        "dog-left", "left", miniature / "animals/dog_desc_fr.ogg", miniature / "animals/dog.ogg", has_audio=True
    )
    render_clip(clip, picture, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt, float(video.average_rate)) == (
            "h264",
            "yuv420p",
            render.FPS,
        )
        assert (audio.codec_context.name, audio.rate, audio.layout.name) == ("aac", render.SAMPLE_RATE, "mono")
        assert float(video.duration * video.time_base) == pytest.approx(render.SECONDS, abs=0.01)
        # AAC comes in blocks of 1,024 samples.
        assert float(audio.duration * audio.time_base) == pytest.approx(render.SECONDS, abs=0.1)


def test_the_voice_is_heard_in_the_file(miniature: Path, picture: Image.Image, tmp_path: Path) -> None:
    clip = Clip("dog-left", "left", miniature / "animals/dog_desc_fr.ogg", None, has_audio=True)
    render_clip(clip, picture, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    spectrum = np.abs(np.fft.rfft(heard))
    loudest = np.fft.rfftfreq(heard.size, 1 / render.SAMPLE_RATE)[spectrum.argmax()]
    assert loudest == pytest.approx(440, abs=5)
    assert 0.4 < np.mean(np.abs(heard) > 0.05) * render.SECONDS < 0.6


def test_a_clip_without_audio_has_no_audio_stream(picture: Image.Image, tmp_path: Path) -> None:
    render_clip(silent("left"), picture, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert not container.streams.audio


def test_a_clip_depends_on_its_name_and_the_seed_alone(picture: Image.Image, tmp_path: Path) -> None:
    for name, seed in (("once", 0), ("again", 0), ("other", 1)):
        render_clip(silent("growing"), picture, tmp_path / f"{name}.mp4", seed)
    once, again, other = ((tmp_path / f"{name}.mp4").read_bytes() for name in ("once", "again", "other"))
    assert once == again
    assert once != other


@pytest.mark.parametrize("seconds", [0.05, 2.9, 3.0, 7.0])
def test_a_recording_of_any_length_fits(seconds: float, write_tone: Callable[..., None], tmp_path: Path) -> None:
    write_tone(tmp_path / "voice.ogg", 200.0, seconds)
    track = sound_track(Clip("a", "left", tmp_path / "voice.ogg", tmp_path / "voice.ogg", has_audio=True))
    assert track.shape == (round(render.SECONDS * render.SAMPLE_RATE),)
    assert track.dtype == np.float32
    assert 0.5 < np.abs(track).max() <= 1.0


def test_a_silent_effect_is_left_out_and_a_silent_voice_refused(
    write_tone: Callable[..., None], tmp_path: Path
) -> None:
    write_tone(tmp_path / "voice.ogg")
    write_tone(tmp_path / "silence.ogg", gain=0.0)
    assert load_sound(tmp_path / "silence.ogg").size == 0
    assert sound_track(Clip("a", "left", tmp_path / "voice.ogg", tmp_path / "silence.ogg", has_audio=True)).any()
    with pytest.raises(MediaError, match="silent"):
        sound_track(Clip("a", "left", tmp_path / "silence.ogg", None, has_audio=True))


@pytest.mark.parametrize("content", [b"", b"OggS no recording", b"\x00" * 500])
def test_a_broken_recording_leaves_no_file(content: bytes, picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "voice.ogg").write_bytes(content)
    with pytest.raises(MediaError, match=r"voice\.ogg"):
        render_clip(Clip("a", "left", tmp_path / "voice.ogg", None, has_audio=True), picture, tmp_path / "out/a.mp4")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken", b"<svg"])
def test_a_broken_picture_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png"):
        load_picture(tmp_path / "broken.png")


def test_a_transparent_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "empty.png")
    with pytest.raises(DataError, match="transparent"):
        load_picture(tmp_path / "empty.png")


@pytest.mark.parametrize(("size", "mode"), [((1, 1), "RGBA"), ((900, 3), "RGB"), ((3, 900), "L"), ((500, 400), "P")])
def test_pictures_of_any_shape_and_mode_render(size: tuple[int, int], mode: str, tmp_path: Path) -> None:
    Image.new("RGBA", size, (10, 20, 30, 255)).convert(mode).save(tmp_path / "odd.png")
    loaded = load_picture(tmp_path / "odd.png")
    assert loaded.mode == "RGBA"
    assert max(loaded.size) <= render.SIZE
    assert all(frame.size == (render.SIZE, render.SIZE) for frame in frames(silent("growing"), loaded))


@pytest.mark.parametrize("unit", ["", "pt"])
def test_an_svg_picture_is_drawn(unit: str, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" width="40{unit}" height="20{unit}">'
    (tmp_path / "a.svg").write_text(drawing + '<rect width="40" height="20" fill="red"/></svg>', encoding="utf-8")
    loaded = load_picture(tmp_path / "a.svg")
    assert max(loaded.size) == render.SIZE
    assert loaded.getpixel((loaded.width // 2, loaded.height // 2)) == (255, 0, 0, 255)


def test_a_broken_svg_is_named(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    (tmp_path / "broken.svg").write_text("<svg", encoding="utf-8")
    with pytest.raises(DataError, match=r"broken\.svg"):
        load_picture(tmp_path / "broken.svg")
