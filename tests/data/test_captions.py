"""Caption files: what is read, and that every mistake names its file and line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eao.data.captions import read_captions
from eao.errors import DataError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_with_quotes_line_breaks_and_further_columns(tmp_path):
    path = write(tmp_path, "a.csv", 'id,caption,split,loud\nx/1,"a dog, barking",train,yes\n2,"two\nlines",test,no\n')
    first, second = read_captions(path)
    assert (first.id, first.caption, first.line) == ("x/1", "a dog, barking", 2)
    assert first.columns == {"id": "x/1", "caption": "a dog, barking", "split": "train", "loud": "yes"}
    assert (second.id, second.caption, second.line) == ("2", "two\nlines", 4)


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tmp_path):
    path = write(tmp_path, "a.csv", b"\xef\xbb\xbfid,caption\r\n1,\xc3\xa9t\xc3\xa9\r\n")
    assert [(c.id, c.caption) for c in read_captions(path)] == [("1", "été")]


def test_json_lines(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"id": 7, "caption": "a dog", "tags": ["x"]}\n\n{"id": "b", "caption": "é"}')
    captions = read_captions(path)
    assert [(c.id, c.caption, c.line) for c in captions] == [("7", "a dog", 1), ("b", "é", 3)]
    assert captions[0].columns["tags"] == ["x"]


def test_split(tmp_path):
    path = write(tmp_path, "a.csv", "id,caption,split\n1,a,train\n2,b,test\n3,c,train\n")
    assert [c.id for c in read_captions(path, "train")] == ["1", "3"]
    with pytest.raises(DataError, match=r"no captions of the split 'val'\n\s+it has: test, train"):
        read_captions(path, "val")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,text\n1,a\n", "a.csv line 2: the column caption is missing"),
        ("a.csv", "id,caption\n1,a\n2,\n", "a.csv line 3: the caption is empty"),
        ("a.csv", "id,caption\n1,a\n2,  \n", "a.csv line 3: the caption is '  '"),
        ("a.csv", "id,caption\n,a\n", "a.csv line 2: the id is empty"),
        ("a.csv", "id,caption\n1,a,b\n", "a.csv line 2: not as many values"),
        ("a.csv", "id,caption,split\n1,a,s\n1,a\n", "a.csv line 3: not as many values"),
        ("a.csv", 'id,caption\n1,"a\n', "a.csv line 2: malformed CSV"),
        (
            "a.csv",
            "id,caption\n../../etc/passwd,a\n",
            "a.csv line 2: the id '../../etc/passwd' leaves the feature folder",
        ),
        ("a.csv", "id,caption\n/etc/passwd,a\n", "leaves the feature folder"),
        ("a.csv", "", "a.csv holds no captions"),
        ("a.csv", "id,caption\n", "a.csv holds no captions"),
        ("a.csv", b"id,caption\n1,\xe9t\xe9\n", "cannot read captions"),
        ("a.jsonl", '{"id": "1", "caption": "a"}\n{"id": "2", "caption"', "a.jsonl line 2: malformed JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl line 1: malformed JSON"),
        ("a.jsonl", '["1", "a"]\n', "a.jsonl line 1: not a JSON object"),
        ("a.jsonl", '{"id": "1"}\n', "a.jsonl line 1: the column caption is missing"),
        ("a.jsonl", '{"id": "1", "caption": ["a", "b"]}\n', "a.jsonl line 1: the caption is ['a', 'b']"),
        ("a.jsonl", '{"id": "1", "caption": null}\n', "a.jsonl line 1: the caption is empty"),
        ("a.jsonl", '{"id": true, "caption": "a"}\n', "a.jsonl line 1: the id is True"),
        ("a.jsonl", '{"id": "\\ud800", "caption": "a"}\n', "a.jsonl line 1: the id holds half a character"),
        ("a.txt", "1 a", "must be a .csv or .jsonl file"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        read_captions(write(tmp_path, name, content))
    assert message in str(caught.value)


def test_a_missing_file_or_split_column_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read captions from .*none\.csv"):
        read_captions(tmp_path / "none.csv")
    path = write(tmp_path, "a.csv", "id,caption\n1,a\n")
    with pytest.raises(DataError, match="line 2: there is no split"):
        read_captions(path, "train")


# The machine may be busy: neither a slow example nor slow drawing is a fault.
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    name=st.sampled_from(["a.csv", "a.jsonl"]),
    content=st.one_of(
        st.binary(max_size=60),
        st.text(alphabet='id,caption\n"x1\r{}:', max_size=60).map(str.encode),
        st.dictionaries(
            st.sampled_from(["id", "caption"]), st.one_of(st.text("a é\ud800/.\0"), st.integers(), st.none())
        ).map(lambda columns: json.dumps(columns).encode()),
    ),
)
def test_any_file_is_read_or_refused(tmp_path, name, content):
    refusal = None
    try:
        captions = read_captions(write(tmp_path, name, content))
    except DataError as error:
        refusal = error
    if refusal is None:
        assert all(c.id.strip() and c.caption.strip() for c in captions)
    else:
        assert name in str(refusal)
