"""Figures of the service for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_METHODS = {"GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"}
OTHER = "other"


class Metrics:
    """
    Counts and times, in a registry of their own. No label is what a client made up.

    Attributes
    ----------
    batch : Histogram
        Queries that were answered at once.
    swaps, failed_swaps : Counter
        New models that took the place of the old one, and those that could not.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own: Any = {"namespace": "rectools_neural", "registry": self._registry}
        self._requests = Counter("requests", "Requests.", ("path", "method", "status"), **own)
        self._seconds = Histogram(
            "request_seconds", "From the head of a request to its answer.", ("path",), buckets=_SECONDS, **own
        )
        self.batch = Histogram("batch_queries", "Queries that the model answered at once.", buckets=_QUERIES, **own)
        self.swaps = Counter("swaps", "New models that took the place of the old one.", **own)
        self.failed_swaps = Counter("failed_swaps", "New models that could not be loaded.", **own)
        self._model = Info("model", "The model that answers now.", **own)
        # Finding a child by its labels costs more than counting.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe(self, path: str, method: str, status: int, seconds: float) -> None:
        """
        Count a request.

        Parameters
        ----------
        path : str
            Template of the route, or `OTHER`.
        method : str
            As the client wrote it.
        status : int
            Of the answer.
        seconds : float
            How long it took.
        """
        key = (path, method if method in _METHODS else OTHER, status)
        if key not in self._children:
            self._children[key] = self._requests.labels(*map(str, key)), self._seconds.labels(path)
        requests, histogram = self._children[key]
        requests.inc()
        histogram.observe(seconds)

    def tell_model(self, version: str, name: str) -> None:
        """Note which model answers from now on."""
        self._model.info({"version": version, "class": name})

    def to_text(self) -> bytes:
        """Write them in the text format of Prometheus."""
        return generate_latest(self._registry)
