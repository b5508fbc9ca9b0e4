"""Finding, reading and splitting stamps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eao.demo import stamps
from eao.demo.stamps import Stamp, fetch_stamps, limit_splits, read_stamps, split_stamps
from eao.errors import DataError, MissingDependencyError


def make_stamp(category: str, description: str, name: str, index: int = 0) -> Stamp:
    return Stamp(f"{category}-{name}-{index}", Path("x.png"), description, name, category, "", {}, None)


def many_stamps() -> list[Stamp]:
    """400 objects: 100 nouns in each of three categories, some nouns with two to seven objects."""
    made = []
    for category in ("animals", "food", "town"):
        for number in range(100):
            copies = 7 if number == 0 else 2 if number % 10 == 1 else 1
            made += [
                make_stamp(category, f"A {c}. {category}{number}", f"{category}{number}", c) for c in range(copies)
            ]
    return made


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stamps, "INSTALLED", tmp_path / "not-installed")
    write_tool(tmp_path / "bin", "apt-cache", 'echo "Size: 7"')


def write_tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def test_reading_keeps_the_usable_stamps(miniature: Path) -> None:
    found = {stamp.id: stamp for stamp in read_stamps(miniature)}
    assert len(found) == 16
    bull, dog = found["animals-cartoon-bull"], found["animals-dog"]
    assert (bull.description, bull.noun, bull.category, bull.subcategory) == ("A bull", "bull", "animals", "cartoon")
    assert bull.image.name == "bull.png"
    assert set(bull.speech) == {"fr", "es"}
    assert bull.effect is None
    assert dog.effect is not None
    assert dog.effect.name == "dog.ogg"


def test_an_svg_picture_is_read_where_there_is_no_png(tmp_path: Path) -> None:
    folder = tmp_path / "animals"
    folder.mkdir()
    (folder / "ant.svg").write_text("<svg/>", encoding="utf-8")
    (folder / "ant.txt").write_text("An ant.\n", encoding="utf-8")
    assert [stamp.image.suffix for stamp in read_stamps(tmp_path)] == [".svg"]


def test_a_text_in_another_encoding_does_not_stop_reading(tmp_path: Path) -> None:
    folder = tmp_path / "animals"
    folder.mkdir()
    (folder / "ant.png").touch()
    (folder / "ant.txt").write_bytes(b"An ant in a caf\xe9.\n")
    assert [stamp.noun for stamp in read_stamps(tmp_path)] == ["ant"]


def test_a_given_folder_may_be_the_root_of_the_unpacked_package(miniature: Path, tmp_path: Path) -> None:
    assert fetch_stamps(tmp_path, miniature) == miniature
    assert fetch_stamps(tmp_path, miniature.parents[3]) == miniature


def test_a_given_folder_without_stamps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no Tux Paint stamps") as caught:
        fetch_stamps(tmp_path, tmp_path)
    assert "--stamps DIR" in caught.value.hint


@pytest.mark.usefixtures("nothing_installed")
def test_without_apt_the_message_names_the_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="no apt-get") as caught:
        fetch_stamps(tmp_path / "cache")
    assert "--stamps DIR" in caught.value.hint
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("nothing_installed")
def test_a_failed_download_is_tried_once_more_and_then_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_tool(tmp_path / "bin", "apt-get", f'echo "$@" >> {tmp_path}/calls; echo "E: no network" >&2; exit 100')
    write_tool(tmp_path / "bin", "dpkg-deb", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    with pytest.raises(DataError, match="E: no network") as caught:
        fetch_stamps(tmp_path / "cache")
    assert "--stamps DIR" in caught.value.hint
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert [line.split()[-1] for line in calls] == [stamps.PACKAGE, "update"]


@pytest.mark.usefixtures("nothing_installed")
def test_the_package_is_unpacked_once_and_an_interrupted_unpacking_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools, cache = tmp_path / "bin", tmp_path / "cache"
    write_tool(tools, "apt-get", f"echo x >> {tmp_path}/downloads; touch {stamps.PACKAGE}_1_all.deb")
    write_tool(tools, "dpkg-deb", 'mkdir -p "$3/usr/share/tuxpaint/stamps/animals"; exit 1')
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin")
    with pytest.raises(DataError):
        fetch_stamps(cache)
    assert not (cache / stamps.PACKAGE).exists()

    write_tool(
        tools, "dpkg-deb", 'd="$3/usr/share/tuxpaint/stamps/animals"; mkdir -p "$d"; touch "$d/ant.txt" "$d/ant.png"'
    )
    folder = fetch_stamps(cache)
    assert (folder / "animals/ant.png").is_file()
    assert not (cache / "download").exists()
    downloads = (tmp_path / "downloads").read_text(encoding="utf-8")
    assert fetch_stamps(cache) == folder
    assert (tmp_path / "downloads").read_text(encoding="utf-8") == downloads


def test_a_noun_stays_in_one_split_and_every_category_trains() -> None:
    splits = split_stamps(many_stamps())
    nouns = [{stamp.noun for stamp in chosen} for chosen in splits.values()]
    assert not nouns[0] & nouns[1]
    assert not nouns[0] & nouns[2]
    assert not nouns[1] & nouns[2]
    trained = {stamp.category for stamp in splits["train"]}
    assert all(stamp.category in trained for chosen in splits.values() for stamp in chosen)


def test_the_shares_hold_in_every_category() -> None:
    everything, splits = many_stamps(), split_stamps(many_stamps(), test=0.2, validation=0.1)
    for category in ("animals", "food", "town"):
        total = sum(stamp.category == category for stamp in everything)
        for split, share in (("test", 0.2), ("validation", 0.1)):
            count = sum(stamp.category == category for stamp in splits[split])
            assert count == pytest.approx(share * total, abs=2)


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    once, again = split_stamps(many_stamps(), seed=1), split_stamps(reversed(many_stamps()), seed=1)
    assert once == again
    assert {stamp.noun for stamp in once["test"]} != {
        stamp.noun for stamp in split_stamps(many_stamps(), seed=2)["test"]
    }


def test_descriptions_in_validation_and_test_are_distinct() -> None:
    pairs = [make_stamp("animals", f"A {n}", f"noun{n}", copy) for n in range(60) for copy in range(2)]
    splits = split_stamps(pairs, test=0.3, validation=0.2)
    for split in ("validation", "test"):
        descriptions = [stamp.description for stamp in splits[split]]
        assert len(descriptions) > 5
        assert len(set(descriptions)) == len(descriptions)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_very_few_stamps_train(count: int) -> None:
    splits = split_stamps([make_stamp("animals", f"A {n}", f"noun{n}") for n in range(count)])
    assert sum(map(len, splits.values())) == count
    assert len(splits["train"]) >= min(count, 1)


def test_a_limited_split_is_a_part_of_the_full_one_in_which_every_category_trains() -> None:
    full = split_stamps(many_stamps())
    limited = limit_splits(full, train=2, validation=5, test=30)
    assert [len(limited["validation"]), len(limited["test"])] == [5, 30]
    assert 2 <= len(limited["train"]) <= 4
    for split, chosen in limited.items():
        assert set(map(id, chosen)) <= set(map(id, full[split]))
    assert {stamp.category for stamp in limited["test"]} <= {stamp.category for stamp in limited["train"]}
