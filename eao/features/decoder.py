"""Decoding in processes of their own, so that no file can take the program down with it.

FFmpeg is two million lines of C that read whatever is given to them. A file that makes it crash, hang or ask for all
memory ends one small process here: the file fails with a `MediaError` of kind `crashed` or `stalled`, and the next one
is decoded by a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eao.errors import MediaError
from eao.features.decoder_worker import LENGTHS
from eao.features.frames import SampledFrame, View
from eao.features.limits import Limits
from eao.features.media import MediaInfo

_START_SECONDS = 120.0  # for a process to import PyAV on a busy machine
_LARGEST_MESSAGE = 2**30


class DecoderPool:
    """Processes that decode files, each one file at a time.

    They end with the pool, with the program, and when a reader is left in the middle of its file. Threads may share a
    pool: a reader waits for a free process when its iteration begins.

    Args:
        workers: how many processes.
        limits: what a file may demand.
        threads: of each video decoder.

    Example:
        >>> with DecoderPool(2) as pool:  # doctest: +SKIP
        ...     extractor.extract("clip.mp4", open_clip=pool.open)
    """

    def __init__(self, workers: int, limits: Limits | None = None, threads: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"a pool needs at least one worker, not {workers}")
        self.limits = limits or Limits()
        self.threads = threads
        self.closed = False
        self._running: set[_Worker] = set()
        self._lock = threading.Lock()
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        weakref.finalize(self, _end_all, self._running)
        for _ in range(workers):
            self._idle.put(self._start())

    def open(self, path: str | Path, views: Sequence[View], want_audio: bool = True) -> PooledReader:
        """A reader like `ClipReader`, whose file is decoded by one of the processes."""
        return PooledReader(self, Path(path), views, want_audio)

    def read_audio(self, path: str | Path) -> NDArray[np.float32] | None:
        """Like `eao.features.media.read_audio`."""
        reader = self.open(path, [])
        for _ in reader:
            pass
        return reader.audio

    def probe(self, path: str | Path) -> MediaInfo:
        """Like `eao.features.media.probe`."""
        with self._job(Path(path), {"task": "probe"}) as worker:
            return MediaInfo(**list(worker.replies())[-1].header["done"])

    def still(self, path: str | Path, time: float, side: int) -> NDArray[np.uint8]:
        """Like `eao.features.still.read_still`."""
        with self._job(Path(path), {"task": "still", "time": time, "side": side}) as worker:
            reply = list(worker.replies())[-1]
            height, width = reply.header["done"]
            return reply.payload.reshape(height, width, 3)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are alive."""
        with self._lock:
            return sorted(worker.process.pid for worker in self._running if worker.process.poll() is None)

    def close(self) -> None:
        """End all processes. Readers in the middle of a file fail."""
        with self._lock:
            self.closed = True
            _end_all(self._running)

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _job(self, path: Path, job: dict[str, Any]) -> Iterator[_Worker]:
        """A process that has begun with a job. If the block leaves before the last reply, the process is ended."""
        worker = self._idle.get()
        try:
            if worker is None or not worker.begin(path, job):  # it may have died, of whatever, since its last job
                self._end(worker)
                worker = self._start()
                if not worker.begin(path, job):
                    raise RuntimeError(f"the decoding process {worker.process.args!r} does not start")
            yield worker
        except MediaError:
            if self.closed:
                raise RuntimeError(f"the DecoderPool was closed while {path} was decoded") from None
            raise
        finally:
            if worker is not None and worker.busy:
                self._end(worker)
                worker = None
            self._idle.put(worker)

    def _start(self) -> _Worker:
        with self._lock:
            if self.closed:
                raise RuntimeError("this DecoderPool is closed")
            worker = _Worker(self.limits, self.threads)
            self._running.add(worker)
            return worker

    def _end(self, worker: _Worker | None) -> None:
        if worker is not None:
            with self._lock:
                self._running.discard(worker)
            worker.end()


class PooledReader:
    """Decodes one file in another process: iterate over its frames, then read `audio` and `duration`.

    Raises:
        MediaError: while iterating, as `ClipReader` does; also of kind `crashed` or `stalled`.
    """

    def __init__(self, pool: DecoderPool, path: Path, views: Sequence[View], want_audio: bool) -> None:
        self.pool = pool
        self.path = path
        self.views = tuple(views)
        self.want_audio = want_audio
        self.audio: NDArray[np.float32] | None = None
        self.duration = 0.0

    def __iter__(self) -> Iterator[SampledFrame]:
        views = [[view.rate, view.side, view.crop] for view in self.views]
        job = {"task": "frames", "views": views, "want_audio": self.want_audio}
        with self.pool._job(self.path, job) as worker:
            for reply in worker.replies():
                begin = 0
                for time, view, height, width in reply.header.get("frames", ()):
                    end = begin + height * width * 3
                    yield SampledFrame(time, reply.payload[begin:end].reshape(height, width, 3), view)
                    begin = end
                if "done" in reply.header:
                    self.audio, self.duration = reply.sound, reply.header["done"]["duration"]


@dataclass(frozen=True)
class _Reply:
    """A message of a worker."""

    header: dict[str, Any]
    payload: NDArray[np.uint8]
    file: int | None = None

    @property
    def sound(self) -> NDArray[np.float32] | None:
        """The sound of a file that is done. Long sound is a file that both processes map."""
        if self.file is not None:
            with open(self.file, "rb") as spool:
                return np.memmap(spool, np.float32, "r", shape=(self.header["samples"],))
        return self.payload.view(np.float32) if self.header["sound"] == "bytes" else None


class _Worker:
    """One process and the socket to it."""

    def __init__(self, limits: Limits, threads: int) -> None:
        self.stall_seconds = limits.stall_seconds
        self.path = Path()
        self.busy = False
        self.started = False
        self.channel, theirs = socket.socketpair()
        code = "import sys; sys.path[:] = sys.argv[4:]; from eao.features.decoder_worker import main; main()"
        facts = [str(theirs.fileno()), json.dumps(asdict(limits)), str(threads)]
        with theirs:
            # A session of its own keeps Ctrl-C away from it. Not multiprocessing: that runs the user's script again.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, *facts, *(part or os.getcwd() for part in sys.path)],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )

    def begin(self, path: Path, job: dict[str, Any]) -> bool:
        """Hand over a job. Returns whether the process took it."""
        self.path, self.busy = path, True
        self.channel.settimeout(self.stall_seconds if self.started else _START_SECONDS)
        try:
            self.channel.sendall((json.dumps(job | {"path": str(path.absolute())}) + "\n").encode())
            self._receive()
        except (OSError, EOFError, ValueError):
            return False
        self.started = True
        self.channel.settimeout(self.stall_seconds)
        return True

    def replies(self) -> Iterator[_Reply]:
        """All replies to the job."""
        while self.busy:
            try:
                reply = self._receive()
            except TimeoutError:
                raise MediaError(
                    f"{self.path}: nothing was decoded for {self.stall_seconds:.0f} s",
                    "encode it again; on a slow disk raise stall_seconds",
                    "stalled",
                ) from None
            except (OSError, EOFError, ValueError):
                raise self._crash() from None
            if "error" in reply.header:
                self.busy = False
                raise MediaError(**reply.header["error"])
            if "bug" in reply.header:
                self.busy = False
                raise RuntimeError(f"while decoding {self.path}, in another process:\n{reply.header['bug']}")
            self.busy = "done" not in reply.header
            if "alive" not in reply.header:
                yield reply

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.channel.close()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def _crash(self) -> MediaError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5.0)
        code = self.process.poll()
        cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return MediaError(
            f"{self.path}: the process that decoded it ended ({cause})",
            "encode it again; after SIGKILL look whether the machine ran out of memory",
            "crashed",
        )

    def _receive(self) -> _Reply:
        header_bytes, payload_bytes = LENGTHS.unpack(self._read(LENGTHS.size).data)
        if header_bytes + payload_bytes > _LARGEST_MESSAGE:
            raise ValueError("a message that makes no sense")
        header = json.loads(bytes(self._read(header_bytes)))
        payload = self._read(payload_bytes)
        if header.get("sound") != "file":
            return _Reply(header, payload)
        _, files, _, _ = socket.recv_fds(self.channel, 1, 1)
        if not files:
            raise EOFError("a file that did not come")
        return _Reply(header, payload, files[0])

    def _read(self, size: int) -> NDArray[np.uint8]:
        data = np.empty(size, np.uint8)
        view = data.data
        while view:
            count = self.channel.recv_into(view)
            if count == 0:
                raise EOFError("the process has ended")
            view = view[count:]
        return data


def _end_all(workers: set[_Worker]) -> None:
    for worker in list(workers):
        worker.end()
    workers.clear()
