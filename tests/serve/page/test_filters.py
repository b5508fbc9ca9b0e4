"""Folder, duration and date; what is seen against what is heard."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import CLIPS, names


def wait_for_count(page: Any, count: int) -> None:
    page.wait_for_function("n => document.querySelectorAll('.card').length === n", arg=count)


def test_a_folder_is_chosen(found: Any) -> None:
    found.click("#filters-toggle")
    offered = found.eval_on_selector_all("select[name=folder] option", "all => all.map(o => o.value)")
    assert offered == ["", "day", "night"]
    found.select_option("select[name=folder]", "night")
    wait_for_count(found, 3)
    assert set(names(found)) == {"quiet.mp4", "it's <i>odd.mp4", "white.mp4"}
    found.wait_for_url(lambda url: "folder=night" in url)
    found.click("#filters [type=reset]")
    wait_for_count(found, len(CLIPS))


def test_durations_are_bounds(found: Any) -> None:
    found.click("#filters-toggle")
    found.fill("[name=min_duration]", "3")
    wait_for_count(found, 1)
    assert names(found) == ["long.mp4"]
    found.fill("[name=min_duration]", "")
    found.fill("[name=max_duration]", "3")
    wait_for_count(found, len(CLIPS) - 1)
    assert "long.mp4" not in names(found)


@pytest.mark.parametrize(("name", "count"), [("after", 0), ("before", len(CLIPS))])
def test_dates_are_bounds(found: Any, name: str, count: int) -> None:
    found.click("#filters-toggle")
    tomorrow = datetime.date.today() + datetime.timedelta(days=2)
    found.fill(f"[name={name}]", tomorrow.isoformat())
    found.wait_for_url(f"**{name}={tomorrow.isoformat()}*")
    wait_for_count(found, count)
    if not count:
        assert found.inner_text("#notice-title") == "Nothing was found"
        assert "filters" in found.inner_text("#notice .text")


def test_the_slider_weighs_what_is_seen_against_what_is_heard(found: Any, index: Any) -> None:
    orders = []
    for heard, weights in [(0, {"video": 1.0}), (100, {"audio": 1.0}), (70, {"video": 0.3, "audio": 0.7})]:
        found.locator("#balance-range").fill(str(heard))
        found.wait_for_url(f"**seen={(100 - heard) / 100:g}*")
        found.wait_for_selector('#results[aria-busy="false"]')
        expected = [hit.file.rpartition("/")[2] for hit in index.search("red dog", k=24, weights=weights)]
        found.wait_for_function(
            "names => JSON.stringify([...document.querySelectorAll('.card .name')].map(e => e.textContent)) === names",
            arg=json.dumps(expected, separators=(",", ":")),
        )
        orders.append(expected)
    assert orders[0] != orders[1]
    assert found.get_attribute("#balance-range", "aria-valuetext") == "30 % seen, 70 % heard"
    found.click("#balance-reset")
    found.wait_for_function("() => !location.search.includes('seen')")


def test_without_both_vectors_there_is_no_slider(open_page: Callable[..., Any]) -> None:
    def without_sound(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "has_audio": False})

    page = open_page("?q=red", before=lambda page: page.route("**/facets", without_sound))
    page.wait_for_selector(".card")
    page.wait_for_selector("select[name=folder] option[value=day]", state="attached")
    assert not page.is_visible("#balance")
