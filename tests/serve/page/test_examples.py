"""Searching by a file: dropped, pasted or chosen."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ...retrieval.conftest import render
from .browsing import PATIENCE
from .conftest import LEARNT, names, write_sound

MAKE_TRANSFER = """([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  return transfer;
}"""


def transfer(page: Any, path: Path, kind: str) -> Any:
    content = base64.b64encode(path.read_bytes()).decode()
    return page.evaluate_handle(MAKE_TRANSFER, [path.name, kind, content])


def drop(page: Any, path: Path, kind: str) -> None:
    data = transfer(page, path, kind)
    page.dispatch_event("main", "dragenter", {"dataTransfer": data})
    assert page.is_visible("#drop")
    page.dispatch_event("main", "drop", {"dataTransfer": data})
    assert not page.is_visible("#drop")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return render(tmp_path / "example.mp4", 1.6, (220, 20, 20), 440)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_sound(tmp_path / "tone.wav")


def test_a_dropped_video_is_searched_with(page: Any, index: Any, clip: Path) -> None:
    drop(page, clip, "video/mp4")
    page.wait_for_selector(".card")
    assert page.inner_text("#example .label") == "example.mp4"
    expected = [hit.file.rpartition("/")[2] for hit in index.search(video=clip, audio=clip, k=24)]
    assert names(page)[0] == expected[0] == "red.mp4"  # the same clip, rendered again


def test_a_chosen_sound_is_searched_with_and_words_join_it(page: Any, index: Any, sound: Path) -> None:
    page.set_input_files("#file", sound)
    page.wait_for_selector(".card")
    expected = [hit.file.rpartition("/")[2] for hit in index.search(audio=sound, k=24)]
    assert names(page) == expected
    before = page.eval_on_selector_all(".card .number", "all => all.map(e => e.textContent)")
    page.fill("#words", "dog")
    page.wait_for_url("**/?q=dog")
    page.wait_for_function(
        "before => JSON.stringify([...document.querySelectorAll('.card .number')].map(e => e.textContent)) !== before",
        arg=str(before).replace("'", '"').replace(" ", ""),
    )
    assert page.inner_text("#example .label") == "tone.wav"


def test_a_pasted_sound_is_searched_with(page: Any, sound: Path) -> None:
    page.evaluate(
        'data => dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, cancelable: true }))',
        transfer(page, sound, "audio/wav"),
    )
    page.wait_for_selector(".card")


def test_back_and_forward_keep_the_file(page: Any, sound: Path) -> None:
    page.set_input_files("#file", sound)
    page.wait_for_selector(".card")
    page.go_back()
    page.wait_for_selector("#results", state="hidden")
    page.go_forward()
    page.wait_for_selector(".card")
    page.reload()
    page.wait_for_selector("text=The file of this search is gone")


def test_nothing_seems_to_be_under_way_where_back_leads_to_a_forgotten_file(
    open_page: Callable[..., Any], sound: Path
) -> None:
    page = open_page("?q=red")
    page.wait_for_selector(".card")
    page.set_input_files("#file", sound)
    page.wait_for_selector("#example")
    page.reload()
    page.wait_for_selector("text=The file of this search is gone")
    page.route("**/search?*", lambda route: None)  # never answered
    page.click("#example button")
    page.wait_for_selector("#progress")
    page.go_back()
    page.wait_for_selector("#example")
    assert not page.is_visible("#progress")
    assert page.get_attribute("#results", "aria-busy") == "false"


def test_another_kind_of_file_is_refused_in_words(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no media")
    drop(page, tmp_path / "notes.txt", "text/plain")
    assert page.inner_text("#notice-title") == "notes.txt is neither a video nor a sound"
    assert "notes.txt" in page.inner_text("#live")


def test_what_is_refused_before_the_page_knows_the_index_stays(open_page: Callable[..., Any], tmp_path: Path) -> None:
    held: list[Any] = []
    page = open_page(before=lambda page: page.route("**/facets", lambda route: held.append(route)))
    (tmp_path / "notes.txt").write_text("no media")
    drop(page, tmp_path / "notes.txt", "text/plain")
    assert page.inner_text("#notice-title") == "notes.txt is neither a video nor a sound"
    end = time.monotonic() + PATIENCE
    while not held and time.monotonic() < end:
        page.wait_for_timeout(20)
    (facets,) = held
    facets.continue_()
    page.wait_for_selector("select[name=folder] option[value=day]", state="attached")
    assert page.inner_text("#notice-title") == "notes.txt is neither a video nor a sound"


def test_a_damaged_file_is_refused_by_the_service(page: Any, tmp_path: Path, console: list[str]) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"this is no video" * 50)
    page.set_input_files("#file", tmp_path / "broken.mp4")
    page.wait_for_selector("#notice.trouble")
    assert not page.is_visible("#notice .again")
    assert len(console) == 1 and "400" in console.pop()


def test_a_file_that_is_too_large_is_not_even_sent(open_page: Callable[..., Any], sound: Path) -> None:
    def tiny_limit(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "uploads": 1000})

    page = open_page(before=lambda page: page.route("**/facets", tiny_limit))
    page.wait_for_selector(LEARNT)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    page.set_input_files("#file", sound)
    page.wait_for_selector("text=The file is too large")
    assert "POST" not in sent
