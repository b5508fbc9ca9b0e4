"""From many video files to features on disk, resumable.

The layout on disk, read by `eao.data.folder`:

    features.yaml     the configuration; another one is refused
    manifest.jsonl    a line for each finished clip: id, file, start, end, duration, rows of each stream
    failed.jsonl      a line for each file that could not be read: file, reason; tried again by the next run
    <id>_2d.npz       `features` (n, d) float16; likewise <id>_3d.npz
    <id>_spec.npz     `arr_0` (40, T) float16; absent when the clip has no sound

The id of a clip is its path below the input folder without the suffix, for example `cooking/0001`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eao.config import FeaturesConfig
from eao.errors import ConfigError, MediaError
from eao.features.extractor import FeatureExtractor
from eao.features.inputs import find_clips
from eao.features.pipeline import extract_side_by_side
from eao.features.store import FeatureStore

Progress = Callable[[int, int, str], None]
"""Called after each clip with (done, total, id)."""


@dataclass(frozen=True)
class ExtractionReport:
    """What a run of `extract_folder` did, or would do.

    Attributes:
        extracted: ids of the clips that were extracted (of those that would be, for a dry run).
        skipped: ids that were there already.
        failed: {"file", "reason"} of each file that could not be read.
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
    workers: int | None = None,
    extractor: FeatureExtractor | None = None,
) -> ExtractionReport:
    """Extract the features of all clips in `inputs` into the folder `out`.

    The run can be broken off at any time and repeated: finished clips are skipped, files that failed are tried again.
    Files that cannot be read are written to `failed.jsonl`, and the rest goes on.

    Args:
        inputs: files and folders, see `find_clips`.
        out: the folder to write.
        config: which features.
        device: a torch device for the network.
        progress: called after each clip.
        dry_run: only say what would be done; nothing is written or decoded.
        workers: clips at a time; by default as many as torch has threads, which they share.
        extractor: a loaded extractor of the same configuration to use again.

    Raises:
        DataError: for no clips, clashing ids, an output that another run is writing, or a disk that takes no more.
        ConfigError: if `out` holds features of another configuration, or a backbone is unknown.
        MissingDependencyError: if the weights of the network are not installed.
    """
    begin = time.perf_counter()
    extractor = extractor if extractor is not None else FeatureExtractor(config, device)
    if extractor.config != config:
        raise ConfigError("the extractor was built for another features configuration", "give both the same one")
    clips = find_clips(inputs, audio_only=not extractor.streams)
    store = FeatureStore(Path(out), config)
    done = store.finished(clips)
    todo = {clip_id: path for clip_id, path in clips.items() if clip_id not in done}
    if dry_run or not (todo or store.has_moved_clips):
        return ExtractionReport(list(todo), sorted(done), [], time.perf_counter() - begin)
    if extractor.streams and todo:
        extractor.load()  # missing weights are to be noticed before the first clip is decoded
    extracted: list[str] = []
    failed: list[dict[str, str]] = []
    with store.writing(clips), extract_side_by_side(todo, extractor, workers) as results:
        for clip_id, result in results:
            if isinstance(result, MediaError):
                reason = " ".join(result.message.split())
                failed.append({"file": str(todo[clip_id]), "reason": reason})
                store.add_failure(todo[clip_id], reason)
            else:
                store.add(clip_id, todo[clip_id], result)
                extracted.append(clip_id)
            if progress is not None:
                progress(len(extracted) + len(failed), len(todo), clip_id)
    return ExtractionReport(sorted(extracted), sorted(done), failed, time.perf_counter() - begin)
