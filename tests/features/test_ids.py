from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eao.errors import DataError
from eao.features.ids import MAX_BYTES, MAX_PART_BYTES, check_clashes, check_id, derive_id


@pytest.mark.parametrize("clip_id", ["a", "cooking/0001", "b.c", "a b", "é/ü", "abcDEF_-~", "a/000012"])
def test_ids_that_are_taken_as_they_are(clip_id: str) -> None:
    assert check_id(clip_id, "list.csv line 2") == clip_id


@pytest.mark.parametrize(
    ("clip_id", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("/etc/passwd", "leaves"),
        ("..", "leaves"),
        ("a/../../b", "leaves"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        ("./a", "empty part"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x85b", "control"),
        ("..\\b", "control"),
        ("\udc80", "half"),
        (".hidden", "dot"),
        ("a/.work/b", "dot"),
        ("x" * (MAX_PART_BYTES + 1), "longer"),
        ("é" * MAX_PART_BYTES, "longer"),
        ("/".join(["abc"] * MAX_BYTES), "longer"),
        ("manifest.jsonl/a", "named like a file"),
        ("a_2d.npz/b", "named like a file"),
    ],
)
def test_hostile_ids_are_refused_with_their_place(clip_id: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"list\.csv line 2.*{reason}"):
        check_id(clip_id, "list.csv line 2")


@pytest.mark.parametrize(
    ("path", "clip_id"),
    [
        ("cooking/0001.mp4", "cooking/0001"),
        ("b.c.mkv", "b.c"),
        ("a\nb.mp4", "a%0Ab"),
        ("caf\udce9.mp4", "caf%E9"),
        ("a\\b.mp4", "a%5Cb"),
        (".dot.mp4", "%2Edot"),
        (" .mp4", "%20"),
        ("manifest.jsonl/a.mp4", "manifest%2Ejsonl/a"),
        ("a_2d.npz/b.mp4", "a_2d%2Enpz/b"),
    ],
)
def test_what_a_file_is_called_is_escaped(path: str, clip_id: str) -> None:
    assert derive_id(PurePosixPath(path)) == clip_id


def test_long_names_are_shortened_without_becoming_equal() -> None:
    ids = {derive_id(PurePosixPath("é" * 110 + end + ".mp4")) for end in ("a", "b", "c")}
    assert len(ids) == 3
    assert all(len(clip_id.encode()) <= MAX_PART_BYTES for clip_id in ids)
    deep = {derive_id(PurePosixPath(*["folder" * 10] * 30, f"{i}.mp4")) for i in range(3)}
    assert len(deep) == 3
    assert all(len(clip_id.encode()) <= MAX_BYTES for clip_id in deep)


@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=90), min_size=1, max_size=30))
def test_no_file_name_leads_out_of_the_output(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    # What a file system can hold: no empty names, none of its own two.
    names = [part for part in parts if part not in (".", "..")] or ["a"]
    out = tmp_path_factory.getbasetemp()
    target = Path(f"{out / derive_id(PurePosixPath(*names).with_name(names[-1] + '.mp4'))}_spec.npz")
    assert out in target.resolve().parents
    assert not target.exists()  # raises for a name that the system does not take


def test_ids_that_differ_by_case_alone_are_refused() -> None:
    check_clashes(["a", "b/A", "b"], {})
    with pytest.raises(DataError, match=r"A\.mp4 and a\.mp4 differ by nothing but"):
        check_clashes(["Straße/A", "STRASSE/a"], {"Straße/A": "A.mp4", "STRASSE/a": "a.mp4"})
