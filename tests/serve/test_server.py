"""The process: overload, time limits, keys, signals, restarts."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from eao.errors import ServingError
from eao.serve.server import open_socket
from eao.serve.settings import Settings

from .http_service import Library, Site, serving

KEY = "0123456789abcdef0123"
Start = Callable[..., Site]


def test_overload_is_refused_at_once_and_never_hangs(start: Start) -> None:
    own = start("--queue", 2, "--batch", 1, "--timeout", "20s")

    def ask(number: int) -> httpx.Response:
        with httpx.Client(base_url=own.url, timeout=30) as client:
            return client.get("/search", params={"q": f"red {number}"})

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(ask, range(160)))
    assert time.monotonic() - began < 30
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503} and statuses[200] >= 2
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1 and answer.json()["error"]["hint"]
    assert own.metric('eao_rejected_total{reason="overload"') == statuses[503]
    assert own.get("/search", params={"q": "red"}).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(start: Start) -> None:
    own = start("--timeout", "300ms", "--batch-delay", "3s")
    answer = own.get("/search", params={"q": "red"})
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert "within" in answer.json()["error"]["message"]
    assert own.metric('eao_rejected_total{reason="timeout"') >= 1


def test_a_request_that_comes_too_slowly_is_given_up(start: Start) -> None:
    own = start("--timeout", "500ms")
    with half_sent(own, b"x") as (connection, _):
        connection.settimeout(10)
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_too_large_a_body_is_refused_before_it_is_sent(site: Site) -> None:
    host, port = address(site)
    head = f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 99999999\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection((host, port), timeout=10) as connection:  # of a length that is not told
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        received = b""
        connection.settimeout(0.05)
        for _ in range(200):
            try:
                connection.sendall(chunk)
            except OSError:
                break
            try:
                received = connection.recv(100)
                break
            except TimeoutError:
                continue
        assert received.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


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
    with socket.create_connection(address(site), timeout=10) as connection:
        connection.sendall(sent)
        assert b" 400 " in connection.recv(100)
    assert site.get("/health").status_code == 200


def test_a_signal_drains(start: Start, library: Library) -> None:
    own = start("--grace", "20s")
    content = (library.clips / "red.mp4").read_bytes()
    kept = httpx.Client(base_url=own.url, timeout=20)
    with half_sent(own, content) as (connection, rest), kept:
        assert kept.get("/health").status_code == 200
        time.sleep(0.2)  # until the half request was accepted
        own.process.send_signal(signal.SIGTERM)
        own.wait_for("draining")
        refused = kept.get("/search", params={"q": "red"})
        assert refused.status_code == 503 and refused.headers["retry-after"]
        health = kept.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "draining"
        connection.sendall(rest)
        connection.settimeout(20)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert own.process.wait(timeout=20) == 0
    assert own.lines()[-1]["event"] == "stopped"


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    own = start("--grace", "100s")
    with half_sent(own, b"x"):
        time.sleep(0.2)
        own.process.send_signal(signal.SIGTERM)
        own.wait_for("draining")
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait(timeout=20) == 0


def test_it_ends_though_a_client_never_does(start: Start) -> None:
    own = start("--grace", "500ms")
    with half_sent(own, b"x"):
        time.sleep(0.2)
        own.process.send_signal(signal.SIGTERM)
        assert own.process.wait(timeout=20) == 0


def test_a_restart_loses_nothing(start: Start) -> None:
    first = start(key=KEY, EAO_API_KEY=KEY)
    assert first.post("/session", json={"key": KEY}).status_code == 204
    cookie = dict(first.client.cookies)
    hits = first.get("/search", params={"q": "red dog"}).json()["hits"]
    os.kill(first.process.pid, signal.SIGKILL)  # not even by a signal that it hears of
    first.process.wait()
    second = start(EAO_API_KEY=KEY)
    again = httpx.get(f"{second.url}/search", params={"q": "red dog"}, cookies=cookie)
    assert again.status_code == 200 and again.json()["hits"] == hits
    for hit in hits:
        assert httpx.get(second.url + hit["url"], cookies=cookie).status_code == 200


def test_nothing_is_left_behind(start: Start, library: Library, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    own = start(TMPDIR=str(tmp_path / "own"))
    files = {"file": ("x.mp4", (library.clips / "red.mp4").read_bytes())}
    assert own.post("/search", files=files).status_code == 200
    (folder,) = (tmp_path / "own").glob("eao-uploads-*")
    assert not list(folder.iterdir())
    children = Path(f"/proc/{own.process.pid}/task/{own.process.pid}/children").read_text().split()
    own.process.send_signal(signal.SIGTERM)
    own.process.wait(timeout=20)
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
    """A search with a file of which only the first half is sent: (connection, the rest)."""

    def __init__(self, site: Site, content: bytes) -> None:
        host, port = address(site)
        body = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.mp4"\r\n\r\n' + content + b"\r\n--b--\r\n"
        )
        head = (
            f"POST /search HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.rest = body[len(body) // 2 :]
        self.connection = socket.create_connection((host, port), timeout=10)
        self.connection.sendall(head.encode() + body[: len(body) // 2])

    def __enter__(self) -> tuple[socket.socket, bytes]:
        return self.connection, self.rest

    def __exit__(self, *_: object) -> None:
        self.connection.close()
