"""Lines of the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from eao.serve.logs import event, log, set_up_logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before, levels = list(root.handlers), (root.level, log.level)
    yield
    root.handlers[:] = before
    root.setLevel(levels[0])
    log.setLevel(levels[1])


def test_an_event_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json")
    event("request", route="/search", q='a "b"\nc', ms=1.5)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) | {"time": 0} == {
        "time": 0, "level": "info", "event": "request", "route": "/search", "q": 'a "b"\nc', "ms": 1.5,
    }  # fmt: skip


def test_what_a_client_sent_makes_no_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("text")
    event("request\nforged", q="a\r\nforged", ms=1.5)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith('request forged q="a\\r\\nforged" ms=1.5')


def test_a_failure_has_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json")
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        log.exception("failed")
    (line,) = capsys.readouterr().out.splitlines()
    assert "ZeroDivisionError: why" in json.loads(line)["traceback"]


def test_other_modules_are_heard_of_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("json")
    logging.getLogger("other").info("quiet")
    logging.getLogger("other").warning("loud")
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["loud"]
