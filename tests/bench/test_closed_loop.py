"""Clients in a closed loop, against real HTTP servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eao.bench.clients import Request, http_clients
from eao.bench.closed_loop import Ask, ask_in_loops, watch_memory
from eao.errors import ServingError

REQUEST = Request("GET", "/x")
PATIENCE = 60.0


class Handler(BaseHTTPRequestHandler):
    """Of three requests the first is refused, where any is."""

    protocol_version = "HTTP/1.1"
    asked = 0
    refuses = False

    def do_GET(self) -> None:
        type(self).asked += 1
        refused = self.refuses and type(self).asked % 3 == 1
        body = b'{"error": {"message": "too much to do", "hint": ""}}' if refused else b"fine"
        self.send_response(503 if refused else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[tuple[int, type[Handler]]]:
    handler = type("Fresh", (Handler,), {"asked": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving.server_address[1], handler
        serving.shutdown()
        thread.join()


def test_every_answer_is_counted(server: tuple[int, type[Handler]]) -> None:
    port, handler = server
    traffic = ask_in_loops(http_clients(port, lambda: REQUEST), clients=4, seconds=2)
    assert traffic.requests == handler.asked > 4 and traffic.errors == {}
    assert 0 < traffic.p50_ms <= traffic.p99_ms <= traffic.max_ms
    assert 2 <= traffic.seconds < 60
    assert traffic.throughput == pytest.approx(traffic.requests / traffic.seconds)


def test_refusals_are_errors_by_what_they_say(server: tuple[int, type[Handler]]) -> None:
    port, handler = server
    handler.refuses = True
    traffic = ask_in_loops(http_clients(port, lambda: REQUEST), clients=1, seconds=0.5)
    assert set(traffic.errors) == {"GET: status 503 too much to do"}
    assert traffic.requests + traffic.failed == handler.asked
    assert traffic.failed == (handler.asked + 2) // 3


def test_nobody_there_is_an_error_and_no_crash() -> None:
    traffic = ask_in_loops(http_clients(1, lambda: REQUEST), clients=2, seconds=0.1)
    assert traffic.requests == 0 and traffic.errors == {"GET: ConnectionRefusedError": traffic.failed}
    assert traffic.failed >= 2


def test_clients_ask_at_once_and_each_waits_for_its_answer() -> None:
    under_way, most = 0, 0
    lock = threading.Lock()
    together = threading.Barrier(5)

    @contextmanager
    def open_client() -> Iterator[Ask]:
        first = True

        def ask() -> None:
            nonlocal under_way, most, first
            with lock:
                under_way += 1
                most = max(most, under_way)
            if first:
                together.wait(PATIENCE)  # breaks unless all five ask
            first = False
            time.sleep(0.02)
            with lock:
                under_way -= 1

        yield ask

    traffic = ask_in_loops(open_client, clients=5, seconds=2)
    assert most == 5
    assert 5 <= traffic.requests <= 5 * 100  # 100 of 20 ms fit into the time
    assert traffic.p50_ms >= 20


def test_a_bug_of_a_client_is_no_error_of_the_server() -> None:
    @contextmanager
    def open_client() -> Iterator[Ask]:
        def ask() -> None:
            raise ZeroDivisionError

        yield ask

    with pytest.raises(ZeroDivisionError):
        ask_in_loops(open_client, clients=1, seconds=0.1)


def test_memory_is_noted_while_something_runs() -> None:
    numbers = iter(range(1000))
    with watch_memory(lambda: next(numbers), every=0.01) as noted:
        end = time.monotonic() + PATIENCE
        while len(noted) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    seen = len(noted)
    assert noted == list(range(seen)) and seen > 2
    time.sleep(0.05)
    assert len(noted) == seen
    with pytest.raises(ServingError), watch_memory(lambda: 0):
        raise ServingError("the thread ends all the same")
