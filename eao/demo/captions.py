"""From the text beside a stamp to a description, its head noun and the caption of a clip.

The texts are written for children ("A camera.  Say Cheese!"), so a description is the first statement only, and a
stamp whose text does not name the thing it shows has none.
"""

from __future__ import annotations

import re

MOTIONS: dict[str, str] = {
    "left": "moving to the left",
    "right": "moving to the right",
    "up": "rising up",
    "down": "falling down",
    "growing": "growing",
    "shrinking": "shrinking",
}
"""What a stamp can do in a clip, and how the caption says it."""

OPPOSITES: tuple[tuple[str, str], ...] = (("left", "right"), ("up", "down"), ("growing", "shrinking"))
"""Motions whose clips show the same frames in opposite order: no single frame tells them apart."""

MAX_WORDS = 12

_STATEMENT_END = re.compile(r"[.!?;:](?=\s|$|[!?\"”])|\.{3}|…|—|–|\s+-\s+")
_QUOTES = str.maketrans({"“": None, "”": None, '"': None, "‘": "'", "’": "'"})
# "A candy cane is a traditional treat" -> "A candy cane"; "A shell that is old" keeps its noun as well.
_CLAUSE = re.compile(r",?\s+(?:is|are|was|lets|gets|means|that|which|who|also called|called)\b.*$", re.IGNORECASE)
# Texts that talk to the child or about something else than the picture.
_NO_NAME = re.compile(
    r"\b(?:you|your|we|it's|stands for|say|boom|important)\b|^(?:not|this|no|enter|down|dead|give)\b", re.IGNORECASE
)

_ARTICLE = re.compile(r"an?|the|some|two|three|four|another|one|our|his|her")
_PREPOSITION_OR_VERB = re.compile(
    r"of|with|in|on|at|for|from|by|to|inside|near|without|under|over|behind|beside|as|ahead|used|made|worn|covered|hatched|"
    r"playing|dancing|eating|wearing|holding|flying|running|sitting|standing|jumping|swimming|making|carry|carries|resembles"
)
# "A pair of glasses" is glasses, while "a cup of coffee" is a cup.
_COUNTER = re.compile(r"pair|couple|bunch|cluster|group|head|string|quarter|slice|piece|plant|baby|model|set")
# "A hibiscus flower" is a hibiscus, "a yellow flower" a flower.
_GENERIC = re.compile(r"flower|fruit|plant")
_ADJECTIVE = re.compile(r"red|yellow|blue|green|purple|pink|white|plastic|big|small")
_PLURALS = {"leaves": "leaf", "knives": "knife", "mice": "mouse", "geese": "goose", "teeth": "tooth", "men": "man"}


def clean_description(text: str) -> str | None:
    """The first statement of a stamp's text without its closing mark, quotation marks, brackets and clauses.

    Returns:
        None when the text does not name what the stamp shows: it is empty, addresses the reader, or stays longer than
        `MAX_WORDS` words.

    Example:
        >>> clean_description("A camera.  Say Cheese!")
        'A camera'
    """
    text = re.sub(r"\([^)]*\)?", " ", text.translate(_QUOTES))
    text = _STATEMENT_END.split(text, maxsplit=1)[0]
    text = _CLAUSE.sub("", text)
    text = " ".join(text.split()).replace(" ,", ",").strip(" ,'")
    words = text.split()
    if not words or len(words) > MAX_WORDS or _NO_NAME.search(text) or not re.search(r"[A-Za-z]{2}", text):
        return None
    return text[0].upper() + text[1:]


def noun(description: str) -> str:
    """The head noun by which objects are split: lower-case and singular.

    The rule: take the words up to the first comma, leave out a leading article, end before the first preposition
    or participle that follows another word, skip a counter ("a pair of"), and take the last word left; before "flower",
    "fruit" and "plant" the kind, if it is named, counts instead.

    Example:
        >>> noun("A pair of blue jeans with patches"), noun("A red dog"), noun("A dog playing soccer")
        ('jean', 'dog', 'dog')
    """
    words = re.findall(r"\w[\w'-]*", description.split(",")[0].lower()) or [description.lower()]
    while len(words) > 1 and _ARTICLE.fullmatch(words[0]):
        words = words[1:]
    if len(words) > 2 and _COUNTER.fullmatch(words[0]) and words[1] == "of":
        return noun(" ".join(words[2:]))
    end = next((i for i, word in enumerate(words) if i and _PREPOSITION_OR_VERB.fullmatch(word)), len(words))
    head = singular(words[end - 1].removesuffix("'s"))
    if _GENERIC.fullmatch(head) and end > 1 and not _ADJECTIVE.fullmatch(words[end - 2]):
        return singular(words[end - 2])
    return head


def singular(word: str) -> str:
    """The singular of an English noun by its ending: a grouping key, so what matters is that both forms agree.

    Example:
        >>> singular("cherries"), singular("brushes"), singular("bus")
        ('cherry', 'brush', 'bus')
    """
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "toes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def caption(description: str, motion: str) -> str:
    """The sentence that belongs to a clip.

    Example:
        >>> caption("A bull", "right")
        'A bull, moving to the right.'
    """
    return f"{description}, {MOTIONS[motion]}."
