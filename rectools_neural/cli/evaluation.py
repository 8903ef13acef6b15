"""A split of the data and the metrics of a model on it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import MAP, NDCG, CatalogCoverage, Recall, calc_metrics
from rectools.models.base import ModelBase

from ..config import ValidationConfig
from ..models.base import hold_out
from .errors import InputError
from .options import SplitOptions


def split_dataset(dataset: Dataset, name: str, size: float | None) -> tuple[Dataset, pd.DataFrame]:
    """
    Split a dataset.

    Parameters
    ----------
    dataset : Dataset
        What to split.
    name : {"random", "time", "last_n"}
        The rule.
    size : float, optional
        The share to hold out, or the rows a user for "last_n".

    Returns
    -------
    Dataset, pd.DataFrame
        The training part; the held-out rows that can be found: of users and items of the training part, which the
        user has not seen there.
    """
    try:
        rule = ValidationConfig.model_validate({"name": name, "size": size})
        train, held_out = hold_out(dataset, rule, seed=0)
    except ValidationError as error:
        raise InputError(f"--size: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    except ValueError as error:
        raise InputError(f"--split and --size: {error}") from error
    seen = train.get_raw_interactions()
    is_known = held_out[Columns.User].isin(seen[Columns.User]) & held_out[Columns.Item].isin(seen[Columns.Item])
    pairs = list(Columns.UserItem)
    is_seen = pd.MultiIndex.from_frame(held_out[pairs]).isin(pd.MultiIndex.from_frame(seen[pairs]))
    test = held_out[is_known & ~is_seen].drop_duplicates(pairs)
    if test.empty:
        raise InputError(
            f"--split {name} holds out no row of a user and an item that are in the training part: change --split or "
            "--size"
        )
    return train, test


def measure(model: ModelBase[Any], train: Dataset, test: pd.DataFrame, k: int) -> dict[str, float]:
    """Metrics of the top `k` for the users of the test part."""
    catalog = train.get_raw_interactions()[Columns.Item].unique()
    # There are no more items to rank, and metrics take time for each place.
    depth = min(k, len(catalog))
    reco = model.recommend(pd.unique(test[Columns.User]), train, depth, filter_viewed=True)
    metrics = {
        f"ndcg@{k}": NDCG(depth, divide_by_achievable=True),
        f"recall@{k}": Recall(depth),
        f"map@{k}": MAP(depth),
        f"coverage@{k}": CatalogCoverage(depth, normalize=True),
    }
    values = calc_metrics(metrics, reco, test, catalog=catalog)
    return {name: float(values[name]) for name in metrics}


def read_metric(text: str) -> tuple[str, int]:
    """Read the name and the k of a metric such as ndcg@10."""
    found = re.fullmatch(r"(ndcg|recall|map)@([1-9][0-9]{0,8})", text)
    if found is None:
        raise InputError(f"--metric {text}: write ndcg, recall or map with the number of items, such as ndcg@10")
    return found[1], int(found[2])


def describe_split(data: Path, held: SplitOptions, train: Dataset, test: pd.DataFrame) -> dict[str, Any]:
    """Tell on what a model was measured, for files of results."""
    return {
        "split": {"name": held.split.value, "size": held.size, "seed": 0},
        "data": {"file": data.name, "train_rows": len(train.interactions.df), "test_rows": len(test)},
        "versions": {name: version(name) for name in ("rectools-neural", "rectools", "torch")},
    }
