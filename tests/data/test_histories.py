from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rectools import Columns
from rectools.dataset import Dataset

from rectools_neural.data.histories import Histories

MakeHistories = Callable[[Sequence[Sequence[int]], int], Histories]


def dataset_of(rows: list[tuple[str, str, int]]) -> Dataset:
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, "minute"])
    frame[Columns.Datetime] = pd.Timestamp("2024-01-01") + pd.to_timedelta(frame.pop("minute"), unit="min")
    return Dataset.construct(frame.assign(**{Columns.Weight: 1.0}))


def read(dataset: Dataset) -> Histories:
    """Histories whose item rows follow the sorted external ids."""
    order = np.argsort(np.argsort(dataset.item_id_map.external_ids))
    return Histories.from_dataset(dataset, order, dataset.item_id_map.size)


def lists(histories: Histories) -> list[list[int]]:
    return [
        histories.items[start:end].tolist()
        for start, end in zip(histories.indptr[:-1], histories.indptr[1:], strict=True)
    ]


class TestFromDataset:
    def test_time_order_duplicates_and_ties(self) -> None:
        # Items a, b, c, d are rows 0 to 3.
        dataset = dataset_of(
            [
                ("u", "c", 5),
                ("u", "a", 9),
                ("v", "d", 1),
                ("u", "b", 7),
                ("u", "c", 8),  # the later one of the two counts
                ("v", "b", 1),  # the same time as d: by item
                ("w", "a", 3),
                ("w", "a", 2),
            ]
        )
        histories = read(dataset)
        assert lists(histories) == [[1, 2, 0], [1, 3], [0]]
        assert histories.lengths.tolist() == [3, 2, 1]
        assert histories.n_items == 4
        assert len(histories) == 3
        assert histories.indptr.dtype == histories.items.dtype == np.int64

    def test_item_index_renames_and_leaves_out(self) -> None:
        dataset = dataset_of([("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("v", "b", 1)])
        histories = Histories.from_dataset(dataset, np.array([7, -1, 2]), 9)
        assert lists(histories) == [[7, 2], []]
        assert histories.n_items == 9

    def test_users_without_interactions_have_empty_histories(self) -> None:
        frame = dataset_of([("u", "a", 1)]).get_raw_interactions()
        features = pd.DataFrame({"id": ["u", "warm"], "feature": "age", "value": 1})
        histories = read(Dataset.construct(frame, user_features_df=features))
        assert lists(histories) == [[0], []]

    @given(
        st.lists(st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abcdefg"), st.integers(0, 6)), min_size=1),
        st.randoms(use_true_random=False),
    )
    def test_equals_pandas_in_any_order_of_rows(self, rows: list[tuple[str, str, int]], random: object) -> None:
        shuffled = rows.copy()
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        dataset = dataset_of(shuffled)
        names = sorted({item for _, item, _ in rows})
        last = pd.DataFrame(rows, columns=["user", "item", "time"]).groupby(["user", "item"], as_index=False).max()
        last["row"] = last["item"].map(names.index)
        expected = last.sort_values(["user", "time", "row"]).groupby("user")["row"].apply(list)
        actual = pd.Series(lists(read(dataset)), index=dataset.user_id_map.external_ids).sort_index()
        assert actual.to_dict() == expected.to_dict()


class TestWeights:
    def weighted(self, *weights: float) -> Dataset:
        frame = dataset_of([("u", "a", 3), ("v", "a", 1), ("u", "b", 2), ("u", "a", 1)]).get_raw_interactions()
        return Dataset.construct(frame.assign(**{Columns.Weight: weights}))

    def test_sums_those_of_repeated_interactions_and_drops_zeros(self) -> None:
        dataset = self.weighted(2.0, 0.0, 5.0, 0.5)
        histories = Histories.from_dataset(dataset, np.array([0, 1]), 2, use_weights=True)
        assert lists(histories) == [[1, 0], []]
        assert histories.weights is not None
        assert histories.weights.tolist() == [5.0, 2.5]
        assert histories.to_csr().toarray().tolist() == [[2.5, 5.0], [0, 0]]
        again = histories.take(np.array([1, 0, 0])).weights
        assert again is not None
        assert again.tolist() == [5.0, 2.5] * 2
        assert Histories.from_dataset(dataset, np.array([0, 1]), 2).weights is None

    @pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
    def test_refuses_what_makes_no_sense(self, wrong: float) -> None:
        with pytest.raises(ValueError, match=f"`weight` .* 1 values .* {wrong} of user u and item b"):
            Histories.from_dataset(self.weighted(1.0, 1.0, wrong, 1.0), np.array([0, 1]), 2, use_weights=True)


class TestFromPairs:
    def test_last_of_equal_pairs_counts(self) -> None:
        users, items = np.array([1, 1, 0, 1, 1]), np.array([2, 0, 2, 2, 1])
        assert lists(Histories.from_pairs(users, items, 3, 4)) == [[2], [0, 2, 1], []]

    def test_nothing(self) -> None:
        nothing = np.zeros(0, np.int64)
        histories = Histories.from_pairs(nothing, nothing, 2, 3)
        assert lists(histories) == [[], []]
        assert histories.keys().tolist() == []
        assert histories.popularity().tolist() == [0, 0, 0]
        assert histories.to_csr().shape == (2, 3)

    def test_large_keys_do_not_overflow(self) -> None:
        # user * n_items is beyond 32 bits.
        users, items, n_items = np.array([99_999, 99_999, 3]), np.array([70_000, 69_999, 70_000]), 70_001
        histories = Histories.from_pairs(users, items, 100_000, n_items)
        assert histories.take(np.array([99_999])).items.tolist() == [70_000, 69_999]
        assert histories.keys().tolist() == [3 * n_items + 70_000, 99_999 * n_items + 69_999, 99_999 * n_items + 70_000]


class TestViews:
    @pytest.fixture
    def histories(self, make_histories: MakeHistories) -> Histories:
        return make_histories([[3, 0], [], [2, 3, 1], [3]], 5)

    def test_take(self, histories: Histories) -> None:
        taken = histories.take(np.array([2, 1, 2, 0]))
        assert lists(taken) == [[2, 3, 1], [], [2, 3, 1], [3, 0]]
        assert taken.n_items == 5
        assert lists(histories.take(np.zeros(0, np.int64))) == []

    def test_rows(self, histories: Histories) -> None:
        assert histories.rows().tolist() == [0, 0, 2, 2, 2, 3]

    def test_keys(self, histories: Histories) -> None:
        assert histories.keys().tolist() == [0, 3, 11, 12, 13, 18]

    def test_popularity(self, histories: Histories) -> None:
        assert histories.popularity().tolist() == [1, 1, 1, 3, 0]

    def test_to_csr(self, histories: Histories) -> None:
        matrix = histories.to_csr()
        assert matrix.dtype == np.float32
        assert matrix.has_sorted_indices
        assert matrix.toarray().tolist() == [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 0]]
        # The order of time in the histories themselves stays.
        assert histories.items.tolist() == [3, 0, 2, 3, 1, 3]

    @given(
        st.lists(st.lists(st.integers(0, 8), unique=True, max_size=9), min_size=1, max_size=8),
        st.lists(st.integers(0, 7), max_size=12),
    )
    def test_agree_with_lists(self, make_histories: MakeHistories, items: list[list[int]], users: list[int]) -> None:
        chosen = [user % len(items) for user in users]
        taken = make_histories(items, 9).take(np.array(chosen, np.int64))
        wanted = [items[user] for user in chosen]
        assert lists(taken) == wanted
        assert taken.rows().tolist() == [row for row, own in enumerate(wanted) for _ in own]
        assert taken.keys().tolist() == sorted(row * 9 + item for row, own in enumerate(wanted) for item in own)
        assert taken.popularity().tolist() == [sum(item in own for own in wanted) for item in range(9)]
        assert taken.to_csr().toarray().tolist() == [[float(item in own) for item in range(9)] for own in wanted]
        pairs = Histories.from_pairs(taken.rows(), taken.items, len(wanted), 9)
        assert lists(pairs) == wanted
