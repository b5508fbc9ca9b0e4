"""Which launch a kernel gets, and that what is stored for it belongs to the kernel as it stands."""

import importlib
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from eao.kernels import registry
from eao.kernels.backend import TARGETS

pytest.importorskip("triton")
KERNELS = registry.all_kernels()


@pytest.fixture(params=KERNELS.values(), ids=KERNELS)
def kernel(request):
    return request.param


def test_signature_and_variants_name_the_arguments_of_the_function(kernel):
    for variant, constants in kernel.variants.items():
        for launch in kernel.launches[variant]:
            named = {*kernel.signature, *kernel.constants, *constants, *launch.tiles}
            assert named | {"PRECISION"} == {*kernel.function.arg_names, "PRECISION"}


def test_stored_launches_belong_to_the_kernel_as_it_stands(kernel):
    module = kernel.function.fn.__module__
    assert registry.stored_configs()["sources"][kernel.name] == registry.source_key(module), "eao kernels check --write"


def test_every_gpu_has_a_launch(kernel):
    for variant in kernel.variants:
        for dtype in kernel.dtypes:
            for target in TARGETS:
                assert registry.fitting_launches(kernel, variant, dtype, target)


def test_the_interpreter_takes_the_first_candidate():
    forward, summing = KERNELS["attention_forward"], KERNELS["attention_sum_positions"]
    options = registry.launch_options(forward, "c64", torch.empty(1))
    assert options == {**forward.launches["c64"][0].options(), "PRECISION": "ieee"}
    assert "PRECISION" not in registry.launch_options(summing, "any", torch.empty(1))


@pytest.mark.parametrize(
    ("target", "dtype", "precision"),
    [("sm_80", "fp32", "tf32x3"), ("sm_80", "fp16", "ieee"), ("gfx942", "fp32", "ieee")],
)
def test_a_gpu_takes_the_first_that_fits(monkeypatch, target, dtype, precision):
    monkeypatch.setattr(registry, "gpu_target", lambda device: target)
    kernel = KERNELS["attention_forward"]
    with FakeTensorMode():
        x = torch.empty(1, device="cuda", dtype={"fp32": torch.float32, "fp16": torch.float16}[dtype])
    stored = {"launches": {kernel.name: {"c64": {dtype: {target: [2, 1]}}}}}
    monkeypatch.setattr(registry, "stored_configs", lambda: stored)
    assert registry.launch_options(kernel, "c64", x) == {**kernel.launches["c64"][2].options(), "PRECISION": precision}


def test_the_key_of_a_source_is_blind_to_comments_only(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for i, source in enumerate(["x = 1 + 2\n", "# a comment\nx = (1 +\n     2)\n", "x = 1 + 3\n"]):
        (tmp_path / f"source_key_{i}.py").write_text(source)
        keys.append(registry.source_key(f"source_key_{i}"))
        monkeypatch.delitem(sys.modules, f"source_key_{i}")
    assert keys[0] == keys[1] != keys[2]
    importlib.invalidate_caches()
