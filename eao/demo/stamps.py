"""The Tux Paint stamps: fetching the Debian package, reading its pictures, texts and speech, splitting the objects."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eao.demo.captions import clean_description, noun
from eao.errors import DataError, MissingDependencyError
from eao.files import atomic_path

logger = logging.getLogger(__name__)

PACKAGE = "tuxpaint-stamps-default"
INSTALLED = Path("/usr/share/tuxpaint/stamps")
SPLITS = ("train", "validation", "test")

Progress = Callable[[int, int, str], None]

# Letters and digits come in hundreds that differ by one glyph, signs and faces have no name but their meaning, and
# coins and notes differ by a number that cannot be read at this size.
DROPPED_FOLDERS = ("symbols/alphabets", "symbols/math", "symbols/money", "symbols/faces")

_INSIDE_PACKAGE = Path("usr/share/tuxpaint/stamps")
_HINT = (
    f"install or unpack the Debian package {PACKAGE} (packages.debian.org/{PACKAGE}) and pass the folder that holds "
    "animals, food, ... with --stamps DIR"
)


@dataclass(frozen=True)
class Stamp:
    """One picture with its words.

    Attributes:
        id: the path inside the package with "-" for "/", lower-case: "animals-mammals-bovines-bull".
        image: the PNG or SVG file.
        description: what it shows, in English, without a closing mark: "A bull".
        noun: the head noun of the description, singular: "bull".
        category: the top folder: "animals".
        subcategory: the folders below it: "mammals/bovines", or "".
        speech: recordings of the description by language: {"fr": .../bull_desc_fr.ogg}.
        effect: the sound it makes, if there is one.
    """

    id: str
    image: Path
    description: str
    noun: str
    category: str
    subcategory: str
    speech: dict[str, Path]
    effect: Path | None


def fetch_stamps(cache: Path, stamps: Path | None = None, progress: Progress | None = None) -> Path:
    """The folder of the stamps: `stamps` if given, else the installed one, else the package unpacked in `cache`.

    Nothing is installed: the Debian package is downloaded with `apt-get download` and unpacked with `dpkg-deb -x`, as
    any user. An unpacked cache is used again; an interrupted download goes on where it stopped.

    Args:
        cache: the folder that keeps the unpacked package.
        stamps: the user's own copy: the folder of the stamps, or one of a package unpacked there.
        progress: called with (bytes so far, bytes in all, name) while the package is downloaded.

    Raises:
        DataError: `stamps` holds no stamps, or the download failed.
        MissingDependencyError: there is neither an installed copy nor apt-get and dpkg-deb.
    """
    if stamps is not None:
        return _validated(Path(stamps))
    cache = Path(cache).absolute()  # the tools below run in folders of their own
    unpacked = cache / PACKAGE
    for folder in (INSTALLED, unpacked / _INSIDE_PACKAGE):
        if _holds_stamps(folder):
            return folder
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingDependencyError(
                f"the Tux Paint stamps are not installed, and there is no {tool} to fetch them", _HINT
            )
    download = cache / "download"
    download.mkdir(parents=True, exist_ok=True)
    package = _download(download, progress or (lambda done, total, name: None))
    # The folder appears under its name only when it is complete, so an interrupted unpacking is done again.
    with atomic_path(unpacked) as folder:
        _run(["dpkg-deb", "-x", str(package), str(folder)], download)
    shutil.rmtree(download)
    return _validated(unpacked / _INSIDE_PACKAGE)


def read_stamps(root: Path) -> list[Stamp]:
    """Every usable stamp below `root`, by id.

    A stamp is usable when it has a picture (PNG, else SVG) and an English text that names what it shows (see
    `clean_description`), and lies in none of `DROPPED_FOLDERS`.

    Raises:
        DataError: `root` holds no stamps.
    """
    root = _validated(Path(root))
    found: dict[str, Stamp] = {}
    for text in sorted(root.rglob("*.txt")):
        relative = text.relative_to(root).with_suffix("")
        if relative.as_posix().startswith(tuple(f"{folder}/" for folder in DROPPED_FOLDERS)) or len(relative.parts) < 2:
            continue
        image = next((path for path in (text.with_suffix(".png"), text.with_suffix(".svg")) if path.is_file()), None)
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        description = clean_description(lines[0]) if lines else None
        if image is None or description is None:
            continue
        name = "-".join(relative.parts).lower().replace(" ", "_")
        if name in found:
            logger.warning("two stamps share the name %s: %s is left out", name, image)
            continue
        prefix = f"{text.stem}_desc_"
        speech = {path.stem.removeprefix(prefix): path for path in sorted(text.parent.glob(f"{text.stem}_desc_*.ogg"))}
        effect = next((path for path in (text.with_suffix(".ogg"), text.with_suffix(".wav")) if path.is_file()), None)
        category, *below = relative.parts[:-1]
        found[name] = Stamp(name, image, description, noun(description), category, "/".join(below), speech, effect)
    return list(found.values())


def split_stamps(
    stamps: Iterable[Stamp], seed: int = 0, test: float = 0.18, validation: float = 0.09
) -> dict[str, list[Stamp]]:
    """The stamps by split ("train", "validation", "test"): test objects are unseen while their categories are not.

    Objects with the same noun stay in one split. In every category about the share `test` and `validation` of the
    objects is set aside, drawn by a hash of seed and noun; nouns with more than four objects always train. A category
    none of whose objects would train trains whole. In validation and test no two objects have the same description: of
    such, the first by id stays and the others are left out, as a caption could not tell them apart.

    Returns:
        Disjoint lists, each ordered by the hash of seed and id, so that the first n are a random choice.
    """
    groups: dict[str, list[Stamp]] = defaultdict(list)
    for stamp in stamps:
        groups[stamp.noun].append(stamp)
    sizes = Counter(group[0].category for group in groups.values() for _ in group)
    taken: dict[str, Counter[str]] = {"test": Counter(), "validation": Counter()}
    shares = {"test": test, "validation": validation}
    splits: dict[str, list[Stamp]] = {name: [] for name in SPLITS}
    for key in sorted(groups, key=lambda key: _hash(seed, key)):
        category, size = groups[key][0].category, len(groups[key])
        free = (
            name
            for name in shares
            if size <= 4 and taken[name][category] + size <= round(shares[name] * sizes[category])
        )
        chosen = next(free, "train")
        if chosen != "train":
            taken[chosen][category] += size
        splits[chosen] += groups[key]
    trained = {stamp.category for stamp in splits["train"]}
    for name in shares:
        untrained = {stamp.noun for stamp in splits[name] if stamp.category not in trained}
        splits["train"] += [stamp for stamp in splits[name] if stamp.noun in untrained]
        splits[name] = _distinct([stamp for stamp in splits[name] if stamp.noun not in untrained])
    return {name: sorted(chosen, key=lambda stamp: _hash(seed, stamp.id)) for name, chosen in splits.items()}


def limit_splits(
    splits: dict[str, list[Stamp]], train: int, validation: int = 40, test: int = 108
) -> dict[str, list[Stamp]]:
    """At most so many objects of each split, a subset of the full ones, in which every category left still trains."""
    chosen = list(splits["train"][:train])
    rest = splits["train"][train:]
    for split, count in (("validation", validation), ("test", test)):
        for category in {stamp.category for stamp in splits[split][:count]} - {stamp.category for stamp in chosen}:
            chosen += [stamp for stamp in rest if stamp.category == category][:1]
    return {"train": chosen, "validation": splits["validation"][:validation], "test": splits["test"][:test]}


def _distinct(stamps: Sequence[Stamp]) -> list[Stamp]:
    first: dict[str, Stamp] = {}
    for stamp in sorted(stamps, key=lambda stamp: stamp.id):
        first.setdefault(stamp.description.lower(), stamp)
    return list(first.values())


def _hash(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()


def _holds_stamps(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("*/**/*.txt"), None) is not None


def _validated(folder: Path) -> Path:
    for candidate in (folder / _INSIDE_PACKAGE, folder / "stamps", folder):
        if _holds_stamps(candidate):
            return candidate
    raise DataError(f"{folder} holds no Tux Paint stamps (folders of .png or .svg files, each with a .txt)", _HINT)


def _download(folder: Path, progress: Progress) -> Path:
    # As root, apt hands the download to a user who may not write into the cache.
    options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    try:
        _run(["apt-get", *options, "download", PACKAGE], folder, progress)
    except DataError as first:
        # The package lists may be missing or old. A private copy leaves the system's alone and needs no rights.
        logger.info("%s; trying once more with fresh package lists", first.message)
        lists, archives = folder / "lists", folder / "archives"
        for path in (lists, archives):
            (path / "partial").mkdir(parents=True, exist_ok=True)
        options += ["-o", f"Dir::State::Lists={lists.resolve()}", "-o", f"Dir::Cache={archives.resolve()}"]
        _run(["apt-get", *options, "update"], folder)
        _run(["apt-get", *options, "download", PACKAGE], folder, progress)
    package = next(folder.glob(f"{PACKAGE}_*.deb"), None)
    if package is None:
        raise DataError(f"apt-get left no {PACKAGE} package in {folder}", _HINT)
    return package


def _package_size(folder: Path) -> int:
    answer = subprocess.run(["apt-cache", "show", PACKAGE], cwd=folder, capture_output=True, text=True, check=False)
    sizes = [line.split()[1] for line in answer.stdout.splitlines() if line.startswith("Size: ")]
    return int(sizes[0]) if sizes else 0


def _run(command: list[str], folder: Path, progress: Progress | None = None) -> None:
    total = _package_size(folder) if progress is not None and shutil.which("apt-cache") else 0
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if progress is not None and total:
                    progress(min(total, sum(path.stat().st_size for path in folder.glob("*.deb"))), total, PACKAGE)
                time.sleep(0.2)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = next((line for line in lines if line.startswith(("E:", "dpkg-deb: error"))), "no reason given")
        raise DataError(f"{' '.join(command[:1])} could not fetch {PACKAGE}: {reason}", _HINT)
    if progress is not None and total:
        progress(total, total, PACKAGE)
