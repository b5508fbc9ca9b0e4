"""The authors' checkpoints and configuration files, read without running anything that is in them."""

from eao.authors.pth import AuthorsFile, read_pth
from eao.authors.schema import is_authors
from eao.authors.translate import (
    KNOWN,
    Translation,
    read_authors_config,
    translate_config,
    translate_evaluation,
    translate_training,
)

__all__ = [
    "KNOWN",
    "AuthorsFile",
    "Translation",
    "is_authors",
    "read_authors_config",
    "read_pth",
    "translate_config",
    "translate_evaluation",
    "translate_training",
]
