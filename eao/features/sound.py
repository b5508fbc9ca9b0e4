"""Gathering the decoded sound of a file: mono at 16 kHz, on the clock of its timestamps."""

from __future__ import annotations

import shutil
import tempfile
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eao.errors import MediaError
from eao.features.container import LATE_AUDIO
from eao.features.limits import Budget

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

SAMPLE_RATE = 16_000
"""Hz, of all sound after decoding."""

_SAMPLES_IN_MEMORY = 600 * SAMPLE_RATE  # ten minutes, 38 MB; what is longer goes to a temporary file
_JUMP = 0.5  # seconds by which timestamps go back only where recordings were joined


class Sound:
    """Gathers decoded sound as mono 16 kHz float32, of which long ones lie in a temporary file without a name.

    Where the timestamps leave a gap there is silence. All channels are mixed down as FFmpeg does (the low-frequency
    channel is left out), scaled so that nothing exceeds full scale.

    Attributes:
        samples: (n,) float32 once `finish` was called, None if there are none; a map of `file` if that is used.
        file: the temporary file.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.samples: NDArray[np.float32] | None = None
        self.file: IO[bytes] | None = None
        self.start: float | None = None
        self._expected = 0.0  # time of the next sample, in the file's own time
        self._parts: list[NDArray[np.float32]] = []
        self._count = 0
        self._resampler: Any = None
        self._form: tuple[str, str, int] | None = None  # of the frames that the resampler takes

    def add(self, frame: AudioFrame) -> None:
        """Take the next frame.

        Raises:
            MediaError: if the sound is longer than the limit, or is no sound.
        """
        time = frame.time
        if self.start is None:
            self.start = self._expected = time if time is not None else 0.0
        elif time is not None and (time > self._expected + LATE_AUDIO or time < self._expected - _JUMP):
            self.budget.duration(time - self.start)
            self._flush()
            self._add_silence(time - self._expected)
            self._expected = time
        self._expected += frame.samples / frame.sample_rate
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form:  # the stream may change its rate or layout
            self._flush()
            self._form = form
        if self._resampler is None:
            self._resampler = self._new_resampler()
        frame.pts = None  # the resampler counts samples itself
        self._append(self._resampler.resample(frame))
        self.budget.duration(self._count / SAMPLE_RATE)

    def finish(self, origin: float | None) -> None:
        """Set `samples`, with silence before them if the sound starts later than `origin` seconds."""
        self._flush()
        if self._count == 0:
            return
        late = (self.start or 0.0) - origin if origin is not None else 0.0
        if late > LATE_AUDIO:
            self.budget.duration(late)
            self._delay(round(late * SAMPLE_RATE))
        if self.file is None:
            self.samples = np.concatenate(self._parts)
        else:
            self.file.truncate(4 * self._count)  # silence at the end may not have been written
            self.file.flush()
            self.samples = np.memmap(self.file, np.float32, "r", shape=(self._count,))
        self._parts.clear()

    @staticmethod
    def _new_resampler() -> Any:
        from av.audio.resampler import AudioResampler

        return AudioResampler("flt", "mono", SAMPLE_RATE, options={"rematrix_maxval": "1"})

    def _flush(self) -> None:
        if self._resampler is not None:
            self._append(self._resampler.resample(None))
            self._resampler = None

    def _append(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            samples = frame.to_ndarray().reshape(-1).astype(np.float32, copy=False)
            # A damaged stream may decode to infinities, which would spoil the whole spectrogram.
            if not np.isfinite(samples).all():
                raise MediaError(
                    f"{self.budget.path}: its sound decodes to values that are no numbers", "encode it again"
                )
            self._reserve(samples.size)
            if self.file is None:
                self._parts.append(samples)
            else:
                self.file.write(samples.data)

    def _add_silence(self, seconds: float) -> None:
        if seconds > 0:
            count = round(seconds * SAMPLE_RATE)
            self._reserve(count)
            if self.file is None:
                self._parts.append(np.zeros(count, np.float32))
            else:
                self.file.seek(4 * count, 1)  # a hole in the file reads as zeros and takes no room

    def _reserve(self, count: int) -> None:
        """Count samples that are to come, and move to a file if they are many."""
        self._count += count
        if self.file is None and self._count > _SAMPLES_IN_MEMORY:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the samples)
            for part in self._parts:
                self.file.write(part.data)
            self._parts.clear()

    def _delay(self, count: int) -> None:
        """Put silence before all samples."""
        self._reserve(count)
        if self.file is None:
            self._parts.insert(0, np.zeros(count, np.float32))
        else:
            with self.file as undelayed:
                self.file = tempfile.TemporaryFile()  # noqa: SIM115
                undelayed.seek(0)
                self.file.seek(4 * count)
                shutil.copyfileobj(undelayed, self.file, 2**20)
