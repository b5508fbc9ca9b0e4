"""Names of the service, and the API key."""

from __future__ import annotations

import pytest

from eao.serve.access import Access
from eao.serve.problems import Problem
from eao.serve.settings import Settings

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "10.1.2.3:80", "videos.example.org", "eao:9"]
)
def test_own_names_and_addresses_are_taken(host: str) -> None:
    Access(Settings(host="eao", allowed_hosts=("Videos.example.org",))).check_host(host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_other_names_are_refused(host: str) -> None:
    with pytest.raises(Problem, match="name") as refused:
        Access(Settings(host="0.0.0.0")).check_host(host)
    assert refused.value.status_code == 400


def test_without_a_key_nothing_is_asked_for() -> None:
    Access(Settings()).check_key({})


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"x-api-key": KEY}]
)
def test_the_key_is_taken(headers: dict[str, str]) -> None:
    Access(Settings(api_key=KEY)).check_key(headers)


def test_the_cookie_is_taken_after_a_restart_and_ends_with_the_key() -> None:
    cookie = {"cookie": f"other=1; eao_session={Access(Settings(api_key=KEY)).session}"}
    Access(Settings(api_key=KEY)).check_key(cookie)
    with pytest.raises(Problem):
        Access(Settings(api_key=f"{KEY}0")).check_key(cookie)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer "},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": "ключ"},
        {"cookie": f"eao_session={KEY}"},
        {"cookie": "eao_session="},
    ],
)
def test_anything_else_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Problem, match="API key") as refused:
        Access(Settings(api_key=KEY)).check_key(headers)
    assert refused.value.status_code == 401 and "WWW-Authenticate" in (refused.value.headers or {})
