"""Where engines that were built on this machine are kept."""

from __future__ import annotations

import os
from pathlib import Path


def engine_cache() -> Path:
    """`$XDG_CACHE_HOME/eao/engines`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eao" / "engines"
