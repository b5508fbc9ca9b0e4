from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eao.errors import ExportError
from eao.export.bundle import WrittenBundle
from eao.export.encoders import Model, input_specs
from eao.export.manifest import load_manifest
from eao.model.weights import hash_weights


@pytest.fixture
def folder(written: WrittenBundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.path, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_manifest_describes_the_model_and_its_inputs(
    written: WrittenBundle, make_model: Callable[[str], Model]
) -> None:
    manifest, model = load_manifest(written.path), make_model("plain")
    assert manifest == written.manifest
    assert manifest.model_sha256 == hash_weights(model)
    assert manifest.embedding_dim == 8
    assert {"eao", "torch", "onnx", "onnxruntime"} <= set(manifest.versions)
    for encoder in manifest.encoders:
        assert manifest.specs(encoder) == input_specs(model, encoder)
        (engine,) = manifest.of_encoder(encoder)
        assert engine.key == f"{encoder}.onnxruntime.fp32"
        assert engine.parity is not None and engine.parity.passed and not engine.parity.simulated


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is no bundle"):
        load_manifest(tmp_path)


def test_broken_json_is_damage(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ExportError, match="damaged"):
        load_manifest(folder)


def test_values_that_were_changed_are_refused_unless_the_bundle_is_older_than_the_check(folder: Path) -> None:
    before = load_manifest(folder)
    edit(folder, lambda m: m.update(embedding_dim=9))
    with pytest.raises(ExportError, match=r"manifest\.json was changed since the export"):
        load_manifest(folder)
    edit(folder, lambda m: m.update(embedding_dim=8))
    assert load_manifest(folder) == before  # another layout is no change
    edit(folder, lambda m: m.update(engines=dict(reversed(m["engines"].items()))))
    with pytest.raises(ExportError, match=r"manifest\.json was changed since the export"):
        load_manifest(folder)
    edit(folder, lambda m: m.pop("sha256"))
    assert list(load_manifest(folder).engines) == list(before.engines)[::-1]


@pytest.mark.parametrize("value", [1, "2", None])
def test_another_format_is_refused_by_name(folder: Path, value: object) -> None:
    edit(folder, lambda m: m.update(format=value))
    with pytest.raises(ExportError, match=r"has format .*reads 2"):
        load_manifest(folder)


@pytest.mark.parametrize("name", ["../text.onnx", "/etc/passwd", "a\\b", "..", "", "text/../x", "text/"])
def test_names_cannot_lead_out_of_the_bundle(folder: Path, name: str) -> None:
    edit(folder, lambda m: m["engines"]["text.onnxruntime.fp32"]["files"][0].update(file=name))
    with pytest.raises(ExportError, match=r"engines\.text\.onnxruntime\.fp32\.files\.0\.file"):
        load_manifest(folder)


def test_an_unknown_axis_is_damage(folder: Path) -> None:
    edit(folder, lambda m: m["axes"].pop("text_tokens"))
    with pytest.raises(ExportError, match="unknown axis 'text_tokens'"):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["engines"].pop("video.onnxruntime.fp32"), "encoder video has no engine"),
        (lambda m: m["engines"]["video.onnxruntime.fp32"].update(encoder="smell"), "unknown encoder 'smell'"),
        (lambda m: m["engines"]["video.onnxruntime.fp32"].update(precision="int8"), "should be called video"),
    ],
)
def test_engines_and_encoders_belong_together(
    folder: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    edit(folder, change)
    with pytest.raises(ExportError, match=says):
        load_manifest(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "video.fp32.onnx").unlink()
    with pytest.raises(ExportError, match=r"lacks video\.fp32\.onnx"):
        load_manifest(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "video.fp32.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"video\.fp32\.onnx has \d+ bytes"):
        load_manifest(folder)
