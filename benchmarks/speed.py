"""
Speed of training, ranking and sampling, beside RecTools, on generated data of the size of the KION data set.

From the repository root::

    python -m benchmarks.speed [train] [rank] [sample] [--repeats N] [--scale SHARE] [--output FILE]

Two threads, or one with ``OMP_NUM_THREADS=1``. What is compared is measured in turn, again and again, so that a busy
moment of the machine hits both sides; fits and recommendations run in a process of their own, so that none finds the
caches or the memory of another.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from pytorch_lightning.callbacks import Timer
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.models import load_model
from rectools.models.rank import Distance, ImplicitRanker, TorchRanker
from scipy import sparse
from threadpoolctl import threadpool_limits

from benchmarks.baselines import rectools_dssm
from benchmarks.files import write_atomically
from benchmarks.jobs import preload
from benchmarks.measure import peak_memory_mb
from benchmarks.provenance import REPOSITORY, provenance
from rectools_neural import DSSMModel
from rectools_neural.data.reader import DatasetReader
from rectools_neural.data.sampling import NegativeSampler
from rectools_neural.errors import did_you_mean
from rectools_neural.ranking import Ranking, rank_vectors

OUTPUT = REPOSITORY / "benchmarks" / "results" / "speed.json"
MAX_THREADS = 2
K = 10

USER_FIELDS = {"age": 6, "income": 6, "sex": 2, "kids": 2}
ITEM_FIELDS = {"content_type": 2, "age_rating": 6, "novelty": 6, "studio": 36, "genre": 95, "person": 690}
MULTI_VALUED = ("genre", "person")
MAX_VALUES = 4  # of a multi-valued field of one item

#: What RecTools' DSSM does in an epoch: one positive and one negative a user, drawn at random, and 128 factors.
DSSM = {"loss": "bpr", "negatives": {"name": "uniform", "n": 1}, "positives_per_user": 1, "epochs": 1, "n_factors": 128}
RECTOOLS_BATCH_SIZE = 128  # its default
BATCH_SIZE = 2048  # of a user with this many users
BATCH_SIZES = (BATCH_SIZE, RECTOOLS_BATCH_SIZE)

SAMPLERS = {"uniform": 0.0, "popularity": 0.75}
CALLS = ((65_536, 16), (1_024, 4))  # pairs and negatives a pair of one call: bound by the processor, by the overhead

Result = TypeVar("Result")


@dataclass(frozen=True)
class Sizes:
    """
    How much data.

    Parameters
    ----------
    users, items, rows : int
        Of the data set.
    few_users, more_users : int
        Users that RecTools trains on: its time on all of them follows from these, since it grows in proportion.
    ranked_users : int
        Users that the rankers are compared on.
    negatives : int
        Negatives drawn for one measurement.
    """

    users: int = 231_872
    items: int = 12_029
    rows: int = 4_000_000
    few_users: int = 5_000
    more_users: int = 10_000
    ranked_users: int = 20_000
    negatives: int = 4_000_000

    def scaled(self, share: float) -> Sizes:
        """Shrink everything to a share."""
        return Sizes(*(max(int(size * share), 1) for size in vars(self).values()))


@dataclass(frozen=True)
class Measurement:
    """
    One quantity, measured several times.

    Parameters
    ----------
    name, unit : str
        What was measured.
    values : list of float
        One value a repetition.
    required : str
        What the project promises, if anything.
    """

    name: str
    unit: str
    values: list[float]
    required: str = ""

    @property
    def median(self) -> float:
        """The middle value: one disturbed repetition doesn't move it."""
        return median(self.values)


@dataclass(frozen=True)
class Bench:
    """
    What a part of the benchmark needs.

    Parameters
    ----------
    folder : Path
        Holds the data set, and the fitted model once there is one.
    sizes : Sizes
        How much data.
    repeats : int
        How often everything is measured.
    threads : int
        Threads of every process.
    """

    folder: Path
    sizes: Sizes
    repeats: int
    threads: int

    @property
    def data_file(self) -> Path:
        """The pickled data set."""
        return self.folder / "dataset.pickle"

    @property
    def model_file(self) -> Path:
        """The saved model."""
        return self.folder / "model.pickle"

    def load_dataset(self) -> Dataset:
        """Read the data set."""
        with self.data_file.open("rb") as file:
            return pickle.load(file)

    def in_process(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """
        Call a function in a process of its own, in a folder where files may be left behind.

        Its parent holds the libraries and no data: what a parent holds shows in the peak memory of its children.
        """
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        with ProcessPoolExecutor(1, context, _prepare_process, (self.folder, self.threads)) as pool:
            return pool.submit(function, self, *arguments).result()


def run(parts: Sequence[str], sizes: Sizes, repeats: int = 3) -> dict[str, Any]:
    """
    Generate the data and measure.

    Parameters
    ----------
    parts : sequence of str
        From ``PARTS``.
    sizes : Sizes
        How much data.
    repeats : int, default 3
        How often everything is measured.

    Returns
    -------
    dict
        JSON-ready: ``provenance``, ``threads``, ``repeats``, ``sizes`` and ``parts``: name -> list of measurements
        with ``name``, ``unit``, ``median``, ``values`` and ``required``.
    """
    result: dict[str, Any] = {
        "provenance": provenance(),
        "threads": min(MAX_THREADS, torch.get_num_threads()),
        "repeats": repeats,
        "sizes": vars(sizes),
    }
    preload([rectools_dssm.__module__, DSSMModel.__module__])
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        bench = Bench(Path(folder), sizes, repeats, result["threads"])
        bench.in_process(_generate)
        measured = {part: PARTS[part](bench) for part in parts}
    result["parts"] = {
        part: [{**vars(m), "median": m.median} for m in found if m.values] for part, found in measured.items()
    }
    return result


def _prepare_process(folder: Path, threads: int) -> None:
    # The process is ours alone, and ends with the measurement.
    os.chdir(folder)
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


# ---------------------------------------------------------------------- data


def kion_like(n_users: int, n_items: int, n_rows: int, seed: int = 0) -> Dataset:
    """
    Generate a data set shaped like that of a video service, without any taste in it: it serves to measure speed.

    A few items are in most histories and most items in few (Zipf-Mandelbrot), a few users have hundreds of items and
    most have some (log-normal, at least 2 and at most a quarter of the items), each item has a user. Rows are distinct
    pairs in the order of time. There are 4 user fields with 16 values and 6 item fields with 835 values, two of them
    multi-valued; a side with as many entities as a field has values has all of them.

    Parameters
    ----------
    n_users, n_items : int
        Users and items, not more items than users.
    n_rows : int
        Interactions, at least 2 and at most an eighth of the items for each user. The limit to a history can make them
        somewhat fewer.
    seed : int, default 0
        The same seed gives the same data.

    Returns
    -------
    Dataset
        Interactions with days as times, and sparse features.

    Raises
    ------
    ValueError
        If the numbers don't fit each other.
    """
    if not n_items <= n_users or not 2 * n_users <= n_rows <= n_users * (n_items // 8):
        raise ValueError(
            f"{n_rows} rows of {n_users} users and {n_items} items: give at least as many users as items, and from 2 "
            "to an eighth of the items as rows a user"
        )
    rng = np.random.default_rng(seed)
    users, items = _pairs(rng, n_users, n_items, n_rows)
    days = rng.integers(0, 180, len(users)).astype("timedelta64[D]")
    interactions = pd.DataFrame(
        {
            Columns.User: users,
            Columns.Item: items,
            Columns.Weight: 1.0,
            Columns.Datetime: np.datetime64("2021-03-01") + days,
        }
    )
    return Dataset.construct(
        interactions.sort_values(Columns.Datetime, kind="stable", ignore_index=True),
        user_features_df=_features(rng, n_users, USER_FIELDS),
        cat_user_features=list(USER_FIELDS),
        item_features_df=_features(rng, n_items, ITEM_FIELDS),
        cat_item_features=list(ITEM_FIELDS),
    )


def _pairs(rng: np.random.Generator, n_users: int, n_items: int, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    activity = rng.lognormal(0, 1.2, n_users)
    more = rng.multinomial(n_rows - 2 * n_users, activity / activity.sum())
    lengths = np.minimum(2 + more, n_items // 4)
    up_to = np.cumsum(1 / (rng.permutation(n_items) + 4))
    keys = rng.permutation(n_users)[:n_items] * n_items + np.arange(n_items)
    while True:
        missing = np.repeat(np.arange(n_users), lengths - np.bincount(keys // n_items, minlength=n_users))
        if not len(missing):
            return np.divmod(keys, n_items)
        drawn = np.searchsorted(up_to, rng.random(len(missing)) * up_to[-1])
        keys = np.unique(np.concatenate([keys, missing * n_items + drawn]))


def _features(rng: np.random.Generator, n: int, fields: Mapping[str, int]) -> pd.DataFrame:
    return pd.concat([_feature(rng, n, name, n_values) for name, n_values in fields.items()], ignore_index=True)


def _feature(rng: np.random.Generator, n: int, name: str, n_values: int) -> pd.DataFrame:
    ids = np.repeat(np.arange(n), rng.integers(1, MAX_VALUES + 1, n)) if name in MULTI_VALUED else np.arange(n)
    popularity = 1 / np.arange(1, n_values + 1) ** 0.7
    values = rng.choice(n_values, len(ids), p=popularity / popularity.sum())
    some = rng.permutation(len(ids))[:n_values]
    values[some] = np.arange(len(some))
    return pd.DataFrame({"id": ids, "feature": name, "value": values}).drop_duplicates()


def take_users(dataset: Dataset, n: int, seed: int = 0) -> Dataset:
    """
    Keep the rows of some users and all items.

    Parameters
    ----------
    dataset : Dataset
        With features of both sides.
    n : int
        How many users to keep, at random; one that has the last item is always among them, since RecTools takes the
        largest item with a row for the number of items.
    seed : int, default 0
        The same seed gives the same users.

    Returns
    -------
    Dataset
        The part.
    """
    frame = dataset.interactions.df
    has_last = frame[Columns.User].iloc[frame[Columns.Item].argmax()]
    others = np.setdiff1d(np.arange(dataset.user_id_map.size), has_last)
    kept = np.append(np.random.default_rng(seed).choice(others, n - 1, replace=False), has_last)
    position = np.full(dataset.user_id_map.size, -1)
    position[kept] = np.arange(n)
    frame = frame.assign(**{Columns.User: position[frame[Columns.User]]})
    return Dataset(
        IdMap(dataset.user_id_map.external_ids[kept]),
        dataset.item_id_map,
        Interactions(frame[frame[Columns.User] >= 0].reset_index(drop=True)),
        dataset.user_features.take(kept),
        dataset.item_features,
    )


def _generate(bench: Bench) -> None:
    dataset = kion_like(bench.sizes.users, bench.sizes.items, bench.sizes.rows)
    bench.data_file.write_bytes(pickle.dumps(dataset))


# ---------------------------------------------------------------------- training


@dataclass(frozen=True)
class Fit:
    """
    What a fit of one epoch took.

    Parameters
    ----------
    seconds, epoch_seconds : float
        All in all, and the epoch without what comes before it.
    peak_memory_mb : float or None
        Of the whole process, where the system tells.
    """

    seconds: float
    epoch_seconds: float
    peak_memory_mb: float | None


def train(bench: Bench) -> list[Measurement]:
    """
    Measure an epoch of DSSM and of RecTools' DSSM.

    RecTools needs minutes for an epoch on all users. Its time is the same for each user, which two samples of
    different size show, and so follows from the larger one.

    Parameters
    ----------
    bench : Bench
        The data and how to measure.

    Returns
    -------
    list of Measurement
        Seconds, memory and how many times as fast.
    """
    few, more, users = bench.sizes.few_users, bench.sizes.more_users, bench.sizes.users
    ours: dict[int, list[Fit]] = {size: [] for size in BATCH_SIZES}
    theirs: dict[int, list[float]] = {few: [], more: []}
    for _ in range(bench.repeats):
        for batch_size, fits in ours.items():
            fits.append(bench.in_process(_fit_dssm, batch_size))
        for n_users, seconds in theirs.items():
            seconds.append(bench.in_process(_rectools_epoch, n_users))
    growth = [(b / more) / (a / few) for a, b in zip(theirs[few], theirs[more], strict=True)]
    extrapolated = [seconds / more * users for seconds in theirs[more]]
    return [
        *(Measurement(f"RecTools DSSM, epoch on {n:,} users", "s", seconds) for n, seconds in theirs.items()),
        Measurement("RecTools DSSM, time a user with more users against with few", "times", growth, "about 1"),
        Measurement(f"RecTools DSSM, epoch on {users:,} users, extrapolated", "s", extrapolated),
        *(found for size in BATCH_SIZES for found in _describe_fits(size, ours[size], extrapolated)),
    ]


def _describe_fits(batch_size: int, fits: list[Fit], rectools_epochs: list[float]) -> list[Measurement]:
    name = f"DSSM, batch {batch_size}"
    pairs = list(zip(rectools_epochs, fits, strict=True))
    required = "at least 50" if batch_size == BATCH_SIZE else ""
    ratios = [theirs / fit.epoch_seconds for theirs, fit in pairs]
    return [
        Measurement(f"{name}, epoch", "s", [fit.epoch_seconds for fit in fits]),
        Measurement(f"{name}, epoch against RecTools' epoch", "times as fast", ratios, required),
        Measurement(f"{name}, fit of one epoch", "s", [fit.seconds for fit in fits]),
        Measurement(f"{name}, fit against RecTools' epoch", "times as fast", [t / fit.seconds for t, fit in pairs]),
        _peak_memory(f"{name}, fit", [fit.peak_memory_mb for fit in fits]),
    ]


def _peak_memory(name: str, values: list[float | None]) -> Measurement:
    known = [value for value in values if value is not None]
    return Measurement(f"{name}: peak memory with data and libraries", "MB", known, "under 4096")


def _fit_dssm(bench: Bench, batch_size: int) -> Fit:
    dataset = bench.load_dataset()
    model = DSSMModel(**DSSM, batch_size=batch_size)
    seconds = _seconds(lambda: model.fit(dataset))
    return Fit(seconds, float(model.history["seconds"].iloc[0]), peak_memory_mb())


def _rectools_epoch(bench: Bench, n_users: int) -> float:
    dataset = take_users(bench.load_dataset(), n_users)
    model = rectools_dssm(n_factors=DSSM["n_factors"], max_epochs=1, batch_size=RECTOOLS_BATCH_SIZE)
    model._trainer.callbacks.append(Timer())
    model.fit(dataset)
    # The model trains with a copy of its trainer.
    timer = next(callback for callback in model.trainer.callbacks if isinstance(callback, Timer))
    return float(timer.time_elapsed("train"))


# ---------------------------------------------------------------------- ranking


def rank(bench: Bench) -> list[Measurement]:
    """
    Measure top-10 for all users, and the rankers by themselves on the same vectors.

    Parameters
    ----------
    bench : Bench
        The data and how to measure.

    Returns
    -------
    list of Measurement
        Seconds, memory and users a second.

    Raises
    ------
    RuntimeError
        If two rankers differ.
    """
    bench.in_process(_fit_and_save)
    recommended = [bench.in_process(_recommend) for _ in range(bench.repeats)]
    name = f"recommend, top-{K} of {bench.sizes.users:,} users, seen items left out"
    return [
        Measurement(name, "s", [seconds for seconds, _ in recommended], "within 60"),
        _peak_memory(name, [memory for _, memory in recommended]),
        *bench.in_process(_compare_rankers),
    ]


def _fit_and_save(bench: Bench) -> None:
    DSSMModel(**DSSM, batch_size=BATCH_SIZE).fit(bench.load_dataset()).save(bench.model_file)


def _recommend(bench: Bench) -> tuple[float, float | None]:
    dataset, model = bench.load_dataset(), load_model(bench.model_file)
    users = dataset.user_id_map.external_ids
    seconds = _seconds(lambda: model.recommend(users, dataset, K, filter_viewed=True))
    return seconds, peak_memory_mb()


def _compare_rankers(bench: Bench) -> list[Measurement]:
    dataset = bench.load_dataset()
    user_vectors, item_vectors = load_model(bench.model_file).get_vectors(dataset)
    rng = np.random.default_rng(0)
    users = rng.choice(len(user_vectors), bench.sizes.ranked_users, replace=False)
    seen = dataset.get_user_item_matrix(include_weights=False)[users]
    half = np.sort(rng.choice(len(item_vectors), len(item_vectors) // 2, replace=False))
    rankers = _rankers(user_vectors, item_vectors, users, seen, bench.threads)
    measurements = []
    for case, whitelist in {"seen items left out": None, "and a whitelist of half of the items": half}.items():
        seconds: dict[str, list[float]] = {name: [] for name in rankers}
        rankings: dict[str, Ranking] = {}
        for _ in range(bench.repeats):
            for name, ranker in rankers.items():
                started = time.perf_counter()
                rankings[name] = ranker(whitelist)
                seconds[name].append(time.perf_counter() - started)
        _check_equal(rankings)
        measurements += [
            Measurement(f"{name}, top-{K}, {case}", "users a second", [len(users) / s for s in taken])
            for name, taken in seconds.items()
        ]
    return measurements


def _rankers(
    user_vectors: np.ndarray, item_vectors: np.ndarray, users: np.ndarray, seen: sparse.csr_matrix, threads: int
) -> dict[str, Callable[[np.ndarray | None], Ranking]]:
    subjects, candidates = torch.from_numpy(user_vectors[users]), torch.from_numpy(item_vectors)
    implicit = ImplicitRanker(Distance.DOT, user_vectors, item_vectors, num_threads=threads)
    pytorch = TorchRanker(Distance.DOT, "cpu", user_vectors, item_vectors)

    def own(whitelist: np.ndarray | None) -> Ranking:
        if whitelist is None:
            return rank_vectors(subjects, candidates, K, seen=seen)
        return rank_vectors(subjects, candidates[whitelist], K, seen=seen[:, whitelist])

    return {
        "rank_vectors": own,
        "RecTools ImplicitRanker": lambda whitelist: implicit.rank(users, K, seen, whitelist),
        "RecTools TorchRanker": lambda whitelist: pytorch.rank(users, K, seen, whitelist),
    }


def _check_equal(rankings: Mapping[str, Ranking]) -> None:
    """Compare scores: equal ones may come in any order."""
    (first, (_, _, expected)), *others = rankings.items()
    for name, (_, _, scores) in others:
        if len(scores) != len(expected) or not np.allclose(scores, expected, rtol=1e-4, atol=1e-5):
            raise RuntimeError(f"{first} and {name} rank differently: their speeds can't be compared")


# ---------------------------------------------------------------------- sampling


def sample(bench: Bench) -> list[Measurement]:
    """
    Measure how many negatives are drawn in a second, none of them a positive of its user.

    Parameters
    ----------
    bench : Bench
        The data and how to measure.

    Returns
    -------
    list of Measurement
        Millions of negatives a second, for calls of different sizes.
    """
    return bench.in_process(_sample)


def _sample(bench: Bench) -> list[Measurement]:
    dataset = bench.load_dataset()
    histories = DatasetReader.fit(dataset).training_users(dataset).histories
    samplers = {name: NegativeSampler(histories, power) for name, power in SAMPLERS.items()}
    # As in training: the users of pairs, so that the active ones, whose draws are rejected most, come most often.
    users = torch.from_numpy(histories.rows())
    generator = torch.Generator().manual_seed(0)
    speeds: dict[tuple[str, int, int], list[float]] = {(name, *call): [] for name in samplers for call in CALLS}
    for _ in range(bench.repeats):
        for (name, n_pairs, n), values in speeds.items():
            n_calls = -(-bench.sizes.negatives // (n_pairs * n))
            pairs = users[torch.randint(len(users), (n_calls, n_pairs), generator=generator)]
            started = time.perf_counter()
            for owners in pairs:
                samplers[name].sample(owners, n, generator)
            values.append(n_calls * n_pairs * n / (time.perf_counter() - started) / 1e6)
    return [
        Measurement(
            f"NegativeSampler, {name}, {n_pairs:,} pairs x {n} a call",
            "million a second",
            values,
            "at least 10" if (n_pairs, n) == CALLS[0] else "",
        )
        for (name, n_pairs, n), values in speeds.items()
    ]


# ---------------------------------------------------------------------- command line

PARTS: dict[str, Callable[[Bench], list[Measurement]]] = {"train": train, "rank": rank, "sample": sample}


def screen_table(result: Mapping[str, Any]) -> str:
    """
    Draw a result in aligned plain text.

    Parameters
    ----------
    result : mapping
        What `run` returns.

    Returns
    -------
    str
        A line a measurement: median, range, unit, requirement.
    """
    rows = [("", "median", "range", "unit", "required")]
    for found in result["parts"].values():
        rows += [
            (
                m["name"],
                _short(m["median"]),
                f"{_short(min(m['values']))} - {_short(max(m['values']))}",
                m["unit"],
                m["required"],
            )
            for m in found
        ]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        f"{name:<{widths[0]}}  {middle:>{widths[1]}}  {span:>{widths[2]}}  {unit:<{widths[3]}}  {required}".rstrip()
        for name, middle, span, unit, required in rows
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"from {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the data, for a quick look (default: 1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    for part in given.parts:
        if part not in PARTS:
            parser.error(f"unknown part `{part}`{did_you_mean(part, list(PARTS))}")
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {given.repeats}")
    if not 0 < given.scale <= 1:
        parser.error(f"--scale must be above 0 and at most 1, got {given.scale}")
    try:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        result = run(given.parts or list(PARTS), Sizes().scaled(given.scale), given.repeats)
        write_atomically(given.output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(screen_table(result))


if __name__ == "__main__":
    main()
