"""What the routes do: embedding in batches, searching, and the threads and processes for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from eao.embedder import Embedder
from eao.errors import DataError
from eao.features.decoder import DecoderPool
from eao.features.extractor import ClipFeatures
from eao.model.batch import MODALITIES
from eao.retrieval.clips import Filter, Floats
from eao.retrieval.index import Index
from eao.retrieval.search import Hit as IndexHit
from eao.serve.batching import Batcher
from eao.serve.catalog import Catalog, Listing
from eao.serve.metrics import Metrics
from eao.serve.problems import Problem
from eao.serve.results import show_hit
from eao.serve.schemas import Asked, Query, SearchResult
from eao.serve.settings import Settings
from eao.serve.thumbnails import Thumbnails, processors
from eao.serve.uploads import Form, Uploads, Waiter, named, read_clip, read_features, upload_limits

# B rows, E embedding

R = TypeVar("R")

_PICTURES = 2  # thumbnails that are made at once
_MEDIA = 1  # files with which somebody searches that are decoded at once


@dataclass(frozen=True)
class Wanted:
    """What an index is to be searched for.

    Attributes:
        vector: (E,) of the query.
        encoder: that made it.
        weights: of the vectors to compare with.
        without: a file that is not to be found.
    """

    vector: Floats
    encoder: str
    weights: Mapping[str, float]
    without: str = ""


class Service:
    """An index and its model at work.

    Args:
        index: the index; its model is loaded.
        settings: of the service.
        metrics: where it counts.

    Example:
        async with Service(index, Settings(), Metrics()) as service:
            result = await service.search(Query(q="a dog barks"))
    """

    def __init__(self, index: Index, settings: Settings, metrics: Metrics) -> None:
        self.index = index
        self.settings = settings
        self.metrics = metrics
        self.embedder: Embedder = index.embedder
        self.catalog = Catalog(index)
        self.uploads = Uploads()
        self.decoders = DecoderPool(_MEDIA, upload_limits(settings.max_upload))
        self.thumbnails = Thumbnails(DecoderPool(_PICTURES), _PICTURES, 2 * settings.queue, metrics)
        self.batcher: Batcher[str, Floats] = Batcher(
            self._embed_texts, settings.batch, settings.batch_delay, settings.queue
        )
        self._searching = ThreadPoolExecutor(max(2, processors()), "search")
        self._media = ThreadPoolExecutor(_MEDIA, "media")
        metrics.watch("eao_queue_depth", "Requests that wait to be embedded.", lambda: self.batcher.waiting)
        metrics.watch("eao_clips", "Clips in the index.", lambda: self.catalog.latest.clips)
        metrics.watch("eao_files", "Files in the index.", lambda: len(self.catalog.latest.files))

    async def __aenter__(self) -> Service:
        await self.batcher.__aenter__()
        await asyncio.to_thread(self._warm_up)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.batcher.__aexit__(kind, error, trace)
        for threads in (self._searching, self._media):
            threads.shutdown(wait=False, cancel_futures=True)
        self.thumbnails.close()
        for pool in (self.decoders, self.thumbnails.pool):
            pool.close()
        self.uploads.close()

    async def listing(self) -> Listing:
        """The indexed files, as they are now or were a moment ago."""
        return await self.catalog.current()

    async def search(self, query: Query, form: Form | None = None) -> SearchResult:
        """The files that fit best.

        Args:
            query: what to look for.
            form: with a file under the name `file`, to look for something like it.

        Raises:
            Problem: it makes no sense, or there is too much to do.
            EaoError: no word of it is known; a file that cannot be decoded; an index that cannot be read.
        """
        began = time.perf_counter()
        listing = await self.listing()
        file = form.files.get("file") if form is not None else None
        if sum([bool(query.q or file), bool(query.like)]) != 1:
            both = "both words or a file, and a clip" if query.like else "nothing"
            raise Problem(400, f"{both} to look for", "give q, a file, both of them, or like alone")
        if file is not None and form is not None:
            wanted = await self._want_media(query, file, form)
        elif query.like:
            wanted = await self._in(self._searching, self._want_like, query, listing)
        else:
            (vector,) = await self.batcher.submit([query.q])
            wanted = Wanted(vector, "text", self._weights(query.seen, self.index.encoders[0]))
        hits, listing = await self._in(self._searching, self._find, wanted, query, listing)
        return SearchResult(
            hits=[show_hit(hit, listing) for hit in hits if hit.file in listing.paths],
            milliseconds=round(1000 * (time.perf_counter() - began), 2),
            query=Asked(
                q=query.q,
                like=query.like,
                file=form.names["file"] if file is not None and form is not None else "",
                k=query.k,
                encoder=wanted.encoder,
                weights=dict(wanted.weights),
            ),
        )

    async def embed_texts(self, texts: Sequence[str]) -> tuple[str, Floats]:
        """The encoder, and the embeddings of sentences (B, E), batched with those of other requests."""
        self._check_encoder("text")
        return "text", np.stack(await self.batcher.submit(texts))

    async def embed_form(self, form: Form) -> tuple[str, Floats]:
        """The encoder, and the embedding (1, E) of what a form gives: `video` and `audio` are files, `text` is words.

        Raises:
            Problem: nothing is given, or the model has no encoder for it.
            EaoError: as for `search`.
        """
        given = {"text": form.fields.get("text"), "video": form.files.get("video"), "audio": form.files.get("audio")}
        encoder = "-".join(name for name in MODALITIES if given[name] is not None)
        if not encoder:
            raise Problem(
                400, "nothing to embed", "give the files video and audio, and the field text, or some of them"
            )
        if encoder == "text":
            return await self.embed_texts([form.fields["text"]])
        self._check_encoder(encoder)
        waiter = Waiter()

        def compute() -> Floats:
            with named(_by_path(form)):
                video, audio = form.files.get("video"), form.files.get("audio")
                clip = read_clip(self.embedder, self.decoders, video, audio, waiter.check)
                words = None if given["text"] is None else [form.fields["text"]]
                return self._encode(words, [clip], encoder)

        return encoder, await self._in(self._media, compute, waiter=waiter)

    async def _want_media(self, query: Query, path: Path, form: Form) -> Wanted:
        waiter = Waiter()

        def compute() -> Wanted:
            with named(_by_path(form)):
                info = self.decoders.probe(path)
                clip = read_features(self.embedder, self.decoders, path, info.has_video, waiter.check)
                given = {"text": bool(query.q), "video": info.has_video, "audio": clip.audio is not None}
                encoder = choose_encoder(given, self.embedder.encoders)
                vector = self._encode([query.q] if query.q else None, [clip], encoder)[0]
            default = encoder if encoder in self.index.encoders else self.index.encoders[0]
            return Wanted(vector, encoder, self._weights(query.seen, default))

        return await self._in(self._media, compute, waiter=waiter)

    def _want_like(self, query: Query, listing: Listing) -> Wanted:
        name = listing.clip_name(query.like)
        vectors = self.index.vectors(name)
        if not vectors:
            raise Problem(404, "the index has no such clip any more", "search again")
        weights = self._weights(query.seen, self.index.encoders[0])
        only = next(iter(weights)) if len(weights) == 1 else self.index.encoders[0]
        encoder = only if only in vectors else self.index.encoders[0]
        return Wanted(vectors[encoder], encoder, weights, name.rpartition("#t=")[0])

    def _find(self, wanted: Wanted, query: Query, listing: Listing) -> tuple[list[IndexHit], Listing]:
        """Hits, and a listing that has their files."""
        folder = listing.below(query.folder) if query.folder else None
        where = Filter(folder, query.min_duration, query.max_duration, query.after, query.before)
        count = query.k + bool(wanted.without)
        hits = self.index.search_vector(wanted.vector, wanted.weights, k=count, where=where, explain=query.explain)
        hits = [hit for hit in hits if hit.file != wanted.without][: query.k]
        if any(hit.file not in listing.paths for hit in hits):  # indexed a moment ago
            listing = self.catalog.listing(at_once=True)
        return hits, listing

    def _weights(self, seen: float | None, default: str) -> dict[str, float]:
        if seen is None:
            return {default: 1.0}
        if not {"video", "audio"} <= set(self.index.encoders):
            raise Problem(400, "what is seen and what is heard were not indexed apart", "leave out seen")
        return {encoder: weight for encoder, weight in (("video", seen), ("audio", 1 - seen)) if weight > 0}

    def _embed_texts(self, texts: list[str]) -> list[Floats | Exception]:
        """(E,) of each sentence, or why it has none; in the batcher's thread."""
        try:
            return list(self._encode(texts, None, "text"))
        except DataError as error:
            if len(texts) == 1:
                return [error]
            # Which of them it is, is found by halves: the others are not to suffer for it.
            middle = len(texts) // 2
            return [*self._embed_texts(texts[:middle]), *self._embed_texts(texts[middle:])]

    def _encode(self, words: list[str] | None, clips: list[ClipFeatures] | None, encoder: str) -> Floats:
        began = time.perf_counter()
        vectors = self.embedder.encode(words, clips, encoder)
        self.metrics.batch_sizes.labels(encoder).observe(len(vectors))
        self.metrics.batch_seconds.labels(encoder).observe(time.perf_counter() - began)
        return vectors

    def _check_encoder(self, encoder: str) -> None:
        if encoder not in self.embedder.encoders:
            offered = ", ".join(self.embedder.encoders)
            raise Problem(400, f"this model has no encoder {encoder!r}", f"it offers {offered}")

    def _warm_up(self) -> None:
        """What the first request would wait for."""
        self.catalog.listing()
        if "text" in self.embedder.encoders:
            self._embed_texts(["a"])

    async def _in(
        self,
        threads: ThreadPoolExecutor,
        function: Callable[..., R],
        *args: object,
        waiter: Waiter | None = None,
    ) -> R:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, lambda: function(*args))
        finally:
            if waiter is not None:
                waiter.leave()


def choose_encoder(given: Mapping[str, bool], offered: Sequence[str]) -> str:
    """The encoder for a query, of what is there; sound, and then pictures, are left out where the model has none.

    Args:
        given: modality -> whether it is there.
        offered: encoders of the model.

    Raises:
        Problem: there is none.

    Example:
        >>> choose_encoder({"text": False, "video": True, "audio": True}, ["text", "video"])
        'video'
    """
    for left_out in ("", "audio", "video"):
        name = "-".join(m for m in MODALITIES if given[m] and m != left_out)
        if name in offered and name != "text":
            return name
    asked = " and ".join(m for m in MODALITIES if given[m])
    raise Problem(400, f"this model cannot search with {asked}", f"it offers {', '.join(offered)}")


def _by_path(form: Form) -> dict[Path, str]:
    return {path: form.names[name] for name, path in form.files.items()}
