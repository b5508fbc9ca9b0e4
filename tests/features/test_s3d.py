from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from eao.errors import CheckpointError
from eao.features.layers import max_pool
from eao.features.s3d import S3DG, space_to_depth


@pytest.fixture(scope="module")
def file(golden_networks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "s3d_howto100m.pth"
    # The gain keeps the signal from dying on the way through networks with random weights.
    weights = golden_networks.original_weights("s3dg", gain=1.75)
    assert sum(x.numel() for key, x in weights.items() if key.endswith(("weight", "bias"))) == 9_670_800
    torch.save(weights | {"text_module.fc1.bias": torch.zeros(2048)}, path)
    return path


def test_equals_the_reference(file: Path, golden_networks: ModuleType) -> None:
    golden = golden_networks.golden()
    clips = golden_networks.blocky(212, (2, 3, 4, 25, 25), (1, 1, 4, 8, 8), "random_sample").astype(np.float32)
    clips[1] *= np.float32(0.3)
    with torch.inference_mode():
        found = S3DG.load(file).pool(torch.from_numpy(clips))
    np.testing.assert_allclose(found, golden["s3d_out"], rtol=0, atol=float(golden["atol_s3d_out"]))


def test_frames_are_scaled_to_one(file: Path) -> None:
    frames = torch.randint(0, 256, (1, 4, 32, 48, 3), dtype=torch.uint8)
    network = S3DG.load(file)
    with torch.inference_mode():
        assert torch.equal(network(frames), network.pool(frames.permute(0, 4, 1, 2, 3).float() / 255))


def test_space_to_depth_orders_channels_as_the_reference(golden_networks: ModuleType) -> None:
    golden = golden_networks.golden()
    found = space_to_depth(torch.from_numpy(golden["space_to_depth_in"]))
    np.testing.assert_array_equal(found, golden["space_to_depth_out"])


@pytest.mark.parametrize(
    ("stage", "kernel", "stride"),
    [("2a", (1, 3, 3), (1, 2, 2)), ("4a", (3, 3, 3), (2, 2, 2)), ("5a", (2, 2, 2), (2, 2, 2))],
)
def test_pooling_pads_as_the_reference(
    golden_networks: ModuleType, stage: str, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    golden = golden_networks.golden()  # of odd sizes, and mostly below the zeros it is padded with
    found = max_pool(torch.from_numpy(golden["pool_in"]), kernel, stride)
    np.testing.assert_array_equal(found, golden[f"pool_out_maxpool_{stage}"])


def test_a_file_of_another_network_is_refused(file: Path, tmp_path: Path) -> None:
    weights = torch.load(file, weights_only=True)
    del weights["mixed_4d.gating_b2.fc.bias"]
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"mixed_4d\.gating_b2\.fc\.bias is missing"):
        S3DG.load(tmp_path / "x.pth")
