from __future__ import annotations

from pathlib import Path

import pytest

from eao.errors import DataError
from eao.features.lists import Listed, is_url, read_list, same_place, without_password


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_text(tmp_path: Path) -> None:
    path = write(tmp_path / "l.txt", "\ufeffa.mp4\r\n\n# no file\nhttps://x.org/b.mp4\n/c d.mp4\n")
    rows = read_list(path)
    assert [row.location for row in rows] == [str(tmp_path / "a.mp4"), "https://x.org/b.mp4", "/c d.mp4"]
    assert rows[0] == Listed(str(tmp_path / "a.mp4"), None, None, None, None, f"{path} line 1")


def test_csv_and_json_say_the_same(tmp_path: Path) -> None:
    table = write(
        tmp_path / "l.csv",
        'id,path,url,start,end,caption\nx,a.mp4,,1.5,3,"a dog,\n barking"\n,,s3://b/c.mp4,,4,\n7,b.mp4,,,,\n',
    )
    lines = write(
        tmp_path / "l.jsonl",
        '{"id": "x", "path": "a.mp4", "start": 1.5, "end": 3, "caption": "a dog, barking"}\n\n'
        '{"url": "s3://b/c.mp4", "end": 4, "caption": null}\n{"id": 7, "path": "b.mp4"}\n',
    )
    rows = [(r.location, r.id, r.start, r.end, r.caption) for r in read_list(table)]
    assert rows == [
        (str(tmp_path / "a.mp4"), "x", 1.5, 3.0, "a dog, barking"),
        ("s3://b/c.mp4", None, 0.0, 4.0, None),
        (str(tmp_path / "b.mp4"), "7", None, None, None),
    ]
    assert [(r.location, r.id, r.start, r.end, r.caption) for r in read_list(lines)] == rows


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("l.csv", "file\na.mp4\n", "no column path or url"),
        ("l.csv", "", "no column path or url"),
        ("l.csv", "path,id\na.mp4\n", "line 2: not as many values"),
        ("l.csv", 'path\n"a.mp4\n', "malformed CSV"),
        ("l.csv", "path,url\na.mp4,s3://b/c\n", "line 2: there must be a path or a url"),
        ("l.csv", "path,start\na.mp4,soon\n", "line 2: start is 'soon'"),
        ("l.csv", "path,start\na.mp4,-1\n", "start is '-1'"),
        ("l.csv", "path,start\na.mp4,nan\n", "start is 'nan'"),
        ("l.csv", "path,start,end\na.mp4,2,2\n", "not after its start"),
        ("l.csv", "path,id\na.mp4,../x\n", "line 2: the id '../x' leaves"),
        ("l.csv", "path\na\0b.mp4\n", "NUL|malformed"),
        ("l.jsonl", '{"path": "a"}\n[1]\n', "line 2: not a JSON object"),
        ("l.jsonl", "{", "line 1: malformed JSON"),
        ("l.jsonl", "[" * 100_000, "line 1: malformed JSON"),
        ("l.jsonl", '{"path": 3}', "there must be a path"),
        ("l.jsonl", '{"path": "a", "id": true}', "the id is True"),
        ("l.jsonl", '{"path": "a", "start": true}', "start is True"),
        ("l.jsonl", '{"path": "a", "caption": ["b"]}', "the caption is"),
        ("l.txt", "# nothing\n", "names no file"),
        ("l.txt", "a\0b\n", "NUL"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_list(write(tmp_path / name, text))


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="cannot read the list"):
        read_list(tmp_path / "l.txt")


def test_urls_and_paths() -> None:
    assert [is_url(x) for x in ("https://x/a", "s3://b/c", "memory://a")] == [True] * 3
    assert [is_url(x) for x in ("/a/b", "a:b", "C:/x", "./a://b", "file:///a")] == [False] * 5


def test_passwords_are_not_shown_and_signatures_make_no_other_file() -> None:
    assert without_password("https://ann:s3cret@x.org:8000/a@b.mp4?t=1") == "https://x.org:8000/a@b.mp4?t=1"
    assert without_password("/a@b/c") == "/a@b/c"
    assert same_place("https://u:p@x.org/a.mp4?sig=1", "https://x.org/a.mp4?sig=2")
    assert not same_place("https://x.org/a.mp4", "https://y.org/a.mp4")
