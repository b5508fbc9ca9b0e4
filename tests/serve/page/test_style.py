"""Every state of the page: nobody is shut out, and it fits light, dark and a phone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import ANSWERED, LEARNT

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def begin(page: Any) -> None:
    page.wait_for_selector(LEARNT)


def results(page: Any) -> None:
    page.fill("#words", "red dog")
    page.wait_for_selector(".card")


def explained(page: Any) -> None:
    results(page)
    page.check("#explain")
    page.wait_for_selector(".card .why dl")


def filters(page: Any) -> None:
    results(page)
    page.click("#filters-toggle")
    page.fill("[name=min_duration]", "1")
    page.wait_for_url("**min_duration=1*")
    page.wait_for_selector(ANSWERED)


def player(page: Any) -> None:
    explained(page)
    page.locator(".card .open").nth(1).click()
    page.wait_for_selector("#player[open]")


def like(page: Any) -> None:
    results(page)
    page.locator(".card .like").first.dispatch_event("click")
    page.wait_for_selector("#example")
    page.wait_for_selector(ANSWERED)


def nothing(page: Any) -> None:
    page.goto(page.url + "?q=red&min_duration=1000")
    page.wait_for_selector("text=Nothing was found")


def trouble(page: Any) -> None:
    begin(page)
    page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.click("#microphone")
    page.wait_for_selector("#notice.trouble")


def recording(page: Any) -> None:
    page.click("#microphone")
    page.wait_for_selector("#recorder")


STATES = [begin, results, explained, filters, player, like, nothing, trouble, recording]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing(open_page: Callable[..., Any], state: Callable[[Any], None], theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(color_scheme=theme, permissions=["microphone"], reduced_motion="reduce")
    state(page)
    page.wait_for_timeout(250)  # colours that change slowly
    found = Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_phone_is_wide_enough(open_page: Callable[..., Any], state: Callable[[Any], None]) -> None:
    page = open_page(permissions=["microphone"], **PHONE)
    state(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
          .filter((e) => e.checkVisibility() && !e.closest(".hidden, svg"))
          .filter((e) => { const r = e.getBoundingClientRect(); return r.width && (r.right > 390.5 || r.left < -0.5); })
          .map((e) => e.outerHTML.slice(0, 90))"""
    )
    assert wide == []


def brightness(page: Any) -> int:
    """Of the background, 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return int(colour.partition("(")[2].split(",")[0])


def test_the_system_chooses_light_or_dark_until_the_user_does(open_page: Callable[..., Any]) -> None:
    page = open_page(color_scheme="dark")
    assert brightness(page) < 60
    page.emulate_media(color_scheme="light")
    assert brightness(page) > 200
    page.click("#theme")
    assert brightness(page) < 60
    page.reload()
    assert brightness(page) < 60
    assert page.get_attribute("#theme", "aria-label") == "Light colours"
    page.click("#theme")
    assert brightness(page) > 200
    page.emulate_media(color_scheme="dark")  # the choice equals the system's: it is followed again
    assert brightness(page) < 60


def test_one_result_is_no_larger_than_one_of_many(open_page: Callable[..., Any]) -> None:
    many = open_page("?q=red")
    one = open_page("?q=red&min_duration=3")
    widths = [page.locator(".card").first.bounding_box()["width"] for page in (many, one)]
    assert widths[0] == pytest.approx(widths[1], abs=20)  # a scroll bar may take its place


def test_the_page_forbids_everything_from_elsewhere(page: Any, site: str) -> None:
    policy = page.request.get(site).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
