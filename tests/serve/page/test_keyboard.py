"""The page without a mouse."""

from __future__ import annotations

from typing import Any


def focused(page: Any) -> int:
    """Which card has the focus; -1 for none."""
    return page.evaluate("[...document.querySelectorAll('.card')].indexOf(document.activeElement.closest('.card'))")


def test_slash_goes_to_the_box_and_is_a_letter_in_it(found: Any) -> None:
    found.locator(".card .open").first.focus()
    found.keyboard.press("/")
    assert found.evaluate("document.activeElement.id") == "words"
    found.keyboard.press("End")
    found.keyboard.press("/")
    assert found.input_value("#words") == "red dog/"


def test_arrows_move_in_two_dimensions(found: Any) -> None:
    columns = found.evaluate(
        """() => {
          const all = [...document.querySelectorAll(".card")];
          return all.filter((card) => card.offsetTop === all[0].offsetTop).length;
        }"""
    )
    assert 1 < columns < found.locator(".card").count()
    found.focus("#words")
    path = []
    for key in ("ArrowDown", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "End", "ArrowRight", "Home", "ArrowUp"):
        found.keyboard.press(key)
        path.append(focused(found))
    last = found.locator(".card").count() - 1
    assert path == [0, 1, 1 + columns, columns, 0, last, last, 0, -1]
    assert found.evaluate("document.activeElement.id") == "words"


def test_enter_opens_and_escape_closes(found: Any) -> None:
    found.focus("#words")
    found.keyboard.press("ArrowDown")
    found.keyboard.press("Enter")
    found.wait_for_selector("#player[open]")
    found.keyboard.press("Escape")
    found.wait_for_selector("#player", state="hidden")
    assert focused(found) == 0


def test_escape_closes_the_filters(found: Any) -> None:
    found.click("#filters-toggle")
    assert found.get_attribute("#filters-toggle", "aria-expanded") == "true"
    found.keyboard.press("Escape")
    assert not found.is_visible("#filters")
    assert found.evaluate("document.activeElement.id") == "filters-toggle"


def test_every_stop_of_the_tab_key_shows_the_focus(found: Any) -> None:
    found.focus("#words")
    stops = set()
    for _ in range(14):
        found.keyboard.press("Tab")
        stop, outline = found.evaluate(
            """() => {
              const e = document.activeElement, s = getComputedStyle(e);
              return [e.id || e.className || e.tagName, s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2];
            }"""
        )
        assert outline, stop
        stops.add(stop)
    assert {"choose", "microphone", "theme", "filters-toggle", "explain", "balance-range", "open"} <= stops
