"""Embeddings from the real Triton Inference Server, beside those of the same engines in this process."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient")

from eao.embedder import Embedder
from eao.errors import ConfigError, DataError, MissingDependencyError, ServingError
from eao.export.runtime import batch_feeds
from eao.serve.client import TritonBackend, TritonClient, connect
from eao.serve.client_connection import Address
from eao.serve.client_models import ServedModel, choose_encoders

from .conftest import Served

ATOL = 1e-5  # the same graph in the same runtime; batches of other sizes may sum in another order
PROTOCOLS = ("grpc", "http")
SENTENCES = ["red dog runs", "blue cat", "cat sleeps left", "dog", "right"]


@pytest.fixture(params=[(protocol, shared) for protocol in PROTOCOLS for shared in (False, True)], ids=str)
def remote(served: Served, request: pytest.FixtureRequest) -> Iterator[Embedder]:
    """The server's encoders by each protocol, with and without shared memory."""
    protocol, shared = request.param
    embedder = connect(served.address(protocol), shared_memory=shared)
    yield embedder
    backend = embedder.backend
    assert isinstance(backend, TritonBackend)
    backend.client.close()


@pytest.fixture(params=PROTOCOLS)
def client(served: Served, request: pytest.FixtureRequest) -> Iterator[TritonClient]:
    with TritonClient(served.address(request.param), retries=0) as client:
        yield client


def feeds(local: Embedder, encoder: str, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows of an encoder's inputs."""
    rng = np.random.default_rng(seed)
    model, data = local.config.model, local.config.data
    made = {
        "text": rng.standard_normal((rows, data.text.max_words, model.text_dim), dtype=np.float32),
        "text_mask": np.ones((rows, data.text.max_words), bool),
        "video": rng.standard_normal((rows, data.video_tokens, model.video_dim), dtype=np.float32),
        "video_mask": np.ones((rows, data.video_tokens), bool),
        "audio": rng.uniform(-80, 0, (rows, 40, data.audio_frames)).astype(np.float32),
        "audio_mask": np.ones((rows, data.audio_frames), bool),
    }
    return {name: array for name, array in made.items() if name.partition("_")[0] in encoder.split("-")}


def shared_memory(process: int) -> set[str]:
    """The names of the regions that clients of a process have."""
    return {path.name for path in Path("/dev/shm").glob(f"eao-{process}-*")}


def test_the_server_is_the_same_model(remote: Embedder, local: Embedder) -> None:
    assert remote.encoders == local.encoders
    assert remote.model_hash == local.model_hash
    assert remote.embedding_dim == local.embedding_dim
    assert remote.config.features == local.config.features


def test_every_encoder_embeds_as_here(remote: Embedder, local: Embedder) -> None:
    backend = remote.backend
    assert isinstance(backend, TritonBackend)
    for encoder in local.encoders:
        given = feeds(local, encoder, rows=3)
        found = backend.run(encoder, given)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, local.backend.run(encoder, given), atol=ATOL)  # type: ignore[attr-defined]


def test_sentences_and_files_embed_as_here(remote: Embedder, local: Embedder, clips: Path) -> None:
    clip, silent = clips / "red.mp4", clips / "quiet" / "blue.mp4"
    np.testing.assert_allclose(remote.embed(text=SENTENCES), local.embed(text=SENTENCES), atol=ATOL)
    for given in (
        {"video": [clip, silent]},
        {"audio": [clip]},
        {"video": [clip, silent], "audio": [clip, silent]},
        {"text": SENTENCES[:2], "video": [clip, silent]},
        {"text": SENTENCES[:2], "video": [silent, clip], "audio": [silent, clip]},
    ):
        np.testing.assert_allclose(remote.embed(**given), local.embed(**given), atol=ATOL)  # type: ignore[arg-type]


def test_whole_files_embed_as_here(remote: Embedder, local: Embedder, clips: Path) -> None:
    here, there = (model.embed_clips(clips / "long.mp4") for model in (local, remote))
    assert [(clip.start, clip.end) for clip in here] == [(clip.start, clip.end) for clip in there]
    for one, other in zip(here, there, strict=True):
        assert one.vectors.keys() == other.vectors.keys()
        for encoder, vector in one.vectors.items():
            np.testing.assert_allclose(other.vectors[encoder], vector, atol=ATOL)


def test_more_rows_than_the_server_takes_at_once_are_split(remote: Embedder, local: Embedder) -> None:
    backend = remote.backend
    assert isinstance(backend, TritonBackend)
    most = backend.client.models()["text"].max_batch_size
    given = feeds(local, "text", rows=2 * most + 3)
    found = backend.run("text", given)
    np.testing.assert_allclose(found, local.backend.run("text", given), atol=ATOL)  # type: ignore[attr-defined]


def test_threads_share_a_client(remote: Embedder, local: Embedder) -> None:
    backend = remote.backend
    assert isinstance(backend, TritonBackend)
    given = [feeds(local, "text", rows=1 + i % 3, seed=i) for i in range(40)]
    expected = [local.backend.run("text", each) for each in given]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: backend.run("text", each), given))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=ATOL)


def test_requests_of_asyncio_are_under_way_together(client: TritonClient, local: Embedder) -> None:
    given = [feeds(local, "text", rows=2, seed=i) for i in range(10)]

    async def embed() -> list[np.ndarray]:
        return await asyncio.gather(*(client.aembed("text", each) for each in given))

    for _ in range(2):  # each in an event loop of its own
        for one, each in zip(asyncio.run(embed()), given, strict=True):
            np.testing.assert_allclose(one, local.backend.run("text", each), atol=ATOL)  # type: ignore[attr-defined]


def test_a_task_that_is_cancelled_leaves_the_client_usable(client: TritonClient, local: Embedder) -> None:
    given = feeds(local, "text", rows=2)

    async def cancel() -> None:
        task = asyncio.ensure_future(client.aembed("text", given))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert client.embed("text", given).shape == (2, local.embedding_dim)


def test_words_are_encoded_here_where_their_file_is_named(served: Served, local: Embedder) -> None:
    path = local.config.data.text.path
    embedder = connect(served.address("grpc"), [f"data.text.path={path}"])
    assert embedder.backend.encode_sentences(["dog"], None, "text") is None  # type: ignore[attr-defined]
    np.testing.assert_allclose(embedder.embed(text=SENTENCES), local.embed(text=SENTENCES), atol=ATOL)


def test_shared_memory_is_given_back(served: Served, local: Embedder) -> None:
    before = shared_memory(os.getpid())
    with TritonClient(served.address("grpc"), shared_memory=True) as client:
        for rows in (1, 7):
            client.embed("text", feeds(local, "text", rows))
        assert shared_memory(os.getpid()) > before
    assert shared_memory(os.getpid()) == before
    client = TritonClient(served.address("http"), shared_memory=True)
    client.embed("text", feeds(local, "text", 1))
    with pytest.raises(DataError):
        client.embed("text", {"text": np.zeros((1, 2, 3), np.float32)})
    del client  # not closed
    gc.collect()
    assert shared_memory(os.getpid()) == before


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_program_that_ends_leaves_nothing_and_says_nothing(served: Served, protocol: str) -> None:
    program = f"""
import os
from pathlib import Path
import numpy as np
from eao.serve.client import TritonClient
client = TritonClient("{served.address(protocol)}", shared_memory=True)
size = client.models()["text"].inputs[0].shape[-1]
rows = client.embed("text", {{"text": np.ones((2, 3, size), np.float32), "text_mask": np.ones((2, 3), bool)}})
print(rows.shape[0], len(list(Path("/dev/shm").glob(f"eao-{{os.getpid()}}-*"))))
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.communicate()
    assert (process.returncode, *said) == (0, "2 1\n", "")
    assert shared_memory(process.pid) == set()


@pytest.mark.parametrize("shared", [False, True])
def test_what_the_server_refuses_is_not_sent_again(served: Served, local: Embedder, shared: bool) -> None:
    wrong = feeds(local, "text", rows=2)
    wrong["text"] = wrong["text"][:, :, :-1]
    for protocol in PROTOCOLS:
        with TritonClient(served.address(protocol), retries=50, shared_memory=shared) as client:  # would take years
            with pytest.raises(DataError, match="refuses the request for text"):
                client.embed("text", wrong)
            assert len(client.embed("text", feeds(local, "text", rows=2))) == 2


def test_shapes_are_checked_before_they_are_sent(remote: Embedder, local: Embedder) -> None:
    batch = local.batch(text=["dog"])
    assert batch.text is not None
    batch.text = batch.text[:, :, :-1]
    with pytest.raises(DataError, match=r"Batch.text has shape .* but encoder 'text' takes \(batch, text_tokens, 6\)"):
        remote.backend.encode(batch, "text")


def test_a_sentence_without_a_known_word_is_refused(remote: Embedder) -> None:
    with pytest.raises(DataError, match="vocabulary|word"):
        remote.embed(text=["dog", "xyzzy"])


def test_a_model_that_is_not_there_is_named(client: TritonClient) -> None:
    with pytest.raises(ServingError, match="has no model 'texts' that is ready"):
        client.embed("texts", {"text": np.zeros((1, 2, 6), np.float32)})


def test_settings_of_the_model_cannot_be_changed(served: Served) -> None:
    with pytest.raises(ConfigError, match="cannot be changed"):
        connect(served.address("grpc"), ["model.embedding_dim=12"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nobody_there_is_told_with_the_next_step(protocol: str, free_port: int) -> None:
    with pytest.raises(ServingError, match="no Triton Inference Server answers") as caught:
        connect(f"triton+{protocol}://127.0.0.1:{free_port}", retries=1)
    assert "eao serve triton" in caught.value.hint


def test_the_port_of_the_other_protocol_is_no_server(served: Served) -> None:
    with pytest.raises(ServingError, match="no Triton Inference Server answers"):
        connect(f"triton+grpc://{served.server.http}", retries=0, timeout=60)
    with pytest.raises(ServingError, match="no Triton Inference Server answers"):
        connect(f"triton+http://{served.server.grpc}", retries=0, timeout=60)


def test_an_answer_that_takes_too_long_is_given_up(served: Served, local: Embedder) -> None:
    with TritonClient(served.address("grpc")) as client:
        client.models()
        client._connection.timeout = 1e-4
        with pytest.raises(ServingError, match="no answer for text within"):
            client.embed("text", feeds(local, "text", rows=8))


@pytest.mark.parametrize(
    ("text", "protocol", "target"),
    [
        ("triton://host:9", "grpc", "host:9"),
        ("triton+grpc://host", "grpc", "host:8001"),
        ("triton+http://10.0.0.1/", "http", "10.0.0.1:8000"),
        ("triton://[::1]:5", "grpc", "[::1]:5"),
    ],
)
def test_addresses(text: str, protocol: str, target: str) -> None:
    assert Address.parse(text) == Address(protocol, target)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["host:8001", "http://host", "triton+ftp://host", "triton://", "triton://a/b"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        TritonClient(text)


def test_without_tritonclient_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingDependencyError, match="tritonclient") as caught:
        TritonClient("triton://localhost")
    assert ".[triton-client]" in caught.value.hint


def test_encoders_of_several_models_are_not_one_model() -> None:
    models = {
        name: ServedModel(name, (), 8, 4, {"model_sha256": digest, "config": ""})
        for name, digest in (("text", "a" * 64), ("video", "b" * 64))
    }
    with pytest.raises(ServingError, match="different weights"):
        choose_encoders(models, "triton://host")
    with pytest.raises(ServingError, match="no encoders"):
        choose_encoders({}, "triton://host")


def test_inputs_of_a_batch_fit_the_server(local: Embedder, clips: Path) -> None:
    """Also those that have one number a row, which Triton gives an axis of their own."""
    config = {
        "name": "audio",
        "max_batch_size": 8,
        "input": [
            {"name": "audio", "data_type": "TYPE_FP32", "dims": ["40", "-1"]},
            {"name": "audio_mask", "data_type": "TYPE_BOOL", "dims": ["-1"]},
            {"name": "audio_frames", "data_type": "TYPE_INT64", "dims": ["1"], "reshape": {}},
        ],
        "output": [{"name": "embedding", "data_type": "TYPE_FP32", "dims": ["32"]}],
    }
    model = ServedModel.parse(config)
    assert model is not None and not model.is_encoder
    batch = local.batch(clips=[local.extractor.extract(clips / "red.mp4")], encoder="audio")
    shapes = {name: array.shape[1:] for name, array in batch_feeds(batch, model.inputs, "audio").items()}
    assert shapes["audio_frames"] == () and shapes["audio"][0] == 40
