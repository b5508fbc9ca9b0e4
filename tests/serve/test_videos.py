"""Files and ranges of them, from the real service."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eao.retrieval.index import Index
from eao.serve.videos import find_range

from .http_service import Library, Site


@pytest.fixture
def red(site: Site, library: Library) -> tuple[str, bytes]:
    """The address of a file, and its bytes."""
    hits = site.get("/search", params={"q": "red", "k": 100}).json()["hits"]
    return next(hit["url"] for hit in hits if hit["name"] == "red.mp4"), (library.clips / "red.mp4").read_bytes()


def test_a_whole_file_is_given(site: Site, red: tuple[str, bytes]) -> None:
    url, content = red
    answer = site.get(url)
    assert answer.status_code == 200 and answer.content == content
    assert answer.headers["content-type"] == "video/mp4" and answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == "inline; filename*=utf-8''red.mp4"


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=10-19", slice(10, 20)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=0-99999999", slice(0, None)),
        ("bytes=-99999999", slice(0, None)),
    ],
)
def test_ranges_are_given(site: Site, red: tuple[str, bytes], wanted: str, part: slice) -> None:
    url, content = red
    answer = site.get(url, headers={"Range": wanted})
    begin, end, _ = part.indices(len(content))
    assert answer.status_code == 206 and answer.content == content[part]
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(content)}"


@pytest.mark.parametrize("wanted", ["bytes=99999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(site: Site, red: tuple[str, bytes], wanted: str) -> None:
    answer = site.get(red[0], headers={"Range": wanted})
    assert answer.status_code == 416 and answer.headers["content-range"] == f"bytes */{len(red[1])}"
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("wanted", ["bytes=0-1,5-6", "bytes=5-2", "bytes=-", "bytes=a-b", "lines=0-1", "bytes", "0-1"])
def test_other_ranges_are_passed_over(site: Site, red: tuple[str, bytes], wanted: str) -> None:
    answer = site.get(red[0], headers={"Range": wanted})
    assert answer.status_code == 200 and answer.content == red[1]


def test_a_file_that_is_known_is_not_sent_again(site: Site, red: tuple[str, bytes]) -> None:
    etag = site.get(red[0]).headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        answer = site.get(red[0], headers={"If-None-Match": known})
        assert answer.status_code == 304 and not answer.content and answer.headers["etag"] == etag


def test_a_range_of_another_version_is_not_given(site: Site, red: tuple[str, bytes]) -> None:
    first = site.get(red[0])
    for version, status in ((first.headers["etag"], 206), (first.headers["last-modified"], 206), ('"other"', 200)):
        answer = site.get(red[0], headers={"Range": "bytes=0-9", "If-Range": version})
        assert answer.status_code == status


def test_the_head_alone_can_be_asked_for(site: Site, red: tuple[str, bytes]) -> None:
    answer = site.client.head(red[0])
    assert answer.status_code == 200 and not answer.content
    assert answer.headers["content-length"] == str(len(red[1]))
    whole = site.client.head(red[0], headers={"Range": "bytes=0-9"})  # ranges are for GET
    assert whole.status_code == 200 and whole.headers["content-length"] == str(len(red[1]))
    assert "content-range" not in whole.headers


def test_a_file_that_was_not_modified_is_not_sent_again(site: Site, red: tuple[str, bytes]) -> None:
    modified = site.get(red[0]).headers["last-modified"]
    earlier = formatdate(parsedate_to_datetime(modified).timestamp() - 1, usegmt=True)
    for since, status in ((modified, 304), (earlier, 200), ("yesterday", 200), ("", 200)):
        answer = site.get(red[0], headers={"If-Modified-Since": since})
        assert answer.status_code == status, since
    # The entity tag alone counts, if one is given.
    other = site.get(red[0], headers={"If-Modified-Since": modified, "If-None-Match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/videos/..%2f..%2fetc%2fpasswd",
        "/videos/%2e%2e",
        "/videos/../../etc/passwd",
        "/videos/%2fetc%2fpasswd",
        "/videos/" + "0" * 24,
        "/videos/%00",
        "/videos/..%5c..%5cwindows/thumbnail",
        "/..%2f..%2fetc%2fpasswd",
        "/app.js/../../app.py",
        "/%2e%2e/app.py",
    ],
)
def test_nothing_but_indexed_files_can_be_asked_for(site: Site, path: str) -> None:
    with httpx.Client(timeout=30) as client:
        request = client.build_request("GET", site.url)
        # As it is, without the client putting it in order.
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = client.send(request)
    assert answer.status_code == 404 and "error" in answer.json() and "root:" not in answer.text


def test_a_file_that_is_gone_is_not_there(
    start: Callable[..., Site], library: Library, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(library.clips, tmp_path / "clips")
    Index(tmp_path / "index", bundle).add(tmp_path / "clips" / "red.mp4")
    own = start(of=Library(tmp_path / "index", bundle, tmp_path / "clips"))
    (hit,) = own.get("/search", params={"q": "red"}).json()["hits"]
    (tmp_path / "clips" / "red.mp4").unlink()
    for url in (hit["url"], hit["thumbnail"]):
        answer = own.get(url)
        assert answer.status_code == 404 and str(tmp_path) not in answer.text
    (tmp_path / "clips" / "red.mp4").mkdir()
    assert own.get(hit["url"]).status_code == 404


@given(st.text(st.sampled_from("bytes=0123456789-, "), max_size=30), st.integers(0, 1000))
def test_a_range_lies_in_the_file(text: str, size: int) -> None:
    found = find_range(text, size)
    assert found is None or 0 <= found[0] <= found[1] <= size
