"""The load on both servers: the real ones, in little time."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from eao.bench import load
from eao.bench.closed_loop import Traffic
from eao.bench.hardware import Hardware
from eao.cli import app
from eao.errors import ConfigError

from ..serve.conftest import bundle, clips  # noqa: F401

HARDWARE = Hardware(cpu="C", cores=2, memory_gb=8, system="S", load_average=0)


def traffic(**changes: object) -> Traffic:
    values = {"requests": 500, "seconds": 5.0, "p50_ms": 9.5, "p99_ms": 1234.5, "max_ms": 2000.0, "errors": {}}
    return Traffic.model_validate(values | changes)


def report(soak: load.Soak | None = None, errors: dict[str, int] | None = None) -> load.LoadReport:
    rows = [
        load.LoadRow(
            server=server,
            request="text",
            clients=8,
            traffic=traffic(errors=errors or {}),
            batch=batch,
            memory_mb=300.4,
        )
        for server, batch in ((load.TRITON_GRPC, 4.25), (load.SERVICE, None))
    ]
    return load.LoadReport(
        hardware=HARDWARE,
        versions={"torch": "2"},
        bundle="b",
        engines={"text": "onnxruntime fp32"},
        clips=1200,
        foreign_cores=0.25,
        rows=rows,
        soak=soak,
    )


@pytest.mark.slow
def test_both_servers_are_started_asked_and_stopped(
    bundle: Path,  # noqa: F811
    clips: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tritonclient")
    pytest.importorskip("lancedb")
    from eao.retrieval.index import Index

    index = tmp_path / "index"
    Index(index, bundle).add(clips)
    # The words that this small model knows.
    monkeypatch.setattr(load, "_sentence", lambda number: ("red dog", "blue cat", "cat runs", "dog sleeps")[number % 4])
    found = load.run(bundle, str(index), seconds=0.5, soak_seconds=8, clients=(1, 4))
    ways = [(row.server, row.request, row.clients) for row in found.rows]
    assert ways == [
        (server, request, clients)
        for server, request in (
            (load.TRITON_GRPC, "text"),
            (load.TRITON_HTTP, "text"),
            (load.TRITON_GRPC, "video-audio"),
            (load.TRITON_HTTP, "video-audio"),
            (f"{load.TRITON_GRPC}, 2 instances", "text"),
            (f"{load.TRITON_HTTP}, 2 instances", "text"),
            (f"{load.TRITON_GRPC}, 2 instances", "video-audio"),
            (f"{load.TRITON_HTTP}, 2 instances", "video-audio"),
            (load.SERVICE, "GET /search"),
            (load.SERVICE, "POST /embed"),
        )
        for clients in (1, 4)
    ]
    for row in found.rows:
        assert row.traffic.errors == {} and row.traffic.requests > 0
        assert 20 < row.memory_mb < 3000
        assert row.batch is None or 1 <= row.batch <= row.clients
    assert all(row.batch for row in found.rows if row.server != load.SERVICE)
    assert found.clips == 5 and found.versions["tritonserver"].count(".") == 2
    assert found.soak is not None and found.soak.traffic.failed == 0 and len(found.soak.memory_mb) >= 4
    assert "8 s of searches and embeddings by 4 clients" in found.to_markdown()


def test_counts_are_read_once_they_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_PAUSE_SECONDS", 0)
    counted = iter([(7.0, 2.0), (8.0, 2.0), (8.0, 3.0), (8.0, 3.0), (9.0, 3.0)])
    assert load._settled(lambda: next(counted)) == (8, 3)


def test_the_page_shows_what_was_measured() -> None:
    text = report().to_markdown()
    assert "| Triton, gRPC | text | 8 | 100 | 9.5 | 1,234.5 | 0 | 4.2 | 300 |" in text
    assert "| eao serve | text | 8 | 100 | 9.5 | 1,234.5 | 0 |  | 300 |" in text
    assert "text by onnxruntime fp32" in text and "1,200 clips" in text and "0.25 cores busy" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "[!]" not in text and "searches and embeddings" not in text


def test_errors_are_named_under_the_table() -> None:
    text = report(errors={"GET: status 503 busy": 3}).to_markdown()
    assert "| 3 | 4.2 |" in text and "[!] Errors: GET: status 503 busy." in text


def test_growth_is_told_without_the_warm_up() -> None:
    memory = [*[100.0] * 5, *[300.0] * 5, *[310.0] * 5, *[305.0] * 5]
    soak = load.Soak(clients=32, traffic=traffic(seconds=60.0), memory_mb=memory)
    assert soak.growth_mb == 5
    text = report(soak).to_markdown()
    assert "60 s of searches and embeddings by 32 clients" in text and "0 errors" in text
    assert "100 MB at the start, 310 MB at most, 305 MB at the end (+5.0 MB" in text


def test_a_run_of_seconds_has_a_growth_too() -> None:
    assert load.Soak(clients=1, traffic=traffic(), memory_mb=[100.0]).growth_mb == 0


def test_sentences_do_not_repeat() -> None:
    sentences = load.new_sentences()
    made = [next(sentences) for _ in range(20_000)]
    assert len(set(made)) == len(made)
    assert made[0] == "a red dog moves left beside a red dog"


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no bundle at .*nothing"):
        load.run(tmp_path / "nothing")
    # The command takes the bundle and the index, also where folders are called as its parts are.
    arguments = ["bench", "load", "--model", str(tmp_path / "nothing"), "--index", "i", "--seconds", "1"]
    with pytest.raises(ConfigError, match="no bundle at .*nothing"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
