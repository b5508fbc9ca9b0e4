"""How a service is set up, and sizes and times as people write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from eao.errors import ConfigError

LogFormat = Literal["json", "text"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_TIMES = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0}


@dataclass(frozen=True)
class Settings:
    """How a service is set up.

    Attributes:
        host: address it listens on.
        port: 0 takes a free one.
        api_key: what requests have to prove that they know; empty: nothing.
        allowed_hosts: names, beside this machine's own, under which it is called; of a reverse proxy for example.
        max_upload: bytes of a request with files.
        queue: requests for searches and embeddings without files that may wait or be worked on at once; what comes
            beyond is refused. For pictures, for files and for all else there is four times as much room each.
        uploads: requests with files that are taken at once, beside those.
        connections: that may be open; requests on more of them are refused.
        timeout: seconds after which a request that has no answer yet is given up.
        grace: seconds that requests get to finish when the service is stopped.
        batch: sentences that are embedded at once.
        batch_delay: seconds that a sentence waits for others.
        log_format: of the lines on standard output.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str = ""
    allowed_hosts: tuple[str, ...] = ()
    max_upload: int = 200 * 10**6
    queue: int = 64
    uploads: int = 4
    connections: int = 2048
    timeout: float = 30.0
    grace: float = 30.0
    batch: int = 16
    batch_delay: float = 0.002
    log_format: LogFormat = "text"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine only.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_size(text: str) -> int:
    """Bytes.

    Raises:
        ConfigError: it is none.

    Example:
        >>> parse_size("200MB")
        200000000
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B?)", text.strip(), re.IGNORECASE)
    unit = found[2].upper() if found else ""
    unit = unit if unit in _UNITS else f"{unit}B"
    if found is None or (size := round(float(found[1]) * _UNITS[unit])) < 1:
        raise ConfigError(f"{text!r} is no size", "write it like 200MB")
    return size


def parse_seconds(text: str) -> float:
    """Seconds.

    Raises:
        ConfigError: it is no time.

    Example:
        >>> parse_seconds("2ms")
        0.002
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m)?", text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no time", "write it like 30s or 2ms")
    return float(found[1]) * _TIMES[found[2] or ""]
