"""Pictures of files, and what keeps them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from eao.serve.thumbnails import Kept

from .http_service import Site


def thumbnail_of(site: Site, name: str) -> str:
    hits = site.get("/search", params={"q": "red"}).json()["hits"]
    return next(hit["thumbnail"] for hit in hits if hit["name"] == name)


def test_a_picture_is_of_the_file(site: Site) -> None:
    answer = site.get(thumbnail_of(site, "blue.mp4"))
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    assert "max-age" in answer.headers["cache-control"] and "private" in answer.headers["cache-control"]
    image = Image.open(io.BytesIO(answer.content)).convert("RGB")
    assert image.size == (320, 320)
    red, green, blue = np.asarray(image, np.int64).transpose(2, 0, 1)
    assert ((blue > 150) & (red < 90) & (green < 90)).any() and not ((red > 190) & (blue < 90)).any()


@pytest.mark.parametrize(("width", "made"), [(16, 160), (160, 160), (200, 320), (640, 640), (2000, 640)])
def test_few_sizes_are_made(site: Site, width: int, made: int) -> None:
    answer = site.get(f"{thumbnail_of(site, 'red.mp4')}&width={width}")
    assert Image.open(io.BytesIO(answer.content)).width == made


def test_the_picture_is_that_of_the_moment(site: Site) -> None:
    url = thumbnail_of(site, "long.mp4").partition("?")[0]
    pictures = [site.get(f"{url}?at={at}").content for at in (0, 2, 4)]
    assert len(set(pictures)) == 3
    assert site.get(f"{url}?at=1e6").status_code == 200  # the last one


def test_a_picture_that_is_known_is_not_sent_again(site: Site) -> None:
    url = thumbnail_of(site, "red.mp4")
    etag = site.get(url).headers["etag"]
    again = site.get(url, headers={"If-None-Match": etag})
    assert again.status_code == 304 and not again.content


def test_a_picture_is_decoded_once(site: Site) -> None:
    url = f"{thumbnail_of(site, 'red.mp4')}&width=480"
    site.get(url)
    decoded = site.metric('eao_thumbnails_total{source="decoder"')
    site.get(url)
    assert site.metric('eao_thumbnails_total{source="decoder"') == decoded


@pytest.mark.parametrize("query", ["at=-1", "at=nan", "at=x", "width=0", "width=99999"])
def test_what_cannot_be_drawn_is_refused(site: Site, query: str) -> None:
    answer = site.get(f"{thumbnail_of(site, 'red.mp4').partition('?')[0]}?{query}")
    assert answer.status_code == 422 and answer.json()["error"]["message"]


def test_the_latest_used_are_kept() -> None:
    kept = Kept(10)
    kept.put("a", b"xxxx")
    kept.put("b", b"xxxx")
    assert kept.get("a") == b"xxxx"
    kept.put("c", b"xxxx")
    assert kept.get("b") is None and kept.get("a") is not None and kept.size == 8
    kept.put("a", b"x")
    assert kept.size == 5
    kept.put("d", b"x" * 11)
    assert kept.size <= 10
