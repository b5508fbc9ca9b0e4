"""Items of every data set, from files in the published formats, against those that the authors' code read from them."""

import functools
import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from eao.authors.data import translate_dataset
from eao.config import DATASET_TYPES, DataConfig, HowTo100MData, TextConfig
from eao.data.crosstask import StepDataset
from eao.data.datasets import open_dataset
from eao.data.howto100m import speech_clips
from eao.data.item import ClipShape, Item
from eao.data.loader import Loader
from eao.data.record import Record
from eao.data.text import build_text_encoder, tokenize

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "datasets/cases.json").read_text(encoding="utf-8"))
SAMPLING = json.loads((GOLDEN / "data/howto_sampling.json").read_text(encoding="utf-8"))
WINDOWS = json.loads((GOLDEN / "data/crosstask.json").read_text(encoding="utf-8"))["cases"]
# All values are copied and equal bit by bit, except where float32 numbers are added up in another order: a few squares
# in the norms of video features, and 40 bands (of one sign) in the sums that stand for whole spectrograms.
EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 1e-6, "atol": 1e-7}
TOLERANCES = {"video": CLOSE, "audio_sum_over_mel": {"rtol": 40 * 2**-24, "atol": 0}}


class Seeded:
    """The draws of numpy's old global generator, with which the authors' code drew its windows."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)

    def random(self):
        return float(self.state.random_sample())


class PythonChoice:
    """The draw of one of several by Python's generator, with which the authors' code drew its captions."""

    def __init__(self, seed):
        self.state = random.Random(seed)

    def integers(self, n):
        return self.state.choice(range(n))


@functools.cache
def stored(path):
    with np.load(GOLDEN / path) as archive:
        return dict(archive)


@functools.cache
def words(path):
    return build_text_encoder(TextConfig(encoder="word2vec", path=str(GOLDEN / path)))


@functools.cache
def dataset(case):
    """The data set of a case, its settings translated from the authors' as those of their files are."""
    kwargs = {
        key: str(GOLDEN / value) if str(value).startswith("synth/") else value
        for key, value in CASES[case]["kwargs"].items()
    }
    kwargs |= {"caption_path": str(GOLDEN / "synth/howto/caption.pickle")} if "howto" in case else {}
    notices = []
    loader = {"args": {"dataset_name": CASES[case]["dataset_name"], "dataset_kwargs": kwargs}}
    values = translate_dataset(loader, "the case", notices)
    assert notices == []
    if values["type"] == "msrvtt":
        values |= {"expected_items": None}  # twelve of the 968 are kept here
    return open_dataset(DATASET_TYPES[values["type"]].model_validate(values), DataConfig())


def assert_same_clips(items, captions, case, index):
    """The clips of an item are the authors', value by value."""
    expected = {
        key.partition(".")[2]: array
        for key, array in stored(f"datasets/{case}.npz").items()
        if key.startswith(f"{index}.")
    }
    text, text_mask = words("synth/word2vec.bin").encode(captions)
    actual = {
        "text": text.numpy(),
        "text_mask": text_mask.numpy(),
        "video": np.stack([item.video for item in items]),
        "video_mask": np.stack([item.video_mask for item in items]),
        "audio": np.stack([item.audio for item in items]),
        "audio_sum_over_mel": np.stack([item.audio.sum(axis=0) for item in items]),
        "audio_mask": np.stack([item.audio_mask for item in items]),
        "audio_STFT_nframes": np.array([item.audio_frames for item in items]),
    }
    assert {"text", "video", "audio_mask"} < set(expected)
    for key, array in expected.items():
        if key != "y_true":
            tolerance = TOLERANCES.get(key, EXACT)
            np.testing.assert_allclose(actual[key].reshape(array.shape), array, err_msg=key, **tolerance)


def items_of(*names):
    """The stored items of the data sets whose names begin so."""
    return [
        pytest.param(case, item, id=f"{case}.{item['index']}")
        for case in CASES
        if case.startswith(names)
        for item in CASES[case]["items"]
    ]


def draws(item):
    return Seeded(item["np_seed"]) if "np_seed" in item else PythonChoice(item.get("random_seed"))


@pytest.mark.parametrize("case", CASES)
def test_length_and_complete_size(case):
    assert len(dataset(case)) == CASES[case]["length"]
    assert dataset(case).complete_dataset_size == CASES[case]["complete_dataset_size"]


@pytest.mark.parametrize(("case", "item"), items_of("msrvtt", "youcook", "howto"))
def test_clips_equal_the_reference(case, item):
    clips = dataset(case).clips(item["index"], draws(item))
    captions = [clip.caption for clip in clips]
    assert_same_clips(clips, captions, case, item["index"])
    as_lists = [[x] if isinstance(x, str) else x for x in (item["ids"], item["raw_text"])]
    assert [[clip.id for clip in clips], [" ".join(tokenize(caption)) for caption in captions]] == as_lists


@pytest.mark.parametrize(("case", "item"), items_of("crosstask"))
def test_videos_in_segments_equal_the_reference(case, item):
    video = dataset(case).video(item["index"])
    assert_same_clips(video.clips, video.steps, case, item["index"])
    np.testing.assert_array_equal(video.labels, stored(f"datasets/{case}.npz")[f"{item['index']}.y_true"])
    assert (video.steps, video.task) == (item["raw_text"], item["task"])
    assert {clip.id for clip in video.clips} == {video.id} == {item["ids"]}


@pytest.mark.parametrize("case", SAMPLING["cases"], ids=lambda case: case["name"])
def test_windows_of_howto100m_equal_the_reference(case):
    """Which captions, when, with which sound, and how many numbers were drawn for it."""
    data, captions = stored("data/howto_sampling.npz"), SAMPLING["captions"][case["caption"]]
    record = Record(
        "vid1",
        "a/vid1",
        data["f2"] if case["use_2D"] else None,
        data["f3"] if case["use_3D"] else None,
        data["mel"],
        captions["text"],
        np.array(captions["start"]),
        np.array(captions["end"]),
    )
    config = HowTo100MData(
        csv="",
        captions="",
        features_2d="",
        features_3d="",
        audio="",
        clips_per_video=4,
        audio_shift="later" if case["misaligned"] else "none",
    )
    rng = Seeded(case["np_seed"])
    clips = speech_clips(record, rng, config, ClipShape(12, 768, case["strategy"]), video_dim=0)
    assert rng.random() == case["next_rand"]
    assert [clip.id for clip in clips] == case["ids"] == [f"a/vid1{start}" for start in case["starts"]]
    assert [" ".join(tokenize(clip.caption)) for clip in clips] == case["raw_text"]
    assert [clip.audio_frames for clip in clips] == [-1] * 4
    if case["audio_crc32"] is not None:
        assert [zlib.crc32(np.ascontiguousarray(clip.audio)) for clip in clips] == case["audio_crc32"]
    text, text_mask = words("data/tiny_w2v.bin").encode([clip.caption for clip in clips])
    np.testing.assert_array_equal(text, data[f"{case['name']}.text"])
    np.testing.assert_array_equal(text_mask, data[f"{case['name']}.text_mask"])
    np.testing.assert_allclose(np.stack([clip.video for clip in clips]), data[f"{case['name']}.video"], **CLOSE)
    for key in ("video_mask", "audio_mask"):
        np.testing.assert_array_equal([getattr(clip, key) for clip in clips], data[f"{case['name']}.{key}"])


@pytest.fixture(scope="module")
def step_files(tmp_path_factory):
    """Videos of 12, 3 and 1 seconds, each with the two stored bands of 11.8 seconds of sound."""
    folder = tmp_path_factory.mktemp("steps")
    audio = np.zeros((40, 1180), dtype=np.float32)
    audio[:2] = stored("data/crosstask.npz")["mel"]
    for seconds in (12, 3, 1):
        np.save(folder / f"{seconds}_2d.npy", np.ones((seconds, 2), dtype=np.float32))
        np.savez(folder / f"{seconds}.npz", audio)
        np.save(folder / f"{seconds}.npy", np.zeros(seconds))
    return folder


@pytest.mark.parametrize("case", WINDOWS[:-1], ids=lambda case: case["name"])
def test_windows_of_segments_equal_the_reference(case, step_files):
    seconds = case["T"]
    (step_files / "videos.csv").write_text(f"video_id\n{seconds}\n")
    (step_files / "steps.json").write_text(json.dumps({str(seconds): ["stir"]}))
    config = DATASET_TYPES["mining-youtube"].model_validate(
        {key: str(step_files) for key in ("features", "audio", "annotations")}
        | {"csv": str(step_files / "videos.csv"), "steps": str(step_files / "steps.json"), "use_3d": False}
        | {"clip_radius": case["radius"], "audio_padding": case["padding"], "audio_frames": 768, "video_tokens": 12}
    )
    clips = StepDataset(config, DataConfig()).video(0).clips
    data = stored("data/crosstask.npz")
    assert [clip.audio_frames for clip in clips] == case["nframes"]
    lasting = [end - start for start, end in zip(case["starts"], case["ends"], strict=True)]
    assert [clip.video_mask.sum() for clip in clips] == lasting
    np.testing.assert_array_equal([clip.audio_mask for clip in clips], data[f"{case['name']}.audio_mask"])
    if (first := data.get(f"{case['name']}.audio_first")) is not None:
        np.testing.assert_array_equal([clip.audio[0, :8] for clip in clips], first)
        # A sum of up to 1,536 numbers near one, in another order.
        sums = [clip.audio.sum() for clip in clips]
        np.testing.assert_allclose(sums, data[f"{case['name']}.audio_checksum"], rtol=1e-4, atol=1e-4)


def test_steps_of_a_task_are_encoded_like_the_reference():
    data, case = stored("data/crosstask.npz"), WINDOWS[-1]
    text, mask = words("data/tiny_w2v.bin").encode(case["steps"])
    np.testing.assert_array_equal(text, data["steps.text"])
    np.testing.assert_array_equal(mask, data["steps.mask"])


class TwoTimesThree:
    """Two items of three clips each, with the stored names and values."""

    config, video_dim, complete_dataset_size, is_cached = None, 1, None, True

    def __init__(self, names, video, frames):
        self.names, self.video, self.frames = names, video, frames

    def __len__(self):
        return 2

    def clips(self, index, rng):
        empty = np.zeros((40, 4), np.float32), np.zeros(4, bool)
        return [
            Item(
                self.names["meta"]["ids"][i], self.names["raw_text"][i], self.video[i], np.ones(2, bool), *empty, frames
            )
            for i, frames in enumerate(self.frames)
        ][3 * index : 3 * index + 3]


def test_clips_of_one_item_stay_together_in_a_batch():
    data, case = stored("data/unroll.npz"), json.loads((GOLDEN / "data/unroll.json").read_text(encoding="utf-8"))
    (batch,) = Loader(TwoTimesThree(case, data["video"], data["nframes"]), None, batch_size=2)
    torch.testing.assert_close(batch.video, torch.from_numpy(data["video"]), rtol=0, atol=0)
    assert batch.ids == case["meta"]["ids"]
    assert batch.audio_frames.tolist() == data["nframes"].tolist()
