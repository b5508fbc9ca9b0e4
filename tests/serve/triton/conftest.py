"""Repositories to try things on, requests to the real server, and the Python models of the repository by themselves."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

pytest.importorskip("tritonclient")

from eao.api import load
from eao.config import Config, DataConfig, ModelConfig, TextConfig
from eao.export.build import Options, Request
from eao.export.bundle import write_bundle
from eao.model import build_model
from eao.serve.triton.environment import Environment
from eao.serve.triton.repository import write_repository
from eao.serve.triton.server import Server, running

from ..conftest import BUNDLE_VARIABLE
from .inputs import ServedBundle

MODELS = Path(__file__).parents[3] / "serve" / "triton" / "models"
PATIENCE = 120.0
"""Seconds until what a test waits for has to be there, on a busy machine too."""
ATOL = 1e-5  # the same graph in the same runtime; batches of other sizes may sum in another order


@pytest.fixture(scope="session")
def written(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the small model's encoders. Tests that change it copy it first."""
    out: Path = tmp_path_factory.mktemp("written") / "repository"
    write_repository(bundle, out)
    return out


@pytest.fixture
def repository(written: Path, tmp_path: Path) -> Path:
    """A copy of a repository, to spoil."""
    return Path(shutil.copytree(written, tmp_path / "repository"))


@pytest.fixture(scope="session")
def tested(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedBundle:
    """The bundle that the environment variable names, or the small one."""
    named = os.environ.get(BUNDLE_VARIABLE)
    bundle = Path(named) if named else request.getfixturevalue("bundle")
    repository = tmp_path_factory.mktemp("tested") / "repository"
    write_repository(bundle, repository)
    return ServedBundle(bundle, repository, load(bundle, device="cpu"))


@pytest.fixture(scope="session")
def server(tested: ServedBundle, environment: Environment) -> Iterator[Server]:
    """The real server of that bundle, for all tests that leave it as it is."""
    with running(tested.repository, environment=environment) as started:
        yield started


Infer = Callable[..., np.ndarray]


@pytest.fixture(params=["http", "grpc"])
def infer(server: Server, request: pytest.FixtureRequest) -> Iterator[Infer]:
    """`infer(model, name=array, ...)` sends a request by each protocol and gives the embeddings."""
    with client_of(server, request.param) as ask:
        yield ask


class client_of:  # noqa: N801 - used as a function
    """A connection to a server, as a function from a model and its inputs to embeddings."""

    def __init__(self, server: Server, protocol: str) -> None:
        self.module = importlib.import_module(f"tritonclient.{protocol}")
        self.client = self.module.InferenceServerClient(getattr(server, protocol))

    def __enter__(self) -> Infer:
        return self._infer

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def _infer(self, model: str, output: str = "embedding", **arrays: np.ndarray) -> np.ndarray:
        from tritonclient.utils import np_to_triton_dtype

        inputs = []
        for name, array in arrays.items():
            inputs.append(self.module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        return self.client.infer(model, inputs).as_numpy(output)


def counted(server: Server, model: str) -> tuple[int, int]:
    """How many rows the server has counted of a model, and in how many runs."""
    with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/stats") as reply:
        found = json.load(reply)["model_stats"][0]
    return int(found["inference_count"]), int(found["execution_count"])


def settled(server: Server, model: str, rows: int = 0) -> tuple[int, int]:
    """What the server has counted of a model, see `counted`, once that are so many rows at least and it rests.

    It counts a request a moment after it has answered, rows and runs one after the other.
    """
    found: list[tuple[int, int]] = []
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found.append(counted(server, model))
        if found[-1][0] >= rows and len(found) >= 5 and len(set(found[-5:])) == 1:
            return found[-1]
        time.sleep(0.1)
    raise AssertionError(f"{model} does not come to rest at {rows} rows: {found[-5:]}")


def load_model_file(kind: str, name: str) -> ModuleType:
    """A module of a Python model, which in the server is imported from its own folder."""
    spec = importlib.util.spec_from_file_location(f"tested_{name}", MODELS / kind / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def bert_folder(folder: Path) -> Path:
    """A BERT with random weights, whose word pieces are single letters and a longer one."""
    from transformers import BertConfig, BertModel

    letters = "abcdefghijklmnopqrstuvwxyz?!'[]視"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), "cab"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=len(pieces), max_position_embeddings=40, **sizes)).save_pretrained(folder)
    return folder


def clip_folder(folder: Path) -> Path:
    """A CLIP text tower with random weights, whose word pieces are single letters and a longer one."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    letters = "abcdefghijklmnopqrstuvwxyz'"
    pieces = [*letters, *(x + "</w>" for x in letters), "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "projection_dim": 16, "num_hidden_layers": 2}
    ends = {"bos_token_id": ids["<|startoftext|>"], "eos_token_id": ids["<|endoftext|>"]}
    config = CLIPTextConfig(vocab_size=len(ids), num_attention_heads=2, max_position_embeddings=14, **sizes, **ends)
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


TEXT_FOLDERS = {"minilm": bert_folder, "clip": clip_folder}


@pytest.fixture(scope="session")
def make_text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(kind of text encoder, engine) -> a bundle of the encoder `text`, exported once."""
    made: dict[tuple[str, str], Path] = {}

    def make(kind: str, engine: str = "onnxruntime", max_words: int = 7) -> Path:
        if (kind, engine) not in made:
            folder: Path = tmp_path_factory.mktemp(kind)
            (folder / "model").mkdir()
            path = TEXT_FOLDERS[kind](folder / "model")
            model = ModelConfig(
                text_dim=16,
                video_dim=8,
                embedding_dim=8,
                fusion={"embed_dim": 16, "num_heads": 2},
                audio={"version": "v1", "channels": (4, 4), "blocks": (1,)},
            )
            text = TextConfig(encoder=kind, path=str(path), max_words=max_words)
            torch.manual_seed(0)
            made[kind, engine] = write_bundle(
                build_model(model).eval(),
                folder / "bundle",
                Config(model=model, data=DataConfig(text=text, video_tokens=4, audio_frames=64)),
                "text",
                [Request(engine, "fp32")],
                Options(threads=1),
            ).path
        return made[kind, engine]

    return make
