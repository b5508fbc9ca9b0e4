"""Writing files so that no reader ever sees a half-written one, and hashing them."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eao.errors import EaoError


@contextlib.contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """A temporary path beside `target` that becomes `target` when the block ends without an exception.

    The block may write a file or a folder. On an exception (a full disk, Ctrl-C) the temporary is removed and whatever
    stood at `target` stays untouched. A folder that stood there is replaced whole, unless it is none of ours.

    Raises:
        EaoError: `target` is a folder that shares no file name with the new one, or one that holds the working folder:
            replacing it would delete the user's own files.
    """
    target = Path(target)
    if Path.cwd().is_relative_to(target.resolve()):
        raise EaoError(f"{target} is, or holds, the working folder and cannot be replaced", "name a folder inside it")
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept, since several writers (numpy, PyAV, safetensors) choose their format by it.
    # A name near the file system's limit of 255 bytes is shortened to leave room for the rest.
    temporary = target.with_name(f".{target.stem[:40]}.{uuid.uuid4().hex[:8]}.tmp{target.suffix}")
    try:
        yield temporary
        if temporary.is_file():
            _sync(temporary)
        if temporary.is_dir() and target.is_dir():
            if os.listdir(target) and set(os.listdir(target)).isdisjoint(os.listdir(temporary)):
                raise EaoError(f"{target} is a folder with other files in it", "remove it, or name another folder")
            retired = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex[:8]}.old")
            os.replace(target, retired)
            try:
                os.replace(temporary, target)
            except BaseException:
                os.replace(retired, target)
                raise
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def recover(target: str | Path) -> None:
    """Put back a folder that a killed writer had taken away but not yet replaced, and remove what it left.

    Call it only where nobody else is writing `target`.
    """
    target = Path(target)
    retired = sorted(target.parent.glob(f".{glob.escape(target.name[:40])}.*.old"), key=lambda p: p.stat().st_mtime)
    if retired and not target.exists():
        os.replace(retired.pop(), target)
    pattern = f".{glob.escape(target.stem[:40])}.*.tmp{glob.escape(target.suffix)}"
    for left in (*retired, *target.parent.glob(pattern)):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(target: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
