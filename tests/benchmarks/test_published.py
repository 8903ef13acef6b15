from __future__ import annotations

import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from implicit.nearest_neighbours import CosineRecommender
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import MRR, NDCG, HitRate, Precision, Recall
from rectools.models import EASEModel, ImplicitItemKNNWrapperModel, PopularModel
from replay.splitters import TimeSplitter

from benchmarks.config import ModelSpec
from benchmarks.measure import build_model
from benchmarks.protocols import (
    PROTOCOLS,
    RANKED_AT_ONCE,
    Cut,
    LeaveOneOut,
    achievable_recall,
    average_precision,
    held_out_user_metrics,
    hit_matrix,
    hit_rate,
    hold_out_last,
    hold_out_users,
    leave_one_out,
    mean_over_users,
    ndcg,
    parts_per_user,
    precision,
    read_leave_one_out,
    recall,
    reciprocal_rank,
    replay_metrics,
    split_by_item,
    split_by_time,
)
from benchmarks.published import FOLDER, PublishedRows, add_row, load_config, main, measure, read_results, table
from benchmarks.tuning import job_config
from rectools_neural import load_dataset, model_from_config

K = 3


def small_published(dataset: Dataset) -> LeaveOneOut:
    """The first row of each user, to be ranked among ten items at random."""
    raw = dataset.get_raw_interactions()
    pairs = np.column_stack([pd.factorize(raw[column])[0] for column in Columns.UserItem])
    rng = np.random.default_rng(2)
    negatives = [(user, item) for user in range(40) for item in rng.permutation(30)[:10]]
    seen = set(map(tuple, pairs.tolist()))
    unseen = [pair for pair in negatives if pair not in seen]
    return LeaveOneOut(pairs[np.unique(pairs[:, 0], return_index=True)[1]], np.array(unseen))


# Six hundred users for each part are more than the small data have, and what is published is of other data.
SMALL_PROTOCOLS = PROTOCOLS | {
    "P4": dataclasses.replace(
        PROTOCOLS["P4"],
        split=lambda dataset, _seed: leave_one_out(dataset, small_published(dataset)),
        validation=lambda dataset, seed: hold_out_last(
            leave_one_out(dataset, small_published(dataset)).train, seed, n_negatives=10
        ),
    ),
    "P5": dataclasses.replace(
        PROTOCOLS["P5"],
        split=partial(hold_out_users, n_users=8, validate=False),
        validation=partial(hold_out_users, n_users=8, validate=True),
    ),
}
POPULAR = ModelSpec.model_validate({"cls": "PopularModel"})
has_ml_1m = pytest.mark.skipif(
    not (Path(os.environ.get("RECTOOLS_NEURAL_DATA", "")) / "ml-1m" / "ratings.parquet").is_file(),
    reason="the folder of RECTOOLS_NEURAL_DATA has no ml-1m",
)


@pytest.fixture(scope="module")
def ml_100k() -> Dataset:
    return load_dataset("ml-100k")


@pytest.fixture(scope="module")
def interactions() -> pd.DataFrame:
    """Forty users and 30 items, ratings, tied times, a given split; ids start at 100 and 1000."""
    rng = np.random.default_rng(5)
    pairs = rng.permutation(40 * 30)[:700]
    return pd.DataFrame(
        {
            Columns.User: 100 + pairs // 30,
            Columns.Item: 1000 + pairs % 30,
            Columns.Weight: rng.integers(1, 6, 700),
            Columns.Datetime: pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 120, 700), unit="D"),
            "rating": rng.integers(1, 6, 700),
            "split": rng.choice(["train", "valid", "test"], 700, p=[0.6, 0.2, 0.2]),
        }
    )


@pytest.fixture(scope="module")
def dataset(interactions: pd.DataFrame) -> Dataset:
    """With features of all users and items, among them one user and one item without interactions."""
    users = pd.DataFrame({"id": np.arange(100, 141), "feature": "parity", "value": np.arange(41) % 2})
    items = pd.DataFrame({"id": np.arange(1000, 1031), "feature": "third", "value": np.arange(31) % 3})
    return Dataset.construct(
        interactions, users, ["parity"], item_features_df=items, cat_item_features=["third"], keep_extra_cols=True
    )


def make_pairs(pairs: list[tuple[int, int]]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=Columns.UserItem)


def make_reco(lists: dict[int, list[int]]) -> pd.DataFrame:
    rows = [(user, item, 1.0, rank) for user, items in lists.items() for rank, item in enumerate(items, start=1)]
    return pd.DataFrame(rows, columns=[*Columns.UserItem, Columns.Score, Columns.Rank])


def pair_set(frame: pd.DataFrame) -> set[tuple[int, int]]:
    return set(frame[Columns.UserItem].itertuples(index=False, name=None))


class TestMetrics:
    TEST = make_pairs([(7, 1), (7, 2), (7, 3), (5, 9), (6, 4), (6, 5), (6, 6), (6, 7)])
    # User 5 hits at rank 2 of a short list, 6 at all ranks with more relevant items than ranks, 7 at ranks 1 and 3.
    RECO = make_reco({7: [1, 8, 3, 2], 5: [1, 9], 6: [7, 5, 4]})

    def test_hits(self) -> None:
        hits, n_relevant = hit_matrix(self.RECO, self.TEST, K)
        assert hits.tolist() == [[False, True, False], [True, True, True], [True, False, True]]
        assert n_relevant.tolist() == [1, 4, 3]

    def test_a_user_without_recommendations_has_no_hits(self) -> None:
        hits, n_relevant = hit_matrix(make_reco({7: [1]}), self.TEST, K)
        assert hits.tolist() == [[False] * 3, [False] * 3, [True, False, False]]
        for metric in (recall, precision, hit_rate, reciprocal_rank, average_precision, ndcg):
            assert metric(hits, n_relevant)[:2].tolist() == [0.0, 0.0]

    @pytest.mark.parametrize(
        ("metric", "expected"),
        [
            (recall, [1, 3 / 4, 2 / 3]),
            (achievable_recall, [1, 1, 2 / 3]),
            (precision, [1 / 3, 1, 2 / 3]),
            (hit_rate, [1, 1, 1]),
            (reciprocal_rank, [1 / 2, 1, 1]),
            (average_precision, [1 / 2, 3 / 4, (1 + 2 / 3) / 3]),
            (ndcg, [np.log(2) / np.log(3), 1, 1.5 / (1 + np.log(2) / np.log(3) + 0.5)]),
        ],
    )
    def test_by_hand(self, metric: Any, expected: list[float]) -> None:
        assert metric(*hit_matrix(self.RECO, self.TEST, K)) == pytest.approx(expected, abs=1e-15)

    def test_equal_rectools_and_replay(self) -> None:
        rng = np.random.default_rng(0)
        k = 10
        test = make_pairs([(user, item) for user in range(60) for item in rng.permutation(40)[: rng.integers(1, 20)]])
        reco = make_reco({user: rng.permutation(40)[: rng.integers(5, 15)].tolist() for user in range(60)})
        train = Dataset.construct(make_pairs([(0, item) for item in range(50)]).assign(weight=1, datetime="2020-01-01"))
        metrics = {"Recall": recall, "Precision": precision, "HitRate": hit_rate, "MRR": reciprocal_rank, "NDCG": ndcg}
        ours = mean_over_users(metrics, reco, Cut(train, test), k)

        rectools = [Recall(k), Precision(k), HitRate(k), MRR(k), NDCG(k, divide_by_achievable=True)]
        assert [metric.calc(reco, test) for metric in rectools] == pytest.approx(list(ours.values()), abs=1e-12)

        # Scores are all equal here: RePlay must see the order of the ranks.
        replay = replay_metrics(reco, Cut(train, test), k)
        for name in ("HitRate@10", "MRR@10", "NDCG@10"):
            assert replay[name] == pytest.approx(ours[name], abs=1e-12)
        hits, n_relevant = hit_matrix(reco, test, k)
        assert replay["MAP@10"] == pytest.approx(average_precision(hits, np.minimum(n_relevant, k)).mean(), abs=1e-12)
        assert replay["Coverage@10"] == reco.loc[reco[Columns.Rank] <= k, Columns.Item].nunique() / 50


class TestSplitByItem:
    def test_by_hand(self) -> None:
        # The first numbers of seed 42 are .37 .95 .73 .60 | .15602 .15599 .06 | .87 | .60 .71: the largest of item 1
        # and of item 2 are left for the test; 0.75 of one row and of two rows round to all of them.
        frame = pd.DataFrame(
            {Columns.User: [1, 2, 3, 4, 1, 2, 3, 1, 2, 3], Columns.Item: [1, 1, 1, 1, 2, 2, 2, 3, 4, 4]}
        )
        cut = split_by_item(Dataset.construct(frame.assign(weight=1, datetime="2020-01-01")), 42)
        assert pair_set(cut.test) == {(2, 1), (1, 2)}
        assert len(cut.train.interactions.df) == 8

    def test_half_rows_round_to_even(self) -> None:
        # 4.5 of the six rows of item 1. Item 2 gives every user train rows, so that none is dropped as cold.
        pairs = [(user, 1) for user in range(6)] + [(user, 2) for user in range(6)] * 4
        cut = split_by_item(Dataset.construct(make_pairs(pairs).assign(weight=1, datetime="2020-01-01")), 0)
        assert (cut.test[Columns.Item] == 1).sum() == 2

    def test_earlier_shuffle_restarts_for_every_item(self, dataset: Dataset) -> None:
        frame = dataset.get_raw_interactions()
        expected: set[tuple[int, int]] = set()
        for _, rows in frame.groupby(Columns.Item):
            expected |= pair_set(rows.sample(frac=1, random_state=42).iloc[round(0.75 * len(rows)) :])
        assert pair_set(PROTOCOLS["P1N"].split(dataset, 0).test) == expected

    def test_published_sar(self, ml_100k: Dataset) -> None:
        """SAR has no randomness: its published numbers check the cut and all four metrics, to the last digit."""
        protocol = PROTOCOLS["P1N"]
        cut = protocol.split(ml_100k, 0)
        metrics = protocol.metrics(sar(cut, ml_100k), cut, protocol.k)
        published = {"MAP@10": 0.113028, "NDCG@10": 0.388321, "Precision@10": 0.333828, "Recall@10": 0.183179}
        assert {name: round(value, 6) for name, value in metrics.items()} == published

    def test_runs_share_the_published_cut(self, dataset: Dataset) -> None:
        for name in ("P1", "P1N"):
            assert pair_set(PROTOCOLS[name].split(dataset, 0).test) == pair_set(PROTOCOLS[name].split(dataset, 1).test)
        assert pair_set(PROTOCOLS["P1"].split(dataset, 0).test) == pair_set(split_by_item(dataset, 42).test)


def sar(cut: Cut, dataset: Dataset) -> pd.DataFrame:
    """Recommend ten items by Jaccard similarity to the ratings of a user, halved every 30 days."""
    raw = dataset.get_raw_interactions().merge(cut.train.get_raw_interactions()[Columns.UserItem], on=Columns.UserItem)
    users, user = np.unique(raw[Columns.User], return_inverse=True)
    items, item = np.unique(raw[Columns.Item], return_inverse=True)
    age = (raw[Columns.Datetime].max() - raw[Columns.Datetime]) / pd.Timedelta(days=30)
    affinity, seen = np.zeros((2, users.size, items.size))
    affinity[user, item] = raw["rating"] * 0.5**age
    seen[user, item] = 1
    together = seen.T @ seen
    alone = together.diagonal()
    scores = np.where(seen > 0, -np.inf, affinity @ (together / (alone[:, None] + alone - together)))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return make_reco(dict(zip(users.tolist(), items[best].tolist(), strict=True)))


class TestSplitByTime:
    def test_equals_replay(self, interactions: pd.DataFrame, dataset: Dataset) -> None:
        late = interactions.assign(cold=interactions[Columns.User] == 139)
        late.loc[late["cold"], Columns.Datetime] = pd.Timestamp("2020-12-01")
        late.loc[late[Columns.Item] == 1029, Columns.Datetime] = pd.Timestamp("2020-12-02")
        cut = split_by_time(Dataset.construct(late))
        train, test = TimeSplitter(
            0.2,
            Columns.User,
            drop_cold_users=True,
            drop_cold_items=True,
            item_column=Columns.Item,
            timestamp_column=Columns.Datetime,
        ).split(late)
        assert pair_set(cut.train.get_raw_interactions()) == pair_set(train)
        assert pair_set(cut.test) == pair_set(test)
        assert 139 not in set(cut.test[Columns.User])
        assert 1029 not in set(cut.test[Columns.Item])

    def test_rows_of_the_first_held_out_moment_stay_together(self) -> None:
        days = ["2020-01-01"] * 6 + ["2020-01-02"] * 4
        frame = make_pairs([(row % 3, row) for row in range(10)]).assign(weight=1, datetime=days)
        cut = split_by_time(Dataset.construct(frame))
        assert len(cut.train.interactions.df) == 6

    @has_ml_1m
    def test_published_size(self) -> None:
        # Published: 669 181 train rows. Copies with estimated times of low ratings differ by single rows and users.
        cut = PROTOCOLS["P2"].split(load_dataset("ml-1m"), 0)
        train = cut.train.interactions.df
        assert len(train) == pytest.approx(669_181, abs=1)
        assert train[Columns.User].nunique() == pytest.approx(5_397, abs=2)
        assert train[Columns.Item].nunique() == pytest.approx(3_569, abs=1)
        assert len(cut.test) == pytest.approx(86_542, rel=0.003)
        assert cut.test[Columns.User].nunique() == pytest.approx(1_139, abs=2)
        popular = PopularModel().fit(cut.train)
        values = PROTOCOLS["P2"].metrics(cut.recommend(popular, 10), cut, 10)
        assert values["NDCG@10"] == pytest.approx(0.243783, abs=2e-4)
        assert values["Coverage@10"] == pytest.approx(0.033903, abs=2e-5)


class TestPartsPerUser:
    @pytest.mark.parametrize(
        ("rows", "sizes"),
        [
            (1, [1, 0, 0]),
            (2, [1, 0, 1]),
            (3, [1, 1, 1]),
            (9, [7, 1, 1]),
            (10, [8, 1, 1]),
            (19, [17, 1, 1]),
            (25, [21, 2, 2]),
        ],
    )
    def test_sizes(self, rows: int, sizes: list[int]) -> None:
        users = pd.Series([4] * rows + [3] * 30)
        parts = parts_per_user(users, (0.8, 0.1, 0.1), seed=1)
        assert np.bincount(parts[users == 4], minlength=3).tolist() == sizes
        assert np.bincount(parts[users == 3], minlength=3).tolist() == [24, 3, 3]

    def test_every_row_is_as_likely(self) -> None:
        users = pd.Series(np.tile(np.arange(4_000), 10))
        in_last = parts_per_user(users, (0.8, 0.1, 0.1), seed=3).to_numpy().reshape(10, 4_000) == 2
        assert in_last.sum(axis=0).tolist() == [1] * 4_000
        assert np.abs(in_last.sum(axis=1) - 400).max() < 100

    def test_seed_decides(self) -> None:
        users = pd.Series(np.repeat(np.arange(50), 20))
        first, again, other = (parts_per_user(users, (0.9, 0.1), seed) for seed in (0, 0, 1))
        assert first.equals(again)
        assert not first.equals(other)


class TestTenths:
    def test_parts(self, interactions: pd.DataFrame, dataset: Dataset) -> None:
        cut, validation = PROTOCOLS["P3"].split(dataset, 0), PROTOCOLS["P3"].validation(dataset, 0)
        train = pair_set(cut.train.get_raw_interactions())
        assert train == pair_set(validation.train.get_raw_interactions())
        assert cut.hidden is not None
        assert pair_set(cut.hidden) == pair_set(validation.test)
        assert validation.hidden is None
        parts = [train, pair_set(cut.test), pair_set(cut.hidden)]
        assert set.union(*parts) == pair_set(interactions[interactions["rating"] >= 3])
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert pair_set(cut.test) != pair_set(PROTOCOLS["P3"].split(dataset, 1).test)

    def test_hidden_pairs_make_way(self) -> None:
        ones: dict[str, Any] = {Columns.Weight: 1, Columns.Datetime: "2020-01-01"}
        popularity = [(user, item) for item in range(1, 7) for user in range(10, 20 - item)]
        train = Dataset.construct(make_pairs([*popularity, (1, 3), (2, 6)]).assign(**ones))
        cut = Cut(train, test=make_pairs([(1, 5), (2, 1)]), hidden=make_pairs([(1, 1), (1, 4), (1, 2), (2, 3)]))
        reco = cut.recommend(PopularModel().fit(train), 3)
        assert reco.groupby(Columns.User)[Columns.Item].apply(list).to_dict() == {1: [5, 6], 2: [1, 2, 4]}
        assert reco[Columns.Rank].tolist() == [1, 2, 1, 2, 3]

    @has_ml_1m
    def test_published_size(self) -> None:
        # RecBole counts its padding id as a user and an item: 6 040 x 3 629.
        cut = PROTOCOLS["P3"].split(load_dataset("ml-1m"), 0)
        assert cut.hidden is not None
        rows = pd.concat([cut.train.get_raw_interactions(), cut.test, cut.hidden])
        assert (len(rows), rows[Columns.User].nunique(), rows[Columns.Item].nunique()) == (836_478, 6_039, 3_628)


class TestGivenSplit:
    @pytest.mark.parametrize("name", ["P6", "P6Y"])
    def test_all_but_the_test_part_is_train(self, name: str, interactions: pd.DataFrame, dataset: Dataset) -> None:
        cut = PROTOCOLS[name].split(dataset, 0)
        is_test = interactions["split"] == "test"
        assert pair_set(cut.test) == pair_set(interactions[is_test])
        assert pair_set(cut.train.get_raw_interactions()) == pair_set(interactions[~is_test])

    def test_missing_column(self, interactions: pd.DataFrame) -> None:
        with pytest.raises(ValueError, match=r"no column 'split'.*keep_extra_cols=True"):
            PROTOCOLS["P6"].split(Dataset.construct(interactions), 0)


class TestLeaveOneOut:
    ROWS = make_pairs([(7, 30), (7, 10), (5, 30), (5, 20), (5, 10), (6, 20), (6, 40)])
    DAYS = ("2020-01-02", "2020-01-01", "2020-01-01", "2020-01-03", "2020-01-03", "2020-01-01", "2020-01-02")
    # By number users 7, 5, 6 and items 30, 10, 20, 40. The test item of user 7 is among its own negatives.
    RATING = "0\t0\t5\t978824351\n1\t2\t3\t978300174\n2\t3\t1\t978300174\n"
    NEGATIVE = "(0,0)\t2\t0\n(1,2)\t1\t3\n(2,3)\t0\t1\n"
    CANDIDATES: frozenset[tuple[int, int]] = frozenset(
        {(7, 30), (7, 20), (5, 20), (5, 10), (5, 40), (6, 40), (6, 30), (6, 10)}
    )

    @pytest.fixture
    def dataset(self) -> Dataset:
        return Dataset.construct(self.ROWS.assign(weight=2, datetime=self.DAYS))

    @pytest.fixture
    def places(self, tmp_path: Path) -> list[Path]:
        (tmp_path / "second" / "lists").mkdir(parents=True)
        for what, text in (("rating", self.RATING), ("negative", self.NEGATIVE)):
            (tmp_path / "second" / "lists" / f"tiny.test.{what}").write_text(text)
        return [tmp_path / "first", tmp_path / "second"]

    def test_numbers_follow_the_first_rows(self, dataset: Dataset, places: list[Path]) -> None:
        cut = leave_one_out(dataset, read_leave_one_out(places, "lists", "tiny"))
        assert pair_set(cut.test) == {(7, 30), (5, 20), (6, 40)}
        assert pair_set(cut.train.get_raw_interactions()) == pair_set(self.ROWS) - pair_set(cut.test)
        assert cut.candidates is not None
        assert pair_set(cut.candidates) == self.CANDIDATES
        assert len(cut.candidates) == len(self.CANDIDATES)

    def test_other_data(self, places: list[Path]) -> None:
        published = read_leave_one_out(places, "lists", "tiny")
        others = Dataset.construct(self.ROWS[2:].assign(weight=2, datetime="2020-01-01"))
        with pytest.raises(ValueError, match=r"of the 3 published test rows, \d are interactions of the data"):
            leave_one_out(others, published)

    def test_missing_files(self, places: list[Path]) -> None:
        with pytest.raises(FileNotFoundError, match=r"tiny\.test\.negative are in none of .*first.*does not download"):
            read_leave_one_out(places[:1], "lists", "tiny")

    @pytest.mark.parametrize("negative", ["", "(0,0)\tx\n", "(a,0)\t1\n"])
    def test_broken_files(self, negative: str, places: list[Path]) -> None:
        (places[1] / "lists" / "tiny.test.negative").write_text(negative)
        with pytest.raises(ValueError, match="is broken"):
            read_leave_one_out(places, "lists", "tiny")

    def test_only_candidates_are_ranked(
        self, dataset: Dataset, places: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cut = leave_one_out(dataset, read_leave_one_out(places, "lists", "tiny"))
        # Train rows: item 10 twice, 20 and 30 once, 40 never, which leaves it out.
        model = PopularModel().fit(cut.train)
        reco = cut.recommend(model, 10)
        lists = reco.groupby(Columns.User)[Columns.Item].apply(list).to_dict()
        assert {user: set(items) for user, items in lists.items()} == {5: {10, 20}, 6: {10, 30}, 7: {20, 30}}
        assert [lists[5][0], lists[6][0]] == [10, 10]
        assert reco[Columns.Rank].tolist() == [1, 2] * 3
        assert cut.recommend(model, 1)[Columns.Rank].tolist() == [1] * 3
        assert RANKED_AT_ONCE > 1_000_000
        monkeypatch.setattr("benchmarks.protocols.RANKED_AT_ONCE", 1)  # a user at a time
        pd.testing.assert_frame_equal(cut.recommend(model, 10), reco)

    def test_last_row_of_each_user(self, dataset: Dataset) -> None:
        cut = hold_out_last(dataset, 0, n_negatives=1)
        # User 5 has two rows at the last moment: the later of them.
        assert pair_set(cut.test) == {(7, 30), (5, 10), (6, 40)}
        assert cut.candidates is not None
        assert pair_set(cut.test) <= pair_set(cut.candidates)
        assert len(cut.candidates) == 6
        negatives = pair_set(cut.candidates) - pair_set(cut.test)
        assert not negatives & pair_set(self.ROWS)
        everything = hold_out_last(dataset, 0, n_negatives=9).candidates
        assert everything is not None
        assert pair_set(everything) == {
            *pair_set(cut.test), *((7, item) for item in (20, 40)), (5, 40), *((6, item) for item in (10, 30))
        }  # fmt: skip

    @has_ml_1m
    def test_published_rows_are_the_last_ones(self) -> None:
        dataset = load_dataset("ml-1m")
        try:
            cut = PROTOCOLS["P4"].split(dataset, 0)
        except FileNotFoundError:
            pytest.skip("no published negatives of ml-1m")
        raw = dataset.get_raw_interactions()
        times = cut.test.merge(raw, on=Columns.UserItem).set_index(Columns.User)[Columns.Datetime]
        assert times.sort_index().equals(raw.groupby(Columns.User)[Columns.Datetime].max())
        assert len(cut.train.interactions.df) == 1_000_209 - 6_040
        assert cut.candidates is not None
        # 156 users have their test item among the negatives; no other candidate is an interaction.
        assert len(cut.candidates) == 100 * 6_040 - 156
        assert pair_set(cut.candidates) & pair_set(raw) == pair_set(cut.test)


class TestHeldOutUsers:
    @staticmethod
    def ratings() -> pd.DataFrame:
        """
        Twenty users with 5 to 24 items of thirty rated 4 or 5, each with one of their own that nobody else has; two
        more with four such ratings and lots of lower ones. Ids start at 100 and 1000.
        """
        rng = np.random.default_rng(1)
        rows = [
            (100 + user, item, rng.integers(4, 6))
            for user in range(20)
            for item in [*(1000 + rng.permutation(30)[: 4 + user]), 1100 + user]
        ]
        rows += [(120 + user, 1000 + item, 4 if item < 4 else 3) for user in range(2) for item in range(30)]
        frame = pd.DataFrame(rows, columns=[*Columns.UserItem, "rating"]).sample(frac=1, random_state=0)
        return frame.assign(weight=frame["rating"], datetime="2020-01-01")

    @pytest.fixture(scope="class")
    def dataset(self) -> Dataset:
        return Dataset.construct(self.ratings(), keep_extra_cols=True)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_parts(self, seed: int, dataset: Dataset) -> None:
        cut, validation = (hold_out_users(dataset, seed, n_users=4, validate=choice) for choice in (False, True))
        learnt = cut.train.get_raw_interactions()
        pd.testing.assert_frame_equal(learnt, validation.train.get_raw_interactions())
        ratings = self.ratings()
        liked = pair_set(ratings[(ratings["rating"] > 3.5) & (ratings[Columns.User] < 120)])
        users = set(learnt[Columns.User])
        assert pair_set(learnt) == {(user, item) for user, item in liked if user in users}
        assert len(users) == 12
        asked = [set(part.test[Columns.User]) for part in (cut, validation)]
        assert [len(part) for part in asked] == [4, 4]
        assert users | asked[0] | asked[1] == set(range(100, 120))

        items = set(learnt[Columns.Item])
        for part in (cut, validation):
            assert part.histories is not None
            everything = part.histories.get_raw_interactions()
            pd.testing.assert_frame_equal(everything.head(len(learnt)), learnt)
            folded = everything.iloc[len(learnt) :]
            for user in part.test[Columns.User].unique():
                history, truth = (pair_set(rows[rows[Columns.User] == user]) for rows in (folded, part.test))
                assert history | truth == {pair for pair in liked if pair[0] == user and pair[1] in items}
                assert not history & truth
                # The item of their own is unknown: 4 to 23 rows are left.
                assert len(truth) == (len(history) + len(truth)) // 4 == (user - 96) // 4
            assert set(folded[Columns.User]) == set(part.test[Columns.User])

    def test_seed_decides(self, dataset: Dataset) -> None:
        first, again, other = (hold_out_users(dataset, seed, n_users=4, validate=False) for seed in (0, 0, 1))
        assert first.test.equals(again.test)
        assert set(first.test[Columns.User]) != set(other.test[Columns.User])

    def test_internal_ids_are_those_of_the_fit(self, dataset: Dataset) -> None:
        cut = hold_out_users(dataset, 0, n_users=4, validate=False)
        assert cut.histories is not None
        fitted, asked = (part.interactions.df[Columns.UserItem] for part in (cut.train, cut.histories))
        pd.testing.assert_frame_equal(fitted, asked.head(len(fitted)))
        assert cut.train.user_id_map is cut.histories.user_id_map
        assert cut.train.item_id_map is cut.histories.item_id_map
        # The matrix that models are fitted on has no rows of held-out users, that of the ranking no further items.
        n_items = cut.train.get_raw_interactions()[Columns.Item].nunique()
        assert cut.train.get_user_item_matrix().shape == (12, n_items)
        assert cut.histories.get_user_item_matrix().shape == (16, n_items)

    @pytest.mark.parametrize("name", ["popular", "EASE", "ItemKNN"])
    def test_models_fold_in(self, name: str, dataset: Dataset) -> None:
        """The scores of a held-out user follow from the matrix of the train part and the user's own history."""
        cut = hold_out_users(dataset, 0, n_users=4, validate=False)
        assert cut.histories is not None
        users, items = (np.unique(cut.train.get_raw_interactions()[column]) for column in Columns.UserItem)
        learnt = np.zeros((users.size, items.size))
        for user, item in pair_set(cut.train.get_raw_interactions()):
            learnt[np.searchsorted(users, user), np.searchsorted(items, item)] = 1
        gram = learnt.T @ learnt
        if name == "EASE":
            model: Any = EASEModel(regularization=2.0, recommend_n_threads=1)
            inverse = np.linalg.inv(gram + 2 * np.eye(items.size))
            # RecTools ranks by the transpose of the paper's weights, which divide by the diagonal of the other item.
            similarity = -inverse / inverse.diagonal()[:, None]
            np.fill_diagonal(similarity, 0)
        else:
            model = ImplicitItemKNNWrapperModel(CosineRecommender(K=items.size, num_threads=1))
            similarity = gram / np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))
        if name == "popular":
            model = PopularModel()
        reco = cut.recommend(model.fit(cut.train), items.size)
        histories = cut.histories.get_raw_interactions()
        for user in cut.test[Columns.User].unique():
            viewed = np.isin(items, histories.loc[histories[Columns.User] == user, Columns.Item])
            scores = learnt.sum(axis=0) if name == "popular" else viewed @ similarity
            got = reco[reco[Columns.User] == user]
            # Where nothing speaks for an item, ItemKNN leaves it out.
            expected = {i: s for i, s, v in zip(items, scores, viewed, strict=True) if not v and (s or name == "EASE")}
            assert dict(zip(got[Columns.Item], got[Columns.Score], strict=True)) == pytest.approx(expected, abs=1e-5)
            assert got[Columns.Score].is_monotonic_decreasing

    def test_metrics_by_hand(self, dataset: Dataset) -> None:
        # User 1 has 30 relevant items, 21 of them at the top; user 2 has one, at rank 11.
        test = make_pairs([(1, item) for item in range(30)] + [(2, 7)])
        reco = make_reco({1: [*range(21), *range(100, 179)], 2: [*range(100, 110), 7]})
        values = held_out_user_metrics(reco, Cut(dataset, test), 100)
        gains = 1 / np.log2(np.arange(2, 102))
        assert values == pytest.approx(
            {
                "NDCG@100": (gains[:21].sum() / gains[:30].sum() + gains[10]) / 2,
                "Recall@100": (21 / 30 + 1) / 2,
                "Recall@20": (20 / 20 + 1) / 2,
                "NDCG@10": (1 + 0) / 2,
            }
        )

    def test_too_few_users(self, dataset: Dataset) -> None:
        with pytest.raises(ValueError, match=r"20 users have five ratings of 4 or 5: too few to hold out 600"):
            PROTOCOLS["P5"].split(dataset, 0)

    @has_ml_1m
    def test_size(self) -> None:
        dataset = load_dataset("ml-1m")
        cut, validation = PROTOCOLS["P5"].split(dataset, 0), PROTOCOLS["P5"].validation(dataset, 0)
        assert cut.histories is not None
        assert validation.histories is not None
        assert cut.train.interactions.df[Columns.User].nunique() == 6_034 - 1_200
        asked = [part.test[Columns.User].nunique() for part in (cut, validation)]
        # A user whose known items shrink to one has no truth.
        assert all(595 <= n <= 600 for n in asked)
        n_rows = len(validation.histories.interactions.df) + sum(map(len, (cut.test, validation.test)))
        n_rows += len(cut.histories.interactions.df) - len(cut.train.interactions.df)
        # 575 272 rows of 3 533 items, less the rows of items that no training user has.
        ratings = dataset.interactions.df
        liked = ratings[ratings["rating"] > 3.5]
        liked = liked[liked.groupby(Columns.User)[Columns.User].transform("size") >= 5]
        assert (len(liked), liked[Columns.User].nunique(), liked[Columns.Item].nunique()) == (575_272, 6_034, 3_533)
        known = dataset.item_id_map.convert_to_internal(cut.train.get_raw_interactions()[Columns.Item].unique())
        assert n_rows == liked[Columns.Item].isin(known).sum()


class TestEveryProtocol:
    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_validation_never_sees_the_test_part(self, name: str, dataset: Dataset) -> None:
        protocol = SMALL_PROTOCOLS[name]
        cut, validation = protocol.split(dataset, 0), protocol.validation(dataset, 0)
        if cut.histories is not None:  # whole users are held out: not even their histories may be seen
            seen = set((validation.histories or validation.train).get_raw_interactions()[Columns.User])
            assert not set(cut.test[Columns.User]) & (seen | set(validation.test[Columns.User]))
            assert len(validation.test) > 10
            return
        train = pair_set(cut.train.get_raw_interactions()) | (pair_set(cut.hidden) if cut.hidden is not None else set())
        inner = pair_set(validation.train.get_raw_interactions())
        assert inner | pair_set(validation.test) <= train
        assert not inner & pair_set(validation.test)
        assert not train & pair_set(cut.test)
        assert len(validation.test) > 10

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_train_part(self, name: str, dataset: Dataset) -> None:
        for cut in (SMALL_PROTOCOLS[name].split(dataset, 0), SMALL_PROTOCOLS[name].validation(dataset, 0)):
            assert set(cut.train.interactions.df[Columns.Weight]) == {1.0}
            assert set(cut.train.user_id_map.external_ids) == set(range(100, 141))
            assert set(cut.train.item_id_map.external_ids) == set(range(1000, 1031))
            assert cut.train.item_features is not None
            thirds = cut.train.item_features.get_sparse().toarray()
            assert thirds.argmax(axis=1).tolist() == ((cut.train.item_id_map.external_ids - 1000) % 3).tolist()
            assert set(cut.test[Columns.User]) <= set((cut.histories or cut.train).get_raw_interactions()[Columns.User])

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_items_without_train_rows_are_never_ranked(self, name: str, dataset: Dataset) -> None:
        cut = SMALL_PROTOCOLS[name].split(dataset, 0)
        # This one would put items without interactions at the end of its lists.
        model = PopularModel(add_cold=True).fit(cut.train)
        reco = cut.recommend(model, 40)
        assert set(reco[Columns.Item]) == set(cut.train.get_raw_interactions()[Columns.Item])
        assert not pair_set(reco) & pair_set((cut.histories or cut.train).get_raw_interactions())
        assert set(reco[Columns.User]) == set(cut.test[Columns.User])

    def test_configuration_fits(self, dataset: Dataset) -> None:
        config = load_config(FOLDER / "configs" / "published.yaml")
        assert list(config) == list(PROTOCOLS)
        for name, protocol in SMALL_PROTOCOLS.items():
            metrics = measure(protocol, protocol.split(dataset, 0), "popular", POPULAR, 0)["metrics"]
            assert protocol.main_metric in metrics
            for group in config[name].published:
                for values in group.rows.values():
                    assert values.keys() <= metrics.keys()
                    assert all(0 < value < 1 for value in values.values())
            for spec in config[name].models.values():
                assert build_model(job_config(spec, 0, {})).get_config()


def row(model: str, seed: int, value: float, **params: Any) -> dict[str, Any]:
    return {
        "model": model,
        "seed": seed,
        "config": params,
        "metrics": {"Recall@10": value / 2, "NDCG@10": value},
        "fit_seconds": 1.25,
        "recommend_seconds": 0.5,
    }


class TestResults:
    def test_rows_merge_by_model_and_seed(self, tmp_path: Path) -> None:
        path = tmp_path / "sub" / "P.json"
        for utc, new in [
            ("1", row("b", 0, 0.1)),
            ("1", row("a", 1, 0.2)),
            ("2", row("a", 0, 0.3)),
            ("3", row("b", 0, 0.4)),
        ]:
            results = add_row(path, {"protocol": "P"}, new, {"utc": utc, "commit": "c"})
        assert results == read_results(path) == json.loads(path.read_text(encoding="utf-8"))
        assert [(r["model"], r["seed"], r["metrics"]["NDCG@10"], r["run"]) for r in results["rows"]] == [
            ("a", 0, 0.3, "2"),
            ("a", 1, 0.2, "1"),
            ("b", 0, 0.4, "3"),
        ]
        assert results["runs"].keys() == {"1", "2", "3"}

    def test_another_configuration_replaces_all_seeds(self, tmp_path: Path) -> None:
        path = tmp_path / "P.json"
        for seed in (0, 1):
            add_row(path, {}, row("a", seed, 0.2, factors=8), {"utc": "1"})
        add_row(path, {}, row("b", 0, 0.5), {"utc": "1"})
        results = add_row(path, {}, row("a", 2, 0.4, factors=9), {"utc": "2"})
        assert [(r["model"], r["seed"]) for r in results["rows"]] == [("a", 2), ("b", 0)]

    def test_runs_without_rows_are_forgotten(self, tmp_path: Path) -> None:
        path = tmp_path / "P.json"
        add_row(path, {}, row("a", 0, 0.2), {"utc": "1"})
        assert add_row(path, {}, row("a", 0, 0.2), {"utc": "2"})["runs"] == {"2": {"utc": "2"}}

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"rows": {}, "runs": {}}'])
    def test_foreign_file_is_left_alone(self, content: str, tmp_path: Path) -> None:
        path = tmp_path / "P.json"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"P\.json is no result file"):
            add_row(path, {}, row("a", 0, 0.2), {"utc": "1"})
        assert path.read_text(encoding="utf-8") == content

    def test_table(self) -> None:
        results = {"rows": [row("ours", 0, 0.4), row("ours", 2, 0.5), row("single", 0, 0.1)]}
        published = [
            PublishedRows(source="paper", rows={"theirs": {"NDCG@10": 0.42}}),
            PublishedRows(source="other", rows={"partial": {"Recall@10": 0.9}}),
        ]
        shown = table(results, published, "NDCG@10")
        assert shown.to_dict("list") == {
            "model": ["ours", "theirs", "single", "partial"],
            "from": ["ours", "published [1]", "ours", "published [2]"],
            # Deviation of 0.4 and 0.5 with one degree of freedom gone: 0.1 / sqrt(2).
            "Recall@10": ["0.2250 ± 0.0354", "", "0.0500", "0.9000"],
            "NDCG@10": ["0.4500 ± 0.0707", "0.4200", "0.1000", ""],
            "seeds": ["2", "", "1", ""],
            "fit s": ["1.2", "", "1.2", ""],
            "recommend s": ["0.5", "", "0.5", ""],
        }


class TestCommandLine:
    def test_test_and_validation(self, ml_100k: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["P1", "--models", "PopularModel", "--seeds", "0", "1", "--output", str(tmp_path)]
        main(arguments)
        shown = capsys.readouterr().out
        assert "BiVAE" in shown
        assert "[1] microsoft/recommenders" in shown
        results = read_results(tmp_path / "P1.json")
        cut = PROTOCOLS["P1"].split(ml_100k, 0)
        expected = PROTOCOLS["P1"].metrics(cut.recommend(PopularModel().fit(cut.train), 10), cut, 10)
        assert [(r["model"], r["seed"], r["metrics"]) for r in results["rows"]] == [
            ("PopularModel", seed, expected) for seed in (0, 1)
        ]
        assert results["rows"][0]["cut"] == {"train_rows": 75_066, "test_rows": 24_934, "test_users": 943}
        assert results["part"] == "test"
        assert "versions" in results["runs"][results["rows"][0]["run"]]

        main([*arguments, "--validate"])
        assert "BiVAE" not in capsys.readouterr().out
        validation = read_results(tmp_path / "P1-validation.json")
        assert validation["part"] == "validation"
        sizes = [r["cut"]["train_rows"] + r["cut"]["test_rows"] for r in validation["rows"]]
        assert sizes == [75_066, 75_066]
        assert validation["rows"][0]["metrics"] != validation["rows"][1]["metrics"]
        assert read_results(tmp_path / "P1.json") == results

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["P0"], "unknown protocols ['P0']; choose from ['P1'"),
            (["P1", "P6", "--models", "PopularModel", "EASE"], "unknown models for P6 ['EASE']"),
        ],
    )
    def test_unknown_names_stop_everything(
        self, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main([*arguments, "--output", str(tmp_path)])
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_wrong_parameter_stops_everything(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = tmp_path / "published.yaml"
        config.write_text(
            "P1: {published: [], models: {popular: {cls: PopularModel}, mine: {cls: EASEModel, lambda: 5}}}",
            encoding="utf-8",
        )
        with pytest.raises(SystemExit):
            main(["P1", "--config", str(config), "--output", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert "P1: mine cannot be made" in error
        assert "lambda" in error
        assert not (tmp_path / "out").exists()


def test_presets_are_valid() -> None:
    presets = yaml.safe_load((FOLDER / "configs" / "presets.yaml").read_text(encoding="utf-8"))
    assert list(presets) == ["small", "medium", "sparse"]
    for shape in presets.values():
        for name, config in shape.items():
            model = model_from_config(config)
            assert type(model).__name__ == name
            # Nothing in it says what is the case anyway.
            assert set(config) - {"cls"} == set(model.get_config(mode="pydantic").model_dump(exclude_defaults=True)) - {
                "cls"
            }
