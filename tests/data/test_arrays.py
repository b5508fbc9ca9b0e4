"""Numpy's files: the array that was stored, or an error that names the file."""

import io
import zipfile

import numpy as np
import pytest

from eao.data.arrays import check_rows, check_spectrogram, load_array, read_npy
from eao.errors import DataError

ROWS = np.arange(6, dtype=np.float16).reshape(3, 2)


def header(text):
    """A `.npy` file of six half-precision zeros with the given header."""
    padded = text.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(12)


@pytest.fixture
def stored(tmp_path):
    """A function that stores bytes as a `.npy` file and, under `features`, in a `.npz` file: path and key."""

    def store(content, kind):
        if kind == "npy":
            path = tmp_path / "x.npy"
            path.write_bytes(content)
            return path, None
        path = tmp_path / "x.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("features.npy", content)
        return path, "features"

    return store


def as_npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("array", [ROWS, np.asfortranarray(ROWS), ROWS[:0], ROWS.astype(">f4"), np.int64(3)])
def test_an_array_as_stored(stored, kind, array):
    loaded = load_array(*stored(as_npy(np.asarray(array)), kind), "hint")
    assert loaded.dtype == np.asarray(array).dtype
    np.testing.assert_array_equal(loaded, array)


def test_a_compressed_archive(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", features=ROWS, other=ROWS)
    np.testing.assert_array_equal(load_array(tmp_path / "x.npz", "features", "hint"), ROWS)


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        as_npy(ROWS)[:60],
        as_npy(ROWS)[:-1],
        as_npy(np.array([None]), allow_pickle=True),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (3, 2, }"),  # SyntaxError
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (3, 2), "),  # tokenize.TokenError
        header("{'descr': '<f2', 'fortran_order': False, b'shape': (3, 2), }"),  # TypeError
        header("{'descr': '<q2', 'fortran_order': False, 'shape': (3, 2), }"),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (-1, 2), }"),
        header("{'descr': '<f2', 'fortran_order': False, 'shape': (99999, 99999, 99999), }"),
    ],
    ids=str,
)
def test_a_damaged_file_is_named(stored, kind, content):
    path, key = stored(content, kind)
    with pytest.raises(DataError, match=rf"cannot read features from .*x\.{kind}: .") as error:
        load_array(path, key, "what to do")
    assert error.value.hint == "what to do"


def test_a_missing_file_or_array_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", other=ROWS)
    with pytest.raises(DataError, match=r"x\.npz has no array named 'features'"):
        load_array(tmp_path / "x.npz", "features", "hint")
    for name, key in (("y.npz", "features"), ("y.npy", None)):
        with pytest.raises(DataError, match=rf"cannot read features from .*{name}: .*No such file"):
            load_array(tmp_path / name, key, "hint")


@pytest.mark.parametrize("array", [ROWS[0], ROWS[None], ROWS.astype(int), [[1.0]], None])
def test_what_are_no_rows(array):
    with pytest.raises(DataError, match=r"the features (is|are) .*not a float array \(rows, width\)"):
        check_rows(array, "the features", "hint")


def test_a_spectrogram_has_forty_bands():
    assert check_spectrogram(np.zeros((40, 0)), "the sound", "hint").shape == (40, 0)
    with pytest.raises(DataError, match=r"the sound is float16\(3, 2\), not a float array \(40, frames\)"):
        check_spectrogram(ROWS, "the sound", "hint")


@pytest.mark.parametrize("failures", [1, 5])
def test_a_parser_that_another_thread_disturbed_is_tried_again(failures):
    file = io.BytesIO(as_npy(ROWS))
    waiting = [SystemError("AST constructor recursion depth mismatch")] * failures

    def reader(stream, **options):
        array = np.lib.format.read_array(stream, **options)
        if waiting:
            raise waiting.pop()
        return array

    np.testing.assert_array_equal(read_npy(reader, file, allow_pickle=False), ROWS)


def test_a_parser_that_never_works_is_not_tried_without_end():
    def reader(stream):
        raise SystemError("broken")

    with pytest.raises(SystemError, match="broken"):
        read_npy(reader, io.BytesIO())
