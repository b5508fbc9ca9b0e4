"""Extracting many files at once: downloads, decoding, networks and spectrograms overlap.

    sources -> downloads, a few ahead -> readers -> who asked
                                         |    ^
                         decoding processes   networks

Each reader is a thread that takes one file from the decoding processes to its clips. Frames are computed elsewhere, see
`eao.features.compute`, and decoding is never waited for while there is something to compute.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from eao.errors import MediaError
from eao.features.compute import POLL, StoppedError, check_stop, compute_apart, compute_joined
from eao.features.decoder import DecoderPool
from eao.features.limits import Limits
from eao.features.remote import Downloader, DownloadError, download_ahead, pause_before
from eao.features.segments import ClipRule, Segment, cut_features
from eao.features.shots import ShotFinder, watch_shots

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures, Compute, FeatureExtractor, OpenClip
    from eao.features.inputs import Source

logger = logging.getLogger(__name__)

TRANSIENT = frozenset({"unreadable", "crashed", "stalled"})
"""Kinds of failure that may pass: a disk or network that was away, a process that was killed."""

Clips = list[tuple[Segment, "ClipFeatures"]]
Result = tuple["Source", "Clips | MediaError"]


@dataclass(frozen=True)
class Options:
    """How a job is done; nothing here changes what a clip's features are, but for `join` in the last bit.

    Attributes:
        rule: how files are cut into clips.
        workers: processes that decode; by default one for each core.
        retries: further attempts after a failure that may pass.
        limits: what a file may demand.
        join: whether batches of several clips are joined; by default everywhere but on a CPU.
    """

    rule: ClipRule = field(default_factory=ClipRule)
    workers: int | None = None
    retries: int = 2
    limits: Limits = field(default_factory=Limits)
    join: bool | None = None


@contextlib.contextmanager
def extract_side_by_side(
    sources: Sequence[Source],
    extractor: FeatureExtractor,
    work: Path,
    options: Options | None = None,
    pool: DecoderPool | None = None,
) -> Iterator[Iterator[Result]]:
    """Extract files; gives an iterator over (source, its clips or why the file failed), in any order.

    Leaving the block, also through an exception or Ctrl-C, ends the threads and processes.

    Args:
        sources: the files.
        extractor: shared by all threads, its networks loaded.
        work: a folder for downloads.
        options: how.
        pool: decoders to use and leave open; by default new ones.
    """
    import torch

    options = options or Options()
    threads = torch.get_num_threads()
    workers = max(1, min(options.workers or threads, len(sources)))
    stop = threading.Event()
    join = options.join if options.join is not None else extractor.device != "cpu"
    downloader = Downloader(work / "downloads", options.limits.max_bytes, options.retries, stop)
    with contextlib.ExitStack() as stack:
        compute = stack.enter_context(compute_joined(stop) if join else compute_apart(threads, stop))
        decoders = pool or stack.enter_context(DecoderPool(workers, options.limits))
        waiting = _Shared(download_ahead(sources, downloader))
        # Bounded, so that readers wait for the disk rather than fill the memory.
        ready: queue.Queue[Result | BaseException | None] = queue.Queue(2 * workers)
        job = _Job(extractor, decoders, compute, options, stop)
        # Twice as many as decode: the others wait for the networks meanwhile.
        readers = [
            threading.Thread(target=_read, args=(job, waiting, ready), name=f"reader-{i}", daemon=True)
            for i in range(min(2 * workers, len(sources)))
        ]
        for reader in readers:
            reader.start()
        try:
            yield _results(ready, len(readers))
        finally:
            stop.set()
            if pool is None:
                decoders.close()  # whoever waits for a frame wakes up
            for reader in readers:
                reader.join()


class _Shared:
    """An iterator for several threads."""

    def __init__(self, items: Iterator[tuple[Source, Future[Path] | None]]) -> None:
        self.items = items
        self.lock = threading.Lock()

    def next(self) -> tuple[Source, Future[Path] | None] | None:
        with self.lock:
            return next(self.items, None)


@dataclass(frozen=True)
class _Job:
    """What takes one file to its clips."""

    extractor: FeatureExtractor
    pool: DecoderPool
    compute: Compute
    options: Options
    stop: threading.Event

    def run(self, source: Source, download: Future[Path] | None) -> Clips:
        """The clips of a file, after as many attempts as it takes.

        Raises:
            MediaError: why there are none.
        """
        self.options.rule.check(source)
        path = source.path if download is None else self._await(download)
        try:
            for attempt in range(self.options.retries + 1):
                try:
                    return self._attempt(source, path)
                except MediaError as error:
                    if error.kind not in TRANSIENT or attempt == self.options.retries or self.stop.is_set():
                        raise
                    logger.warning("%s; trying again", error.message)
                    self.stop.wait(pause_before(attempt))
        except MediaError as error:
            if download is None:
                raise
            raise DownloadError(error.message.replace(str(path), source.name), error.hint, error.kind) from None
        finally:
            if download is not None:
                path.unlink(missing_ok=True)
        raise AssertionError("the last attempt returns or raises")

    def _await(self, download: Future[Path]) -> Path:
        while True:
            check_stop(self.stop)
            with contextlib.suppress(TimeoutError):
                return download.result(timeout=POLL)

    def _attempt(self, source: Source, path: Path) -> Clips:
        rule = self.options.rule
        open_clip: OpenClip = partial(self.pool.open, want_audio=self.extractor.config.audio)
        cuts: list[float] = []
        if rule.kind == "shots" and not source.parts and self.extractor.streams:
            finder = ShotFinder(rule.seconds)
            cuts = finder.cuts
            open_clip = watch_shots(open_clip, finder)
        check = partial(check_stop, self.stop)
        features = self.extractor.extract(path, check, open_clip, self.compute)
        segments = rule.segments(source, features.duration, cuts)
        config = self.extractor.config
        return [(segment, cut_features(features, config, segment.start, segment.end)) for segment in segments]


def _read(job: _Job, waiting: _Shared, ready: queue.Queue[Result | BaseException | None]) -> None:
    def put(item: Result | BaseException | None) -> None:
        while True:
            check_stop(job.stop)
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=POLL)
                return

    try:
        while (item := waiting.next()) is not None:
            source, download = item
            try:
                put((source, job.run(source, download)))
            except MediaError as error:
                put((source, error))
        put(None)
    except StoppedError:
        return
    except BaseException as error:
        # Raised by the thread that waits; at the end of a job the closed decoders raise it too.
        with contextlib.suppress(StoppedError):
            put(error)


def _results(ready: queue.Queue[Result | BaseException | None], running: int) -> Iterator[Result]:
    while running:
        item = ready.get()
        if item is None:
            running -= 1
        elif isinstance(item, BaseException):
            raise item
        else:
            yield item
