from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from eao.features.resnext3d import CHUNK, ResNeXt101Video


@pytest.fixture(scope="module")
def network(golden_networks: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ResNeXt101Video:
    path = tmp_path_factory.mktemp("weights") / "resnext101.pth"
    weights = golden_networks.original_weights("resnext101_3d")
    assert sum(x.numel() for key, x in weights.items() if key.endswith(("weight", "bias"))) == 48_340_816
    torch.save(weights, path)
    return ResNeXt101Video.load(path)


def test_equals_the_reference(network: ResNeXt101Video, golden_networks: ModuleType) -> None:
    golden = golden_networks.golden()
    clips = golden_networks.blocky(101, (2, 3, 4, 7, 7), (1, 1, 4, 16, 16), "standard_normal")
    with torch.inference_mode():
        found = network.pool(torch.from_numpy(clips.astype(np.float32)))
    np.testing.assert_allclose(found, golden["resnext_out"], rtol=0, atol=float(golden["atol_resnext_out"]))


def test_rows_of_a_video_equal_the_reference(network: ResNeXt101Video, golden_networks: ModuleType) -> None:
    golden = golden_networks.golden()
    values = golden_networks.blocky(105, (10, 3, 7, 7), (4, 1, 16, 16), "random_sample")[:37]
    frames = np.floor(values * 256).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    frames = np.concatenate([frames, np.zeros((-len(frames) % CHUNK, *frames.shape[1:]), np.uint8)])
    with torch.inference_mode():
        rows = network(torch.from_numpy(frames.reshape(-1, CHUNK, *frames.shape[1:]))).numpy()
    np.testing.assert_allclose(rows, golden["resnext_rows"], rtol=0, atol=float(golden["atol_resnext_rows"]))
    # As stored: neighbours in float16 at most.
    assert np.abs(rows.astype(np.float16).view(np.int16) - golden["resnext_rows_f16"].view(np.int16)).max() <= 1
