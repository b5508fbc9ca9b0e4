from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eao.errors import MissingDependencyError
from eao.features import remote
from eao.features.compute import StoppedError
from eao.features.inputs import Source
from eao.features.remote import Downloader, DownloadError, download_ahead, pause_before

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

DATA = bytes(range(256)) * 8192  # 2 MB: more than a block


class Handler(BaseHTTPRequestHandler):
    """Knows no ranges, like the plainest of servers. `asked` counts requests by path."""

    asked: dict[str, int] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        count = self.asked[path] = self.asked.get(path, 0) + 1
        if path == "/flaky.mp4" and count < 3:
            self.send_error(503)
        elif path in ("/missing.mp4", "/forbidden.mp4", "/broken.mp4"):
            self.send_error({"/missing.mp4": 404, "/forbidden.mp4": 403, "/broken.mp4": 500}[path])
        else:
            self.send_response(200)
            if path != "/unsized.mp4":
                self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA[:1000] if path == "/cut.mp4" else DATA)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def downloader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Downloader]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    Handler.asked.clear()
    return partial(Downloader, tmp_path / "work", stop=threading.Event())


@pytest.mark.parametrize("name", ["a.mp4", "unsized.mp4", "flaky.mp4", "a.mp4?sig=x"])
def test_http(server: str, downloader: Callable[..., Downloader], name: str) -> None:
    path = downloader(max_bytes=len(DATA), retries=2).fetch(Source("a", f"{server}/{name}"))
    assert path.read_bytes() == DATA
    assert path.suffix == ".mp4"


def test_another_file_system(downloader: Callable[..., Downloader]) -> None:
    fsspec.filesystem("memory").pipe_file("/folder/m.mp4", DATA)
    job = downloader(max_bytes=10**9, retries=0)
    assert job.fetch(Source("m", "memory://folder/m.mp4")).read_bytes() == DATA
    with pytest.raises(DownloadError, match="does not exist") as caught:
        job.fetch(Source("m", "memory://folder/n.mp4"))
    assert caught.value.kind == "missing"


@pytest.mark.parametrize(
    ("name", "kind", "reason", "requests"),
    [
        ("missing.mp4", "missing", "does not exist", 1),
        ("forbidden.mp4", "download", "403", 1),
        ("broken.mp4", "download", "500", 3),
        ("cut.mp4", "download", "cannot be downloaded|1,000 of", 3),
    ],
)
def test_only_what_may_pass_is_tried_again(
    server: str, downloader: Callable[..., Downloader], name: str, kind: str, reason: str, requests: int
) -> None:
    job = downloader(max_bytes=10**9, retries=2)
    with pytest.raises(DownloadError, match=reason) as caught:
        job.fetch(Source("a", f"http://ann:s3cret@{server.removeprefix('http://')}/{name}"))
    assert caught.value.kind == kind
    assert "s3cret" not in str(caught.value)
    assert Handler.asked[f"/{name}"] == requests
    assert list(job.folder.iterdir()) == []


@pytest.mark.parametrize("name", ["a.mp4", "unsized.mp4"])
def test_what_is_too_large_is_refused_before_it_fills_the_disk(
    server: str, downloader: Callable[..., Downloader], name: str
) -> None:
    job = downloader(max_bytes=len(DATA) - 1, retries=2)
    with pytest.raises(DownloadError, match="larger than the limit") as caught:
        job.fetch(Source("a", f"{server}/{name}"))
    assert caught.value.kind == "too-large"
    assert Handler.asked[f"/{name}"] == 1
    assert list(job.folder.iterdir()) == []


@pytest.mark.parametrize("url", ["nosuch://a/b.mp4", "zip://a.mp4::http://127.0.0.1:1/x.zip"])
def test_what_is_no_plain_url_is_refused(downloader: Callable[..., Downloader], url: str) -> None:
    with pytest.raises(DownloadError):
        downloader(max_bytes=1, retries=0).fetch(Source("a", url))


def test_a_missing_package_is_named(downloader: Callable[..., Downloader], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(MissingDependencyError, match=r"'\.\[remote\]"):
        downloader(max_bytes=1, retries=0).fetch(Source("a", "https://x.org/a.mp4"))


def test_a_job_that_stops_ends_its_downloads(server: str, downloader: Callable[..., Downloader]) -> None:
    job = downloader(max_bytes=10**9, retries=9)
    job.stop.set()
    for name in ("a.mp4", "broken.mp4"):
        with pytest.raises(StoppedError):
            job.fetch(Source("a", f"{server}/{name}"))


def test_downloads_run_ahead_but_not_far(server: str, downloader: Callable[..., Downloader]) -> None:
    sources = [Source(f"{i:02}", f"{server}/{i:02}.mp4" if i % 2 else "/local.mp4") for i in range(20)]
    items = download_ahead(sources, downloader(max_bytes=10**9, retries=0), ahead=3)
    source, download = next(items)
    assert (source.id, download) == ("00", None)
    taken = [next(items) for _ in range(3)]
    assert taken[0][1] is not None and taken[0][1].result(timeout=20).read_bytes() == DATA
    assert {f"/{i:02}.mp4" for i in (1, 3, 5)} >= set(Handler.asked)
    rest = list(items)
    assert [source.id for source, _ in (*taken, *rest)] == [f"{i:02}" for i in range(1, 20)]
    assert all(download.result(timeout=20).is_file() for _, download in rest if download is not None)


def test_nothing_is_downloaded_ahead_while_much_is_held(
    server: str, downloader: Callable[..., Downloader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MOST_HELD", len(DATA))
    job = downloader(max_bytes=10**9, retries=0)
    items = download_ahead([Source(f"{i}", f"{server}/{i}.mp4") for i in range(9)], job, ahead=3)
    paths = []
    for _ in range(4):  # the last three were begun before the first had filled the room
        _, download = next(items)
        assert download is not None
        paths.append(download.result(timeout=20))
    assert not job.has_room()
    assert len(Handler.asked) == 4
    for path in paths:
        path.unlink()
    assert [source.id for source, _ in items] == ["4", "5", "6", "7", "8"]


def test_pauses_grow_to_a_minute() -> None:
    assert [pause_before(attempt) for attempt in (0, 1, 2, 20)] == [0.5, 1.0, 2.0, 60.0]
