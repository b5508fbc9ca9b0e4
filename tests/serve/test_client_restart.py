"""A client whose server goes away and comes back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient")

from eao.embedder import Embedder
from eao.errors import ServingError
from eao.ports import free_ports
from eao.serve.client import TritonClient
from eao.serve.triton.environment import Environment
from eao.serve.triton.repository import write_repository
from eao.serve.triton.server import Ports, running

PROTOCOLS = ("grpc", "http")


@pytest.fixture(scope="module")
def repository(environment: Environment, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one encoder: it starts sooner."""
    out: Path = tmp_path_factory.mktemp("restart") / "repository"
    write_repository(bundle, out, encoders=["text"])
    return out


@pytest.mark.slow
def test_a_server_that_was_gone_is_used_again(repository: Path, environment: Environment, local: Embedder) -> None:
    ports = Ports(*free_ports(3))
    rng = np.random.default_rng(0)
    given = {"text": rng.standard_normal((2, 5, 6), dtype=np.float32), "text_mask": np.ones((2, 5), bool)}
    expected = local.backend.run("text", given)  # type: ignore[attr-defined]
    patient: list[np.ndarray] = []
    # Of four retries, the least that outlast gRPC's own wait of a second: channels to one address share it, and another
    # client may have begun it just before the server came.
    clients = {
        (protocol, shared): TritonClient(f"triton+{protocol}://127.0.0.1:{port}", retries=4, shared_memory=shared)
        for protocol, port in (("grpc", ports.grpc), ("http", ports.http))
        for shared in (False, True)
    }
    # Up to half an hour, in waits that double: the last one takes no longer than the server took to start.
    waiting = TritonClient(f"triton://127.0.0.1:{ports.grpc}", retries=14)
    with running(repository, ports, environment):
        for client in (*clients.values(), waiting):
            np.testing.assert_allclose(client.embed("text", given), expected, atol=1e-5)
    for client in clients.values():
        with pytest.raises(ServingError, match="no Triton Inference Server answers"):
            client.embed("text", given)
    thread = threading.Thread(target=lambda: patient.append(waiting.embed("text", given)))
    thread.start()  # asks while nobody is there
    with running(repository, ports, environment):
        # Those with shared memory find that the server knows none of their regions any more.
        for client in clients.values():
            np.testing.assert_allclose(client.embed("text", given), expected, atol=1e-5)
        thread.join()
        np.testing.assert_allclose(patient[0], expected, atol=1e-5)
    for client in (*clients.values(), waiting):
        client.close()
    assert not list(Path("/dev/shm").glob(f"eao-{os.getpid()}-*"))


@pytest.mark.slow
def test_a_model_that_is_unloaded_is_named_and_found_again(
    repository: Path, environment: Environment, local: Embedder
) -> None:
    from tritonclient.http import InferenceServerClient

    given = {"text": np.ones((1, 5, 6), np.float32), "text_mask": np.ones((1, 5), bool)}
    with running(repository, environment=environment) as server:
        control = InferenceServerClient(server.http)
        for protocol in PROTOCOLS:
            with TritonClient(f"triton+{protocol}://{getattr(server, protocol)}", retries=1) as client:
                client.embed("text", given)
                control.unload_model("text", unload_dependents=False)
                control.unload_model("embed-text")
                with pytest.raises(ServingError, match="has no model 'text' that is ready"):
                    client.embed("text", given)
                control.load_model("text")
                assert client.embed("text", given).shape == (1, local.embedding_dim)
        control.close()
