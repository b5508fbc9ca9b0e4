"""Ports that stay free until a server listens at them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from eao import ports
from eao.ports import free_ports


def is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", port))
    return True


def test_they_are_free_and_differ() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20 and all(map(is_free, found))


@pytest.mark.skipif(not ports._CONNECTIONS.exists(), reason="only Linux tells")
def test_no_connection_is_given_one() -> None:
    first = int(ports._CONNECTIONS.read_text().split()[0])
    assert first <= 10_000 or all(10_000 <= port < first for port in free_ports(20))


@pytest.mark.parametrize("told", ["1024\t65535\n", "", "nothing"])
def test_where_connections_may_have_all_any_free_one_does(
    told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text(told)
    monkeypatch.setattr(ports, "_CONNECTIONS", tmp_path / "range")
    assert all(map(is_free, free_ports(3)))


def test_one_in_use_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        (tmp_path / "range").write_text(f"{port + 1} 65535")
        monkeypatch.setattr(ports, "_CONNECTIONS", tmp_path / "range")
        monkeypatch.setattr(ports, "_LOWEST", port)  # the only one to choose
        (found,) = free_ports(1)
        assert found != port and is_free(found)
