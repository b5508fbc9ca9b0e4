"""The real Triton Inference Server on this machine: started, waited for, and stopped with nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from eao.errors import ServingError
from eao.ports import free_ports
from eao.serve.triton.environment import BACKENDS, Environment, prepare
from eao.serve.triton.schema import CONFIG

HOST = "127.0.0.1"
_SHARED_MEMORY = Path("/dev/shm")
_DRAIN_SECONDS = 30
"""For requests under way, when the server is stopped."""
_CONNECTION_SECONDS = 2
"""For clients to close their connections, after that."""
_EXIT_SECONDS = 30
"""For its own end, after that."""


class Ports(NamedTuple):
    """Where the server listens; 0 = a free port."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        http: host:port of the HTTP interface, as `tritonclient` takes it.
        grpc: of gRPC.
        metrics: of Prometheus' text format, at /metrics.
        log: what it writes.
        process: its process.
    """

    http: str
    grpc: str
    metrics: str
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid

    def wait(self) -> None:
        """Wait for as long as it runs.

        Raises:
            ServingError: it has ended, which it does not on its own.
        """
        code = self.process.wait()
        raise ServingError(f"Triton Inference Server ended with code {code}", _reason(self.log))


@contextlib.contextmanager
def running(
    repository: str | Path,
    ports: Ports | None = None,
    environment: Environment | None = None,
    timeout: float = 180.0,
    log: str | Path | None = None,
) -> Iterator[Server]:
    """Run the server on a model repository, on the loopback interface only, until the block ends.

    All models are loaded at the start; `load` and `unload` of Triton's model control work afterwards. Statistics are
    kept, and the rate limiter is on.

    Args:
        repository: as `eao serve triton` writes it.
        ports: by default free ones.
        environment: from `eao.serve.triton.environment.prepare`; by default made or reused here.
        timeout: seconds until every model has to be ready.
        log: the file that the server's messages go to; by default a temporary one, gone afterwards.

    Raises:
        ServingError: a model does not load, with what the server said of it; or a port is taken.
        MissingDependencyError: a library of the system is missing.

    Example:
        with running("triton") as server:
            client = tritonclient.http.InferenceServerClient(server.http)
    """
    repository = Path(repository).absolute()
    if environment is None:
        environment = prepare(backends=backends_of(repository))
    with contextlib.ExitStack() as stack:
        if log is None:
            folder = Path(tempfile.mkdtemp(prefix="eao-triton-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            log = folder / "server.log"
        prefix = f"eao_triton_{uuid.uuid4().hex[:12]}_"
        stack.callback(_clear_shared_memory, prefix)
        chosen = _choose_ports(ports or Ports())
        process = stack.enter_context(_process(environment, repository, chosen, prefix, Path(log)))
        _wait(process, chosen, Path(log), time.monotonic() + timeout)
        addresses = {name: f"{HOST}:{port}" for name, port in chosen._asdict().items()}
        yield Server(**addresses, log=Path(log), process=process)


def backends_of(repository: str | Path) -> set[str]:
    """The backends that the models of a repository name, of those that are not in the server's wheel."""
    found = set()
    for path in sorted(Path(repository).glob("*/config.pbtxt")):
        found |= set(re.findall(r'^backend: "(\w+)"', path.read_text(encoding="utf-8"), re.MULTILINE))
    return found & set(BACKENDS)


@contextlib.contextmanager
def _process(
    environment: Environment, repository: Path, ports: Ports, prefix: str, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        str(environment.server),
        f"--model-repository={repository}",
        f"--backend-directory={environment.backends}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--disable-auto-complete-config",
        "--rate-limit=execution_count",
        f"--exit-timeout-secs={_CONNECTION_SECONDS}",
        *(f"--{name}-address={HOST}" for name in ("http", "grpc", "metrics")),
        *(f"--{name}-port={port}" for name, port in ports._asdict().items()),
        # A crashed stub leaves its region behind; by this name it is found, and no other server's is touched.
        *(f"--backend-config={name},shm-region-prefix-name={prefix}" for name in ("python", *BACKENDS)),
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as messages:
        # In a session of its own, so that Ctrl-C reaches it once: through here.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=subprocess.STDOUT,
            env=environment.variables(),
            cwd=environment.folder,  # Python models would import what lies in the working folder
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process, repository, ports.http)


def _stop(process: subprocess.Popen[bytes], repository: Path, port: int) -> None:
    """Let the server finish what it has begun; after that, end it and its children."""
    try:
        if process.poll() is None:
            with contextlib.suppress(OSError, ValueError):  # it never came to listen, or hangs
                _drain(repository, f"http://{HOST}:{port}/v2/repository")
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CONNECTION_SECONDS + _EXIT_SECONDS)
    finally:  # also when interrupted again
        # The session has the stubs in it too, should one have outlived the server.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _drain(repository: Path, url: str) -> None:
    """Unload every model, ensembles before what they use: each answers first what was asked of it.

    On its own the server would wait for clients to close their connections, which they keep open for the next request.
    """
    deadline = time.monotonic() + _DRAIN_SECONDS

    def post(path: str) -> Any:
        return _post(f"{url}/{path}", max(deadline - time.monotonic(), 1.0))

    ensembles = {
        path.parent.name for path in repository.glob(f"*/{CONFIG}") if 'platform: "ensemble"' in path.read_text()
    }
    loaded = {model["name"] for model in post("index") if model.get("state") == "READY"}
    for names in (loaded & ensembles, loaded - ensembles):
        for name in sorted(names):
            post(f"models/{name}/unload")
        while time.monotonic() < deadline:
            states = {model["name"]: model.get("state") for model in post("index")}
            if all(states.get(name, "UNAVAILABLE") == "UNAVAILABLE" for name in names):
                break
            time.sleep(0.05)


def _post(url: str, timeout: float) -> Any:
    request = urllib.request.Request(url, data=b"{}", method="POST")
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return json.loads(reply.read() or b"null")


def _wait(process: subprocess.Popen[bytes], ports: Ports, log: Path, deadline: float) -> None:
    while True:
        if process.poll() is not None:
            raise ServingError("Triton Inference Server did not start", _reason(log))
        if _answers(f"http://{HOST}:{ports.http}/v2/health/ready"):
            return
        if time.monotonic() > deadline:
            raise ServingError("Triton Inference Server was not ready in time", _reason(log))
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:  # not there yet, or there and not ready
        return False


def _reason(log: Path) -> str:
    """What the server's log says of a failure, in a few lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # The table of models comes last: "| text | 1 | UNAVAILABLE: Internal: ... |".
    states = [re.split(r"\s*\|\s*", line.strip().strip("|").strip()) for line in lines if "UNAVAILABLE:" in line]
    failed = [f"{state[0]}: {state[-1].removeprefix('UNAVAILABLE: ')}" for state in states if len(state) == 3]
    if failed:
        return "\n     ".join(failed[:6])
    # An abort is told in the last lines, which are no errors by their form; and some errors are told at every start.
    errors = [line for line in lines if re.match(r"E\d{4} |error:", line)]
    shown = (line.split("] ", 1)[-1].strip('"') for line in dict.fromkeys([*errors[:3], *lines[-3:]]))
    return "\n     ".join(shown)


def _choose_ports(ports: Ports) -> Ports:
    """The ports with every 0 replaced by a free one.

    Raises:
        ServingError: a port that was asked for is taken.
    """
    with contextlib.ExitStack() as stack:
        for port in filter(None, ports):
            asked = stack.enter_context(socket.socket())
            asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                asked.bind((HOST, port))
            except OSError:
                raise ServingError(f"port {port} of {HOST} is taken", "name another, or 0 for a free one") from None
        free = iter(free_ports(ports.count(0)))
        return Ports(*(port or next(free) for port in ports))


def _clear_shared_memory(prefix: str) -> None:
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
