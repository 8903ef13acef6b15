"""Small data sets for all tests. Everything here is seeded: two calls with the same arguments give the same data."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings
from rectools import Columns
from rectools.dataset import Dataset

from rectools_neural.data.histories import Histories

# The same examples in each run, none kept on disk, no time limit for one of them on a busy machine.
settings.register_profile("package", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("package")


@dataclass(frozen=True)
class Frames:
    """Raw tables of a data set; features are flat for sparse and wide for dense ones."""

    interactions: pd.DataFrame
    user_features: pd.DataFrame | None
    item_features: pd.DataFrame | None
    dense: bool

    def dataset(self) -> Dataset:
        return Dataset.construct(
            self.interactions,
            self.user_features,
            ["group", "hobby"],
            self.dense,
            self.item_features,
            ["genre"],
            self.dense,
        )

    def shuffled(self, seed: int) -> Frames:
        """The same data in another order of rows, so with other internal ids."""

        def shuffle(frame: pd.DataFrame | None) -> pd.DataFrame | None:
            return None if frame is None else frame.sample(frac=1, random_state=seed).reset_index(drop=True)

        interactions = self.interactions.sample(frac=1, random_state=seed).reset_index(drop=True)
        return replace(
            self,
            interactions=interactions,
            user_features=shuffle(self.user_features),
            item_features=shuffle(self.item_features),
        )


def _frames(
    n_users: int = 40,
    n_items: int = 24,
    n_per_user: int = 8,
    features: str | None = "sparse",
    n_warm: int = 0,
    seed: int = 0,
) -> Frames:
    """
    Make two groups of users, each of which likes its own half of the catalogue.

    Users are called "u000", "u001", ...; user ``j`` is of group ``j % 2``. Items are called 100, 101, ...; item ``i``
    is of genre ``i % 2``. A user has `n_per_user` items: all but one of the own genre, popular ones more often.
    Features tell the group and the genre. The last `n_warm` users and items have features and no interactions.
    """
    rng = np.random.default_rng(seed)
    users, items, times = [], [], []
    for user in range(n_users):
        own = np.arange(user % 2, n_items, 2)
        weights = 1.0 / np.arange(2, len(own) + 2)
        liked = rng.choice(own, min(n_per_user - 1, len(own)), replace=False, p=weights / weights.sum())
        stray = rng.choice(np.arange(1 - user % 2, n_items, 2), 1)
        users += [f"u{user:03}"] * (len(liked) + 1)
        items += [*(100 + liked), *(100 + stray)]
        times += list(rng.integers(0, 10_000, len(liked) + 1))
    interactions = pd.DataFrame(
        {
            Columns.User: users,
            Columns.Item: items,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2024-01-01") + pd.to_timedelta(times, unit="min"),
        }
    )
    user_ids = np.array([f"u{user:03}" for user in range(n_users + n_warm)])
    item_ids = 100 + np.arange(n_items + n_warm)
    if features is None:
        return Frames(interactions, None, None, dense=False)
    ages = rng.integers(18, 80, len(user_ids)).astype(float)
    prices = rng.integers(1, 100, len(item_ids)).astype(float)
    group, genre = np.arange(len(user_ids)) % 2, np.arange(len(item_ids)) % 2
    if features == "dense":
        return Frames(
            interactions,
            pd.DataFrame({"id": user_ids, "age": ages, "group": group.astype(float)}),
            pd.DataFrame({"id": item_ids, "price": prices, "genre": genre.astype(float)}),
            dense=True,
        )
    assert features == "sparse"
    hobbies = rng.choice(["chess", "golf", "sailing"], (len(user_ids), 2))
    user_parts = [
        _flat(user_ids, "group", [f"g{value}" for value in group]),
        _flat(user_ids, "hobby", hobbies[:, 0]),
        _flat(user_ids[::3], "hobby", hobbies[::3, 1]),
        _flat(user_ids[::2], "age", ages[::2]),
    ]
    item_parts = [_flat(item_ids, "genre", [f"c{value}" for value in genre]), _flat(item_ids, "price", prices)]
    return Frames(interactions, pd.concat(user_parts), pd.concat(item_parts), dense=False)


def _flat(ids: np.ndarray, feature: str, values: Sequence[object] | np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"id": ids, "feature": feature, "value": list(values)})


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., Frames]:
    """
    Factory of the raw tables of a small data set.

    Keywords: ``n_users``, ``n_items``, ``n_per_user``, ``features`` ("sparse", "dense" or None), ``n_warm``, ``seed``.
    ``.dataset()`` builds the data set, ``.shuffled(seed)`` gives the same data in another order.
    """
    return _frames


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """Factory of small data sets; keywords as for ``make_frames``."""
    return lambda **options: _frames(**options).dataset()


@pytest.fixture(scope="session")
def make_histories() -> Callable[[Sequence[Sequence[int]], int], Histories]:
    """Factory of histories from a list of item rows for each user, and the size of the item axis."""

    def make(lists: Sequence[Sequence[int]], n_items: int) -> Histories:
        indptr = np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64)
        return Histories(indptr, np.array([item for items in lists for item in items], np.int64), n_items)

    return make


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """Spark session on two threads; tests that ask for it are skipped where pyspark or Java is not installed."""
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Java is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        builder = sql.SparkSession.builder.master("local[2]").appName("rectools_neural tests")
        options = {
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "2",
            "spark.driver.memory": "2g",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
        }
        for key, value in options.items():
            builder = builder.config(key, value)
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        yield session
        session.stop()
