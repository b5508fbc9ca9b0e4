"""Ports that stay free until a server listens at them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from eao import ports
from eao.ports import free_ports


def assert_free(port: int) -> None:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", port))


@pytest.fixture
def ephemeral(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the system says what its ephemeral ports are."""
    path = tmp_path / "ip_local_port_range"
    monkeypatch.setattr(ports, "_EPHEMERAL_RANGE", path)
    return path


def test_they_are_free_and_differ() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    for port in found:
        assert_free(port)


def test_they_are_not_ephemeral(ephemeral: Path) -> None:
    ephemeral.write_text("12000\t60999\n")
    assert all(11_000 <= port < 12_000 for port in free_ports(20))


@pytest.mark.parametrize("told", ["1024\t65535\n", "", "nothing", None])
def test_where_there_is_no_room_below_any_free_one_does(told: str | None, ephemeral: Path) -> None:
    if told is not None:
        ephemeral.write_text(told)
    for port in free_ports(3):
        assert_free(port)


def test_one_in_use_is_left_out(ephemeral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        ephemeral.write_text(f"{port + 1} 65535")
        monkeypatch.setattr(ports, "_LOWEST", port)  # the only one to choose
        (found,) = free_ports(1)
    assert found != port
    assert_free(found)
