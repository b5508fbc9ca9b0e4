"""Clips play in place, at their moment, and stop when they are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .conftest import names

PLAYING = ".card.playing video"
PATIENCE = 60_000  # milliseconds

# Sets window.outcome to how a preview went on: "again" at its beginning is right. The page looks once in each frame, as
# this does, so that one frame beyond the end may be seen, but not several in a row, however late frames are.
WATCH = """([start, end]) => {
  let [latest, beyond] = [start, 0];
  const look = () => {
    const { currentTime, muted } = document.querySelector(".card.playing video");
    beyond = currentTime > end ? beyond + 1 : 0;
    if (!muted) window.outcome = "heard";
    else if (currentTime < start - 0.05) window.outcome = `before the moment, at ${currentTime} s`;
    else if (beyond > 2) window.outcome = `after the moment, at ${currentTime} s`;
    else if (latest - currentTime > (end - start) / 2) window.outcome = "again";
    else {
      latest = Math.max(latest, currentTime);
      requestAnimationFrame(look);
    }
  };
  requestAnimationFrame(look);
}"""
# Keeps window.waiting: the functions that wait for the next frame.
COUNT_FRAMES = """() => {
  const [ask, cancel] = [requestAnimationFrame, cancelAnimationFrame];
  window.waiting = new Set();
  window.requestAnimationFrame = (callback) => {
    const handle = ask((time) => { window.waiting.delete(handle); callback(time); });
    window.waiting.add(handle);
    return handle;
  };
  window.cancelAnimationFrame = (handle) => { window.waiting.delete(handle); cancel(handle); };
}"""


def card_of(page: Any, name: str) -> Any:
    return page.locator(".card").nth(names(page).index(name))


def assert_plays_within(page: Any, hit: Any) -> None:
    page.wait_for_function("() => document.querySelector('.card.playing video')?.currentTime > 0")
    page.evaluate(WATCH, [hit.start, hit.end])
    assert page.wait_for_function("() => window.outcome", timeout=PATIENCE).json_value() == "again"


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


def test_one_preview_is_watched_however_many_were_left(found: Any) -> None:
    found.evaluate(COUNT_FRAMES)
    found.focus("#words")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight"):
        found.keyboard.press(key)
    found.wait_for_selector(PLAYING)
    assert found.evaluate("window.waiting.size") == 1
    found.focus("#words")
    found.wait_for_selector("#results video", state="detached")
    assert found.evaluate("window.waiting.size") == 0


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
