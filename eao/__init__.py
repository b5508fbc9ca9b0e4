"""The multi-modal fusion transformer of "Everything at Once": from raw videos to a search service.

Example:
    >>> import eao
    >>> model = eao.load("runs/demo/best")  # doctest: +SKIP
    >>> model.embed(text=["a dog barks"]).shape  # doctest: +SKIP
    (1, 6144)

Everything public is listed here and imported on first use, so that `import eao` itself loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eao.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EaoError,
    ExportError,
    MediaError,
    MissingDependencyError,
    RetrievalError,
)

if TYPE_CHECKING:
    from eao.api import load
    from eao.config import Config, load_config
    from eao.embedder import Embedder
    from eao.model.batch import Batch
    from eao.retrieval.index import Index

    __version__: str

__all__ = [
    "Batch",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "EaoError",
    "Embedder",
    "ExportError",
    "Index",
    "MediaError",
    "MissingDependencyError",
    "RetrievalError",
    "__version__",
    "load",
    "load_config",
]

_HOMES = {
    "Batch": "eao.model.batch",
    "Config": "eao.config",
    "Embedder": "eao.embedder",
    "Index": "eao.retrieval.index",
    "load": "eao.api",
    "load_config": "eao.config",
}


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        from importlib.metadata import version

        value = version("eao")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'eao' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
