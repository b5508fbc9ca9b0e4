"""Feature folders as data sets, and their batches."""

import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eao.config import DataConfig
from eao.data import sampling
from eao.data.folder import read_array
from eao.errors import DataError


def stored(folder, name, stream):
    return read_array(folder.path / "features" / f"{name}{stream[1]}.npz", stream[0])


def test_an_item_is_what_sampling_makes_of_the_files(folder):
    folder.clip("x/one", rows_2d=4, rows_3d=7, frames=50).clip("two", frames=100)
    dataset = folder.dataset()
    assert (len(dataset), dataset.video_dim, dataset.streams) == (2, 5, ("video_2d", "video_3d"))
    item = dataset[0]
    video_2d, video_3d = stored(folder, "x/one", ("video_2d", "_2d")), stored(folder, "x/one", ("video_3d", "_3d"))
    video, mask = sampling.create_video(video_2d, video_3d, 5)
    np.testing.assert_array_equal(item.video, video)
    np.testing.assert_array_equal(item.video_mask, mask)
    np.testing.assert_array_equal(item.audio[:, :50], stored(folder, "x/one", ("audio", "_spec")))
    assert (item.id, item.caption, item.audio_frames, item.audio_mask.sum()) == ("x/one", "a dog", 50, 50)
    assert dataset[1].audio_frames == 64


def test_each_caption_is_an_item_and_columns_are_kept(folder):
    folder.clip("one", captions=("a dog", "a cat"), split="train", loud=True).clip("two", split="test")
    dataset = folder.dataset()
    assert dataset.ids == ["one", "one", "two"]
    assert dataset.captions == ["a dog", "a cat", "a dog"]
    assert dataset.records[1] == {"id": "one", "caption": "a cat", "split": "train", "loud": True}
    np.testing.assert_array_equal(dataset[0].video, dataset[1].video)
    assert folder.dataset(split="test").ids == ["two"]


def test_a_clip_without_audio_or_without_video_has_an_empty_mask(folder):
    folder.clip("silent", frames=None).clip("radio", rows_2d=None, rows_3d=None).clip("short", rows_2d=0, frames=0)
    silent, radio, short = (folder.dataset()[i] for i in range(3))
    assert silent.audio.shape == (40, 64)
    assert silent.video_mask.any()
    assert radio.video.shape == (5, 5)
    assert radio.audio_mask.any()
    for empty in (silent.audio, silent.audio_mask, radio.video, radio.video_mask, short.video_mask, short.audio_mask):
        assert not empty.any()


@pytest.mark.parametrize(("rows_2d", "rows_3d", "width"), [(4, None, 3), (None, 6, 2)])
def test_a_folder_of_one_stream(folder, rows_2d, rows_3d, width):
    dataset = folder.clip("one", rows_2d=rows_2d, rows_3d=rows_3d).dataset()
    assert dataset.video_dim == width
    assert dataset[0].video.shape == (5, width)


@pytest.mark.parametrize("strategy", ["clip", "nearest", "max_pool"])
def test_features_in_memory_give_the_same_items(folder, strategy):
    folder.clip("one", rows_3d=17).clip("two")
    data = DataConfig(video_tokens=5, audio_frames=64, sampling=strategy)
    cached, uncached = folder.dataset(data), folder.dataset(data, cache_bytes=10)
    assert (cached.is_cached, uncached.is_cached) == (True, False)
    for i in (0, 1, 0):
        for a, b in zip(cached[i], uncached[i], strict=True):
            np.testing.assert_array_equal(a, b)
    (folder.path / "features" / "one_2d.npz").unlink()
    cached[0]
    with pytest.raises(DataError, match=r"one_2d\.npz"):
        uncached[0]


def test_captions_without_features_are_an_error_that_names_the_line(folder):
    folder.clip("one").lines += [{"id": "gone", "caption": "x"}, {"id": "lost", "caption": "y"}]
    with pytest.raises(DataError, match=r"jsonl line 2: the clip 'gone' has no features in .* \(2 of 3 captions"):
        folder.dataset()
    (folder.path / "features" / "failed.jsonl").write_text("")
    with pytest.raises(DataError, match=r"failed\.jsonl lists"):
        folder.dataset()


def test_captions_without_features_are_left_out_on_request(folder, caplog):
    folder.clip("one").lines += [{"id": "gone", "caption": "x"}]
    with caplog.at_level(logging.WARNING):
        dataset = folder.dataset(strict=False)
    assert (dataset.ids, dataset.missing, dataset.captions) == (["one"], ["gone"], ["a dog"])
    assert "1 captions left out" in caplog.text
    folder.lines = [{"id": "gone", "caption": "x"}]
    with pytest.raises(DataError, match="'gone' has no features"):
        folder.dataset(strict=False)


def test_an_id_with_a_suffix_is_recognised(folder):
    folder.clip("one").lines[0]["id"] = "one.mp4"
    with pytest.raises(DataError, match="ids have no suffix: write 'one'"):
        folder.dataset()


def test_a_clip_that_lacks_one_of_two_streams_is_named(folder):
    folder.clip("one").clip("two", rows_3d=None)
    with pytest.raises(DataError, match=r"line 2: the clip 'two' has no file .*two_3d\.npz, which other clips have"):
        folder.dataset()


def test_a_clip_of_another_width_is_named(folder):
    dataset = folder.clip("one").clip("two", widths=(3, 4)).dataset()
    with pytest.raises(DataError, match=r"two_3d\.npz has rows of width 4, the other clips 2"):
        dataset[1]


def test_a_folder_without_video_or_none_at_all_is_named(folder):
    folder.clip("one", rows_2d=None, rows_3d=None)
    with pytest.raises(DataError, match="has no video features"):
        folder.dataset()
    (folder.path / "features").rename(folder.path / "elsewhere")
    with pytest.raises(DataError, match=r"features does not exist\n\s+write it with `eao extract`"):
        folder.dataset()


def save_objects(path):
    np.savez(path, features=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: np.savez(p, rows=np.ones((3, 2))), "has no array named 'features'"),
        (lambda p: np.savez(p, features=np.ones(3)), r"float64\(3,\), not a float array \(rows, width\)"),
        (lambda p: np.savez(p, features=np.ones((3, 2), int)), r"int64\(3, 2\), not a float array"),
        (lambda p: np.savez(p, features=np.array([[1, np.nan]])), "not finite"),
        (save_objects, "cannot read features.*allow_pickle"),
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), "cannot read features.*not a zip file"),
        (lambda p: p.write_bytes(b""), "cannot read features"),
        (lambda p: np.save(p.open("wb"), np.ones((3, 2))), "cannot read features.*not a zip file"),
        (lambda p: (p.unlink(), p.mkdir()), "cannot read features.*Is a directory"),
    ],
)
def test_a_damaged_feature_file_is_named(folder, write, message):
    dataset = folder.clip("one").clip("two").dataset()
    path = folder.path / "features" / "two_2d.npz"
    write(path)
    with pytest.raises(DataError, match=message) as caught:
        dataset[1]
    assert str(path) in str(caught.value)


def test_a_spectrogram_must_have_forty_bands(folder):
    dataset = folder.clip("one").dataset()
    np.savez(folder.path / "features" / "two_spec.npz", np.ones((80, 9), np.float32))
    with pytest.raises(DataError, match=r"float32\(80, 9\), not a float array \(40, frames\)"):
        read_array(folder.path / "features" / "two_spec.npz", "audio")
    assert len(dataset) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_noticed_or_harmless(tmp_path, position, value, cut):
    path = tmp_path / "x_2d.npz"
    rows = np.arange(6, dtype=np.float16).reshape(3, 2)
    np.savez(path, features=rows)
    content = bytearray(path.read_bytes())
    place = int(position * len(content))
    if cut:
        del content[place:]
    else:
        content[place] = value
    path.write_bytes(content)
    refusal = None
    try:
        array = read_array(path, "video_2d")
    except DataError as error:
        refusal = error
    if refusal is None:
        np.testing.assert_array_equal(array, rows)
    else:
        assert str(path) in str(refusal)
