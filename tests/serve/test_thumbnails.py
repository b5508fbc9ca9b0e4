"""Pictures of files, and what keeps them."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eao.features.decoder import DecoderPool
from eao.retrieval.index import Index
from eao.serve.metrics import Metrics
from eao.serve.problems import Overloaded
from eao.serve.thumbnails import Kept, Still, Thumbnails

from .http_service import Library, Site

PATIENCE = 60.0


class Slow(DecoderPool):
    """Decodes nothing, and waits until it may go on; notes the seconds of each picture that it began."""

    def __init__(self) -> None:
        super().__init__(1)
        self.begun: list[float] = []
        self.released = threading.Event()

    def still(self, path: str | Path, at: float, width: int) -> np.ndarray:
        self.begun.append(at)
        assert self.released.wait(PATIENCE)
        return np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def slow() -> Iterator[Slow]:
    pool = Slow()
    yield pool
    pool.released.set()
    pool.close()


def with_thumbnails(pool: Slow, do: Callable[[Thumbnails], Awaitable[None]], capacity: int = 8) -> None:
    """Let something happen to pictures of which one is made at once."""

    async def run() -> None:
        thumbnails = Thumbnails(pool, 1, capacity, Metrics())
        try:
            await asyncio.wait_for(do(thumbnails), PATIENCE)
        finally:
            pool.released.set()
            thumbnails.close()

    asyncio.run(run())


def still(at: float) -> Still:
    return Still("/videos/a.mp4", 0, 1, at, 160)


async def begun(pool: Slow) -> None:
    while not pool.begun:
        await asyncio.sleep(0.001)


async def leave(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def test_more_pictures_than_may_wait_are_refused(slow: Slow) -> None:
    async def do(thumbnails: Thumbnails) -> None:
        asked = [asyncio.create_task(thumbnails.get(still(at))) for at in (0, 1, 1)]  # two for one picture
        await begun(slow)
        with pytest.raises(Overloaded, match="2 pictures"):
            await thumbnails.get(still(2))
        slow.released.set()
        assert all(picture.startswith(b"\xff\xd8") for picture in await asyncio.gather(*asked))
        assert await thumbnails.get(still(2))  # there is room again

    with_thumbnails(slow, do, capacity=2)


def test_a_picture_that_nobody_waits_for_is_not_made(slow: Slow) -> None:
    async def do(thumbnails: Thumbnails) -> None:
        first, second = (asyncio.create_task(thumbnails.get(still(at))) for at in (0, 1))
        await begun(slow)
        await leave(second)
        slow.released.set()
        await asyncio.gather(first, thumbnails.get(still(2)))
        assert slow.begun == [0, 2]

    with_thumbnails(slow, do)


def test_who_stops_waiting_takes_a_picture_from_nobody(slow: Slow) -> None:
    async def do(thumbnails: Thumbnails) -> None:
        first, second = (asyncio.create_task(thumbnails.get(still(0))) for _ in range(2))
        await begun(slow)
        await leave(first)
        slow.released.set()
        assert await second and slow.begun == [0]

    with_thumbnails(slow, do)


def test_a_picture_that_is_made_already_is_kept_for_the_next_who_asks(slow: Slow) -> None:
    async def do(thumbnails: Thumbnails) -> None:
        first = asyncio.create_task(thumbnails.get(still(0)))
        await begun(slow)
        await leave(first)
        again = asyncio.create_task(thumbnails.get(still(0)))
        slow.released.set()
        assert await again and slow.begun == [0]

    with_thumbnails(slow, do)


def thumbnail_of(site: Site, name: str) -> str:
    hits = site.get("/search", params={"q": "red"}).json()["hits"]
    return next(hit["thumbnail"] for hit in hits if hit["name"] == name)


def test_a_picture_is_of_the_file(site: Site) -> None:
    answer = site.get(thumbnail_of(site, "blue.mp4"))
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, no-cache"  # the file may have changed
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
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = site.get(url, headers={"If-None-Match": known})
        assert again.status_code == 304 and not again.content and again.headers["etag"] == etag
    assert site.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_picture_of_another_file_under_the_same_name_is_another(
    start: Callable[..., Site], library: Library, bundle: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    shutil.copy(library.clips / "red.mp4", clip)
    Index(tmp_path / "index", bundle).add(clip)
    own = start(of=Library(tmp_path / "index", bundle, tmp_path))
    url = own.get("/search", params={"q": "red"}).json()["hits"][0]["thumbnail"]
    before = own.get(url)
    shutil.copy(library.clips / "quiet" / "blue.mp4", tmp_path / "new.mp4")
    os.replace(tmp_path / "new.mp4", clip)
    after = own.get(url, headers={"If-None-Match": before.headers["etag"]})
    assert after.status_code == 200 and after.content != before.content


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
