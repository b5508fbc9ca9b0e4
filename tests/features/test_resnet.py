from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eao.errors import CheckpointError
from eao.features.resnet import OUTPUT_DIM, ResNet152


class Block(nn.Module):
    """A bottleneck as plainly as in the paper, with torchvision's names."""

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, 4 * middle, 1, bias=False), nn.BatchNorm2d(4 * middle)
        self.downsample = None
        if stride > 1 or inputs != 4 * middle:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * middle, 1, stride, bias=False), nn.BatchNorm2d(4 * middle)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class PlainResNet152(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for level, (depth, middle) in enumerate(zip((3, 8, 36, 3), (64, 128, 256, 512), strict=True), 1):
            blocks = []
            for index in range(depth):
                blocks.append(Block(inputs, middle, 2 if level > 1 and index == 0 else 1))
                inputs = 4 * middle
            setattr(self, f"layer{level}", nn.Sequential(*blocks))
        self.fc = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for level in range(1, 5):
            x = getattr(self, f"layer{level}")(x)
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def plain() -> PlainResNet152:
    torch.manual_seed(0)
    network = PlainResNet152().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.weight, 1, 0.1)
    return network


@pytest.fixture(scope="module")
def file(plain: PlainResNet152, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet152.pth"
    torch.save(plain.state_dict(), path)
    return path


def test_the_oracle_has_the_published_size(plain: PlainResNet152) -> None:
    assert sum(p.numel() for p in plain.parameters()) == 60_192_808
    assert len(plain.state_dict()) == 932


def test_equals_a_plain_network_in_double_precision(plain: PlainResNet152, file: Path) -> None:
    frames = torch.randint(0, 256, (2, 64, 97, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((frames.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        rows = ResNet152.load(file)(frames)
        expected = F.normalize(plain.double()(images))
        plain.float()
    assert rows.shape == (2, OUTPUT_DIM)
    # 152 layers of float32; the two rows differ by 1e-2.
    torch.testing.assert_close(rows.double(), expected, rtol=0, atol=1e-6)
    assert (rows[0] - rows[1]).abs().max() > 1e-4


def test_pixels_are_normalised_as_by_the_original_extractor(golden_networks: ModuleType) -> None:
    golden = golden_networks.golden()
    frames = np.random.RandomState(104).randint(0, 256, (5, 3, 224, 298)).astype(np.uint8)
    given = torch.from_numpy(frames[:, :, 100:104, 140:148]).permute(0, 2, 3, 1)
    found = ResNet152(nn.Identity()).normalise(given)  # type: ignore[arg-type]
    np.testing.assert_allclose(found, golden["resnet_input"], rtol=0, atol=float(golden["atol_resnet_input"]))


def test_a_shallower_network_is_refused_by_the_first_tensor_it_lacks(file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    torch.save({key: x for key, x in state.items() if "layer3.35." not in key}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: layer3\.35\.conv1\.weight is missing"):
        ResNet152.load(tmp_path / "x.pth")


def test_a_deeper_network_is_refused_by_the_first_tensor_left_over(file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    torch.save(state | {"layer2.8.conv1.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"layer2\.8\.conv1\.weight has no place"):
        ResNet152.load(tmp_path / "x.pth")
