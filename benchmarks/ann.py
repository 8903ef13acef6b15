"""
Search in an index of item vectors beside exact ranking, on generated vectors and in one thread.

From the repository root::

    OMP_NUM_THREADS=1 python -m benchmarks.ann [--items N] [--repeats N] [--output FILE]

Items lie in clusters, as those of a trained model do, and users near the clusters that they like. Both sides answer the
same queries in turn, again and again, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.files import write_atomically
from benchmarks.measure import peak_memory_mb
from benchmarks.provenance import REPOSITORY, provenance
from benchmarks.speed import Measurement, screen_table
from rectools_neural.ann import ItemIndex
from rectools_neural.ranking import rank_vectors

OUTPUT = REPOSITORY / "benchmarks" / "results" / "ann.json"
N_ITEMS, N_QUERIES, N_SEEN, DIM, K = 1_000_000, 1_000, 50, 64, 10
N_CLUSTERS, SPREAD = 1_000, 0.6


def vectors(rng: np.random.Generator, centres: np.ndarray, n: int) -> np.ndarray:
    """
    Draw vectors from a mixture of Gaussians, of lengths that vary as those of popular and rare items do.

    Parameters
    ----------
    rng : np.random.Generator
        Where chance comes from.
    centres : np.ndarray
        Of the clusters, shape ``(n_clusters, dim)``.
    n : int
        How many vectors.

    Returns
    -------
    np.ndarray
        Shape ``(n, dim)``, float32.
    """
    points = rng.standard_normal((n, centres.shape[1]), np.float32)
    points *= SPREAD
    points += centres[rng.integers(0, len(centres), n)]
    points *= rng.lognormal(0, 0.2, (n, 1)).astype(np.float32)
    return points


def run(n_items: int = N_ITEMS, n_queries: int = N_QUERIES, repeats: int = 5) -> dict[str, Any]:
    """
    Generate the vectors and measure.

    Parameters
    ----------
    n_items, n_queries : int
        Sizes.
    repeats : int, default 5
        How often both sides answer.

    Returns
    -------
    dict
        JSON-ready: ``provenance``, ``sizes`` and ``parts``, as `benchmarks.speed` has them.
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((N_CLUSTERS, DIM), np.float32)
    items, known, queries = (vectors(rng, centres, n) for n in (n_items, n_queries, n_queries))
    seen = [rng.integers(0, n_items, N_SEEN) for _ in range(n_queries)]
    earlier, memory = torch.get_num_threads(), peak_memory_mb()
    torch.set_num_threads(1)
    try:
        start = time.perf_counter()
        index = ItemIndex.build(items, np.arange(n_items), similarity="dot", queries=known)
        built, grown = time.perf_counter() - start, peak_memory_mb()
        measured = [Measurement("building the index", "s", [built])]
        if memory is not None and grown is not None:
            measured.append(Measurement("building the index: rise of the peak memory", "MB", [grown - memory]))
        measured += _search(index, items, queries, seen, repeats)
    finally:
        torch.set_num_threads(earlier)
    sizes = {"items": n_items, "dim": DIM, "clusters": N_CLUSTERS, "queries": n_queries, "seen": N_SEEN, "k": K}
    return {"provenance": provenance(), "sizes": sizes, "parts": {"search": [_entry(m) for m in measured]}}


def _search(
    index: ItemIndex, items: np.ndarray, queries: np.ndarray, seen: list[np.ndarray], repeats: int
) -> list[Measurement]:
    of_users, of_items = torch.from_numpy(queries), torch.from_numpy(items)
    exact, indexed, filtered, recalls = [], [], [], []
    for _ in range(repeats):
        start = time.perf_counter()
        truth = rank_vectors(of_users, of_items, K)[1].reshape(-1, K)
        ranked = time.perf_counter()
        found = index.search(queries, K)[0]
        searched = time.perf_counter()
        index.search(queries, K, seen=seen)
        exact.append(ranked - start)
        indexed.append(searched - ranked)
        filtered.append(time.perf_counter() - searched)
        recalls.append(float(np.mean([np.isin(*pair).mean() for pair in zip(truth, found, strict=True)])))
    times = [slow / fast for slow, fast in zip(exact, indexed, strict=True)]
    n = len(queries)
    return [
        Measurement(f"recall@{K} of the index, measured when it was built", "share", [index.recall]),
        Measurement(f"recall@{K} of the index, other queries", "share", recalls, "at least 0.95"),
        Measurement(f"exact ranking, top-{K}", "ms a query", [1e3 * seconds / n for seconds in exact]),
        Measurement(f"index, top-{K}", "ms a query", [1e3 * seconds / n for seconds in indexed]),
        Measurement("index against exact ranking", "times as fast", times, "at least 5"),
        Measurement(
            f"index, top-{K}, {len(seen[0])} seen items left out", "ms a query", [1e3 * s / n for s in filtered]
        ),
    ]


def _entry(measurement: Measurement) -> dict[str, Any]:
    return {**vars(measurement), "median": measurement.median}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the result file, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ann", description=(__doc__ or "").strip().split("\n")[0]
    )
    parser.add_argument("--items", type=int, default=N_ITEMS, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.items < K or given.repeats < 1:
        parser.error(f"--items must be at least {K} and --repeats at least 1")
    result = run(given.items, repeats=given.repeats)
    write_atomically(given.output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(screen_table(result))


if __name__ == "__main__":
    main()
