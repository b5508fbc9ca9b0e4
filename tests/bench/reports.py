"""Made-up reports of engines."""

from __future__ import annotations

from eao.bench.arrivals import Arrivals
from eao.bench.ceiling import Ceiling
from eao.bench.cost import Cost
from eao.bench.hardware import Hardware
from eao.bench.latency import Latency
from eao.bench.report import TORCH, BenchReport, Copies, EngineFacts, Entry, Result
from eao.export.manifest import ParitySummary

FP32, INT8 = "onnxruntime fp32", "openvino int8"


def make_result(ms: float, speedup: float, noise: float = 0.05, spread: float = 0.01, full: bool = False) -> Result:
    latency = Latency.of([ms / 1e3])
    arrivals = Arrivals(
        rate=50, requests=100, served=100, latency=latency, utilization=0.4, deadline_ms=20, missed=0.125
    )
    return Result(
        latency=latency,
        spread=spread,
        speedup=speedup,
        noise=noise,
        traffic=1_000_000,
        copies=Copies(upload_ms=0.1, compute_ms=1.5, download_ms=0.2) if full else None,
        arrivals=arrivals if full else None,
    )


def make_entry(
    speedups: dict[str, float] | None = None,
    foreign: float | None = 0.0,
    noise: float = 0.05,
    encoder: str = "text",
    batch: int = 1,
    length: float = 1.0,
    torch_ms: float = 4.0,
    full: bool = False,
) -> Entry:
    speedups = {FP32: 2.0, INT8: 4.0} if speedups is None else speedups
    results = {TORCH: make_result(torch_ms, 1.0, 0.0)}
    results |= {way: make_result(torch_ms / s, s, noise, full=full) for way, s in speedups.items()}
    sizes = {"batch": batch, "text_tokens": max(round(20 * length), 1)}
    return Entry(encoder=encoder, length=length, sizes=sizes, gflop=0.1, results=results, foreign_cores=foreign)


def make_report(*entries: Entry) -> BenchReport:
    parity = {
        way: ParitySummary(passed=True, max_abs=0, cosine_min=c, batch_invariance=1, top10_overlap=0.97)
        for way, c in ((FP32, 1.0), (INT8, 0.995))
    }
    return BenchReport(
        bundle="b",
        device="cpu",
        threads=2,
        hardware=Hardware(cpu="C", cores=2, memory_gb=8, system="S", load_average=0),
        versions={"torch": "2"},
        ceiling=Ceiling(gflops=100, gbs=10),
        entries=list(entries),
        engines=[
            EngineFacts(
                encoder=encoder,
                way=way,
                cost=Cost(key=f"{encoder}.x", file_mb=1.5, load_seconds=0.25, first_run_ms=3, memory_mb=20),
                parity=parity[way],
                left=3 if way == INT8 else 0,
                layers=8 if way == INT8 else 0,
            )
            for encoder in dict.fromkeys(entry.encoder for entry in entries)
            for way in (FP32, INT8)
        ],
    )
