"""Facts about this machine, found by trying: what CPU and devices offer, which engines start, which codecs work."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

# y = Identity(x), float, one element, opset 13: the smallest graph that a provider has to start for.
_IDENTITY_GRAPH = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a"
    "0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


def start_onnxruntime(provider: str) -> str:
    """Run the smallest graph with an execution provider and give the name of the one that it really ran on.

    onnxruntime lists providers that it cannot start, and falls back to the CPU without an error.
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_IDENTITY_GRAPH, options, providers=[provider])
    (y,) = session.run(None, {"x": np.ones(1, np.float32)})
    if y.item() != 1.0:
        raise RuntimeError(f"it copied 1.0 as {y.item()}")
    return str(session.get_providers()[0])


def encode_clip(codec: str) -> io.BytesIO:
    """An mp4 file in memory with one frame of picture (libx264) or sound (aac)."""
    import av
    import numpy as np

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        frame: Any
        stream: Any
        if codec == "aac":
            stream = container.add_stream(codec, rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
        else:
            stream = container.add_stream(codec, rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    return file


def count_frames(file: io.BytesIO) -> int:
    """The number of frames that a media file decodes to."""
    import av

    with av.open(file, "r") as container:
        return len(list(container.decode()))


def cpu_flags() -> set[str]:
    """The instruction sets of the CPU as Linux names them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return set(flags.split())


def has_exact_int8() -> bool:
    """Whether the CPU adds int8 products in 32 bits, as with VNNI, rather than in 16, where sums overflow."""
    flags = cpu_flags()
    is_x86 = "sse2" in flags
    return not is_x86 or bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


def has_nvidia_device() -> bool:
    """Whether an NVIDIA driver shows a device (natively or under WSL), whatever torch makes of it."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def has_cuda() -> bool:
    """Whether torch can use a CUDA device."""
    try:
        import torch
    except Exception:  # A torch that cannot be imported is reported by its own check.
        return False
    return bool(torch.cuda.is_available())


def memory() -> int:
    """Bytes of memory in this machine; 0 where that is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
