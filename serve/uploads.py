"""Files that are sent: taken from a form into a folder of the service, and turned into features."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from eao.embedder import Embedder
from eao.errors import CheckpointError, ConfigError, MediaError, MissingDependencyError
from eao.features.decoder import DecoderPool
from eao.features.extractor import ClipFeatures, FeatureExtractor
from eao.features.limits import Limits
from eao.serve.problems import Problem

_FIELD = 2**16  # bytes of a field without a file
_FIELDS = 20
_FILES = 2
LONGEST = 300.0
"""Seconds of a file that is searched with; of a longer one no more than its beginning would be embedded anyway."""


@dataclass(frozen=True)
class Form:
    """A form that was sent.

    Attributes:
        fields: those with text; empty ones are left out.
        files: path of each file, by the name of its field.
        names: what the files are called by whoever sent them.
    """

    fields: dict[str, str]
    files: dict[str, Path]
    names: dict[str, str]


class Uploads:
    """The folder of files that were sent, each of which lives as long as its request.

    Example:
        async with uploads.form(request) as form:
            features = await loop.run_in_executor(threads, read_features, form.files["file"], ...)
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="eao-uploads-", ignore_cleanup_errors=True)

    @contextlib.asynccontextmanager
    async def form(self, request: Request) -> AsyncIterator[Form]:
        """The form of a request; its files are removed at the end of the block.

        Raises:
            Problem: it is none, or has too many or too large fields.
        """
        folder = Path(self._folder.name) / uuid.uuid4().hex
        try:
            async with request.form(max_files=_FILES, max_fields=_FIELDS, max_part_size=_FIELD) as items:
                form = Form({}, {}, {})
                for name, value in items.multi_items():
                    if isinstance(value, UploadFile):
                        # The name that a client gave is for showing: no path is made of it.
                        form.files[name] = folder / str(len(form.files))
                        form.names[name] = Path(value.filename or "file").name[:200]
                        await run_in_threadpool(_copy, value.file, form.files[name])
                    elif value:
                        form.fields[name] = value
            yield form
        finally:
            await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()


class Waiter:
    """Whoever waits for work in a thread, and may leave before it is done."""

    def __init__(self) -> None:
        self._left = threading.Event()

    def leave(self) -> None:
        """Not wait any more."""
        self._left.set()

    def check(self) -> None:
        """Raise Problem if nobody waits."""
        if self._left.is_set():
            raise Problem(503, "nobody waits for this any more")


def upload_limits(max_bytes: int) -> Limits:
    """What a file that somebody sends may demand: less than one of the operator's own."""
    return Limits(
        max_bytes=max_bytes,
        max_duration=LONGEST,
        max_frames=100_000,
        max_expansion=50_000.0,
        stall_seconds=20.0,
        worker_bytes=4 * 10**9,
    )


def read_features(
    embedder: Embedder, pool: DecoderPool, path: Path, want_video: bool, check: Callable[[], None]
) -> ClipFeatures:
    """The features of a file that was sent.

    Args:
        embedder: the model.
        pool: the decoders.
        path: of the file.
        want_video: whether its pictures are wanted; else its sound alone.
        check: raises if nobody waits any more.

    Raises:
        MediaError: it cannot be decoded, or demands too much.
        Problem: this service cannot read pictures.
    """
    if not want_video:
        sound, duration = FeatureExtractor.decode_sound(path, pool.open)
        return ClipFeatures(None, None, sound, duration)
    try:
        embedder.extractor.load()
    except (CheckpointError, ConfigError, MissingDependencyError) as error:
        raise Problem(503, f"this service cannot look at videos: {error.message}", error.hint) from None
    return embedder.extractor.extract(path, check, pool.open)


def read_clip(
    embedder: Embedder, pool: DecoderPool, video: Path | None, audio: Path | None, check: Callable[[], None]
) -> ClipFeatures:
    """The features of what is seen in one file and heard in another. Arguments and errors: see `read_features`."""
    if video is None:
        assert audio is not None
        return read_features(embedder, pool, audio, False, check)
    clip = read_features(embedder, pool, video, True, check)
    return clip if audio is None else replace(clip, audio=read_features(embedder, pool, audio, False, check).audio)


@contextlib.contextmanager
def named(names: Mapping[Path, str]) -> Iterator[None]:
    """Errors name files as whoever sent them does, not by where they lie here."""
    try:
        yield
    except MediaError as error:
        message = error.message
        for path, name in names.items():
            message = message.replace(str(path), name)
        raise MediaError(message, error.hint, error.kind, error.at) from None


def _copy(source: BinaryIO, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    source.seek(0)
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)
