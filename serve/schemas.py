"""What the HTTP service takes and gives: the models of its JSON.

    GET    /                        the page
    GET    /health                  Health; 503 while it drains
    POST   /session {"key"}         204 and a cookie, by which a browser is known after that; DELETE: 204, forgotten
    GET    /facets                  Facets
    GET    /search?q=&like=...      SearchResult; the parameters are those of `Query`
    POST   /search                  the same as form fields, and a `file` to look for
    POST   /embed                   Embeddings of {"text": [...]}, or of a form with `video`, `audio` (files) and `text`
    GET    /videos/{id}             the file, in ranges
    GET    /videos/{id}/thumbnail   JPEG; `at` seconds, `width` pixels
    GET    /metrics                 for Prometheus
    GET    /openapi.json            all of this, for programs

Every error is an `ErrorReply`. Files and clips are known by opaque ids, and folders by their path below the folder that
holds all indexed files: no answer tells where they lie on the server.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_WORDS = 1000
"""Characters of a sentence."""
MAX_TEXTS = 64
"""Sentences in one request."""
_YEARS = (1971, 2261)

Sentence = Annotated[str, Field(max_length=MAX_WORDS)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


def _check_moment(moment: datetime) -> datetime:
    if not _YEARS[0] <= moment.year <= _YEARS[1]:  # an index keeps nanoseconds since 1970 in 64 bits
        raise ValueError(f"give a year from {_YEARS[0]} to {_YEARS[1]}")
    return moment


Moment = Annotated[datetime, AfterValidator(_check_moment)]


class Problem(BaseModel):
    """What is wrong, and the next step."""

    message: str
    hint: str = ""


class ErrorReply(BaseModel):
    """The answer to every request that fails."""

    error: Problem


class Health(BaseModel):
    """How the service is.

    Attributes:
        status: "draining" after it was told to stop: it finishes what it has accepted, and refuses the rest.
        clips: in the index.
        files: that they are of.
        encoders: of the model.
        model: SHA-256 of the model's weights.
    """

    status: Literal["ok", "draining"]
    clips: int
    files: int
    encoders: list[str]
    model: str


T = TypeVar("T")
# No tuple: many programs that read an OpenAPI know none.
_Two = Annotated[list[T], Field(min_length=2, max_length=2)]


class Facets(BaseModel):
    """What a search can be narrowed to.

    Attributes:
        folders: with indexed files in or below them; "" is the one that holds all files.
        duration: seconds of the shortest and the longest file; null without files.
        modified: when the file that was changed first, and the one that was changed last, were; null without files.
        encoders: the vectors kept of each clip.
        has_audio: whether sound can be searched apart from the picture, by `seen`.
        uploads: the most bytes of a file that is searched with.
    """

    folders: list[str]
    duration: _Two[float] | None
    modified: _Two[datetime] | None
    encoders: list[str]
    has_audio: bool
    uploads: int


class FoundClip(BaseModel):
    """A clip of a found file: seconds, and how well it fits."""

    clip: str
    start: float
    end: float
    score: float


class Match(BaseModel):
    """How well one kind of vector of a clip fits: the cosine, and by how many standard deviations it stands out."""

    cosine: float
    standard_score: float


class Explanation(BaseModel):
    """What a file was found by: the encoder that stands out most, and how well each fits."""

    strongest: str
    matches: dict[str, Match]


class Hit(BaseModel):
    """A found file and its best clip.

    Attributes:
        id: of the file.
        name: of the file, as shown.
        folder: it lies in; "" for the one that holds all files.
        duration: seconds of the file.
        start: seconds, of the best clip.
        end: seconds.
        score: cosine similarity of the best clip, or the weighted mean of several.
        clip: the best clip's id, for `like`.
        url: of the file.
        thumbnail: of the best clip's beginning; `&width=` chooses another size.
        playable: whether browsers play this kind of file; if not, show the thumbnail.
        clips: the best clip and the others that would be in the list on their own.
        explanation: if it was asked for.
    """

    id: str
    name: str
    folder: str
    duration: float
    start: float
    end: float
    score: float
    clip: str
    url: str
    thumbnail: str
    playable: bool
    clips: list[FoundClip]
    explanation: Explanation | None = None


class Asked(BaseModel):
    """The query as it was understood.

    Attributes:
        q: the words.
        like: the clip whose like is looked for.
        file: name of the uploaded file.
        k: how many files.
        encoder: what embedded the query; of `like`, the vector that was taken.
        weights: of the vectors it was compared with.
    """

    q: str
    like: str
    file: str
    k: int
    encoder: str
    weights: dict[str, float]


class SearchResult(BaseModel):
    """Hits, best first."""

    hits: list[Hit]
    milliseconds: float
    query: Asked


class Query(BaseModel):
    """What to look for.

    Attributes:
        q: words; alone, or beside an uploaded file.
        like: id of a clip: more like this. Alone.
        k: how many files.
        seen: weight of what is seen, 0 to 1; what is heard gets the rest. Without it the vectors of whole clips are
            compared.
        folder: only files below it; one of `Facets.folders`.
        min_duration: seconds.
        max_duration: seconds.
        after: the file was changed then or later; without a time zone it is the server's time.
        before: the file was changed before that.
        explain: tell of each hit by what it was found.
    """

    model_config = ConfigDict(extra="ignore")

    q: Sentence = ""
    like: Annotated[str, Field(max_length=100)] = ""
    k: Annotated[int, Field(ge=1, le=100)] = 20
    seen: Share | None = None
    folder: Annotated[str, Field(max_length=4096)] = ""
    min_duration: Seconds | None = None
    max_duration: Seconds | None = None
    after: Moment | None = None
    before: Moment | None = None
    explain: bool = False

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty(cls, values: Any) -> Any:
        """A field that a form leaves empty is not there."""
        return {name: v for name, v in values.items() if v != ""} if isinstance(values, dict) else values


class Texts(BaseModel):
    """Sentences to embed."""

    text: Annotated[list[Sentence], Field(min_length=1, max_length=MAX_TEXTS)]


class Embeddings(BaseModel):
    """Embeddings of unit norm.

    Attributes:
        encoder: what made them.
        model: SHA-256 of the model's weights: embeddings of one model can be compared.
        embeddings: one row for each input.
    """

    encoder: str
    model: str
    embeddings: list[list[float]]


class Key(BaseModel):
    """The API key of a service that has one."""

    key: Annotated[str, Field(max_length=1000)]
