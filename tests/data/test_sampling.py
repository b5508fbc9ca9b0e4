"""Sampling rules, against numbers from the authors' implementation and against torch."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eao.data import sampling
from eao.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
CASES = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
# Norms are sums of a few float32 squares, whose order differs between numpy and torch.
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as archive:
        return dict(archive)


def duplicated(case):
    """Whether the reference doubled the only stream it was given, which it does for 2-D features alone."""
    return case["rows_3d"] is None and case["shape"][-1] == 12


VIDEO_CASES = [c for c in CASES["video_features"]["cases"] if "shape" in c]


@pytest.mark.parametrize("case", VIDEO_CASES, ids=lambda c: c["name"])
def test_create_video_equals_the_reference(case):
    data = golden("video_features")
    video_2d = None if case["rows_2d"] is None else data["F2"][: case["rows_2d"]]
    video_3d = None if case["rows_3d"] is None else data["F3"][: case["rows_3d"]]
    video, mask = sampling.create_video(video_2d, video_3d, case["n_tokens"], case["strategy"])
    expected = data[case["name"] + ".video"]
    if duplicated(case):
        expected = expected[:, :6]
    assert video.shape == expected.shape
    assert video.dtype == np.float32
    assert mask.dtype == bool
    np.testing.assert_allclose(video, expected, **CLOSE)
    np.testing.assert_array_equal(mask, data[case["name"] + ".mask"] > 0)


def test_the_golden_cases_include_the_doubled_stream():
    assert {c["strategy"] for c in VIDEO_CASES if duplicated(c)} == {
        "nearest",
        "max_pool",
    }


@settings(deadline=None)
@given(n_in=st.integers(1, 300), n_out=st.integers(1, 200))
def test_nearest_indices_equal_torch(n_in, n_out):
    rows = torch.arange(n_in, dtype=torch.float32)[None, None]
    expected = torch.nn.functional.interpolate(rows, size=n_out, mode="nearest")[0, 0].long().numpy()
    np.testing.assert_array_equal(sampling.nearest_indices(n_in, n_out), expected)


def test_nearest_indices_round_in_single_precision():
    exact = np.arange(46) * 14 // 46
    assert (sampling.nearest_indices(14, 46) != exact).any()


def test_nearest_indices_of_nothing():
    assert sampling.nearest_indices(0, 0).shape == (0,)
    with pytest.raises(ValueError, match="cannot resample 0 rows"):
        sampling.nearest_indices(0, 3)


rows = st.one_of(st.none(), st.integers(0, 70))


@settings(deadline=None)
@given(
    rows_2d=rows,
    rows_3d=rows,
    n=st.integers(1, 20),
    strategy=st.sampled_from(["clip", "nearest", "max_pool"]),
)
def test_create_video_shape_mask_and_norms(rows_2d, rows_3d, n, strategy):
    if rows_2d is None and rows_3d is None:
        return
    rng = np.random.default_rng(0)
    streams = [None if r is None else rng.standard_normal((r, d)) for r, d in ((rows_2d, 3), (rows_3d, 5))]
    video, mask = sampling.create_video(*streams, n, strategy)
    given_streams = [s for s in streams if s is not None]
    length = len(given_streams[-1]) if all(len(s) for s in given_streams) else 0
    assert video.shape == (n, sum(s.shape[1] for s in given_streams))
    assert mask.sum() == min(length, n)
    assert not video[~mask].any()
    assert (np.diff(mask.astype(int)) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(video[mask], axis=1), np.sqrt(len(given_streams)), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["clip", "nearest", "max_pool"])
def test_half_precision_rows_are_normalised_in_single(strategy):
    rows = np.full((9, 4), 60000, dtype=np.float16)  # their squares overflow half precision
    video, _ = sampling.create_video(rows, None, 3, strategy)
    np.testing.assert_allclose(video, 0.5, rtol=1e-6)


def test_create_video_refuses_what_it_cannot_do():
    rows = np.ones((3, 4))
    with pytest.raises(DataError, match="not none"):
        sampling.create_video(None, None, 4)
    with pytest.raises(DataError, match=r"\(rows, width\) arrays, not \(4,\)"):
        sampling.create_video(rows[0], None, 4)
    with pytest.raises(DataError, match="both 2-D and 3-D"):
        sampling.create_video(rows, None, 0)
    with pytest.raises(ValueError, match="'mean'"):
        sampling.create_video(rows, None, 4, "mean")
    with pytest.raises(ValueError, match="-1 tokens"):
        sampling.create_video(rows, None, -1)


@pytest.mark.parametrize("case", CASES["audio_features"]["cases"][:-1], ids=lambda c: c["name"])
def test_create_audio_equals_the_reference(case):
    data = golden("audio_features")
    _, dtype, frames, total = case["name"].split(".")
    audio, mask, real = sampling.create_audio(data["mel"][:, : int(frames)].astype(dtype), int(total))
    np.testing.assert_array_equal(audio, data[case["name"] + ".audio"])
    np.testing.assert_array_equal(mask, data[case["name"] + ".mask"] > 0)
    assert (real, audio.dtype, mask.dtype) == (case["nframes"], np.float32, bool)


def test_create_audio_takes_a_tensor_and_refuses_a_waveform():
    audio, mask, frames = sampling.create_audio(torch.ones(40, 3, dtype=torch.float16), 5)
    assert frames == 3
    assert audio.sum() == 120
    assert mask.tolist() == [True] * 3 + [False] * 2
    with pytest.raises(DataError, match=r"not \(16000,\)"):
        sampling.create_audio(np.zeros(16000), 5)


def test_times_and_frames_equal_the_reference():
    data = golden("audio_features")
    assert [sampling.seconds_to_frames(t) for t in data["time_grid"]] == data["frames_grid"].tolist()
    assert [sampling.frames_to_seconds(int(n)) for n in data["nframes_grid"]] == data["seconds_grid"].tolist()


@pytest.mark.parametrize(
    "crop",
    CASES["audio_features"]["cases"][-1]["crops"],
    ids=lambda c: f"{c['start']}-{c['end']}",
)
def test_crop_audio(crop):
    mel = golden("audio_features")["mel"]
    cropped = sampling.crop_audio(mel, crop["start"], crop["end"])
    # The reference counts a negative end from the back and returns nearly everything; a clip that ends there is empty.
    expected = crop["shape"][1] if crop["frames"][1] >= 0 else 0
    assert cropped.shape == (4, expected)
    first = max(0, crop["frames"][0])
    np.testing.assert_array_equal(cropped, mel[:, first : first + expected])


@pytest.mark.parametrize("case", CASES["get_video"]["cases"], ids=lambda c: c["name"])
def test_video_rows_equal_the_reference(case):
    data = golden("get_video")
    for i, (start, end) in enumerate(zip(case["starts"], case["ends"], strict=True)):
        slices = [sampling.video_rows(start, end, rate, case["accurate_borders"]) for rate in (1.0, 1.5)]
        video, mask = sampling.create_video(data["f2"][slices[0]], data["f3"][slices[1]], 12)
        np.testing.assert_allclose(video, data[case["name"] + ".video"][i], **CLOSE)
        np.testing.assert_array_equal(mask, data[case["name"] + ".mask"][i] > 0)


@pytest.mark.parametrize("case", CASES["cut_into_clips"]["cases"], ids=lambda c: c["name"])
def test_cut_into_clips_equals_the_reference(case):
    data = golden("cut_into_clips")
    inputs = {k: data[f"{case['name']}.in.{k}"] for k in ("video", "video_mask", "audio", "audio_mask")}
    inputs |= {k: inputs[k] > 0 for k in ("video_mask", "audio_mask")}
    clips = sampling.cut_into_clips(**inputs, audio_frames=case["nframes_in"], n_clips=case["n_clips"])
    for key in inputs:
        np.testing.assert_array_equal(getattr(clips, key), data[f"{case['name']}.out.{key}"])
    assert clips.audio_frames.tolist() == case["audio_STFT_nframes"]
    assert clips.audio_frames.dtype == np.int64
    assert clips.keep.tolist() == [identifier != "-1" for identifier in case["ids"]]


@settings(deadline=None)
@given(
    audio=arrays(
        np.float32,
        st.tuples(st.just(2), st.integers(1, 30)),
        elements=st.floats(-80, 0, width=32),
    ),
    n_clips=st.integers(1, 5),
)
def test_cut_clips_hold_the_whole_item(audio, n_clips):
    padded, mask, frames = sampling.create_audio(audio, 6 * n_clips)
    video, video_mask = (
        np.ones((2 * n_clips, 3), np.float32),
        np.ones(2 * n_clips, bool),
    )
    clips = sampling.cut_into_clips(video, video_mask, padded, mask, frames, n_clips)
    np.testing.assert_array_equal(np.concatenate(list(clips.audio), axis=1), padded)
    assert clips.audio_mask.sum() == frames
    assert clips.keep[0]


def test_cut_into_clips_demands_equal_pieces():
    with pytest.raises(DataError, match="7 video tokens and 10 audio frames do not divide into 2 clips"):
        sampling.cut_into_clips(
            np.ones((7, 3)),
            np.ones(7, bool),
            np.ones((40, 10)),
            np.ones(10, bool),
            10,
            2,
        )
