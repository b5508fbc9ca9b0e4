"""From features and sentences to batches."""

from eao.model.batch import Batch

__all__ = ["Batch"]
