"""Searching as one types, and the grid of what is found."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import ANSWERED, CLIPS, LEARNT, names


def test_results_come_while_typing_in_the_order_of_the_index(open_page: Callable[..., Any], index: Any) -> None:
    page = open_page(before=lambda page: page.clock.install())
    page.wait_for_selector(LEARNT)
    page.clock.pause_at(datetime.datetime.now() + datetime.timedelta(hours=1))
    page.keyboard.type("red dog")  # the box has the focus from the start
    page.clock.run_for(99)
    assert "q=" not in page.url
    page.clock.run_for(1)
    page.wait_for_url("**/?q=red+dog")
    page.wait_for_selector(ANSWERED)
    expected = [hit.file.rpartition("/")[2] for hit in index.search("red dog", k=24)]
    assert names(page) == expected
    assert sorted(expected) == sorted(name.rpartition("/")[2] for name in CLIPS)


def test_a_request_that_a_newer_key_made_stale_is_cancelled(open_page: Callable[..., Any]) -> None:
    held: list[Any] = []

    def hold_the_first(route: Any) -> None:
        if "q=red&" in f"{route.request.url}&" and not held:
            held.append(route)  # never answered
        else:
            route.continue_()

    cancelled: list[str] = []
    page = open_page()
    page.route("**/search?*", hold_the_first)
    page.on("requestfailed", lambda request: cancelled.append(request.url))
    page.fill("#words", "red")
    page.wait_for_url("**/?q=red")
    page.fill("#words", "red dog")
    page.wait_for_selector(".card")
    assert len(cancelled) == 1 and "q=red" in cancelled[0] and "dog" not in cancelled[0]


def test_cards_show_time_folder_score_and_a_picture(found: Any, index: Any) -> None:
    best = index.search("red dog", k=1)[0]
    card = found.locator(".card").first
    assert card.locator(".number").inner_text() == f"{best.score:.2f}"
    assert card.locator(".time").inner_text().startswith(f"0:0{int(best.start)}")
    card.locator("img").evaluate("image => image.decode()")
    assert card.locator("img").evaluate("image => image.naturalWidth") > 0


def test_names_of_files_are_text(found: Any) -> None:
    assert "it's <i>odd.mp4" in names(found)
    assert found.locator(".card i").count() == 0


def test_the_address_holds_the_search(open_page: Callable[..., Any]) -> None:
    page = open_page("?q=blue&seen=0.2&folder=night&explain=true&max_duration=100")
    page.wait_for_selector(".card")
    assert page.input_value("#words") == "blue"
    assert page.input_value("#balance-range") == "80"
    assert page.is_checked("#explain")
    assert page.inner_text("#filters-count") == "2"
    assert len(names(page)) == 3


def test_back_and_forward_go_through_searches(page: Any) -> None:
    page.fill("#words", "red")
    page.wait_for_selector(".card")
    page.press("#words", "Enter")
    page.fill("#words", "cat runs")
    page.press("#words", "Enter")
    page.wait_for_url("**/?q=cat+runs")
    page.go_back()
    page.wait_for_url("**/?q=red")
    assert page.input_value("#words") == "red"
    page.go_back()
    page.wait_for_selector("#results", state="hidden")
    assert page.input_value("#words") == ""
    page.go_forward()
    page.wait_for_selector(".card")


def test_more_like_this_leaves_the_words_and_shows_what_it_goes_by(found: Any) -> None:
    card = found.locator(".card").first
    name = card.locator(".name").inner_text()
    card.hover()
    card.locator(".like").click()
    found.wait_for_selector("#example")
    assert found.inner_text("#example .label") == f"More like {name}"
    assert found.input_value("#words") == ""
    found.wait_for_function("name => document.querySelector('.card .name')?.textContent !== name", arg=name)
    assert name not in names(found)
    found.click("#example button")
    found.wait_for_selector("#results", state="hidden")


def test_results_are_announced(found: Any) -> None:
    best = names(found)[0]
    assert found.inner_text("#live") == f"{len(CLIPS)} results, the best is {best}"


@pytest.mark.parametrize("by", ["video", "audio", "video-audio"])
def test_explanations_say_what_each_hit_was_found_by(found: Any, index: Any, by: str) -> None:
    found.check("#explain")
    found.wait_for_selector(".card .why dl")
    hits = index.search("red dog", k=24, explain=True)
    place = {"video": "Seen", "audio": "Heard", "video-audio": "Both"}[by]
    for i, hit in enumerate(hits[:3]):
        card = found.locator(".card").nth(i)
        shown = dict(zip(card.locator("dt").all_inner_texts(), card.locator("dd").all_inner_texts(), strict=True))
        assert (place in shown) == (by in hit.explanation.matches)
        if place in shown:
            score = float(shown[place].replace("−", "-"))
            assert score == pytest.approx(hit.explanation.matches[by].standard_score, abs=0.051)
