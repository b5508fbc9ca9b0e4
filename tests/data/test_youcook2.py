"""YouCook2: which clips are left out, and how many recalls are divided by."""

import pickle

import numpy as np
import pytest

from eao.config import DataConfig, YouCook2Data
from eao.data.youcook2 import open_youcook2
from eao.errors import DataError

DATA = DataConfig(video_tokens=2, audio_frames=64)


@pytest.fixture
def youcook(tmp_path):
    """A function that opens a list of three clips, the second of which has no 2-D features."""

    def build(**settings):
        clip = {"3d_full": np.ones((3, 2)), "audio": np.zeros((40, 5)), "caption": "stir"}
        clips = [{"id": 100 + i, **clip} | ({"2d_full": np.ones((2, 3))} if i != 1 else {}) for i in range(3)]
        path = tmp_path / "clips.pkl"
        path.write_bytes(pickle.dumps(clips))
        return open_youcook2(YouCook2Data(path=str(path), **settings), DATA)

    return build


@pytest.mark.parametrize("settings", [{}, {"key_2d": None}])
def test_clips_without_2d_features_are_left_out_whatever_is_used(youcook, settings):
    assert youcook(**settings).ids == ["100", "102"]


def test_which_clips_are_left_out_can_be_set(youcook):
    assert youcook(required_key=None, key_2d=None).ids == ["100", "101", "102"]
    with pytest.raises(DataError, match=r"clips\.pkl clip 1 \(101\) has no '2d_full'"):
        youcook(required_key=None)
    with pytest.raises(DataError, match="holds no clip with the key 's3d'"):
        youcook(required_key="s3d")


def test_recalls_are_of_all_3350_clips_unless_set(youcook):
    assert youcook().complete_dataset_size == 3350
    assert youcook(complete_dataset_size=None).complete_dataset_size is None
