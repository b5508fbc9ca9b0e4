"""Which files are meant: files, folders, patterns, lists and URLs given by a user, and the names of what they hold."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from eao.errors import DataError
from eao.features.ids import check_clashes, derive_id
from eao.features.lists import SUFFIXES as LIST_SUFFIXES
from eao.features.lists import Listed, is_url, read_list, without_password
from eao.features.media import AUDIO_SUFFIXES, VIDEO_SUFFIXES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A clip that a list asks for.

    Attributes:
        id: of the clip.
        start: seconds in the file.
        end: None for the end of the file.
        captions: what the list says about it.
    """

    id: str
    start: float = 0.0
    end: float | None = None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A file to extract from.

    Attributes:
        id: of the file; the clips that are cut out of it are named below it.
        location: an absolute path, or a URL.
        parts: the clips that a list asks for; empty where the rule for clips decides.
        captions: of the whole file.
        size: bytes of the file when it was found; None if it is remote or not there.
    """

    id: str
    location: str
    parts: tuple[Part, ...] = field(default=())
    captions: tuple[str, ...] = ()
    size: int | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it has to be downloaded."""
        return is_url(self.location)

    @property
    def name(self) -> str:
        """The location as it is noted and shown."""
        return without_password(self.location)

    @property
    def path(self) -> Path:
        """The file on this machine; of no meaning for a remote one."""
        return Path(self.location)


def find_sources(inputs: Iterable[str | Path], audio_only: bool = False) -> list[Source]:
    """The files in what a user gives, sorted by id.

    Folders are searched for the usual video suffixes; hidden files and folders are passed over. Links to files are
    followed, links to folders are not: no circle of links is ever walked. A file that is reached twice counts once.

    Args:
        inputs: files, folders, patterns (`clips/*.mp4`, `**` for any depth), lists (`.csv`, `.txt`, `.jsonl`, see
            `eao.features.lists`) and URLs that fsspec reads (`https://`, `s3://`, ...).
        audio_only: also take audio files.

    Raises:
        DataError: if an input does not exist or holds no clip, or two files would have the same id (`a.mp4` and
            `a.mkv`): guessing which is meant, or numbering them, would tie captions to the wrong file.
    """
    suffixes = VIDEO_SUFFIXES | AUDIO_SUFFIXES if audio_only else VIDEO_SUFFIXES
    sources: dict[str, Source] = {}
    seen: set[str] = set()
    for source in (source for given in inputs for source in _expand(str(given), suffixes)):
        place = source.location if source.is_remote else os.path.realpath(source.location)
        if place in seen:
            continue
        seen.add(place)
        if source.id in sources:
            raise DataError(
                f"{sources[source.id].name} and {source.name} would both be the clip {source.id!r}",
                "rename one of them, or give a list with ids",
            )
        sources[source.id] = source
    _check_names(sources)
    return [replace(sources[name], size=_size(sources[name])) for name in sorted(sources)]


def find_videos(inputs: Iterable[str | Path]) -> list[Path]:
    """The video files in files, folders and patterns, for indexing: files of one name in two inputs differ here.

    Raises:
        DataError: as for `find_sources` of each input, and for a URL.
    """
    paths: dict[Path, None] = {}
    for given in inputs:
        for source in find_sources([given]):
            if source.is_remote:
                raise DataError(
                    f"{source.location} is not on this machine", "extract it first: eao extract URL --out F"
                )
            paths[source.path] = None
    return list(paths)


def _expand(given: str, suffixes: frozenset[str]) -> Iterator[Source]:
    """The files that one input stands for."""
    if is_url(given):
        yield Source(_url_id(given), given)
        return
    path = Path(given.removeprefix("file://"))
    if path.is_dir():
        yield from _in_folder(path, suffixes)
    elif path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        yield from _in_list(path)
    elif os.path.lexists(path):
        yield Source(derive_id(PurePosixPath(path.name)), str(path.absolute()))
    elif glob.has_magic(given):
        yield from _in_pattern(given, suffixes)
    else:
        raise DataError(f"no such file or folder: {given}", "check the path")


def _in_folder(folder: Path, suffixes: frozenset[str]) -> Iterator[Source]:
    found = passed = 0
    for where, folders, names in os.walk(folder, onerror=_raise):
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        passed += len(links)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
        for name in sorted(names):
            path = Path(where, name)
            if not name.startswith(".") and path.suffix.lower() in suffixes and _is_regular(path):
                found += 1
                yield Source(derive_id(PurePosixPath(path.relative_to(folder))), str(path.absolute()))
    if passed:
        logger.warning("%s: %d links to folders were not followed; give those folders as inputs", folder, passed)
    if not found:
        raise DataError(f"the folder {folder} holds no video", _looked_for(suffixes))


def _in_pattern(pattern: str, suffixes: frozenset[str]) -> Iterator[Source]:
    # The folder above the first part with a wildcard: names are relative to it, as below a folder that is given whole.
    parts = PurePosixPath(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed]) if fixed else Path()
    names = sorted(glob.iglob(str(PurePosixPath(*parts[fixed:])), root_dir=root, recursive=True))
    paths = [name for name in names if Path(name).suffix.lower() in suffixes and _is_regular(root / name)]
    if not paths:
        raise DataError(f"no video is called {pattern}", _looked_for(suffixes))
    for name in paths:
        yield Source(derive_id(PurePosixPath(name)), str((root / name).absolute()))


def _in_list(path: Path) -> Iterator[Source]:
    """The files of a list, each with its parts in the order of the list."""
    rows: dict[str, list[Listed]] = {}
    for row in read_list(path):
        rows.setdefault(row.location, []).append(row)
    for location, lines in rows.items():
        yield _from_lines(path, location, lines)


def _from_lines(path: Path, location: str, lines: Sequence[Listed]) -> Source:
    """What a list says about one file."""
    first = lines[0]
    if any((line.start is None) != (first.start is None) for line in lines):
        raise DataError(
            f"{first.where}: {location} is named both whole and in parts", "give start and end in each of its lines"
        )
    parts: dict[tuple[float, float | None], Part] = {}
    for line in lines:
        place = (line.start or 0.0, line.end)
        if place not in parts:
            parts[place] = Part(
                line.id or _listed_id(path, location, None if line.start is None else len(parts)), *place
            )
        part = parts[place]
        if line.id not in (None, part.id):
            raise DataError(f"{line.where}: one clip has the ids {part.id!r} and {line.id!r}", "give it one")
        if line.caption and line.caption not in part.captions:
            parts[place] = replace(part, captions=(*part.captions, line.caption))
    clips = tuple(parts.values())
    if first.start is None:
        return Source(clips[0].id, location, captions=clips[0].captions)
    return Source(clips[0].id, location, parts=clips)


def _check_names(sources: dict[str, Source]) -> None:
    clips: dict[str, str] = {}
    for source in sources.values():
        for clip_id in [part.id for part in source.parts] or [source.id]:
            if clip_id in clips:
                raise DataError(
                    f"{clips[clip_id]} and {source.location} would both be the clip {clip_id!r}",
                    "give each part an id of its own",
                )
            clips[clip_id] = source.location
    check_clashes(clips, clips)


def _size(source: Source) -> int | None:
    try:
        return None if source.is_remote else os.stat(source.location).st_size
    except OSError:  # extraction says what is wrong with it
        return None


def _is_regular(path: Path) -> bool:
    """Whether there is a file, or a link that leads nowhere: that one is listed as a failure."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _url_id(url: str) -> str:
    path = PurePosixPath(unquote(urlsplit(url).path).lstrip("/") or urlsplit(url).netloc)
    if path.suffix == path.name or ".." in path.parts:
        raise DataError(f"{url} names no file", "give it an id, in a list")
    return derive_id(path)


def _listed_id(path: Path, location: str, part: int | None) -> str:
    """The id of a file, or of a part of it, to which a list gives none."""
    if is_url(location):
        clip_id = _url_id(location)
    else:
        folder, file = path.parent.absolute(), Path(location)
        below = file.is_relative_to(folder) and ".." not in file.parts
        clip_id = derive_id(PurePosixPath(file.relative_to(folder) if below else file.name))
    return clip_id if part is None else f"{clip_id}/{part:06d}"


def _looked_for(suffixes: frozenset[str]) -> str:
    return f"looked for files ending in {', '.join(sorted(suffixes))}"


def _raise(error: OSError) -> None:
    raise DataError(f"cannot read the folder {error.filename}: {error.strerror}", "check its permissions") from None
