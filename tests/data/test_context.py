from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from rectools_neural.data.batches import FeatureSchema
from rectools_neural.data.context import ContextEncoder
from rectools_neural.data.features import EncodedFeatures

TABLE = pd.DataFrame(
    {
        "hour": [1.0, 5.0, np.nan, 0.0],
        "price": [10, 20, 30, 40],
        "place": ["home", None, "work", "home"],
        "day": [1, 2, 2, 1],
        "other": ["x"] * 4,
    }
)
NUMERIC, CATEGORICAL = ("hour", "price"), ("place", "day")


@pytest.fixture
def encoder() -> ContextEncoder:
    return ContextEncoder.fit(TABLE, NUMERIC, CATEGORICAL)


def categories(encoded: EncodedFeatures) -> list[dict[str, Any]]:
    """Values of the fields of each row, None where they are missing."""
    schema = encoded.schema
    names = [*schema.values, *((field, None) for field in schema.fields)]
    matrix = encoded.categories
    assert set(matrix.data) <= {1.0}
    rows = [matrix.indices[a:b] for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]
    return [{str(names[j][0]): names[j][1] for j in columns} for columns in rows]


def test_fit(encoder: ContextEncoder) -> None:
    assert encoder.encoder.schema == FeatureSchema(
        fields=("day", "place"),
        values=(("day", 1), ("day", 2), ("place", "home"), ("place", "work")),
        numeric=("hour", "hour is missing", "price"),  # a price is never missing
    )


def test_encode(encoder: ContextEncoder) -> None:
    encoded = encoder.encode(TABLE, "The table")
    assert categories(encoded) == [
        {"day": 1, "place": "home"},
        {"day": 2, "place": None},
        {"day": 2, "place": "work"},
        {"day": 1, "place": "home"},
    ]
    # Mean 2 and variance 14 / 3 of 1, 5 and 0, which is a number like any other; what is missing is the mean.
    np.testing.assert_allclose(encoded.numeric[:, 0], np.array([-1, 3, 0, -2]) / (14 / 3) ** 0.5, rtol=1e-6)
    # One of four is missing: mean 1 / 4, variance 3 / 16.
    np.testing.assert_allclose(encoded.numeric[:, 1], np.array([-1, -1, 3, -1]) / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(encoded.numeric[:, 2], np.array([-15, -5, 5, 15]) / 125**0.5, rtol=1e-6)


def test_later_tables(encoder: ContextEncoder) -> None:
    """The fitted statistics and categories, whatever the columns and their order; what is new is missing."""
    later = pd.DataFrame({"day": [3.0, 1.0, np.nan], "place": ["moon", "work", "home"], "price": [25.0, np.nan, 10.0]})
    encoded = encoder.encode(later.assign(hour=7), "The table")
    assert categories(encoded) == [
        {"day": None, "place": None},
        {"day": 1, "place": "work"},
        {"day": None, "place": "home"},
    ]
    np.testing.assert_allclose(encoded.numeric[:, 0], 5 / (14 / 3) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(encoded.numeric[:, 1], -1 / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(encoded.numeric[:, 2], np.array([0, 0, -15]) / 125**0.5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_nothing_known(encoder: ContextEncoder, missing: Any) -> None:
    table = pd.DataFrame({name: [missing] * 2 for name in (*NUMERIC, *CATEGORICAL)}, dtype=object)
    expected = encoder.encoder.missing(2)
    encoded = encoder.encode(table, "The table")
    assert (encoded.categories != expected.categories).nnz == 0
    assert not encoded.numeric[:, [0, 2]].any()
    np.testing.assert_allclose(encoded.numeric[:, 1], 3**0.5, rtol=1e-6)  # the hour is known to be missing
    assert len(encoder.encode(table.iloc[:0], "The table")) == 0


@pytest.mark.parametrize("dtype", ["category", "string", object])
def test_types_of_categories(dtype: Any) -> None:
    table = TABLE.astype({"place": dtype})
    encoder = ContextEncoder.fit(table, (), ("place",))
    expected: list[dict[str, Any]] = [{"place": value} for value in ("home", None, "work", "home")]
    assert categories(encoder.encode(TABLE, "The table")) == expected
    assert categories(encoder.encode(table, "The table")) == expected


@pytest.mark.parametrize("dtype", ["Int64", "float32", "int8", object])
def test_types_of_numbers(encoder: ContextEncoder, dtype: Any) -> None:
    encoded = encoder.encode(TABLE.astype({"price": dtype}), "The table")
    np.testing.assert_array_equal(encoded.numeric, encoder.encode(TABLE, "The table").numeric)


def test_order_of_rows_does_not_matter(encoder: ContextEncoder) -> None:
    order = [2, 3, 1, 0]
    other = ContextEncoder.fit(TABLE.iloc[order], NUMERIC, CATEGORICAL)
    assert other.encoder.schema == encoder.encoder.schema
    expected, actual = encoder.encode(TABLE, "The table").take(np.array(order)), other.encode(TABLE.iloc[order], "It")
    assert (expected.categories != actual.categories).nnz == 0
    np.testing.assert_array_equal(actual.numeric, expected.numeric)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"drop": "hour"}, ["The table lack", "['hour']", "add them", "`context_numeric`", "`keep_extra_cols=True`"]),
        ({"drop": "place"}, ["The table lack", "['place']", "`context_categorical`"]),
        ({"hour": ["noon"] * 4}, ["`hour`", "`context_numeric`", "numbers", "noon"]),
        ({"hour": [1, np.inf, 2, 3]}, ["`hour`", "infinite"]),
    ],
    ids=str,
)
def test_bad_tables_are_named(encoder: ContextEncoder, changed: dict[str, Any], named: list[str]) -> None:
    bad = TABLE.drop(columns=changed["drop"]) if "drop" in changed else TABLE.assign(**changed)
    for use in (lambda: encoder.encode(bad, "The table"), lambda: ContextEncoder.fit(bad, NUMERIC, CATEGORICAL)):
        with pytest.raises(ValueError, match=r".") as error:
            use()
        for part in named:
            assert part.replace("The table", "") in str(error.value)


@pytest.mark.parametrize("column", ["hour", "place"])
def test_columns_without_values_are_named(column: str) -> None:
    with pytest.raises(ValueError, match=rf"\['{column}'\] .* no values: leave them out of `context_numeric`"):
        ContextEncoder.fit(TABLE.assign(**{column: None}), NUMERIC, CATEGORICAL)
