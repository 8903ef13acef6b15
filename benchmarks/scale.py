"""
Memory and time of the collaborative models on a million users, and how both grow with rows and items.

From the repository root::

    python -m benchmarks.scale [--models NAME ...] [--scale SHARE] [--output FILE]

Each fit runs in a process of its own, on generated data: an epoch of what is trained, the whole fit of what is not.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rectools.dataset import Dataset

from benchmarks.files import write_atomically
from benchmarks.jobs import preload
from benchmarks.measure import peak_memory_mb
from benchmarks.provenance import REPOSITORY, provenance
from benchmarks.speed import MAX_THREADS, Bench, Measurement, Sizes, kion_like, screen_table
from rectools_neural import model_from_config

OUTPUT = REPOSITORY / "benchmarks" / "results" / "scale.json"
MEMORY = "under 16384"

#: Users, items and rows: what growth is measured from, and what must fit into 16 GB.
SIZES = {
    "250 000 x 50 000, 5 M rows": Sizes(250_000, 50_000, 5_000_000),
    "twice the rows": Sizes(250_000, 50_000, 10_000_000),
    "twice the items": Sizes(250_000, 100_000, 5_000_000),
    "1 000 000 x 100 000, 20 M rows": Sizes(1_000_000, 100_000, 20_000_000),
}
MODELS: dict[str, dict[str, Any]] = {
    "MultVAE": {"cls": "MultVAEModel", "epochs": 1, "loss": "sampled_softmax", "batch_size": 4096},
    "LightGCN": {"cls": "LightGCNModel", "epochs": 1, "loss": "bpr", "batch_size": 2**19},
    "GFCF": {"cls": "GFCFModel", "n_factors": 128},
}


def run(models: Sequence[str], share: float = 1.0) -> dict[str, Any]:
    """
    Fit models on data of several sizes.

    Parameters
    ----------
    models : sequence of str
        Keys of `MODELS`.
    share : float, default 1
        Of the sizes, for a quick look.

    Returns
    -------
    dict
        JSON-ready: provenance, settings and, for each model as a part, seconds and peak memory by size.
    """
    threads = min(MAX_THREADS, torch.get_num_threads())
    parts: dict[str, list[Measurement]] = {model: [] for model in models}
    preload([__name__])
    for name, sizes in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            bench = Bench(Path(folder), sizes.scaled(share), 1, threads)
            bench.in_process(_generate)
            for model in models:
                seconds, memory = bench.in_process(_fit, MODELS[model])
                parts[model].append(Measurement(f"{model}, {name}: fit", "s", [seconds]))
                peaks = [] if memory is None else [memory]
                parts[model].append(Measurement(f"{model}, {name}: peak memory", "MB", peaks, MEMORY))
                print(f"{model}, {name}: {seconds:.0f} s, {memory or 0:.0f} MB", flush=True)
    return {
        "provenance": provenance(),
        "threads": threads,
        "models": {model: MODELS[model] for model in models},
        "sizes": {name: {key: vars(sizes)[key] for key in ("users", "items", "rows")} for name, sizes in SIZES.items()},
        "share": share,
        "parts": {
            model: [{**vars(m), "median": m.median} for m in found if m.values] for model, found in parts.items()
        },
    }


def _generate(bench: Bench) -> None:
    sizes = bench.sizes
    dataset = kion_like(sizes.users, sizes.items, sizes.rows)
    plain = Dataset(dataset.user_id_map, dataset.item_id_map, dataset.interactions)
    with bench.data_file.open("wb") as file:
        pickle.dump(plain, file, protocol=5)


def _fit(bench: Bench, config: Mapping[str, Any]) -> tuple[float, float | None]:
    """Peak memory is that of the process: libraries and data count."""
    dataset = bench.load_dataset()
    started = time.perf_counter()
    model_from_config(config).fit(dataset)
    return time.perf_counter() - started, peak_memory_mb()


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=(__doc__ or "").strip().split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="(default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the data, for a quick look (default: 1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    if not 0 < given.scale <= 1:
        parser.error(f"--scale must be above 0 and at most 1, got {given.scale}")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    result = run(given.models, given.scale)
    write_atomically(given.output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(screen_table(result))


if __name__ == "__main__":
    main()
