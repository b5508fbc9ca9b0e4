"""Features on disk: which clips are finished, and adding one so that a broken-off run leaves no half of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from eao.config import FeaturesConfig
from eao.data.folder import KEYS, SUFFIXES
from eao.errors import ConfigError, DataError
from eao.files import atomic_path, write_text

if TYPE_CHECKING:
    from eao.features.extractor import ClipFeatures

CONFIG_FILE = "features.yaml"
MANIFEST_FILE = "manifest.jsonl"
FAILED_FILE = "failed.jsonl"
_LOCK_FILE = ".lock"


class FeatureStore:
    """The output folder of an extraction.

    A clip is finished when its line stands in the manifest, which is written after its arrays, and all arrays that the
    line names exist. So every moment at which a run can be broken off leaves a folder that is right as far as it goes.

    Raises:
        ConfigError: if the folder holds features of another configuration.
    """

    def __init__(self, folder: Path, config: FeaturesConfig) -> None:
        self.folder = folder
        self.config = config
        self.records: dict[str, dict[str, Any]] = {}
        self.has_moved_clips = False
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file, not a folder", "give another output folder")
        self._check_config()
        for record in _read_lines(folder / MANIFEST_FILE):
            if isinstance(record.get("id"), str):
                self.records[record["id"]] = record

    def finished(self, clips: Mapping[str, Path]) -> set[str]:
        """The ids among `clips` that need no work. Clips whose file has moved since are noted under their new path.

        Raises:
            DataError: if an id belongs to another file, which still exists: two sources would be mixed up.
        """
        done = set()
        for clip_id in clips.keys() & self.records.keys():
            record = self.records[clip_id]
            source = Path(str(record.get("file", "")))
            if source != clips[clip_id] and source.is_file() and not source.samefile(clips[clip_id]):
                raise DataError(
                    f"{self.folder} holds the clip {clip_id!r} of {source}, not of {clips[clip_id]}",
                    "give another output folder",
                )
            if all(record.get(kind) is None or self._path(clip_id, kind).is_file() for kind in SUFFIXES):
                done.add(clip_id)
                if source != clips[clip_id]:
                    record["file"] = str(clips[clip_id])
                    self.has_moved_clips = True
        return done

    @contextlib.contextmanager
    def writing(self, clips: Mapping[str, Path]) -> Iterator[None]:
        """Hold the folder for writing. At the end the manifest and the list of failures are put in order.

        Args:
            clips: all clips of this run; failures that an earlier run noted for them are forgotten.

        Raises:
            DataError: if another run holds the folder, or it cannot be written.
        """
        with _disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / _LOCK_FILE).open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(
                    f"another run is writing to {self.folder}", "wait for it, or give another output folder"
                ) from None
            with _disk_errors(self.folder):
                config = yaml.safe_dump(self.config.identity(), sort_keys=False)
                write_text(self.folder / CONFIG_FILE, config)
                # A line that was torn when an earlier run was killed must not be continued by the next.
                self._write_manifest()
                given = {str(path) for path in clips.values()}
                kept = [r for r in _read_lines(self.folder / FAILED_FILE) if r.get("file") not in given]
                self._write_lines(FAILED_FILE, kept)
                for leftover in self.folder.rglob(".*.tmp.npz"):  # of a run that was killed
                    leftover.unlink(missing_ok=True)
            try:
                yield
            finally:
                with _disk_errors(self.folder):
                    self._write_manifest()
                    if not (self.folder / FAILED_FILE).stat().st_size:
                        (self.folder / FAILED_FILE).unlink()

    def add(self, clip_id: str, source: Path, features: ClipFeatures) -> None:
        """Write one clip: its arrays first, each atomically, then its line in the manifest."""
        with _disk_errors(self.folder):
            record: dict[str, Any] = {"id": clip_id, "file": str(source), "start": 0.0}
            record["end"] = record["duration"] = round(features.duration, 3)
            for kind in SUFFIXES:
                array = getattr(features, kind)
                path = self._path(clip_id, kind)
                record[kind] = None
                if array is None:
                    path.unlink(missing_ok=True)
                    continue
                record[kind] = int(array.shape[1] if kind == "audio" else array.shape[0])
                with atomic_path(path) as temporary:
                    np.savez(temporary, **{KEYS[kind]: array.astype(np.float16)})
            self.records[clip_id] = record
            _append_line(self.folder / MANIFEST_FILE, record)

    def add_failure(self, source: Path, reason: str) -> None:
        """Note a file that could not be read."""
        with _disk_errors(self.folder):
            _append_line(self.folder / FAILED_FILE, {"file": str(source), "reason": reason})

    def _path(self, clip_id: str, kind: str) -> Path:
        return self.folder / f"{clip_id}{SUFFIXES[kind]}"

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
        wanted = self.config.identity()
        if found != wanted:
            known = found if isinstance(found, dict) else {}
            differing = [key for key in wanted if wanted[key] != known.get(key)]
            detail = (
                f": {differing[0]} is {known.get(differing[0])} there, {wanted[differing[0]]} here" if differing else ""
            )
            raise ConfigError(
                f"{self.folder} holds features of another configuration{detail}",
                f"give another output folder, or the configuration in {path}",
            )

    def _write_manifest(self) -> None:
        self._write_lines(MANIFEST_FILE, [self.records[clip_id] for clip_id in sorted(self.records)])

    def _write_lines(self, name: str, records: list[dict[str, Any]]) -> None:
        write_text(self.folder / name, "".join(_line(record) for record in records))


def _line(record: dict[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False) + "\n"
    # File names that are not UTF-8 can only be written with escapes.
    return text if text.isascii() or _encodes(text) else json.dumps(record) + "\n"


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _append_line(path: Path, record: dict[str, Any]) -> None:
    """Append in a single write, so that at worst the last line is torn."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, _line(record).encode("utf-8"))
    finally:
        os.close(descriptor)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a torn last line is passed over, any other damage is an error."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check its permissions") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number != len(lines):
            raise DataError(f"{path}:{number} is no JSON object", "remove that line: its clip is extracted again")
    return records


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A full disk ends the run with one clear line: it must not count as a failure of every clip that follows."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to {folder}: {error.strerror or error}",
            "make room or check permissions, then run again to go on",
        ) from None
