from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eao.config import FeaturesConfig, StreamConfig
from eao.errors import ConfigError
from eao.features import backbones
from eao.features.backbones import CLIP, RESNEXT
from eao.features.extractor import FeatureExtractor
from eao.features.frames import SampledFrame, View
from eao.files import sha256


class Colours(nn.Module):
    """Stands for a network: the mean colour of a picture, or of each picture of a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, frames: Tensor) -> Tensor:
        self.calls.append(tuple(frames.shape))
        return frames.float().mean((-3, -2)).flatten(1)


class Video:
    """A decoded file: frame k of a view is of colour k."""

    audio: NDArray[np.float32] | None = None

    def __init__(self, seconds: float, views: list[View]) -> None:
        self.duration, self.views = seconds, views

    def __iter__(self) -> Iterator[SampledFrame]:
        for index, view in enumerate(self.views):
            for k in range(int(np.ceil(self.duration * view.rate))):
                yield SampledFrame(k / view.rate, np.full((view.side, view.side, 3), k, np.uint8), index)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Colours]:
    """The modules that were built in place of two networks."""
    modules: list[Colours] = []

    def build(path: Path) -> Colours:
        modules.append(Colours())
        return modules[-1]

    for network, width in ((CLIP, 3), (RESNEXT, 16 * 3)):
        backbone = backbones.BACKBONES[network.name]
        small = replace(network, side=4, width=width, batch_size=2, build=build)
        monkeypatch.setitem(backbones.BACKBONES, network.name, replace(backbone, network=small, dim=width))
    return modules


@pytest.fixture
def weights(tmp_path: Path) -> Callable[[str], str]:
    def write(name: str) -> str:
        (tmp_path / name).write_bytes(name.encode())
        return str(tmp_path / name)

    return write


def extract(config: FeaturesConfig, seconds: float = 5.0) -> tuple[NDArray[np.float32] | None, ...]:
    features = FeatureExtractor(config).extract("x.mp4", open_clip=lambda path, views: Video(seconds, views))
    return features.video_2d, features.video_3d


def test_chunks_are_consecutive_frames_and_the_last_is_filled_up_with_black(
    built: list[Colours], weights: Callable[[str], str]
) -> None:
    stream = StreamConfig(backbone="resnext101-3d", rate=1.5, weights=weights("a"))
    _, rows = extract(FeaturesConfig(video_2d=None, video_3d=stream), seconds=1.75)  # 42 frames
    assert rows is not None
    expected = np.zeros(48)
    expected[:42] = range(42)
    np.testing.assert_array_equal(rows.reshape(3, 16, 3), expected.reshape(3, 16, 1) * np.ones(3))
    assert built[0].calls == [(2, 16, 4, 4, 3), (1, 16, 4, 4, 3)]


def test_streams_alike_share_a_network_and_its_work(built: list[Colours], weights: Callable[[str], str]) -> None:
    stream = StreamConfig(backbone="clip-vit-b32", rate=2, weights=weights("a"))
    first, second = extract(FeaturesConfig(video_2d=stream, video_3d=stream))
    np.testing.assert_array_equal(first, second)  # type: ignore[arg-type]
    assert len(built) == 1
    assert sum(shape[0] for shape in built[0].calls) == 10


def test_streams_of_other_rates_share_the_network_alone(built: list[Colours], weights: Callable[[str], str]) -> None:
    stream = StreamConfig(backbone="clip-vit-b32", rate=2, weights=weights("a"))
    first, second = extract(FeaturesConfig(video_2d=stream, video_3d=stream.model_copy(update={"rate": 1.0})))
    assert first is not None and second is not None
    assert (len(built), len(first), len(second)) == (1, 10, 5)


def test_streams_of_other_weights_share_nothing(built: list[Colours], weights: Callable[[str], str]) -> None:
    streams = [StreamConfig(backbone="clip-vit-b32", rate=2, weights=weights(name)) for name in "ab"]
    extract(FeaturesConfig(video_2d=streams[0], video_3d=streams[1]))
    assert len(built) == 2


def test_fingerprints_are_those_of_the_files(weights: Callable[[str], str]) -> None:
    stream = StreamConfig(backbone="resnet152", rate=1, weights=weights("a"))
    config = FeaturesConfig(video_2d=stream, video_3d=None)
    assert FeatureExtractor(config).fingerprints() == {"video_2d": sha256(stream.weights)}  # type: ignore[arg-type]


def test_where_weights_lie_is_no_part_of_what_features_are() -> None:
    stream = StreamConfig(backbone="resnet152", rate=1, weights="a.pth")
    here = FeaturesConfig(video_2d=stream)
    there = FeaturesConfig(video_2d=stream.model_copy(update={"weights": "elsewhere/a.pth"}))
    assert here != there
    assert here.identity() == there.identity()
    assert here.identity() != FeaturesConfig(video_2d=stream.model_copy(update={"rate": 2.0})).identity()


def test_missing_weights_are_noticed_before_any_video(tmp_path: Path) -> None:
    extractor = FeatureExtractor(FeaturesConfig(video_2d=None, video_3d=StreamConfig(backbone="s3d", rate=1)))
    assert extractor.dims == {"video_3d": 1024}
    with pytest.raises(ConfigError, match=r"s3d_howto100m\.pth\n.*features\.video_3d\.weights=PATH"):
        extractor.load()


def test_a_real_network_takes_part_in_extraction(write_clip: Callable[..., Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**sizes, image_size=224, patch_size=112, projection_dim=512)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    stream = StreamConfig(backbone="clip-vit-b32", rate=1, weights=str(tmp_path / "clip"))
    clip = write_clip(tmp_path / "a.mp4", seconds=3.0)
    features = FeatureExtractor(FeaturesConfig(video_2d=stream, video_3d=None)).extract(clip)
    assert features.video_2d is not None and features.video_3d is None
    assert features.video_2d.shape == (3, 512)
    assert np.isfinite(features.video_2d).all()
