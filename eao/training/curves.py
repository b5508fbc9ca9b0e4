"""The learning-curve picture of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eao.errors import install_extra
from eao.files import atomic_path

if TYPE_CHECKING:
    from eao.training.records import EpochRecord

logger = logging.getLogger(__name__)


def plot_curves(
    records: Sequence[EpochRecord], path: str | Path, tasks: Sequence[str] = ("t2v", "t2va", "t2a")
) -> bool:
    """Draw loss and validation R@10 over epochs into a PNG.

    Returns:
        False, with a warning, if matplotlib is not installed: a picture is no reason to lose a training run.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no learning curve drawn, for want of matplotlib: %s", install_extra("demo"))
        return False
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, recall = figure.subplots(1, 2)
    trained = [r for r in records if r.loss is not None]
    epochs = [r.epoch for r in trained]
    loss.plot(epochs, [r.loss for r in trained], color="black", label="total")
    for term in trained[-1].terms if trained else ():
        loss.plot(epochs, [r.terms.get(term, float("nan")) for r in trained], alpha=0.6, label=term)
    loss.set(xlabel="epoch", ylabel="training loss")
    loss.legend(fontsize="small")
    validated = [r for r in records if r.validation]
    for task in tasks:
        points = [(r.epoch, r.validation[task]["R10"]) for r in validated if task in r.validation]
        if points:
            recall.plot(*zip(*points, strict=True), marker=".", label=task)
    recall.set(xlabel="epoch", ylabel="validation R@10 (%)", ylim=(0, 100))
    if recall.lines:
        recall.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return True
