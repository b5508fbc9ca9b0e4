"""Embeddings from a Triton Inference Server, in place of engines on this machine.

Example:
    model = connect("triton://localhost:8001")
    Index("index", model).search("a dog barks")
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from eao.config import Config, TextConfig, override_config, parse_config
from eao.data.text import TextEncoder, build_text_encoder
from eao.embedder import Embedder
from eao.errors import ConfigError, DataError, ServingError
from eao.evaluation.metrics import unit_norm
from eao.export.encoders import MEL_BANDS
from eao.export.runtime import batch_feeds
from eao.model.batch import Batch
from eao.serve.client_connection import Address, Connection
from eao.serve.client_memory import Region, Regions, place
from eao.serve.client_models import ENSEMBLE, OUTPUT, ServedModel, choose_encoders
from eao.yaml_text import parse_yaml

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures

# B rows, E embedding, D width of frame features, N frames, T spectrogram frames

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray]

_IN_FLIGHT = 8
"""Requests of one call that are under way at once: enough to fill the server's batches."""
_SENT = {"f": np.float32, "b": np.bool_, "i": np.int64, "u": np.int64, "O": object, "S": object, "U": object}
_TRITON_DTYPES = {"f": "FP32", "b": "BOOL", "i": "INT64", "O": "BYTES"}


def connect(
    address: str,
    overrides: Iterable[str] = (),
    device: str = "cpu",
    timeout: float = 30.0,
    retries: int = 4,
    shared_memory: bool = False,
) -> Embedder:
    """A server's encoders as a model that embeds, with everything that `eao.load` gives.

    Videos and sounds become features on this machine; sentences are sent as they are to the server, which holds the
    text encoder. Whoever overrides `data.text.path` has sentences encoded here instead.

    Args:
        address: `triton://host:port` (gRPC), `triton+grpc://...` or `triton+http://...`.
        overrides: settings to change as key=value.
        device: for the feature extractor.
        timeout, retries, shared_memory: see `TritonClient`.

    Raises:
        ConfigError: no such address, an unknown setting, or one of `model.*`, which the server's engines fix.
        ServingError: no server is there, or it has no encoders.
        MissingDependencyError: tritonclient is not installed.

    Example:
        >>> connect("triton://localhost:8001").embed(text="a dog barks").shape  # doctest: +SKIP
        (1, 1024)
    """
    changes = list(overrides)
    client = TritonClient(address, timeout, retries, shared_memory)
    try:
        backend = TritonBackend(client, words_here=any(c.startswith("data.text.path=") for c in changes))
        config = override_config(backend.config, changes)
        if config.model != backend.config.model:
            raise ConfigError(
                f"model.* of {client.address} cannot be changed: its engines are compiled",
                "change the checkpoint, and export it again",
            )
    except BaseException:
        client.close()
        raise
    return Embedder(backend, address, config, device)


class TritonClient:
    """Requests to a server's encoders and ensembles, from any number of threads and event loops.

    Rows beyond the server's `max_batch_size` are split over several requests, which are under way together.

    Args:
        address: `triton://host:port` (gRPC), `triton+grpc://...` or `triton+http://...`.
        timeout: seconds that one request may take.
        retries: further attempts after a lost or refused connection or an overloaded server, with growing waits; four
            take 1.5 s. What the server refuses as wrong is not sent again.
        shared_memory: hand tensors over in the system's shared memory, to a server on this machine.

    Raises:
        ConfigError: no such address.
        MissingDependencyError: tritonclient is not installed.

    Example:
        with TritonClient("triton://localhost:8001") as client:
            rows = client.embed("embed-text", {"sentence": np.array([["a dog"], ["a cat"]], dtype=object)})

        async with TritonClient("triton+http://localhost:8000") as client:
            one, other = await asyncio.gather(client.aembed("text", few), client.aembed("text", more))
    """

    def __init__(self, address: str, timeout: float = 30.0, retries: int = 4, shared_memory: bool = False) -> None:
        self.address = str(Address.parse(address))
        self._connection = Connection(Address.parse(address), timeout, retries)
        self._regions = Regions(self._connection) if shared_memory else None
        self._models: dict[str, ServedModel] = {}

    def models(self) -> dict[str, ServedModel]:
        """The models that are ready and give embeddings, by name.

        Raises:
            ServingError: the server does not answer.
        """
        return self._connection.run(self._list())

    def embed(self, model: str, inputs: Arrays) -> Floats:
        """Embed rows by a model of the server.

        Args:
            model: an encoder, such as "text", or an ensemble, such as "embed-text".
            inputs: by name, arrays of B rows: float32, bool or int64, or objects (str or bytes) for sentences.

        Returns:
            (B, E) float32, unit norm.

        Raises:
            DataError: the server refuses the inputs, as by their names, shapes or types.
            ServingError: the server or the model is not there, fails, or takes too long.
        """
        return self._connection.run(self._embed(model, inputs))

    async def aembed(self, model: str, inputs: Arrays) -> Floats:
        """As `embed`, for asyncio."""
        return await self._connection.arun(self._embed(model, inputs))

    def embed_each(self, model: str, rows: Sequence[Arrays]) -> Floats:
        """Embed rows whose shapes differ, each by a request of its own, several under way at once.

        Args:
            model: see `embed`.
            rows: of each row, arrays whose first axis has one element.

        Returns:
            (B, E) float32, unit norm.
        """
        return self._connection.run(self._gather(model, rows))

    def close(self) -> None:
        """Give back shared memory and close the connection. May be called twice; done at the interpreter's end."""
        if self._regions is not None:
            self._regions.close()
        self._connection.close()

    def __enter__(self) -> TritonClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> TritonClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    async def _list(self) -> dict[str, ServedModel]:
        index = await self._connection.request(lambda c: c.get_model_repository_index(**self._connection.as_json))
        entries = index["models"] if isinstance(index, dict) else index
        ready = sorted({entry["name"] for entry in entries if entry.get("state") == "READY"})
        found = await asyncio.gather(*map(self._describe, ready))
        self._models = {model.name: model for model in found if model is not None}
        return dict(self._models)

    async def _describe(self, name: str) -> ServedModel | None:
        answer = await self._connection.request(lambda c: c.get_model_config(name, **self._connection.as_json), name)
        return ServedModel.parse(answer.get("config", answer))

    async def _known(self, name: str) -> ServedModel:
        if name not in self._models:
            found = await self._describe(name)
            if found is None:
                raise ServingError(f"the model {name!r} of {self.address} gives no embeddings", "name an encoder")
            self._models[name] = found
        return self._models[name]

    async def _embed(self, model: str, inputs: Arrays) -> Floats:
        size = (await self._known(model)).max_batch_size
        rows = len(next(iter(inputs.values()))) if inputs else 0
        starts = range(0, rows, size) if 0 < size < rows else [0]
        stop = size or rows
        return await self._gather(model, [{n: a[i : i + stop] for n, a in inputs.items()} for i in starts])

    async def _gather(self, model: str, requests: Sequence[Arrays]) -> Floats:
        await self._known(model)
        slots = asyncio.Semaphore(_IN_FLIGHT)

        async def one(arrays: Arrays) -> Floats:
            async with slots:
                return await self._infer(model, arrays)

        tasks = [asyncio.ensure_future(one(arrays)) for arrays in requests]
        try:
            return unit_norm(np.concatenate(await asyncio.gather(*tasks)))
        except BaseException:
            for task in tasks:
                task.cancel()
            raise

    async def _infer(self, model: str, arrays: Arrays) -> Floats:
        arrays = {name: _as_sent(name, array) for name, array in arrays.items()}
        if self._regions is not None and all(array.dtype != object for array in arrays.values()) and arrays:
            return await self._infer_shared(self._regions, model, arrays)
        inputs = [self._input(name, array).set_data_from_numpy(array) for name, array in arrays.items()]
        outputs = [self._connection.api.InferRequestedOutput(OUTPUT)]
        result = await self._connection.request(lambda c: c.infer(model, inputs, outputs=outputs), model)
        return result.as_numpy(OUTPUT)

    async def _infer_shared(self, regions: Regions, model: str, arrays: Arrays) -> Floats:
        offsets, end = place(arrays)
        shape = (len(next(iter(arrays.values()))), self._models[model].embedding_dim)
        size = 4 * shape[0] * shape[1]

        async def work(region: Region) -> Floats:
            inputs = []
            for name, array in arrays.items():
                region.write(array, offsets[name])
                tensor = self._input(name, array)
                tensor.set_shared_memory(region.name, array.nbytes, offsets[name])
                inputs.append(tensor)
            output = self._connection.api.InferRequestedOutput(OUTPUT)
            output.set_shared_memory(region.name, size, end)
            await self._connection.request(lambda c: c.infer(model, inputs, outputs=[output]), model)
            return region.read(shape, end)

        return await regions.use(end + size, work)

    def _input(self, name: str, array: NDArray) -> Any:
        return self._connection.api.InferInput(name, list(array.shape), _TRITON_DTYPES[array.dtype.kind])


class TritonBackend:
    """The encoders of a server as an `eao.backend.Backend`.

    Args:
        client: of the server.
        words_here: whether sentences are encoded on this machine even where the server has an ensemble for them.

    Raises:
        ServingError: the server does not answer, has no encoders, or those of several models.
    """

    def __init__(self, client: TritonClient, words_here: bool = False) -> None:
        self.client = client
        self._words_here = words_here
        self._models = client.models()
        self._encoders = choose_encoders(self._models, client.address)
        parameters = next(iter(self._encoders.values())).parameters
        self.model_hash = parameters["model_sha256"]
        self.config = _parse_config(parameters["config"], client.address)

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders that were ready when the client connected."""
        return tuple(self._encoders)

    def encode(self, batch: Batch, encoder: str) -> Floats:
        """Embeddings of a batch: (B, E) float32, unit norm.

        Raises:
            ConfigError: the server has no such encoder.
            DataError: the batch lacks an input, or has one in a shape or type that the encoder does not take.
            ServingError: see `TritonClient.embed`.
        """
        if encoder not in self._encoders:
            raise ConfigError(
                f"{self.client.address} has no encoder {encoder!r}", f"it has {', '.join(self._encoders)}"
            )
        return self.run(encoder, batch_feeds(batch, self._encoders[encoder].inputs, encoder))

    def run(self, encoder: str, feeds: Arrays) -> Floats:
        """Run one encoder on arrays that are known to fit, as `eao.export.runtime.Bundle.run`."""
        if self._encoders[encoder].max_batch_size:
            feeds = {name: array[:, None] if array.ndim == 1 else array for name, array in feeds.items()}
        return self.client.embed(encoder, feeds)

    def text_encoder(self, config: TextConfig) -> TextEncoder:
        """As `eao.data.text.build_text_encoder`: the server's own files do not come with it."""
        return build_text_encoder(config)

    def encode_sentences(
        self, sentences: Sequence[str], clips: Sequence[ClipFeatures] | None, encoder: str
    ) -> Floats | None:
        """Embeddings from sentences as they are, and features of clips, by the server's ensemble.

        Returns:
            (B, E) float32, unit norm; None if the words are encoded here.

        Raises:
            DataError: the server refuses a sentence, as one without a known word.
            ServingError: see `TritonClient.embed`.
        """
        ensemble = self._models.get(f"{ENSEMBLE}{encoder}")
        if ensemble is None or self._words_here:
            return None
        rows: list[dict[str, NDArray]] = [{"sentence": np.array([[s]], dtype=object)} for s in sentences]
        if clips is None:
            return self.client.embed(ensemble.name, {"sentence": np.concatenate([row["sentence"] for row in rows])})
        names = {spec.name for spec in ensemble.inputs}
        for row, clip in zip(rows, clips, strict=True):
            sound = np.zeros((MEL_BANDS, 0), np.float32) if clip.audio is None else clip.audio
            given = {"video_2d": clip.video_2d, "video_3d": clip.video_3d, "log_mel": sound}
            row |= {name: array[None] for name, array in given.items() if name in names and array is not None}
        return self.client.embed_each(ensemble.name, rows)


def _as_sent(name: str, array: NDArray) -> NDArray:
    """In the types that models take."""
    if array.dtype.kind not in _SENT:
        raise DataError(f"the input {name} is {array.dtype}", "give float32, bool or int64, or objects for sentences")
    return np.ascontiguousarray(array, dtype=_SENT[array.dtype.kind])


def _parse_config(text: str, server: str) -> Config:
    source = f"the configuration that {server} gives"
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ServingError(f"{source} is damaged: {error}", "write its repository again") from None
    return parse_config(values, source)
