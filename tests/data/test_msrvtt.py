"""MSR-VTT: which caption an item has, and how many clips are evaluated."""

import pickle

import numpy as np
import pytest

from eao.config import DataConfig, MSRVTTData
from eao.data.msrvtt import open_msrvtt
from eao.errors import DataError

DATA = DataConfig(video_tokens=2, audio_frames=64)


@pytest.fixture
def msrvtt(tmp_path):
    """A function that opens a list of clips."""

    def build(count=3, captions=("a dog", "a cat", "a bird"), **settings):
        clip = {"2d": np.ones((2, 3)), "3d": np.ones((3, 2)), "audio": np.zeros((40, 5)), "caption": captions}
        clips = [{"id": f"video{i}", **clip, "eval_caption": f"a horse {i}"} for i in range(count)]
        path = tmp_path / "clips.pkl"
        path.write_bytes(pickle.dumps(clips))
        return open_msrvtt(MSRVTTData(path=str(path), **settings), DATA)

    return build


def test_evaluation_takes_the_evaluation_caption(msrvtt):
    dataset = msrvtt(expected_items=3)
    assert [dataset.clips(i, np.random.default_rng(0))[0].caption for i in range(3)] == [
        f"a horse {i}" for i in range(3)
    ]
    assert dataset.complete_dataset_size == 1000


def test_training_draws_one_of_all_captions(msrvtt):
    dataset = msrvtt(training=True)
    rng = np.random.default_rng(0)
    drawn = [dataset.clips(0, rng)[0].caption for _ in range(300)]
    counts = [drawn.count(caption) for caption in ("a dog", "a cat", "a bird")]
    assert sum(counts) == 300
    assert min(counts) > 70  # 100 is expected, with a standard deviation of 8
    assert dataset.record(0).captions == ["a dog", "a cat", "a bird"]
    assert dataset.complete_dataset_size is None


def test_the_draw_is_decided_by_the_generator(msrvtt):
    dataset = msrvtt(training=True)
    again = [[dataset.clips(i, np.random.default_rng([7, i]))[0].caption for i in range(3)] for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("captions", ["a dog", ["a dog"], ("a dog",), np.array(["a dog"])])
def test_a_single_caption_in_any_spelling(msrvtt, captions):
    dataset = msrvtt(captions=captions, training=True)
    assert dataset.clips(0, np.random.default_rng(0))[0].caption == "a dog"


def test_evaluation_expects_the_968_clips_with_sound(msrvtt):
    with pytest.raises(DataError, match=r"clips\.pkl holds 3 clips, and 968 are evaluated"):
        msrvtt()
    assert len(msrvtt(968)) == 968
    assert len(msrvtt(training=True)) == 3


@pytest.mark.parametrize(("captions", "message"), [([], "'caption' holds no sentence"), (["a", 3], "of the type int")])
def test_malformed_captions_are_named(msrvtt, captions, message):
    with pytest.raises(DataError, match=rf"clips\.pkl clip 0 \(video0\): .*{message}"):
        msrvtt(captions=captions, training=True)
