"""
The experiment of a course notebook, end to end with RePlay's parts: filters, splitter, recommenders and `Experiment`.

From the repository root::

    python -m benchmarks.replay_experiment [--models NAME ...] [--validate] [--output FILE]

Rows go through ``MinCountFilter(20)``, ``TimeSplitter(0.2)`` without cold users and items, and ``LowRatingFilter(4)``
on both parts, in this order. Our models and RePlay's get the same rows behind the same interface; RePlay's run on
Spark. Settings are chosen with ``--validate``, which cuts the train part once more in the same way.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from replay.data import Dataset as ReplayDataset
from replay.data.dataset_utils import DatasetLabelEncoder
from replay.metrics import NDCG, Coverage, Experiment, HitRate
from replay.preprocessing.filters import LowRatingFilter, MinCountFilter
from replay.splitters import TimeSplitter

from benchmarks.provenance import REPOSITORY, provenance
from benchmarks.published import add_row
from rectools_neural import load_dataset
from rectools_neural.replay import ReplayRecommender, to_replay

RESULTS = REPOSITORY / "benchmarks" / "results"
OUTPUTS = {"test": RESULTS / "replay-experiment.json", "validation": RESULTS / "replay-experiment-validation.json"}
K = 10

#: What the two-tower network of the course notebook reached.
COURSE = {"NDCG@10": 0.0345, "HitRate@10": 0.221, "Coverage@10": 0.191}

#: Name of the row -> config, without the seed, and the seeds.
OURS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "DSSMModel, defaults": ({"cls": "rectools_neural.DSSMModel"}, (0, 1, 2)),
    # Those of protocol P2, which validation prefers here, too: towards the future a smoother model is better.
    "DSSMModel": (
        {
            "cls": "rectools_neural.DSSMModel",
            "n_factors": 64,
            "loss": {"name": "squared", "unobserved_weight": 1.0},
            "history_dropout": 0.8,
            "share_item_embedding": True,
            "epochs": 20,
            "learning_rate": 0.0005,
            "entity_dropout": 0.05,
        },
        (0, 1, 2),
    ),
    "MultVAEModel, defaults": ({"cls": "rectools_neural.MultVAEModel"}, (0,)),
    "GMF, defaults": ({"cls": "rectools_neural.NCFModel", "architecture": "gmf"}, (0,)),
    "GFCFModel, defaults": ({"cls": "rectools_neural.GFCFModel"}, (0,)),
}
#: Classes of `replay.models`, each with its defaults.
THEIRS = ("ItemKNN", "ALSWrap", "SLIM", "PopRec")
TAKES_SEED = ("ALSWrap", "SLIM")


@dataclass(frozen=True)
class Cut:
    """
    What models learn from and what they are asked.

    Attributes
    ----------
    train : replay.data.Dataset
        In pandas, with the features of users and items.
    test : pd.DataFrame
        Held-out rows.
    """

    train: ReplayDataset
    test: pd.DataFrame

    @property
    def queries(self) -> np.ndarray:
        """Users of the test part who have rows to learn from: the last filter may have left none."""
        return np.intersect1d(self.test[Columns.User], self.train.interactions[Columns.User])

    def describe(self) -> dict[str, int]:
        """Count rows, users and items."""
        train, test = self.train.interactions, self.test
        return {
            "train_rows": len(train),
            "train_users": train[Columns.User].nunique(),
            "train_items": train[Columns.Item].nunique(),
            "test_rows": len(test),
            "test_users": test[Columns.User].nunique(),
            "test_users_without_train_rows": test[Columns.User].nunique() - len(self.queries),
            "test_rows_of_items_without_train_rows": int((~test[Columns.Item].isin(train[Columns.Item])).sum()),
        }


def cut(dataset: Dataset, *, validate: bool) -> Cut:
    """
    Filter and split with RePlay's parts.

    Parameters
    ----------
    dataset : rectools.dataset.Dataset
        Ratings as weights, with times.
    validate : bool
        Whether to leave the test part alone and hold out a part of the train part instead.

    Returns
    -------
    Cut
        Both parts.
    """
    data = to_replay(dataset)
    split = TimeSplitter(
        time_threshold=0.2,
        drop_cold_users=True,
        drop_cold_items=True,
        query_column=Columns.User,
        item_column=Columns.Item,
        timestamp_column=Columns.Datetime,
    ).split
    rows = MinCountFilter(num_entries=20, groupby_column=Columns.User).transform(data.interactions)
    train, test = split(rows)
    if validate:
        train, test = split(train)
    liked = LowRatingFilter(value=4, rating_column=Columns.Weight).transform
    learnt = ReplayDataset(data.feature_schema, liked(train), data.query_features, data.item_features)
    return Cut(learnt, liked(test))


# ---------------------------------------------------------------------- recommenders


class SparkRecommender:
    """
    A recommender of RePlay on Spark, with pandas on both sides.

    Parameters
    ----------
    model : replay.models.BaseRecommender
        The recommender.
    session : pyspark.sql.SparkSession
        Where it runs.
    """

    def __init__(self, model: Any, session: Any) -> None:
        self.model = model
        self.session = session

    def fit(self, dataset: ReplayDataset) -> SparkRecommender:
        """Encode the ids, as these recommenders ask for, and fit; they know no features."""
        columns = Columns.Interactions
        plain = ReplayDataset(dataset.feature_schema.subset(columns), dataset.interactions[columns])
        self.encoder = DatasetLabelEncoder()
        encoded = self.encoder.fit_transform(plain)
        rows = self.session.createDataFrame(encoded.interactions).cache()
        self.dataset = ReplayDataset(encoded.feature_schema, rows, categorical_encoded=True)
        self.model.fit(self.dataset)
        return self

    def predict(self, dataset: ReplayDataset, k: int, queries: np.ndarray) -> pd.DataFrame:
        """Recommend from the dataset that it was fitted on."""
        encoded = self.encoder.query_id_encoder.transform(pd.DataFrame({Columns.User: queries}))
        found = self.model.predict(self.dataset, k, queries=encoded[Columns.User].tolist(), filter_seen_items=True)
        decoded: pd.DataFrame = self.encoder.query_and_item_id_encoder.inverse_transform(found.toPandas())
        return decoded


@contextmanager
def spark_session() -> Iterator[Any]:
    """Start the session that RePlay makes, as small as this data needs, and stop it at the end."""
    from replay.utils.session_handler import State, get_spark_session

    session = get_spark_session(spark_memory=4, shuffle_partitions=4, core_count=2)
    try:
        State(session)
        yield session
    finally:
        session.stop()


def measure(recommender: Any, cut: Cut) -> dict[str, Any]:
    """
    Fit, recommend, let RePlay's `Experiment` measure.

    Parameters
    ----------
    recommender : ReplayRecommender or SparkRecommender
        Unfitted.
    cut : Cut
        The data.

    Returns
    -------
    dict
        ``metrics``, ``fit_seconds``, ``recommend_seconds``. Spark may leave work of a fit to the recommendation.
    """
    started = time.perf_counter()
    recommender.fit(cut.train)
    fitted = time.perf_counter()
    found = recommender.predict(cut.train, K, queries=cut.queries)
    recommended = time.perf_counter()
    experiment = Experiment(
        [NDCG(K), HitRate(K), Coverage(K)],
        cut.test,
        cut.train.interactions,
        query_column=Columns.User,
        item_column=Columns.Item,
        rating_column=Columns.Weight,
    )
    with warnings.catch_warnings():
        # Users of the train part whom the test part does not ask are no mistake.
        warnings.filterwarnings("ignore", message=".*queries that are not presented in recommendations")
        experiment.add_result("model", found)
    return {
        "metrics": {str(name): float(value) for name, value in experiment.results.loc["model"].items()},
        "fit_seconds": fitted - started,
        "recommend_seconds": recommended - fitted,
    }


def make(name: str, seed: int, session: Any) -> tuple[dict[str, Any], Any]:
    """
    Make a recommender.

    Parameters
    ----------
    name : str
        A row of `OURS` or a class of `THEIRS`.
    seed : int
        Its seed, for what takes one.
    session : pyspark.sql.SparkSession or None
        For RePlay's.

    Returns
    -------
    tuple
        Config, without the seed, and the unfitted recommender.
    """
    if name in OURS:
        config, _ = OURS[name]
        seeded = {} if config["cls"].endswith("GFCFModel") else {"seed": seed}
        return config, ReplayRecommender({**config, **seeded})
    import replay.models

    seeded = {"seed": seed} if name in TAKES_SEED else {}
    return {"cls": f"replay.models.{name}"}, SparkRecommender(getattr(replay.models, name)(**seeded), session)


def run(dataset: Dataset, models: Sequence[str], output: Path, *, validate: bool = False) -> None:
    """
    Measure models and write each into the result file as soon as it is measured.

    Parameters
    ----------
    dataset : rectools.dataset.Dataset
        Ratings as weights, with times.
    models : sequence of str
        Rows of `OURS` and classes of `THEIRS`.
    output : Path
        The result file; its rows of other models stay.
    validate : bool, default False
        Whether to measure on a part of the train part.
    """
    data, origin = cut(dataset, validate=validate), provenance()
    header = {
        "title": "MovieLens-1M, the last 20 % of the timeline, ratings from 4",
        "part": "validation" if validate else "test",
        "split": "RePlay: MinCountFilter(20), then TimeSplitter(0.2) without cold users and items"
        + (", the same once more on its train part" if validate else "")
        + ", then LowRatingFilter(4) on both parts",
        "definitions": f"RePlay Experiment: NDCG@{K}, HitRate@{K}, Coverage@{K} of replay-rec "
        + origin["versions"]["replay-rec"],
        "data": data.describe(),
        "course": COURSE,
    }
    with spark_session() if set(models) & set(THEIRS) else nullcontext() as session:
        for name in models:
            for seed in OURS[name][1] if name in OURS else (0,):
                config, recommender = make(name, seed, session)
                row = {"model": name, "seed": seed, "config": config, **measure(recommender, data)}
                add_row(output, header, row, origin)
                shown = "  ".join(f"{metric} {value:.4f}" for metric, value in row["metrics"].items())
                print(f"{name}  seed {seed}  {shown}  fit {row['fit_seconds']:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay_experiment", description=(__doc__ or "").strip().split("\n")[0]
    )
    names = [*OURS, *THEIRS]
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="NAME", help="(default: all)")
    parser.add_argument("--validate", action="store_true", help="cut the train part; leave the test part alone")
    parser.add_argument("--output", type=Path, metavar="FILE", help="(default: in benchmarks/results)")
    given = parser.parse_args(arguments)
    output = given.output or OUTPUTS["validation" if given.validate else "test"]
    run(load_dataset("ml-1m"), given.models, output, validate=given.validate)


if __name__ == "__main__":
    main()
