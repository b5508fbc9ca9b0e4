from __future__ import annotations

import numpy as np

from eao.bench.feeds import plan_points, random_feeds
from eao.export.encoders import Axis, InputSpec

BATCH = Axis("batch")
TEXT = (
    InputSpec("text", "float32", (BATCH, Axis("text_tokens"), 6)),
    InputSpec("text_mask", "bool", (BATCH, Axis("text_tokens"))),
)
FRAMES = Axis("spectrogram_frames", minimum=64, multiple=32)
AUDIO = (
    InputSpec("audio", "float32", (BATCH, 40, FRAMES)),
    InputSpec("audio_frames", "int64", (BATCH,)),
)
LONGEST = {"text_tokens": 20, "spectrogram_frames": 100}


def test_every_batch_is_planned_at_every_length() -> None:
    points = plan_points(TEXT, LONGEST, (1, 3), (0.25, 1))
    assert [(p.length, p.sizes["batch"], p.sizes["text_tokens"]) for p in points] == [
        (1, 1, 20),
        (1, 3, 20),
        (0.25, 1, 5),
        (0.25, 3, 5),
    ]


def test_sizes_are_rounded_up_to_what_an_engine_takes_and_measured_once() -> None:
    points = plan_points(AUDIO, LONGEST, (1,), (0.1, 0.2, 1))
    assert [p.sizes["spectrogram_frames"] for p in points] == [128, 64]


def test_an_encoder_of_fixed_sizes_has_one_length() -> None:
    fixed = (InputSpec("video", "float32", (BATCH, 12, 6)),)
    assert [p.sizes for p in plan_points(fixed, LONGEST, (1, 8), (0.5, 1))] == [{"batch": 1}, {"batch": 8}]


def test_feeds_have_the_types_and_shapes_of_the_inputs_and_every_token_is_real() -> None:
    feeds = random_feeds((*TEXT, *AUDIO), {"batch": 2, "text_tokens": 5, "spectrogram_frames": 64})
    assert {name: (a.dtype.name, a.shape) for name, a in feeds.items()} == {
        "text": ("float32", (2, 5, 6)),
        "text_mask": ("bool", (2, 5)),
        "audio": ("float32", (2, 40, 64)),
        "audio_frames": ("int64", (2,)),
    }
    assert feeds["text_mask"].all()
    assert feeds["audio"].min() >= -80 and feeds["audio"].max() <= 0
    assert np.array_equal(feeds["audio_frames"], [64, 64])
