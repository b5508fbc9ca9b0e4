"""Files of an index under opaque ids."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from eao.errors import RetrievalError
from eao.retrieval.clips import FileState
from eao.retrieval.index import Index
from eao.serve import catalog as catalog_module
from eao.serve.catalog import Catalog, clip_id, file_id, read_listing
from eao.serve.problems import Problem

from .http_service import Library


def test_files_are_listed_by_ids_that_tell_nothing(library: Library) -> None:
    listing = read_listing(Index(library.index, library.bundle))
    assert {file.name for file in listing.files.values()} == {"red.mp4", "long.mp4", "blue.mp4", "it's <odd>.mkv"}
    assert {file.folder for file in listing.files.values()} == {"", "quiet"}
    for key, file in listing.files.items():
        assert key == file.id == file_id(file.path) and len(key) == 24 and key.isalnum()
    assert listing.clips == 6  # the long one has three windows


def test_facets_say_what_there_is(library: Library) -> None:
    index = Index(library.index, library.bundle)
    facets = read_listing(index).facets(index.encoders, 7)
    assert facets.folders == ["", "quiet"] and facets.has_audio and facets.uploads == 7
    assert facets.duration == pytest.approx((1.2, 5.0), abs=0.1)
    assert facets.modified is not None and facets.modified[0] <= facets.modified[1]


def test_a_clip_is_found_again_by_its_id(library: Library) -> None:
    index = Index(library.index, library.bundle)
    listing = read_listing(index)
    hit = index.search("red")[0]
    opaque = clip_id(listing.paths[hit.file], hit.id)
    assert listing.clip_name(opaque) == hit.id and "/" not in opaque


@pytest.mark.parametrize("unknown", ["", "..", "../../etc/passwd", "0" * 24, "/etc/passwd", "x~0,1"])
def test_other_ids_lead_nowhere(library: Library, unknown: str) -> None:
    listing = read_listing(Index(library.index, library.bundle))
    for find in (listing.file, listing.clip_name):
        with pytest.raises(Problem) as refused:
            find(unknown)
        assert refused.value.status_code == 404


@pytest.mark.parametrize("folder", ["..", "/etc", "quiet/..", "quiet/", "nothing"])
def test_only_folders_with_files_are_known(library: Library, folder: str) -> None:
    with pytest.raises(Problem, match="no indexed file lies"):
        read_listing(Index(library.index, library.bundle)).below(folder)


def test_changes_by_another_index_are_seen(library: Library, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(library.clips, tmp_path / "clips")
    Index(tmp_path / "index", bundle).add(tmp_path / "clips" / "red.mp4")
    catalog = Catalog(Index(tmp_path / "index", bundle))
    before = catalog.listing()
    assert len(before.files) == 1 and catalog.listing() is before
    other = Index(tmp_path / "index", bundle)
    other.add(tmp_path / "clips" / "quiet")
    assert {file.folder for file in catalog.listing(at_once=True).files.values()} == {"", "quiet"}
    other.remove(str(tmp_path / "clips" / "red.mp4"))
    assert len(catalog.listing(at_once=True).files) == 1


class Shelf:
    """What a catalog reads of an index: it takes as long as the test likes, and may fail."""

    def __init__(self, *paths: str) -> None:
        self.paths = list(paths)
        self.readings = 0
        self.failure: Exception | None = None
        self.released = threading.Event()
        self.released.set()

    def __len__(self) -> int:
        return len(self.paths)

    def version(self) -> int:
        return len(self.paths)

    def states(self) -> dict[str, FileState]:
        self.readings += 1
        assert self.released.wait(60)
        if self.failure is not None:
            raise self.failure
        return {path: FileState(1, 0) for path in self.paths}

    def durations(self) -> dict[str, float]:
        return dict.fromkeys(self.paths, 1.0)


def test_nobody_waits_while_the_index_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        shelf: Any = Shelf("/clips/a.mp4")
        catalog = Catalog(shelf)
        assert len((await catalog.current()).files) == 1  # the first one is waited for
        monkeypatch.setattr(catalog_module, "FRESH", 0.0)
        shelf.paths.append("/clips/b.mp4")
        shelf.released.clear()
        for _ in range(20):
            assert len((await catalog.current()).files) == 1
            await asyncio.sleep(0)
        shelf.released.set()
        while len((await catalog.current()).files) == 1:
            await asyncio.sleep(0.001)
        assert shelf.readings == 2

    asyncio.run(asyncio.wait_for(run(), 60))


def test_what_is_old_is_given_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        shelf: Any = Shelf("/clips/a.mp4")
        catalog = Catalog(shelf)
        await catalog.current()
        shelf.paths.append("/clips/b.mp4")
        for limit in ("FRESH", "LATEST"):
            monkeypatch.setattr(catalog_module, limit, 0.0)
        listings = await asyncio.gather(*(catalog.current() for _ in range(20)))
        assert {len(listing.files) for listing in listings} == {2} and shelf.readings == 2

    asyncio.run(asyncio.wait_for(run(), 60))


def test_an_index_that_cannot_be_read_again_is_told_at_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        shelf: Any = Shelf("/clips/a.mp4")
        catalog = Catalog(shelf)
        await catalog.current()
        monkeypatch.setattr(catalog_module, "FRESH", 0.0)
        shelf.paths.append("/clips/b.mp4")
        shelf.failure = RetrievalError("the table is damaged")
        while "the table is damaged" not in caplog.text:
            assert len((await catalog.current()).files) == 1
            await asyncio.sleep(0.001)
        monkeypatch.setattr(catalog_module, "LATEST", 0.0)
        while True:  # one that began before may still be under way
            try:
                await catalog.current()
            except RetrievalError:
                break
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_folders_of_other_machines_are_shown_but_not_offered() -> None:
    shelf: Any = Shelf("/clips/a.mp4", "/clips/b/c.mp4", "https://example.org/b/d.mp4")
    listing = read_listing(shelf)
    assert {file.folder for file in listing.files.values()} == {"", "b", "example.org/b"}
    assert listing.facets(("video",), 1).folders == ["", "b"] and listing.folders["b"] == 1
    with pytest.raises(Problem, match="no indexed file lies"):
        listing.below("example.org/b")


def test_an_empty_index_has_no_facets(bundle: Path, tmp_path: Path) -> None:
    index = Index(tmp_path / "index", bundle)
    facets = read_listing(index).facets(index.encoders, 1)
    assert facets.folders == [] and facets.duration is None and facets.modified is None
