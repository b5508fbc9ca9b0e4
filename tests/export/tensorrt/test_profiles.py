from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eao.config import Config
from eao.errors import DataError, ExportError
from eao.export import encoders
from eao.export.encoders import Axis, InputSpec
from eao.export.tensorrt import profiles
from eao.export.tensorrt.profiles import AxisRange, check_profiles, choose_profile, make_profiles, parse_range

BATCH, VIDEO, FRAMES = Axis("batch"), Axis("video_tokens"), Axis("spectrogram_frames", 64, 64)
SPECS = (
    InputSpec("video", "float32", (BATCH, VIDEO, 10)),
    InputSpec("video_mask", "bool", (BATCH, VIDEO)),
    InputSpec("audio", "float32", (BATCH, 40, FRAMES)),
)
GOOD = {
    "batch": AxisRange(1, 8, 64),
    "video_tokens": AxisRange(1, 6, 6),
    "spectrogram_frames": AxisRange(64, 320, 320),
}


def demo_config(**data: object) -> Config:
    return Config.model_validate({"data": {"video_tokens": 6, "audio_frames": 300, **data}})


def test_the_axes_are_those_of_the_encoders() -> None:
    assert profiles.AXES == encoders.DYNAMIC


def test_a_range_is_three_sizes_or_one() -> None:
    assert parse_range("1:8:64") == (1, 8, 64)
    assert parse_range(" 12 ") == (12, 12, 12)
    assert str(parse_range("1:8:64")) == "1:8:64"


@given(st.integers(1, 99), st.integers(1, 99), st.integers(1, 99))
def test_only_ordered_ranges_parse(low: int, best: int, high: int) -> None:
    text = f"{low}:{best}:{high}"
    if low <= best <= high:
        assert parse_range(text) == (low, best, high)
    else:
        with pytest.raises(ExportError, match="min <= opt <= max"):
            parse_range(text)


@pytest.mark.parametrize("text", ["", "1:8", "1:8:64:128", "a:b:c", "-1:2:3", "1.5", "1::3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="is no range of sizes"):
        parse_range(text)


def test_the_smallest_size_is_one() -> None:
    with pytest.raises(ExportError, match="1 <= min"):
        parse_range("0:1:2")


def test_by_default_one_profile_is_for_queries_and_one_for_batches_of_the_experiments_sizes() -> None:
    alone, batch = make_profiles(SPECS, demo_config())
    assert alone["batch"] == (1, 1, 1) and batch["batch"] == (1, 8, 64)
    for profile in (alone, batch):
        assert profile["video_tokens"] == (1, 6, 6)
        assert profile["spectrogram_frames"] == (64, 320, 320)  # 300 frames, rounded up to a multiple of 64


def test_a_data_set_with_longer_clips_widens_the_default() -> None:
    test = {"type": "folder", "features": "f", "captions": "c", "audio_frames": 700}
    (_, batch) = make_profiles(SPECS, demo_config(test=test))
    assert batch["spectrogram_frames"].max == 704


def test_an_experiment_of_single_clips_has_one_profile() -> None:
    config = Config.model_validate({"evaluation": {"batch_size": 1}})
    assert [p["batch"] for p in make_profiles(SPECS[:2], config)] == [(1, 1, 1)]


def test_given_ranges_replace_the_defaults_and_other_axes_keep_theirs() -> None:
    (profile,) = make_profiles(SPECS, demo_config(), {"batch": "2:4:8", "text_tokens": "9"})
    assert profile == {**GOOD, "batch": (2, 4, 8)}  # this encoder has no text


def test_ranges_separated_by_commas_are_profiles() -> None:
    first, second = make_profiles(SPECS, demo_config(), {"video_tokens": "1:6:12,24", "batch": "1:2:3"})
    assert first["video_tokens"] == (1, 6, 12) and second["video_tokens"] == (24, 24, 24)
    assert first["batch"] == second["batch"] == (1, 2, 3)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"tokens": "1:2:3"}, "no encoder has an axis 'tokens'"),
        ({"batch": "8:1:64"}, "--batch: the range 8:1:64"),
        ({"batch": "x"}, "--batch: 'x' is no range"),
        ({"batch": "1,2,3", "video_tokens": "1,2"}, "--video-tokens has 2 ranges, but another axis has 3"),
        ({"spectrogram_frames": "32:64:64"}, "--spectrogram-frames 32:64:64: the encoder takes 64 or more"),
        ({"spectrogram_frames": "64:100:128"}, "100 is no multiple of 64\n.*the nearest is 128"),
        (
            {"batch": "1:1:900000"},
            "largest audio, 900000 x 40 x 320, has .* elements\n.*--batch or --spectrogram-frames",
        ),
    ],
)
def test_ranges_that_do_not_fit_are_named(ranges: dict[str, str], message: str) -> None:
    with pytest.raises(ExportError, match=message) as error:
        make_profiles(SPECS, demo_config(), ranges)
    assert error.value.hint


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({k: v for k, v in GOOD.items() if k != "batch"}, "lacks the axis 'batch'"),
        ({**GOOD, "text_tokens": AxisRange(1, 1, 1)}, "has the axis 'text_tokens'"),
        ({**GOOD, "batch": AxisRange(4, 2, 8)}, "--batch 4:2:8 must hold"),
        ({**GOOD, "batch": AxisRange(0, 2, 8)}, "--batch 0:2:8 must hold"),
    ],
)
def test_profiles_made_by_hand_are_checked_too(profile: dict[str, AxisRange], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        check_profiles([profile], SPECS)


def test_an_engine_needs_a_profile() -> None:
    with pytest.raises(ExportError, match="needs a profile"):
        check_profiles([], SPECS)


def test_the_profile_with_the_nearest_optimum_is_chosen() -> None:
    small, large = {"batch": AxisRange(1, 2, 16)}, {"batch": AxisRange(1, 16, 64)}
    assert [choose_profile([small, large], {"batch": n}) for n in (1, 4, 7, 16, 17, 64)] == [0, 0, 1, 1, 1, 1]


def test_a_size_outside_of_every_profile_is_named_with_the_ranges() -> None:
    ranges = [{"batch": AxisRange(1, 1, 1)}, {"batch": AxisRange(4, 8, 64)}]
    with pytest.raises(DataError, match=r"batch 65 is outside .*text\.engine.*: 1 to 1, 4 to 64\n.*split the batch"):
        choose_profile(ranges, {"batch": 65}, "text.engine")


def test_sizes_that_no_profile_holds_at_once_are_named() -> None:
    ranges = [
        {"batch": AxisRange(1, 1, 1), "video_tokens": AxisRange(1, 48, 96)},
        {"batch": AxisRange(1, 8, 64), "video_tokens": AxisRange(1, 12, 12)},
    ]
    with pytest.raises(DataError, match="holds batch 2, video_tokens 48 at once"):
        choose_profile(ranges, {"batch": 2, "video_tokens": 48})
