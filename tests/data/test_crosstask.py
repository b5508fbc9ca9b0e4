"""CrossTask and Mining YouTube: segments with what is seen and heard in them, and how they are evaluated."""

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eao.config import CrossTaskData, DataConfig, MiningYouTubeData
from eao.data.crosstask import Segment, segment_times
from eao.data.datasets import open_dataset
from eao.data.sampling import seconds_to_frames
from eao.errors import ConfigError, DataError
from eao.evaluation.localization import evaluate_segmentation, evaluate_steps

DATA = DataConfig(video_tokens=12, audio_frames=768)
STEPS = ["step 0", "step 1", "step 2"]


class Videos:
    """Videos under construction. Second by second they show steps of three, or nothing (-1)."""

    def __init__(self, folder):
        self.folder, self.lines = folder, []
        self.steps = {}
        for name in ("features", "audio", "labels"):
            (folder / name).mkdir()

    def video(self, video, task, shown, labelled=None):
        """`shown` decides the features, and the labels too unless those are given apart."""
        seen = np.eye(4, dtype=np.float32)[shown][:, :3]
        labelled = shown if labelled is None else labelled
        np.save(self.folder / f"features/{video}_2d.npy", seen)
        np.save(self.folder / f"features/{video}_3d.npy", np.ones((int(1.5 * len(shown)), 2), np.float16))
        spectrogram = np.zeros((40, 100 * len(shown)), np.float32)
        spectrogram[0] = np.arange(100 * len(shown))
        np.savez(self.folder / f"audio/{video}.npz", spectrogram)
        np.save(self.folder / f"labels/{task}_{video}.npy", np.eye(4)[labelled][:, :3])
        np.save(self.folder / f"labels/{video}.npy", np.array(labelled) + 1)
        self.steps |= {task: STEPS, video: STEPS}
        self.lines.append(f"{video},{task}\n")
        return self

    def dataset(self, kind=CrossTaskData, **settings):
        (self.folder / "videos.csv").write_text("video_id,task\n" + "".join(self.lines))
        (self.folder / "steps.json").write_text(json.dumps(self.steps))
        paths = {"csv": "videos.csv", "steps": "steps.json", "features": "features", "audio": "audio"}
        paths = {key: str(self.folder / path) for key, path in paths.items()}
        return open_dataset(kind(annotations=str(self.folder / "labels"), **(paths | settings)), DATA)


@pytest.fixture
def videos(tmp_path):
    return Videos(tmp_path)


class Numbered:
    """A text encoder of one token: which step it is."""

    dim, max_words = 3, 1

    def encode(self, sentences):
        numbers = torch.tensor([int(sentence.rpartition(" ")[2]) for sentence in sentences])
        return torch.eye(3)[numbers][:, None], torch.ones(len(sentences), 1, dtype=torch.bool)


class Seen:
    """A backend whose embeddings are the mean of the tokens, of video those of the 2-D stream."""

    encoders = ("text", "video")

    def encode_raw(self, batch, encoders):
        tokens = {"text": (batch.text, batch.text_mask), "video": (batch.video, batch.video_mask)}
        means = {}
        for encoder in encoders:
            values, mask = tokens[encoder]
            means[encoder] = (values[..., :3] * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return {encoder: mean.numpy() for encoder, mean in means.items()}


def test_segments_are_widened_within_the_video():
    assert segment_times(3, radius=0, padding=0) == [Segment(0, 1, 0, 1), Segment(1, 2, 1, 2), Segment(2, 3, 2, 3)]
    assert segment_times(5, radius=1, padding=2)[1:4] == [Segment(0, 3, 0, 5), Segment(1, 4, 0, 5), Segment(2, 5, 0, 5)]
    assert segment_times(0, 1, 1) == []


def test_a_segment_shows_the_rows_of_its_second(videos):
    dataset = videos.video("a", "7", [0, -1, 2, 1]).dataset()
    video = dataset.video(0)
    assert (video.id, video.task, video.steps, len(video.clips), dataset.video_dim) == ("a", "7", STEPS, 4, 5)
    # The 3-D rows of seconds 1 to 2 are 1 and 2: they decide the length.
    assert [clip.video_mask.sum() for clip in video.clips] == [2, 2, 2, 2]
    assert [clip.video[0, :3].argmax() for clip in (video.clips[0], *video.clips[2:])] == [0, 2, 1]
    assert not video.clips[1].video[:, :3].any()
    np.testing.assert_array_equal(video.labels, [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]])


def test_the_padding_is_heard_but_gives_no_tokens(videos):
    dataset = videos.video("a", "7", [0] * 8).dataset(clip_radius=1, audio_padding=2)
    clip = dataset.video(0).clips[4]  # seconds 3 to 6 are seen, 1 to 8 heard
    first = seconds_to_frames(1)
    assert clip.audio[0, 0] == first
    assert clip.audio_frames == seconds_to_frames(8) - first
    tokens = np.flatnonzero(clip.audio_mask)
    assert (tokens[0], tokens[-1] + 1) == (seconds_to_frames(2), seconds_to_frames(5))


def test_mining_youtube_goes_by_video(videos):
    videos.video("a", "7", [0, 1]).steps["a"] = ["step 2"]
    dataset = videos.dataset(MiningYouTubeData)
    assert dataset.video(0).steps == ["step 2"]
    assert dataset.video(0).task == ""
    np.testing.assert_array_equal(dataset.video(0).labels, [1, 2])


def test_3d_features_may_be_an_archive(videos):
    videos.video("a", "7", [0, 1])
    (videos.folder / "features/a_3d.npy").unlink()
    np.savez(videos.folder / "features/a.npz", features=np.ones((3, 4), np.float16))
    assert videos.dataset().video_dim == 7


@pytest.mark.parametrize(("settings", "width"), [({"use_3d": False}, 3), ({"use_2d": False}, 2)])
def test_a_stream_that_is_not_used_is_not_read(videos, settings, width):
    videos.video("a", "7", [0, 1])
    (videos.folder / f"features/a_{'3d' if width == 3 else '2d'}.npy").unlink()
    assert videos.dataset(**settings).video(0).clips[0].video.shape == (12, width)


def test_the_segments_are_the_clips_of_an_item(videos):
    dataset = videos.video("a", "7", [0, 1]).dataset()
    clips = dataset.clips(0, np.random.default_rng(0))
    assert [(clip.id, clip.caption) for clip in clips] == [("a", "")] * 2


def test_recall_of_steps_from_files(videos):
    """All three steps are found in one video, in another one of two; the third shows steps against their order."""
    videos.video("a", "7", [-1, 0, 0, 1, -1, 2]).video("b", "7", [0, -1, 1, 2], labelled=[0, 1, -1, -1])
    videos.video("c", "8", [2, 1, 0])
    found = evaluate_steps(Seen(), Numbered(), videos.dataset(), "video")
    # Ordered, of c only the middle step lies where it is shown.
    assert found.by_task == {"7": pytest.approx(100 * 4 / 5), "8": pytest.approx(100 / 3)}
    assert found.videos == 3
    assert found.recall == pytest.approx(100 * (4 / 5 + 1 / 3) / 2)
    free = evaluate_steps(Seen(), Numbered(), videos.dataset(), "video", ordered=False)
    assert free.by_task["8"] == 100


def test_segmentation_from_files(videos):
    """One video is aligned as labelled; in the other the first action is given three seconds of which two are its."""
    videos.video("a", "7", [0, 0, 1, 2]).video("b", "7", [0, 0, 0, 1, 2], labelled=[0, 0, 1, 1, 2])
    found = evaluate_segmentation(Seen(), Numbered(), videos.dataset(MiningYouTubeData), "video")
    assert found.videos == 2
    assert found.iou == pytest.approx(100 * (1 + (2 / 3 + 1 / 2 + 1) / 3) / 2)
    assert found.iod == pytest.approx(100 * (1 + (2 / 3 + 1 + 1) / 3) / 2)


def test_labels_of_other_seconds_than_the_steps_are_named_with_the_video(videos):
    videos.video("a", "7", [0, 1, 2])
    np.save(videos.folder / "labels/a.npy", np.array([0, 9, 1]))
    with pytest.raises(DataError, match="video 'a': labels from 0 to 9 for 3 steps"):
        evaluate_segmentation(Seen(), Numbered(), videos.dataset(MiningYouTubeData), "video")


def test_one_stream_at_least_is_used(videos):
    with pytest.raises(ConfigError, match="segments are to be read without video features"):
        videos.video("a", "7", [0]).dataset(use_2d=False, use_3d=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read steps from .*steps.json"),
        ("[]", "steps.json holds no steps by name"),
        ("{}", "steps.json has no steps of '7'"),
        ('{"7": []}', "steps.json: '7' is not a list of steps"),
        ('{"7": "stir"}', "steps.json: '7' is not a list of steps"),
        ('{"7": ["stir", 3]}', "steps.json: '7' is not a list of steps"),
    ],
)
def test_malformed_steps_are_named(videos, content, message):
    dataset = videos.video("a", "7", [0]).dataset()
    (videos.folder / "steps.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_dataset(dataset.config, DATA)


@pytest.mark.parametrize("file", ["features/b_2d.npy", "features/b_3d.npy", "audio/b.npz", "labels/7_b.npy"])
def test_a_missing_file_is_named(videos, file):
    dataset = videos.video("a", "7", [0]).video("b", "7", [0]).dataset()
    (videos.folder / file).unlink()
    dataset.video(0)
    with pytest.raises(DataError, match=file):
        dataset.video(1)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("features/b_2d.npy", np.ones(3), r"b_2d\.npy is float64\(3,\)"),
        ("features/b_2d.npy", np.full((2, 3), np.nan), r"b_2d\.npy holds values that are not finite"),
        ("features/b_3d.npy", np.ones((2, 9)), r"the features of b have 12 columns, those of a 5"),
        ("labels/7_b.npy", np.ones((2, 2)), r"7_b\.npy has labels of 2 steps, .*steps\.json lists 3"),
        ("labels/7_b.npy", np.ones((2, 3, 1)), r"7_b\.npy is float64\(2, 3, 1\), not labels"),
        ("labels/7_b.npy", np.array(["x"]), r"7_b\.npy is <U1\(1,\), not labels"),
        ("labels/7_b.npy", np.zeros((0, 3)), r"7_b\.npy is float64\(0, 3\), not labels"),
        ("labels/7_b.npy", np.full((2, 3), np.nan), r"7_b\.npy holds values that are not finite"),
    ],
)
def test_a_malformed_array_is_named(videos, file, array, message):
    dataset = videos.video("a", "7", [0]).video("b", "7", [0]).dataset()
    np.save(videos.folder / file, array)
    with pytest.raises(DataError, match=message):
        dataset.video(1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    name=st.sampled_from(["features/b_2d.npy", "features/b_3d.npy", "audio/b.npz", "labels/7_b.npy"]),
)
def test_a_damaged_file_is_read_or_named(tmp_path_factory, data, name):
    videos = Videos(tmp_path_factory.mktemp("videos")).video("a", "7", [0, 1]).video("b", "7", [0, 1])
    dataset = videos.dataset()
    file = videos.folder / name
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, min(len(content), 200) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    video, refusal = None, None
    try:
        video = dataset.video(1)
    except DataError as error:
        refusal = str(error)
    assert (video is None) == (refusal is not None)
    if refusal is None:
        assert len(video.clips) == len(video.labels)
    else:
        assert str(file) in refusal or "the features of b" in refusal
