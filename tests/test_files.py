"""Atomic writing: whole or not at all, for files and folders, with failures and a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from eao.errors import EaoError
from eao.files import atomic_path, sha256, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_a_file_and_makes_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "text.txt"
    write_text(target, "größer\n")
    assert target.read_bytes() == "größer\n".encode()
    assert names(target.parent) == ["text.txt"]


def test_temporary_keeps_the_suffix_and_the_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "clip.mp4") as temporary:
        assert temporary.suffix == ".mp4"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"x")


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_failure_keeps_the_old_file_and_leaves_no_temporary(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "metrics.json"
    target.write_text("old")
    with pytest.raises(BaseException) as raised, atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise failure
    assert raised.type is (failure if isinstance(failure, type) else type(failure))
    assert target.read_text() == "old"
    assert names(tmp_path) == ["metrics.json"]


def test_failure_before_the_first_byte_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "new.txt"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    for files in (("manifest.json", "text.onnx", "video.onnx"), ("manifest.json", "audio.onnx")):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            for file in files:
                (temporary / file).write_text(file)
    assert names(target) == ["audio.onnx", "manifest.json"]
    assert names(tmp_path) == ["bundle"]


def test_failure_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "manifest.json").write_text("new")
        raise KeyboardInterrupt
    assert (target / "manifest.json").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_failure_while_swapping_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("old")
    replace = os.replace

    def interrupted(source: Path, destination: Path) -> None:
        if ".tmp" in source.name:
            raise KeyboardInterrupt
        replace(source, destination)

    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "manifest.json").write_text("new")
        monkeypatch.setattr(os, "replace", interrupted)
    assert (target / "manifest.json").read_text() == "old"
    assert names(tmp_path) == ["bundle"]


def test_folder_of_the_users_own_files_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "photos"
    target.mkdir()
    (target / "holiday.jpg").write_text("precious")
    with pytest.raises(EaoError, match="other files in it"), atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "manifest.json").write_text("new")
    assert names(target) == ["holiday.jpg"]
    assert names(tmp_path) == ["photos"]


def test_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with atomic_path(tmp_path / "bundle") as temporary:
        temporary.mkdir()
        (temporary / "manifest.json").write_text("new")
    assert names(tmp_path / "bundle") == ["manifest.json"]


@pytest.mark.parametrize("target", [".", "..", "../inner"])
def test_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    with pytest.raises(EaoError, match="working folder"), atomic_path(target):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["inner"]


def test_name_at_the_limit_of_the_file_system(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 125 + ".txt")  # 254 bytes of 255
    write_text(target, "x")
    assert names(tmp_path) == [target.name]


def test_readers_see_the_old_or_the_new_content_only(tmp_path: Path) -> None:
    target = tmp_path / "value.txt"
    write_text(target, "old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_json_is_readable_by_people_and_machines(tmp_path: Path) -> None:
    value = {"name": "Käfer", "values": [1, 2.5, None]}
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Käfer" in text
    assert text.endswith("}\n")


def test_json_of_an_impossible_value_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "value.json", {"value": object()})
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_across_block_borders(tmp_path: Path, size: int) -> None:
    data = b"\x01" * size
    (tmp_path / "data").write_bytes(data)
    assert sha256(tmp_path / "data") == hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount a small disk")
def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        write_text(disk / "metrics.json", "old")
        with pytest.raises(OSError) as raised:
            write_text(disk / "metrics.json", "x" * 1_000_000)
        assert raised.value.errno == errno.ENOSPC
        assert (disk / "metrics.json").read_text() == "old"
        assert names(disk) == ["metrics.json"]
