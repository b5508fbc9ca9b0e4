"""Which weights features were made with, told by the contents of their files."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from eao.errors import CheckpointError
from eao.files import sha256


def fingerprint(path: str | Path) -> str:
    """The SHA-256 of a weights file, or of a folder's files; computed again only when one of them changes.

    Of an OpenVINO engine's .xml it covers the .bin beside it too.

    Raises:
        CheckpointError: there is no such file.
    """
    path = Path(path)
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if path.suffix == ".xml":
        files.append(path.with_suffix(".bin"))
    try:
        stats = [file.stat() for file in files]
    except OSError as error:
        raise CheckpointError(f"cannot read the weights {path}: {error.strerror}", "check the path") from None
    digests = [
        _sha256(str(file.resolve()), stat.st_mtime_ns, stat.st_size) for file, stat in zip(files, stats, strict=True)
    ]
    if len(digests) == 1 and not path.is_dir():
        return digests[0]
    lines = (f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


@functools.lru_cache(maxsize=64)
def _sha256(path: str, modified: int, size: int) -> str:
    return sha256(path)
