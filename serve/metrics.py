"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one service; each has its own registry.

    Attributes:
        requests: answers, by route, method and status.
        seconds: until an answer was complete, by route.
        rejected: requests that were refused with 503, by `Reason`.
        batch_sizes: rows that an encoder was given at once.
        batch_seconds: that took.
        uploaded: bytes of files.
        thumbnails: those that were asked for, by where they came from.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter("eao_requests", "Answers.", ["route", "method", "status"], registry=self.registry)
        self.seconds = Histogram(
            "eao_request_seconds", "Until an answer was complete.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.rejected = Counter("eao_rejected", "Requests refused with 503.", ["reason"], registry=self.registry)
        self.batch_sizes = Histogram(
            "eao_batch_size", "Rows embedded at once.", ["encoder"], buckets=_SIZES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "eao_batch_seconds", "Time of a batch.", ["encoder"], buckets=_SECONDS, registry=self.registry
        )
        self.uploaded = Counter("eao_uploaded_bytes", "Bytes of requests with files.", registry=self.registry)
        self.thumbnails = Counter("eao_thumbnails", "Thumbnails given.", ["source"], registry=self.registry)
        self._gauges: dict[str, Gauge] = {}

    def watch(self, name: str, help_text: str, read: Callable[[], float], **labels: str) -> None:
        """Show a number that is read whenever somebody looks."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, help_text, list(labels), registry=self.registry)
        gauge = self._gauges[name]
        (gauge.labels(**labels) if labels else gauge).set_function(read)

    def render(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
