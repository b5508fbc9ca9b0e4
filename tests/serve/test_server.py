"""The process: overload, time limits, keys, signals, restarts."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from eao.errors import ServingError
from eao.retrieval.index import Index
from eao.serve.server import open_socket
from eao.serve.settings import Settings

from .conftest import Served
from .http_service import Library, Site, running, serving

PATIENCE = 60.0
FILE = 'name="file"; filename="x.mp4"'
KEY = "0123456789abcdef0123"
Start = Callable[..., Site]


@pytest.mark.parametrize("kind", ["searches", "uploads"])
def test_overload_is_refused_at_once_and_never_hangs(start: Start, library: Library, kind: str) -> None:
    own = start("--queue", 2, "--uploads", 2, "--timeout", "1000s")
    red = (library.clips / "red.mp4").read_bytes()
    form = {"files": {"file": ("x.mp4", red)}}

    def ask(number: int) -> httpx.Response:
        if kind == "uploads":
            return own.post("/search", **form)
        return own.get("/search", params={"q": f"red {number}"})

    def half() -> half_sent:
        return half_sent(own, red) if kind == "uploads" else half_sent(own, b'{"text": ["red dog"]}', "/embed")

    with half() as first, half() as second:  # they hold every place there is
        own.wait_for_metric(f'eao_inside{{kind="{kind}"', 2)
        with concurrent.futures.ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(ask, range(80)))
        for answer in answers:
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
            assert kind in answer.json()["error"]["message"] and answer.json()["error"]["hint"]
        own.wait_for_metric('eao_rejected_total{reason="overload"', 80)
        for connection, rest in (first, second):
            connection.sendall(rest)
            connection.settimeout(PATIENCE)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert ask(0).status_code == 200


def test_more_connections_than_may_be_open_are_refused_as_all_else_is(library: Library, tmp_path: Path) -> None:
    script = (
        "import sys; from eao.retrieval.index import Index; from eao.serve.server import serve; "
        "from eao.serve.settings import Settings; "
        "serve(Index(sys.argv[1], sys.argv[2]), Settings(port=0, connections=3, log_format='json'))"
    )
    with running(["-c", script, str(library.index), str(library.bundle)], tmp_path / "log") as own:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(socket.create_connection(address(own), timeout=PATIENCE))
            own.wait_for_metric("eao_connections", 4)
            refused = own.get("/search", params={"q": "red"})
            assert refused.status_code == 503 and refused.headers["retry-after"] and refused.json()["error"]["hint"]
            assert own.metric('eao_rejected_total{reason="overload"') == 1
            assert own.get("/health").status_code == 200
        own.wait_for_metric("eao_connections", 1)
        assert own.get("/search", params={"q": "red"}).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(start: Start) -> None:
    own = start("--timeout", "500ms", "--batch-delay", "1000s")
    answer = own.get("/search", params={"q": "red"})
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert "within" in answer.json()["error"]["message"]
    own.wait_for_metric('eao_rejected_total{reason="timeout"', 1)


def test_a_client_that_goes_away_leaves_its_place_to_others(start: Start) -> None:
    own = start("--uploads", 2, "--timeout", "1000s", "--batch-delay", "1000s")
    words = [half_sent(own, b"red", part='name="q"') for _ in range(2)]
    with words[0] as first, words[1] as second:
        for connection, rest in (first, second):
            connection.sendall(rest)
        own.wait_for_metric("eao_queue_depth", 2)
    own.wait_for_metric('eao_inside{kind="uploads"', 0)
    with half_sent(own, b"x"):
        own.wait_for_metric('eao_inside{kind="uploads"', 1)
    own.wait_for_metric('eao_inside{kind="uploads"', 0)
    lines = own.wait_for_lines(3, route="/search")
    assert [line["status"] for line in lines] == [499] * 3
    assert own.metric('eao_requests_total{method="POST",route="/search",status="499"') == 3
    assert "a request failed" not in own.log.read_text()


def test_what_is_not_there_is_no_overload(start: Start, library: Library, bundle: Path, tmp_path: Path) -> None:
    Index(tmp_path / "index", bundle).add(library.clips / "red.mp4")
    own = start(of=Library(tmp_path / "index", bundle, library.clips))
    assert own.get("/search", params={"q": "red"}).status_code == 200
    for table in (tmp_path / "index").rglob("*.lance"):
        if table.is_file():
            table.write_bytes(b"")
    answer = own.get("/search", params={"q": "blue"})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 1, answer.text
    own.wait_for_metric('eao_rejected_total{reason="unavailable"', 1)
    assert 'reason="overload"' not in own.get("/metrics").text


def test_a_request_that_comes_too_slowly_is_given_up(start: Start) -> None:
    own = start("--timeout", "500ms")
    with half_sent(own, b"x") as (connection, _):
        connection.settimeout(PATIENCE)
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_too_large_a_body_is_refused_before_it_is_sent(site: Site) -> None:
    host, port = address(site)
    head = f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection((host, port), timeout=PATIENCE) as connection:
        connection.sendall(f"{head}Content-Length: 99999999\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection((host, port), timeout=PATIENCE) as connection:  # of a length that is not told
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(200):
            try:
                connection.sendall(chunk)
            except ConnectionError:
                break
            if select.select([connection], [], [], 0.05)[0]:
                break
        assert connection.recv(100).startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"y" * 200_000,
        b"GET /" + b"a" * 200_000,
    ],
)
def test_what_is_no_http_is_refused(site: Site, sent: bytes) -> None:
    with socket.create_connection(address(site), timeout=PATIENCE) as connection:
        connection.sendall(sent)
        assert b" 400 " in connection.recv(100)
    assert site.get("/health").status_code == 200


def test_a_signal_drains(start: Start, library: Library) -> None:
    own = start("--grace", "1000s", "--timeout", "1000s")
    content = (library.clips / "red.mp4").read_bytes()
    kept = own.client
    with half_sent(own, content) as (connection, rest):
        own.wait_for_metric('eao_inside{kind="uploads"', 1)
        own.process.send_signal(signal.SIGTERM)
        own.wait_for("draining")
        refused = kept.get("/search", params={"q": "red"})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        health = kept.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "draining"
        connection.sendall(rest)
        connection.settimeout(PATIENCE)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert own.process.wait(timeout=PATIENCE) == 0
    assert own.lines()[-1]["event"] == "stopped"


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    own = start("--grace", "1000s", "--timeout", "1000s")
    with half_sent(own, b"x"):
        own.wait_for_metric('eao_inside{kind="uploads"', 1)
        own.process.send_signal(signal.SIGTERM)
        own.wait_for("draining")
        assert own.process.poll() is None
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait(timeout=PATIENCE) == 0


def test_it_ends_though_a_client_never_does(start: Start) -> None:
    own = start("--grace", "500ms")
    with half_sent(own, b"x"):
        own.wait_for_metric('eao_inside{kind="uploads"', 1)
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait(timeout=PATIENCE) == 0
    assert own.lines(event="not all requests were finished in time")


def test_a_restart_loses_nothing(start: Start) -> None:
    first = start(key=KEY, EAO_API_KEY=KEY)
    assert first.post("/session", json={"key": KEY}).status_code == 204
    cookie = dict(first.client.cookies)
    hits = first.get("/search", params={"q": "red dog"}).json()["hits"]
    os.kill(first.process.pid, signal.SIGKILL)  # not even by a signal that it hears of
    first.process.wait()
    second = start(EAO_API_KEY=KEY)
    again = httpx.get(f"{second.url}/search", params={"q": "red dog"}, cookies=cookie, timeout=PATIENCE)
    assert again.status_code == 200 and again.json()["hits"] == hits
    for hit in hits:
        assert httpx.get(second.url + hit["url"], cookies=cookie, timeout=PATIENCE).status_code == 200


def test_nothing_is_left_behind(start: Start, library: Library, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    own = start(TMPDIR=str(tmp_path / "own"))
    files = {"file": ("x.mp4", (library.clips / "red.mp4").read_bytes())}
    assert own.post("/search", files=files).status_code == 200
    (folder,) = (tmp_path / "own").glob("eao-uploads-*")
    assert not list(folder.iterdir())
    children = Path(f"/proc/{own.process.pid}/task/{own.process.pid}/children").read_text().split()
    own.process.send_signal(signal.SIGTERM)
    own.process.wait(timeout=PATIENCE)
    assert not list((tmp_path / "own").glob("eao-uploads-*"))
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_key_protects_all_but_the_page(start: Start, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    own = start("--api-key-file", tmp_path / "key")
    protected = (
        "/search?q=red",
        "/facets",
        "/videos/x",
        "/videos/x/thumbnail",
        "/metrics",
        "/openapi.json",
        "/nothing",
    )
    for path in protected:
        answer = own.get(path)
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Bearer"), path
    for path in ("/", "/app.js", "/health"):
        assert own.get(path).status_code == 200
    assert own.post("/embed", json={"text": ["red"]}).status_code == 401
    assert own.post("/session", json={"key": "wrong"}).status_code == 401
    assert own.get("/facets", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    given = own.post("/session", json={"key": KEY})
    assert given.status_code == 204
    cookie = given.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and KEY not in cookie
    assert own.get("/facets").status_code == 200  # by the cookie
    own.client.delete("/session")
    assert own.get("/facets").status_code == 401
    assert KEY not in own.log.read_text()


def test_a_server_of_models_embeds_in_its_place(site: Site, start: Start, library: Library, served: Served) -> None:
    own = start(encoder=served.address("grpc"))
    red = {"files": {"file": ("x.mp4", (library.clips / "red.mp4").read_bytes())}}
    for ask in (
        lambda one: one.get("/search", params={"q": "red dog"}),
        lambda one: one.get("/search", params={"q": "blue", "seen": 0.25}),
        lambda one: one.post("/search", **red),
        lambda one: one.post("/search", **red, data={"q": "red dog"}),
    ):
        here, there = ask(site), ask(own)
        assert (here.status_code, there.status_code) == (200, 200), there.text
        assert shown(here) and list(shown(there)) == list(shown(here))
        np.testing.assert_allclose(list(shown(there).values()), list(shown(here).values()), atol=1e-5)
    assert own.get("/health").json()["model"] == site.get("/health").json()["model"]


def shown(answer: httpx.Response) -> dict[tuple[str, str], float]:
    """Scores by file and clip; sorted, since two files have the same bytes and rounding orders them."""
    return dict(sorted(((hit["name"], hit["clip"]), hit["score"]) for hit in answer.json()["hits"]))


def test_a_foreign_name_is_refused_unless_it_is_allowed(start: Start) -> None:
    own = start("--allow-host", "videos.example.org")
    assert own.get("/health", headers={"Host": "evil.example"}).status_code == 400
    assert own.get("/health", headers={"Host": "videos.example.org"}).status_code == 200


def test_an_open_address_without_a_key_is_warned_of(start: Start, library: Library, tmp_path: Path) -> None:
    own = start("--host", "0.0.0.0")
    assert any("--api-key-file" in line["event"] for line in own.lines())
    with serving(library, tmp_path / "log", "--host", "0.0.0.0", key=KEY, EAO_API_KEY=KEY) as safe:
        assert not any("--api-key-file" in line["event"] for line in safe.lines())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-upload", "much"], "no size"),
        (["--timeout", "soon"], "no time"),
        (["--api-key-file", "nothing"], "cannot read the API key"),
        (["--encoder", "triton://localhost:1", "--precision", "int8"], "leave out --model"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--index", "nothing"], "there is no index"),
    ],
)
def test_what_cannot_be_served_is_told(options: list[str], message: str, library: Library, tmp_path: Path) -> None:
    index = [] if "--index" in options else [str(library.index)]
    command = [sys.executable, "-m", "eao", "serve", *index, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_a_short_key_is_refused(library: Library, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("zq9")
    command = [sys.executable, "-m", "eao", "serve", str(library.index), "--api-key-file", str(tmp_path / "key")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "openssl rand" in done.stderr and "zq9" not in done.stderr


def test_a_port_that_is_taken_is_told(site: Site) -> None:
    with pytest.raises(ServingError, match="cannot listen"):
        open_socket(Settings(port=address(site)[1]))


def address(site: Site) -> tuple[str, int]:
    url = httpx.URL(site.url)
    assert url.port is not None
    return url.host, url.port


class half_sent:  # noqa: N801
    """A request of which only the first half of the body is sent: (connection, the rest).

    `/search` gets a form with the content as `part`, `/embed` the content itself, which is JSON.
    """

    def __init__(self, site: Site, content: bytes, path: str = "/search", part: str = FILE) -> None:
        host, port = address(site)
        body, kind = content, "application/json"
        if path == "/search":
            body = f"--b\r\nContent-Disposition: form-data; {part}\r\n\r\n".encode() + content + b"\r\n--b--\r\n"
            kind = "multipart/form-data; boundary=b"
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.rest = body[len(body) // 2 :]
        self.connection = socket.create_connection((host, port), timeout=PATIENCE)
        self.connection.sendall(head.encode() + body[: len(body) // 2])

    def __enter__(self) -> tuple[socket.socket, bytes]:
        return self.connection, self.rest

    def __exit__(self, *_: object) -> None:
        self.connection.close()
