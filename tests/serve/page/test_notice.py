"""What stands in place of results: the beginning, nothing found, and everything that goes wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .browsing import PATIENCE, serving
from .conftest import names


def refuse(status: int, message: str, hint: str = "", retry_after: str | None = None) -> Callable[[Any], None]:
    """An answer of the service that is an error. The service cannot be made to give it whenever a test wants it."""

    def answer(route: Any) -> None:
        headers = {"Retry-After": retry_after} if retry_after else {}
        route.fulfill(status=status, headers=headers, json={"error": {"message": message, "hint": hint}})

    return answer


def take_expected(console: list[str], part: str) -> None:
    """The browser notes requests that fail in the console."""
    assert console and all(part in line for line in console), console
    console.clear()


def test_the_beginning_tells_what_can_be_done_and_how_much_there_is(page: Any, index: Any) -> None:
    page.wait_for_selector(f"text={len(index)} clips of {len(index.files)} files")
    assert not page.is_visible("#tools")
    assert page.evaluate("document.activeElement.id") == "words"


def test_words_that_are_unknown_are_explained_by_the_service(page: Any, console: list[str]) -> None:
    page.fill("#words", "zyzzyva")
    page.wait_for_selector("#notice.trouble")
    assert not page.is_visible("#notice .again")
    take_expected(console, "400")
    page.fill("#words", "red")
    page.wait_for_selector(".card")
    assert not page.is_visible("#notice")


def test_a_busy_service_is_asked_again_after_the_time_it_names(
    open_page: Callable[..., Any], console: list[str]
) -> None:
    # An hour of the page's own clock, so that what the test takes itself, on a busy machine too, does not matter.
    page = open_page(before=lambda page: page.clock.install())
    page.route("**/search?*", refuse(503, "64 searches are being served already", "ask again later", "3600"), times=1)
    page.fill("#words", "red")
    page.wait_for_selector("#notice.trouble")
    assert page.inner_text("#notice-title") == "64 searches are being served already"
    assert page.inner_text("#notice .text") == "Ask again later"
    page.clock.run_for("50:00")
    seconds = re.search(r"by itself in (\d+) s", page.inner_text("#notice .again"))
    assert seconds and 0 < int(seconds[1]) <= 600
    assert names(page) == []
    page.clock.run_for("10:00")
    page.wait_for_selector(".card")
    take_expected(console, "503")


def test_it_can_be_asked_again_at_once(page: Any, console: list[str]) -> None:
    page.route("**/search?*", refuse(503, "busy", retry_after="600"), times=1)
    page.fill("#words", "red")
    page.click("#notice .again button")
    page.wait_for_selector(".card")
    take_expected(console, "503")


def test_a_search_goes_on_when_the_device_is_online_again(page: Any, console: list[str]) -> None:
    page.context.set_offline(True)
    page.fill("#words", "red")
    page.wait_for_selector("text=No connection")
    page.context.set_offline(False)
    page.wait_for_selector(".card")
    take_expected(console, "ERR_INTERNET_DISCONNECTED")


def test_a_file_that_the_service_finds_too_large(page: Any, tmp_path: Path, console: list[str]) -> None:
    page.route("**/search", refuse(413, "the request is larger than 9 bytes", "send less, or a shorter file"))
    (tmp_path / "a.mp4").write_bytes(bytes(100))
    page.set_input_files("#file", tmp_path / "a.mp4")
    page.wait_for_selector("text=The request is larger than 9 bytes")
    assert page.inner_text("#notice .text") == "Send less, or a shorter file"
    assert not page.is_visible("#notice .again")
    take_expected(console, "413")


def test_a_bug_of_the_service_is_told_as_one(page: Any, console: list[str]) -> None:
    page.route("**/search?*", lambda route: route.fulfill(status=502, body="<html>Bad gateway</html>"), times=1)
    page.fill("#words", "red")
    page.wait_for_selector("text=The service answered 502")
    page.click("#notice .again button")
    page.wait_for_selector(".card")
    take_expected(console, "502")


def test_trouble_takes_old_results_away(found: Any, console: list[str]) -> None:
    found.route("**/search?*", refuse(503, "busy", retry_after="600"), times=1)
    found.fill("#words", "blue")
    found.wait_for_selector("#notice.trouble")
    assert not found.is_visible("#results") and names(found) == []
    assert "Busy" in found.inner_text("#live")
    take_expected(console, "503")


def test_an_index_without_clips_says_how_to_fill_it(open_page: Callable[..., Any]) -> None:
    def empty(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "clips": 0, "files": 0})

    page = open_page("?q=red", before=lambda page: page.route("**/health", empty))
    page.wait_for_selector("text=Nothing is indexed yet")
    assert page.inner_text("#notice code") == "eao index FOLDER"
    assert not page.is_visible("#results")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, index: Any) -> Iterator[str]:
    """The address of a service that wants a key."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "key").write_text("open sesame, please\n")
    with serving("--index", index.path, "--api-key-file", folder / "key", log=folder / "serve.log") as address:
        yield address


def test_the_key_of_a_service_that_wants_one_is_asked_for_once(browser: Any, locked: str) -> None:
    context = browser.new_context()
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    page.goto(f"{locked}?q=red")
    page.wait_for_selector("#key")
    page.fill("#key", "wrong")
    with page.expect_response("**/session") as refused:
        page.keyboard.press("Enter")
    assert refused.value.status == 401
    page.wait_for_selector("text=This is not the API key")
    page.wait_for_selector("#key")
    page.fill("#key", "open sesame, please")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    page.locator(".card img").first.evaluate("image => image.decode()")  # pictures and videos are let in as well
    page.reload()
    page.wait_for_selector(".card")
    context.close()
