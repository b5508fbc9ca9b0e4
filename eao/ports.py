"""Ports of this machine for servers."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_HOST = "127.0.0.1"
_LOWEST = 10_000
_TRIES = 100
_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens at, all different.

    They lie below those that the system gives to connections and to whoever asks for any port: no such can take one
    before its server listens.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        return [_bind(each) for each in sockets]


def _bind(unbound: socket.socket) -> int:
    choose = random.SystemRandom()  # processes with the same seed would choose the same
    below = _first_of_connections()
    for _ in range(_TRIES if below > _LOWEST else 0):
        with contextlib.suppress(OSError):
            unbound.bind((_HOST, choose.randrange(_LOWEST, below)))
            break
    else:
        unbound.bind((_HOST, 0))
    return int(unbound.getsockname()[1])


def _first_of_connections() -> int:
    try:
        return int(_CONNECTIONS.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # no Linux
        return 0
