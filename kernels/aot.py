"""Compiling the kernels for GPUs that are not here, and reading from the machine code what they need.

Triton brings NVIDIA's assembler and disassembler, so half a second on a CPU tells whether a kernel keeps its values in
registers, fits into shared memory and uses the tensor cores. Whether it is right, the interpreter tells; whether it is
fast, only a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eao.console import ProgressCallback
from eao.errors import EaoError, missing_dependency
from eao.files import write_json, write_text
from eao.kernels.backend import TARGETS
from eao.kernels.registry import CONFIGS, Kernel, Launch, all_kernels, backend_of, dot_precision, source_key

_TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma)")
_LOCAL_MEMORY = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d\s+)?(STL|LDL)\b", re.MULTILINE)


@dataclass(frozen=True)
class Build:
    """One kernel compiled for one target, and what is wrong with it: `fault` is empty for one that may be launched.

    `spills` counts instructions that move registers to or from local memory on NVIDIA, and spilled registers on AMD;
    `stack` is local memory in bytes.
    """

    kernel: str
    variant: str
    dtype: str
    target: str
    options: Mapping[str, int]
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    tensor_cores: str = ""
    fault: str = ""


def check(
    targets: Sequence[str] = (),
    names: Sequence[str] = (),
    configs: Path = CONFIGS,
    cache: Path | None = None,
    progress: ProgressCallback | None = None,
) -> list[Build]:
    """Compile every kernel, variant and type with the launch that the stored configurations give it.

    Args:
        targets: some of `TARGETS`; all if empty.
        names: some of the kernels; all if empty.
        configs: what `store` wrote.
        cache: folder of earlier results.
        progress: called before each build.

    Raises:
        MissingDependencyError: triton is not installed.
        EaoError: an unknown target or kernel; configurations that are older than the kernels; or the interpreter is
            switched on, which leaves nothing to compile.
    """
    _require_compiler()
    kernels = all_kernels()
    _known("target", targets, TARGETS)
    _known("kernel", names, kernels)
    stored = json.loads(configs.read_text(encoding="utf-8"))
    chosen = [kernel for name, kernel in kernels.items() if not names or name in names]
    for kernel in chosen:
        if stored["sources"].get(kernel.name) != source_key(kernel.function.fn.__module__):
            raise EaoError(f"{configs.name} is older than the kernel {kernel.name}", "run: eao kernels check --write")
    tasks = [
        (kernel, variant, dtype, target, stored["launches"][kernel.name][variant][dtype][target][0])
        for kernel, variant, dtype, target in _combinations(chosen, targets or tuple(TARGETS))
    ]
    return _build_all(tasks, cache, progress)


def store(configs: Path = CONFIGS, cache: Path | None = None, progress: ProgressCallback | None = None) -> list[Build]:
    """Compile all candidates of all kernels, and store which of them fit.

    Returns:
        Of each kernel, variant, type and target the first build that fits; if none does, the last one with its fault.
        Then nothing is stored.
    """
    _require_compiler()
    import triton

    kernels = all_kernels()
    combinations = list(_combinations(kernels.values(), tuple(TARGETS)))
    tasks = [(*task, i) for task in combinations for i in range(len(task[0].launches[task[1]]))]
    builds = iter(_build_all(tasks, cache, progress))
    launches: dict[str, Any] = {}
    chosen = []
    for kernel, variant, dtype, target in combinations:
        candidates = [next(builds) for _ in kernel.launches[variant]]
        fitting = [i for i, build in enumerate(candidates) if not build.fault]
        launches.setdefault(kernel.name, {}).setdefault(variant, {}).setdefault(dtype, {})[target] = fitting
        chosen.append(candidates[fitting[0] if fitting else -1])
    if not any(build.fault for build in chosen):
        sources = {name: source_key(kernel.function.fn.__module__) for name, kernel in kernels.items()}
        text = json.dumps({"triton": triton.__version__, "sources": sources, "launches": launches}, indent=1)
        write_text(configs, re.sub(r"\s+(?=[\d\]])", "", text) + "\n")  # the numbers of one target in one line
    return chosen


def summary(builds: Iterable[Build]) -> list[dict[str, Any]]:
    """A row for each kernel and target: how many builds fit, and the most that any of them needs."""
    groups: dict[tuple[str, str], list[Build]] = {}
    for build in builds:
        groups.setdefault((build.kernel, build.target), []).append(build)
    return [
        {
            "kernel": kernel,
            "target": target,
            "fit": f"{sum(not b.fault for b in group)} of {len(group)}",
            "registers": max(b.registers for b in group),
            "spills": sum(b.spills for b in group),
            "shared KB": max(b.shared for b in group) / 1024,
            "tensor cores": ", ".join(sorted({b.tensor_cores for b in group} - {""})) or "-",
        }
        for (kernel, target), group in groups.items()
    ]


def details(builds: Iterable[Build]) -> list[dict[str, Any]]:
    """A row for each build."""
    return [
        {
            "kernel": build.kernel,
            "variant": build.variant,
            "type": build.dtype,
            "target": build.target,
            "tile": " x ".join(str(v) for k, v in build.options.items() if k not in ("num_warps", "num_stages")),
            "warps": build.options["num_warps"],
            "registers": build.registers,
            "spills": build.spills,
            "shared KB": build.shared / 1024,
            "tensor cores": build.tensor_cores or "-",
        }
        for build in builds
    ]


def default_cache() -> Path:
    """`~/.cache/eao/kernels`, or below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eao" / "kernels"


def compile_kernel(kernel: Kernel, variant: str, dtype: str, target: str, launch: Launch) -> Build:
    """Compile `kernel` and read its machine code; an error of the compiler becomes the fault."""
    import triton

    build = Build(kernel.name, variant, dtype, target, launch.options())
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
    try:
        compiled = triton.compile(_source(kernel, variant, dtype, target, launch), _gpu(target), options)
    except Exception as error:  # of many kinds, from the front end to the assembler
        last = (str(error).strip().splitlines() or [""])[-1]
        return replace(build, fault=f"does not compile: {type(error).__name__}: {last}")
    is_nvidia = backend_of(target) == "cuda"
    found = _read_nvidia(compiled.asm["cubin"]) if is_nvidia else read_amd(compiled.asm["amdgcn"])
    used = _TENSOR_CORES.search(compiled.asm["ptx" if is_nvidia else "amdgcn"])
    build = replace(
        build,
        registers=found["registers"],
        stack=found["stack"],
        spills=found["spills"],
        shared=compiled.metadata.shared,
        tensor_cores=used[1] if used else "",
    )
    return replace(build, fault=fault(build, needs_tensor_cores=kernel.tensor_cores and dtype != "fp32"))


def fault(build: Build, needs_tensor_cores: bool) -> str:
    """What forbids to launch a build, empty if nothing does."""
    faults = []
    if build.spills or build.stack:
        faults.append(f"spills {build.spills}, stack {build.stack} bytes")
    if build.shared > TARGETS[build.target]:
        faults.append(f"shared memory {build.shared} over {TARGETS[build.target]} bytes")
    if needs_tensor_cores and not build.tensor_cores:
        faults.append("no tensor core instruction")
    return ", ".join(faults)


def read_usage(text: str) -> dict[str, int]:
    """Registers and stack from the output of `cuobjdump --dump-resource-usage`.

    Example:
        >>> read_usage("Function f:\\n  REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:388")
        {'registers': 40, 'stack': 0}
    """
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage:\n{text}")
    return {"registers": int(found[1]), "stack": int(found[2])}


def count_spills(text: str) -> int:
    """Loads from and stores to local memory in the output of `cuobjdump -sass`.

    Example:
        >>> count_spills("  /*0010*/  STL [R1], R2 ;\\n  /*0020*/  @P0 LDL.64 R4, [R1] ;\\n  /*0030*/  LDG R2, [R4] ;")
        2
    """
    return len(_LOCAL_MEMORY.findall(text))


def read_amd(assembly: str) -> dict[str, int]:
    """The same from the metadata in AMD's assembly."""
    value = {name: int(number) for name, number in re.findall(r"\.(\w+):\s+(\d+)\s*$", assembly, re.MULTILINE)}
    spills = value["vgpr_spill_count"] + value["sgpr_spill_count"]
    return {"registers": value["vgpr_count"], "stack": value["private_segment_fixed_size"], "spills": spills}


def _require_compiler() -> None:
    try:
        from triton import knobs
    except ImportError:
        raise missing_dependency("triton", "dev", "compiling kernels") from None
    if knobs.runtime.interpret:
        raise EaoError("Triton's interpreter is switched on, so nothing compiles", "unset TRITON_INTERPRET")


def _known(what: str, given: Sequence[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise EaoError(f"there is no {what} {name}", f"choose from {', '.join(known)}")


def _combinations(kernels: Iterable[Kernel], targets: Sequence[str]) -> Iterable[tuple[Kernel, str, str, str]]:
    return (
        (kernel, variant, dtype, target)
        for kernel in kernels
        for variant in kernel.variants
        for dtype in kernel.dtypes
        for target in targets
    )


def _build_all(
    tasks: Sequence[tuple[Kernel, str, str, str, int]], cache: Path | None, progress: ProgressCallback | None
) -> list[Build]:
    builds = []
    # Threads: the assembler and the disassembler, which take half of the time, are processes of their own.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            futures = [
                pool.submit(_cached_build, kernel, variant, dtype, target, kernel.launches[variant][candidate], cache)
                for kernel, variant, dtype, target, candidate in tasks
            ]
            for done, (task, future) in enumerate(zip(tasks, futures, strict=True)):
                if progress is not None:
                    progress(done, len(tasks), f"{task[0].name} {' '.join(task[1:4])}")
                builds.append(future.result())
        finally:
            pool.shutdown(cancel_futures=True)
    return builds


def _cached_build(kernel: Kernel, variant: str, dtype: str, target: str, launch: Launch, cache: Path | None) -> Build:
    import triton

    if cache is None:
        return compile_kernel(kernel, variant, dtype, target, launch)
    # Limits and the reading of machine code stand here, what is compiled in the kernel's module and in the registry.
    sources = [source_key(module) for module in (kernel.function.fn.__module__, __name__, Kernel.__module__)]
    facts = [triton.__version__, sources, TARGETS[target], kernel.name, variant, dtype, target, launch.options()]
    file = cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
    if file.exists():
        return Build(**json.loads(file.read_text(encoding="utf-8")))
    build = compile_kernel(kernel, variant, dtype, target, launch)
    write_json(file, asdict(build))
    return build


def _source(kernel: Kernel, variant: str, dtype: str, target: str, launch: Launch) -> Any:
    """What Triton's launcher would compile for arguments of these types.

    Optional pointers are given, and channels fill the tile: a launch without them compiles a part of this.
    """
    from triton.compiler import ASTSource

    precision = dot_precision(dtype, backend_of(target))
    given = {**kernel.constants, **kernel.variants[variant], **launch.tiles, "PRECISION": precision}
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, argument in enumerate(kernel.function.arg_names):
        kind, _, divisor = kernel.signature.get(argument, "constexpr").partition(":")
        signature[argument] = kind.replace("*T", f"*{dtype}")
        if divisor:
            attributes[(position,)] = [["tt.divisibility", int(divisor)]]
    constants = {argument: given[argument] for argument, kind in signature.items() if kind == "constexpr"}
    return ASTSource(kernel.function, signature, constants, attributes)


def _gpu(target: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if backend_of(target) == "cuda":
        return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    return GPUTarget("hip", target, 64)


def _read_nvidia(cubin: bytes) -> dict[str, int]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run(
                [knobs.nvidia.cuobjdump.path, option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    return read_usage(usage) | {"spills": count_spills(code)}
