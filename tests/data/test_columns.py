"""The lists that data sets are published with."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eao.data.columns import read_columns
from eao.errors import DataError


def listed(tmp_path, content):
    path = tmp_path / "videos.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_columns_by_name_in_the_order_asked_for(tmp_path):
    path = listed(tmp_path, 'task,url,video_id\n7,"a, b",x\n\n8,c,sub/y\n')
    assert read_columns(path, ["video_id", "task"]) == [("x", "7"), ("sub/y", "8")]


@pytest.mark.parametrize("content", ["\ufeffpath\nx\n", "path\r\nx\r\n", "path\nx", '"path"\n"x"\n'])
def test_what_spreadsheets_write(tmp_path, content):
    assert read_columns(listed(tmp_path, content), ["path"]) == [("x",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("video,task\nx,7\n", r"videos\.csv: the column video_id is missing"),
        ("", r"videos\.csv: the column video_id is missing"),
        ("video_id,task\n", r"videos\.csv lists no videos"),
        ("video_id,task\nx,7\ny\n", r"videos\.csv line 3: '' is no name"),
        ("video_id,task\n ,7\n", r"videos\.csv line 2: ' ' is no name"),
        ("video_id,task\n/etc/x,7\n", r"videos\.csv line 2: '/etc/x' is no name"),
        ("video_id,task\na/../../x,7\n", r"videos\.csv line 2: 'a/\.\./\.\./x' is no name"),
        (b"video_id,task\nx\xff,7\n", r"cannot read .*videos\.csv"),
    ],
)
def test_a_malformed_list_is_named_with_its_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_columns(listed(tmp_path, content), ["video_id", "task"])


def test_the_columns_that_are_there_are_the_hint(tmp_path):
    with pytest.raises(DataError) as error:
        read_columns(listed(tmp_path, "video,label\nx,7\n"), ["video_id"])
    assert error.value.hint == "there is: video, label"


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.csv"):
        read_columns(tmp_path / "nowhere.csv", ["path"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.binary(max_size=12) | st.sampled_from([b"a", b"b/c", b"..", b'"', b"\0"]), max_size=4))
def test_whatever_the_list_holds_names_stay_within_their_folder(tmp_path, lines):
    path = listed(tmp_path, b"path\n" + b"\n".join(lines))
    names, refusal = [], None
    try:
        names = [name for (name,) in read_columns(path, ["path"])]
    except DataError as error:
        refusal = str(error)
    assert bool(names) == (refusal is None)
    assert refusal is None or str(path) in refusal
    assert all((tmp_path / name).resolve().is_relative_to(tmp_path) for name in names)
