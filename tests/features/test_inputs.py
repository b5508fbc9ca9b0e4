from __future__ import annotations

import os
from pathlib import Path

import pytest

from eao.errors import DataError
from eao.features.inputs import Part, Source, find_sources, find_videos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that are only looked for, never opened."""
    folder = tmp_path / "in"
    for name in ("a.mp4", "sub/b.c.mkv", "sub/deep/d.MOV", "broken.mp4", "notes.txt", "sound.wav", ".hidden/x.mp4"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def ids(*inputs: str | Path, audio_only: bool = False) -> list[str]:
    return [source.id for source in find_sources(inputs, audio_only)]


def test_folders_and_files(tmp_path: Path, folder: Path) -> None:
    assert ids(folder) == ["a", "broken", "sub/b.c", "sub/deep/d"]
    assert ids(folder, audio_only=True) == ["a", "broken", "sound", "sub/b.c", "sub/deep/d"]
    assert ids(folder / "a.mp4", folder, f"file://{folder / 'a.mp4'}") == ids(folder)
    size = (folder / "a.mp4").stat().st_size
    assert find_sources([folder / "a.mp4"]) == [Source("a", str(folder / "a.mp4"), size=size)]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no video"):
        find_sources([tmp_path / "empty"])
    with pytest.raises(DataError, match="no such file"):
        find_sources([tmp_path / "absent"])


def test_patterns_name_files_from_their_first_wildcard_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ids(folder / "*.mp4") == ["a", "broken"]
    assert ids(folder / "sub" / "**" / "*") == ["b.c", "deep/d"]
    assert ids(folder / "s*" / "*") == ["sub/b.c"]
    monkeypatch.chdir(folder)
    assert [source.location for source in find_sources(["[a]*.mp4"])] == [str(folder / "a.mp4")]
    (folder / "[x]").mkdir()
    (folder / "[x]" / "y.mp4").touch()
    assert ids("[x]") == ["y"]  # a folder of that name comes before the pattern
    with pytest.raises(DataError, match="no video is called"):
        find_sources([folder / "*.webm"])


def test_links_to_files_are_followed_and_no_circle_is_walked(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = tmp_path / "outside.mp4"
    outside.touch()
    (folder / "linked.mp4").symlink_to(outside)
    (folder / "again.mp4").symlink_to(folder / "a.mp4")
    (folder / "sub" / "circle").symlink_to(folder)
    (folder / "root").symlink_to("/")
    (folder / "self.mp4").symlink_to(folder / "self.mp4")
    os.mkfifo(folder / "pipe.mp4")  # opening it would wait for ever
    assert ids(folder) == ["a", "broken", "linked", "self", "sub/b.c", "sub/deep/d"]
    assert "2 links to folders were not followed" in caplog.text


def test_names_that_are_no_utf8_or_hold_a_line_break(tmp_path: Path) -> None:
    for name in (b"caf\xe9.mp4", b"a\nb.mp4", b"plain.mp4"):
        (tmp_path / os.fsdecode(name)).touch()
    assert ids(tmp_path) == ["a%0Ab", "caf%E9", "plain"]


def test_one_id_for_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mkv"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"a\.mkv and .*a\.mp4 would both be the clip 'a'"):
        find_sources([tmp_path])
    for name in ("x/B.mp4", "y/b.mp4"):
        path = tmp_path / "z" / name
        path.parent.mkdir(parents=True)
        path.touch()
    assert ids(tmp_path / "z") == ["x/B", "y/b"]
    with pytest.raises(DataError, match="upper and lower case"):
        find_sources([tmp_path / "z" / "x", tmp_path / "z" / "y"])


def test_urls(tmp_path: Path) -> None:
    urls = ["s3://bucket/cooking/0001.mp4", "https://x.org/a%20b.mp4?sig=1", "memory://c.mp4"]
    assert [(s.id, s.location, s.is_remote) for s in find_sources(urls)] == [
        ("a b", urls[1], True),
        ("c", urls[2], True),
        ("cooking/0001", urls[0], True),
    ]
    with pytest.raises(DataError, match="names no file"):
        find_sources(["https://x.org/%2e%2e/%2e%2e/etc.mp4"])
    with pytest.raises(DataError, match="would both be the clip"):
        find_sources(["https://x.org/a.mp4", "https://y.org/a.mp4"])


def test_a_list_names_files_parts_and_captions(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text(
        "path,id,start,end,caption\n"
        "videos/a.mp4,,,,a dog\nvideos/a.mp4,,,,a cat\nvideos/a.mp4,,,,a dog\n"
        "b.mp4,first,0,2.5,one\nb.mp4,,3,,two\nb.mp4,first,0,2.5,again\n"
        "/elsewhere/c.mp4,,,,\n"
    )
    assert find_sources([path]) == [
        Source("c", "/elsewhere/c.mp4"),
        Source(
            "first",
            str(tmp_path / "b.mp4"),
            parts=(Part("first", 0.0, 2.5, ("one", "again")), Part("b/000001", 3.0, None, ("two",))),
        ),
        Source("videos/a", str(tmp_path / "videos/a.mp4"), captions=("a dog", "a cat")),
    ]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("a.mp4,,,\na.mp4,,1,2\n", "both whole and in parts"),
        ("a.mp4,x,,\na.mp4,y,,\n", "one clip has the ids 'x' and 'y'"),
        ("a.mp4,x,1,2\na.mp4,y,1,2\n", "one clip has the ids 'x' and 'y'"),
        ("a.mp4,x,1,2\nb.mp4,y,1,2\na.mp4,y,3,4\n", "would both be the clip 'y'"),
        ("a.mp4,x,1,2\nb.mp4,X,1,2\n", "upper and lower case"),
    ],
)
def test_lists_that_contradict_themselves_are_refused(tmp_path: Path, rows: str, reason: str) -> None:
    path = tmp_path / "l.csv"
    path.write_text("path,id,start,end\n" + rows)
    with pytest.raises(DataError, match=reason):
        find_sources([path])


def test_videos_to_index_may_share_their_names(folder: Path) -> None:
    assert find_videos([folder / "sub", folder]) == [
        folder / name for name in ("sub/b.c.mkv", "sub/deep/d.MOV", "a.mp4", "broken.mp4")
    ]
    with pytest.raises(DataError, match="not on this machine"):
        find_videos(["https://x.org/a.mp4"])
