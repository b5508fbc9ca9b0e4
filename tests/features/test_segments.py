from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eao.config import FeaturesConfig, StreamConfig
from eao.errors import ConfigError, MediaError
from eao.features.extractor import ClipFeatures
from eao.features.inputs import Part, Source
from eao.features.segments import ClipRule, Segment, cut_features, shot_edges

SOURCE = Source("talks/a", "/in/talks/a.mp4", captions=("a talk",))


def spans(rule: str, duration: float, cuts: list[float] | None = None) -> list[tuple[float, float]]:
    return [(s.start, s.end) for s in ClipRule.parse(rule).segments(SOURCE, duration, cuts or [])]


def test_whole() -> None:
    assert ClipRule.parse("whole").segments(SOURCE, 3.14159) == [Segment("talks/a", 0.0, 3.142, ("a talk",))]


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (3.0, [(0, 3)]),
        (8.0, [(0, 8)]),
        (11.9, [(0, 11.9)]),
        (12.0, [(0, 8), (8, 12)]),
        (16.0, [(0, 8), (8, 16)]),
        (19.0, [(0, 8), (8, 19)]),
    ],
)
def test_a_rest_under_half_a_window_belongs_to_the_one_before(
    duration: float, expected: list[tuple[float, float]]
) -> None:
    assert spans("windows:8", duration) == expected


def test_clips_of_a_rule_are_numbered_below_their_file_and_share_its_captions() -> None:
    assert ClipRule.parse("windows:2.5").segments(SOURCE, 5.0) == [
        Segment("talks/a/000000", 0.0, 2.5, ("a talk",)),
        Segment("talks/a/000001", 2.5, 5.0, ("a talk",)),
    ]


def test_shots_between_their_bounds() -> None:
    assert spans("shots", 10.0) == [(0, 10)]
    assert spans("shots:1-60", 10.0, [0.5, 3.0, 3.5, 6.0, 9.5]) == [(0, 3), (3, 6), (6, 10)]
    assert spans("shots:1-4", 10.0, [9.0]) == [(0, 3), (3, 6), (6, 9), (9, 10)]


@given(
    st.floats(0.1, 5000),
    st.lists(st.floats(0.0, 1.0), max_size=40),
    st.floats(0.1, 10),
    st.floats(2.0, 10),
)
def test_shots_cover_the_file_within_their_bounds(
    duration: float, cuts: list[float], shortest: float, factor: float
) -> None:
    longest = factor * shortest
    edges = shot_edges(sorted(duration * cut for cut in cuts), duration, shortest, longest)
    lengths = np.diff(edges)
    assert (edges[0], edges[-1]) == (0.0, duration)
    assert lengths.max() <= longest + 1e-6
    assert lengths.min() >= min(shortest, duration) - 1e-6


def test_the_parts_that_a_list_asks_for_come_before_any_rule() -> None:
    source = Source("a", "/in/a.mp4", (Part("x", 1.0, 2.0), Part("y", 3.0, None, ("end",)), Part("z", 9.0, 11.0)))
    for rule in ("whole", "windows:1"):
        assert ClipRule.parse(rule).segments(source, 5.0) == [Segment("x", 1, 2), Segment("y", 3, 5, ("end",))]
    with pytest.raises(MediaError, match="lasts 0.5 s, and none of its clips begins before") as caught:
        ClipRule().segments(source, 0.5)
    assert caught.value.kind == "no-clips"


def test_subtitles_become_clips_with_captions(tmp_path: Path) -> None:
    source = Source("a", str(tmp_path / "a.mp4"))
    cues = "00:01.000 --> 00:04.500\none\n\n00:03.000 --> 00:59.000\ntwo\n\n00:40.000 --> 00:59.000\nafter the end\n"
    (tmp_path / "a.vtt").write_text(cues)
    expected = [Segment("a/000000", 1.0, 4.5, ("one",)), Segment("a/000001", 3.0, 10.0, ("two",))]
    rule = ClipRule.parse("subtitles")
    rule.check(source)
    assert rule.segments(source, 10.0) == expected
    folder = tmp_path / "texts"
    folder.mkdir()
    (tmp_path / "a.vtt").rename(folder / "a.vtt")
    assert ClipRule.parse(f"subtitles:{folder}").segments(source, 10.0) == expected
    with pytest.raises(MediaError, match="beside it") as caught:
        rule.check(source)
    assert caught.value.kind == "subtitles"
    (folder / "a.vtt").write_text("00:01 --> x\n")
    with pytest.raises(MediaError, match=r"a\.vtt line 1") as caught:
        ClipRule.parse(f"subtitles:{folder}").check(source)
    assert caught.value.kind == "subtitles"


@pytest.mark.parametrize(
    "rule", ["", "window:8", "windows", "windows:0", "windows:-1", "windows:nan", "windows:inf", "shots:5-6", "shots:x"]
)
def test_rules_that_make_no_sense_are_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="clips"):
        ClipRule.parse(rule)
    with pytest.raises(ConfigError, match="no folder"):
        ClipRule.parse("subtitles:/absent")


@pytest.mark.parametrize("rule", ["whole", "windows:2.5", "shots:1-60", "subtitles"])
def test_a_rule_is_noted_as_it_was_given(rule: str) -> None:
    assert str(ClipRule.parse(rule)) == rule
    assert str(ClipRule.parse("shots")) == "shots:1-60"


CONFIG = FeaturesConfig(
    video_2d=StreamConfig(backbone="resnet152", rate=1.0), video_3d=StreamConfig(backbone="resnext101-3d", rate=1.5)
)


def features(seconds: float) -> ClipFeatures:
    """Rows and frames that carry their own index."""
    rows_2d, rows_3d, frames = math.ceil(seconds), math.ceil(1.5 * seconds), 1 + int(100 * seconds)
    return ClipFeatures(
        np.arange(rows_2d, dtype=np.float32)[:, None],
        np.arange(rows_3d, dtype=np.float32)[:, None],
        np.broadcast_to(np.arange(frames, dtype=np.float32), (40, frames)),
        seconds,
    )


def test_a_clip_has_the_rows_and_frames_of_its_time() -> None:
    clip = cut_features(features(20.0), CONFIG, 4.0, 8.0)
    assert clip.video_2d is not None and clip.video_3d is not None and clip.audio is not None
    assert clip.video_2d[:, 0].tolist() == [4, 5, 6, 7]
    assert clip.video_3d[:, 0].tolist() == [6, 7, 8, 9, 10, 11]
    # Frame i stands for the window of 25 ms that begins at 10 i ms, as HowTo100M counts: it ends before the clip does.
    assert (clip.audio[0, 0], clip.audio[0, -1]) == (398, 797)
    assert clip.duration == 4.0


def test_the_whole_file_is_not_cut() -> None:
    whole = features(5.0004)
    assert cut_features(whole, CONFIG, 0.0, 5.0) is whole


@given(st.floats(0.2, 30), st.floats(0, 1), st.floats(0.01, 1))
def test_a_clip_has_at_least_one_row(seconds: float, start: float, length: float) -> None:
    begin = round(start * seconds * 0.99, 3)
    end = round(min(seconds, begin + length * seconds), 3)
    clip = cut_features(features(seconds), CONFIG, begin, max(end, begin + 0.001))
    for rows in (clip.video_2d, clip.video_3d):
        assert rows is not None and len(rows) >= 1


def test_streams_that_are_not_there_stay_so() -> None:
    silent = ClipFeatures(None, features(9.0).video_3d, None, 9.0)
    clip = cut_features(silent, CONFIG.model_copy(update={"video_2d": None}), 1.0, 2.0)
    assert clip.video_2d is None and clip.audio is None
    assert clip.video_3d is not None and clip.video_3d[:, 0].tolist() == [1, 2]
