"""The larger player."""

from __future__ import annotations

from typing import Any

from .conftest import names


def open_long(page: Any) -> None:
    page.locator(".card").nth(names(page).index("long.mp4")).locator(".open").click()
    page.wait_for_selector("#player[open]")
    page.wait_for_url(lambda url: "open=" in url)


def test_it_opens_at_the_moment_with_the_other_moments_of_the_file(found: Any, index: Any) -> None:
    hit = next(hit for hit in index.search("red dog", k=24) if hit.file.endswith("/long.mp4"))
    assert len(hit.clips) > 1
    # So slow that it is still within the moment when it is looked at, however late that is.
    found.eval_on_selector("#player video", "v => { v.defaultPlaybackRate = 0.0625; }")
    open_long(found)
    found.wait_for_function("() => document.querySelector('#player video').readyState >= 2")
    time = found.eval_on_selector("#player video", "v => v.currentTime")
    assert hit.start - 0.05 <= time <= hit.end
    buttons = found.locator("#player ol button")
    assert buttons.count() == len(hit.clips)
    found.eval_on_selector("#player video", "v => v.pause()")
    buttons.nth(1).click()
    found.wait_for_function(
        "start => { const v = document.querySelector('#player video'); return !v.seeking && v.currentTime >= start; }",
        arg=hit.clips[1].start - 0.05,
    )
    assert buttons.nth(1).get_attribute("aria-current") == "true"
    assert found.locator("#player ol [aria-current]").count() == 1


def test_escape_closes_it_and_the_focus_returns(found: Any) -> None:
    open_long(found)
    found.keyboard.press("Escape")
    found.wait_for_selector("#player", state="hidden")
    assert found.evaluate("document.activeElement.querySelector('.name').textContent") == "long.mp4"
    found.wait_for_url(lambda url: "open=" not in url)
    assert found.eval_on_selector("#player video", "v => v.hasAttribute('src')") is False


def test_the_focus_returns_to_a_clip_that_was_clicked_as_it_played(found: Any) -> None:
    card = found.locator(".card").nth(names(found).index("long.mp4"))
    card.hover()
    found.wait_for_selector(".card.playing")
    card.locator(".open").click()
    found.wait_for_selector("#player[open]")
    found.keyboard.press("Escape")
    found.wait_for_selector("#player", state="hidden")
    assert found.evaluate("document.activeElement.className") == "open"
    assert found.evaluate("document.activeElement.querySelector('.name').textContent") == "long.mp4"


def test_back_closes_it_and_its_address_opens_it(found: Any, open_page: Any) -> None:
    open_long(found)
    address = found.url
    found.go_back()
    found.wait_for_selector("#player", state="hidden")
    shared = open_page("?" + address.partition("?")[2])
    shared.wait_for_selector("#player[open]")
    assert shared.inner_text("#player-name") == "long.mp4"
    shared.click("#player .close")
    shared.wait_for_selector("#player", state="hidden")


def test_more_like_this_from_the_player(found: Any) -> None:
    open_long(found)
    found.click("#player .like")
    found.wait_for_selector("#player", state="hidden")
    assert found.inner_text("#example .label") == "More like long.mp4"
    found.wait_for_selector(".card")


def test_a_kind_of_file_that_no_browser_plays_can_be_saved(open_page: Any) -> None:
    def unplayable(route: Any) -> None:
        answer = route.fetch()
        found = answer.json()
        for hit in found["hits"]:
            hit["playable"] = False
        route.fulfill(response=answer, json=found)

    page = open_page("?q=red", before=lambda page: page.route("**/search?*", unplayable))
    page.locator(".card").first.hover()
    page.wait_for_timeout(300)
    assert page.locator("#results video").count() == 0
    page.locator(".card .open").first.click()
    page.wait_for_selector("#player .unplayable")
    assert "/videos/" in page.get_attribute("#player .unplayable a", "href")
