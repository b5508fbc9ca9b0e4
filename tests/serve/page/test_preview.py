"""Clips play in place, at their moment, and stop when they are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .conftest import names

PLAYING = ".card.playing video"


def card_of(page: Any, name: str) -> Any:
    return page.locator(".card").nth(names(page).index(name))


def assert_plays_within(page: Any, hit: Any) -> None:
    page.wait_for_function("() => document.querySelector('.card.playing video')?.currentTime > 0")
    for _ in range(12):  # 1.2 s: clips of 1.9 s are cut at their end
        time, muted = page.eval_on_selector(PLAYING, "v => [v.currentTime, v.muted]")
        assert hit.start - 0.05 <= time <= hit.end + 0.1 and muted
        page.wait_for_timeout(100)


def long_hit(index: Any) -> Any:
    return next(hit for hit in index.search("red dog", k=24) if hit.file.endswith("/long.mp4"))


def test_hover_plays_the_moment_muted_and_leaving_ends_it(found: Any, index: Any) -> None:
    assert found.locator("#results video").count() == 0  # nothing is loaded before it is wanted
    card_of(found, "long.mp4").hover()
    assert_plays_within(found, long_hit(index))
    assert found.eval_on_selector(PLAYING, "v => v.preload") == "metadata"
    found.mouse.move(5, 5)
    found.wait_for_selector("#results video", state="detached")


def test_the_keyboards_focus_plays_too(found: Any, index: Any) -> None:
    found.focus("#words")
    found.keyboard.press("ArrowDown")
    found.wait_for_selector(PLAYING)
    assert found.locator("#results video").count() == 1
    found.keyboard.press("ArrowRight")
    found.wait_for_function("() => document.querySelectorAll('.card')[1].querySelector('video')")
    assert found.locator("#results video").count() == 1


def test_calm_motion_plays_by_the_button_alone(open_page: Callable[..., Any]) -> None:
    page = open_page("?q=red", reduced_motion="reduce")
    card = page.locator(".card").first
    card.hover()
    page.wait_for_timeout(400)
    assert page.locator("#results video").count() == 0
    card.locator(".play").click()
    page.wait_for_selector(PLAYING)
    assert card.locator(".play").get_attribute("aria-pressed") == "true"
    card.locator(".play").click()
    page.wait_for_selector("#results video", state="detached")


def test_touch_plays_by_the_button_and_opens_by_the_picture(open_page: Callable[..., Any]) -> None:
    page = open_page("?q=red", has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844})
    card = page.locator(".card").first
    card.locator(".play").tap()
    page.wait_for_selector(PLAYING)
    card.locator(".frame").tap(position={"x": 80, "y": 80})
    page.wait_for_selector("#player[open]")
