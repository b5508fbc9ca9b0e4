"""Published pickles: what is read, and that nothing else is."""

import collections
import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eao.data.pickles import FUNCTIONS, read_pickle
from eao.errors import DataError

RECORDS = [
    {
        "id": "video7010",
        "2d": np.arange(6, dtype=np.float32).reshape(3, 2),
        "3d": np.asfortranarray(np.arange(6, dtype=">f8").reshape(3, 2)),
        "audio": np.arange(80, dtype=np.float16).reshape(40, 2),
        "caption": ["a dog", "ein Hündchen"],
    },
    {"id": 7, "views": np.int64(3), "none": None, "flags": (True, 2.5, 10**30), "words": np.array(["ab", "c"])},
    {"objects": np.array(["x", None, 1], dtype=object), "empty": np.zeros((0, 4), np.float16), "bytes": b"\0\xff"},
]


def write(path, content):
    path.write_bytes(content)
    return path


def assert_same(a, b):
    if isinstance(b, np.ndarray):
        # numpy swaps bytes as it reads, except in protocol 5.
        assert a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
        np.testing.assert_array_equal(a, b)
    elif isinstance(b, dict):
        assert list(a) == list(b)
        for key in b:
            assert_same(a[key], b[key])
    elif isinstance(b, list | tuple):
        assert type(a) is type(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_values_and_arrays_of_every_protocol(tmp_path, protocol):
    path = write(tmp_path / "x.pkl", pickle.dumps(RECORDS, protocol))
    assert_same(read_pickle(path, list, "clips"), RECORDS)


@pytest.mark.parametrize("protocol", [2, 4])
def test_the_module_names_of_numpy_1(tmp_path, protocol):
    content = pickle.dumps(RECORDS, protocol)
    if protocol == 2:
        content = content.replace(b"numpy._core.", b"numpy.core.")
    else:
        # The name's length stands before it, and the frame's before that.
        new, old = b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
        assert content.count(new) == 1
        content = content.replace(new, old)
        content = content[:3] + struct.pack("<Q", len(content) - 11) + content[11:]
    assert b"_core" not in content
    assert_same(read_pickle(write(tmp_path / "x.pkl", content), list, "clips"), RECORDS)


def test_a_pickle_of_python_2(tmp_path):
    # What cPickle of Python 2.7 with numpy 1.16 writes for [{'a': np.array([1, 2], 'f4'), u'b': 'caf\xc3\xa9'}].
    content = (
        b"\x80\x02]q\x01}q\x02(U\x01acnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05"
        b"U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02\x85q\tcnumpy\ndtype\nq\nU\x02f4q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03U\x01<"
        b"q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0fb\x89U\x08\x00\x00\x80?\x00\x00\x00@q\x10tq\x11bX\x01\x00"
        b"\x00\x00bU\x05caf\xc3\xa9ua."
    )
    (record,) = read_pickle(write(tmp_path / "x.pkl", content), list, "clips")
    assert_same(record["a"], np.array([1, 2], dtype=np.float32))
    assert record["b"].encode("latin1").decode() == "café"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_become_arrays(tmp_path, dtype, protocol):
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    views = [whole, whole[1:, ::2], whole.T, whole[:0], whole[2, 3]]
    arrays = read_pickle(write(tmp_path / "x.pkl", pickle.dumps(views, protocol)), list, "clips")
    for array, view in zip(arrays, views, strict=True):
        assert_same(np.array(array), (view.float() if dtype == torch.bfloat16 else view).numpy())


def test_arrays_are_not_copied(tmp_path):
    path = write(tmp_path / "x.pkl", pickle.dumps([np.zeros(1000), np.zeros((30, 40), np.float16)], 4))
    for array in read_pickle(path, list, "clips"):
        assert isinstance(array.base, bytes)


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Call(os.system, "touch executed"), "posix.system"),
        (Call(eval, "open('executed', 'w')"), "builtins.eval"),
        (Call(torch.load, "executed"), "torch.serialization.load"),
        (collections.Counter("ab"), "collections.Counter"),
        (np.ma.masked_array([1.0]), "numpy.ma._mareconstruct"),
        ({1, 2}, "more than plain values"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_anything_else_is_refused_by_name(tmp_path, monkeypatch, value, name, protocol):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.pkl", pickle.dumps([value], protocol))
    with pytest.raises(DataError, match=r"x\.pkl") as caught:
        read_pickle(path, list, "clips")
    if name != "more than plain values" or protocol == 4:
        assert name.rpartition(".")[2] in str(caught.value)
    assert os.listdir(tmp_path) == ["x.pkl"]


def test_code_within_a_tensor_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    torch.save(Call(os.system, "touch executed"), inner)
    path = write(tmp_path / "x.pkl", pickle.dumps([Call(torch.storage._load_from_bytes, inner.getvalue())], 2))
    with pytest.raises(DataError, match=r"x\.pkl is refused: a tensor in it would use 'posix\.system'"):
        read_pickle(path, list, "clips")
    assert os.listdir(tmp_path) == ["x.pkl"]


def global_(name):
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


INT8 = global_("numpy.dtype") + b"X\x02\x00\x00\x00i1\x85R"
HUGE = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", id="bytes of a terabyte"),
        pytest.param(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", id="a buffer of a terabyte"),
        pytest.param(b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"].", id="a frame of a terabyte"),
        pytest.param(b"\x80\x02X\xff\xff\xff\x7fa.", id="text of two gigabytes"),
        pytest.param(b"\x80\x02]r\xff\xff\xff\x7f" + b"e.", id="a note two thousand million places on"),
        pytest.param(
            b"\x80\x02" + global_("numpy.core.multiarray._reconstruct") + global_("numpy.ndarray")
            + HUGE + b"\x85C\x01b\x87R.",
            id="an empty array of a terabyte",
        ),
        pytest.param(
            b"\x80\x05" + global_("numpy.core.numeric._frombuffer") + b"(C\x01a" + INT8 + HUGE + b"\x85X\x01\0\0\0CtR.",
            id="a buffer shaped to a terabyte",
        ),
        pytest.param(
            b"\x80\x02" + global_("numpy.core.multiarray.scalar") + global_("numpy.dtype")
            + b"X\x0a\x00\x00\x00S999999999\x85RC\x01a\x86R.",
            id="a scalar of a gigabyte",
        ),
        pytest.param(b"\x80\x02" + INT8 + b"(K\x03X\x01\0\0\0<K\x01NNtb.", id="an element type with parts"),
        pytest.param(b"\x80\x02" + global_("numpy.dtype") + b"}X\x07\0\0\0restoreNsb.", id="a function changed"),
        pytest.param(b"\x80\x02" + global_("numpy.dtype") + b"X\x02\0\0\0i1\x81.", id="an instance without a call"),
        pytest.param(b"\x80\x02" + b")" + b"\x85" * 200_000 + b"}q\0h\0h\1s.", id="unknown note"),
        pytest.param(b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.", id="a deep key"),
        pytest.param(b"\x80\x02Q.", id="a persistent name"),
        pytest.param(b"\x80\x02\x82\x01.", id="a registered class"),
        pytest.param(b"\x80\x02X\x01\0\0\0a)R.", id="a call of text"),
        pytest.param(b"\x80\xff].", id="an unknown protocol"),
        pytest.param(b"]", id="no end"),
        pytest.param(b".", id="nothing on the stack"),
        pytest.param(b"\xff\xfe", id="no pickle"),
        pytest.param(b"I" + b"9" * 100_000 + b"\n.", id="a long number"),
    ],
)  # fmt: skip
def test_crafted_pickles_are_refused(tmp_path, content):
    path = write(tmp_path / "x.pkl", content)
    with pytest.raises(DataError, match=r"x\.pkl") as caught:
        read_pickle(path, list, "clips")
    assert caught.value.hint


def test_deep_nesting_is_read_as_any_other_value(tmp_path):
    value = read_pickle(write(tmp_path / "x.pkl", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."), list, "clips")
    assert len(value) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (pickle.dumps(RECORDS)[:-60], "truncated or damaged"),
        (pickle.dumps(RECORDS)[:300], "truncated or damaged"),
        (b"PK\x03\x04", "no pickle"),
        (pickle.dumps({"a": 1}), "holds a dictionary, not a list of clips"),
        (pickle.dumps(RECORDS[0]["2d"]), "holds an array, not a list of clips"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_pickle(write(tmp_path / "x.pkl", content), list, "clips")


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.pkl: No such file"):
        read_pickle(tmp_path / "none.pkl", list, "clips")
    with pytest.raises(DataError, match="Is a directory"):
        read_pickle(tmp_path, list, "clips")


SEEDS = [
    pickle.dumps(value, protocol)
    for protocol in (0, 2, 4, 5)
    for value in (RECORDS, [torch.ones(2, 3)], {"v": {"start": [1.0], "end": np.ones(1), "text": ["a b"]}})
]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=0, max_size=6)), max_size=3),
    end=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damage_is_an_error_that_names_the_file_or_a_value(tmp_path, content, changes, end):
    damaged = bytearray(content[: int(end * len(content))])
    for place, value in changes:
        start = int(place * len(damaged))
        damaged[start : start + len(value)] = value
    path = write(tmp_path / "x.pkl", bytes(damaged))
    refusals = []
    for kind in (list, dict):
        try:
            assert type(read_pickle(path, kind, "clips")) is kind
        except DataError as error:
            refusals.append(str(error))
    assert refusals
    assert all(str(path) in refusal for refusal in refusals)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.one_of(
            st.sampled_from([bytes([i]) for i in range(256)]),
            st.sampled_from([global_(name) for name in (*FUNCTIONS, "os.system")]),
            st.binary(max_size=4),
        ),
        max_size=40,
    )
)
def test_arbitrary_programs_end_in_an_error_or_a_value(tmp_path, pieces):
    path = write(tmp_path / "x.pkl", b"\x80\x04" + b"".join(pieces))
    refusal = None
    try:
        assert type(read_pickle(path, list, "clips")) is list
    except DataError as error:
        refusal = str(error)
    assert refusal is None or str(path) in refusal
