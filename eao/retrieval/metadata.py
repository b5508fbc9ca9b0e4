"""`index.json`: which model made an index, and finding a model for one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pydantic

from eao.config import Config, FeaturesConfig
from eao.embedder import CLIP_ENCODERS, Embedder
from eao.errors import ConfigError, RetrievalError

logger = logging.getLogger(__name__)

METADATA = "index.json"
FORMAT = 2
DEMO_MODELS = (Path("runs/demo/bundle"), Path("runs/demo-quick/bundle"))
MODEL_VARIABLE = "EAO_MODEL"


class Metadata(pydantic.BaseModel):
    """`index.json`."""

    model_config = pydantic.ConfigDict(extra="ignore", protected_namespaces=())

    format: int
    model: str
    """Where the model was loaded from, absolute, or a server's address; empty if it was made in memory."""
    model_hash: str
    embedding_dim: pydantic.PositiveInt
    encoders: tuple[str, ...]
    """The vectors kept of each clip; the first is what a sentence is compared with."""
    config: Config

    def check_model(self, embedder: Embedder, location: str) -> None:
        """Refuse another model than the one that made the index.

        Raises:
            RetrievalError: its weights or its features differ.
        """
        given = describe(embedder)
        if (self.model_hash, self.embedding_dim) != (given.model_hash, given.embedding_dim):
            raise RetrievalError(
                f"{location} was made with the model {_name(self)}, not with {_name(given)}",
                "search with the model it was made with, or make another index",
            )
        if self.config.features.identity() != given.config.features.identity():
            raise RetrievalError(
                f"{location} holds other features than this model is set to extract "
                f"({_shown(self.config.features)}, not {_shown(given.config.features)})",
                "leave features.* as they were when the index was made",
            )


def describe(embedder: Embedder) -> Metadata:
    """The metadata of an index that this model makes.

    Raises:
        RetrievalError: the model cannot embed videos.
    """
    encoders = tuple(e for e in CLIP_ENCODERS if e in embedder.encoders)
    if not {"video-audio", "video"} & set(encoders):
        raise RetrievalError(
            f"the model {embedder.source or 'in memory'} has no encoder for videos",
            f"it offers {', '.join(embedder.encoders)}",
        )
    return Metadata(
        format=FORMAT,
        model=_full_source(embedder.source),
        model_hash=embedder.model_hash,
        embedding_dim=embedder.embedding_dim,
        encoders=encoders,
        config=embedder.config,
    )


def _full_source(source: str) -> str:
    """Absolute, unless the model is a server's, or was made in memory."""
    return source if "://" in source or not source else str(Path(source).absolute())


def parse_metadata(text: str, name: str) -> Metadata:
    """Metadata from JSON.

    Args:
        text: the JSON.
        name: what a message calls it.

    Raises:
        RetrievalError: it is damaged, or of another format.
    """
    try:
        values = json.loads(text)
        version = values["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(name, error) from None
    if version != FORMAT:
        raise RetrievalError(f"{name} has the format {version}, this version reads {FORMAT}", "build the index again")
    try:
        return Metadata.model_validate(values)
    except ValueError as error:  # pydantic's errors are ValueErrors
        raise _damaged(name, error) from None


def choose_model(given: str | Path | None, metadata: Metadata | None, inputs: Iterable[str | Path] = ()) -> str:
    """Where the model lies: as given, else that of the index, of the features, of the variable EAO_MODEL, or the one
    that `make demo` made below the working directory.

    Args:
        given: what the user named.
        metadata: of the index, if there is one.
        inputs: what is to be indexed; a folder of features may note the model it was extracted for.

    Raises:
        ConfigError: none of them says.
    """
    if given is not None:
        return str(given)
    if metadata is not None and metadata.model:
        return metadata.model
    for folder in map(Path, inputs):
        if is_features_folder(folder) and (noted := _noted_model(folder)):
            return noted
    if found := os.environ.get(MODEL_VARIABLE):
        return found
    for path in DEMO_MODELS:
        if path.is_dir():
            logger.warning("no model is named: taking the demo's, %s", path)
            return str(path.absolute())
    raise ConfigError("no model is named", f"give --model MODEL, set {MODEL_VARIABLE}, or run make demo here")


def is_features_folder(path: str | Path) -> bool:
    """Whether a folder was written by `eao extract`."""
    return "://" not in str(path) and (Path(path) / "features.yaml").is_file()


def _noted_model(folder: Path) -> str:
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {folder / 'source.json'}: {error}", "give --model MODEL") from None
    return str(source.get("model") or "") if isinstance(source, dict) else ""


def _damaged(name: str, error: Exception) -> RetrievalError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return RetrievalError(f"{name} is damaged: {reason}", "build the index again")


def _name(metadata: Metadata) -> str:
    return f"{metadata.model or 'in memory'} ({metadata.model_hash[:12]}, {metadata.embedding_dim}-d)"


def _shown(features: FeaturesConfig) -> str:
    streams: Iterator[str] = (f"{s.backbone} at {s.rate:g}/s" for s in (features.video_2d, features.video_3d) if s)
    return " and ".join(streams)
