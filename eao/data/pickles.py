"""Reading the pickles that data sets are published as, without running anything that is in them.

A pickle is a program for a small machine. This one knows plain values, numpy arrays and CPU tensors; a file that names
anything else is refused, before anything is called.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from eao.errors import DataError

T = TypeVar("T", list[Any], dict[Any, Any])

KIND_NAMES: dict[type, str] = {list: "a list", dict: "a dictionary"}
ELEMENT_TYPE = re.compile(r"[biufcSUO][1-9]?\d{0,8}")
"""Of numpy's element types: numbers, text and objects. Records and dates are in no data set."""


def read_pickle(path: str | Path, kind: type[T], content: str) -> T:
    """The value of a pickle of any protocol, Python 2's included (whose strings are read as Latin-1).

    Arrays are numpy's, of numpy 1 or 2; torch tensors become arrays. An array's memory is the bytes that were read, so
    nothing is copied. About a million values a second: a file of many small ones takes its time.

    Args:
        path: the file.
        kind: `list` or `dict`, what the whole of it must be.
        content: what the list or dictionary holds, for the message.

    Raises:
        DataError: naming the file, if it is missing, truncated or no pickle, holds something else, or names anything
            but arrays, tensors and plain values.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            value = _Unpickler(path, file).load()
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", "check the path") from None
    except MemoryError:
        raise DataError(
            f"{path} does not fit into memory, or is damaged", "compare its size with the original"
        ) from None
    except Exception as error:  # damaged instructions fail in a dozen different ways
        raise _unreadable(path, error) from None
    if type(value) is not kind:
        raise DataError(f"{path} holds {_kind_name(value)}, not {KIND_NAMES[kind]} of {content}", "check the path")
    return value


class _Source:
    """A file that refuses to read past its end, so that a damaged length cannot ask for more memory than the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise EOFError("it ends too early")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


# Typed by hand: what is overridden here is not part of pickle's public interface.
_Machine: Any = pickle._Unpickler


# The machine written in Python, since what the one written in C allocates is decided by the file: a single damaged byte
# can make it ask for, and fill, 64 GiB.
class _Unpickler(_Machine):
    """Python's pickle machine with the few functions of `FUNCTIONS` and without the instructions that call others."""

    dispatch = dict(_Machine.dispatch)

    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(_Source(file), fix_imports=False, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in FUNCTIONS:
            raise DataError(
                f"{self._path} is refused: reading it would use {wanted[:80]!r}, and features need no code",
                "get the file from its authors, or write it again with plain values and numpy arrays",
            )
        return FUNCTIONS[wanted]

    def load_reduce(self) -> None:
        """Call one of `FUNCTIONS`, and nothing else that may lie on the stack."""
        arguments = self.stack.pop()
        # Compared by identity: the hash of a value from the file may recurse without bounds.
        if id(self.stack[-1]) not in CALLABLE or type(arguments) is not tuple:
            raise ValueError("it calls what is no function")
        self.stack[-1] = self.stack[-1](*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        """Fill in an array or an element type; on other objects this instruction could replace any attribute."""
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, _Array | _ElementType):
            raise ValueError("it gives a state to what has none")
        target.restore(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    dispatch[pickle.DICT[0]] = load_dict

    def load_bytearray8(self) -> None:
        # As bytes: the buffer would be filled with zeros before anybody knows how much the file holds.
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_refused(self) -> None:
        raise ValueError("it holds more than plain values and arrays")

    for _instruction in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
        *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
    ):
        dispatch[_instruction[0]] = load_refused

    def _set(self, key: Any, value: Any) -> None:
        if type(self.stack[-1]) is not dict or not (key is None or isinstance(key, str | int | float | bytes)):
            raise ValueError("it has a key of an unusual kind")
        self.stack[-1][key] = value


class _ElementType:
    """numpy's dtype while its pickle is read."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if type(code) is not str or not ELEMENT_TYPE.fullmatch(code):
            raise ValueError(f"it has elements of the type {str(code)[:40]!r}")
        self.code = code
        self.order: Any = "="

    def restore(self, state: Any) -> None:
        order, subtype, names, fields = state[1:5]
        if order not in ("<", ">", "=", "|") or (subtype, names, fields) != (None, None, None):
            raise ValueError("it has elements with parts")
        self.order = order

    def dtype(self) -> np.dtype[Any]:
        return np.dtype("O" if self.code[0] == "O" else self.code).newbyteorder(self.order)


class _Array(np.ndarray[Any, Any]):
    """numpy's array while its pickle is read: empty until its state is known."""

    __slots__ = ()

    def restore(self, state: Any) -> None:
        _, shape, element, is_fortran, content = state
        dtype = element.dtype()
        values = content if dtype.hasobject and type(content) is list else _content(content)
        _check_size(shape, dtype, values)
        set_state: Any = np.ndarray.__setstate__
        set_state(self, (1, shape, dtype, bool(is_fortran), values))


def _reconstruct(array_type: Any, shape: Any, code: Any) -> _Array:
    # numpy always begins with an empty array; any other shape would be memory that nothing in the file stands for.
    if array_type != FUNCTIONS["numpy.ndarray"] or shape != (0,):
        raise ValueError("it has an array of an unusual kind")
    return _Array((0,), dtype=np.int8)


def _frombuffer(content: Any, element: _ElementType, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    dtype, values = element.dtype(), _content(content)
    _check_size(shape, dtype, values)
    return np.frombuffer(values, dtype).reshape(shape, order=order)


def _scalar(element: _ElementType, content: Any) -> Any:
    dtype, values = element.dtype(), _content(content)
    _check_size((1,), dtype, values)
    return np.frombuffer(values, dtype)[0]


def _content(content: Any) -> bytes:
    """The bytes of an array, which Python 2 pickled as a string."""
    values = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(values, bytes):
        raise ValueError("it has an array without content")
    return values


def _check_size(shape: Any, dtype: np.dtype[Any], values: bytes | list[Any]) -> None:
    if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape) or not dtype.itemsize:
        raise ValueError("it has an array of an impossible shape")
    if math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize) != len(values):
        raise ValueError("it has an array whose shape does not fit its content")


def _encode(text: Any, encoding: Any) -> bytes:
    """How bytes are spelled in protocol 2."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("it has text in an unusual encoding")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """How no bytes are spelled in protocol 2."""
    return b""


def _load_storage(content: Any) -> Any:
    """The memory of a tensor, which holds a checkpoint of its own: torch reads it without running anything either."""
    import torch

    return torch.load(io.BytesIO(_content(content)), map_location="cpu", weights_only=True)


def _rebuild_tensor(
    storage: Any, offset: int, size: Any, stride: Any, requires_grad: bool, hooks: Any
) -> np.ndarray[Any, Any]:
    """A tensor as an array; bfloat16, which numpy lacks, as float32."""
    import torch

    if not isinstance(storage, torch.storage.TypedStorage) or storage._untyped_storage.device.type != "cpu":
        raise ValueError("it has a tensor without memory")
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
        raise ValueError("it has a tensor of an impossible shape")
    memory = torch.tensor([], dtype=storage.dtype).set_(storage._untyped_storage)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # torch would enlarge the memory to fit.
    if 0 not in size and last >= len(memory):
        raise ValueError("it has a tensor whose shape does not fit its content")
    tensor = memory.as_strided(size, stride, offset) if 0 not in size else memory.new_empty(size)
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _ordered_dict() -> dict[Any, Any]:
    return {}


FUNCTIONS: dict[str, Any] = {
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")  # of numpy 1 and of numpy 2
        for name, function in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
    "numpy.ndarray": "numpy.ndarray",
    "numpy.dtype": _ElementType,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _empty_bytes,
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch.storage._load_from_bytes": _load_storage,
}
"""What a pickle may name, and what it gets instead."""

CALLABLE = {id(function) for function in FUNCTIONS.values() if callable(function)}


def _unreadable(path: Path, error: Exception) -> DataError:
    again = "download it again"
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return DataError(f"{path} is empty", again)
    if head.startswith(b"version https://git-lfs"):
        return DataError(f"{path} is a Git LFS pointer, not the file itself", "run `git lfs pull`")
    if head.lstrip()[:14].lower().startswith((b"<!doctype", b"<html")):
        return DataError(f"{path} is a web page, not a pickle", "the download link led to a page; " + again)
    if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return DataError(f"{path} is refused: a tensor in it would use {match[1]!r}", "get the file from its authors")
    if isinstance(error, EOFError | pickle.UnpicklingError) and head.startswith(b"\x80"):
        return DataError(f"{path} is truncated or damaged: {_line(error)}", again)
    return DataError(f"{path} is damaged, or no pickle: {_line(error)}", again)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _kind_name(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "an array"
    return KIND_NAMES.get(type(value), f"a value of the type {type(value).__name__}")
