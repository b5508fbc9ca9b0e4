"""Files of an index under opaque ids."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eao.retrieval.index import Index
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


def test_an_empty_index_has_no_facets(bundle: Path, tmp_path: Path) -> None:
    index = Index(tmp_path / "index", bundle)
    facets = read_listing(index).facets(index.encoders, 1)
    assert facets.folders == [] and facets.duration is None and facets.modified is None
