"""
Speed and quality beside RecBole 1.2.1 on MovieLens-100k.

From the repository root::

    python -m benchmarks.recbole [MultVAEModel] [LightGCNModel] [--repeats N] [--threads N] [--output FILE]

RecBole needs older libraries than this project: the first run makes a virtual environment for it, in the cache of the
package or in the folder of ``--environment``. The two sides take turns, model by model and repetition by repetition,
each in a process of its own, so that a busy moment of the machine hits both. Every repetition has another split and
another seed. Both sides have the same rows, number of epochs, sizes of batches, and sizes of codes or embeddings; every
other option is the default of its own side. Neither side sees features of users and items.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import attr
import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from threadpoolctl import threadpool_limits

from benchmarks.config import DataConfig, RandomSplit
from benchmarks.data import Fold, folds, prepare
from benchmarks.environment import Environment, ask_worker
from benchmarks.files import write_atomically
from benchmarks.metrics import describe
from benchmarks.provenance import REPOSITORY, provenance
from rectools_neural import model_from_config
from rectools_neural.datasets import _cache_folder
from rectools_neural.errors import did_you_mean

OUTPUT = REPOSITORY / "benchmarks" / "results" / "recbole.json"
WORKER = Path(__file__).with_name("recbole_worker.py")

#: RecBole itself comes without its dependencies: it asks for an old ray, which only its search for parameters needs.
ENVIRONMENT = Environment(
    package="recbole==1.2.1",
    requirements=(
        f"torch=={torch.__version__.partition('+')[0]}",  # the same on both sides
        "numpy<2",  # it uses np.float_
        "scipy<1.13",  # its LightGCN calls dok_matrix._update
        "pandas<3",  # it fills columns through chained assignment
        "colorlog==4.7.2",
        "colorama==0.4.4",
        "pyyaml",
        "scikit-learn",
        "tensorboard",
        "texttable",
        "tqdm",
    ),
)

DATA = DataConfig(name="ml-100k", binary=True, min_rating=None, k_core=None)
SPLIT = RandomSplit(name="random", test_fold_frac=0.2)
METRIC = NDCG(10, divide_by_achievable=True)
NDCG_LABEL = f"ndcg@{METRIC.k}"
OURS, THEIRS = "ours", "RecBole"


@dataclass(frozen=True)
class Pair:
    """
    A model of ours and RecBole's model of the same name.

    Parameters
    ----------
    ours, theirs : str
        Names of the models.
    sizes : tuple of str
        RecBole's options for the sizes of codes or embeddings.
    size_factor : int
        What they have to be multiplied by.
    eats_users : bool
        Whether batches are counted in users, on both sides, and not in interactions.
    rows : int
        For how many rows of its batches RecBole counts an interaction: negatives can be rows of their own.
    options : mapping
        Options of ours that are RecBole's defaults.
    """

    ours: str
    theirs: str
    sizes: tuple[str, ...] = ("latent_dimension",)
    size_factor: int = 1
    eats_users: bool = True
    rows: int = 1
    options: Mapping[str, Any] = field(default_factory=lambda: {"hidden": [600]})


PAIRS = {
    pair.ours: pair
    for pair in (
        Pair("MultVAEModel", "MultiVAE", size_factor=2),  # RecBole counts mean and variance
        Pair("MultDAEModel", "MultiDAE"),
        Pair("RecVAEModel", "RecVAE"),
        Pair("LightGCNModel", "LightGCN", sizes=("embedding_size",), eats_users=False, options={}),
        Pair(
            "NCFModel",
            "NeuMF",
            sizes=("mf_embedding_size", "mlp_embedding_size"),
            eats_users=False,
            rows=2,
            options={
                "architecture": "neumf",
                "hidden": [128, 64],
                "loss": "bce",
                "negatives": {"name": "uniform", "n": 1},
            },
        ),
    )
}


@dataclass(frozen=True)
class Settings:
    """
    What both sides are run with.

    Parameters
    ----------
    repeats : int
        How often everything is measured.
    epochs, batch_size : int
        Of autoencoders, whose batches are users.
    pair_epochs, pair_batch_size : int
        Of LightGCN and NCF, whose batches are interactions, as RecBole counts them.
    n_factors : int
        Size of codes and embeddings.
    threads : int
        Threads of either side.
    """

    repeats: int = 3
    epochs: int = 50
    batch_size: int = 128
    pair_epochs: int = 50
    pair_batch_size: int = 2048
    n_factors: int = 64
    threads: int = dataclasses.field(default_factory=torch.get_num_threads)

    def our_config(self, pair: Pair, seed: int) -> dict[str, Any]:
        """Configure our model, in `model_from_config` form."""
        return {
            "cls": pair.ours,
            **pair.options,
            "epochs": self.epochs if pair.eats_users else self.pair_epochs,
            "batch_size": self.batch_size if pair.eats_users else self.pair_batch_size // pair.rows,
            "n_factors": self.n_factors,
            "seed": seed,
        }

    def their_config(self, pair: Pair, seed: int) -> dict[str, Any]:
        """Configure RecBole's model: the options that don't depend on the files."""
        return {
            "epochs": self.epochs if pair.eats_users else self.pair_epochs,
            "train_batch_size": self.batch_size if pair.eats_users else self.pair_batch_size,
            **dict.fromkeys(pair.sizes, pair.size_factor * self.n_factors),
            "seed": seed,
            "use_gpu": False,
            "show_progress": False,
        }


@dataclass(frozen=True)
class Run:
    """
    One side of one comparison.

    Parameters
    ----------
    epoch_seconds : list of float
        Training time of each epoch.
    recommend_seconds : float
        Time to rank all items for all users of the test part, seen ones left out.
    reco : pd.DataFrame
        Columns `user_id`, `item_id`, `rank`.
    """

    epoch_seconds: list[float]
    recommend_seconds: float
    reco: pd.DataFrame


# ---------------------------------------------------------------------- the two sides


def fit_ours(config: dict[str, Any], train: Dataset, users: np.ndarray) -> Run:
    """
    Train our model and rank with it.

    Parameters
    ----------
    config : dict
        In `model_from_config` form.
    train : Dataset
        The train part.
    users : np.ndarray
        Whom to rank for.

    Returns
    -------
    Run
        What was measured.
    """
    # RecBole's models of interactions know no features.
    train = attr.evolve(train, user_features=None, item_features=None)
    model: Any = model_from_config(config).fit(train)
    started = time.perf_counter()
    reco = model.recommend(users, train, k=METRIC.k, filter_viewed=True)
    return Run(model.history["seconds"].tolist(), time.perf_counter() - started, reco)


def fit_ours_in_process(config: dict[str, Any], fold: Fold, threads: int) -> Run:
    """Do `fit_ours` in a process of its own, with the given number of threads."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare_process, (threads,)) as pool:
        return pool.submit(fit_ours, config, fold.train, np.unique(fold.test[Columns.User])).result()


def _prepare_process(threads: int) -> None:
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    warnings.simplefilter("ignore")


def fit_recbole(
    python: Path, model: str, config: dict[str, Any], fold: Fold, threads: int
) -> tuple[Run, dict[str, str]]:
    """
    Train RecBole's model and rank with it, in its own environment.

    The time of the ranking is that of `full_sort_topk`; turning its ids into those of the data is not counted.

    Parameters
    ----------
    python : Path
        Python of the environment.
    model : str
        RecBole's name of the model.
    config : dict
        RecBole's options but for those of the files.
    fold : Fold
        The split.
    threads : int
        Threads of torch and of the libraries below it.

    Returns
    -------
    tuple
        What was measured; and the versions of Python and the libraries.

    Raises
    ------
    RuntimeError
        If RecBole fails.
    """
    users = np.unique(fold.test[Columns.User])
    with tempfile.TemporaryDirectory(prefix="recbole-") as name:
        folder = Path(name)
        parts = write_atomic_files(folder, "data", fold.train.get_raw_interactions(), fold.test)
        files = {
            "data_path": name,
            "benchmark_filename": parts,
            "load_col": {"inter": list(Columns.UserItem)},
            "USER_ID_FIELD": Columns.User,
            "ITEM_ID_FIELD": Columns.Item,
            "checkpoint_dir": str(folder / "checkpoints"),
        }
        request = {
            "model": model,
            "dataset": "data",
            "config": {**config, **files},
            "users": users.astype(str).tolist(),
            "k": METRIC.k,
            "threads": threads,
        }
        result = ask_worker(python, WORKER, request, folder, threads)
    reco = read_lists(users, result["items"], np.unique(fold.train.get_raw_interactions()[Columns.Item]))
    return Run(result["epoch_seconds"], result["recommend_seconds"], reco), result["versions"]


def write_atomic_files(folder: Path, name: str, train: pd.DataFrame, test: pd.DataFrame) -> list[str]:
    """
    Write a split in RecBole's format.

    RecBole wants a validation part as well, and leaves its rows out of the ranking for the test. It gets the test part
    once more: RecBole never leaves out what it is asked for, and no training here looks at a validation.

    Parameters
    ----------
    folder : Path
        Gets a folder of the name of the data set.
    name : str
        Name of the data set.
    train, test : pd.DataFrame
        Columns `user_id`, `item_id`.

    Returns
    -------
    list of str
        Names of the train, validation and test part, RecBole's `benchmark_filename`.
    """
    parts = {"train": train, "valid": test, "test": test}
    header = [f"{column}:token" for column in Columns.UserItem]
    (folder / name).mkdir(parents=True)
    for part, rows in parts.items():
        path = folder / name / f"{name}.{part}.inter"
        rows.to_csv(path, sep="\t", columns=list(Columns.UserItem), header=header, index=False)
    return list(parts)


def read_lists(users: np.ndarray, lists: Sequence[Sequence[str]], item_ids: np.ndarray) -> pd.DataFrame:
    """
    Turn RecBole's lists into a table of recommendations.

    Parameters
    ----------
    users : np.ndarray
        User of each list.
    lists : sequence of sequences of str
        Items as RecBole writes them, best first.
    item_ids : np.ndarray
        The items as the data have them.

    Returns
    -------
    pd.DataFrame
        Columns `user_id`, `item_id`, `rank`.
    """
    item_of = {str(item): item for item in item_ids.tolist()}
    rows = [
        (user, item_of[item], rank)
        for user, items in zip(users.tolist(), lists, strict=True)
        for rank, item in enumerate(items, start=1)
    ]
    return pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Rank])


# ---------------------------------------------------------------------- the comparison


def run(pairs: Sequence[Pair], settings: Settings, environment: Path) -> dict[str, Any]:
    """
    Measure both sides in turn.

    Parameters
    ----------
    pairs : sequence of Pair
        The models.
    settings : Settings
        What both sides are run with.
    environment : Path
        Folder of RecBole's environment.

    Returns
    -------
    dict
        JSON-ready: ``provenance``, ``recbole`` (versions there), ``data``, ``metric``, ``settings``, ``rows`` (one a
        model, side and repetition) and ``comparison`` (see `compare`).

    Raises
    ------
    ValueError
        If a model of ours or the environment can't be made; before anything is measured.
    RuntimeError
        If RecBole fails.
    """
    for pair in pairs:
        model_from_config(settings.our_config(pair, 0))
    python = ENVIRONMENT.make(environment)
    dataset = prepare(DATA)
    split = [next(folds(dataset, SPLIT, seed)) for seed in range(settings.repeats)]
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for pair in pairs:
        for seed, fold in enumerate(split):
            config = settings.their_config(pair, seed)
            theirs, versions = fit_recbole(python, pair.theirs, config, fold, settings.threads)
            ours = fit_ours_in_process(settings.our_config(pair, seed), fold, settings.threads)
            for side, found in ((THEIRS, theirs), (OURS, ours)):
                rows.append({"model": pair.ours, "side": side, "seed": seed, **describe_run(found, fold.test)})
                print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), file=sys.stderr, flush=True)
    return {
        "provenance": provenance(),
        "recbole": versions,
        "data": f"{DATA.name}, all ratings positive, random 80/20 by row, without cold users and items",
        "metric": f"rectools {describe(METRIC)}",
        "settings": dataclasses.asdict(settings),
        "rows": rows,
        "comparison": compare(rows),
    }


def describe_run(found: Run, test: pd.DataFrame) -> dict[str, float]:
    """
    Sum a run up.

    Parameters
    ----------
    found : Run
        The run.
    test : pd.DataFrame
        The test part, columns `user_id`, `item_id`.

    Returns
    -------
    dict
        Median seconds of an epoch, seconds of the ranking, mean nDCG.
    """
    return {
        "epoch_seconds": median(found.epoch_seconds),
        "recommend_seconds": found.recommend_seconds,
        NDCG_LABEL: float(METRIC.calc(found.reco, test)),
    }


def compare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Set the two sides of each model beside each other.

    Parameters
    ----------
    rows : sequence of dict
        ``model``, ``side``, ``seed`` and the values of `describe_run`.

    Returns
    -------
    list of dict
        One a model, in the order of the rows. For ``epoch_seconds`` and ``recommend_seconds`` the medians of both
        sides over the repetitions and the median of the ratios theirs / ours, ``times_as_fast``; for nDCG the means.
    """
    value = {(row["model"], row["side"], row["seed"]): row for row in rows}
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        seeds = sorted({row["seed"] for row in rows if row["model"] == model})
        line: dict[str, Any] = {"model": model}
        for name in ("epoch_seconds", "recommend_seconds"):
            ours, theirs = ([value[model, side, seed][name] for seed in seeds] for side in (OURS, THEIRS))
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            line[name] = {OURS: median(ours), THEIRS: median(theirs), "times_as_fast": median(ratios)}
        sides = {side: mean(value[model, side, seed][NDCG_LABEL] for seed in seeds) for side in (OURS, THEIRS)}
        line[NDCG_LABEL] = sides
        found.append(line)
    return found


def screen_table(comparison: Sequence[dict[str, Any]]) -> str:
    """
    Draw a comparison in aligned plain text.

    Parameters
    ----------
    comparison : sequence of dict
        From `compare`.

    Returns
    -------
    str
        A line a model.
    """
    lines = []
    for row in comparison:
        line = {"model": row["model"]}
        for name, label in (("epoch_seconds", "epoch"), ("recommend_seconds", "rank")):
            line |= {f"{label} s, {side}": f"{row[name][side]:.3g}" for side in (OURS, THEIRS)}
            line[f"{label}, times as fast"] = f"{row[name]['times_as_fast']:.3g}"
        lines.append(line | {f"{NDCG_LABEL}, {side}": f"{row[NDCG_LABEL][side]:.4f}" for side in (OURS, THEIRS)})
    return pd.DataFrame(lines).to_string(index=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recbole", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"from {', '.join(PAIRS)} (default: all)")
    defaults = Settings()
    for name, what in {
        "repeats": "how often everything is measured",
        "epochs": "epochs of autoencoders",
        "batch_size": "users in a batch of autoencoders",
        "pair_epochs": "epochs of LightGCN and NCF",
        "pair_batch_size": "rows in a batch of LightGCN and NCF",
        "n_factors": "size of codes and embeddings",
        "threads": "threads of either side",
    }.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=getattr(defaults, name), help=f"{what} (default: %(default)s)")
    folder = _cache_folder() / "recbole-venv"
    parser.add_argument("--environment", type=Path, default=folder, metavar="FOLDER", help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    for model in given.models:
        if model not in PAIRS:
            parser.error(f"unknown model `{model}`{did_you_mean(model, list(PAIRS))}")
    settings = Settings(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Settings)})
    for name, value in vars(settings).items():
        if value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    try:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        result = run([PAIRS[model] for model in given.models or PAIRS], settings, given.environment)
        write_atomically(given.output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    except (ValueError, RuntimeError, OSError) as error:
        parser.error(str(error))
    print(screen_table(result["comparison"]))


if __name__ == "__main__":
    main()
