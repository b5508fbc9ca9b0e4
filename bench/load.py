"""Servers under load: Triton Inference Server and `eao serve`, asked by many clients at once.

The load is a closed loop: every client sends its next request when the last one was answered.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import pydantic

from eao.bench.clients import Request, http_clients, triton_grpc_clients, triton_http_clients
from eao.bench.closed_loop import Opener, Traffic, ask_in_loops, watch_memory
from eao.bench.docs import measured_on
from eao.bench.feeds import plan_points, random_feeds
from eao.bench.hardware import Hardware, describe_hardware
from eao.bench.latency import foreign_load
from eao.bench.processes import descendants, fetch, fetch_json, memory_bytes, process_name, running
from eao.errors import ConfigError
from eao.export.encoders import SPECTROGRAM_FRAMES, TEXT_TOKENS, VIDEO_TOKENS
from eao.export.runtime import Bundle
from eao.ports import free_ports

CLIENTS = (1, 8, 32)
ENCODERS = ("text", "video-audio")
INSTANCES = (1, 2)
"""Of each network in Triton: with one, its batcher leaves requests in the queue now and then."""
TRITON_GRPC, TRITON_HTTP, SERVICE = "Triton, gRPC", "Triton, HTTP", "eao serve"
BUNDLE, INDEX = Path("runs/demo/bundle"), "runs/demo/index"
_PAUSE_SECONDS, _MOST_READINGS = 0.2, 50
_SUBJECTS = ("dog", "cat", "bird", "train", "car", "flower", "apple", "drum", "fish", "tree", "horse", "boat")
_COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey")
_MOTIONS = ("moves left", "moves right", "turns", "grows", "falls", "rises", "jumps", "stands still")


class LoadRow(pydantic.BaseModel):
    """One kind of request, from a number of clients.

    Attributes:
        server: which server, and how it was spoken to.
        request: an encoder, or a route.
        clients: that asked at once.
        traffic: what they met.
        batch: rows that the server embedded at once, on average; None if it does not tell.
        memory_mb: of the server's processes afterwards, in 1e6 bytes.
    """

    server: str
    request: str
    clients: int
    traffic: Traffic
    batch: float | None
    memory_mb: float


class Soak(pydantic.BaseModel):
    """Searching and embedding without a pause.

    Attributes:
        clients: that asked at once.
        traffic: what they met.
        memory_mb: of the server's processes every second, in 1e6 bytes.
    """

    clients: int
    traffic: Traffic
    memory_mb: list[float]

    @property
    def growth_mb(self) -> float:
        """From the mean of the second quarter of the time to that of the last: the first warms up."""
        quarter = max(len(self.memory_mb) // 4, 1)
        early, late = self.memory_mb[quarter : 2 * quarter] or self.memory_mb[:1], self.memory_mb[-quarter:]
        return sum(late) / len(late) - sum(early) / len(early)


class LoadReport(pydantic.BaseModel):
    """The measurement and its conditions."""

    hardware: Hardware
    versions: dict[str, str]
    bundle: str
    engines: dict[str, str]
    clips: int
    foreign_cores: float | None
    rows: list[LoadRow]
    soak: Soak | None = None

    def to_markdown(self) -> str:
        """The tables, with the machine they were measured on."""
        engines = ", ".join(f"{encoder} by {engine}" for encoder, engine in self.engines.items())
        lines = [
            f"Every client sends its next request when the last one is answered; servers and clients share the "
            f"{self.hardware.cores} cores. Triton Inference Server with the repository that `eao serve triton` writes "
            f"({engines}), with one instance of each network or with `--instances 2`: one sentence as tokens, or one "
            f"clip of the longest length, a request. `eao serve` over an index of {self.clips:,} clips: a sentence "
            "that was not asked before, 20 hits. Batch: rows embedded at once, on average, by the server's own "
            "statistics. Memory: of all of a server's processes, shared pages "
            "counted once.",
            "",
            "| server | request | clients | requests/s | p50 ms | p99 ms | errors | batch | memory MB |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in self.rows:
            batch = "" if row.batch is None else f"{row.batch:.1f}"
            lines.append(
                f"| {row.server} | {row.request} | {row.clients} | {_cells(row.traffic)} | {batch} "
                f"| {row.memory_mb:,.0f} |"
            )
        if self.soak is not None:
            traffic, memory = self.soak.traffic, self.soak.memory_mb
            lines += [
                "",
                f"{traffic.seconds:.0f} s of searches and embeddings by {self.soak.clients} clients at `eao serve`: "
                f"{traffic.requests:,} requests, {traffic.failed} errors, p99 {traffic.p99_ms:,.0f} ms; memory "
                f"{memory[0]:,.0f} MB at the start, {max(memory):,.0f} MB at most, {memory[-1]:,.0f} MB at the end "
                f"({self.soak.growth_mb:+.1f} MB from the second quarter to the last).",
            ]
        errors = {error for row in self.rows for error in row.traffic.errors}
        errors |= set(self.soak.traffic.errors) if self.soak is not None else set()
        if errors:
            lines += ["", f"[!] Errors: {'; '.join(sorted(errors))}."]
        if self.foreign_cores is not None:
            lines += ["", f"Other processes kept {self.foreign_cores:.2f} cores busy meanwhile."]
        return "\n".join([*lines, "", measured_on(self.hardware, self.versions, self.hardware.cores)])


def run(
    bundle: str | Path = BUNDLE,
    index: str = INDEX,
    seconds: float = 5.0,
    soak_seconds: float = 60.0,
    clients: Sequence[int] = CLIENTS,
    encoders: Sequence[str] = ENCODERS,
) -> LoadReport:
    """Start the servers, one after the other, and ask.

    Args:
        bundle: of engines.
        index: made with its model.
        seconds: of each kind of request at each number of clients.
        soak_seconds: of the load without a pause; 0: none.
        clients: how many ask at once.
        encoders: that Triton is asked for; those that the bundle lacks are left out.

    Raises:
        ConfigError: there is no bundle; `make demo` leaves one where the default looks.
        ServingError: a server does not start.
    """
    if not Path(bundle).is_dir():
        raise ConfigError(f"there is no bundle at {bundle}", "make the demo's: eao demo; or name one: --model BUNDLE")
    hardware = describe_hardware()
    opened = Bundle(bundle)
    asked = [encoder for encoder in encoders if encoder in opened.encoders]
    engines = {encoder: f"{e.engine} {e.precision}" for encoder in asked if (e := opened.entry(encoder))}
    rows: list[LoadRow] = []
    with foreign_load() as others, tempfile.TemporaryDirectory(prefix="eao-bench-") as folder:
        for instances in INSTANCES:
            with triton_server(bundle, Path(folder) / str(instances), instances) as triton:
                for way in (way for encoder in asked for way in triton_ways(opened, encoder, triton)):
                    rows += [measure(way, count, seconds, triton.pid) for count in clients]
        with service(bundle, index) as (pid, port):
            clips = fetch_json(port, "/health")["clips"]
            sentences = new_sentences()
            for way in service_ways(port, sentences):
                rows += [measure(way, count, seconds, pid) for count in clients]
            soak = soak_service(port, pid, max(clients), soak_seconds, sentences) if soak_seconds else None
    packages = ("tritonclient", "fastapi", "uvicorn", "onnxruntime", "torch")
    return LoadReport(
        hardware=hardware,
        versions={**{name: version(name) for name in packages}, "tritonserver": triton.version},
        bundle=str(bundle),
        engines=engines,
        clips=clips,
        foreign_cores=others.cores,
        rows=rows,
        soak=soak,
    )


class Way(NamedTuple):
    """A kind of request to a server: how clients open, and where the server says how many rows it embedded in how many
    batches."""

    server: str
    request: str
    open_client: Opener
    batches: Callable[[], tuple[float, float]]


class Triton(NamedTuple):
    """A running Triton Inference Server."""

    pid: int
    http_port: int
    grpc_port: int
    version: str
    instances: int


def measure(way: Way, clients: int, seconds: float, pid: int) -> LoadRow:
    """Ask for a while, after a fifth of the time to warm up."""
    ask_in_loops(way.open_client, clients, seconds / 5)
    rows, batches = _settled(way.batches)
    traffic = ask_in_loops(way.open_client, clients, seconds)
    rows_then, batches_then = _settled(way.batches)
    batch = (rows_then - rows) / (batches_then - batches) if batches_then > batches else None
    return LoadRow(
        server=way.server,
        request=way.request,
        clients=clients,
        traffic=traffic,
        batch=batch,
        memory_mb=memory_bytes(pid) / 1e6,
    )


def _settled(read: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    # Servers count after they have answered, rows and batches one after the other. Of one that goes on counting, though
    # nobody asks it any more, the last reading is as good as another.
    found = read()
    for _ in range(_MOST_READINGS):
        time.sleep(_PAUSE_SECONDS)
        before, found = found, read()
        if found == before:
            break
    return found


@contextmanager
def triton_server(bundle: str | Path, repository: Path, instances: int) -> Iterator[Triton]:
    """Triton Inference Server with the models of a bundle, on loopback and ports of its own."""
    http_port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "eao", "serve", "triton", "--bundle", str(bundle), "--out", str(repository)]
    command += ["--instances", str(instances), "--up", "--metrics-port", "0"]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    with running(command, http_port, "/v2/health/ready", seconds=600) as pid:
        # The command only waits for the server, which is its child.
        (server,) = [each for each in descendants(pid) if process_name(each) == "tritonserver"]
        yield Triton(server, http_port, grpc_port, fetch_json(http_port, "/v2")["version"], instances)


def triton_ways(bundle: Bundle, encoder: str, triton: Triton) -> list[Way]:
    """One row of random tensors at the longest sizes the model was trained on, by either protocol."""
    data = bundle.config.data
    longest = {
        TEXT_TOKENS: data.text.max_words,
        VIDEO_TOKENS: data.video_tokens,
        SPECTROGRAM_FRAMES: data.audio_frames,
    }
    specs = bundle.manifest.specs(encoder)
    feeds = random_feeds(specs, plan_points(specs, longest, (1,), (1.0,))[0].sizes)

    def batches() -> tuple[float, float]:
        stats = fetch_json(triton.http_port, f"/v2/models/{encoder}/stats")["model_stats"][0]
        return stats["inference_count"], stats["execution_count"]

    suffix = f", {triton.instances} instances" if triton.instances > 1 else ""
    return [
        Way(TRITON_GRPC + suffix, encoder, triton_grpc_clients(triton.grpc_port, encoder, feeds), batches),
        Way(TRITON_HTTP + suffix, encoder, triton_http_clients(triton.http_port, encoder, feeds), batches),
    ]


@contextmanager
def service(bundle: str | Path, index: str) -> Iterator[tuple[int, int]]:
    """`eao serve` on loopback: (process, port)."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "eao", "serve", index, "--model", str(bundle), "--port", str(port)]
    with running(command, port, "/health") as pid:
        yield pid, port


def service_ways(port: int, sentences: Iterator[str]) -> list[Way]:
    """A search and an embedding, each of the next sentence."""

    def batches() -> tuple[float, float]:
        found = dict(re.findall(r'^eao_batch_size_(sum|count)\{encoder="text"\} (\S+)$', fetch(port, "/metrics"), re.M))
        return float(found.get("sum", 0)), float(found.get("count", 0))

    return [
        Way(SERVICE, "GET /search", http_clients(port, lambda: search_request(next(sentences))), batches),
        Way(SERVICE, "POST /embed", http_clients(port, lambda: embed_request(next(sentences))), batches),
    ]


def soak_service(port: int, pid: int, clients: int, seconds: float, sentences: Iterator[str]) -> Soak:
    """Three searches and an embedding in turns, while memory is watched."""
    makers = itertools.cycle((search_request, search_request, search_request, embed_request))
    opener = http_clients(port, lambda: next(makers)(next(sentences)))
    with watch_memory(lambda: memory_bytes(pid)) as memory:
        traffic = ask_in_loops(opener, clients, seconds)
    return Soak(clients=clients, traffic=traffic, memory_mb=[each / 1e6 for each in memory])


def search_request(sentence: str) -> Request:
    """As the page asks."""
    return Request("GET", f"/search?{urlencode({'q': sentence, 'k': 20})}")


def embed_request(sentence: str) -> Request:
    """One sentence."""
    body = json.dumps({"text": [sentence]}).encode()
    return Request("POST", "/embed", body, {"Content-Type": "application/json"})


def new_sentences() -> Iterator[str]:
    """Sentences of plain words, the first 73,000 all different, for any number of threads."""
    return map(_sentence, itertools.count())


def _sentence(number: int) -> str:
    words = []
    for choices in (_SUBJECTS, _COLOURS, _MOTIONS, _COLOURS, _SUBJECTS):
        number, chosen = divmod(number, len(choices))
        words.append(choices[chosen])
    first, colour, motion, other_colour, second = words
    return f"a {colour} {first} {motion} beside a {other_colour} {second}"


def _cells(traffic: Traffic) -> str:
    return f"{traffic.throughput:,.0f} | {traffic.p50_ms:,.1f} | {traffic.p99_ms:,.1f} | {traffic.failed}"
