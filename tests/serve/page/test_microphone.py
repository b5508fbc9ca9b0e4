"""Searching by what Chromium's fake microphone beeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .browsing import CHROMIUM, FLAGS, MICROPHONE, PATIENCE

# True once two seconds of sound are there, as the page shows.
RECORDED = r"() => /^0:(0[2-9]|1\d)$/.test(document.getElementById('recorded').textContent)"
# Holds the browser's answer back until `allow()`, as its prompt does, and keeps the streams it gives.
PROMPT = """() => {
  const ask = MediaDevices.prototype.getUserMedia;
  const allowed = new Promise((resolve) => { window.allow = resolve; });
  window.streams = [];
  MediaDevices.prototype.getUserMedia = async function (wanted) {
    await allowed;
    const stream = await ask.call(this, wanted);
    window.streams.push(stream);
    return stream;
  };
}"""


def test_a_recording_is_searched_with(open_page: Callable[..., Any]) -> None:
    page = open_page(permissions=["microphone"])
    page.click("#microphone")
    page.wait_for_selector("#recorder")
    page.wait_for_function(RECORDED)
    level = page.eval_on_selector("#recorder", "bar => Number(bar.style.getPropertyValue('--level'))")
    assert 0 <= level <= 1
    page.click("#record-search")
    page.wait_for_selector(".card")
    assert page.inner_text("#example .label") == "recording.webm"
    assert not page.is_visible("#recorder")


def test_clicks_while_the_browser_asks_begin_one_recording(open_page: Callable[..., Any]) -> None:
    page = open_page(permissions=["microphone"])
    page.evaluate(PROMPT)
    page.dblclick("#microphone")
    page.click("#microphone")
    page.evaluate("() => window.allow()")
    page.wait_for_selector("#recorder")
    page.wait_for_function(RECORDED)
    page.click("#record-search")
    page.wait_for_selector(".card")
    tracks = page.evaluate("() => window.streams.flatMap(s => s.getTracks()).map(t => t.readyState)")
    assert tracks == ["ended"]  # one that is live would go on listening


def test_escape_throws_a_recording_away(open_page: Callable[..., Any]) -> None:
    page = open_page(permissions=["microphone"])
    page.click("#microphone")
    page.wait_for_selector("#recorder")
    page.keyboard.press("Escape")
    page.wait_for_selector("#recorder", state="hidden")
    page.wait_for_timeout(200)
    assert not page.is_visible("#example")
    assert page.evaluate("document.activeElement.id") == "microphone"


def test_a_refused_microphone_is_told_and_what_was_found_stays(browser: Any, site: str) -> None:
    deny = (MICROPHONE[0], "--deny-permission-prompts")  # the other browser says yes to every question
    with browser.browser_type.launch(executable_path=CHROMIUM, args=[*FLAGS, *deny]) as refusing:
        page = refusing.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(f"{site}?q=red")
        page.wait_for_selector(".card")
        page.click("#microphone")
        page.wait_for_selector("#notice.trouble")
        assert page.inner_text("#notice-title") == "The microphone was refused"
        assert "settings" in page.inner_text("#live")
        assert page.locator(".card").count() > 0


def test_without_a_secure_connection_the_reason_is_told(page: Any) -> None:
    page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    page.click("#microphone")
    page.wait_for_selector("#notice.trouble")
    assert "https" in page.inner_text("#notice .text")
