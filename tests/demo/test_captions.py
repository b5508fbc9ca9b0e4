"""The text of a stamp becomes a description, a noun and a caption."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eao.demo.captions import MAX_WORDS, MOTIONS, OPPOSITES, caption, clean_description, noun, singular


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("A bull.", "A bull"),
        ("A camera.  Say Cheese!", "A camera"),
        ("A “Fuji” apple.", "A Fuji apple"),
        ("A knight’s helmet.", "A knight's helmet"),
        ("Mercury—the planet closest to the Sun.", "Mercury"),
        ("A baby sheep (a lamb).", "A baby sheep"),
        ("A candy cane is a traditional Christmas treat in the United States.", "A candy cane"),
        ("A Seville orange, also called a bitter orange.", "A Seville orange"),
        ("An inukshuk (or inuksuk), a landmark made of stones. It was used.", "An inukshuk, a landmark made of stones"),
        ("Fire! Fire! Fire!", "Fire"),
    ],
)
def test_a_description_is_the_first_statement(text: str, description: str) -> None:
    assert clean_description(text) == description


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "!",
        "7",
        "Eat your bread!",
        "Say cheese!",
        "– Because a brain is a terrible thing to waste…",
        "word " * 20,
    ],
)
def test_a_text_that_names_nothing_gives_no_description(text: str) -> None:
    assert clean_description(text) is None


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("A red dog", "dog"),
        ("A dog running", "dog"),
        ("A dog playing soccer", "dog"),
        ("A bull", "bull"),
        ("Two wild boars", "boar"),
        ("A pair of blue jeans with patches", "jean"),
        ("A bunch of grapes", "grape"),
        ("A cup of espresso coffee", "cup"),
        ("A head of red lettuce", "lettuce"),
        ("The baby of a gnu", "gnu"),
        ("Some cherries", "cherry"),
        ("A spiny lobster, from the Hawaiian islands", "lobster"),
        ("A red-nosed reindeer", "reindeer"),
        ("An elf's hat", "hat"),
        ("A blue and yellow flag", "flag"),
        ("A castle in ruins", "castle"),
        ("A hibiscus flower", "hibiscus"),
        ("A yellow flower", "flower"),
        ("Hibiscus", "hibiscus"),
        ("Holly leaves", "leaf"),
        ("A yellow school bus", "bus"),
        ("A ginger 'root", "root"),
    ],
)
def test_the_noun_of_a_description(description: str, expected: str) -> None:
    assert noun(description) == expected


@pytest.mark.parametrize(
    ("plural", "one"), [("brushes", "brush"), ("boxes", "box"), ("mice", "mouse"), ("glass", "glass")]
)
def test_singular(plural: str, one: str) -> None:
    assert singular(plural) == one


@given(st.text(max_size=200))
def test_any_text_gives_a_short_description_with_a_noun_or_none(text: str) -> None:
    description = clean_description(text)
    if description is not None:
        assert 1 <= len(description.split()) <= MAX_WORDS
        assert description == description.strip()
        assert noun(description)


def test_a_caption_names_the_motion() -> None:
    assert caption("A bull", "right") == "A bull, moving to the right."


def test_every_motion_has_one_opposite_and_its_own_words() -> None:
    assert sorted(motion for pair in OPPOSITES for motion in pair) == sorted(MOTIONS)
    assert len(set(MOTIONS.values())) == len(MOTIONS)
