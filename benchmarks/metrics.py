"""What is measured on a list of recommendations: RecTools' metrics, RePlay's if asked for, nothing of our own."""

from __future__ import annotations

from dataclasses import dataclass

import attr
import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset, SparseFeatures
from rectools.metrics import (
    MAP,
    MRR,
    NDCG,
    AvgRecPopularity,
    CatalogCoverage,
    CoveredUsers,
    HitRate,
    IntraListDiversity,
    MeanInvUserFreq,
    Recall,
    Serendipity,
    SparsePairwiseHammingDistanceCalculator,
    calc_metrics,
)
from rectools.metrics.base import MetricAtK

from benchmarks.config import ACCURACY
from benchmarks.data import Fold
from benchmarks.protocols import Cut, replay_metrics

#: What the labels of RePlay's metrics begin with; those without are RecTools'.
REPLAY = "replay "

GENRE_FEATURES = frozenset({"genre", "genres"})


def _accuracy(k: int) -> dict[str, MetricAtK]:
    metrics = (NDCG(k, divide_by_achievable=True), MAP(k), Recall(k), HitRate(k), MRR(k))
    return {f"{name}@{k}": metric for name, metric in zip(ACCURACY, metrics, strict=True)}


def _beyond_accuracy(k: int) -> dict[str, MetricAtK]:
    return {
        f"novelty@{k}": MeanInvUserFreq(k),
        f"serendipity@{k}": Serendipity(k),
        f"coverage@{k}": CatalogCoverage(k, normalize=True),
        f"popularity@{k}": AvgRecPopularity(k),
        f"served@{k}": CoveredUsers(k),
    }


def make_metrics(ks: list[int], train: Dataset) -> dict[str, MetricAtK]:
    """
    Choose the metrics.

    Parameters
    ----------
    ks : list of int
        List lengths, ascending. Accuracy is measured at each; the other metrics, some of them slow, at the first.
    train : Dataset
        Its item features decide whether lists can be compared by genre.

    Returns
    -------
    dict
        Label such as ``ndcg@10`` -> RecTools metric.
    """
    metrics: dict[str, MetricAtK] = {}
    for k in ks:
        metrics |= _accuracy(k)
    metrics |= _beyond_accuracy(ks[0])
    distances = genre_distances(train)
    if distances is not None:
        metrics[f"diversity@{ks[0]}"] = IntraListDiversity(ks[0], distance_calculator=distances)
    return metrics


def genre_distances(dataset: Dataset) -> SparsePairwiseHammingDistanceCalculator | None:
    """
    Measure how many genres two items do not share.

    Parameters
    ----------
    dataset : Dataset
        Dataset whose item features may name genres.

    Returns
    -------
    SparsePairwiseHammingDistanceCalculator or None
        Distances between external item ids; None if no sparse item feature is called genre or genres.
    """
    features = dataset.item_features
    if not isinstance(features, SparseFeatures):
        return None
    columns = [i for i, (name, _) in enumerate(features.names) if str(name).lower() in GENRE_FEATURES]
    if not columns:
        return None
    # The calculator counts differing cells: repeated or weighted genres must not look like other genres.
    has_genre = (features.values[:, columns] != 0).astype(np.float32)
    genres = SparseFeatures(has_genre, tuple(features.names[i] for i in columns))
    return SparsePairwiseHammingDistanceCalculator(genres, dataset.item_id_map)


def describe(metric: MetricAtK) -> str:
    """
    Spell out a metric's class and flags.

    Parameters
    ----------
    metric : MetricAtK
        RecTools metric.

    Returns
    -------
    str
        For example ``NDCG(k=10, log_base=2, divide_by_achievable=True)``.
    """
    flags = {
        field.name: getattr(metric, field.name)
        for field in attr.fields(type(metric))
        if isinstance(getattr(metric, field.name), (bool, int, float, str))
    }
    return f"{type(metric).__name__}({', '.join(f'{name}={value!r}' for name, value in flags.items())})"


@dataclass(frozen=True)
class Evaluation:
    """
    Quality of one model on one fold.

    Attributes
    ----------
    metrics : dict
        Label -> mean over the test users.
    users : list
        The test users, sorted.
    per_user : dict
        Label -> value of each test user, in the order of `users`. Only for the metrics that were asked for.
    """

    metrics: dict[str, float]
    users: list[int | str]
    per_user: dict[str, list[float]]


def evaluate(
    reco: pd.DataFrame, fold: Fold, ks: list[int], kept_per_user: list[str], with_replay: bool = False
) -> Evaluation:
    """
    Measure recommendations against the test part of a fold.

    Parameters
    ----------
    reco : DataFrame
        RecTools recommendations, external ids.
    fold : Fold
        The fold that they were made for.
    ks : list of int
        List lengths, ascending.
    kept_per_user : list of str
        Labels of the accuracy metrics whose values are kept for each user.
    with_replay : bool, default False
        Whether RePlay measures the lists as well; each of its labels begins with `REPLAY`.

    Returns
    -------
    Evaluation
        Means and the values per user.
    """
    metrics = make_metrics(ks, fold.train)
    previous = fold.train.get_raw_interactions()
    means = calc_metrics(
        metrics, reco, interactions=fold.test, prev_interactions=previous, catalog=previous[Columns.Item].unique()
    )
    users = np.unique(fold.test[Columns.User])
    values = {label: metrics[label].calc_per_user(reco, fold.test).reindex(users) for label in kept_per_user}
    replay = _replay_means(reco, fold, ks) if with_replay else {}
    return Evaluation(
        metrics={label: float(value) for label, value in means.items()} | replay,
        users=users.tolist(),
        per_user={label: series.tolist() for label, series in values.items()},
    )


def _replay_means(reco: pd.DataFrame, fold: Fold, ks: list[int]) -> dict[str, float]:
    # RePlay takes each relevant pair once.
    cut = Cut(fold.train, fold.test[Columns.UserItem].drop_duplicates())
    return {f"{REPLAY}{name}": value for k in ks for name, value in replay_metrics(reco, cut, k).items()}
