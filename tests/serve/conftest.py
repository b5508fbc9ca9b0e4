"""A small real model as a bundle of engines, real little clips, and the real Triton server that serves them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from eao.api import load
from eao.config import Config, DataConfig, FeaturesConfig, ModelConfig, StreamConfig, TextConfig
from eao.embedder import Embedder
from eao.errors import MissingDependencyError
from eao.export.build import Options, Request
from eao.export.bundle import write_bundle
from eao.model import build_model
from eao.ports import free_ports
from eao.serve.triton.environment import Environment, prepare
from eao.serve.triton.repository import write_repository
from eao.serve.triton.server import Server, running

from ..conftest import write_word_vectors
from ..retrieval.conftest import render
from .http_service import library, site, sound, start  # noqa: F401

BUNDLE_VARIABLE = "EAO_TEST_BUNDLE"
"""Environment variable: the bundle that `tests/serve/triton/test_server.py` serves in place of a small one."""


class Served(NamedTuple):
    """A server, what it serves, and a clip."""

    server: Server
    bundle: Path
    repository: Path

    def address(self, protocol: str) -> str:
        """For `connect`."""
        return f"triton+{protocol}://{getattr(self.server, protocol)}"


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short clip, one of three windows, and one without sound in a subfolder."""
    folder: Path = tmp_path_factory.mktemp("clips")
    render(folder / "red.mp4", 1.5, (220, 20, 20), 440)
    render(folder / "long.mp4", 5.0, (200, 200, 20), 300)
    render(folder / "quiet" / "blue.mp4", 1.2, (20, 20, 220), None)
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of all encoders for onnxruntime, of a model with random weights and windows of 1.92 s."""
    folder: Path = tmp_path_factory.mktemp("served")
    write_word_vectors(folder / "words.bin")
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(
            text_dim=6,
            video_dim=98,
            embedding_dim=32,
            fusion={"embed_dim": 32, "num_heads": 4},
            audio={"version": "v1", "channels": (8, 16), "blocks": (1,)},
        )
    ).eval()
    config = Config(
        model=model.config,
        data=DataConfig(text=TextConfig(path=str(folder / "words.bin"), max_words=5), video_tokens=4, audio_frames=192),
        features=FeaturesConfig(video_2d=None, video_3d=StreamConfig(backbone="activation-motion", rate=2.0)),
    )
    requests = [Request("onnxruntime", "fp32")]
    return write_bundle(model, folder / "bundle", config, "all", requests, Options(threads=1)).path


@pytest.fixture(scope="session")
def local(bundle: Path) -> Embedder:
    """The bundle's engines in this process."""
    return load(bundle, device="cpu")


@pytest.fixture(scope="session")
def environment() -> Environment:
    """The real Triton Inference Server, installed once. Tests skip where libpython is missing, and fail where anything
    else is."""
    try:
        return prepare(backends=("onnxruntime", "openvino"))
    except MissingDependencyError as error:
        if "libpython" not in error.message:
            raise
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.fixture(scope="session")
def served(environment: Environment, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The server, for all tests that leave it as it is."""
    repository = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(bundle, repository)
    with running(repository, environment=environment) as server:
        yield Served(server, bundle, repository)


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens at."""
    return free_ports(1)[0]
