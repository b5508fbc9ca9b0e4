"""Servers that a benchmark starts: commands in processes of their own, their memory, and their end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eao.errors import ServingError

_SHOWN_LINES = 20


@contextlib.contextmanager
def running(command: Sequence[str], port: int, path: str, seconds: float = 120) -> Iterator[int]:
    """Run a server on this machine until the block ends; SIGTERM ends it, and what does not heed that is killed.

    Args:
        command: of the server.
        port: where it listens for HTTP, on loopback.
        path: answers 200 when it is ready.
        seconds: that it may take until then.

    Yields:
        the process' id.

    Raises:
        ServingError: it ended, or was not ready in time; with the end of what it said.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            end = time.monotonic() + seconds
            while not _is_ready(port, path):
                if process.poll() is not None or time.monotonic() > end:
                    what = f"ended with {process.returncode}" if process.returncode is not None else "is not ready"
                    raise ServingError(f"{' '.join(command)}: {what}", _end_of(output))
                time.sleep(0.2)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def fetch(port: int, path: str) -> str:
    """The text that a server on this machine answers to a GET.

    Raises:
        ServingError: no answer, or another status than 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise ServingError(f"port {port} gives no answer to {path}: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise ServingError(f"port {port} answers {response.status} to {path}: {text[:200]}")
    return text


def fetch_json(port: int, path: str) -> Any:
    """As `fetch`, parsed."""
    return json.loads(fetch(port, path))


def memory_bytes(pid: int) -> int:
    """Memory of a process and of all that it started, pages that they share counted once; 0 where the system does not
    tell."""
    return sum(_proportional_bytes(each) for each in (pid, *descendants(pid)))


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold spaces.
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, ahead = [], [pid]
    while ahead:
        more = children.get(ahead.pop(), [])
        found += more
        ahead += more
    return found


def process_name(pid: int) -> str:
    """The name of a process' program, up to 15 letters; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _is_ready(port: int, path: str) -> bool:
    try:
        fetch(port, path)
    except ServingError:
        return False
    return True


def _end_of(output: Any) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    return "\n     ".join(lines[-_SHOWN_LINES:])
