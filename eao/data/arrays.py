"""Arrays of features in numpy's files, read without objects and with errors that name the file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from eao.errors import DataError

Array: TypeAlias = NDArray[Any]

AUDIO_BANDS = 40
T = TypeVar("T")
_ATTEMPTS = 10
EXTRACT_AGAIN = "extract this clip again with `eao extract`"


def load_array(path: Path, key: str | None, hint: str) -> Array:
    """The array of a `.npy` file, or the one called `key` of a `.npz` file, as stored.

    Raises:
        DataError: naming the file, if it is missing or damaged, holds objects, or has no such array.
    """
    try:
        if key is None:
            with path.open("rb") as file:
                return np.asarray(read_npy(np.lib.format.read_array, file, allow_pickle=False))
        with zipfile.ZipFile(path) as archive:
            if f"{key}.npy" not in archive.namelist():
                raise DataError(f"{path} has no array named {key!r}", hint)
            with archive.open(f"{key}.npy") as member:
                return np.asarray(read_npy(np.lib.format.read_array, member, allow_pickle=False))
    except DataError:
        raise
    except Exception as error:  # numpy reads the header of an array as Python, which fails in a dozen different ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"cannot read features from {path}: {reason}", hint) from None


def read_npy(reader: Callable[..., T], file: IO[bytes], **options: Any) -> T:
    """What one of numpy's readers of `.npy` gives for an open file, also while other threads read.

    The header is an expression of Python. CPython 3.11 counts the depth of what it parses in one place for the whole
    interpreter, and gives a SystemError to a thread that finds the count of another, without fault of the file.
    """
    start = file.tell()
    for _ in range(_ATTEMPTS):
        try:
            return reader(file, **options)
        except SystemError:
            file.seek(start)
    return reader(file, **options)


def check_rows(array: Any, name: str, hint: str) -> Array:
    """Features (rows, width), or the error that `name` is something else."""
    return _check(array, "(rows, width)", None, name, hint)


def check_spectrogram(array: Any, name: str, hint: str) -> Array:
    """A spectrogram (40, frames), or the error that `name` is something else."""
    return _check(array, f"({AUDIO_BANDS}, frames)", AUDIO_BANDS, name, hint)


def check_finite(array: Array, name: str, hint: str) -> Array:
    """The array itself, or the error that `name` holds values that are not finite."""
    if not np.isfinite(array).all():
        raise DataError(f"{name} holds values that are not finite", hint)
    return array


def _check(array: Any, wanted: str, length: int | None, name: str, hint: str) -> Array:
    if not isinstance(array, np.ndarray):
        raise DataError(f"{name} is of the type {type(array).__name__}, not a float array {wanted}", hint)
    if array.ndim != 2 or array.dtype.kind != "f" or length not in (None, len(array)):
        raise DataError(f"{name} is {array.dtype}{array.shape}, not a float array {wanted}", hint)
    return np.asarray(array)
