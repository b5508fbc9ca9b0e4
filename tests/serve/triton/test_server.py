"""The real server: the same embeddings as here, batches, and refusals.

Of a small model with random weights, or of another bundle:

    EAO_TEST_BUNDLE=runs/demo/bundle python -m pytest tests/serve/triton/test_server.py
"""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from eao.export.manifest import load_manifest
from eao.serve.triton.environment import Environment
from eao.serve.triton.server import Server, running

from ..conftest import BUNDLE_VARIABLE
from .conftest import ATOL, PATIENCE, Infer, client_of, settled
from .inputs import Arrays, ServedBundle, sentences_of

pytestmark = pytest.mark.slow

ENCODERS = ("text", "video", "audio", "text-video", "text-audio", "video-audio", "text-video-audio")
if BUNDLE_VARIABLE in os.environ:
    ENCODERS = tuple(load_manifest(Path(os.environ[BUNDLE_VARIABLE])).encoders)
FIRST, LAST = ENCODERS[0], ENCODERS[-1]


def test_the_bundle_has_these_encoders(tested: ServedBundle) -> None:
    assert set(tested.local.encoders) == set(ENCODERS)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("rows", "tokens", "frames"), [(1, 1, 8), (3, 4, 192), (17, 5, 64), (64, 2, 16)])
def test_an_encoder_embeds_as_here(
    infer: Infer, tested: ServedBundle, encoder: str, rows: int, tokens: int, frames: int
) -> None:
    given = tested.feeds(encoder, min(rows, tested.max_rows(encoder)), tokens, frames)
    found, wanted = infer(encoder, **given), tested.run(encoder, given)
    assert (found.shape, found.dtype) == (wanted.shape, np.float32)
    np.testing.assert_allclose(found, wanted, atol=ATOL)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("rows", "windows"), [(1, 0.6), (4, 1.4), (2, 0.002)])
@pytest.mark.parametrize("sound", ["waveform", "log_mel"])
def test_an_ensemble_embeds_as_here(
    infer: Infer, tested: ServedBundle, encoder: str, rows: int, windows: float, sound: str
) -> None:
    given = tested.raw(encoder, rows, windows, sound)
    np.testing.assert_allclose(infer(f"embed-{encoder}", **given), tested.expected(encoder, given), atol=ATOL)


def test_a_clip_without_sound_has_a_spectrogram_of_no_frames(infer: Infer, tested: ServedBundle) -> None:
    tested.require("video-audio")
    given = {**tested.raw("video", 2, 0.6), "log_mel": np.zeros((2, 40, 0), np.float32)}
    np.testing.assert_allclose(infer("embed-video-audio", **given), tested.expected("video-audio", given), atol=ATOL)


def test_requests_that_come_together_share_a_run(server: Server, tested: ServedBundle) -> None:
    given = tested.feeds(LAST)
    wanted = tested.run(LAST, given)
    rows, runs = settled(server, LAST)
    asked = shared = 0
    deadline = time.monotonic() + PATIENCE
    clients = [client_of(server, "grpc") for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        while not shared and time.monotonic() < deadline:  # clients that are slow to ask do not come together
            found = list(pool.map(lambda i: clients[i % 16]._infer(LAST, **given), range(160)))
            assert all(np.allclose(row, wanted, atol=ATOL) for row in found)
            asked += 160
            rows_then, runs_then = settled(server, LAST, rows + asked)
            shared = asked - (runs_then - runs)
    for client in clients:
        client.client.close()
    assert rows_then - rows == asked
    assert shared > 0


def filled(arrays: Arrays, value: float) -> Arrays:
    return {name: np.full_like(array, value) for name, array in arrays.items()}


BAD: dict[str, tuple[str, Callable[[ServedBundle], Arrays]]] = {
    "no words": ("embed-text", lambda _: {"sentence": sentences_of("red", " ")}),
    "unknown words": ("embed-text", lambda _: {"sentence": sentences_of("red", "xyzzy")}),
    "not UTF-8": ("embed-text", lambda _: {"sentence": np.array([[b"\xff\xfe"]], dtype=object)}),
    "another width": ("text", lambda t: t.changed("text", text=lambda x: x[..., 1:])),
    "another type": ("text", lambda t: t.changed("text", text=lambda x: x.astype(np.float16))),
    "a missing input": ("text", lambda t: {"text": t.feeds("text")["text"]}),
    "an unknown input": ("text", lambda t: {**t.feeds("text"), "more": np.ones((1, 5), bool)}),
    "lengths that differ": ("text", lambda t: t.changed("text", text_mask=lambda x: x[:, 1:])),
    "too many rows": ("text", lambda t: t.feeds("text", t.max_rows("text") + 1)),
    "no rows": ("text", lambda t: t.changed("text", text=lambda x: x[:0], text_mask=lambda x: x[:0])),
    "frames of no whole token": (
        "audio",
        lambda t: t.changed("audio", audio=lambda x: x[..., 1:], audio_mask=lambda x: x[:, 1:]),
    ),
    "no sound": ("embed-video-audio", lambda t: t.raw("video", 1, 0.6)),
    "two kinds of sound": (
        "embed-audio",
        lambda t: {**t.raw("audio", 1, 0.6, "waveform"), **t.raw("audio", 1, 0.6, "log_mel")},
    ),
    "not finite": ("embed-audio", lambda t: filled(t.raw("audio", 1, 0.6), np.nan)),
    "features not finite": ("embed-video", lambda t: filled(t.raw("video", 1, 0.6), np.inf)),
    "no such model": ("smell", lambda t: t.feeds(FIRST)),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_bad_request_is_the_callers_fault_and_the_server_lives_on(
    server: Server, tested: ServedBundle, case: str, protocol: str
) -> None:
    from tritonclient.utils import InferenceServerException

    model, make = BAD[case]
    if model != "smell":
        tested.require(model.removeprefix("embed-"))
    if case == "unknown words" and tested.local.config.data.text.encoder != "word2vec":
        pytest.skip("the text encoder of this bundle knows all words")
    with client_of(server, protocol) as ask, pytest.raises(InferenceServerException) as caught:
        ask(model, **make(tested))
    assert str(caught.value.status()) in ("400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")
    with client_of(server, protocol) as ask:
        assert ask(FIRST, **tested.feeds(FIRST)).shape == (1, tested.local.embedding_dim)


@pytest.mark.parametrize("body", [b"", b'{"inputs": [{"name": "text"}]}'], ids=["nothing", "an input without data"])
def test_a_body_that_lacks_something_is_the_callers_fault(server: Server, body: bytes) -> None:
    assert requests.post(f"http://{server.http}/v2/models/{FIRST}/infer", data=body, timeout=60).status_code == 400


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"inputs": 3}', b"\x00" * 1000], ids=["{", "[]", "a number", "zeros"])
def test_a_body_that_is_no_request_is_refused_and_the_server_lives_on(server: Server, body: bytes) -> None:
    reply = requests.post(f"http://{server.http}/v2/models/{FIRST}/infer", data=body, timeout=60)
    # Triton's own reader of JSON says 500 (in 2.51) to what is no JSON, and names the fault.
    assert reply.status_code in (400, 500)
    assert "parse" in reply.json()["error"]
    assert requests.get(f"http://{server.http}/v2/health/ready", timeout=60).status_code == 200


def test_one_bad_request_does_not_spoil_those_it_shares_a_run_with(server: Server, tested: ServedBundle) -> None:
    from tritonclient.utils import InferenceServerException

    tested.require("audio")
    good = tested.feeds("audio")
    bad = tested.changed("audio", audio_mask=lambda x: x[:, ::2])
    wanted = tested.run("audio", good)
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
        assert f'nv_inference_request_success{{model="{FIRST}"' in reply.read().decode()


def test_it_listens_on_loopback_only(server: Server) -> None:
    ports = {int(address.rpartition(":")[2]) for address in (server.http, server.grpc, server.metrics)}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {(row[1].split(":")[0], int(row[1].split(":")[1], 16)) for row in rows if row[3] == "0A"}
    assert {address for address, port in listening if port in ports} == {"0100007F"}


def test_loading_and_unloading_under_traffic_loses_nothing(tested: ServedBundle, environment: Environment) -> None:
    from tritonclient.http import InferenceServerClient

    given = tested.feeds(FIRST)
    wanted = tested.run(FIRST, given)
    wrong: list[Exception | None] = []
    answered = [0] * 4
    stop = threading.Event()

    def traffic(i: int) -> None:
        with client_of(server, "grpc" if i % 2 else "http") as ask:
            while not stop.is_set():
                try:
                    if not np.allclose(ask(FIRST, **given), wanted, atol=ATOL):
                        wrong.append(None)
                    answered[i] += 1
                except Exception as error:
                    wrong.append(error)

    def wait_until_all_are_answered_again() -> None:
        before, deadline = list(answered), time.monotonic() + PATIENCE
        while any(now == then for now, then in zip(answered, before, strict=True)):
            assert time.monotonic() < deadline, (before, answered, wrong)
            time.sleep(0.01)

    with running(tested.repository, environment=environment) as server:
        control = InferenceServerClient(server.http)
        threads = [threading.Thread(target=traffic, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(3):
                control.load_model(FIRST)  # again, while the old one answers
                control.unload_model(f"embed-{LAST}")
                control.unload_model(LAST)
                assert not control.is_model_ready(LAST)
                control.load_model(LAST)
                control.load_model(f"embed-{LAST}")
                assert control.is_model_ready(f"embed-{LAST}")
                wait_until_all_are_answered_again()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            control.close()
    assert wrong == []
