"""The process in which files are decoded for `eao.features.decoder`: one job after another, over a socket.

It imports PyAV and NumPy only. Messages are a JSON header and bytes; nothing is pickled, since this process runs the
code that is most exposed to hostile files.

    job       {"task": "frames", "path", "views": [[rate, side, crop], ...], "want_audio"}
              {"task": "probe", "path"}
              {"task": "still", "path", "time", "side"}
    replies   {"alive": true}                                      at once, and now and then while it decodes
              {"frames": [[time, view, height, width], ...]}       + the pictures
              {"done": {...}, "sound": "none" | "bytes" | "file"}  + float32 samples, or a file descriptor follows
              {"done": [height, width], "sound": "none"}           + the picture of a still
              {"error": {"message", "hint", "kind", "at"}}         a MediaError
              {"bug": traceback}                                   anything else
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eao.errors import MediaError
from eao.features.frames import SampledFrame, View
from eao.features.limits import Limits
from eao.features.media import ClipReader, probe
from eao.features.still import read_still

LENGTHS = struct.Struct("<IQ")
"""Before each message: bytes of the header, bytes of the payload."""

_BATCH_BYTES = 2**20  # of pictures in one message
_BATCHES_AHEAD = 16  # decoded and not yet taken by the reader: what keeps decoding and inference apart
_PULSE = 0.2  # seconds between signs of life

Payload = list[Any]
"""Buffers that are sent one after another."""


def main() -> None:
    """Serve jobs until the other side goes away. Arguments: file descriptor of the socket, limits, threads."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    limits = Limits(**json.loads(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.worker_bytes, limits.worker_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides when it ends
    threading.Thread(target=_end_with_parent, daemon=True).start()
    outbox = _Outbox(channel)
    jobs = channel.makefile("r", encoding="utf-8")
    for line in jobs:
        outbox.serve(json.loads(line), limits, int(sys.argv[3]))


def _end_with_parent() -> None:
    """The standard input is a pipe that nobody writes to: it ends when the parent dies, however it dies."""
    sys.stdin.buffer.read()
    os._exit(1)


class _Outbox:
    """Sends from a thread of its own, so that decoding goes on until the buffer is full."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.waiting: queue.Queue[tuple[dict[str, Any], Payload, int | None]] = queue.Queue(_BATCHES_AHEAD)
        self.last_pulse = 0.0
        threading.Thread(target=self._send, daemon=True).start()

    def put(self, header: dict[str, Any], payload: Payload | None = None, file: int | None = None) -> None:
        self.waiting.put((header, payload or [], file))

    def pulse(self) -> None:
        """Say that decoding goes on; silent while the reader has enough to take anyway."""
        if time.monotonic() - self.last_pulse > _PULSE:
            self.last_pulse = time.monotonic()
            with contextlib.suppress(queue.Full):
                self.waiting.put_nowait(({"alive": True}, [], None))

    def serve(self, job: dict[str, Any], limits: Limits, threads: int) -> None:
        """Do one job and send what comes of it."""
        self.put({"alive": True})
        try:
            if job["task"] == "probe":
                self.put({"done": asdict(probe(job["path"], limits)), "sound": "none"})
                return
            if job["task"] == "still":
                image = read_still(Path(job["path"]), job["time"], job["side"], limits)
                self.put({"done": image.shape[:2], "sound": "none"}, [image])
                return
            views = [View(*view) for view in job["views"]]
            reader = ClipReader(job["path"], views, job["want_audio"], threads, limits, self.pulse)
            for frames in _batches(iter(reader)):
                header = [[frame.time, frame.view, *frame.image.shape[:2]] for frame in frames]
                self.put({"frames": header}, [frame.image for frame in frames])
            self._put_sound(reader)
        except MediaError as error:
            facts = {"message": error.message, "hint": error.hint, "kind": error.kind, "at": error.at}
            self.put({"error": facts})
        except Exception:
            self.put({"bug": traceback.format_exc()})

    def _put_sound(self, reader: ClipReader) -> None:
        done = {"duration": reader.duration}
        if reader.audio is None:
            self.put({"done": done, "sound": "none"})
        elif reader.audio_file is None:
            self.put({"done": done, "sound": "bytes"}, [np.ascontiguousarray(reader.audio)])
        else:
            file = os.dup(reader.audio_file.fileno())
            self.put({"done": done, "sound": "file", "samples": reader.audio.size}, file=file)

    def _send(self) -> None:
        try:
            while True:
                header, payload, file = self.waiting.get()
                encoded = json.dumps(header).encode()
                buffers = [memoryview(buffer).cast("B") for buffer in payload]
                self.channel.sendall(LENGTHS.pack(len(encoded), sum(map(len, buffers))) + encoded)
                for buffer in buffers:
                    self.channel.sendall(buffer)
                if file is not None:
                    socket.send_fds(self.channel, [b"f"], [file])
                    os.close(file)
        except OSError:
            os._exit(0)  # the reader has gone


def _batches(frames: Iterator[SampledFrame]) -> Iterator[list[SampledFrame]]:
    batch: list[SampledFrame] = []
    size = 0
    for frame in frames:
        batch.append(frame)
        size += frame.image.nbytes
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
