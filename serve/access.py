"""Who may ask: the names under which the service is called, and the API key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping

from starlette.requests import cookie_parser

from eao.serve.problems import Problem
from eao.serve.settings import Settings, is_loopback

COOKIE = "eao_session"
_SESSION = b"a session of eao serve"


class Access:
    """Checks the head of a request.

    A web page of somebody else can make a browser send requests here under a name of its own that it points at this
    machine (DNS rebinding). Such a name is refused: only this machine's own, addresses, and those that were allowed
    are taken.

    The key is given as `Authorization: Bearer KEY`, as `X-API-Key: KEY`, or by the cookie that `/session` sets. The
    cookie holds no key, but what only the key's holder can compute, so that it stays valid when the service is
    restarted, and ends with the key.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: Settings) -> None:
        self.key = settings.api_key.encode()
        self.names = {name.lower() for name in settings.allowed_hosts} | {settings.host.lower()}
        self.session = hmac.new(self.key, _SESSION, hashlib.sha256).hexdigest() if self.key else ""

    def check_host(self, host: str) -> None:
        """Raise Problem if the service is not called under one of its names."""
        name = _without_port(host).lower()
        if name not in self.names and not is_loopback(name) and not _is_address(name):
            raise Problem(400, "this service does not go by the name in the Host header", "allow it: --allow-host NAME")

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Raise Problem unless the request proves that it knows the key."""
        if not self.key:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if not any([*(self.is_key(key) for key in given), _equal(cookie.encode(), self.session.encode())]):
            raise Problem(
                401,
                "this service wants an API key",
                "send Authorization: Bearer KEY, or post the key to /session",
                {"WWW-Authenticate": 'Bearer realm="eao"'},
            )

    def is_key(self, key: str) -> bool:
        """Whether this is the key; takes as long for a wrong one as for the right one."""
        return _equal(key.encode("utf-8", "replace"), self.key)


def _equal(a: bytes, b: bytes) -> bool:
    # Of equal length, whatever was sent.
    return hmac.compare_digest(hashlib.sha256(a).digest(), hashlib.sha256(b).digest())


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
