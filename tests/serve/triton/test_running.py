"""Servers of a test's own: stopped with nothing left behind, overloaded, of faulty repositories and of other models."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eao.api import load
from eao.config import Config, DataConfig, ModelConfig
from eao.embedder import Embedder
from eao.errors import ServingError
from eao.export.build import Options
from eao.export.bundle import write_bundle
from eao.export.runtime import batch_feeds
from eao.features.extractor import ClipFeatures
from eao.features.spectrogram import log_mel
from eao.model import build_model
from eao.serve.triton.environment import Environment
from eao.serve.triton.repository import write_repository
from eao.serve.triton.schema import read_config, write_config
from eao.serve.triton.server import Ports, _reason, running

from .conftest import ATOL, PATIENCE, client_of, counted, settled
from .inputs import sentences_of

pytestmark = pytest.mark.slow
BEFORE_NETWORKS = ("prepare-video", "prepare-audio")


def mapped_regions(pid: int | str) -> set[str]:
    """The names of the shared memory that a process has mapped and that is still in the file system."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.partition("/dev/shm/")[2] for line in lines if "/dev/shm/" in line and "(deleted)" not in line}


def test_it_is_stopped_with_nothing_left(bundle: Path, environment: Environment, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "out", encoders=["video"])
    with running(tmp_path / "out", environment=environment) as server:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert len(children) == 2  # a process for each Python model
        command = Path(f"/proc/{server.pid}/cmdline").read_text()
        prefix = re.findall(r"shm-region-prefix-name=(\w+)", command)[0]
        regions = {name for pid in (server.pid, *children) for name in mapped_regions(pid)}
        assert regions and all(name.startswith(prefix) for name in regions)
        os.kill(int(children[0]), signal.SIGKILL)  # a crash leaves its memory behind
        log = server.log
    assert server.process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in (server.pid, *children))
    assert not [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]
    assert not log.exists()


def test_a_client_that_keeps_its_connection_does_not_keep_the_server(
    bundle: Path, environment: Environment, tmp_path: Path
) -> None:
    write_repository(bundle, tmp_path / "out", encoders=["text"])
    with running(tmp_path / "out", environment=environment) as server:
        connection = http.client.HTTPConnection(server.http)
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        begun = time.monotonic()
    assert server.process.returncode == 0
    assert time.monotonic() - begun < 29  # and not the 30 s that requests may take
    connection.close()


def test_requests_under_way_are_answered_before_the_server_stops(
    written: Path, environment: Environment, local: Embedder
) -> None:
    video = np.ones((64, 40, 98), np.float32)
    waves = np.sin(np.arange(320_000) / 7).astype(np.float32)[None].repeat(64, 0)  # a second of work and more
    wanted = local.embed_features([ClipFeatures(None, video[0], log_mel(waves[0]), 20.0)])
    with ThreadPoolExecutor(1) as pool:
        with running(written, environment=environment) as server:
            ask = client_of(server, "grpc")
            under_way, deadline = False, time.monotonic() + PATIENCE
            while not under_way and time.monotonic() < deadline:
                begun = [settled(server, model) for model in BEFORE_NETWORKS]
                answer = pool.submit(ask._infer, "embed-video-audio", video_3d=video, waveform=waves)
                while not answer.done() and not under_way:
                    under_way = [counted(server, model) for model in BEFORE_NETWORKS] != begun and not answer.done()
                    time.sleep(0.01)
                if not under_way:  # it was answered before that was seen
                    answer.result()
            assert under_way
        found = answer.result(PATIENCE)
        ask.client.close()
    np.testing.assert_allclose(found, wanted.repeat(64, 0), atol=ATOL)


def test_requests_beyond_the_queue_are_refused_and_the_server_lives_on(
    repository: Path, environment: Environment, local: Embedder
) -> None:
    from tritonclient.utils import InferenceServerException

    config = read_config(repository / "text")
    config.dynamic_batching.default_queue_policy.max_queue_size = 2
    # Requests wait this long for more rows than can come, so that those of all threads meet in the queue.
    config.dynamic_batching.max_queue_delay_microseconds = 2_000_000
    del config.dynamic_batching.preferred_batch_size[:]
    write_config(config, repository / "text")
    given = {"text": np.ones((1, 5, 6), np.float32), "text_mask": np.ones((1, 5), bool)}
    wanted = local.backend.run("text", given)  # type: ignore[attr-defined]

    def ask(protocol: str) -> str:
        with client_of(server, protocol) as infer:
            try:
                np.testing.assert_allclose(infer("text", **given), wanted, atol=ATOL)
            except InferenceServerException as error:
                return str(error.status() if "queue size" in error.message() else error)
        return "answered"

    with running(repository, environment=environment) as server, ThreadPoolExecutor(8) as pool:
        for protocol, status in (("http", "503"), ("grpc", "StatusCode.UNAVAILABLE")):
            outcomes: set[str] = set()
            deadline = time.monotonic() + PATIENCE
            while outcomes != {"answered", status} and time.monotonic() < deadline:
                outcomes |= set(pool.map(ask, [protocol] * 8))
            assert outcomes == {"answered", status}
            assert ask(protocol) == "answered"


def test_refused_requests_do_not_keep_a_model_from_being_unloaded(written: Path, environment: Environment) -> None:
    from tritonclient.utils import InferenceServerException

    good = {"sentence": sentences_of("red"), "video_3d": np.ones((1, 2, 98), np.float32)}
    bad = {
        "sentence": sentences_of("?!"),
        "video_3d": np.full((1, 2, 98), np.nan, np.float32),
        "waveform": np.full((1, 500), np.nan, np.float32),
    }
    with running(written, environment=environment) as server, client_of(server, "http") as ask:
        for name in bad:
            with pytest.raises(InferenceServerException):
                ask("embed-text-video-audio", **{**good, "waveform": np.ones((1, 500), np.float32), name: bad[name]})
    assert server.process.returncode == 0  # not so where a model is left over


def test_a_model_that_does_not_load_is_named(repository: Path, environment: Environment) -> None:
    (repository / "audio" / "1" / "model.onnx").write_bytes(b"no graph")
    with (
        pytest.raises(ServingError, match=r"did not start\n.*audio.*model\.onnx"),
        running(repository, environment=environment),
    ):
        pytest.fail("it is ready")


def test_an_abort_is_told_beside_the_errors_of_every_start(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text('E1130 16:01:02.3 7 a.cc:9] "no CUDA"\nI1130 16:01:02.4 7 b.cc:9] "starting"\nterminate called\n')
    assert _reason(log).split("\n     ") == ["no CUDA", "starting", "terminate called"]


def test_a_port_that_is_taken_is_named(written: Path, environment: Environment) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = f"port {port} of 127.0.0.1 is taken"
        with pytest.raises(ServingError, match=said), running(written, Ports(grpc=port), environment):
            pytest.fail("it is ready")


@pytest.mark.parametrize(("kind", "engine"), [("minilm", "onnxruntime"), ("clip", "openvino")])
def test_sentences_by_a_network_of_words(
    make_text_bundle: Callable[..., Path], environment: Environment, tmp_path: Path, kind: str, engine: str
) -> None:
    bundle = make_text_bundle(kind, engine)
    write_repository(bundle, tmp_path / "out")
    sentences = ["a cab", "don't", "x y z a b c d e f g h", "ab"]
    wanted = load(bundle, device="cpu").embed(text=sentences)
    with running(tmp_path / "out", environment=environment) as server:
        for protocol in ("http", "grpc"):
            with client_of(server, protocol) as ask:
                found = ask("embed-text", sentence=sentences_of(*sentences))
                np.testing.assert_allclose(found, wanted, atol=ATOL)
                alone = ask("embed-text", sentence=sentences_of(sentences[2]))
                np.testing.assert_allclose(alone, wanted[2:3], atol=ATOL)


def test_the_length_of_a_spectrogram_reaches_a_model_that_takes_it(environment: Environment, tmp_path: Path) -> None:
    """A number per row, which Triton knows as an axis of its own."""
    model = ModelConfig(
        text_dim=6,
        video_dim=8,
        embedding_dim=8,
        fusion={"embed_dim": 16, "num_heads": 2},
        audio={"version": "v1", "channels": (4, 4, 4, 4, 4), "blocks": (1, 1, 1, 1)},
        use_positional_emb=True,
        text_max_tokens=6,
        video_max_tokens=4,
        audio_max_frames=64,
        audio_pooling="nearest",
    )
    config = Config(model=model, data=DataConfig(video_tokens=4, audio_frames=128))
    bundle = write_bundle(build_model(model).eval(), tmp_path / "bundle", config, "audio", options=Options(threads=1))
    assert [spec.name for spec in bundle.manifest.specs("audio")] == ["audio", "audio_mask", "audio_frames"]
    write_repository(bundle.path, tmp_path / "out")
    local = load(bundle.path, device="cpu")
    spectrograms = np.random.default_rng(0).uniform(-80, 0, (3, 40, 100)).astype(np.float32)
    batch = local.batch(None, [ClipFeatures(None, None, x, 1.0) for x in spectrograms], "audio")
    wanted = local.backend.encode(batch, "audio")
    given = batch_feeds(batch, bundle.manifest.specs("audio"), "audio")
    given["audio_frames"] = given["audio_frames"][:, None]
    with running(tmp_path / "out", environment=environment) as server, client_of(server, "http") as ask:
        np.testing.assert_allclose(ask("audio", **given), wanted, atol=ATOL)
        np.testing.assert_allclose(ask("embed-audio", log_mel=spectrograms), wanted, atol=ATOL)
