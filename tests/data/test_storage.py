"""A folder on disk or object storage: what a killed writer leaves, parts of files, and requests that fail."""

import sys
from pathlib import Path

import fsspec
import pytest

from eao.data import storage as module
from eao.data.storage import ATTEMPTS, Storage
from eao.errors import DataError, MissingDependencyError


@pytest.fixture(params=["{tmp}/a/b", "file://{tmp}/a/b", "memory://storage/a/b"])
def storage(request, tmp_path):
    yield Storage(request.param.format(tmp=tmp_path))
    memory = fsspec.filesystem("memory")
    if memory.exists("/storage"):
        memory.rm("/storage", recursive=True)


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """What was waited, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(module.time, "sleep", seconds.append)
    return seconds


def test_what_was_written_is_read(storage):
    storage.write_text("x.json", "ü" * 10)
    assert storage.read("x.json").decode() == "ü" * 10
    assert storage.size("x.json") == 20
    storage.remove("x.json")
    assert storage.size("x.json") is None


def test_blocks_are_the_file(storage, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 4)
    storage.write_text("x", "0123456789")
    assert list(storage.blocks("x")) == [b"0123", b"4567", b"89"]


def test_nothing_stands_there_before_all_is_written(storage):
    storage.write_text("x", "before")
    with pytest.raises(KeyboardInterrupt), storage.writing("x") as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert storage.read("x") == b"before"


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left = tmp_path / ".000001.01234567.tmp.tar"
    left.write_text("half")
    other = tmp_path / ".000002.01234567.tmp.tar"
    other.write_text("of another file")
    Storage(str(tmp_path)).write_text("000001.tar", "whole")
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "000001.tar"]


def test_parts_of_several_files():
    storage = Storage("memory://storage/parts")
    for name in ("a", "b"):
        storage.write_text(name, name + "123456789")
    assert storage.read_ranges(["b", "a", "b"], [0, 3, 9], [2, 6, 10]) == [b"b1", b"345", b"9"]


def test_a_file_that_ends_too_early_is_named():
    storage = Storage("memory://storage/short")
    storage.write_text("a", "0123")
    with pytest.raises(DataError, match="memory://storage/short/a ends at byte 4, not after 6"):
        storage.read_ranges(["a"], [2], [6])


def test_a_missing_file_is_not_asked_for_again(pauses):
    with pytest.raises(FileNotFoundError):
        Storage("memory://storage/none").read("x")
    assert pauses == []


def failing(monkeypatch, storage, errors: list[Exception]) -> None:
    """Let the next requests to `storage` fail."""
    fs, _ = storage._connect()
    cat_file = type(fs).cat_file

    def fail(self, *arguments, **options):
        if errors:
            raise errors.pop(0)
        return cat_file(self, *arguments, **options)

    monkeypatch.setattr(type(fs), "cat_file", fail)


def test_a_request_that_fails_is_made_again_with_longer_pauses(monkeypatch, pauses):
    storage = Storage("memory://storage/flaky")
    storage.write_text("x", "content")
    failing(monkeypatch, storage, [TimeoutError("slow down"), ConnectionError()])
    assert storage.read("x") == b"content"
    assert pauses == [0.5, 1.0]


def test_a_store_that_stays_away_is_an_error(monkeypatch, pauses):
    storage = Storage("memory://storage/away")
    failing(monkeypatch, storage, [ConnectionError("refused\nand so on")] * ATTEMPTS)
    with pytest.raises(DataError, match=r"memory://storage/away/x: refused\n") as error:
        storage.read("x")
    assert "network" in error.value.hint and len(pauses) == ATTEMPTS - 1


def test_a_refusal_is_final(monkeypatch, pauses):
    storage = Storage("memory://storage/refused")
    failing(monkeypatch, storage, [PermissionError("forbidden")])
    with pytest.raises(DataError, match="forbidden"):
        storage.read("x")
    assert pauses == []


def test_an_unknown_protocol_is_named():
    with pytest.raises(DataError, match="cannot use s4://bucket"):
        Storage("s4://bucket")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependencyError, match="s3fs") as error:
        Storage("s3://bucket/name")
    assert ".[shards]" in error.value.hint
    for name in [name for name in sys.modules if name.partition(".")[0] == "fsspec"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match="fsspec"):
        Storage("memory://storage")


def test_a_plain_path_needs_no_fsspec(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    storage = Storage(str(tmp_path / "a::b"))
    storage.write_text("x", "1")
    assert Path(tmp_path, "a::b", "x").read_text() == "1"
