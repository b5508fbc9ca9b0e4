"""From many video files to features on disk, resumable.

The layout on disk, read by `eao.data.folder` and `eao.retrieval.features`:

    features.yaml     the configuration; another one is refused
    manifest.jsonl    a line for each finished clip: id, file, its bytes, start, end, duration, rows of each stream,
                      captions
    failed.jsonl      a line for each file that gave no features: file, kind, reason; tried again by the next run
    captions.jsonl    id and caption of each clip, where a list or subtitles give some
    source.json       the model whose features these are, if one was named
    <id>_2d.npz       `features` (n, d) float16; likewise <id>_3d.npz
    <id>_spec.npz     `arr_0` (40, T) float16; absent when the clip has no sound

The id of a file is its path below the input folder without the suffix, for example `cooking/0001`; the clips that are
cut out of it are called `cooking/0001/000000` and so on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eao.config import FeaturesConfig
from eao.errors import ConfigError, MediaError
from eao.features.extractor import FeatureExtractor
from eao.features.inputs import Source, find_sources
from eao.features.pipeline import Options, extract_side_by_side
from eao.features.store import FeatureStore, Record

Progress = Callable[[int, int, str], None]
"""Called after each file with (done, total, id)."""


@dataclass(frozen=True)
class ExtractionReport:
    """What a run of `extract_folder` did, or would do.

    Attributes:
        extracted: ids of the clips that were extracted (of the files that would be, for a dry run).
        skipped: ids that were there already.
        failed: {"file", "kind", "reason"} of each file that gave no features.
        seconds: wall-clock time.
    """

    extracted: list[str]
    skipped: list[str]
    failed: list[dict[str, str]]
    seconds: float


def extract_folder(
    inputs: Sequence[str | Path],
    out: str | Path,
    config: FeaturesConfig,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    dry_run: bool = False,
    options: Options | None = None,
    extractor: FeatureExtractor | None = None,
    model: str | None = None,
    ray: str | None = None,
) -> ExtractionReport:
    """Extract the features of all clips in `inputs` into the folder `out`.

    The run can be broken off at any time, also by `kill -9`, and repeated. Finished files are skipped, unless they have
    another size now; those that failed are tried again. In the end the folder holds what an undisturbed run would have
    written (on a CPU, byte for byte). Files that cannot be read are noted in `failed.jsonl`; the rest goes on.

    Args:
        inputs: files, folders, patterns, lists and URLs, see `find_sources`.
        out: the folder to write.
        config: which features.
        device: a torch device for the network.
        progress: called after each file.
        dry_run: only say what would be done; nothing is written or decoded.
        options: how files are cut into clips, and how the work is done.
        extractor: a loaded extractor of the same configuration to use again.
        model: the checkpoint whose features these are, noted for `eao index`.
        ray: address of a Ray cluster that does the work; "" for the running one, or one that is started here; None =
            without Ray. The output must be a folder that all its machines share.

    Raises:
        DataError: for no clips, clashing ids, an output that another run is writing, or a disk that takes no more.
        ConfigError: if `out` holds features of another configuration, a backbone is unknown, or there is nothing to
            extract.
        MissingDependencyError: if weights of a network or an optional package are not installed.
    """
    begin = time.perf_counter()
    options = options or Options()
    extractor = extractor if extractor is not None else FeatureExtractor(config, device)
    if extractor.config != config:
        raise ConfigError("the extractor was built for another features configuration", "give both the same one")
    if not (extractor.streams or config.audio):
        raise ConfigError("no features are asked for", "choose one or more of features.video_2d, video_3d and audio")
    sources = find_sources(inputs, audio_only=not extractor.streams)
    store = FeatureStore(Path(out), config, options.rule, extractor.fingerprints())
    done = store.finished(sources)
    todo = [source for source in sources if source.id not in done]
    skipped = sorted(clip_id for ids in done.values() for clip_id in ids)
    if dry_run:
        return ExtractionReport([source.id for source in todo], skipped, [], time.perf_counter() - begin)
    if not (todo or store.has_changed):
        return ExtractionReport([], skipped, [], time.perf_counter() - begin)
    extracted: list[str] = []
    failed: list[dict[str, str]] = []
    with store.writing(sources, model), _records(todo, extractor, store, options, ray) as results:
        for count, (source, result) in enumerate(results, start=1):
            if isinstance(result, MediaError):
                failure = {"file": source.name, "kind": result.kind, "reason": " ".join(result.message.split())}
                failed.append(failure)
                store.add_failure(failure)
            else:
                extracted += store.note(result)
            if progress is not None:
                progress(count, len(todo), source.id)
    failed.sort(key=lambda failure: failure["file"])
    return ExtractionReport(sorted(extracted), skipped, failed, time.perf_counter() - begin)


@contextlib.contextmanager
def _records(
    todo: Sequence[Source], extractor: FeatureExtractor, store: FeatureStore, options: Options, ray: str | None
) -> Iterator[Iterator[tuple[Source, list[Record] | MediaError]]]:
    """The lines of each file's clips, whose arrays are written; or why it has none."""
    if not todo:
        yield iter(())
    elif ray is not None:
        from eao.features.ray_pipeline import extract_on_ray

        with extract_on_ray(todo, extractor, store.folder, options, ray) as results:
            yield results
    else:
        extractor.load()  # missing weights are to be noticed before the first clip is decoded
        with extract_side_by_side(todo, extractor, store.work, options) as results:
            yield (
                (source, found if isinstance(found, MediaError) else store.write(source, found))
                for source, found in results
            )
