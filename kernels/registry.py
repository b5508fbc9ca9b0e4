"""What each Triton kernel is compiled for: argument types, variants and candidate configurations.

A kernel module (`attention_triton.py` and so on) lists its kernels in a tuple `KERNELS`; `MODULES` names the modules.
`eao.kernels.aot` compiles all of them without a GPU and stores in `configs.json` which configurations fit which
architecture; `launch_options` reads that file when a kernel is launched. A kernel module holds all that its kernels
call: the stored result is keyed by the module's source.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eao.kernels.backend import gpu_target

MODULES = ("eao.kernels.attention_triton", "eao.kernels.contrastive_triton")
"""Modules with a tuple `KERNELS`; they import triton, so only whoever launches or compiles kernels imports them."""

CONFIGS = Path(__file__).with_name("configs.json")
TORCH_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
DTYPES = tuple(TORCH_DTYPES.values())


@dataclass(frozen=True)
class Launch:
    """One way of running a kernel: tile sizes by the name of their constexpr argument, warps, pipeline stages."""

    tiles: Mapping[str, int]
    num_warps: int
    num_stages: int = 1

    def options(self) -> dict[str, int]:
        """Keyword arguments for the launch `kernel[grid](..., **options)`."""
        return {**self.tiles, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Kernel:
    """A Triton kernel as the ahead-of-time compiler and the launcher see it.

    Args:
        name: unique among all kernels.
        function: what `@triton.jit` gave.
        signature: type of every argument that is no constexpr: "*T:16" is a pointer to the element type that is being
            compiled for, ":16" says divisible by 16 (as Triton's own specialisation finds it at the launch: pointers
            and most strides are), "*fp32:16", "*i32:16", "i32", "i32:16", "fp32" and so on.
        variants: constexpr arguments by the name of the variant, for example {"c64": {"CHANNELS": 64}}.
        launches: candidates by the name of the variant, in order of preference: the first that compiles within
            the limits of an architecture is its default.
        constants: constexpr arguments equal in all variants. An argument called PRECISION is given `dot_precision`.
        dtypes: element types T.
        tensor_cores: whether fp16 and bf16 have to use the tensor cores.
    """

    name: str
    function: Any
    signature: Mapping[str, str]
    variants: Mapping[str, Mapping[str, Any]]
    launches: Mapping[str, tuple[Launch, ...]]
    constants: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = DTYPES
    tensor_cores: bool = True


def dot_precision(dtype: str, backend: str) -> str:
    """How `tl.dot` multiplies: float32 on NVIDIA's tensor cores as three TF32 products, which keep its accuracy."""
    return "tf32x3" if dtype == "fp32" and backend == "cuda" else "ieee"


def all_kernels() -> dict[str, Kernel]:
    """Every registered kernel by name. Imports triton."""
    kernels = [kernel for module in MODULES for kernel in importlib.import_module(module).KERNELS]
    return {kernel.name: kernel for kernel in kernels}


@functools.cache
def source_key(module: str) -> str:
    """A hash of a module's source, blind to comments and formatting."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


@functools.cache
def stored_configs() -> dict[str, Any]:
    """What `eao kernels check --write` stored: which candidates of each kernel fit, by number."""
    return json.loads(CONFIGS.read_text(encoding="utf-8"))


def fitting_launches(kernel: Kernel, variant: str, dtype: str, target: str) -> list[Launch]:
    """The candidates that compile within the limits of a target, in order of preference."""
    return [kernel.launches[variant][i] for i in stored_configs()["launches"][kernel.name][variant][dtype][target]]


def launch_options(kernel: Kernel, variant: str, x: Tensor) -> dict[str, Any]:
    """Keyword arguments for the launch: tile sizes, warps, stages and PRECISION for the type and device of `x`.

    On the CPU (Triton's interpreter) that is the first candidate.
    """
    dtype = TORCH_DTYPES[x.dtype]
    if x.is_cuda:
        target = gpu_target(x.device)
        if target is None:
            raise RuntimeError(f"no kernel is compiled for {torch.cuda.get_device_name(x.device)}")
        options, backend = fitting_launches(kernel, variant, dtype, target)[0].options(), backend_of(target)
    else:
        options, backend = kernel.launches[variant][0].options(), "cpu"
    precision = dot_precision(dtype, backend)
    return options | ({"PRECISION": precision} if "PRECISION" in kernel.function.arg_names else {})


def backend_of(target: str) -> str:
    """Triton's name for the maker of a target."""
    return "cuda" if target.startswith("sm_") else "hip"
