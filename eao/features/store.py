"""Features on disk: which clips are finished, and adding one so that a broken-off run leaves no half of it.

A run that was killed at any moment and is then repeated ends with the same bytes as one that was left alone. So nothing
that is written depends on the order of the work or on the clock: lines are sorted at the end, and what a killed run
left underway lies in `.work`, which the next run empties.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from eao.config import FeaturesConfig
from eao.data.folder import KEYS, SUFFIXES
from eao.errors import ConfigError, DataError
from eao.features.inputs import Source
from eao.features.journal import append_lines, disk_errors, format_line, read_lines
from eao.features.lists import same_place
from eao.features.segments import ClipRule, Segment
from eao.files import recover, write_json, write_text

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures

CONFIG_FILE = "features.yaml"
MANIFEST_FILE = "manifest.jsonl"
FAILED_FILE = "failed.jsonl"
CAPTIONS_FILE = "captions.jsonl"
SOURCE_FILE = "source.json"
WORK_FOLDER = ".work"
_LOCK_FILE = ".lock"

Record = dict[str, Any]


class FeatureStore:
    """The output folder of an extraction.

    A clip is finished when its line stands in the manifest, which is written after its arrays, and all arrays that the
    line names exist. So every moment at which a run can be broken off leaves a folder that is right as far as it goes.

    Args:
        folder: need not exist.
        config: of the features that are there or will be.
        rule: how files are cut into clips; None to read whatever is there.
        weights: fingerprints of the networks, by stream; None not to compare them.

    Attributes:
        records: the lines of the manifest by id.

    Raises:
        ConfigError: if the folder holds features of another configuration, other weights or another rule.
        DataError: if it cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        config: FeaturesConfig,
        rule: ClipRule | None = None,
        weights: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.rule = rule
        self.weights = weights
        self.records: dict[str, Record] = {}
        self.has_changed = False
        self._replaced: set[str] = set()
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file, not a folder", "give another output folder")
        self._check_config()
        for record in read_lines(folder / MANIFEST_FILE):
            if isinstance(record.get("id"), str):
                self.records[record["id"]] = record
        # A file of somebody else's is left alone.
        self._had_captions = any("captions" in record for record in self.records.values())

    def finished(self, sources: Iterable[Source]) -> dict[str, list[str]]:
        """The clips of the sources that need no work, by id of the source.

        Sources that have moved are noted under their new place, and captions that a list has changed are taken over. A
        file that has another size than when it was extracted is another file: the clips of the old one go when writing
        begins.

        Raises:
            DataError: if an id belongs to another file, which still exists: two sources would be mixed up.
        """
        groups: dict[str, list[Record]] = {}
        files: dict[str, list[Record]] = {}
        for record in self.records.values():
            files.setdefault(str(record.get("file")), []).append(record)
            if "clips" in record:
                groups.setdefault(record["id"].rpartition("/")[0], []).append(record)
        done = {}
        for source in sources:
            records = self._records_of(source, groups)
            cut = [] if source.parts else groups.get(source.id, [])
            for record in [*records, *cut]:
                self._check_place(record, source)
            replaced = [r for r in [*files.get(source.name, []), *records, *cut] if _is_of_another_size(r, source)]
            self._replaced |= {record["id"] for record in replaced}
            if not replaced and records and all(self._is_complete(record) for record in records):
                done[source.id] = [record["id"] for record in records]
                self._take_over(source, records)
        return done

    @contextlib.contextmanager
    def writing(self, sources: Sequence[Source], model: str | None = None) -> Iterator[None]:
        """Hold the folder for writing. At the end everything is put in order.

        Args:
            sources: all sources of this run; failures that an earlier run noted for them are forgotten.
            model: the checkpoint whose features these are, noted in `source.json` for `eao index`.

        Raises:
            DataError: if another run holds the folder, or it cannot be written.
        """
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / _LOCK_FILE).open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(
                    f"another run is writing to {self.folder}", "wait for it, or give another output folder"
                ) from None
            with disk_errors(self.folder):
                self._begin(sources, model)
            try:
                yield
            finally:
                with disk_errors(self.folder):
                    self._finish()

    @property
    def work(self) -> Path:
        """A folder for what is underway, emptied when a run begins and removed when it ends."""
        return self.folder / WORK_FOLDER

    def write(self, source: Source, clips: Sequence[tuple[Segment, ClipFeatures]]) -> list[Record]:
        """Write the arrays of a file's clips, each atomically. Returns the lines for `note`."""
        with disk_errors(self.folder):
            return write_clips(self.folder, source, clips, self.rule)

    def note(self, records: Sequence[Record]) -> list[str]:
        """Add lines whose arrays are written. Returns the ids."""
        with disk_errors(self.folder):
            append_lines(self.folder / MANIFEST_FILE, records)
        self.records |= {record["id"]: record for record in records}
        return [record["id"] for record in records]

    def add_failure(self, failure: Mapping[str, str]) -> None:
        """Note a file that could not be read: its `file`, the `kind` of failure and the `reason`."""
        with disk_errors(self.folder):
            append_lines(self.folder / FAILED_FILE, [dict(failure)])

    def _records_of(self, source: Source, groups: Mapping[str, list[Record]]) -> list[Record]:
        """All lines of a source; none if one is lacking."""
        if source.parts:
            found = [self.records.get(part.id, {}) for part in source.parts]
            asked = [[part.start, part.end] for part in source.parts]
            return found if [record.get("part") for record in found] == asked else []
        if self.rule is None or self.rule.kind == "whole":
            return [self.records[source.id]] if source.id in self.records else []
        found = groups.get(source.id, [])
        return found if all(record["clips"] == len(found) for record in found) else []

    def _check_place(self, record: Record, source: Source) -> None:
        before = str(record.get("file", ""))
        if before == source.name or same_place(before, source.name):
            return
        if source.is_remote or Path(before).is_file():
            raise DataError(
                f"{self.folder} holds the clip {record['id']!r} of {before}, not of {source.name}",
                "give another output folder",
            )

    def _is_complete(self, record: Record) -> bool:
        return all(
            record.get(kind) is None or clip_path(self.folder, record["id"], kind).is_file() for kind in SUFFIXES
        )

    def _take_over(self, source: Source, records: Sequence[Record]) -> None:
        captions = {part.id: part.captions for part in source.parts} or {source.id: source.captions}
        for record in records:
            new: Record = {"id": record["id"], "file": source.name} | _bytes(source)
            given = _captions(captions[record["id"]]) if record["id"] in captions else {}
            if any(record.get(key) != value for key, value in (new | given).items()):
                # In the order in which a clip that is extracted now has them.
                self.records[record["id"]] = new | {k: v for k, v in record.items() if k not in new} | given
                self.has_changed = True

    def _begin(self, sources: Sequence[Source], model: str | None) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        for name in (CONFIG_FILE, MANIFEST_FILE, FAILED_FILE, CAPTIONS_FILE, SOURCE_FILE):
            recover(self.folder / name)
        write_text(self.folder / CONFIG_FILE, yaml.safe_dump(self._description(), sort_keys=False))
        if model is not None:
            write_json(self.folder / SOURCE_FILE, {"model": model})
        for clip_id in sorted(self._replaced):
            _remove_arrays(self.folder, clip_id)
            del self.records[clip_id]
        self._replaced.clear()
        # A line that was torn when an earlier run was killed must not be continued by the next.
        self._write_manifest()
        given = {source.name for source in sources}
        kept = [record for record in read_lines(self.folder / FAILED_FILE) if record.get("file") not in given]
        self._write_lines(FAILED_FILE, kept)

    def _finish(self) -> None:
        self._write_manifest()
        failed = sorted(read_lines(self.folder / FAILED_FILE), key=lambda record: str(record.get("file")))
        if failed:
            self._write_lines(FAILED_FILE, failed)
        else:
            (self.folder / FAILED_FILE).unlink()
        captions = [
            {"id": clip_id, "caption": caption}
            for clip_id in sorted(self.records)
            for caption in self.records[clip_id].get("captions", ())
        ]
        if captions:
            self._write_lines(CAPTIONS_FILE, captions)
        elif self._had_captions:
            (self.folder / CAPTIONS_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def _description(self) -> dict[str, Any]:
        """What `features.yaml` says: the configuration, and what else decides what the clips hold."""
        description = self.config.identity()
        if self.rule is not None and self.rule.kind != "whole":
            description["clips"] = str(self.rule)
        if self.weights:
            description["weights"] = dict(self.weights)
        return description

    def _check_config(self) -> None:
        path = self.folder / CONFIG_FILE
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if (self.folder / MANIFEST_FILE).exists():
                raise ConfigError(
                    f"{self.folder} holds features, but no {CONFIG_FILE} says which", "give another output folder"
                ) from None
            return
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"cannot read {path}: {' '.join(str(error).split())}", "give another output folder"
            ) from None
        if not isinstance(found, dict):
            raise ConfigError(f"{path} says nothing of features", "give another output folder")
        wanted = self._description()
        compared = set(wanted) | set(found)
        if self.rule is None:
            compared.discard("clips")
        if self.weights is None or "weights" not in found:
            compared.discard("weights")
        defaults = FeaturesConfig().identity()  # for keys that an older version did not write
        for key in sorted(compared):
            there, here = found.get(key, defaults.get(key)), wanted.get(key)
            if there != here:
                raise ConfigError(
                    f"{self.folder} holds features of another configuration: {key} is {there} there, {here} here",
                    f"give another folder, or what {path} says; eao extract --model MODEL takes what it was trained on",
                )

    def _write_manifest(self) -> None:
        self._write_lines(MANIFEST_FILE, [self.records[clip_id] for clip_id in sorted(self.records)])

    def _write_lines(self, name: str, records: Iterable[Record]) -> None:
        write_text(self.folder / name, "".join(format_line(record) for record in records))


def clip_path(folder: Path, clip_id: str, kind: str) -> Path:
    """Where an array of a clip lies."""
    return folder / f"{clip_id}{SUFFIXES[kind]}"


def write_clips(
    folder: Path, source: Source, clips: Sequence[tuple[Segment, ClipFeatures]], rule: ClipRule | None
) -> list[Record]:
    """Write the arrays of a file's clips, each atomically; safe in many processes at once. Returns their lines."""
    parts = {part.id: [part.start, part.end] for part in source.parts}
    records = []
    for segment, features in clips:
        record: Record = {"id": segment.id, "file": source.name, **_bytes(source)}
        record |= {"start": segment.start, "end": segment.end}
        record["duration"] = round(segment.end - segment.start, 3)
        for kind in SUFFIXES:
            array = getattr(features, kind)
            path = clip_path(folder, segment.id, kind)
            record[kind] = None
            if array is None:
                path.unlink(missing_ok=True)
                continue
            record[kind] = int(array.shape[1] if kind == "audio" else array.shape[0])
            _write_array(folder / WORK_FOLDER, path, KEYS[kind], array)
        if segment.id in parts:
            record["part"] = parts[segment.id]
        elif rule is not None and rule.kind != "whole":
            record["clips"] = len(clips)  # by this the next run knows whether the file is complete
        record |= _captions(segment.captions)
        records.append(record)
    if not parts and rule is not None and rule.kind != "whole":
        # Of a longer file that was here before, when a run was killed before it could note them.
        beyond = len(clips)
        while _remove_arrays(folder, f"{source.id}/{beyond:06d}"):
            beyond += 1
    return records


def _remove_arrays(folder: Path, clip_id: str) -> bool:
    """Whether there were any."""
    paths = [path for path in (clip_path(folder, clip_id, kind) for kind in SUFFIXES) if path.is_file()]
    for path in paths:
        path.unlink()
    return bool(paths)


def _write_array(work: Path, path: Path, key: str, array: np.ndarray) -> None:
    temporary = work / f"{uuid.uuid4().hex}.npz"
    with temporary.open("wb") as file:
        np.savez(file, **{key: array.astype(np.float16)})  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, path)


def _is_of_another_size(record: Record, source: Source) -> bool:
    return source.size is not None and record.get("bytes", source.size) != source.size


def _bytes(source: Source) -> Record:
    return {} if source.size is None else {"bytes": source.size}


def _captions(captions: Sequence[str]) -> Record:
    return {"captions": list(captions)} if captions else {}
