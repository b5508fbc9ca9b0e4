"""Pictures of the search page for the documentation, and how long a search takes in it.

From the root of the repository, after `make demo`:

    python tests/serve/page/tour.py --index runs/demo/index --images docs/images
    python tests/serve/page/tour.py --index runs/demo/index --latency runs/page-latency.json --limit 300 \
        -- --model runs/demo/engines --precision int8
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browsing import MICROPHONE, PATIENCE, chromium, serving, time_searches

SENTENCES = (
    "a rooster moving to the left",
    "a dolphin",
    "a dog",
    "a fish growing",
    "somebody says rabbit",
    "a black dress",
    "an insect with wings",
    "a sheep rising up",
    "a bird shrinking",
    "a big animal in the water",
)
DESKTOP = {"viewport": {"width": 1280, "height": 860}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
LARGEST = 300_000  # bytes of a picture


def main() -> int:
    """Do what the command line asks for. Returns 1 if a search took longer than allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="write the pictures here")
    parser.add_argument("--latency", type=Path, metavar="FILE", help="write the times here, as JSON")
    parser.add_argument("--limit", type=float, metavar="MS", help="the longest that the slowest search may take")
    parser.add_argument("serve", nargs="*", metavar="-- OPTION", help="what else eao serve is given")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving("--index", options.index, *options.serve, log=Path(folder) / "log") as address,
        chromium(*MICROPHONE) as browser,
    ):
        if options.latency or options.limit:
            report = measure(browser, address)
        if options.images:
            take_pictures(browser, address, options.images)
    if options.latency:
        options.latency.parent.mkdir(parents=True, exist_ok=True)
        options.latency.write_text(json.dumps(report, indent=2) + "\n")
    if report:
        print(f"first result: median {report['result']['median']:.0f} ms, worst {report['result']['worst']:.0f} ms")
    if options.limit and report["result"]["worst"] > options.limit:
        print(f"[x] that is more than {options.limit:g} ms", file=sys.stderr)
        return 1
    return 0


def measure(browser: Any, address: str) -> dict[str, Any]:
    """Milliseconds from the last key to the first result and to its picture, over `SENTENCES`."""
    context = browser.new_context(**DESKTOP)
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    page.goto(address)
    time_searches(page, ["warm up"])
    times = time_searches(page, SENTENCES)
    context.close()
    report: dict[str, Any] = {"processor": platform.processor() or platform.machine(), "browser": browser.version}
    for what in ("result", "picture"):
        values = [each[what] for each in times]
        report[what] = {"median": statistics.median(values), "worst": max(values), "all": values}
    return report


def take_pictures(browser: Any, address: str, folder: Path) -> None:
    """Write the pictures of the documentation, as WebP."""
    folder.mkdir(parents=True, exist_ok=True)

    def shoot(name: str, query: str, then: Callable[[Any], None], **options: Any) -> None:
        context = browser.new_context(**options)
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.goto(address + query)
        page.wait_for_selector(".card")
        page.wait_for_load_state("networkidle")
        then(page)
        write_webp(page.screenshot(), folder / f"{name}.webp")
        context.close()

    shoot("search-light", "?q=a+bird", hover, **DESKTOP)
    shoot("search-dark", "?q=a+flower&seen=0.7&explain=true", no_caret, color_scheme="dark", **DESKTOP)
    shoot("search-player", "?q=an+animal+growing&explain=true", open_first, **DESKTOP)
    shoot("search-phone", "?q=a+house", no_caret, **PHONE)


def no_caret(page: Any) -> None:
    page.evaluate("document.activeElement.blur()")


def hover(page: Any) -> None:
    no_caret(page)
    page.locator(".card").nth(1).hover()
    page.wait_for_selector(".card.playing")
    page.wait_for_timeout(900)


def open_first(page: Any) -> None:
    page.locator(".card .open").first.click()
    page.wait_for_function("() => document.querySelector('#player video').currentTime > 1")
    page.eval_on_selector("#player video", "video => video.pause()")


def write_webp(png: bytes, path: Path) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(path, quality=84, method=6)
    if path.stat().st_size > LARGEST:
        raise RuntimeError(f"{path} has {path.stat().st_size:,} bytes: more than {LARGEST:,}")


if __name__ == "__main__":
    sys.exit(main())
