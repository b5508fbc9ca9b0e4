"""`--encoder triton://...` in place of a model on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("tritonclient")
pytest.importorskip("lancedb")

from eao.cli import app
from eao.embedder import Embedder
from eao.errors import ConfigError, RetrievalError
from eao.retrieval.index import Index

from .conftest import Served

PROTOCOLS = ("grpc", "http")
Eao = Callable[..., Result]


@pytest.fixture
def eao() -> Eao:
    """Run a command that succeeds."""

    def run(*arguments: object) -> Result:
        done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"}, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    return run


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, bundle: Path, clips: Path) -> Path:
    """Made by the bundle's engines here."""
    folder: Path = tmp_path_factory.mktemp("index") / "index"
    Index(folder, bundle).add(clips)
    return folder


def found(output: str) -> list[tuple[str, float]]:
    return [(hit["id"], pytest.approx(hit["score"], abs=1e-5)) for hit in json.loads(output)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_search_finds_the_same(eao: Eao, served: Served, index: Path, clips: Path, protocol: str) -> None:
    for query in (["red dog"], ["--video", clips / "red.mp4"], ["blue cat", "--audio", clips / "long.mp4"]):
        here = eao("search", *query, "-i", index, "--json")
        there = eao("search", *query, "-i", index, "--encoder", served.address(protocol), "--json")
        assert json.loads(there.stdout)
        assert [(hit["id"], hit["score"]) for hit in json.loads(there.stdout)] == found(here.stdout)


def test_embed_writes_the_same(eao: Eao, served: Served, bundle: Path, tmp_path: Path) -> None:
    eao("embed", "--encoder", served.address("grpc"), "--text", "red dog", "-o", tmp_path / "there.npy")
    eao("embed", "-m", bundle, "--text", "red dog", "-o", tmp_path / "here.npy")
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), np.load(tmp_path / "here.npy"), atol=1e-5)


def test_an_index_is_made_and_searched_by_the_server_alone(
    eao: Eao, served: Served, index: Path, clips: Path, tmp_path: Path
) -> None:
    address = served.address("grpc")
    eao("index", clips, "-o", tmp_path / "index", "--encoder", address)
    assert Index(tmp_path / "index").metadata.model == address
    # It remembers the server: nothing has to be named.
    there = eao("search", "red dog", "-i", tmp_path / "index", "--json")
    assert [(hit["id"], hit["score"]) for hit in json.loads(there.stdout)] == found(
        eao("search", "red dog", "-i", index, "--json").stdout
    )
    eao("index", "-o", tmp_path / "index", "--stats")
    with pytest.raises(RetrievalError, match="connect"):
        Index(tmp_path / "index").search("red dog")


def test_an_index_of_another_model_is_refused(served: Served, index: Path, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    copy.mkdir()
    metadata = json.loads((index / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**metadata, "model_hash": "0" * 64}))
    with pytest.raises(RetrievalError, match="was made with the model"):
        CliRunner().invoke(
            app,
            ["search", "red", "-i", str(copy), "--encoder", served.address("grpc")],
            catch_exceptions=False,
        )


@pytest.mark.slow
def test_bench_measures_the_server_beside_the_engines(eao: Eao, served: Served, bundle: Path) -> None:
    encoders = f"text,{served.address('grpc')}"
    done = eao("bench", bundle, "--encoder", encoders, "--batch", 1, "--seconds", 0.1, "--threads", 1, "--json")
    rows = json.loads(done.stdout)["rows"]
    assert [row["engine"] for row in rows] == ["onnxruntime fp32", served.address("grpc")]


def test_bench_refuses_a_server_of_other_weights(served: Served, local: Embedder) -> None:
    from eao.bench.run import run_benchmark
    from eao.serve.client import connect

    server = connect(served.address("grpc"))
    server.backend.model_hash = "0" * 64  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="serves other weights"):
        run_benchmark(local, server=server, quiet=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "x", "--model", "m", "--encoder", "triton://h"], "one of them"),
        (["search", "x", "--encoder", "h:8001"], "write it as triton://host:port"),
        (["embed", "--text", "x"], "give --model or --encoder"),
        (["bench", "loss", "--index", "i"], "--index: not an option of eao bench loss"),
    ],
)
def test_options_that_contradict_are_refused(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 2 and says in done.output
