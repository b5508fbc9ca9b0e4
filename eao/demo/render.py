"""Rendering stamps to clips: a picture in motion with its spoken description, as H.264 + AAC in mp4.

One clip is `SECONDS` of `SIZE` x `SIZE` pixels at `FPS` frames a second and 16 kHz mono sound. Everything random
(background, size, place, when the voice sets in) is drawn from a generator seeded with the clip's id, so a clip is the
same whenever and wherever it is rendered.
"""

from __future__ import annotations

import fractions
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eao.errors import DataError, MediaError, missing_dependency
from eao.files import atomic_path

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    Samples = npt.NDArray[np.float32]
    Generator = np.random.Generator

SIZE = 224
FPS = 12
SECONDS = 3.0
SAMPLE_RATE = 16_000
FRAMES = round(FPS * SECONDS)

# Sides of the stamp as shares of the frame: while it travels, and at the two ends of growing.
_TRAVELLING = (0.40, 0.55)
_SMALL, _LARGE = (0.18, 0.26), (0.80, 0.92)
_EFFECT_GAIN = 0.35


@dataclass(frozen=True)
class Clip:
    """What one clip shows and says.

    Attributes:
        id: the name of the file without suffix; also the seed of everything random in it.
        motion: a key of `captions.MOTIONS`.
        speech: a recording to speak, or None.
        effect: a sound to mix in, or None.
        has_audio: False renders a file without an audio stream, whatever the two above say.
    """

    id: str
    motion: str
    speech: Path | None
    effect: Path | None
    has_audio: bool


def generator(seed: int, name: str) -> Generator:
    """The random generator of one named thing."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little"))


def load_picture(path: Path) -> Image.Image:
    """A stamp's picture as RGBA, cut to what is not transparent, at most `SIZE` pixels wide and high.

    Raises:
        DataError: the file cannot be read or is empty.
        MissingDependencyError: for an SVG file without the package resvg-py.
    """
    from PIL import Image

    try:
        if path.suffix.lower() == ".svg":
            picture = Image.open(io.BytesIO(_rasterize(path))).convert("RGBA")
        else:
            with Image.open(path) as file:
                picture = file.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"cannot read the picture {path}: {error}") from None
    # Nearly transparent pixels, such as soft shadows, would leave the object small and off centre.
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    if box is None:
        raise DataError(f"the picture {path} is fully transparent")
    picture = picture.crop(box)
    return _scaled(picture, SIZE) if max(picture.size) > SIZE else picture


def load_sound(path: Path) -> Samples:
    """A recording as mono float32 samples at 16 kHz, its loudest sample at 0.8, without the silence around it.

    A silent recording (the package has some) gives an empty array.

    Raises:
        MediaError: the file cannot be decoded.
    """
    import av

    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    try:
        with av.open(str(path)) as container:
            frames = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in resampler.resample(frame)]
            frames += [part.to_ndarray()[0] for part in resampler.resample(None)]
    except (av.error.FFmpegError, IndexError, OSError, ValueError) as error:
        raise MediaError(f"cannot decode the recording {path}: {error}") from None
    samples = np.concatenate(frames).astype(np.float32) if frames else np.zeros(0, np.float32)
    peak = float(np.abs(samples).max(initial=0.0))
    if peak < 1e-4:
        return np.zeros(0, np.float32)
    samples = samples * np.float32(0.8 / peak)
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[loud[0] : loud[-1] + 1]


def render_clip(clip: Clip, picture: Image.Image, target: Path, seed: int = 0) -> None:
    """Write one clip as mp4, atomically.

    Raises:
        MediaError: a recording cannot be decoded, or the voice is silent.
    """
    import av

    samples = sound_track(clip, seed) if clip.has_audio else None
    with atomic_path(target) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        # One thread, since clips are rendered side by side; a keyframe a second keeps seeking cheap.
        video.options = {"preset": "ultrafast", "crf": "23", "g": str(FPS), "threads": "1"}
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono") if samples is not None else None
        if audio is not None:
            audio.bit_rate = 48_000
        for image in frames(clip, picture, seed):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None and samples is not None:
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            frame.pts, frame.time_base = 0, fractions.Fraction(1, SAMPLE_RATE)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))


def frames(clip: Clip, picture: Image.Image, seed: int = 0) -> Iterator[Image.Image]:
    """The clip's frames, RGB: the stamp in steady motion over a soft gradient."""
    random = generator(seed, clip.id)
    background = _background(random)
    steps = np.linspace(0.0, 1.0, FRAMES)
    if clip.motion in ("left", "up", "shrinking"):
        steps = steps[::-1]
    across = float(random.uniform(0.35, 0.65))
    if clip.motion in ("growing", "shrinking"):
        small, large = SIZE * random.uniform(*_SMALL), SIZE * random.uniform(*_LARGE)
        for step in steps:
            yield _pasted(background, _scaled(picture, small + step * (large - small)), 0.5, 0.5)
        return
    stamp = _scaled(picture, SIZE * random.uniform(*_TRAVELLING))
    for step in steps:
        x, y = (step, across) if clip.motion in ("left", "right") else (across, step)
        yield _pasted(background, stamp, x, y)


def sound_track(clip: Clip, seed: int = 0) -> Samples:
    """The clip's sound, `SECONDS` long: the voice after a short pause, the effect somewhere under it."""
    # Not the generator of the pictures, so that a clip looks the same whatever it says.
    random = generator(seed, f"{clip.id}:sound")
    track = np.zeros(round(SECONDS * SAMPLE_RATE), np.float32)
    if clip.effect is not None:
        _mix(track, load_sound(clip.effect) * np.float32(_EFFECT_GAIN), random, latest=1.0)
    if clip.speech is not None:
        speech = load_sound(clip.speech)
        if not speech.size:
            raise MediaError(f"the recording {clip.speech} is silent")
        _mix(track, speech, random, latest=0.6)
    return np.clip(track, -1.0, 1.0)


def _mix(track: Samples, samples: Samples, random: Generator, latest: float) -> None:
    room = max(0, track.size - samples.size)
    start = int(random.uniform(0.0, min(latest * SAMPLE_RATE, room)))
    samples = samples[: track.size - start].copy()
    fade = min(samples.size, SAMPLE_RATE // 50)
    # A recording cut short must not click.
    samples[samples.size - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    track[start : start + samples.size] += samples


def _background(random: Generator) -> Image.Image:
    from PIL import Image

    top, bottom = random.uniform(150, 245, size=(2, 1, 1, 3))
    if random.random() < 0.3:
        bottom = top
    ramp = np.linspace(0.0, 1.0, SIZE)[:, None, None]
    column = np.broadcast_to(top + ramp * (bottom - top), (SIZE, SIZE, 3))
    return Image.fromarray(np.ascontiguousarray(column).astype(np.uint8))


def _pasted(background: Image.Image, stamp: Image.Image, x: float, y: float) -> Image.Image:
    """The stamp on the background; x and y from 0 (left, top edge) to 1 (right, bottom edge)."""
    frame = background.copy()
    frame.paste(stamp, (round(x * (SIZE - stamp.width)), round(y * (SIZE - stamp.height))), stamp)
    return frame


def _scaled(picture: Image.Image, side: float) -> Image.Image:
    """The picture with its longer side `side` pixels long."""
    from PIL import Image

    factor = side / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BILINEAR)


def _rasterize(path: Path) -> bytes:
    try:
        import resvg_py
    except ImportError:
        raise missing_dependency("resvg-py", "demo", "drawing the SVG stamps") from None
    try:
        # Without a resolution, sizes given in points count as zero.
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=2 * SIZE, dpi=96.0, skip_system_fonts=True))
    except Exception as error:  # resvg's own error types are not public
        raise DataError(f"cannot draw the picture {path}: {error}") from None
