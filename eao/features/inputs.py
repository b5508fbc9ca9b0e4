"""Which clips are meant: files and folders given by a user, and the names of what they hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eao.errors import DataError
from eao.features.media import AUDIO_SUFFIXES, VIDEO_SUFFIXES


def find_clips(inputs: Iterable[str | Path], audio_only: bool = False) -> dict[str, Path]:
    """The clips in files and folders as {id: absolute path}, sorted by id.

    Folders are searched recursively for the usual video suffixes; hidden files and folders are passed over. A file
    that is reached twice counts once.

    Args:
        inputs: files and folders.
        audio_only: also take audio files.

    Raises:
        DataError: if an input does not exist, a folder holds no clip, or two files would have the same id (`a.mp4` and
            `a.mkv`): guessing which is meant, or numbering them, would tie captions to the wrong file.
    """
    suffixes = VIDEO_SUFFIXES | AUDIO_SUFFIXES if audio_only else VIDEO_SUFFIXES
    clips: dict[str, Path] = {}
    seen: set[Path] = set()
    for given in map(Path, inputs):
        if given.is_dir():
            found: dict[str, list[Path]] = {}
            for path in sorted(given.rglob("*")):
                relative = path.relative_to(given)
                hidden = any(part.startswith(".") for part in relative.parts)
                if not hidden and path.suffix.lower() in suffixes and path.is_file():
                    found.setdefault(relative.with_suffix("").as_posix(), []).append(path)
            if not found:
                kinds = ", ".join(sorted(suffixes))
                raise DataError(f"the folder {given} holds no video", f"looked for files ending in {kinds}")
        elif given.exists():
            found = {given.stem: [given]}
        else:
            raise DataError(f"no such file or folder: {given}", "check the path")
        for clip_id, paths in found.items():
            for path in paths:
                resolved = path.resolve()
                if resolved in seen:
                    continue
                seen.add(resolved)
                if clip_id in clips:
                    raise DataError(
                        f"{clips[clip_id]} and {path.absolute()} would both be the clip {clip_id!r}",
                        "rename one of them, or extract them into two folders",
                    )
                clips[clip_id] = path.absolute()
    return dict(sorted(clips.items()))


def find_videos(inputs: Iterable[str | Path]) -> list[Path]:
    """The video files in files and folders, for indexing: clips of one name in two inputs are different clips here.

    Raises:
        DataError: as for `find_clips` of each input.
    """
    return list(dict.fromkeys(path for given in inputs for path in find_clips([given]).values()))
