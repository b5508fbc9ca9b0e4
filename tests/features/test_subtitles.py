from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eao.errors import DataError
from eao.features.subtitles import MAX_BYTES, Cue, find_subtitles, read_subtitles

SRT = """1
00:00:01,000 --> 00:00:02,500
a dog barks

2
00:01:00,000 --> 00:01:01,250
it runs
away
"""

VTT = """WEBVTT - a talk

STYLE
::cue { color: lime }

NOTE a line with --> in a note
is no cue

intro
00:01.000 --> 00:02.500 align:start position:10%
<v Ann>a <b>dog</b> &amp; a <c.yellow>cat</c>

100:00:00.000 --> 100:00:01.000
{\\an8}late <00:00:19.000><c> words</c>
"""


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def read(folder: Path, text: str, name: str = "a.srt") -> list[Cue]:
    return read_subtitles(write(folder / name, text))


def test_srt(tmp_path: Path) -> None:
    assert read(tmp_path, SRT) == [Cue(1.0, 2.5, "a dog barks"), Cue(60.0, 61.25, "it runs away")]


def test_vtt_with_styles_notes_settings_and_tags(tmp_path: Path) -> None:
    assert read(tmp_path, VTT, "a.vtt") == [
        Cue(1.0, 2.5, "a dog & a cat"),
        Cue(360_000.0, 360_001.0, "late words"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_byte_order_marks_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    path = write(tmp_path / "a.srt", SRT.replace("\n", end), encoding)
    assert read_subtitles(path) == read(tmp_path, SRT, "plain.srt")


def test_cues_that_overlap_stay_whole_and_are_sorted(tmp_path: Path) -> None:
    text = "00:02.000 --> 00:09.000\nsecond\n\n00:01.000 --> 00:05.000\nfirst\n"
    assert read(tmp_path, text) == [Cue(1.0, 5.0, "first"), Cue(2.0, 9.0, "second")]


def test_cues_without_text_or_length_are_left_out(tmp_path: Path) -> None:
    text = "00:01.000 --> 00:02.000\n<i></i>\n\n00:03.000 --> 00:03.000\nnothing\n\n00:04.000 --> 00:05.000\nkept\n"
    assert read(tmp_path, text) == [Cue(4.0, 5.0, "kept")]


def test_a_missing_empty_line_between_cues(tmp_path: Path) -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\none\n2\n00:00:03,000 --> 00:00:04,000\n2\n"
    assert read(tmp_path, text) == [Cue(1.0, 2.0, "one"), Cue(3.0, 4.0, "2")]


def test_less_than_signs_that_are_no_tags_stay(tmp_path: Path) -> None:
    assert read(tmp_path, "00:01.0 --> 00:02.0\n3 < 4 and <3\n")[0].text == "3 < 4 and <3"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("00:00:01,000 -->", "malformed"),
        ("1 --> 2", "malformed"),
        ("00:61:00,000 --> 00:62:00,000", "no such time"),
        ("00:00:05,000 --> 00:00:04,000", "before it starts"),
        ("00:00:01,0000 --> 00:00:04,000", "malformed"),
    ],
)
def test_malformed_times_are_refused_with_their_line(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(DataError, match=rf"a\.srt line 2: .*{reason}"):
        read(tmp_path, f"1\n{line}\ntext\n")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no subtitle"),
        (b"WEBVTT\n", "no subtitle"),
        (b"\xff caf\xe9", "not UTF-8"),
        (b"\x00" * 100, "no subtitle"),
    ],
)
def test_files_that_hold_none_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.vtt").write_bytes(data)
    with pytest.raises(DataError, match=reason):
        read_subtitles(tmp_path / "a.vtt")


def test_an_enormous_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.srt").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="larger"):
        read_subtitles(tmp_path / "a.srt")


@given(st.text(max_size=200), st.binary(max_size=200))
def test_any_content_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.srt"
    for content in (text.encode("utf-8", "replace"), data, b"00:01.0 --> 00:02.0\n" + data):
        path.write_bytes(content)
        try:
            cues = read_subtitles(path)
        except DataError:
            continue
        assert all(cue.text.strip() and cue.end > cue.start >= 0 for cue in cues)


def test_where_subtitles_are_looked_for(tmp_path: Path) -> None:
    video = tmp_path / "talk.v2.mp4"
    assert find_subtitles(video) is None
    german = write(tmp_path / "talk.v2.de.vtt", SRT)
    write(tmp_path / "talk.v2.extended.vtt", SRT)
    english = write(tmp_path / "talk.v2.en-US.srt", SRT)
    assert find_subtitles(video) == german
    german.unlink()
    assert find_subtitles(video) == english
    plain = write(tmp_path / "talk.v2.srt", SRT)
    assert find_subtitles(video) == plain
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    below = write(tmp_path / "texts" / "sub" / "talk.v2.vtt", SRT)
    assert find_subtitles(video, tmp_path / "texts", "sub/talk.v2") == below
    assert find_subtitles(video, tmp_path / "texts") is None
