"""Which tensors the Triton kernels take; tensors on a GPU are stood in for by torch's fake ones, which need none."""

import logging

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from eao.kernels import backend
from eao.kernels.attention import packed_attention


@pytest.fixture
def has_triton(monkeypatch):
    monkeypatch.setattr(backend, "HAS_TRITON", True)


def on_gpu(dtype=torch.float32):
    with FakeTensorMode():
        return torch.empty(4, device="cuda", dtype=dtype)


@pytest.mark.usefixtures("has_triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floating_types_on_a_gpu(dtype):
    assert backend.use_triton(on_gpu(dtype))


@pytest.mark.usefixtures("has_triton")
def test_plain_path_for_double_precision_and_on_a_cpu():
    assert not backend.use_triton(on_gpu(torch.float64))
    assert not backend.use_triton(torch.empty(4))


@pytest.mark.usefixtures("has_triton")
def test_plain_path_in_an_exported_graph(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert not backend.use_triton(on_gpu())


def test_a_missing_triton_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(backend, "HAS_TRITON", False)
    backend._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not backend.use_triton(on_gpu())
        assert not backend.use_triton(on_gpu())
        assert not backend.use_triton(torch.empty(4))
    assert [record.message for record in caplog.records] == [
        "triton is not installed: attention and loss run on the slower plain path (pip install triton)"
    ]


@pytest.mark.usefixtures("has_triton")
def test_the_graph_of_a_gpu_holds_the_sums_that_its_backward_kernels_need():
    with FakeTensorMode():
        qkv, starts = torch.empty(7, 3, 2, 16, device="cuda"), torch.empty(3, dtype=torch.int32, device="cuda")
        wide = torch.empty(7, 3, 2, 256, device="cuda")
        assert torch.ops.eao.packed_attention(qkv, starts, 5, None)[1].shape == (2, 7)
        assert torch.ops.eao.packed_attention(wide, starts, 5, None)[1].shape == (2, 0)
        assert packed_attention(qkv, starts, 5).shape == (7, 2, 16)
