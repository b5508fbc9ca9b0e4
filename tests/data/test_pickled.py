"""Pickled lists of clips: which features and captions an item has, and that whatever is wrong is named."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eao.config import DataConfig, MSRVTTData, YouCook2Data
from eao.data.datasets import open_dataset
from eao.data.item import DISCARDED
from eao.data.sampling import create_video
from eao.errors import ConfigError, DataError

DATA = DataConfig(video_tokens=4, audio_frames=64)
RNG = np.random.default_rng(0)


def make_clips(count=3, seed=0):
    """Clips as the authors pickle them, in both data sets' keys."""
    rng = np.random.default_rng(seed)
    clips = []
    for i in range(count):
        rows_2d = rng.standard_normal((3 + i, 3)).astype(np.float32)
        rows_3d = rng.standard_normal((5 + i, 2)).astype(np.float32)
        clips.append(
            {
                "id": f"video{i}",
                "2d": rows_2d,
                "3d": rows_3d,
                "2d_full": rows_2d,
                "3d_full": rows_3d,
                "audio": rng.uniform(-80, 0, (40, 50 + i)).astype(np.float16),
                "caption": f"a dog {i}",
                "eval_caption": f"a cat {i}",
            }
        )
    return clips


def write(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))
    return str(path)


@pytest.fixture
def youcook(tmp_path):
    """A function that opens a list of clips."""

    def build(clips, data=DATA, **settings):
        return open_dataset(YouCook2Data(path=write(tmp_path / "clips.pkl", clips), **settings), data)

    return build


def test_an_item_is_what_sampling_makes_of_the_features(youcook):
    clips = make_clips()
    dataset = youcook(clips)
    (item,) = dataset.clips(1, RNG)
    video, mask = create_video(clips[1]["2d"], clips[1]["3d"], 4)
    assert (len(dataset), dataset.ids, dataset.video_dim) == (3, ["video0", "video1", "video2"], 5)
    np.testing.assert_array_equal(item.video, video)
    np.testing.assert_array_equal(item.video_mask, mask)
    np.testing.assert_array_equal(item.audio[:, :51], clips[1]["audio"])
    assert (item.id, item.caption, item.audio_frames, item.audio_mask.sum()) == ("video1", "a dog 1", 51, 51)


def test_sound_may_be_a_tensor(youcook):
    clips = make_clips()
    tensors = [{**clip, "audio": torch.from_numpy(clip["audio"])} for clip in clips]
    np.testing.assert_array_equal(youcook(tensors).clips(0, RNG)[0].audio, youcook(clips).clips(0, RNG)[0].audio)


def test_a_stream_that_is_not_used_is_neither_needed_nor_kept(youcook):
    clips = make_clips()
    for clip in clips:
        del clip["3d_full"]
    dataset = youcook(clips, key_3d=None)
    assert dataset.video_dim == 3
    assert dataset.record(0).video_3d is None
    np.testing.assert_array_equal(dataset.clips(0, RNG)[0].video, create_video(clips[0]["2d"], None, 4)[0])


@pytest.mark.parametrize(("stream", "key", "unused"), [("2d", "clip", "3d"), ("3d", "s3d", "2d")])
def test_features_of_another_backbone_come_from_their_own_list(youcook, tmp_path, stream, key, unused):
    clips = make_clips()
    others = [{"id": clip["id"], key: clip[stream][:, :1] + 1} for clip in clips]
    path = write(tmp_path / f"{key}.pkl", others)
    dataset = youcook(clips, **{f"path_{stream}": path, f"key_{stream}": key, f"key_{unused}": None})
    (item,) = dataset.clips(2, RNG)
    np.testing.assert_array_equal(item.video, create_video(others[2][key], None, 4)[0])
    assert item.caption == "a dog 2"


def test_lists_go_together_by_place_also_where_clips_are_left_out(youcook, tmp_path):
    clips = make_clips(4)
    others = [{"clip": np.full((2, 1), i + 1.0, np.float32)} for i in range(4)]
    del clips[1]["2d_full"]
    path = write(tmp_path / "clip.pkl", others)
    dataset = youcook(clips, path_2d=path, key_2d="clip", key_3d=None)
    assert dataset.ids == ["video0", "video2", "video3"]
    assert [dataset.record(i).video_2d[0, 0] for i in range(3)] == [1, 3, 4]


def test_pieces_that_are_nearly_silent_are_marked(youcook):
    clips = make_clips(1)
    clips[0]["audio"] = np.ones((40, 64 + 44), np.float16)
    kept = youcook(clips, cut_clips=3).clips(0, RNG)
    assert [(item.id, item.audio_frames) for item in kept] == [("video0", 64), (DISCARDED, 64), (DISCARDED, 64)]
    clips[0]["audio"] = np.ones((40, 64 + 45), np.float16)  # 0.7 * 64 is 44.8
    kept = youcook(clips, cut_clips=3).clips(0, RNG)
    assert [(item.id, item.audio_frames) for item in kept] == [("video0", 64), ("video0", 45), (DISCARDED, 64)]
    assert {item.caption for item in kept} == {"a dog 0"}
    assert {item.video.shape for item in kept} == {(4, 5)}


def test_pieces_are_not_resampled(youcook):
    with pytest.raises(ConfigError, match="cut_clips 2 needs the sampling clip, not nearest"):
        youcook(make_clips(), cut_clips=2, sampling="nearest")


def test_a_clip_without_video_rows_or_sound_is_empty(youcook):
    clips = make_clips(1)
    clips[0] |= {"3d_full": np.zeros((0, 2), np.float32), "audio": np.zeros((40, 0), np.float16)}
    (item,) = youcook(clips).clips(0, RNG)
    assert (item.video_mask.any(), item.audio_mask.any(), item.audio_frames) == (False, False, 0)


def test_one_stream_at_least_is_used(youcook):
    with pytest.raises(ConfigError, match="youcook2 is to be read without video features"):
        youcook(make_clips(), key_2d=None, key_3d=None)


def changed(place, **fields):
    clips = make_clips()
    clips[place] |= fields
    return clips


def without(place, key):
    clips = make_clips()
    del clips[place][key]
    return clips


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], r"clips\.pkl holds no clips"),
        ({}, r"clips\.pkl holds a dictionary, not a list of clips"),
        ([*make_clips(), 7], r"clips\.pkl clip 3 is of the type int, not a dictionary"),
        (without(1, "id"), r"clips\.pkl clip 1 has no 'id'"),
        (without(1, "audio"), r"clips\.pkl clip 1 \(video1\) has no 'audio'"),
        (without(2, "3d_full"), r"clips\.pkl clip 2 \(video2\) has no '3d_full'"),
        (without(0, "caption"), r"clips\.pkl clip 0 \(video0\) has no 'caption'"),
        (changed(1, id=""), r"clip 1: 'id' is empty"),
        (changed(1, id=1.5), r"clip 1: 'id' is of the type float"),
        (changed(1, caption=None), r"clip 1 \(video1\): 'caption' is or holds something of the type NoneType"),
        (changed(1, audio=None), r"clip 1 \(video1\): 'audio' is of the type NoneType, not a float array"),
        (changed(1, audio=np.zeros((41, 5))), r"clip 1 \(video1\): 'audio' is float64\(41, 5\)"),
        (changed(1, audio=np.zeros((40, 5), int)), r"clip 1 \(video1\): 'audio' is int64\(40, 5\)"),
        (changed(2, **{"3d_full": np.zeros(2)}), r"clip 2 \(video2\): '3d_full' is float64\(2,\)"),
        (changed(2, **{"3d_full": np.zeros((5, 7))}), r"clip 2 \(video2\): '3d_full' has rows of width 7"),
    ],
)
def test_a_malformed_clip_is_named_with_its_place_and_field(youcook, clips, message):
    with pytest.raises(DataError, match=message):
        youcook(clips)


def test_other_lists_hold_the_same_clips(youcook, tmp_path):
    clips = make_clips()
    short = write(tmp_path / "short.pkl", clips[:2])
    with pytest.raises(DataError, match=r"short\.pkl holds 2 clips, .*clips\.pkl 3"):
        youcook(clips, path_2d=short)
    swapped = write(tmp_path / "swapped.pkl", [clips[0], clips[2], clips[1]])
    with pytest.raises(DataError, match=r"clip 1 \(video1\) is 'video2' in .*swapped\.pkl"):
        youcook(clips, path_3d=swapped)


@pytest.mark.parametrize("field", ["2d_full", "3d_full", "audio"])
def test_values_that_are_not_finite_are_named_when_they_are_read(youcook, field):
    clips = make_clips()
    clips[1][field][1, 1] = np.nan
    dataset = youcook(clips)
    dataset.clips(0, RNG)
    with pytest.raises(DataError, match=rf"clips\.pkl clip 1 \(video1\): '{field}' holds values that are not finite"):
        dataset.clips(1, RNG)


ODD = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=3),
    st.just(np.zeros((2, 2), np.float32)),
    st.just(np.array(["x"], dtype=object)),
    st.just(np.array(1.0)),
    st.just([]),
    st.just({"id": 1}),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2), field=st.sampled_from(["id", "2d", "3d", "audio", "eval_caption"]), value=ODD)
def test_whatever_stands_in_a_field_is_read_or_named(tmp_path, place, field, value):
    clips = copy.deepcopy(make_clips())
    clips[place][field] = value
    path = write(tmp_path / "clips.pkl", clips)
    refusal = None
    try:
        dataset = open_dataset(MSRVTTData(path=path, expected_items=None), DATA)
        items = [dataset.clips(i, RNG)[0] for i in range(3)]
    except DataError as error:
        refusal = str(error)
    if refusal is None:
        assert {item.video.shape for item in items} == {(4, 5)}
        assert all(isinstance(x, str) for item in items for x in (item.id, item.caption))
    else:
        # A width is named where it first differs, which for the first clip is the second.
        assert path in refusal and repr(field) in refusal
        assert f"clip {place}" in refusal or (place == 0 and "clip 1" in refusal and "rows of width" in refusal)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_named(tmp_path, data):
    content = bytearray(pickle.dumps(make_clips(2), protocol=4))
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "clips.pkl"
    path.write_bytes(content)
    refusal = None
    try:
        dataset = open_dataset(YouCook2Data(path=str(path)), DATA)
        items = [item for i in range(len(dataset)) for item in dataset.clips(i, RNG)]
    except DataError as error:
        refusal = str(error)
    if refusal is None:
        assert all(np.isfinite(item.video).all() and np.isfinite(item.audio).all() for item in items)
    else:
        assert str(path) in refusal
