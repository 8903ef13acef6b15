from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rectools import Columns
from rectools.dataset import Dataset

from rectools_neural.data.batches import FeatureSchema
from rectools_neural.data.histories import Histories
from rectools_neural.data.reader import DatasetReader, Reading, Users, match, seen_matrix

Pair = tuple[Any, Any]


def dataset_of(pairs: list[Pair], item_prices: dict[Any, float] | None = None, user_ages: Any = None) -> Dataset:
    """Interactions in the order of time; prices and ages as features."""
    frame = pd.DataFrame({Columns.User: [user for user, _ in pairs], Columns.Item: [item for _, item in pairs]})
    frame[Columns.Datetime] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(len(pairs)), unit="h")
    return Dataset.construct(
        frame.assign(**{Columns.Weight: 1.0}),
        None if user_ages is None else flat("age", user_ages),
        item_features_df=None if item_prices is None else flat("price", item_prices),
    )


def flat(feature: str, values: dict[Any, float]) -> pd.DataFrame:
    return pd.DataFrame({"id": list(values), "feature": feature, "value": list(values.values())})


def names(users: Users, reader: DatasetReader) -> list[list[Any]]:
    """Histories by external ids."""
    histories = users.histories
    return [reader.item_ids[histories.take(np.array([row])).items].tolist() for row in range(len(users))]


TRAIN: list[Pair] = [("v", "b"), ("u", "c"), ("v", "a"), ("u", "b"), ("w", "c")]
PRICES = {"c": 1.0, "a": 3.0, "b": 5.0, "warm": 100.0}  # mean 3 and variance 8 / 3 without the warm one


@pytest.fixture
def train() -> Dataset:
    return dataset_of(TRAIN, PRICES)


@pytest.fixture
def reader(train: Dataset) -> DatasetReader:
    return DatasetReader.fit(train)


def prices_of(numeric: np.ndarray) -> list[float]:
    """Undo the standardisation."""
    return [round(float(value) * (8 / 3) ** 0.5 + 3, 4) for value in numeric[:, 0]]


class TestFit:
    def test_ids_are_sorted_and_have_interactions(self, reader: DatasetReader) -> None:
        assert reader.user_ids.tolist() == ["u", "v", "w"]
        assert reader.item_ids.tolist() == ["a", "b", "c"]
        assert prices_of(reader.item_features.numeric) == [3, 5, 1]
        assert reader.user_encoder.schema == FeatureSchema()
        assert reader.item_encoder.schema == FeatureSchema(numeric=("price",))

    @pytest.mark.parametrize("features", ["sparse", "dense", None])
    def test_order_of_rows_does_not_matter(self, features: str | None, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(features=features, n_warm=2)
        first, second = frames.dataset(), frames.shuffled(3).dataset()
        assert first.user_id_map.external_ids.tolist() != second.user_id_map.external_ids.tolist()
        one, two = DatasetReader.fit(first), DatasetReader.fit(second)
        assert one.user_ids.tolist() == two.user_ids.tolist()
        assert one.item_ids.tolist() == two.item_ids.tolist()
        assert one.item_features.schema == two.item_features.schema
        assert (one.item_features.categories != two.item_features.categories).nnz == 0
        np.testing.assert_allclose(one.item_features.numeric, two.item_features.numeric, atol=1e-6)
        a, b = one.training_users(first), two.training_users(second)
        assert a.rows.tolist() == b.rows.tolist() == list(range(40))
        assert a.histories.indptr.tolist() == b.histories.indptr.tolist()
        assert a.histories.items.tolist() == b.histories.items.tolist()
        np.testing.assert_allclose(a.features.numeric, b.features.numeric, atol=1e-6)

    def test_ids_of_mixed_types(self) -> None:
        pairs: list[Pair] = [(2, "b"), ("u", 1), (10, "b")]
        first = DatasetReader.fit(dataset_of(pairs))
        second = DatasetReader.fit(dataset_of(pairs[::-1]))
        assert first.user_ids.tolist() == second.user_ids.tolist()
        assert set(first.user_ids.tolist()) == {2, "u", 10}
        assert first.item_ids.tolist() == second.item_ids.tolist() == [1, "b"]

    def test_bad_features_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"^The user features `age` hold NaN"):
            DatasetReader.fit(dataset_of(TRAIN, user_ages={"u": np.nan}))


class TestExtend:
    def test_new_rows_come_last(self, reader: DatasetReader) -> None:
        later = dataset_of(
            [("a new one", "0"), ("u", "a"), ("v", "0"), ("b new one", "c")], {"0": 7.0, "a": 4.0, "c": 1}
        )
        grown = DatasetReader.fit(later, reader)
        assert grown.user_ids.tolist() == ["u", "v", "w", "a new one", "b new one"]
        assert grown.item_ids.tolist() == ["a", "b", "c", "0"]
        # The statistics are the fitted ones; b keeps its price, a has a newer one.
        assert prices_of(grown.item_features.numeric) == [4, 5, 1, 7]
        # The earlier reader stays as it was.
        assert reader.item_ids.tolist() == ["a", "b", "c"]
        assert prices_of(reader.item_features.numeric) == [3, 5, 1]
        users = grown.training_users(later)
        assert users.rows.tolist() == [0, 1, 3, 4]
        assert names(users, grown) == [["a"], ["0"], ["0"], ["c"]]

    def test_other_features_are_refused(self, reader: DatasetReader) -> None:
        with pytest.raises(ValueError, match="item features are none"):
            DatasetReader.fit(dataset_of(TRAIN), reader)


class TestItems:
    def test_fitted_ones_first_then_the_others(self, reader: DatasetReader) -> None:
        later = dataset_of([("x", "z"), ("x", "c"), ("x", "y")], {"y": 11.0, "z": 9.0, "c": 2.0, "q": 13.0})
        items = reader.items(later)
        assert items.rows.tolist() == [0, 1, 2, -1, -1, -1]
        # a and b from the training data, c newer, then z, y and q in the order of the dataset.
        assert prices_of(items.features.numeric) == [3, 5, 2, 9, 11, 13]
        batch = items.batch()
        assert batch.rows is not None
        assert batch.rows.tolist() == [0, 1, 2, 0, 0, 0]
        assert batch.is_unknown.tolist() == [[False], [False], [False], [True], [True], [True]]
        taken = items.take(np.array([4, 2]))
        assert taken.rows.tolist() == [-1, 2]
        assert prices_of(taken.features.numeric) == [11, 2]

    def test_without_features(self) -> None:
        reader = DatasetReader.fit(dataset_of(TRAIN))
        items = reader.items(dataset_of([("x", "z"), ("x", "b")]))
        assert items.rows.tolist() == [0, 1, 2, -1]
        assert items.features.numeric.shape == (4, 0)


class TestUsers:
    def test_rows_and_histories(self, reader: DatasetReader) -> None:
        later = dataset_of([("new", "c"), ("v", "z"), ("v", "c"), ("v", "a"), ("new", "z")], {"c": 1.0})
        users = reader.users(later, np.array([1, 0]))
        assert users.rows.tolist() == [1, -1]
        # z is unknown to the model; the histories are those of the later dataset.
        assert names(users, reader) == [["c", "a"], ["c"]]
        batch = users.batch()
        assert batch.rows.tolist() == [1, -1]
        assert batch.history.items.tolist() == [2, 0, 2]
        assert batch.history.lengths.tolist() == [2, 1]
        taken = users.take(np.array([1]))
        assert taken.rows.tolist() == [-1]
        assert names(taken, reader) == [["c"]]

    def test_features_belong_to_the_users(self) -> None:
        ages = {"w": 40.0, "u": 20.0, "warm": 50.0, "v": 30.0}
        train = dataset_of(TRAIN, user_ages=ages)
        reader = DatasetReader.fit(train)
        ids = train.user_id_map.convert_to_internal(["warm", "u", "v"])
        encoded = reader.users(train, ids).features.numeric[:, 0]
        # Mean 30 and variance 200 / 3 of u, v and w.
        np.testing.assert_allclose(encoded, np.array([20, -10, 0]) / (200 / 3) ** 0.5, rtol=1e-6)
        trained = reader.training_users(train).features.numeric[:, 0]
        np.testing.assert_allclose(trained, np.array([-10, 0, 10]) / (200 / 3) ** 0.5, rtol=1e-6)

    def test_training_users_are_in_the_order_of_their_rows(self, reader: DatasetReader, train: Dataset) -> None:
        users = reader.training_users(train)
        assert users.rows.tolist() == [0, 1, 2]
        assert names(users, reader) == [["c", "b"], ["b", "a"], ["c"]]

    def test_unknown_users(self, make_dataset: Callable[..., Dataset]) -> None:
        reader = DatasetReader.fit(make_dataset())
        nobody = reader.unknown_users(1)
        assert nobody.rows.tolist() == [-1]
        assert isinstance(nobody.histories, Histories)
        assert nobody.histories.lengths.tolist() == [0]
        assert nobody.histories.n_items == len(reader.item_ids)
        missing = reader.user_encoder.missing(1)
        assert (nobody.features.categories != missing.categories).nnz == 0
        assert nobody.features.numeric.tolist() == [[0.0]]


class TestPairs:
    """Interactions one by one, for models of labels, ratings and context."""

    READING = Reading(weights=True, pairs=True, context_numeric=("hour",), context_categorical=("place",))

    @staticmethod
    def frame() -> pd.DataFrame:
        """A repeated pair, equal times, a weight of 0, and a user whose only weight is 0."""
        rows = [
            ("v", "b", 2.0, 3, 1.0, "x"),
            ("u", "c", 5.0, 2, 2.0, None),
            ("u", "a", 4.0, 2, np.nan, "y"),
            ("u", "c", 0.0, 1, 4.0, "x"),
            ("w", "a", 0.0, 9, 5.0, "y"),
        ]
        frame = pd.DataFrame(rows, columns=["user_id", "item_id", "weight", "datetime", "hour", "place"])
        return frame.assign(datetime=pd.Timestamp("2024-01-01") + pd.to_timedelta(frame["datetime"], unit="h"))

    def read(self, frame: pd.DataFrame, reading: Reading) -> tuple[DatasetReader, Users]:
        dataset = Dataset.construct(frame, keep_extra_cols=True)
        reader = DatasetReader.fit(dataset, reading=reading)
        return reader, reader.training_users(dataset)

    def test_by_user_and_time(self) -> None:
        reader, users = self.read(self.frame(), self.READING)
        pairs = users.pairs
        assert pairs is not None
        assert pairs.weights is not None
        assert pairs.context is not None
        assert reader.user_ids[users.rows[pairs.users]].tolist() == ["u", "u", "u", "v", "w"]
        assert reader.item_ids[pairs.items].tolist() == ["c", "a", "c", "b", "a"]
        # A weight of 0 is a label or a rating like any other, though no part of a history.
        assert pairs.weights.tolist() == [0, 4, 5, 2, 0]
        assert users.histories.lengths.tolist() == [2, 1, 0]
        hours = np.array([4, np.nan, 2, 1, 5])
        expected = np.nan_to_num((hours - 3) / 2.5**0.5)
        np.testing.assert_allclose(pairs.context.numeric[:, 0], expected, rtol=1e-6)
        # The columns are x, y and missing.
        assert pairs.context.categories.indices.tolist() == [0, 1, 2, 0, 1]

    @pytest.mark.parametrize("seed", range(5))
    def test_order_of_rows_does_not_matter(self, seed: int) -> None:
        """Not even that of rows of one user and one time."""
        _, one = self.read(self.frame(), self.READING)
        _, two = self.read(self.frame().sample(frac=1, random_state=seed), self.READING)
        first, second = one.pairs, two.pairs
        assert first is not None
        assert second is not None
        for name in ("users", "items", "weights"):
            assert getattr(first, name).tolist() == getattr(second, name).tolist()
        assert first.context is not None
        assert second.context is not None
        assert first.context.numeric.tolist() == second.context.numeric.tolist()
        assert (first.context.categories != second.context.categories).nnz == 0

    @pytest.mark.parametrize("weight", [np.nan, -1.0])
    def test_weights_that_are_not_read(self, weight: float) -> None:
        frame = self.frame().assign(weight=weight)
        _, users = self.read(frame, Reading(pairs=True))
        assert users.pairs is not None
        assert users.pairs.weights is None
        with pytest.raises(ValueError, match="Column `weight`"):
            self.read(frame, Reading(pairs=True, weights=True))

    def test_only_where_wanted(self) -> None:
        _, users = self.read(self.frame(), Reading())
        assert users.pairs is None
        _, users = self.read(self.frame(), Reading(pairs=True))
        assert users.pairs is not None
        assert users.pairs.context is None

    def test_rows_of_a_later_dataset(self) -> None:
        """Positions are those among its users, items are rows of the fitted model."""
        reader, _ = self.read(self.frame(), self.READING)
        later = Dataset.construct(self.frame().iloc[[4, 0]].assign(item_id=["a", "c"]), keep_extra_cols=True)
        users = DatasetReader.fit(later, reader, self.READING).training_users(later)
        assert users.rows.tolist() == [1, 2]
        assert users.pairs is not None
        assert users.pairs.users.tolist() == [0, 1]
        assert users.pairs.items.tolist() == [2, 0]

    def test_context_of_those_who_ask(self) -> None:
        reader, _ = self.read(self.frame(), self.READING)
        asked = pd.DataFrame({"hour": [5.0, 1.0], "place": ["x", "new"]}, index=["w", "nobody"])
        aligned = reader.align(Dataset.construct(self.frame()), context=asked)
        encoded = reader.context_of(aligned, np.array(["nobody", "w"]))
        assert encoded is not None
        np.testing.assert_allclose(encoded.numeric[:, 0], np.array([-2, 2]) / 2.5**0.5, rtol=1e-6)
        assert encoded.categories.indices.tolist() == [2, 0]
        assert reader.context_of(reader.align(Dataset.construct(self.frame())), np.array(["w"])) is None


class TestAlign:
    def test_items_of_the_model_come_first(self, reader: DatasetReader) -> None:
        later = dataset_of([("x", "z"), ("u", "c"), ("x", "a")], {"z": 9.0, "c": 2.0, "q": 13.0})
        aligned = reader.align(later)
        assert aligned.item_id_map.external_ids.tolist() == ["a", "b", "c", "z", "q"]
        assert aligned.user_id_map.external_ids.tolist() == later.user_id_map.external_ids.tolist()
        assert not aligned.is_for_items
        assert aligned.items.rows.tolist() == [0, 1, 2, -1, -1]
        assert prices_of(aligned.items.features.numeric) == [3, 5, 2, 9, 13]
        pd.testing.assert_frame_equal(aligned.get_raw_interactions(), later.get_raw_interactions())

    def test_leaves_the_dataset_alone(self, reader: DatasetReader) -> None:
        later = dataset_of([("x", "z"), ("u", "c")], {"z": 9.0})
        before = later.interactions.df.copy()
        reader.align(later)
        pd.testing.assert_frame_equal(later.interactions.df, before)


class TestOptions:
    def test_popularity_counts_the_interactions_of_each_item(self, reader: DatasetReader, train: Dataset) -> None:
        counts = train.get_raw_interactions()[Columns.Item].value_counts()
        assert reader.popularity.tolist() == [counts[item] for item in reader.item_ids]

    def test_features_are_left_out(self, train: Dataset) -> None:
        reader = DatasetReader.fit(train, reading=Reading(features=False))
        assert train.item_features is not None
        assert reader.item_encoder.schema.is_empty
        assert reader.items(train).features.numeric.shape == (train.item_id_map.size, 0)
        # Nor need a later dataset have the same ones.
        assert len(reader.users(dataset_of(TRAIN), np.array([0]))) == 1

    @pytest.mark.parametrize("use_weights", [False, True])
    def test_weights(self, use_weights: bool) -> None:
        frame = pd.DataFrame({"user_id": ["u", "u", "u"], "item_id": ["b", "a", "c"], "weight": [2.0, 3.0, 4.0]})
        dataset = Dataset.construct(frame.assign(datetime=pd.to_datetime(["2024-01-02", "2024-01-01", "2024-01-03"])))
        reader = DatasetReader.fit(dataset, reading=Reading(weights=use_weights))
        batch = reader.users(dataset, np.array([0])).batch()
        assert batch.history.items.tolist() == [0, 1, 2]
        weights = batch.history.weights
        assert (None if weights is None else weights.tolist()) == ([3.0, 2.0, 4.0] if use_weights else None)


class TestMatch:
    @pytest.mark.parametrize(
        ("ids", "known", "expected"),
        [
            (["b", "x", "a"], ["a", "b"], [1, -1, 0]),
            ([3, 1, 1], [1, 2, 3], [2, 0, 0]),
            ([1, 2], ["1", "2"], [-1, -1]),
            ([], ["a"], []),
            ([1.5, 2.0], [2, 4], [-1, 0]),
        ],
    )
    def test_positions(self, ids: list[Any], known: list[Any], expected: list[int]) -> None:
        found = match(np.array(ids), np.array(known))
        assert found.tolist() == expected
        assert found.dtype == np.int64

    def test_objects(self) -> None:
        mixed = np.array([1, "a", (2, 3)], dtype=object)
        assert match(mixed[::-1], mixed).tolist() == [2, 1, 0]


def test_seen_matrix(train: Dataset, reader: DatasetReader) -> None:
    aligned = reader.align(train)
    users = train.user_id_map.convert_to_internal(["w", "v"])
    matrix = seen_matrix(aligned, users, np.array([2, 0, 3]))  # c, a, warm
    assert matrix.toarray().astype(bool).tolist() == [[True, False, False], [False, True, False]]
