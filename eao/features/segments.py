"""Which clips a video is cut into, and the part of its features that belongs to each.

Features are computed once over the whole file and then cut, so that a clip's spectrogram is in dB below the loudest
moment of the *file*, as in HowTo100M. The rules:

- `whole`: the file is one clip.
- `windows:8`: windows of 8 seconds, one after the other. A rest of half a window or more is a clip of its own; a
  shorter one belongs to the window before it.
- `shots`: from cut to cut, as PySceneDetect finds them. Shots of under 1 second belong to the one before, those of over
  60 are cut into equal parts; `shots:2-20` sets both bounds.
- `subtitles`: each subtitle of the `.vtt` or `.srt` file beside the video, or in a folder (`subtitles:FOLDER`), is a
  clip, and its text the caption.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from eao.config import FeaturesConfig
from eao.data.sampling import crop_audio, video_rows
from eao.errors import ConfigError, DataError, MediaError
from eao.features.inputs import Source
from eao.features.subtitles import Cue, find_subtitles, read_subtitles

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures

# n rows of a stream, T spectrogram frames

SHORTEST_SHOT, LONGEST_SHOT = 1.0, 60.0
_HINT = "whole, windows:8 (seconds), shots, shots:1-60 (shortest and longest), subtitles or subtitles:FOLDER"


class Segment(NamedTuple):
    """One clip of a file.

    Attributes:
        id: of the clip.
        start: seconds in the file, rounded to milliseconds.
        end: seconds, after `start`.
        captions: what is said about it.
    """

    id: str
    start: float
    end: float
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClipRule:
    """How files are cut into clips.

    Attributes:
        kind: see the module.
        seconds: length of a window, or of the shortest shot.
        longest: of a shot.
        folder: of subtitles; None for those beside the videos.
    """

    kind: Literal["whole", "windows", "shots", "subtitles"] = "whole"
    seconds: float = 0.0
    longest: float = math.inf
    folder: Path | None = None

    @classmethod
    def parse(cls, text: str) -> ClipRule:
        """The rule that a user names.

        Raises:
            ConfigError: there is no such rule, or its numbers make no sense.
        """
        kind, _, argument = text.partition(":")
        if kind == "windows":
            return cls("windows", _positive(text, argument))
        if kind == "shots":
            low, _, high = argument.partition("-")
            shortest = _positive(text, low) if argument else SHORTEST_SHOT
            longest = _positive(text, high) if high else max(LONGEST_SHOT, 2 * shortest)
            if longest < 2 * shortest:
                raise ConfigError(f"--clips {text}: the longest shot must be twice the shortest, or more", _HINT)
            return cls("shots", shortest, longest)
        if kind == "subtitles":
            folder = Path(argument) if argument else None
            if folder is not None and not folder.is_dir():
                raise ConfigError(
                    f"--clips {text}: there is no folder {folder}", "name the folder of .vtt and .srt files"
                )
            return cls("subtitles", folder=folder)
        if text != "whole":
            raise ConfigError(f"there is no rule for clips {text!r}", f"known: {_HINT}")
        return cls()

    def __str__(self) -> str:
        """The rule as it is noted in the output, without what depends on the machine."""
        if self.kind == "windows":
            return f"windows:{self.seconds:g}"
        if self.kind == "shots":
            return f"shots:{self.seconds:g}-{self.longest:g}"
        return self.kind

    def absolute(self) -> ClipRule:
        """The same rule for a process with another working folder."""
        return replace(self, folder=self.folder.absolute()) if self.folder is not None else self

    def check(self, source: Source) -> None:
        """See that the rule fits a file before it is decoded.

        Raises:
            MediaError: there are no subtitles, or damaged ones.
        """
        if self.kind == "subtitles" and not source.parts:
            self._cues(source)

    def segments(self, source: Source, duration: float, cuts: Sequence[float] = ()) -> list[Segment]:
        """The clips of a file, in order of time.

        Args:
            source: the file; the parts that a list asks for come before any rule.
            duration: seconds.
            cuts: when shots begin, ascending, for the rule `shots`.

        Raises:
            MediaError: no clip lies inside the file, or its subtitles are missing or damaged.
        """
        duration = round(duration, 3)
        if source.parts:
            asked = [(part.id, part.start, part.end, part.captions) for part in source.parts]
        elif self.kind == "whole":
            return [Segment(source.id, 0.0, duration, source.captions)]
        else:
            spans = self._spans(source, duration, cuts)
            asked = [(f"{source.id}/{i:06d}", *span) for i, span in enumerate(s for s in spans if s[0] < duration)]
        clips = [
            Segment(clip_id, round(start, 3), round(min(duration if end is None else end, duration), 3), captions)
            for clip_id, start, end, captions in asked
        ]
        inside = [clip for clip in clips if clip.end > clip.start]
        if not inside:
            raise MediaError(
                f"{source.name} lasts {duration:g} s, and none of its clips begins before that",
                "check the times in the list or in the subtitles",
                "no-clips",
            )
        return inside

    def _spans(
        self, source: Source, duration: float, cuts: Sequence[float]
    ) -> list[tuple[float, float, tuple[str, ...]]]:
        if self.kind == "subtitles":
            return [(cue.start, cue.end, (cue.text,)) for cue in self._cues(source)]
        if self.kind == "windows":
            count = max(1, math.floor(duration / self.seconds + 0.5))
            edges = [i * self.seconds for i in range(count)] + [duration]
        else:
            edges = shot_edges(cuts, duration, self.seconds, self.longest)
        return [(start, end, source.captions) for start, end in itertools.pairwise(edges)]

    def _cues(self, source: Source) -> list[Cue]:
        found = None
        if self.folder is not None or not source.is_remote:
            found = find_subtitles(source.path, self.folder, source.id)
        if found is None:
            raise MediaError(
                f"{source.name} has no subtitles: there is no .vtt or .srt file of its name "
                f"{f'in {self.folder}' if self.folder is not None else 'beside it'}",
                "leave the file out, or name their folder: --clips subtitles:FOLDER",
                "subtitles",
            )
        try:
            return read_subtitles(found)
        except DataError as error:
            raise MediaError(error.message, error.hint, "subtitles") from None


def shot_edges(cuts: Sequence[float], duration: float, shortest: float, longest: float) -> list[float]:
    """Where shots begin, and the end of the last.

    Args:
        cuts: seconds, ascending.
        duration: of the file.
        shortest: a shot under this belongs to the one before; the first, to the one after.
        longest: a shot over this is cut into equal parts.
    """
    kept = [0.0]
    for cut in cuts:
        if cut - kept[-1] >= shortest and duration - cut >= shortest:
            kept.append(cut)
    edges = []
    for start, end in zip(kept, [*kept[1:], duration], strict=True):
        pieces = max(1, math.ceil((end - start) / longest - 1e-9))
        edges += [start + i * (end - start) / pieces for i in range(pieces)]
    return [*edges, duration]


def cut_features(features: ClipFeatures, config: FeaturesConfig, start: float, end: float) -> ClipFeatures:
    """The part of a file's features from `start` to `end` seconds, as extraction and the windows of an index have it.

    A stream keeps at least one row, that which is shown at `start`.
    """
    if start <= 0 and end >= features.duration - 1e-3:  # durations are rounded to milliseconds
        return features
    streams = {}
    for name in ("video_2d", "video_3d"):
        rows, stream = getattr(features, name), getattr(config, name)
        if rows is not None and len(rows):
            wanted = video_rows(start, end, stream.rate, accurate=True)
            first = min(wanted.start, len(rows) - 1)
            streams[name] = rows[first : max(wanted.stop, first + 1)]
    audio = None if features.audio is None else crop_audio(features.audio, start, end)
    return replace(features, **streams, audio=audio, duration=end - start)


def _positive(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"--clips {text}: {number!r} is no number of seconds", _HINT)
    return value
