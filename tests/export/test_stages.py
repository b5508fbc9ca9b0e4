"""Parts of the model as graphs of their own: they chain to what the model computes, and lie in bundles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eao.api import load
from eao.cli import app
from eao.config import Config
from eao.errors import ConfigError, DataError, ExportError, ParityError
from eao.export import stages
from eao.export.build import Options
from eao.export.bundle import WrittenBundle, write_bundle
from eao.export.cases import parity_cases
from eao.export.encoders import Model, varying_axes
from eao.export.run import export_bundle
from eao.export.runtime import Bundle, Stage
from eao.export.stages import STAGES, ExportedStage, choose_stages, export_stage, relative_error, stage_specs
from eao.model import Batch

MakeModel = Callable[[str], Model]
MakeStage = Callable[[str, str], ExportedStage]


@pytest.fixture(scope="module")
def make_stage(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> MakeStage:
    """(variant, stage) -> its graph, exported once."""
    folder: Path = tmp_path_factory.mktemp("stages")
    done: dict[tuple[str, str], ExportedStage] = {}

    def make(variant: str, stage: str) -> ExportedStage:
        key = variant, stage
        if key not in done:
            done[key] = export_stage(make_model(variant), stage, folder / f"{variant}.{stage}.onnx", threads=1)
        return done[key]

    return make


def opened(stage: ExportedStage) -> Stage:
    return Stage(stage.path, stage.name, stage.inputs, threads=1)


def reshaped(mask: torch.Tensor, tokens: int) -> np.ndarray:
    """Which tokens are real, from which spectrogram frames are."""
    return mask.numpy().reshape(len(mask), tokens, -1).any(-1)


@pytest.mark.parametrize("variant", ["plain", "positional", "nearest", "max_pool", "clip"])
def test_davenet_and_tokens_chain_to_the_audio_tokens_of_the_model(
    make_model: MakeModel, make_stage: MakeStage, variant: str
) -> None:
    model = make_model(variant)
    davenet, tokens = opened(make_stage(variant, "davenet")), opened(make_stage(variant, "tokens-audio"))
    for case in parity_cases(model, "audio", seed=5):  # other values than those of the export's own proof
        batch = case.batch
        features = davenet.run({"audio": batch.audio})
        feeds = {"audio_features": features, "audio_token_mask": reshaped(batch.audio_mask, features.shape[1])}
        if batch.audio_frames is not None:
            feeds["audio_lengths"] = batch.audio_frames // model.davenet.stride
        with torch.inference_mode():
            expected = model.tokens(batch, "audio")
        error = relative_error(expected.x.numpy(), tokens.run(feeds), expected.mask.numpy())
        assert error < 1e-4, case.name  # that of each stage alone


@pytest.mark.parametrize(
    ("variant", "stage"), [("cls", "tokens-text"), ("positional", "tokens-video"), ("per-modality", "tokens-text")]
)
def test_tokens_of_text_and_video_are_those_of_the_model(
    make_model: MakeModel, make_stage: MakeStage, variant: str, stage: str
) -> None:
    model, modality = make_model(variant), stage.removeprefix("tokens-")
    session = opened(make_stage(variant, stage))
    for case in parity_cases(model, modality, seed=5):
        feeds = {name: getattr(case.batch, name) for name in (modality, f"{modality}_mask")}
        with torch.inference_mode():
            expected = model.tokens(case.batch, modality)
        error = relative_error(expected.x.numpy(), session.run(feeds), expected.mask.numpy())
        assert error < 1e-5, case.name  # one product and a LayerNorm


def test_the_audio_network_of_avlnet_is_a_stage(make_model: MakeModel, make_stage: MakeStage) -> None:
    audio = torch.randn(3, 40, 14)
    with torch.inference_mode():
        expected = make_model("avlnet").DAVEnet(audio).transpose(1, 2)
    found = opened(make_stage("avlnet", "davenet")).run({"audio": audio})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "varying"),
    [("davenet", ["batch", "spectrogram_frames"]), ("tokens-audio", ["batch", "audio_tokens"])],
)
def test_lengths_vary_and_the_audio_network_takes_less_than_positional_models_need(
    make_model: MakeModel, stage: str, varying: list[str]
) -> None:
    axes = varying_axes(stage_specs(make_model("nearest"), stage))
    assert list(axes) == varying
    assert axes[varying[1]].minimum == {"davenet": 16, "tokens-audio": 4}[stage]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["tokens"], ("tokens-text", "tokens-video", "tokens-audio")),
        (["tokens-video", "davenet", "davenet"], ("davenet", "tokens-video")),
        (["tokens", "davenet"], STAGES),
        ([], ()),
    ],
)
def test_stages_are_chosen_once_in_one_order(make_model: MakeModel, names: list[str], chosen: tuple[str, ...]) -> None:
    assert choose_stages(make_model("plain"), names) == chosen


@pytest.mark.parametrize(
    ("variant", "name", "says"),
    [
        ("plain", "smell", "there is no stage 'smell'"),
        ("plain", "tokens-smell", "there is no stage"),
        ("avlnet", "tokens", "avlnet model has no fusion transformer"),
        ("text-video", "davenet", "text-video model does not use audio"),
        ("text-video", "tokens-audio", "does not use audio"),
    ],
)
def test_stages_that_a_model_does_not_have_are_refused_with_the_reason(
    make_model: MakeModel, variant: str, name: str, says: str
) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        choose_stages(make_model(variant), [name])
    assert "this model offers" in caught.value.hint


def test_a_stage_that_does_not_agree_is_not_written(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "LIMIT", -1.0)
    with pytest.raises(ParityError, match=r"stage tokens-video: relative error \S+ > -1 \(batch"):
        export_stage(make_model("plain"), "tokens-video", tmp_path / "s.onnx", threads=1)
    assert list(tmp_path.iterdir()) == []


def test_the_error_is_that_of_the_worst_real_token() -> None:
    expected = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    found, real = expected.copy(), np.ones((2, 3), dtype=bool)
    found[1, 2] *= 1.25
    assert relative_error(expected, found, real) == pytest.approx(0.25)
    real[1, 2] = False
    assert relative_error(expected, found, real) == 0
    found[0, 0, 0] = np.nan
    assert np.isnan(relative_error(expected, found, real))


@pytest.fixture(scope="module")
def bundle(
    make_model: MakeModel,
    make_config: Callable[[str], Config],
    clips: list[Batch],
    tmp_path_factory: pytest.TempPathFactory,
) -> WrittenBundle:
    """One encoder and all stages, with their weights in one file."""
    out: Path = tmp_path_factory.mktemp("bundles") / "stages"
    options = Options(threads=1, share_weights=True)
    return write_bundle(
        make_model("plain"), out, make_config("plain"), "text", options=options, batches=clips, stages=STAGES
    )


def test_a_moved_bundle_runs_its_stages(
    bundle: WrittenBundle, make_model: MakeModel, clips: list[Batch], tmp_path: Path
) -> None:
    moved = Bundle(shutil.copytree(bundle.path, tmp_path / "elsewhere"), threads=1)
    with torch.inference_mode():
        expected = make_model("plain").tokens(clips[0], "text").x
    found = moved.stage("tokens-text").run({"text": clips[0].text, "text_mask": clips[0].text_mask})
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_manifest_describes_the_stages(bundle: WrittenBundle, make_model: MakeModel) -> None:
    described = Bundle(bundle.path).manifest.stages
    assert tuple(described) == STAGES
    for name, entry in described.items():
        assert entry.specs == stage_specs(make_model("plain"), name)
        assert 0 <= entry.relative_error < 1e-4 and entry.output == "output"
        assert entry.files[0].file == f"{name}.fp32.onnx"


def test_stages_share_the_weights_of_the_encoders(bundle: WrittenBundle) -> None:
    assert [file.file for file in bundle.manifest.stages["tokens-text"].files][1:] == ["weights.fp32.bin"]
    assert "weights.fp32.bin" in {file.file for file in bundle.manifest.engines["text.onnxruntime.fp32"].files}


def test_one_changed_byte_of_a_stage_is_refused(bundle: WrittenBundle, clips: list[Batch], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "b"))
    path = folder / "davenet.fp32.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ExportError, match=r"davenet\.fp32\.onnx was changed since the export"):
        Bundle(folder).stage("davenet")
    assert Bundle(folder).encode(clips[0], "text").shape == (5, 8)  # the engine is whole


def test_a_stage_that_the_bundle_lacks_is_named(bundle: WrittenBundle) -> None:
    with pytest.raises(ConfigError, match="no stage 'smell'") as caught:
        Bundle(bundle.path).stage("smell")
    assert "--stage" in caught.value.hint


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ({"spectrogram": np.zeros((2, 40, 8))}, "was given spectrogram"),
        ({"audio": np.zeros((2, 40, 7))}, "7 spectrogram_frames.*multiple of 2"),
        ({"audio": np.zeros((2, 39, 8))}, r"\(2, 39, 8\).*\(batch, 40, spectrogram_frames\)"),
        ({"audio": np.zeros((2, 40, 8), dtype=np.int32)}, "int32.*takes float32"),
    ],
)
def test_wrong_inputs_of_a_stage_are_named(bundle: WrittenBundle, feeds: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(DataError, match=says):
        Bundle(bundle.path).stage("davenet").run(feeds)


@pytest.fixture
def run(experiment: Callable[..., Config], tmp_path: Path) -> Path:
    from eao.training.run import run_training

    run_training(experiment(trainer={"epochs": 1}), tmp_path / "run", quiet=True)
    return tmp_path / "run"


def test_the_command_writes_stages_and_uses_them_again(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    arguments = ["export", run, "--out", out, "--encoder", "text", "--stage", "tokens-text,tokens-video", "--json"]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert list(report["stages"]) == ["tokens-text", "tokens-video"] and max(report["stages"].values()) < 1e-4
    assert list(Bundle(out).manifest.stages) == ["tokens-text", "tokens-video"]
    made = (out / "manifest.json").stat().st_mtime_ns
    export_bundle(load(run), out, encoders=["text"], stages=["tokens-video"], reuse=True, quiet=True)
    assert (out / "manifest.json").stat().st_mtime_ns == made
    export_bundle(load(run), out, encoders=["text"], stages=["tokens-audio"], reuse=True, quiet=True)
    assert list(Bundle(out).manifest.stages) == ["tokens-audio"]


def test_an_unknown_stage_is_said_before_any_work(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no stage 'smell'"):
        export_bundle(load(run), tmp_path / "bundle", stages=["smell"], quiet=True)
    assert not (tmp_path / "bundle").exists()
