"""The demo's data set: which clips there are, rendering the missing ones, and the captions file."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from eao.demo import render
from eao.demo.captions import MOTIONS, OPPOSITES, caption
from eao.demo.render import Clip, generator
from eao.demo.stamps import PACKAGE, Progress, Stamp, limit_splits, read_stamps, split_stamps
from eao.errors import DataError, EaoError, MissingDependencyError
from eao.files import write_json, write_text

logger = logging.getLogger(__name__)

LANGUAGES = ("fr", "es")
"""The language of the recorded voice: French, or Spanish for the few stamps without a French recording."""

# With the few stamps that have no recording at all this makes about a tenth.
_WITHOUT_AUDIO = 0.08
_WITH_EFFECT = 0.5


@dataclass(frozen=True)
class PlannedClip:
    """One clip of the data set, before it is rendered. `language` is None where nobody speaks."""

    clip: Clip
    stamp: Stamp
    split: str
    language: str | None
    gallery: bool

    @property
    def id(self) -> str:
        """The id of the clip in features and captions."""
        return f"{self.split}/{self.clip.id}"

    @property
    def file(self) -> str:
        """The video file, relative to the folder of the data set."""
        return f"videos/{self.id}.mp4"

    def record(self) -> dict[str, Any]:
        """The line of captions.jsonl."""
        return {
            "id": self.id,
            "file": self.file,
            "caption": caption(self.stamp.description, self.clip.motion),
            "description": self.stamp.description,
            "object": self.stamp.id,
            "noun": self.stamp.noun,
            "category": self.stamp.category,
            "motion": self.clip.motion,
            "split": self.split,
            "language": self.language,
            "gallery": self.gallery,
        }


@dataclass(frozen=True)
class DatasetSummary:
    """What `build_dataset` made.

    Attributes:
        root: the folder of the data set.
        captions: its captions file.
        objects: stamps by split.
        clips: clips by split.
        without_audio: clips without an audio stream.
        rendered: clips rendered now; the others were there already.
        seconds: how long it took.
        skipped: stamps that could not be rendered, with the reason.
    """

    root: Path
    captions: Path
    objects: dict[str, int]
    clips: dict[str, int]
    without_audio: int
    rendered: int
    seconds: float
    skipped: dict[str, str]


def build_dataset(
    root: Path,
    stamps_root: Path,
    limit_objects: int | None = None,
    seed: int = 0,
    workers: int = 2,
    progress: Progress | None = None,
) -> DatasetSummary:
    """Render the clips of all stamps into `root`, or those that are missing there, and write `captions.jsonl`.

    Two clips per stamp with different motions; in validation and test the two motions are opposite and one of the two
    clips is the gallery's. About a tenth of the clips has no audio stream. A stamp that cannot be read is left out with
    a warning.

    Args:
        root: receives videos/<split>/<id>.mp4, captions.jsonl, dataset.json and LICENSE-stamps.txt.
        stamps_root: the folder of the stamps, see `fetch_stamps`.
        limit_objects: train on about so many objects, validate on 40 and test on 108; None takes all.
        seed: of the split, the motions and everything random in the clips.
        workers: processes that render; 0 renders in this one.
        progress: called with (clips done, clips in all, name of the clip).

    Raises:
        DataError: there are no stamps, or `root` holds a data set of another seed or rendering.
        MissingDependencyError: an optional package is missing.
    """
    started = time.perf_counter()
    root = Path(root)
    stamps = read_stamps(stamps_root)
    if not stamps:
        raise DataError(f"{stamps_root} holds no stamp with a picture and an English description")
    splits = split_stamps(stamps, seed)
    if limit_objects is not None:
        splits = limit_splits(splits, limit_objects)
    _claim(root, seed)
    planned = plan(splits, seed)
    skipped, rendered = _render_all(root, planned, seed, workers, progress)
    for name, reason in skipped.items():
        logger.warning("stamp %s is left out: %s", name, reason)
    kept = [item for item in planned if item.stamp.id not in skipped]
    captions = root / "captions.jsonl"
    write_text(captions, "".join(json.dumps(item.record(), ensure_ascii=False) + "\n" for item in kept))
    _write_license(root, stamps_root)
    return DatasetSummary(
        root=root,
        captions=captions,
        objects=dict(Counter(split for split, _ in {(item.split, item.stamp.id) for item in kept})),
        clips=dict(Counter(item.split for item in kept)),
        without_audio=sum(not item.clip.has_audio for item in kept),
        rendered=rendered,
        seconds=time.perf_counter() - started,
        skipped=skipped,
    )


def plan(splits: dict[str, list[Stamp]], seed: int = 0) -> list[PlannedClip]:
    """The clips of every stamp: two motions each, drawn by seed and stamp."""
    return [item for split, stamps in splits.items() for stamp in stamps for item in _plan_stamp(stamp, split, seed)]


def _plan_stamp(stamp: Stamp, split: str, seed: int) -> Iterator[PlannedClip]:
    random = generator(seed, stamp.id)
    if split == "train":
        motions = [str(motion) for motion in random.choice(list(MOTIONS), size=2, replace=False)]
    else:
        motions = list(OPPOSITES[random.integers(len(OPPOSITES))])
        random.shuffle(motions)
    language = next((language for language in LANGUAGES if language in stamp.speech), None)
    for index, motion in enumerate(motions):
        silent, has_effect = random.random() < _WITHOUT_AUDIO, random.random() < _WITH_EFFECT
        # Where nobody speaks, the effect is all there is to hear.
        effect = stamp.effect if has_effect or language is None else None
        has_audio = not silent and (language is not None or effect is not None)
        speech = stamp.speech[language] if language is not None else None
        clip = Clip(f"{stamp.id}-{motion}", motion, speech, effect, has_audio)
        yield PlannedClip(clip, stamp, split, language if has_audio else None, split != "train" and index == 0)


def _render_all(
    root: Path, planned: list[PlannedClip], seed: int, workers: int, progress: Progress | None
) -> tuple[dict[str, str], int]:
    """Render what is missing; returns the stamps that failed with the reason, and the number of clips rendered."""
    _remove_leftovers(root / "videos")
    missing: dict[str, list[PlannedClip]] = {}
    for item in planned:
        if not (root / item.file).is_file():
            missing.setdefault(item.stamp.id, []).append(item)
    done, rendered, skipped = len(planned) - sum(map(len, missing.values())), 0, {}
    if progress is not None:
        progress(done, len(planned), "")
    jobs = [(root, items, seed) for items in missing.values()]
    results = _in_processes(jobs, workers) if workers > 0 and len(jobs) > 1 else map(_render_stamp, jobs)
    for items, reason in results:
        if reason is None:
            rendered += len(items)
        else:
            skipped[items[0].stamp.id] = reason
        done += len(items)
        if progress is not None:
            progress(done, len(planned), items[-1].id)
    return skipped, rendered


def _remove_leftovers(videos: Path) -> None:
    """Remove what a killed process left behind. A clip takes well under a minute, so younger ones may be another's."""
    for path in videos.glob("*/.*.tmp.mp4"):
        if time.time() - path.stat().st_mtime > 60:
            path.unlink(missing_ok=True)


_Job = tuple[Path, list[PlannedClip], int]
_Result = tuple[list[PlannedClip], str | None]


def _render_stamp(job: _Job) -> _Result:
    root, items, seed = job
    try:
        picture = render.load_picture(items[0].stamp.image)
        for item in items:
            render.render_clip(item.clip, picture, root / item.file, seed)
    except MissingDependencyError:
        raise
    except EaoError as error:
        return items, error.message
    return items, None


def _in_processes(jobs: list[_Job], workers: int) -> Iterator[_Result]:
    # Spawned, not forked: the parent may hold threads of torch. Few jobs are queued, so Ctrl-C ends within one of them.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    waiting = iter(jobs)
    running: set[Future[_Result]] = {pool.submit(_render_stamp, job) for job in islice(waiting, 2 * workers)}
    try:
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(_render_stamp, job) for job in islice(waiting, len(finished))}
            for future in finished:
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides, and a clip under way is finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that is killed tells nobody, and the workers would wait for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _claim(root: Path, seed: int) -> None:
    """Mark `root` as a data set of this seed and rendering, or refuse one made otherwise."""
    made_as = {
        "seed": seed,
        "size": render.SIZE,
        "fps": render.FPS,
        "seconds": render.SECONDS,
        "motions": list(MOTIONS),
    }
    mark = root / "dataset.json"
    if not mark.is_file():
        write_json(mark, made_as)
        return
    try:
        there = json.loads(mark.read_text(encoding="utf-8"))
    except ValueError:
        there = None
    if there != made_as:
        raise DataError(
            f"{root} holds a data set made with other settings: {there}", "choose another folder or delete this one"
        )


def _write_license(root: Path, stamps_root: Path) -> None:
    """The stamps' licence, which the clips inherit."""
    target = root / "LICENSE-stamps.txt"
    package = next((path for path in Path(stamps_root).resolve().parents if path.name == "share"), None)
    source = package / "doc" / PACKAGE / "copyright" if package is not None else None
    text = "The clips are derived from the Tux Paint stamps (tuxpaint.org), GNU General Public License, version 2.\n"
    if source is not None and source.is_file():
        text += "\n" + source.read_text(encoding="utf-8", errors="replace")
    write_text(target, text)
