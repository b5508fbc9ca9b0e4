"""What a measurement was made on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pydantic


class Hardware(pydantic.BaseModel):
    """The machine, and how busy it was when the measurement began."""

    cpu: str
    cores: int
    memory_gb: float
    gpu: str | None = None
    system: str
    load_average: float


def describe_hardware() -> Hardware:
    """This machine. `cores` are those this process may use, which in a container can be fewer than the machine has."""
    return Hardware(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=round(_memory_bytes() / 1e9, 1),
        gpu=_gpu(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        load_average=round(os.getloadavg()[0], 2),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
