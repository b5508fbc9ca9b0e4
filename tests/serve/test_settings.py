"""Sizes, times and addresses as people write them."""

from __future__ import annotations

import pytest

from eao.errors import ConfigError
from eao.serve.settings import Settings, is_loopback, parse_seconds, parse_size


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("5kb", 5000), ("1.5 MB", 1_500_000), ("2G", 2 * 10**9)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1MB", "many", "1TB", "1 M B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("2ms", 0.002), ("30s", 30), ("1.5", 1.5), ("2min", 120)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "-1s", "1h", "s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no time"):
        parse_seconds(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "a.localhost"])
def test_addresses_of_this_machine_are_local(host: str) -> None:
    assert is_loopback(host) and Settings(host=host).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "example.org"])
def test_other_addresses_are_not_local(host: str) -> None:
    assert not is_loopback(host)
