"""`eao index` and `eao search` as commands."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eao import cli
from eao.checkpoint import save_native
from eao.config import FeaturesConfig
from eao.embedder import Embedder
from eao.features.extract import extract_folder
from eao.model import build_model
from eao.retrieval.index import Index

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def eao(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["eao", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return int(str(code)), out, err

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    save_native(path, embedder.backend.model, embedder.config)  # type: ignore[attr-defined]
    return path


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory, clips: Path, embedder: Embedder) -> Path:
    folder = tmp_path_factory.mktemp("features") / "F"
    extract_folder([clips], folder, embedder.config.features)
    return folder


def test_the_model_is_found_where_it_is_named(
    eao: Run, model: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    monkeypatch.delenv("EAO_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    code, _, err = eao("index", features, "-o", index)
    assert code == 2 and "no model is named" in err and "EAO_MODEL" in err
    monkeypatch.setenv("EAO_MODEL", "nothing")
    code, _, err = eao("index", features, "-o", index)
    assert code == 2 and "nothing" in err
    (features / "source.json").write_text(json.dumps({"model": str(model)}))  # goes before the variable
    code, out, _ = eao("index", features, "-o", index, "--json")
    assert code == 0 and json.loads(out)["clips"] == 6
    (features / "source.json").write_text("{")
    code, out, _ = eao("index", features, "-o", index, "--json")  # that of the index goes first
    assert code == 0 and json.loads(out)["skipped"] == 4
    code, _, err = eao("index", features, "-o", tmp_path / "other")
    assert code == 2 and "source.json" in err
    (features / "source.json").unlink()


def test_the_three_commands_find_the_demos_model(
    eao: Run, embedder: Embedder, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EAO_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)
    widths = embedder.config.model.model_copy(update={"video_dim": 1280 + 98})
    config = embedder.config.model_copy(update={"model": widths, "features": FeaturesConfig()})
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    save_native(tmp_path / "runs" / "demo" / "bundle", build_model(widths), config)
    assert eao("extract", clips, "--out", "F", "--features", "efficientnet,audio")[0] == 0
    code, _, err = eao("index", "F")
    assert code == 0 and "taking the demo's" in err
    code, out, err = eao("search", "red square", "--json")
    assert code == 0 and len(json.loads(out)) == 4 and "taking" not in err


def test_an_index_is_made_searched_changed_and_described(
    eao: Run, model: Path, features: Path, clips: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    code, out, _ = eao("index", features, "-m", model, "-o", index, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["folders of features"] == 1 and not index.exists()
    assert eao("index", features, "-m", model, "-o", index)[0] == 0
    code, out, _ = eao("search", "red square", "-i", index, "--explain", "--json")
    hits = json.loads(out)
    assert code == 0 and len(hits) == 4
    assert hits[0]["clips"][0]["score"] == hits[0]["score"]
    assert hits[0]["explanation"]["strongest"] in hits[0]["explanation"]["matches"]
    code, out, _ = eao("search", "red square", "-i", index, "--explain")
    assert code == 0 and "found by" in out and " sd)" in out
    code, out, _ = eao("search", "red", "-i", index, "--where-folder", clips / "quiet", "--exact", "--json")
    assert [Path(hit["file"]).name for hit in json.loads(out)] == ["blue.mp4"]
    code, out, _ = eao("search", "red", "-i", index, "--min-duration", 4, "--json")
    assert [Path(hit["file"]).name for hit in json.loads(out)] == ["long.mp4"]
    code, out, _ = eao("search", "red", "-i", index, "--before", "2001-02-03", "--json")
    assert code == 0 and json.loads(out) == []
    code, out, _ = eao("search", "red", "-i", index, "--after", "2001-02-03", "-k", 2, "--json")
    assert len(json.loads(out)) == 2
    code, out, _ = eao("index", "-o", index, "--remove", clips / "red.mp4", "--remove", hits[-1]["id"], "--json")
    assert code == 0 and json.loads(out)["removed clips"] >= 1
    code, out, _ = eao("index", "-o", index, "--compact", "--json")
    assert code == 0 and json.loads(out)["clips"] == len(Index(index))
    code, out, _ = eao("index", "-o", index, "--stats")
    assert code == 0 and "clips" in out and "float32" in out


def test_optimizing_prints_what_it_costs(eao: Run, model: Path, embedder: Embedder, tmp_path: Path) -> None:
    from .test_killed import write_features

    features = write_features(tmp_path / "features", embedder, files=150)
    index = Index(tmp_path / "index", model)
    index.add_features(features)
    captions = tmp_path / "captions.csv"
    captions.write_text('file,caption\n"/gone/clip 001\'s %.mp4",red square\n"/gone/clip 002\'s %.mp4",green tone\n')
    code, out, _ = eao(
        "index", "-o", index.path, "--optimize", "int8", "--reduce", 16, "--captions", captions, "--json"
    )
    report = json.loads(out)
    assert code == 0 and report["after"]["layout"] == "float32, reduced to 16, int8"
    assert report["before"]["recall10"] == 1 and report["after"]["recall10"] > 0.5
    assert report["queries"] == "2 captions" and report["after"]["R10"] in (0, 50, 100)
    code, out, _ = eao("index", "-o", index.path, "--optimize", "none")
    assert code == 0 and "recall@10" in out and "build s" in out
    code, _, err = eao("index", "-o", index.path, "--optimize", "float8")
    assert code == 2 and "int8" in err
    code, _, err = eao("index", "-o", index.path, "--optimize", "pq", "--reduce", 32)
    assert code == 2 and "cannot be reduced to 32" in err
    assert np.isfinite(Index(index.path).search("red square")[0].score)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to do"),
        (["--stats", "--compact"], "one at a time"),
        (["--stats", "--reduce", "3"], "go with --optimize"),
        (["--stats"], "there is no index at index"),
    ],
)
def test_options_that_say_nothing_are_refused(
    eao: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = eao("index", *arguments)
    assert code == 2 and says in err
    assert not list(tmp_path.iterdir())
