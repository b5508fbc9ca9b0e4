"""Ports of this machine for servers."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_HOST = "127.0.0.1"
_LOWEST = 11_000  # 10080 is one that browsers refuse
_TRIES = 100
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens at, all different.

    They lie below the ephemeral ports, so that no connection takes one before its server listens. Where the system has
    no room below these, any free port will do.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        return [_bind(each) for each in sockets]


def _bind(unbound: socket.socket) -> int:
    choose = random.SystemRandom()  # processes with the same seed would choose the same
    end = _first_ephemeral_port()
    for _ in range(_TRIES if end > _LOWEST else 0):
        with contextlib.suppress(OSError):
            unbound.bind((_HOST, choose.randrange(_LOWEST, end)))
            break
    else:
        unbound.bind((_HOST, 0))
    return int(unbound.getsockname()[1])


def _first_ephemeral_port() -> int:
    try:
        return int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # not Linux
        return 0
