"""A searchable index of videos: `index.json`, which names the model, beside the clips and their vectors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eao.embedder import Embedder
from eao.errors import ConfigError, DataError, RetrievalError
from eao.retrieval.adding import AddReport, Opener, ProgressCallback, add_files, feature_openers, video_openers
from eao.retrieval.clips import FileState, Filter, Floats
from eao.retrieval.explain import explain_hits
from eao.retrieval.features import read_folder
from eao.retrieval.location import Location
from eao.retrieval.metadata import describe, is_features_folder
from eao.retrieval.optimize import Choice, OptimizeReport, optimize_store, read_captions
from eao.retrieval.search import Hit, check_weights, search_store


@dataclass(frozen=True)
class IndexStats:
    """What an index holds.

    Attributes:
        clips: how many.
        files: that they are of.
        embedding_dim: width of a full vector.
        encoders: the vectors kept of each clip.
        layout: how they are kept and searched.
        unindexed: clips that the approximate index does not know yet; they are compared one by one.
        megabytes: on the disk, None if the store does not tell.
        model: where the model was loaded from.
    """

    clips: int
    files: int
    embedding_dim: int
    encoders: tuple[str, ...]
    layout: str
    unindexed: int
    megabytes: float | None
    model: str


class Index:
    """Videos that can be searched by words, by video and by sound.

    A file longer than the model's training length is indexed as consecutive windows. Nothing is ever half-written: what
    is done is committed a few files at a time, and adding the same folder again continues where it stopped.

    Threads may share an index: searches go on while files are added, and several `add` take turns. For asyncio there
    are `asearch` and `aadd`, which do the same work in a thread.

    Args:
        path: a folder, made at the first `add`; or a URL of object storage (`s3://bucket/index`), of a Milvus server
            (`milvus://host:port/collection`), or a file of Milvus Lite (`clips.db`).
        model: what embeds. May be left out for an index that exists: the model that made it is then loaded when it is
            needed.

    Raises:
        RetrievalError: there is no index and no model to make one with, it is damaged, or another model made it.
        MissingDependencyError: LanceDB, or for its addresses Milvus' client, is not installed.

    Example:
        index = Index("index", eao.load("runs/demo/best"))
        index.add("clips")
        index.search("a dog barks", k=3)[0].file
    """

    def __init__(self, path: str | Path, model: Embedder | str | Path | None = None) -> None:
        self.path = path
        self._location = Location(path)
        self._loading = threading.Lock()
        self._adding = threading.Lock()
        self._embedder = _load(model) if isinstance(model, str | Path) else model
        found = self._location.read()
        self._has_metadata = found is not None
        if found is not None:
            if self._embedder is not None:
                found.check_model(self._embedder, str(path))
            self.metadata = found
        elif self._embedder is None:
            raise RetrievalError(f"there is no index at {path}", "make one: eao index FOLDER --model MODEL")
        else:
            self.metadata = describe(self._embedder)
        self._store = self._location.open(self.metadata.encoders, self.metadata.embedding_dim)

    def __len__(self) -> int:
        """How many clips."""
        return len(self._store)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The vectors kept of each clip; the first is what a sentence is compared with by default."""
        return self.metadata.encoders

    @property
    def files(self) -> list[str]:
        """The indexed files, sorted."""
        return sorted(self._store.files())

    @property
    def embedder(self) -> Embedder:
        """The model, loaded from where it was when the index was made unless it was given."""
        with self._loading:
            if self._embedder is None:
                if not self.metadata.model:
                    raise RetrievalError(
                        f"{self.path} was made with a model that was never saved", "open it with model=..."
                    )
                embedder = _load(self.metadata.model)
                self.metadata.check_model(embedder, str(self.path))
                self._embedder = embedder
            return self._embedder

    def add(self, inputs: str | Path | Sequence[str | Path], progress: ProgressCallback | None = None) -> AddReport:
        """Index video files, those in folders, and features that `eao extract` wrote. What is unchanged is skipped.

        Args:
            inputs: files, folders of files, and folders of features.
            progress: called with (done, total, file) before every file, and at the end.

        Raises:
            DataError: there are no videos.
            ConfigError: features of another kind than the model was trained on.
            OSError: the disk is full; what was committed stays.
        """
        from eao.features.inputs import find_videos

        given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
        if not given:
            raise DataError("nothing to index", "give video files, or a folder that holds some")
        files: dict[str, Opener] = {}
        for each in given:
            if is_features_folder(each):
                files |= feature_openers(read_folder(Path(each), self.embedder.config.features))
            else:
                files |= video_openers(find_videos([each]), self.embedder.extractor.extract)
        return self._add(files, progress)

    async def aadd(
        self, inputs: str | Path | Sequence[str | Path], progress: ProgressCallback | None = None
    ) -> AddReport:
        """`add` in a thread, so that an event loop goes on meanwhile. `progress` is called from that thread.

        A task that is cancelled stops waiting, but the thread finishes what it began.
        """
        return await asyncio.to_thread(self.add, inputs, progress)

    def add_features(self, folder: str | Path, progress: ProgressCallback | None = None, under: str = "") -> AddReport:
        """Index a folder written by `eao extract`, without decoding a video again.

        Clips that it was cut into are indexed as they are.

        Args:
            folder: the features.
            progress: called after every file.
            under: take only clips whose id lies in this subfolder, such as "test".

        Raises:
            DataError: it holds no features, or damaged ones.
            ConfigError: it holds other features than the model was trained on.
        """
        return self._add(feature_openers(read_folder(Path(folder), self.embedder.config.features, under)), progress)

    def remove(self, ids: str | Sequence[str]) -> int:
        """Remove clips by id, or all clips of files by path. Returns how many clips were removed.

        Raises:
            RetrievalError: the index has none of them.
        """
        names = [ids] if isinstance(ids, str) else [str(i) for i in ids]
        removed = self._store.remove(names)
        if names and not removed:
            raise RetrievalError(
                f"{self.path} has no clip or file {names[0]!r}", "ids and files are listed by a search"
            )
        return removed

    def search(
        self,
        query: str | None = None,
        *,
        video: str | Path | None = None,
        audio: str | Path | None = None,
        k: int = 10,
        encoder: str | None = None,
        weights: Mapping[str, float] | None = None,
        where: Filter | None = None,
        exact: bool = False,
        explain: bool = False,
    ) -> list[Hit]:
        """The k files that fit best, each with its best clip and the others that fit as well.

        Args:
            query: what to look for, in words.
            video: a video file, for clips that look like it. Beside `query`, both together are looked for.
            audio: a video or sound file, for clips that sound like it. Likewise.
            k: how many files.
            encoder: which vectors to compare with: by default those of the whole clip ("video-audio"); "video" for a
                query by video alone, "audio" for one by sound alone.
            weights: instead of `encoder`, several with weights, such as {"video": 0.7, "audio": 0.3}. A clip without
                sound is then scored by what is left.
            where: which files may be found, by folder, duration and date.
            exact: compare every clip, also where `optimize` made an approximate index.
            explain: tell of each hit how well it fits by what is seen, heard, and both.

        Raises:
            ConfigError: k below 1, no query, or vectors the index does not have.
            DataError: no word of the query is known.
            RetrievalError: the index is empty.
        """
        if k < 1:
            raise ConfigError(f"k is {k}", "ask for at least one clip")
        given: dict[str, Any] = {"text": query, "video": video, "audio": audio}
        given = {name: [value] for name, value in given.items() if value is not None}
        if not given:
            raise ConfigError("nothing to look for", "give a sentence, a video or a sound")
        if encoder is not None and weights is not None:
            raise ConfigError("both encoder and weights are given", "weights say which vectors are compared already")
        only = next(iter(given)) if len(given) == 1 else ""
        default = only if only in self.encoders else self.encoders[0]
        checked = check_weights(weights if weights is not None else {encoder or default: 1.0}, self.encoders)
        conditions = where.conditions() if where is not None else []
        if len(self) == 0:
            raise RetrievalError(f"the index {self.path} is empty", "add videos: eao index FOLDER --model MODEL")
        vector = self.embedder.embed(**given)[0]
        hits = search_store(self._store, vector, checked, k, conditions, exact)
        return explain_hits(self._store, vector, hits) if explain else hits

    def search_vector(
        self,
        vector: Floats,
        weights: Mapping[str, float],
        *,
        k: int = 10,
        where: Filter | None = None,
        explain: bool = False,
    ) -> list[Hit]:
        """`search` for a query that is embedded already; an empty index has no hits.

        Args:
            vector: (E,) unit norm, of the model that made the index.
            weights: encoder -> weight, of the vectors to compare with.
            k: see `search`.
            where: likewise.
            explain: likewise.

        Raises:
            ConfigError: vectors the index does not have, or conditions that nothing can fulfil.
        """
        conditions = where.conditions() if where is not None else []
        hits = search_store(self._store, vector, check_weights(weights, self.encoders), k, conditions)
        return explain_hits(self._store, vector, hits) if explain else hits

    def vectors(self, clip: str) -> dict[str, Floats]:
        """Encoder -> (E,) of a clip by id; empty if there is no such clip."""
        return self._store.vectors([clip]).get(clip, {})

    def states(self) -> dict[str, FileState]:
        """Every indexed file, and how it stood when it was indexed."""
        return self._store.files()

    def durations(self) -> dict[str, float]:
        """Seconds that each indexed file lasts."""
        return self._store.durations()

    def version(self) -> int | None:
        """Another number after every change, by whatever process; None if the store does not tell."""
        return self._store.version()

    async def asearch(
        self,
        query: str | None = None,
        *,
        video: str | Path | None = None,
        audio: str | Path | None = None,
        k: int = 10,
        encoder: str | None = None,
        weights: Mapping[str, float] | None = None,
        where: Filter | None = None,
        exact: bool = False,
        explain: bool = False,
    ) -> list[Hit]:
        """`search` in a thread, so that an event loop goes on meanwhile.

        Example:
            barking, singing = await asyncio.gather(index.asearch("a dog barks"), index.asearch("a bird sings"))
        """
        return await asyncio.to_thread(
            self.search,
            query,
            video=video,
            audio=audio,
            k=k,
            encoder=encoder,
            weights=weights,
            where=where,
            exact=exact,
            explain=explain,
        )

    def optimize(self, choice: Choice = "int8", reduce: int = 0, captions: str | Path | None = None) -> OptimizeReport:
        """Make the index smaller or quicker, and measure what that costs. See `eao.retrieval.optimize`.

        Args:
            choice: "fp16" halves the full vectors; "int8" and "pq" make an approximate index that chooses candidates,
                which are then ranked by the full vectors; "none" takes it away.
            reduce: choose candidates by vectors of this width, from a projection that is learned from the index.
            captions: CSV with the columns `file` and `caption`, to measure R@10 with.

        Raises:
            ConfigError: a width that is none.
            RetrievalError: too few clips to learn from, or something that the store cannot do.
        """
        read = None if captions is None else read_captions(captions)
        embed = (lambda texts: self.embedder.embed(text=texts)) if read is not None else None
        return optimize_store(self._store, choice, reduce, read, embed)

    def compact(self) -> None:
        """Free what removed and replaced clips still take on the disk."""
        self._store.compact()

    def stats(self) -> IndexStats:
        """What the index holds."""
        size = self._store.size()
        return IndexStats(
            clips=len(self._store),
            files=len(self._store.files()),
            embedding_dim=self.metadata.embedding_dim,
            encoders=self.encoders,
            layout=str(self._store.layout),
            unindexed=self._store.unindexed(),
            megabytes=None if size is None else size / 1e6,
            model=self.metadata.model,
        )

    def _add(self, files: Mapping[str, Opener], progress: ProgressCallback | None) -> AddReport:
        def write_metadata() -> None:
            # First, so that no table ever stands there without the name of its model.
            if not self._has_metadata:
                self._location.write(self.metadata)
                self._has_metadata = True

        with self._adding:
            return add_files(self._store, self.embedder, files, write_metadata, progress)


def _load(path: str | Path) -> Embedder:
    if "://" in str(path):
        raise RetrievalError(
            f"the model is that of a server, {path}", "open the index with model=eao.serve.client.connect(...)"
        )
    # By the public name, since what loads a bundle of engines stands above this layer.
    import eao

    return eao.load(path)
