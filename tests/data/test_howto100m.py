"""HowTo100M: windows and the speech in them, and that whatever is wrong in the files is named."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eao.config import DataConfig, HowTo100MData
from eao.data.datasets import open_dataset
from eao.data.howto100m import audio_window, draw_start, grow_passage, spoken_at
from eao.data.sampling import create_video, seconds_to_frames
from eao.errors import ConfigError, DataError

DATA = DataConfig(video_tokens=12, audio_frames=768)
STARTS, ENDS = np.array([2.0, 6.0, 12.0, 20.0]), np.array([5.0, 13.0, 15.0, 21.0])


class Draws:
    """Numbers in a given order."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


class Videos:
    """A HowTo100M folder under construction: 30-second videos, the row of a second being that second."""

    def __init__(self, folder):
        self.folder, self.paths, self.captions = folder, [], {}

    def video(self, path, captions=((2, 5, "one"), (6, 13, "two"), (12, 15, "three"), (20, 21, "four"))):
        video_id = path.rpartition("/")[2]
        target = self.folder / "features" / path
        target.mkdir(parents=True)
        np.savez(target / f"{video_id}_2d.npz", features=np.arange(1, 31, dtype=np.float16)[:, None] * [1, 0])
        np.savez(target / f"{video_id}_3d.npz", features=np.ones((45, 3), np.float16))
        spectrogram = np.zeros((40, 2999), np.float32)
        spectrogram[0] = np.arange(2999)
        np.savez(target / f"{video_id}_spec.npz", spectrogram)
        starts, ends, texts = map(list, zip(*captions, strict=True)) if captions else ([], [], [])
        self.captions[video_id] = {"start": starts, "end": ends, "text": texts}
        self.paths.append(path)
        return self

    def file(self, path, suffix):
        return self.folder / "features" / path / f"{path.rpartition('/')[2]}{suffix}"

    def dataset(self, data=DATA, **settings):
        folder = str(self.folder / "features")
        (self.folder / "videos.csv").write_text("path\n" + "".join(f"{path}\n" for path in self.paths))
        (self.folder / "captions.pickle").write_bytes(pickle.dumps(self.captions))
        paths = {"csv": str(self.folder / "videos.csv"), "captions": str(self.folder / "captions.pickle")}
        folders = {"features_2d": folder, "features_3d": folder, "audio": folder}
        return open_dataset(HowTo100MData(**(paths | folders | settings)), data)


@pytest.fixture
def videos(tmp_path):
    return Videos(tmp_path)


def seconds_heard(item):
    """When the first and the last real frame of an item's sound were, in frames of the video."""
    frames = item.audio[0, item.audio_mask]
    return int(frames[0]), int(frames[-1])


def test_a_window_starts_anywhere_that_it_fits():
    assert draw_start(2999, 8.0, Draws(0.0)) == 0
    assert draw_start(2999, 8.0, Draws(0.5)) == 11  # of the 30 whole seconds 8 are the window
    assert draw_start(500, 8.0, Draws(0.9)) == 0


@pytest.mark.parametrize(
    ("start", "end", "caption"),
    [
        (3, 5.5, 0),  # spoken at the start
        (5.5, 7, 1),  # at the end
        (2, 2, 0),  # the first, though it does not begin before
        (12.5, 20, 2),  # the later of two that are spoken
        (15.5, 22, None),  # one that lies inside is not noticed
        (12, 19, 1),  # one that begins just then is not yet considered
        (0, 1, None),
        (25, 33, None),
    ],
)
def test_the_caption_of_a_window(start, end, caption):
    assert spoken_at(STARTS, ENDS, start, end) == caption


def test_an_earlier_caption_that_is_still_spoken_is_not_found():
    starts, ends = np.array([0.0, 1.0]), np.array([20.0, 2.0])
    assert spoken_at(starts, ends, 5.0, 6.0) is None


def test_no_caption_where_nothing_is_said():
    assert spoken_at(np.array([]), np.array([]), 0.0, 8.0) is None


@pytest.mark.parametrize(
    ("caption", "min_time", "start", "end", "order"),
    [
        (1, 7.0, 6, 13, [1]),  # long enough
        (1, 8.0, 6, 15, [1, 2]),  # 9 seconds with the later one, 11 with the earlier
        (2, 8.0, 6, 15, [2, 1]),
        (2, 10.0, 2, 15, [2, 1, 0]),  # then 13 with the earlier one, 15 with the later
        (0, 8.0, 2, 13, [0, 1]),  # the first has later neighbours only
        (3, 8.0, 12, 21, [3, 2]),  # the last has earlier ones only
        (1, 99.0, 2, 21, [1, 2, 0, 3]),  # all there is
    ],
)
def test_a_passage_grows_by_the_neighbour_that_lengthens_it_less(caption, min_time, start, end, order):
    assert grow_passage(STARTS, ENDS, caption, min_time) == (start, end, order)


def test_of_two_neighbours_that_lengthen_it_alike_the_earlier_one_is_taken():
    assert grow_passage(np.array([0.0, 2.0, 4.0]), np.array([1.0, 3.0, 5.0]), 1, 2.0).order == [1, 0]


@pytest.mark.parametrize(
    ("shift", "drawn", "window"),
    [
        ("none", [], (10, 21)),
        ("later", [0.3], (14, 22)),
        ("later", [0.0], (6, 14)),
        ("either", [0.6], (14, 22)),
        ("either", [0.5], (6, 14)),
    ],
)
def test_sound_that_goes_with_a_passage(shift, drawn, window):
    config = HowTo100MData(csv="", captions="", features_2d="", features_3d="", audio="", audio_shift=shift)
    rng = Draws(*drawn)
    assert audio_window(10.0, 21.0, config, rng) == window
    assert rng.numbers == []


def test_sound_before_the_beginning_is_heard_from_there():
    config = HowTo100MData(csv="", captions="", features_2d="", features_3d="", audio="", audio_shift="either")
    assert audio_window(2.0, 5.0, config, Draws(0.1)) == (0, 8)


def test_a_clip_of_a_passage(videos):
    dataset = videos.video("cat/x").dataset(clips_per_video=1, audio_shift="none")
    (clip,) = dataset.clips(0, Draws(13 / 22))  # at 13 s "three" is spoken, and "two" before it
    assert (clip.id, clip.caption, clip.audio_frames) == ("cat/x6.0", "three two", -1)
    rows = slice(6, 16), slice(9, 23)
    streams = [
        np.load(videos.file("cat/x", s))["features"][r] for s, r in zip(("_2d.npz", "_3d.npz"), rows, strict=True)
    ]
    np.testing.assert_array_equal(clip.video, create_video(*streams, 12)[0])
    # Cut after 768 frames: the passage lasts nine seconds.
    assert seconds_heard(clip) == (seconds_to_frames(6), seconds_to_frames(6) + 767)


def test_shifted_sound_lasts_as_long_as_a_window_and_the_video_stays(videos):
    dataset = videos.video("x").dataset(clips_per_video=1)
    (clip,) = dataset.clips(0, Draws(13 / 22, 0.7))
    assert seconds_heard(clip) == (seconds_to_frames(10), seconds_to_frames(10) + 767)
    assert clip.video_mask.sum() == 12


def test_a_silent_window(videos):
    dataset = videos.video("x").dataset(clips_per_video=1)
    rng = Draws(1.0)
    (clip,) = dataset.clips(0, rng)
    assert (clip.id, clip.caption, rng.numbers) == ("x22.0", "", [])
    assert seconds_heard(clip) == (seconds_to_frames(22), seconds_to_frames(22) + 767)
    assert clip.video_mask.sum() == 12


def test_a_video_in_which_nothing_is_said_is_silent_throughout(videos):
    dataset = videos.video("x", captions=()).dataset(clips_per_video=5)
    clips = dataset.clips(0, np.random.default_rng(0))
    assert [clip.caption for clip in clips] == [""] * 5
    assert dataset.record(0).captions == []


def test_a_window_longer_than_the_video(videos):
    dataset = videos.video("x", captions=()).dataset(clips_per_video=1, min_time=60)
    (clip,) = dataset.clips(0, np.random.default_rng(0))
    assert clip.id == "x0.0"
    assert clip.video_mask.all()


@pytest.mark.parametrize(
    ("settings", "width", "rows"),
    [
        ({}, 5, 12),
        ({"features_3d": None}, 2, 11),
        ({"features_2d": None}, 3, 12),
        ({"features_2d": None, "rate_3d": 1.0}, 3, 11),
    ],
)
def test_streams_and_their_rates(videos, settings, width, rows):
    """Of 10 seconds, 2-D rows and those at one a second are 11, 3-D rows at 1.5 a second are 16 and cut."""
    dataset = videos.video("x", captions=((5, 15, "long"),)).dataset(clips_per_video=1, **settings)
    (clip,) = dataset.clips(0, Draws(6 / 22, 0.9))
    assert dataset.video_dim == clip.video.shape[1] == width
    assert clip.video_mask.sum() == rows


@pytest.mark.parametrize("name", ["_3d.npz", ".npz"])
@pytest.mark.parametrize("place", ["inside", "beside"])
def test_features_under_either_name(videos, name, place):
    videos.video("cat/x")
    videos.file("cat/x", "_3d.npz").rename(videos.file("cat/x", name))
    if place == "beside":
        videos.file("cat/x", "_2d.npz").rename(videos.folder / "features/cat/x_2d.npz")
    assert videos.dataset().video_dim == 5


def test_a_video_without_category(videos):
    videos.video("x")
    videos.paths = ["None/x"]
    dataset = videos.dataset()
    assert dataset.paths == ["x"]
    assert dataset.record(0).id == "x"


def test_clips_are_decided_by_the_generator(videos):
    dataset = videos.video("x").dataset(clips_per_video=4)
    one, two = (dataset.clips(0, np.random.default_rng(3)) for _ in range(2))
    assert [clip.id for clip in one] == [clip.id for clip in two]
    assert len({clip.id for clip in one}) > 1


def test_line_breaks_within_a_caption_do_not_divide_it(videos):
    dataset = videos.video("x", captions=((0, 1, "a\nb"), (1, 2, "c"), (2, 3, ""))).dataset()
    assert dataset.record(0).captions == ["a b", "c", ""]


def test_speech_may_be_arrays_and_belong_to_videos_that_are_not_listed(videos):
    videos.video("x")
    speech = videos.captions["x"]
    videos.captions["x"] = {**speech, "start": np.array(speech["start"]), "text": np.array(speech["text"], object)}
    videos.captions["other"] = {"start": None}
    assert videos.dataset().record(0).captions == ["one", "two", "three", "four"]


def test_one_stream_at_least_is_used(videos):
    with pytest.raises(ConfigError, match="howto100m is to be read without video features"):
        videos.video("x").dataset(features_2d=None, features_3d=None)


@pytest.mark.parametrize("setting", ["features_2d", "features_3d", "audio"])
def test_a_missing_folder_is_named(videos, setting):
    with pytest.raises(DataError, match=r".*nowhere is not a folder"):
        videos.video("x").dataset(**{setting: str(videos.folder / "nowhere")})


def test_missing_captions_are_named(videos):
    videos.video("x").video("y").video("z")
    del videos.captions["y"], videos.captions["z"]
    with pytest.raises(DataError, match=r"captions\.pickle has no captions of the video 'y', nor 1 others"):
        videos.dataset()


@pytest.mark.parametrize(
    ("speech", "message"),
    [
        (7, "is of the type int, not a dictionary"),
        ({"start": [0], "end": [1]}, "has no 'text'; there is: start, end"),
        ({"start": [0, "x"], "end": [1, 2], "text": ["a", "b"]}, "'start' is not a list of times"),
        ({"start": [0, 1], "end": [1, None], "text": ["a", "b"]}, "'end' is not a list of times"),
        ({"start": [0, 1], "end": [1, float("inf")], "text": ["a", "b"]}, "'end' is not a list of times"),
        ({"start": 0, "end": [1], "text": ["a"]}, "'start' is not a list of times"),
        ({"start": [0], "end": [1], "text": "a"}, "'text' is of the type str, not a list"),
        ({"start": [0, 1], "end": [1, 2], "text": ["a"]}, "2 starts, 2 ends and 1 texts"),
        ({"start": [1, 0], "end": [2, 1], "text": ["a", "b"]}, "'start' is not ascending"),
    ],
)
def test_malformed_speech_is_named_with_its_video_and_field(videos, speech, message):
    videos.video("x").video("y")
    videos.captions["y"] = speech
    with pytest.raises(DataError, match=rf"captions\.pickle: 'y'.*{message}"):
        videos.dataset()


@pytest.mark.parametrize("suffix", ["_2d.npz", "_3d.npz", "_spec.npz"])
def test_a_missing_file_is_named_when_its_video_is_read(videos, suffix):
    dataset = videos.video("x").video("cat/y").dataset()
    videos.file("cat/y", suffix).unlink()
    dataset.record(0)
    with pytest.raises(DataError, match=rf"cat/y/y{suffix}"):
        dataset.record(1)


def test_features_of_another_width_are_named(videos):
    dataset = videos.video("x").video("y").dataset()
    np.savez(videos.file("y", "_2d.npz"), features=np.ones((30, 7), np.float16))
    with pytest.raises(DataError, match=r"y_2d\.npz: 'features' has rows of width 7, those of x 2"):
        dataset.clips(1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("suffix", "arrays", "message"),
    [
        ("_2d.npz", {"feature": np.ones((3, 2))}, "has no array named 'features'"),
        ("_3d.npz", {"features": np.ones(3)}, r"'features' is float64\(3,\)"),
        ("_3d.npz", {"features": np.full((3, 3), np.inf)}, "'features' holds values that are not finite"),
        ("_2d.npz", {"features": np.array([None])}, "Object arrays cannot be loaded"),
        ("_spec.npz", {"arr_0": np.ones((30, 100))}, r"'arr_0' is float64\(30, 100\)"),
        ("_spec.npz", {"arr_0": np.full((40, 9), np.nan)}, "'arr_0' holds values that are not finite"),
    ],
)
def test_malformed_features_are_named_with_their_field(videos, suffix, arrays, message):
    dataset = videos.video("x").video("y").dataset()
    np.savez(videos.file("y", suffix), **arrays)
    with pytest.raises(DataError, match=rf"y/y{suffix}.*{message}"):
        dataset.record(1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from(["_2d.npz", "_3d.npz", "_spec.npz"]))
def test_a_damaged_file_is_read_or_named(tmp_path_factory, data, suffix):
    videos = Videos(tmp_path_factory.mktemp("videos")).video("x").video("y")
    dataset = videos.dataset(clips_per_video=2)
    file = videos.file("y", suffix)
    content = bytearray(file.read_bytes())
    # Most of a file is numbers; its structure stands in the first and the last bytes.
    position = data.draw(st.integers(0, 200) | st.integers(len(content) - 200, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    clips, refusal = [], None
    try:
        clips = dataset.clips(1, np.random.default_rng(0))
    except DataError as error:
        refusal = str(error)
    assert (len(clips) == 2) == (refusal is None)
    assert refusal is None or str(file) in refusal


FIELD = st.one_of(
    st.none(),
    st.text(max_size=2),
    st.integers(),
    st.lists(st.floats(0, 30) | st.none() | st.text(max_size=1), max_size=5),
    st.lists(st.floats(0, 30), min_size=4, max_size=4).map(sorted),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(["start", "end", "text"]), value=FIELD)
def test_whatever_stands_in_speech_is_read_or_named(tmp_path_factory, field, value):
    videos = Videos(tmp_path_factory.mktemp("videos")).video("x").video("y")
    videos.captions = copy.deepcopy(videos.captions)
    videos.captions["y"][field] = value
    clips, refusal = [], None
    try:
        clips = videos.dataset(clips_per_video=3).clips(1, np.random.default_rng(0))
    except DataError as error:
        refusal = str(error)
    assert (len(clips) == 3) == (refusal is None)
    assert refusal is None or "captions.pickle: 'y'" in refusal
