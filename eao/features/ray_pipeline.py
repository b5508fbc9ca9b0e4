"""The pipeline on a Ray cluster, with Ray Data: each actor extracts a block of files and writes their arrays.

Only the driver writes the manifest, when an actor reports a block as done. An actor that dies is started again and its
block repeated, with the same bytes. The output, the inputs and the weights must lie where all machines see them under
one path, and `eao` must be installed on all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao.config import FeaturesConfig
from eao.errors import DataError, EaoError, MediaError, missing_dependency
from eao.features.decoder import DecoderPool
from eao.features.extractor import STREAMS, FeatureExtractor
from eao.features.inputs import Part, Source
from eao.features.pipeline import Options, extract_side_by_side
from eao.features.store import WORK_FOLDER, Record, disk_errors, write_clips

if TYPE_CHECKING:
    import numpy as np

_LARGEST_BLOCK = 16  # files that an actor takes at a time, and that are repeated when it dies
_BLOCKS_PER_ACTOR = 4  # at the least, so that none is idle while another has much left
_STARTS = 3
_MOST_ATTEMPTS = (
    4  # at a block whose actor died: Ray itself repeats it without end, and a file may be what kills actors
)


@contextlib.contextmanager
def extract_on_ray(
    sources: Sequence[Source], extractor: FeatureExtractor, folder: Path, options: Options, address: str
) -> Iterator[Iterator[tuple[Source, list[Record] | MediaError]]]:
    """Like `extract_side_by_side`, but the arrays are written: gives an iterator over (source, lines or why not).

    Args:
        sources: the files.
        extractor: says what is extracted; its networks are loaded by the actors.
        folder: the output.
        options: how; `workers` is for each actor.
        address: of the cluster; "" for the running one, or one that is started on this machine.

    Raises:
        DataError: the cluster cannot be reached, an actor cannot write, or a block failed again and again.
        MissingDependencyError: Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing_dependency("ray", "ray", "extraction on a cluster") from None
    started = not ray.is_initialized()
    if started:
        connect(address)
    try:
        yield _results(sources, extractor, folder, options)
    finally:
        if started:
            ray.shutdown()


def connect(address: str, **options: Any) -> None:
    """Find the cluster, or start one, for which Ray waits 30 s: too little for a machine with much else to do.

    Args:
        address: of a cluster; empty: one on this machine is started.
        options: of `ray.init`.

    Raises:
        DataError: there is none at the address, or none can be started.
    """
    import ray

    for attempt in range(_STARTS):
        try:
            ray.init(address=address or None, log_to_driver=False, logging_level=logging.WARNING, **options)
            return
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            if "timed out during startup" in str(error) and attempt + 1 < _STARTS:
                continue
            raise DataError(
                f"the Ray cluster {address or 'of this machine'} cannot be used: {error}", "look at it with: ray status"
            ) from None


class Actor:
    """What runs on the cluster: networks and decoders that stay from block to block.

    Args:
        config: the features, as JSON.
        device: of the networks; "cuda" is the GPU that Ray gives the actor.
        folder: the output.
        options: how.
    """

    def __init__(self, config: str, device: str, folder: str, options: Options) -> None:
        self.extractor = FeatureExtractor(FeaturesConfig.model_validate_json(config), device)
        self.extractor.load()
        self.folder = Path(folder)
        self.options = options
        self.pool = DecoderPool(options.workers or 1, options.limits)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Extract the files of a batch: sources in, results out, both as JSON."""
        sources = [read_source(text) for text in batch["source"]]
        attempts = self.folder / WORK_FOLDER / f"block-{_digest(batch['source'])}"
        try:
            if count_attempt(attempts) > _MOST_ATTEMPTS:
                results = [_given_up(source, len(sources)) for source in sources]
            else:
                results = list(self._extract(sources))
            attempts.unlink(missing_ok=True)
        except EaoError as error:  # nothing of one file: the driver ends the job with it
            results = [{"id": "", "fatal": {"message": error.message, "hint": error.hint}}]
        return {"result": [json.dumps(result) for result in results]}

    def _extract(self, sources: Sequence[Source]) -> Iterator[dict[str, Any]]:
        work = self.folder / WORK_FOLDER
        with extract_side_by_side(sources, self.extractor, work, self.options, self.pool) as found:
            for source, clips in found:
                if isinstance(clips, MediaError):
                    yield _failure(source, clips)
                else:
                    with disk_errors(self.folder):
                        records = write_clips(self.folder, source, clips, self.options.rule)
                    yield {"id": source.id, "records": records}


def count_attempt(path: Path) -> int:
    """Note that a block was begun; how often it was, this time included.

    Raises:
        DataError: the note cannot be written.
    """
    with disk_errors(path.parent), path.open("ab") as file:
        file.write(b".")
        return file.tell()


def _failure(source: Source, error: MediaError) -> dict[str, Any]:
    return {"id": source.id, "failure": {"message": error.message, "hint": error.hint, "kind": error.kind}}


def _given_up(source: Source, files: int) -> dict[str, Any]:
    reason = f"{source.name}: the process that extracted it and {files - 1} other files died {_MOST_ATTEMPTS} times"
    return _failure(source, MediaError(reason, "run again: they are then put together in another way", "crashed"))


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def read_source(text: str) -> Source:
    """A source from its JSON."""
    values = json.loads(text)
    parts = tuple(Part(**{**part, "captions": tuple(part["captions"])}) for part in values.pop("parts"))
    return Source(**{**values, "parts": parts, "captions": tuple(values["captions"])})


def _results(
    sources: Sequence[Source], extractor: FeatureExtractor, folder: Path, options: Options
) -> Iterator[tuple[Source, list[Record] | MediaError]]:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    on_gpu = extractor.device != "cpu"
    actors = max(1, int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1)))
    per_block = max(1, min(_LARGEST_BLOCK, math.ceil(len(sources) / (_BLOCKS_PER_ACTOR * actors))))
    items = [{"source": json.dumps(asdict(source))} for source in sources]
    dataset = ray.data.from_items(items, override_num_blocks=math.ceil(len(items) / per_block)).map_batches(
        Actor,
        fn_constructor_kwargs={
            "config": _with_absolute_weights(extractor.config).model_dump_json(),
            "device": "cuda" if on_gpu else "cpu",
            "folder": str(folder.absolute()),
            "options": replace(options, rule=options.rule.absolute()),
        },
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
    )
    waiting = {source.id: source for source in sources}
    try:
        for row in dataset.iter_rows():
            result = json.loads(row["result"])
            if "fatal" in result:
                raise DataError(**result["fatal"])
            source = waiting.pop(result["id"])
            yield source, MediaError(**result["failure"]) if "failure" in result else result["records"]
    except ray.exceptions.RayError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"the Ray job failed: {reason}", "run again to go on; ray status tells of the cluster"
        ) from error
    if waiting:
        raise DataError(f"{len(waiting)} files never came back from the Ray cluster", "run again to go on")


def _with_absolute_weights(config: FeaturesConfig) -> FeaturesConfig:
    """The configuration for a process with another working folder."""
    streams = {name: getattr(config, name) for name in STREAMS}
    for name, stream in streams.items():
        if stream is not None and stream.weights is not None:
            streams[name] = stream.model_copy(update={"weights": str(Path(stream.weights).absolute())})
    return config.model_copy(update=streams)
