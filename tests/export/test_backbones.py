"""Feature networks as engines: small networks of the real parts stand for the published ones, which take minutes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from eao.config import FeaturesConfig, StreamConfig
from eao.errors import ConfigError, ExportError, ParityError
from eao.export.backbones import export_backbone, noise
from eao.export.thresholds import Thresholds
from eao.features import backbones
from eao.features.backbones import RESNET, RESNEXT, Network
from eao.features.extractor import FeatureExtractor
from eao.features.resnet import ResidualTrunk, ResNet152, Shape
from eao.features.resnext3d import ResNeXt101Video
from eao.files import sha256

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PICTURES = Shape(2, (1, 1, 1, 1), 8, 4, 1, (2, 2))
CLIPS = Shape(3, (1, 1, 1, 1), 8, 2, 4, (1, 2, 2))


def build_pictures(path: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    return ResNet152(ResidualTrunk(PICTURES).requires_grad_(False)).eval()


def build_clips(path: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    return ResNeXt101Video(ResidualTrunk(CLIPS).requires_grad_(False)).eval()


NETWORKS = {
    "resnet152": dataclasses.replace(RESNET, side=64, width=256, build=build_pictures),
    "resnext101-3d": dataclasses.replace(RESNEXT, side=48, chunk=4, width=128, build=build_clips),
}


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, network in NETWORKS.items():
            known = backbones.BACKBONES
            patch.setitem(known, name, dataclasses.replace(known[name], network=network))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    path.write_bytes(b"what the builders here do not read")
    return path


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the engines of both networks."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("exported")
    for name in NETWORKS:
        export_backbone(name, weights, folder, ["onnx", "openvino"])
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of coarse noise."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(32):
            image = random.integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_an_engine_gives_the_rows_of_pytorch(exported: Path, weights: Path, name: str, suffix: str) -> None:
    network: Network = NETWORKS[name]
    frames = np.stack(noise(network, 5))
    with torch.inference_mode():
        expected = network.build(weights)(torch.from_numpy(frames)).numpy()
    # Unit rows of at most 256 numbers, each a sum of float32 in another order.
    found = network.load(exported / f"{name}{suffix}")(frames)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_whole_pictures_of_any_size(exported: Path, weights: Path) -> None:
    network = NETWORKS["resnet152"]
    forward, module = network.load(exported / "resnet152.onnx"), network.build(weights)
    for size in ((64, 64), (64, 113), (256, 64)):
        frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
        with torch.inference_mode():
            expected = module(torch.from_numpy(frames)).numpy()
        np.testing.assert_allclose(forward(frames), expected, rtol=0, atol=2e-6)


def test_the_manifest_tells_what_was_made_and_of_what(exported: Path, weights: Path) -> None:
    written = json.loads((exported / "resnet152.json").read_text())
    assert (written["weights"], written["frames"]) == (sha256(weights), "noise")
    for engine, names in zip(written["engines"], (["resnet152.onnx"], ["resnet152.xml", "resnet152.bin"]), strict=True):
        assert engine["precision"] == "fp32"
        assert engine["cosine"] > 0.99999
        assert [file["file"] for file in engine["files"]] == names
        assert all(file["sha256"] == sha256(exported / file["file"]) for file in engine["files"])


def test_nothing_else_is_left_in_the_folder(exported: Path) -> None:
    names = {f"{name}{suffix}" for name in NETWORKS for suffix in (".onnx", ".xml", ".bin", ".json")}
    assert {path.name for path in exported.iterdir()} == names


def test_an_engine_that_fails_parity_is_not_written(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ParityError, match=r"onnx fp32: cosine .* < 1\.1"):
        export_backbone("resnet152", weights, tmp_path / "out", thresholds={"fp32": Thresholds(cosine=1.1)})
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("engines", "largest"), [(["onnx"], 127), (["onnx", "openvino"], 64)])
def test_int8_chooses_its_ranges_from_clips(
    tmp_path: Path, weights: Path, clip: Path, engines: list[str], largest: int
) -> None:
    """Weights that OpenVINO reads keep to half of their range: it may run them where sums would overflow."""
    if "openvino" in engines:
        pytest.importorskip("openvino")
    # Untrained networks of a few channels lose more than those whose limit is 0.99.
    limits = {"int8": Thresholds(cosine=0.95)}
    manifest = export_backbone("resnet152", weights, tmp_path / "out", engines, ["int8"], [clip], limits)
    graph = onnx.load(tmp_path / "out" / "resnet152.int8.onnx")
    assert sum(node.op_type == "QuantizeLinear" for node in graph.graph.node) > 10
    stored = [onnx.numpy_helper.to_array(t) for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(values.astype(int)).max() for values in stored) == largest
    assert manifest.frames == "clips"
    assert len(manifest.engines) == len(engines)
    assert all(entry.cosine < 0.999999 for entry in manifest.engines)  # or nothing would have been rounded


def test_int8_without_clips_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="int8 needs videos"):
        export_backbone("resnet152", tmp_path / "nowhere", tmp_path / "out", precisions=["int8"])


@pytest.mark.parametrize("change", [{"engines": ["tensorflow"]}, {"precisions": ["fp64"]}])
def test_unknown_engines_and_precisions_are_refused(tmp_path: Path, change: dict[str, list[str]]) -> None:
    with pytest.raises(ExportError, match="known: "):
        export_backbone("resnet152", None, tmp_path / "out", **change)  # type: ignore[arg-type]


def test_weights_must_be_given_where_no_package_ships_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resnet152-394f9c45\.pth"):
        export_backbone("resnet152", None, tmp_path / "out")


def test_extraction_runs_on_an_engine(exported: Path, weights: Path, clip: Path) -> None:
    def config(files: Callable[[str], Path]) -> FeaturesConfig:
        return FeaturesConfig(
            video_2d=StreamConfig(backbone="resnet152", rate=1, weights=str(files("resnet152"))),
            video_3d=StreamConfig(backbone="resnext101-3d", rate=1.5, weights=str(files("resnext101-3d"))),
        )

    torch_config, engine_config = config(lambda _: weights), config(lambda name: exported / f"{name}.onnx")
    assert torch_config.identity() == engine_config.identity()
    by_torch, by_engine = FeatureExtractor(torch_config), FeatureExtractor(engine_config)
    expected, found = by_torch.extract(clip), by_engine.extract(clip)
    assert expected.video_2d is not None and found.video_2d is not None
    assert expected.video_3d is not None and found.video_3d is not None
    assert (len(found.video_2d), len(found.video_3d)) == (4, 6)
    np.testing.assert_allclose(found.video_2d, expected.video_2d, rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.video_3d, expected.video_3d, rtol=0, atol=2e-6)
    assert by_torch.fingerprints() != by_engine.fingerprints()
