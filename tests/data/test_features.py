from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rectools import Columns
from rectools.dataset import Dataset, DenseFeatures, SparseFeatures
from scipy import sparse

from rectools_neural.data.batches import FeatureSchema
from rectools_neural.data.features import EncodedFeatures, FeatureEncoder

Row = tuple[Any, ...]


def interactions(*items: Any) -> pd.DataFrame:
    return pd.DataFrame({Columns.User: 1, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: "2024-01-01"})


def sparse_dataset(items: list[Any], rows: list[Row], categorical: tuple[str, ...] = ("genre", "colour")) -> Dataset:
    flat = pd.DataFrame(rows, columns=["id", "feature", "value", "weight"]).astype({"weight": float})
    return Dataset.construct(interactions(*items), item_features_df=flat, cat_item_features=categorical)


def dense_dataset(items: list[Any], columns: dict[str, list[float]], ids: list[Any]) -> Dataset:
    frame = pd.DataFrame({"id": ids, **columns})
    return Dataset.construct(interactions(*items), item_features_df=frame, make_dense_item_features=True)


def fit(dataset: Dataset) -> FeatureEncoder:
    return FeatureEncoder.fit(dataset.item_features, "item", np.unique(dataset.interactions.df[Columns.Item]))


def encode(encoder: FeatureEncoder, dataset: Dataset) -> EncodedFeatures:
    return encoder.encode(dataset.item_features, dataset.item_id_map.size)


# Items 10, 20 and 30 are in the training data, 40 is warm, 30 has no features.
ROWS: list[Row] = [
    (20, "price", 4, 1),
    (10, "genre", "b", 3),
    (40, "genre", "c", 1),
    (10, "price", 2, 1),
    (10, "colour", "red", 1),
    (20, "genre", "b", 0.5),
    (40, "colour", "red", 2),
    (10, "genre", "a", 1),
    (40, "price", 100, 1),
]


@pytest.fixture(scope="module")
def catalogue() -> Dataset:
    return sparse_dataset([10, 20, 30], ROWS)


class TestSparse:
    def test_schema_is_sorted_and_knows_the_values_of_training_entities_only(self, catalogue: Dataset) -> None:
        assert fit(catalogue).schema == FeatureSchema(
            fields=("colour", "genre"),
            values=(("colour", "red"), ("genre", "a"), ("genre", "b")),
            numeric=("price",),
        )
        assert fit(catalogue).schema.n_categories == 5

    def test_encoded_by_hand(self, catalogue: Dataset) -> None:
        encoded = encode(fit(catalogue), catalogue)
        assert encoded.categories.toarray().tolist() == [
            # red, a, b, no colour, no genre
            [1.0, 0.25, 0.75, 0.0, 0.0],
            [0.0, 0.0, 1.0, 1.0, 0.0],
            [0.0, 0.0, 0.0, 1.0, 1.0],
            [1.0, 0.0, 0.0, 0.0, 1.0],  # its genre is unknown to the training data
        ]
        # Mean 3 and standard deviation 1 of the training items; 30 has no price.
        assert encoded.numeric.tolist() == [[-1.0], [1.0], [0.0], [97.0]]
        assert encoded.categories.dtype == encoded.numeric.dtype == np.float32
        assert len(encoded) == 4

    def test_unseen_value_in_a_later_dataset(self, catalogue: Dataset) -> None:
        later = sparse_dataset(
            [7, 8],
            [
                (8, "genre", "new", 1),
                (7, "genre", "new", 3),
                (7, "genre", "a", 1),
                (7, "price", 3, 1),
                (8, "colour", "red", 1),
            ],
        )
        encoded = encode(fit(catalogue), later)
        # A known value beside an unknown one takes the whole field, an unknown one alone is a missing one.
        assert encoded.categories.toarray().tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
        assert encoded.numeric.tolist() == [[0.0], [0.0]]

    def test_weights_that_are_not_positive_do_not_count(self) -> None:
        dataset = sparse_dataset(
            [1, 2, 3],
            [(1, "genre", "a", 1), (1, "genre", "b", -1), (2, "genre", "b", 0), (3, "genre", "b", 1)],
            ("genre",),
        )
        assert encode(fit(dataset), dataset).categories.toarray().tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]

    def test_stored_zero_is_a_number_and_not_missing(self) -> None:
        dataset = sparse_dataset([1, 2, 3], [(1, "price", 0, 1), (2, "price", 2, 1), (3, "colour", "red", 1)])
        assert encode(fit(dataset), dataset).numeric.tolist() == [[-1.0], [1.0], [0.0]]

    def test_constant_number_tells_nothing(self) -> None:
        ids = list(range(1000))
        dataset = sparse_dataset(ids, [(item, "price", 16777.3, 1) for item in ids])
        assert np.abs(encode(fit(dataset), dataset).numeric).max() < 1e-3

    def test_only_numbers(self) -> None:
        dataset = sparse_dataset([1, 2], [(1, "price", 1, 1), (2, "price", 3, 1), (1, "year", 5, 1)], ())
        encoded = encode(fit(dataset), dataset)
        assert encoded.schema == FeatureSchema(numeric=("price", "year"))
        assert encoded.categories.shape == (2, 0)
        assert encoded.numeric.tolist() == [[-1.0, 0.0], [1.0, 0.0]]

    def test_only_categories(self) -> None:
        dataset = sparse_dataset([1, 2], [(1, "genre", "a", 1), (2, "genre", "b", 1)])
        encoded = encode(fit(dataset), dataset)
        assert encoded.categories.toarray().tolist() == [[1, 0, 0], [0, 1, 0]]
        assert encoded.numeric.shape == (2, 0)

    def test_values_of_any_type_and_equal_names(self) -> None:
        dataset = sparse_dataset([1, 2, 3], [(1, "genre", 1, 1), (2, "genre", "1", 1), (3, "colour", 1, 1)])
        encoded = encode(fit(dataset), dataset)
        assert encoded.schema.n_categories == 5
        assert len({tuple(row) for row in encoded.categories.toarray()}) == 3

    @settings(max_examples=25)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 4))
    def test_each_field_adds_up_to_one(self, seed: int, n_items: int, n_fields: int) -> None:
        rng = np.random.default_rng(seed)
        n_rows = int(rng.integers(1, 40))
        rows = list(
            zip(
                rng.integers(0, n_items + 3, n_rows),
                [f"f{j}" for j in rng.integers(0, n_fields, n_rows)],
                rng.integers(0, 4, n_rows),
                rng.random(n_rows) * 10 + 1e-3,
                strict=True,
            )
        )
        dataset = sparse_dataset(list(range(n_items)), rows, tuple(f"f{j}" for j in range(n_fields)))
        encoder = fit(dataset)
        encoded = encode(encoder, dataset)
        schema = encoder.schema
        field_of_column = np.array(
            [schema.fields.index(name) for name, _ in schema.values] + list(range(len(schema.fields)))
        )
        dense = encoded.categories.toarray()
        assert (dense >= 0).all()
        for j in range(len(schema.fields)):
            np.testing.assert_allclose(dense[:, field_of_column == j].sum(axis=1), 1, atol=1e-6)
        # The row of the missing value is all or nothing: it stands in only where no known value is.
        missing = dense[:, len(schema.values) :]
        assert set(np.unique(missing)) <= {0.0, 1.0}
        # And each weight is the share of its value among the known ones of the field.
        flat = pd.DataFrame(rows, columns=["id", "feature", "value", "weight"])
        known = set(zip(flat.feature[flat.id < n_items], flat.value[flat.id < n_items], strict=True))
        flat = flat[[pair in known for pair in zip(flat.feature, flat.value, strict=True)]]
        share = flat.groupby(["id", "feature", "value"]).weight.sum()
        share = share / share.groupby(["id", "feature"]).transform("sum")
        assert encoded.categories[:, : len(schema.values)].nnz == len(share)
        for (item, feature, value), expected in zip(share.index.tolist(), share, strict=True):
            row = dataset.item_id_map.convert_to_internal([item])[0]
            column = schema.values.index((feature, value))
            assert dense[row, column] == pytest.approx(expected, rel=1e-5)


class TestDense:
    def test_encoded_by_hand(self) -> None:
        dataset = dense_dataset(
            [10, 20], {"price": [7.0, 1.0, 3.0], "flat": [9.0, 5.0, 5.0], "year": [0.0, 10.0, 30.0]}, [40, 10, 20]
        )
        encoder = fit(dataset)
        assert encoder.schema == FeatureSchema(numeric=("price", "flat", "year"))
        encoded = encode(encoder, dataset)
        # Standardised on 10 and 20 alone: means 2, 5, 20; deviations 1, 0, 10. Item 40 is warm; what is constant
        # in training tells nothing, not even of a warm item.
        assert encoded.numeric.tolist() == [[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0], [5.0, 0.0, -2.0]]
        assert encoded.categories.shape == (3, 0)

    def test_entities_without_a_row_are_missing(self) -> None:
        dataset = dense_dataset([1, 2], {"price": [1.0, 3.0]}, [1, 2])
        assert fit(dataset).encode(dataset.item_features, 4).numeric.tolist() == [[-1.0], [1.0], [0.0], [0.0]]


class TestForms:
    def test_no_features(self) -> None:
        encoder = FeatureEncoder.fit(None, "user", np.arange(2))
        encoded = encoder.encode(None, 3)
        assert encoded.schema == FeatureSchema()
        assert encoded.schema.is_empty
        assert encoded.categories.shape == (3, 0)
        assert encoded.numeric.shape == (3, 0)
        assert len(encoded.batch().offsets) == 3

    def test_entities_without_a_row_are_missing(self, catalogue: Dataset) -> None:
        encoder = fit(catalogue)
        encoded = encoder.encode(catalogue.item_features, 6)
        expected = encoder.missing(2)
        assert expected.categories.toarray().tolist() == [[0, 0, 0, 1, 1]] * 2
        assert expected.numeric.tolist() == [[0.0], [0.0]]
        tail = encoded.take(np.array([4, 5]))
        assert tail.categories.toarray().tolist() == expected.categories.toarray().tolist()
        assert tail.numeric.tolist() == expected.numeric.tolist()
        assert len(encoder.missing(0)) == 0

    def test_take_and_append(self, catalogue: Dataset) -> None:
        encoded = encode(fit(catalogue), catalogue)
        dense = encoded.categories.toarray()
        rows = np.array([2, 0, 0])
        taken = encoded.take(rows)
        assert taken.categories.toarray().tolist() == dense[rows].tolist()
        assert taken.numeric.tolist() == encoded.numeric[rows].tolist()
        both = taken.append(encoded)
        assert both.categories.toarray().tolist() == [*dense[rows].tolist(), *dense.tolist()]
        assert both.numeric.tolist() == [*encoded.numeric[rows].tolist(), *encoded.numeric.tolist()]
        assert both.schema == encoded.schema

    def test_batch_reads_back_as_the_matrix(self, catalogue: Dataset) -> None:
        encoded = encode(fit(catalogue), catalogue)
        for rows in (None, np.array([3, 1, 1, 2])):
            batch = encoded.batch() if rows is None else encoded.batch().take(torch.from_numpy(rows))
            expected = encoded if rows is None else encoded.take(rows)
            identity = torch.eye(encoded.schema.n_categories)
            read = torch.nn.functional.embedding_bag(
                batch.categories, identity, batch.offsets, per_sample_weights=batch.weights, mode="sum"
            )
            assert read.tolist() == expected.categories.toarray().tolist()
            assert batch.numeric.tolist() == expected.numeric.tolist()

    def test_batch_moves_as_a_whole(self, catalogue: Dataset) -> None:
        moved = encode(fit(catalogue), catalogue).batch().to(torch.device("meta"))
        assert {t.device.type for t in (moved.categories, moved.weights, moved.offsets, moved.numeric)} == {"meta"}


class TestOrderOfRows:
    @pytest.mark.parametrize("features", ["sparse", "dense"])
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_does_not_matter(self, features: str, seed: int, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(features=features, n_warm=3)
        self._assert_same(frames.dataset(), frames.shuffled(seed).dataset())

    @settings(max_examples=20)
    @given(st.integers(0, 2**32 - 1))
    def test_does_not_matter_for_any_numbers(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ids = np.arange(60)
        flat = pd.DataFrame({"id": ids, "feature": "price", "value": rng.lognormal(3, 2, 60)})
        order = rng.permutation(60)
        first, second = (
            Dataset.construct(
                pd.DataFrame({Columns.User: ids[rows], Columns.Item: 0, Columns.Weight: 1, Columns.Datetime: 0}),
                user_features_df=flat.iloc[rows[::-1]],
            )
            for rows in (ids, order)
        )
        self._assert_same(first, second)

    @staticmethod
    def _assert_same(first: Dataset, second: Dataset) -> None:
        sides = [("user", "user_features", "user_id_map"), ("item", "item_features", "item_id_map")]
        for side, features, id_map in sides:
            if getattr(first, features) is None:
                continue
            encoded = []
            for dataset in (first, second):
                rows = np.unique(dataset.interactions.df[f"{side}_id"])
                encoder = FeatureEncoder.fit(getattr(dataset, features), side, rows)
                ids = getattr(dataset, id_map).convert_to_internal(np.sort(getattr(first, id_map).external_ids))
                encoded.append(encoder.encode(getattr(dataset, features), len(ids)).take(ids))
            assert encoded[0].schema == encoded[1].schema
            assert (encoded[0].categories != encoded[1].categories).nnz == 0
            assert encoded[0].numeric.tolist() == encoded[1].numeric.tolist()


class TestErrors:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_bad_number_in_sparse_features_is_named(self, bad: float, catalogue: Dataset) -> None:
        broken = sparse_dataset([10, 20, 30], [*ROWS, (30, "price", bad, 1)])
        message = r"^The item features `price` hold NaN or infinite values"
        with pytest.raises(ValueError, match=message):
            fit(broken)
        with pytest.raises(ValueError, match=message):
            encode(fit(catalogue), broken)

    def test_bad_weight_of_a_category_is_named_once(self) -> None:
        dataset = sparse_dataset(
            [1, 2], [(1, "genre", "a", np.nan), (2, "genre", "b", np.inf), (1, "colour", "red", 1)]
        )
        with pytest.raises(ValueError, match=r"^The item features `genre` hold NaN"):
            fit(dataset)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_bad_number_in_dense_features_is_named(self, bad: float) -> None:
        good = dense_dataset([1, 2], {"price": [1.0, 2.0], "year": [1.0, 2.0]}, [1, 2])
        broken = dense_dataset([1, 2], {"price": [1.0, 2.0], "year": [1.0, bad]}, [1, 2])
        with pytest.raises(ValueError, match=r"^The item features `year` hold NaN"):
            fit(broken)
        with pytest.raises(ValueError, match=r"^The item features `year` hold NaN"):
            encode(fit(good), broken)

    def test_features_of_another_kind(self, catalogue: Dataset) -> None:
        dense = dense_dataset([1, 2], {"price": [1.0, 2.0]}, [1, 2])
        with pytest.raises(ValueError, match=r"item features are none, but .* sparse ones \(colour, genre, price\)"):
            fit(catalogue).encode(None, 4)
        with pytest.raises(ValueError, match=r"item features are dense, but .* sparse"):
            encode(fit(catalogue), dense)
        with pytest.raises(ValueError, match=r"item features are sparse, but .* dense ones \(price\)"):
            encode(fit(dense), catalogue)
        with pytest.raises(ValueError, match=r"user features are sparse, but .* none ones \(none\)"):
            FeatureEncoder.fit(None, "user", np.arange(1)).encode(catalogue.item_features, 4)

    def test_other_features(self, catalogue: Dataset) -> None:
        later = sparse_dataset([1], [(1, "genre", "a", 1), (1, "price", 1, 1), (1, "size", 3, 1)])
        with pytest.raises(ValueError, match=r"missing \['colour'\], unknown \['size'\]"):
            encode(fit(catalogue), later)

    def test_number_that_became_a_category(self, catalogue: Dataset) -> None:
        later = sparse_dataset([10], ROWS, ("genre", "colour", "price"))
        with pytest.raises(ValueError, match="price"):
            encode(fit(catalogue), later)

    def test_category_that_became_a_number(self) -> None:
        rows: list[Row] = [(1, "genre", 1, 1), (2, "genre", 2, 1), (1, "colour", 1, 1)]
        fitted = fit(sparse_dataset([1, 2], rows))
        with pytest.raises(ValueError, match="genre"):
            encode(fitted, sparse_dataset([1, 2], rows, ("colour",)))

    def test_dense_features_in_another_order(self) -> None:
        fitted = fit(dense_dataset([1, 2], {"price": [1.0, 2.0], "year": [1.0, 2.0]}, [1, 2]))
        with pytest.raises(ValueError, match="dense features changed their order"):
            encode(fitted, dense_dataset([1, 2], {"year": [1.0, 2.0], "price": [1.0, 2.0]}, [1, 2]))

    def test_names_of_mixed_types_are_still_reported(self) -> None:
        matrix = sparse.csr_matrix(np.ones((2, 2), np.float32))
        encoder = FeatureEncoder.fit(SparseFeatures(matrix, (("a", "x"), ("b", "y"))), "item", np.arange(2))
        with pytest.raises(ValueError, match="differ from the fitted ones"):
            encoder.encode(SparseFeatures(matrix, ((1, "x"), ("c", "y"))), 2)

    def test_message_names_dense_columns(self) -> None:
        features = DenseFeatures(np.array([[1.0, np.nan]]), ("a", "b"))
        with pytest.raises(ValueError, match=r"^The user features `b` hold"):
            FeatureEncoder.fit(features, "user", np.arange(1))
