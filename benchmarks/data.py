"""Datasets and folds of the benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import attr
import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset, DenseFeatures, Interactions, SparseFeatures

from benchmarks.config import DataConfig, SplitConfig


@dataclass(frozen=True)
class Fold:
    """
    Train and test part of one split.

    Attributes
    ----------
    seed : int
        Seed of the splitter and of the models.
    index : int
        Number of the fold among the folds of this seed.
    train : Dataset
        What models are fitted on; users and items that left it with their interactions keep their features.
    test : DataFrame
        Held-out interactions, external ids.
    fingerprint : str
        Changes whenever a row of either part does.
    """

    seed: int
    index: int
    train: Dataset
    test: pd.DataFrame
    fingerprint: str


def prepare(data: Dataset | DataConfig) -> Dataset:
    """
    Load the dataset that a configuration asks for, filtered.

    Parameters
    ----------
    data : Dataset or DataConfig
        A dataset in memory is taken as it is.

    Returns
    -------
    Dataset
        The dataset.

    Raises
    ------
    ValueError
        If the filters leave nothing.
    """
    if isinstance(data, Dataset):
        return data
    from rectools_neural import load_dataset

    dataset: Dataset = load_dataset(data.name)
    rows = dataset.interactions.df
    if data.min_rating is not None:
        rows = rows[rows[Columns.Weight] >= data.min_rating]
    if data.k_core is not None:
        rows = _k_core(rows, data.k_core)
    for one in data.filters:
        rows = one.build().transform(rows)
    if rows.empty:
        filters = f", then the filters {data.filters}," if data.filters else ""
        raise ValueError(
            f"data: min_rating {data.min_rating} and k_core {data.k_core}{filters} leave no row of {data.name}"
        )
    if len(rows) < len(dataset.interactions.df):
        # The frame's index is its row number: RecTools builds it so.
        dataset = dataset.filter_interactions(rows.index.to_numpy(), keep_features_for_removed_entities=False)
    if data.binary:
        binary = Interactions(dataset.interactions.df.assign(**{Columns.Weight: 1.0}))
        dataset = attr.evolve(dataset, interactions=binary)
    return dataset


def _k_core(rows: pd.DataFrame, k: int) -> pd.DataFrame:
    while True:
        counts = [rows.groupby(column)[column].transform("size") for column in (Columns.User, Columns.Item)]
        kept = rows[(counts[0] >= k) & (counts[1] >= k)]
        if len(kept) == len(rows):
            return rows
        rows = kept


def folds(dataset: Dataset, split: SplitConfig, seed: int) -> Iterator[Fold]:
    """
    Cut a dataset the way RecTools' ``cross_validate`` does.

    Parameters
    ----------
    dataset : Dataset
        All interactions.
    split : SplitConfig
        Which splitter, with its arguments.
    seed : int
        Seed of the splitter.

    Yields
    ------
    Fold
        One at a time: a fold is a copy of the data.

    Raises
    ------
    ValueError
        If a fold has no train or no test rows.
    """
    whole = fingerprint(dataset)
    for index, (train_rows, test_rows, _) in enumerate(split.build(seed).split(dataset.interactions)):
        if not (len(train_rows) and len(test_rows)):
            raise ValueError(
                f"split {split.name!r}, seed {seed}, fold {index}: {len(train_rows)} train and {len(test_rows)} test "
                "rows are left after dropping cold users and items; choose other sizes or fewer folds"
            )
        test = dataset.interactions.df.iloc[test_rows]
        test = test.assign(
            **{
                Columns.User: dataset.user_id_map.convert_to_external(test[Columns.User]),
                Columns.Item: dataset.item_id_map.convert_to_external(test[Columns.Item]),
            }
        )
        digest = hashlib.sha256(whole.encode())
        for rows in (train_rows, test_rows):
            digest.update(rows.astype(np.int64).tobytes())
        yield Fold(seed, index, dataset.filter_interactions(train_rows), test, digest.hexdigest())


def fingerprint(dataset: Dataset) -> str:
    """
    Hash interactions, ids and features.

    Parameters
    ----------
    dataset : Dataset
        Any dataset.

    Returns
    -------
    str
        Hexadecimal SHA-256.
    """
    digest = hashlib.sha256()
    digest.update(pd.util.hash_pandas_object(dataset.interactions.df, index=False).to_numpy().tobytes())
    for id_map in (dataset.user_id_map, dataset.item_id_map):
        digest.update(pd.util.hash_array(np.asarray(id_map.external_ids)).tobytes())
    for features in (dataset.user_features, dataset.item_features):
        digest.update(_feature_bytes(features))
    return digest.hexdigest()


def _feature_bytes(features: SparseFeatures | DenseFeatures | None) -> bytes:
    if features is None:
        return b"none"
    matrix = features.get_sparse()
    arrays = (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data)
    return repr(features.names).encode() + b"".join(array.tobytes() for array in arrays)
