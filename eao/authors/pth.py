"""The authors' `.pth` files, read without running anything that is in them."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eao.errors import CheckpointError


@dataclass
class AuthorsFile:
    """What a `.pth` holds: weights with `module.` taken off, and the configuration if the file has it."""

    state: dict[str, Tensor]
    config: Mapping[str, Any] | None


def read_pth(path: str | Path) -> AuthorsFile:
    """Read a `.pth` in either of torch's containers.

    Only tensors, plain values and numpy scalars are accepted: a file that names anything else is refused unopened, so
    that a checkpoint from the internet can never run code.

    Raises:
        CheckpointError: for a missing, truncated or foreign file, one that holds code, or one without weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}", "check the path")
    is_zip = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            # Mapped, so that the optimizer state of the published files (twice the weights) is never read.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except MemoryError:
        raise
    except Exception as error:  # torch answers damaged files with a dozen different types
        raise _unreadable(path, error) from None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise CheckpointError(f"{path} holds no model weights", "expected a dictionary with the entry `state_dict`")
    prefix = "module." if all(str(key).startswith("module.") for key in state) else ""
    config = content.get("config") if state is not content else None
    return AuthorsFile(
        state={str(key).removeprefix(prefix): tensor for key, tensor in state.items()},
        config=config if isinstance(config, Mapping) else None,
    )


def _numpy_scalars() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Globals of a pickled numpy number, such as a best metric: under numpy 1's module name and numpy 2's."""
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = ("float64", "float32", "int64", "int32")
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
    ]


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return CheckpointError(
            f"{path} is refused: loading it would run {match[1]}, and a checkpoint needs no code",
            "get the file from its authors, or re-save it with only tensors and plain values",
        )
    with path.open("rb") as file:
        head = file.read(512)
    again = "download it again"
    if not head:
        return CheckpointError(f"{path} is empty", again)
    if head.startswith(b"version https://git-lfs"):
        return CheckpointError(f"{path} is a Git LFS pointer, not the file itself", "run `git lfs pull`")
    if head.lstrip()[:14].lower().startswith((b"<!doctype", b"<html")):
        return CheckpointError(f"{path} is a web page, not a checkpoint", "the download link led to a page; " + again)
    if head.startswith(b"PK\x03\x04"):
        return CheckpointError(f"{path} is truncated or damaged: {_line(error)}", again)
    if tarfile.is_tarfile(path):
        return CheckpointError(f"{path} is an archive of checkpoints", f"unpack it first: tar xf {path.name}")
    # torch's legacy container starts with the pickled magic number 0x1950a86a20f9469cfc6c.
    if bytes.fromhex("6cfc9c46f9206aa85019") in head[:32]:
        return CheckpointError(f"{path} is truncated or damaged: {_line(error)}", again)
    return CheckpointError(
        f"{path} is not a checkpoint", "expected a .pth written by torch.save, or a native checkpoint folder"
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
