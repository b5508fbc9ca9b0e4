"""Which tensors the Triton kernels take; tensors on a GPU are stood in for by torch's fake ones, which need none."""

import logging

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from eao.kernels import backend
from eao.kernels.attention import packed_attention


@pytest.fixture(autouse=True)
def _forget():
    backend._has_kernels.cache_clear()
    yield
    backend._has_kernels.cache_clear()


@pytest.fixture
def _h100(monkeypatch):
    monkeypatch.setattr(backend, "HAS_TRITON", True)
    monkeypatch.setattr(backend, "gpu_target", lambda device: "sm_90")


def on_gpu(dtype=torch.float32):
    with FakeTensorMode():
        return torch.empty(4, device="cuda", dtype=dtype)


@pytest.mark.usefixtures("_h100")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floating_types_on_a_gpu(dtype):
    assert backend.use_triton(on_gpu(dtype))


@pytest.mark.usefixtures("_h100")
def test_plain_path_for_double_precision_and_on_a_cpu():
    assert not backend.use_triton(on_gpu(torch.float64))
    assert not backend.use_triton(torch.empty(4))


@pytest.mark.usefixtures("_h100")
def test_plain_path_in_an_exported_graph(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not backend.use_triton(on_gpu())


@pytest.mark.usefixtures("_h100")
def test_a_missing_triton_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(backend, "HAS_TRITON", False)
    with caplog.at_level(logging.WARNING):
        assert not backend.use_triton(on_gpu())
        assert not backend.use_triton(on_gpu())
        assert not backend.use_triton(torch.empty(4))
    assert [record.message for record in caplog.records] == [
        "triton is not installed: attention and loss run on the slower plain path (pip install triton)"
    ]


@pytest.mark.usefixtures("_h100")
def test_a_gpu_without_checked_kernels_takes_the_plain_path(monkeypatch, caplog):
    monkeypatch.setattr(backend, "gpu_target", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with caplog.at_level(logging.WARNING):
        assert not backend.use_triton(on_gpu())
    assert "no kernel is compiled for Tesla T4" in caplog.text


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_89"),  # the shared memory of 8.0 would be too much for it
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 1), "sm_120"),
        ((7, 5), None),
        ((11, 0), None),
    ],
)
def test_nearest_target(capability, target):
    assert backend.nearest_target(*capability) == target


@pytest.mark.usefixtures("_h100")
def test_the_graph_of_a_gpu_holds_the_sums_that_its_backward_kernels_need():
    with FakeTensorMode():
        qkv, starts = torch.empty(7, 3, 2, 16, device="cuda"), torch.empty(3, dtype=torch.int32, device="cuda")
        wide = torch.empty(7, 3, 2, 256, device="cuda")
        assert torch.ops.eao.packed_attention(qkv, starts, 5, None)[1].shape == (2, 7)
        assert torch.ops.eao.packed_attention(wide, starts, 5, None)[1].shape == (2, 0)
        assert packed_attention(qkv, starts, 5).shape == (7, 2, 16)


def test_the_compiler_takes_what_a_gpu_has_for_constant():
    @torch.compiler.assume_constant_result
    def marked():
        return True

    assert vars(marked) and vars(marked).items() <= vars(backend._has_kernels).items()
