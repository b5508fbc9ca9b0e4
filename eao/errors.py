"""Errors that are the user's to mend: the command line prints them in one line and exits with code 2.

Each message says what is wrong, naming the file or key, and `hint` says what to do next. A bug raises anything else and
keeps its traceback.
"""

from __future__ import annotations

from typing import Literal

MediaKind = Literal[
    "missing",
    "unreadable",
    "not-media",
    "no-video-stream",
    "no-sound",
    "no-frames",
    "truncated",
    "damaged",
    "too-large",
    "too-long",
    "unsupported-codec",
    "crashed",
    "stalled",
    "download",
    "subtitles",
    "no-clips",
]
"""Why a media file gave no features, for programs: `unreadable` is what is no plain file or may not be read, `crashed`
and `stalled` are what happened to the process that decoded it, `no-clips` is a file none of whose clips lie in it."""


class EaoError(Exception):
    """Base of every error that a user can mend.

    Args:
        message: what is wrong, with the file, key or value that is at fault.
        hint: the next step, shown on a second line.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n     {self.hint}" if self.hint else self.message


class ConfigError(EaoError):
    """A configuration file or override is wrong."""


class CheckpointError(EaoError):
    """A checkpoint cannot be read, or does not fit the model."""


class DataError(EaoError):
    """A data set, feature file or caption file is wrong."""


class MediaError(EaoError):
    """A video or audio file cannot be decoded.

    Args:
        message: as for `EaoError`.
        hint: likewise.
        kind: the reason in one word, the same for all files that fail in this way.
        at: seconds up to which the file is sound, if that is known; of truncated files.
    """

    def __init__(self, message: str, hint: str = "", kind: MediaKind = "damaged", at: float | None = None) -> None:
        super().__init__(message, hint)
        self.kind: MediaKind = kind
        self.at = at


class ExportError(EaoError):
    """An encoder cannot be exported, or a bundle cannot be used."""


class ParityError(ExportError):
    """An engine does not agree with its model: a gate that failed, not bad input."""


class RetrievalError(EaoError):
    """An index is missing, damaged, or does not fit the model."""


class ServingError(EaoError):
    """A server cannot be started or reached, or does not have what is asked of it."""


class MissingDependencyError(EaoError):
    """An optional package is not installed."""


def install_extra(extra: str) -> str:
    """How to install what an extra brings. The name eao on PyPI is another project's, so never by name.

    Example:
        >>> install_extra("index")
        "pip install -e '.[index]' in eao's source folder"
    """
    return f"pip install -e '.[{extra}]' in eao's source folder"


def missing_dependency(package: str, extra: str, purpose: str) -> MissingDependencyError:
    """The error for an optional import that failed.

    Example:
        >>> str(missing_dependency("lancedb", "index", "the search index")).splitlines()[0]
        'the search index needs the package lancedb, which is not installed'
    """
    return MissingDependencyError(
        f"{purpose} needs the package {package}, which is not installed",
        install_extra(extra),
    )
