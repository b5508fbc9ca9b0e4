"""Inputs that the ranges of 8-bit engines are chosen from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from numpy.typing import NDArray

from eao.export.cases import parity_cases
from eao.export.encoders import Model, input_specs
from eao.export.runtime import batch_feeds
from eao.model import Batch, encoder_modalities

CALIBRATION_CLIPS = 256
"""Clips that are read, at most."""
CALIBRATION_SEED = 1_000_000
"""Of the cases, so that they are others than those of the proof."""


def first_clips(batches: Iterable[Batch], most: int) -> tuple[Batch, ...]:
    """Batches of the first `most` clips; what comes after them is not read."""
    found: list[Batch] = []
    left = most
    for batch in batches:
        found.append(batch[:left])
        left -= len(found[-1])
        if left <= 0:
            break
    return tuple(found)


class Samples:
    """Inputs of encoders from real clips, read once however many encoders ask.

    Args:
        model: whose encoders.
        batches: real clips; read when they are first needed.
    """

    def __init__(self, model: Model, batches: Iterable[Batch]) -> None:
        self.model = model
        self.batches = batches
        self._read: tuple[Batch, ...] | None = None

    def feeds(self, encoder: str) -> list[Mapping[str, NDArray]]:
        """Cases of parity made of real clips' tokens, then the clips one by one; nothing if no clip has all inputs.

        Whole clips alone would leave the ranges of short, masked and missing inputs to luck.
        """
        if self._read is None:
            self._read = first_clips(self.batches, CALIBRATION_CLIPS)
        needed = encoder_modalities(encoder)
        specs = input_specs(self.model, encoder)
        usable = [batch.only(needed) for batch in self._read if set(needed) <= set(batch.modalities)]
        if not usable:
            return []
        cases = [case.batch for case in parity_cases(self.model, encoder, CALIBRATION_SEED, usable)]
        clips = [batch[i : i + 1] for batch in usable for i in range(len(batch))]
        return [batch_feeds(batch, specs, encoder) for batch in (*cases, *clips)]
