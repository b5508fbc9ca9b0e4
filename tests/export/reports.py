"""Made-up parity reports."""

from __future__ import annotations

import math

import numpy as np

from eao.export.bisect import Divergence, LayerError
from eao.export.parity import EncoderParity, ParityReport, compare
from eao.export.parity_report import BundleParity
from eao.export.ranking import compare_rankings
from eao.export.thresholds import THRESHOLDS


def made_up(noise: float, precision: str, engine: str = "onnxruntime", seed: int = 0) -> ParityReport:
    """A report of two encoders, and of rankings of 15 clips, whose embeddings are off by some noise."""
    rng = np.random.default_rng(seed)
    by_model = {name: rng.standard_normal((15, 6)) for name in ("text", "video")}
    by_engine = {name: rows + noise * rng.standard_normal(rows.shape) for name, rows in by_model.items()}
    encoders = {}
    for name, rows in by_model.items():
        figures = compare(rows, by_engine[name])
        cases = {"batch 3, long, full": figures, "clips": figures}
        encoders[name] = EncoderParity(
            encoder=name,
            figures=figures.model_copy(update={"worst_case": "clips"}),
            batch_invariance=1.0,
            cases=cases,
        )
    return ParityReport(
        engine=engine,
        precision=precision,
        thresholds=THRESHOLDS[precision].limits(),
        encoders=encoders,
        rankings=compare_rankings(by_model, by_engine),
    )


def make_parity() -> BundleParity:
    """An engine that holds, one that fails and was bisected, and one that could not run, but whose graph holds."""
    worse = made_up(0.5, "int8")
    layers = [
        LayerError(node=f"node_{i}", op="MatMul", module="fusion.fc<1>", tensor=f"t{i}", error=error, max_abs=1.0)
        for i, error in enumerate((0.0, 0.01, 0.4, math.inf))
    ]
    worse.divergences["text"] = Divergence(tolerance=0.14, layers=layers)
    absent = made_up(0.0, "int8", "tensorrt-rtx").model_copy(update={"simulated": True})
    return BundleParity(
        reports=[made_up(0.0, "fp32"), worse, absent],
        clips=15,
        versions={"onnxruntime": "1.0"},
    )
