"""Starting the real service and the real browser, and timing a search in it: for the tests and for `tour.py`."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = (
    "--no-sandbox",  # there is none for root
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
PATIENCE = 180.0  # seconds for the service to load a model, or to answer, on a busy machine

# Sets window.measured(words): milliseconds from the last key to the frame that shows the hits of these words, and
# to the first picture among them.
TIMER = """() => {
  const box = document.getElementById("words");
  const results = document.getElementById("results");
  let key = 0;
  box.addEventListener("keydown", (event) => { key = event.timeStamp; });
  window.measured = (words) => new Promise((resolve, reject) => {
    const shown = () => {
      const asked = new URLSearchParams(location.search).get("q") === words;
      if (!asked || results.getAttribute("aria-busy") !== "false" || !results.querySelector(".card")) return;
      observer.disconnect();
      const picture = results.querySelector("img");
      requestAnimationFrame(() => setTimeout(() => {
        const result = performance.now() - key;
        picture.decode().then(() => resolve({ result, picture: performance.now() - key }), reject);
      }));
    };
    const observer = new MutationObserver(shown);
    observer.observe(results, { attributes: true, childList: true, subtree: true });
  });
}"""


@contextlib.contextmanager
def serving(*arguments: str | Path, log: Path) -> Iterator[str]:
    """The address of an `eao serve` that runs during the block.

    Args:
        *arguments: of the command.
        log: where its output goes.

    Raises:
        RuntimeError: it did not come up.
    """
    command = [sys.executable, "-m", "eao", "serve", *map(str, arguments), "--port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield _wait_until_up(process, log)
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)


@contextlib.contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A Playwright browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()


def time_searches(page: Any, sentences: Sequence[str], key_delay: int = 45) -> list[dict[str, float]]:
    """Type sentences into the empty page, one after the other.

    Args:
        page: of Playwright, with the search page open.
        sentences: to type; each has hits.
        key_delay: milliseconds between keys.

    Returns:
        For each: milliseconds from the last key to the first `result` and to its `picture`.
    """
    page.evaluate(TIMER)
    measured = []
    for sentence in sentences:
        page.click("#home")
        page.wait_for_selector("#results", state="hidden")
        page.evaluate("words => { window.done = window.measured(words); }", sentence)
        page.keyboard.type(sentence, delay=key_delay)
        measured.append(page.evaluate("() => window.done"))
    return measured


def _wait_until_up(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"eao serve ended with {process.returncode}:\n{log.read_text()}")
        if ready := re.search(r'ready url="(\S+)"', log.read_text()):
            return f"{ready[1]}/"
        time.sleep(0.1)
    raise RuntimeError(f"eao serve did not come up in {PATIENCE:g} s:\n{log.read_text()}")
