"""
Inference on Spark beside that on one machine: the same rows, how long, how much memory, and with a worker killed.

From the repository root::

    python -m benchmarks.spark [--models NAME ...] [--scale SHARE] [--output FILE]

Spark runs on this machine, two tasks at a time, so the seconds tell what Spark costs, not what a cluster gains.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyspark
import torch
from pyspark.sql import SparkSession
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks.files import write_atomically
from benchmarks.provenance import REPOSITORY, provenance
from benchmarks.speed import Measurement, Sizes, kion_like, screen_table
from rectools_neural import model_from_config
from rectools_neural.spark import recommend

OUTPUT = REPOSITORY / "benchmarks" / "results" / "spark.json"
SIZES = Sizes(users=200_000, items=5_000, rows=4_000_000)
K = 10
N_TASKS = 8
SPARK = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.memory": "2g",
    "spark.sql.shuffle.partitions": str(N_TASKS),
    "spark.sql.adaptive.coalescePartitions.enabled": "false",
}
MASTER = "local[2,4]"  # two tasks at a time, each tried four times
TOLERANCE = 1e-6  # of scores, relative: what the shape of a matrix product may change in float32
MODELS: dict[str, dict[str, Any]] = {
    "DSSM": {"cls": "DSSMModel", "epochs": 2, "batch_size": 2048},
    "MultVAE": {"cls": "MultVAEModel", "epochs": 2, "batch_size": 2048},
}
TIMEOUT = 600  # seconds to wait for what must happen in a job


def run(models: Sequence[str], share: float = 1.0) -> dict[str, Any]:
    """
    Fit models on one machine, recommend there and on Spark to all users, and compare.

    Parameters
    ----------
    models : sequence of str
        Keys of `MODELS`.
    share : float, default 1
        Of the sizes, for a quick look.

    Returns
    -------
    dict
        JSON-ready: provenance, settings and, for each model as a part, seconds, memory and what differs.

    Raises
    ------
    RuntimeError
        If Spark gives other rows than one machine.
    """
    sizes = SIZES.scaled(share)
    result = {
        "provenance": provenance(),
        "load before": round(os.getloadavg()[0], 1),
        "note": "a load before of 1 or more: others were at work on the machine, and the seconds are too many",
        "threads": torch.get_num_threads(),
        "k": K,
        "models": {model: MODELS[model] for model in models},
        "sizes": {key: vars(sizes)[key] for key in ("users", "items", "rows")},
        "spark": {"version": pyspark.__version__, "master": MASTER, **SPARK},
    }
    dataset = kion_like(sizes.users, sizes.items, sizes.rows)
    with tempfile.TemporaryDirectory(prefix="spark-") as folder:
        _write_tables(dataset, Path(folder))
        parts = {model: _measure(model, dataset, Path(folder)) for model in models}
    result["parts"] = {model: [{**vars(m), "median": m.median} for m in found] for model, found in parts.items()}
    return result


def _write_tables(dataset: Dataset, folder: Path) -> None:
    interactions = dataset.get_raw_interactions()
    # Spark reads no nanoseconds.
    interactions = interactions.astype({Columns.Datetime: "datetime64[us]"})
    interactions.to_parquet(folder / "interactions.parquet", index=False)
    features = dataset.user_features.values.tocoo()
    names = pd.DataFrame(dataset.user_features.names, columns=["feature", "value"])
    flat = names.iloc[features.col].assign(
        **{Columns.User: dataset.user_id_map.external_ids[features.row], Columns.Weight: features.data}
    )
    flat.astype({"value": np.int64}).to_parquet(folder / "user_features.parquet", index=False)


def _measure(name: str, dataset: Dataset, folder: Path) -> list[Measurement]:
    model = model_from_config(MODELS[name]).fit(dataset)
    started = time.perf_counter()
    expected = model.recommend(dataset.user_id_map.external_ids, dataset, K, filter_viewed=True)
    seconds = {"one machine": time.perf_counter() - started}
    found = {}
    with _session() as spark:
        tables = [spark.read.parquet(str(folder / f"{table}.parquet")) for table in ("interactions", "user_features")]

        def on_spark(case: str) -> None:
            path, started = folder / "reco", time.perf_counter()
            recommend(model, spark, tables[0], None, K, user_features=tables[1], path=path)
            seconds[case] = time.perf_counter() - started
            found[case] = pd.read_parquet(path)

        # First, when the workers still have to start: the measured run finds at least one of them warm.
        n_failed = _with_killed_worker(spark, lambda: on_spark("Spark, a worker killed"))
        on_spark("Spark")
        memory = _peak_memory_of_workers(spark)
    measured = [Measurement(f"{name}, {case}: top-{K}", "s", [value]) for case, value in seconds.items()]
    measured.append(Measurement(f"{name}, Spark: peak memory of each Python worker", "MB", memory))
    measured.append(Measurement(f"{name}, Spark, a worker killed: failed tasks", "tasks", [n_failed], "at least 1"))
    return measured + [m for case, reco in found.items() for m in compare(f"{name}, {case}", reco, expected)]


def compare(name: str, reco: pd.DataFrame, expected: pd.DataFrame) -> list[Measurement]:
    """
    Compare recommendations row by row.

    Parameters
    ----------
    name : str
        Of what is compared.
    reco, expected : pd.DataFrame
        Columns `user_id`, `item_id`, `score`, `rank`, in any order.

    Returns
    -------
    list of Measurement
        Rows; rows with another item, all of them ties; the largest relative difference of scores.

    Raises
    ------
    RuntimeError
        If rows are missing, there twice, or have another score.
    """
    keys = [Columns.User, Columns.Rank]
    reco, expected = (frame.sort_values(keys, ignore_index=True) for frame in (reco, expected))
    if not reco[keys].equals(expected[keys]):
        raise RuntimeError(
            f"{name}: {len(reco)} rows, and not the users and ranks of the {len(expected)} expected ones"
        )
    if reco.duplicated(list(Columns.UserItem)).any():
        raise RuntimeError(f"{name}: an item is recommended to a user twice")
    scores = expected[Columns.Score].to_numpy(np.float64)
    differences = np.abs(reco[Columns.Score] - scores) / np.maximum(np.abs(scores), 1e-12)
    # Next to 0 a score is the small rest of large terms.
    near = np.isclose(reco[Columns.Score], scores, rtol=TOLERANCE, atol=TOLERANCE * np.abs(scores).max())
    if not near.all():
        raise RuntimeError(f"{name}: {(~near).sum()} scores differ, by up to {differences.max():g} of the score")
    n_other = int((reco[Columns.Item] != expected[Columns.Item]).sum())
    return [
        Measurement(f"{name}: rows", "rows", [len(reco)]),
        Measurement(f"{name}: rows with another item, all of them ties", "rows", [n_other]),
        Measurement(f"{name}: largest relative difference of scores", "", [float(differences.max())]),
    ]


# ---------------------------------------------------------------------- Spark and its workers


@contextmanager
def _session() -> Iterator[SparkSession]:
    """Start Spark anew: peaks of memory are those of one model."""
    session = SparkSession.builder.master(MASTER).config(map=SPARK).getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    try:
        yield session
    finally:
        session.stop()


def _peak_memory_of_workers(spark: SparkSession) -> list[float]:
    def peak(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        time.sleep(sum(len(batch) for batch in batches))  # a second, so that each worker gets one of the tasks
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        yield pa.RecordBatch.from_pydict({"pid": [os.getpid()], "megabytes": [megabytes]})

    # The same kind of job as the inference: Spark keeps workers of other kinds apart.
    rows = spark.range(0, 2, 1, 2).mapInArrow(peak, "pid long, megabytes double").collect()
    return sorted(dict(map(tuple, rows)).values())


def _with_killed_worker(spark: SparkSession, job: Callable[[], None]) -> int:
    """Run a job and kill a worker when half of its tasks are done; return how many tasks have failed."""
    n_failed = 0
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(job)
        _wait_until(lambda: _stage_counts(spark)[0] >= N_TASKS // 2 or running.done())
        if not running.done():
            busy_worker(spark, running.done).kill()
        while not running.done():
            n_failed = max(n_failed, _stage_counts(spark)[1])
            time.sleep(0.01)
        running.result()
    if not n_failed:
        raise RuntimeError("No task failed: no worker was killed at work")
    return n_failed


def busy_worker(spark: SparkSession, is_over: Callable[[], bool]) -> psutil.Process:
    """
    Wait for a Python worker in the midst of its work.

    Parameters
    ----------
    spark : SparkSession
        Session on this machine.
    is_over : callable
        Tells whether the job that runs in it is over.

    Returns
    -------
    psutil.Process
        The worker.

    Raises
    ------
    RuntimeError
        If the job is over before one was found.
    """
    java = psutil.Process(spark.sparkContext._gateway.proc.pid)
    found: list[psutil.Process] = []

    def look() -> bool:
        before = {worker: _cpu_seconds(worker) for worker in _python_workers(java)}
        time.sleep(0.3)
        found.extend(worker for worker, seconds in before.items() if _cpu_seconds(worker) > seconds + 0.05)
        return bool(found) or is_over()

    _wait_until(look)
    if not found:
        raise RuntimeError("The job was over before a Python worker was found at work")
    return found[0]


def _python_workers(java: psutil.Process) -> list[psutil.Process]:
    workers: list[psutil.Process] = []
    for process in java.children():
        # Java has children that come and go, and some that are dead and stay.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "pyspark.daemon" in process.cmdline():
                workers += process.children()
    return workers


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _stage_counts(spark: SparkSession) -> tuple[int, int]:
    """Completed and failed tasks of the stages that run."""
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
    known = [stage for stage in stages if stage is not None]
    return sum(stage.numCompletedTasks for stage in known), sum(stage.numFailedTasks for stage in known)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Spark did not get so far in {TIMEOUT} s")
        time.sleep(0.01)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spark", description=(__doc__ or "").strip().split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="(default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the data, for a quick look (default: 1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    if not 0 < given.scale <= 1:
        parser.error(f"--scale must be above 0 and at most 1, got {given.scale}")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    # The process is ours alone: Spark's workers must find the same libraries.
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    result = run(given.models, given.scale)
    write_atomically(given.output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(screen_table(result))


if __name__ == "__main__":
    main()
