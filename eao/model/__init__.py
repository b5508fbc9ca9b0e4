"""The model in every published variant."""

from eao.model.batch import ENCODERS, MODALITIES, PAIRS, SUMS, Batch, encoder_modalities
from eao.model.model import EverythingAtOnce, build_model

__all__ = ["ENCODERS", "MODALITIES", "PAIRS", "SUMS", "Batch", "EverythingAtOnce", "build_model", "encoder_modalities"]
