"""The real server: the same embeddings as here, batches, refusals, and nothing left behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

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
from eao.serve.triton.server import Ports, Server, running

from .conftest import ATOL, Infer, client_of, sentences_of

pytestmark = pytest.mark.slow

ENCODERS = ("text", "video", "audio", "text-video", "text-audio", "video-audio", "text-video-audio")
SENTENCES = ["red dog runs", "blue", "it's a cat that sleeps left of the right dog", "dog unknown cat", "right"]


def feeds(local: Embedder, encoder: str, rows: int, tokens: int, frames: int) -> dict[str, np.ndarray]:
    """Random inputs of an encoder's model, of any length."""
    rng = np.random.default_rng(rows * 1000 + tokens)
    model = local.config.model
    made = {
        "text": rng.standard_normal((rows, tokens, model.text_dim), dtype=np.float32),
        "text_mask": rng.random((rows, tokens)) < 0.7,
        "video": rng.standard_normal((rows, tokens, model.video_dim), dtype=np.float32),
        "video_mask": rng.random((rows, tokens)) < 0.7,
        "audio": rng.uniform(-80, 0, (rows, 40, frames)).astype(np.float32),
        "audio_mask": np.arange(frames) < rng.integers(1, frames + 1, (rows, 1)),
    }
    for mask in ("text_mask", "video_mask"):
        made[mask][:, 0] = True
    return {name: array for name, array in made.items() if name.partition("_")[0] in encoder.split("-")}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("rows", "tokens", "frames"), [(1, 1, 8), (3, 4, 192), (17, 5, 64), (64, 2, 16)])
def test_an_encoder_embeds_as_here(
    infer: Infer, local: Embedder, encoder: str, rows: int, tokens: int, frames: int
) -> None:
    given = feeds(local, encoder, rows, tokens, frames)
    found = infer(encoder, **given)
    assert (found.shape, found.dtype) == ((rows, 32), np.float32)
    np.testing.assert_allclose(found, local.backend.run(encoder, given), atol=ATOL)  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("rows", "frames", "seconds"), [(1, 3, 1.0), (4, 9, 2.6), (2, 1, 0.004)])
@pytest.mark.parametrize("sound", ["waveform", "log_mel"])
def test_an_ensemble_embeds_as_here(
    infer: Infer,
    expected: Callable[..., np.ndarray],
    encoder: str,
    rows: int,
    frames: int,
    seconds: float,
    sound: str,
) -> None:
    rng = np.random.default_rng(rows)
    video = rng.standard_normal((rows, frames, 98)).astype(np.float32)
    waves = (rng.standard_normal((rows, round(16_000 * seconds))) * 0.1).astype(np.float32)
    spectrograms = np.stack([log_mel(wave) for wave in waves])
    clips = [ClipFeatures(None, v, s, seconds) for v, s in zip(video, spectrograms, strict=True)]
    text = [SENTENCES[i % len(SENTENCES)] for i in range(rows)]
    given: dict[str, np.ndarray] = {}
    if "text" in encoder:
        given["sentence"] = sentences_of(*text)
    if "video" in encoder:
        given["video_3d"] = video
    if "audio" in encoder:
        given[sound] = waves if sound == "waveform" else spectrograms
    wanted = expected(encoder, text, clips)
    np.testing.assert_allclose(infer(f"embed-{encoder}", **given), wanted, atol=ATOL)


def test_a_clip_without_sound_has_a_spectrogram_of_no_frames(infer: Infer, expected: Callable[..., np.ndarray]) -> None:
    video = np.ones((2, 3, 98), np.float32)
    clips = [ClipFeatures(None, v, None, 1.0) for v in video]
    found = infer("embed-video-audio", video_3d=video, log_mel=np.zeros((2, 40, 0), np.float32))
    np.testing.assert_allclose(found, expected("video-audio", None, clips), atol=ATOL)


def test_requests_that_come_together_share_a_run(server: Server, local: Embedder) -> None:
    given = feeds(local, "video", 1, 4, 64)
    before = statistics(server, "video")
    with ThreadPoolExecutor(16) as pool:
        clients = [client_of(server, "grpc") for _ in range(16)]
        found = list(pool.map(lambda i: clients[i % 16]._infer("video", **given), range(160)))
        for client in clients:
            client.client.close()
    after = statistics(server, "video")
    count = int(after["inference_count"]) - int(before["inference_count"])
    executions = int(after["execution_count"]) - int(before["execution_count"])
    assert count == 160
    assert executions < count
    wanted = local.backend.run("video", given)  # type: ignore[attr-defined]
    assert all(np.allclose(row, wanted, atol=ATOL) for row in found)


def statistics(server: Server, model: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/stats") as reply:
        return dict(json.load(reply)["model_stats"][0])


ONES = np.ones((1, 5, 6), np.float32)
MASK = np.ones((1, 5), bool)
BAD: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "no words": ("embed-text", {"sentence": sentences_of("?!")}),
    "unknown words": ("embed-text", {"sentence": sentences_of("red", "xyzzy")}),
    "not UTF-8": ("embed-text", {"sentence": np.array([[b"\xff\xfe"]], dtype=object)}),
    "another width": ("text", {"text": np.ones((1, 5, 7), np.float32), "text_mask": MASK}),
    "another type": ("text", {"text": ONES.astype(np.float16), "text_mask": MASK}),
    "a missing input": ("text", {"text": ONES}),
    "an unknown input": ("text", {"text": ONES, "text_mask": MASK, "more": MASK}),
    "lengths that differ": ("text", {"text": ONES, "text_mask": np.ones((1, 4), bool)}),
    "too many rows": ("text", {"text": np.ones((65, 5, 6), np.float32), "text_mask": np.ones((65, 5), bool)}),
    "no rows": ("text", {"text": np.ones((0, 5, 6), np.float32), "text_mask": np.ones((0, 5), bool)}),
    "frames of no whole token": (
        "audio",
        {"audio": np.zeros((1, 40, 65), np.float32), "audio_mask": np.ones((1, 65), bool)},
    ),
    "no sound": ("embed-video-audio", {"video_3d": np.ones((1, 2, 98), np.float32)}),
    "two kinds of sound": (
        "embed-audio",
        {"waveform": np.zeros((1, 500), np.float32), "log_mel": np.zeros((1, 40, 9), np.float32)},
    ),
    "not finite": ("embed-audio", {"waveform": np.full((1, 500), np.nan, np.float32)}),
    "features not finite": ("embed-video", {"video_3d": np.full((1, 2, 98), np.inf, np.float32)}),
    "no such model": ("smell", {"text": ONES}),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_bad_request_is_the_callers_fault_and_the_server_lives_on(server: Server, case: str, protocol: str) -> None:
    from tritonclient.utils import InferenceServerException

    model, given = BAD[case]
    with client_of(server, protocol) as ask, pytest.raises(InferenceServerException) as caught:
        ask(model, **given)
    assert str(caught.value.status()) in ("400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")
    with client_of(server, protocol) as ask:
        assert ask("text", text=ONES, text_mask=MASK).shape == (1, 32)


@pytest.mark.parametrize("body", [b"", b'{"inputs": [{"name": "text"}]}'], ids=["nothing", "an input without data"])
def test_a_body_that_lacks_something_is_the_callers_fault(server: Server, body: bytes) -> None:
    assert requests.post(f"http://{server.http}/v2/models/text/infer", data=body, timeout=10).status_code == 400


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"inputs": 3}', b"\x00" * 1000], ids=["{", "[]", "a number", "zeros"])
def test_a_body_that_is_no_request_is_refused_and_the_server_lives_on(server: Server, body: bytes) -> None:
    reply = requests.post(f"http://{server.http}/v2/models/text/infer", data=body, timeout=10)
    # Triton's own reader of JSON says 500 (in 2.51) to what is no JSON, and names the fault.
    assert reply.status_code in (400, 500)
    assert "parse" in reply.json()["error"]
    assert requests.get(f"http://{server.http}/v2/health/ready", timeout=10).status_code == 200


def test_one_bad_request_does_not_spoil_those_it_shares_a_run_with(server: Server, local: Embedder) -> None:
    from tritonclient.utils import InferenceServerException

    good = feeds(local, "audio", 1, 1, 64)
    bad = {"audio": np.zeros((1, 40, 64), np.float32), "audio_mask": np.ones((1, 32), bool)}
    wanted = local.backend.run("audio", good)  # type: ignore[attr-defined]
    outcomes: list[bool] = []

    def ask(i: int) -> None:
        with client_of(server, "http") as infer:
            if i % 4:
                outcomes.append(np.allclose(infer("audio", **good), wanted, atol=ATOL))
            else:
                with pytest.raises(InferenceServerException):
                    infer("audio", **bad)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(48)))
    assert outcomes == [True] * 36


def test_metrics_are_there(server: Server) -> None:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as reply:
        assert b'nv_inference_request_success{model="text"' in reply.read()


def test_it_listens_on_loopback_only(server: Server) -> None:
    ports = {int(address.rpartition(":")[2]) for address in (server.http, server.grpc, server.metrics)}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {(row[1].split(":")[0], int(row[1].split(":")[1], 16)) for row in rows if row[3] == "0A"}
    assert {address for address, port in listening if port in ports} == {"0100007F"}


def test_loading_and_unloading_under_traffic_loses_nothing(
    written: Path, environment: Environment, local: Embedder
) -> None:
    from tritonclient.http import InferenceServerClient

    given = {"text": ONES, "text_mask": MASK}
    wanted = local.backend.run("text", given)  # type: ignore[attr-defined]
    wrong: list[Exception | None] = []
    answered = [0] * 4
    stop = threading.Event()

    def traffic(i: int) -> None:
        with client_of(server, "grpc" if i % 2 else "http") as ask:
            while not stop.is_set():
                try:
                    if not np.allclose(ask("text", **given), wanted, atol=ATOL):
                        wrong.append(None)
                    answered[i] += 1
                except Exception as error:
                    wrong.append(error)

    with running(written, environment=environment) as server:
        control = InferenceServerClient(server.http)
        threads = [threading.Thread(target=traffic, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            control.load_model("text")  # again, while the old one answers
            control.unload_model("embed-video-audio")
            control.unload_model("video-audio")
            assert not control.is_model_ready("video-audio")
            control.load_model("video-audio")
            control.load_model("embed-video-audio")
            assert control.is_model_ready("embed-video-audio")
        stop.set()
        for thread in threads:
            thread.join()
        control.close()
    assert wrong == []
    assert min(answered) > 10


def test_it_is_stopped_with_nothing_left(bundle: Path, environment: Environment, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "out", encoders=["video"])
    before = set(os.listdir("/dev/shm"))
    with running(tmp_path / "out", environment=environment) as server:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert len(children) == 2  # a process for each Python model
        started = set(os.listdir("/dev/shm")) - before
        assert started and all(name.startswith("eao_triton_") for name in started)
        os.kill(int(children[0]), signal.SIGKILL)  # a crash leaves its memory behind
        log = server.log
    assert server.process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in (server.pid, *children))
    assert not started & set(os.listdir("/dev/shm"))
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
    assert time.monotonic() - begun < 15  # and not the 30 s that requests may take
    connection.close()


def test_requests_under_way_are_answered_before_the_server_stops(
    written: Path, environment: Environment, expected: Callable[..., np.ndarray]
) -> None:
    video = np.ones((64, 40, 98), np.float32)
    waves = np.sin(np.arange(320_000) / 7).astype(np.float32)[None].repeat(64, 0)  # a second of work and more
    wanted = expected(
        "video-audio",
        None,
        [ClipFeatures(None, v, log_mel(w), 20.0) for v, w in zip(video[:1], waves[:1], strict=True)],
    )
    with ThreadPoolExecutor(1) as pool:
        with running(written, environment=environment) as server:
            ask = client_of(server, "grpc")
            answer = pool.submit(ask._infer, "embed-video-audio", video_3d=video, waveform=waves)
            while not any(int(statistics(server, m)["inference_count"]) for m in ("prepare-video", "prepare-audio")):
                assert not answer.done()
                time.sleep(0.01)
        found = answer.result(10)
        ask.client.close()
    np.testing.assert_allclose(found, wanted.repeat(64, 0), atol=ATOL)


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
