"""Where an index lies: a folder, object storage, a Milvus server, or a file of Milvus Lite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eao.data.storage import Storage
from eao.errors import RetrievalError
from eao.retrieval.clips import ClipStore
from eao.retrieval.metadata import METADATA, Metadata, parse_metadata


class Location:
    """An index by its address.

    Args:
        address: a folder; a URL of object storage, such as `s3://bucket/index`; `milvus://host:port/collection`, or the
            same with http or https; or a file ending in `.db`, for Milvus Lite.
    """

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        scheme = self.address.partition("://")[0] if "://" in self.address else ""
        self.is_milvus = scheme in ("milvus", "http", "https") or (not scheme and self.address.endswith(".db"))

    def __str__(self) -> str:
        return self.address

    def read(self) -> Metadata | None:
        """The metadata of the index, None if there is none.

        Raises:
            RetrievalError: they are damaged, or cannot be reached.
        """
        if self.is_milvus:
            from eao.retrieval.milvus_client import Notes, connect

            text = Notes(*connect(self.address), self.address).read(METADATA) if self._may_exist() else None
            return None if text is None else parse_metadata(text, f"the note {METADATA} of {self}")
        storage = Storage(self.address)
        name = storage.name(METADATA)
        try:
            return parse_metadata(storage.read(METADATA).decode("utf-8"), name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RetrievalError(f"{name} cannot be read: {error}", "check it, or build the index again") from None

    def write(self, metadata: Metadata) -> None:
        """Put the metadata there, unless they are there."""
        if self.is_milvus:
            from eao.retrieval.milvus_client import Notes, connect

            Notes(*connect(self.address), self.address).write({METADATA: metadata.model_dump_json()})
            return
        storage = Storage(self.address)
        if storage.size(METADATA) is None:
            storage.write_text(METADATA, metadata.model_dump_json(indent=2) + "\n")

    def open(self, encoders: Sequence[str], dim: int) -> ClipStore:
        """The clips.

        Args:
            encoders: whose vectors are kept.
            dim: width of a vector.

        Raises:
            MissingDependencyError: the package that reads it is not installed.
        """
        if self.is_milvus:
            from eao.retrieval.milvus import MilvusClips

            return MilvusClips(self.address, encoders, dim)
        from eao.retrieval.table import ClipTable

        return ClipTable(self.address, encoders, dim)

    def _may_exist(self) -> bool:
        # Milvus Lite makes the file when it is opened.
        return "://" in self.address or Path(self.address).exists()
