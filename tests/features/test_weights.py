from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eao.errors import CheckpointError
from eao.features.fingerprint import fingerprint
from eao.features.weights import Weights


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3),
        "bn.weight": torch.rand(4) + 0.5,
        "bn.bias": torch.randn(4),
        "bn.running_mean": torch.randn(4),
        "bn.running_var": torch.rand(4) + 0.5,
        "bn.num_batches_tracked": torch.tensor(7),
    }


def fold(weights: Weights) -> nn.Conv2d:
    layer = nn.Conv2d(3, 4, 3)
    weights.fold(layer, "conv", "bn")
    weights.finish()
    return layer


def test_a_folded_convolution_is_convolution_and_norm() -> None:
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    conv.load_state_dict({"weight": state()["conv.weight"]})
    norm.load_state_dict({key[3:]: x for key, x in state().items() if key.startswith("bn.")})
    images = torch.randn(2, 3, 7, 5)
    with torch.no_grad():
        expected = norm.eval()(conv(images))
        # One rounding of float32 more or less, of values up to 10.
        torch.testing.assert_close(fold(Weights(state(), "file", "network"))(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["pth", "legacy", "parallel", "checkpoint", "safetensors"])
def test_every_way_to_store_it_gives_the_same(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(state(), path)
    else:
        stored = {f"module.{key}": x for key, x in state().items()} if kind == "parallel" else state()
        content = {"epoch": 3, "state_dict": stored} if kind == "checkpoint" else stored
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    layer = fold(Weights.read(path, "network"))
    assert torch.equal(layer.weight, fold(Weights(state(), "", "")).weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn.bias": None}, r"x\.pth: bn\.bias is missing"),
        ({"bn.bias": torch.zeros(3)}, r"bn\.bias has shape \(3,\), not \(4,\)"),
        ({"bn.bias": torch.full((4,), torch.nan)}, r"bn\.bias holds values that are not finite"),
        ({"extra.a": torch.zeros(1), "extra.b": torch.zeros(1)}, r"extra\.a and 1 more has no place in the network"),
    ],
)
def test_a_file_of_another_network_is_refused_by_the_tensor(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    torch.save({key: x for key, x in (state() | change).items() if x is not None}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        fold(Weights.read(tmp_path / "x.pth", "network"))


def test_a_classifier_may_be_there_or_not() -> None:
    for extra in ({}, {"fc.weight": torch.zeros(2)}):
        weights = Weights(state() | extra, "", "")
        convolution = nn.Conv2d(3, 4, 3)
        weights.fold(convolution, "conv", "bn")
        weights.finish(unused=["fc."])
        assert torch.equal(convolution.weight, fold(Weights(state(), "", "")).weight)


class Harmful:
    """What a hostile pickle would do on being read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"conv.weight": Harmful(tmp_path / "ran")}))
    torch.save({"conv.weight": Harmful(tmp_path / "ran")}, tmp_path / "y.pth")
    for name in ("x.pth", "y.pth"):
        with pytest.raises(CheckpointError, match=name):
            Weights.read(tmp_path / name, "network")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_program_is_no_state_dict(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*x\.pt"):
        Weights.read(tmp_path / "x.pt", "network")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02code", b"PK\x03\x04"])
def test_a_file_without_weights_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        Weights.read(tmp_path / name, "network")


def test_a_list_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds a list, not a state dict"):
        Weights.read(tmp_path / "x.pth", "network")


def test_a_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "a.pth", tmp_path / "b.pth"
    first.write_bytes(b"same")
    second.write_bytes(b"same")
    before = fingerprint(first)
    assert before == fingerprint(second)
    first.write_bytes(b"other")
    assert fingerprint(first) != before


def test_a_fingerprint_of_an_engine_covers_its_weights(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_bytes(b"graph")
    (tmp_path / "x.bin").write_bytes(b"weights")
    before = fingerprint(tmp_path / "x.xml")
    (tmp_path / "x.bin").write_bytes(b"others")
    assert fingerprint(tmp_path / "x.xml") != before


def test_a_fingerprint_of_a_folder_covers_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    seen = {fingerprint(folder)}
    (folder / "model.safetensors").write_bytes(b"weights")
    seen.add(fingerprint(folder))
    (folder / "config.json").rename(folder / "other.json")
    seen.add(fingerprint(folder))
    assert len(seen) == 3


def test_a_fingerprint_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.pth: No such file"):
        fingerprint(tmp_path / "x.pth")
