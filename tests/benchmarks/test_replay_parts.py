"""RePlay's splitters, filters and metrics as parts of a leaderboard."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter
from rectools import Columns
from rectools.dataset import Dataset

import rectools_neural
from benchmarks.config import DataConfig, SplitConfig
from benchmarks.data import Fold, folds, prepare
from benchmarks.leaderboard import run_leaderboard
from benchmarks.metrics import evaluate

SPLIT = TypeAdapter(SplitConfig)


def make_dataset(rows: Iterable[tuple[str, int, int]], weights: Iterable[float] | float = 1.0) -> Dataset:
    """Rows of user, item and day of 2024."""
    frame = pd.DataFrame(rows, columns=[*Columns.UserItem, "day"])
    frame[Columns.Datetime] = pd.Timestamp("2024-01-01") + pd.to_timedelta(frame.pop("day"), unit="D")
    return Dataset.construct(frame.assign(**{Columns.Weight: weights}))


# Not in the order of time, of users or of items; b is new on day 6, item 4 is on day 8.
ROWS = [("a", 1, 5), ("c", 2, 0), ("a", 2, 1), ("b", 1, 6), ("a", 3, 8), ("c", 1, 2), ("c", 3, 3), ("b", 2, 7)]
ROWS += [("c", 4, 8), ("a", 5, 0)]


def cut(split: dict, seed: int = 0) -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    (fold,) = folds(make_dataset(ROWS), SPLIT.validate_python(split), seed)
    return pairs(fold.train.get_raw_interactions()), pairs(fold.test)


def pairs(frame: pd.DataFrame) -> set[tuple[str, int]]:
    return set(frame[Columns.UserItem].itertuples(index=False, name=None))


ALL = {(user, item) for user, item, _ in ROWS}
KEEP_COLD = {"drop_cold_users": False, "drop_cold_items": False}


@pytest.mark.parametrize(
    ("split", "test", "cold"),
    [
        # The last four of ten rows in time start on day 6.
        (
            {"name": "replay_time", "time_threshold": 0.4},
            {("a", 3)},
            {("b", 1), ("b", 2), ("c", 4)},
        ),
        # Rows by time of a: 5, 2, 1, 3; of b: 1, 2; of c: 2, 1, 3, 4, and nobody else has item 4.
        ({"name": "replay_last_n", "N": 1}, {("a", 3), ("b", 2)}, {("c", 4)}),
        ({"name": "replay_ratio", "test_size": 0.5}, {("a", 1), ("b", 2)}, {("a", 3), ("c", 3), ("c", 4)}),
    ],
    ids=["time", "last_n", "ratio"],
)
def test_splitters_by_hand(split: dict, test: set, cold: set) -> None:
    assert cut(split) == (ALL - test - cold, test)
    assert cut({**split, **KEEP_COLD}) == (ALL - test - cold, test | cold)


def test_folds_have_the_rows_in_the_order_of_the_data() -> None:
    (fold,) = folds(make_dataset(ROWS), SPLIT.validate_python({"name": "replay_last_n", "N": 1, **KEEP_COLD}), 0)
    held_out = [("a", 3), ("b", 2), ("c", 4)]
    assert fold.test[Columns.UserItem].apply(tuple, axis=1).tolist() == held_out
    train = fold.train.get_raw_interactions()[Columns.UserItem].apply(tuple, axis=1).tolist()
    assert train == [row[:2] for row in ROWS if row[:2] not in held_out]


def test_cold_user_splitter_holds_out_whole_users() -> None:
    found = set()
    for seed in range(6):
        train, test = cut({"name": "replay_cold_user", "test_size": 0.34, "drop_cold_items": False}, seed)
        (user,) = {user for user, _ in test}
        assert test == {pair for pair in ALL if pair[0] == user}
        assert train == ALL - test
        found.add(user)
    assert len(found) > 1
    # Only c has item 4 and only a has item 5.
    train, test = cut({"name": "replay_cold_user", "test_size": 0.34}, 0)
    assert test == {(user, item) for user, item in ALL - train if item not in (4, 5)} - {("a", 5), ("c", 4)}


def test_splitters_are_quiet() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cut({"name": "replay_cold_user", "test_size": 0.34})
        cut({"name": "replay_last_n", "N": 1})
    assert caught == []


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"name": "replay_time", "time_threshold": 1.5}, "time_threshold"),
        ({"name": "replay_last_n", "N": 0}, "N"),
        ({"name": "replay_ratio"}, "test_size"),
        ({"name": "replay_ratio", "test_size": 0.2, "n_splits": 2}, "n_splits"),
        ({"name": "replay_cold_user", "test_size": 0.2, "drop_cold_users": True}, "drop_cold_users"),
    ],
)
def test_wrong_splits(split: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPLIT.validate_python(split)


def test_filters_by_hand_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", 1, 5), ("a", 2, 4), ("a", 3, 1), ("b", 1, 4), ("b", 2, 2), ("c", 1, 5)]
    dataset = make_dataset([(user, item, 0) for user, item, _ in rows], [float(weight) for *_, weight in rows])
    monkeypatch.setattr(rectools_neural, "load_dataset", {"tiny": dataset}.__getitem__, raising=False)

    def kept(*filters: dict, **options: object) -> set[tuple[str, int]]:
        return pairs(prepare(DataConfig(name="tiny", filters=filters, **options)).get_raw_interactions())

    everything = {row[:2] for row in rows}
    by_user, by_item = {"name": "min_count", "num_entries": 2}, {"groupby_column": "item_id"}
    liked = {"name": "low_rating", "value": 4}
    assert kept() == everything
    assert kept(by_user) == everything - {("c", 1)}
    assert kept({**by_user, **by_item}) == everything - {("a", 3)}
    assert kept(liked) == {("a", 1), ("a", 2), ("b", 1), ("c", 1)}
    # b has two rows, but only one that it likes.
    assert kept(by_user, liked) == {("a", 1), ("a", 2), ("b", 1)}
    assert kept(liked, by_user) == {("a", 1), ("a", 2)}
    binary = prepare(DataConfig(name="tiny", filters=[liked], binary=True))
    assert binary.interactions.df[Columns.Weight].tolist() == [1.0] * 4
    with pytest.raises(ValueError, match=r"num_entries=7.*leave no row of tiny"):
        kept({**by_user, "num_entries": 7})
    with pytest.raises(ValueError, match="min_cuont"):
        kept({"name": "min_cuont", "num_entries": 2})
    with pytest.raises(ValueError, match="groupby_column"):
        kept({**by_user, "groupby_column": "weight"})


def test_description_of_data_names_filters_only_if_there_are_any() -> None:
    plain = {"name": "tiny", "binary": False, "min_rating": None, "k_core": None}
    assert DataConfig(name="tiny").model_dump(mode="json") == plain
    filters = [{"name": "min_count", "num_entries": 20, "groupby_column": "user_id"}]
    assert DataConfig(name="tiny", filters=filters).model_dump(mode="json") == {**plain, "filters": filters}


def random_dataset() -> Dataset:
    rng = np.random.default_rng(3)
    items = [rng.choice(20, 8, replace=False, p=np.arange(20, 0, -1) / 210) for _ in range(40)]
    return make_dataset((f"u{user}", item, rng.integers(30)) for user, own in enumerate(items) for item in own)


def test_board_with_metrics_of_both_libraries(tmp_path: Path) -> None:
    models = {"Popular": {"cls": "PopularModel", "baseline": True}, "EASE": {"cls": "EASEModel", "regularization": 9.0}}
    config = {
        "data": random_dataset(),
        "split": {"name": "replay_ratio", "test_size": 0.3},
        "k": [3, 5],
        "metric": "ndcg@3",
        "models": models,
    }
    lines: list[str] = []
    frame = run_leaderboard({**config, "replay_metrics": True}, tmp_path, progress=lines.append).set_index("model")
    names = {"ndcg": "NDCG", "hit_rate": "HitRate", "mrr": "MRR"}
    for k in (3, 5):
        for ours, theirs in names.items():
            assert frame[f"{ours}@{k}"].between(0.01, 0.99).all()
            assert frame[f"replay {theirs}@{k}"].tolist() == pytest.approx(frame[f"{ours}@{k}"].tolist(), abs=1e-12)
    # RecTools divides by all relevant items, RePlay by as many as the list could hold.
    assert (frame["replay MAP@3"] >= frame["map@3"]).all()
    assert frame["replay Coverage@3"].tolist() == pytest.approx(frame["coverage@3"].tolist())

    for name in ("rectools ndcg@3", "replay NDCG@3", "rectools coverage@3", "replay Coverage@3"):
        assert name in lines[-2]
    page = unescape((tmp_path / "leaderboard.html").read_text())
    assert "<th>rectools ndcg@3</th>" in page
    assert "<th>replay NDCG@5</th>" in page
    flags = json.loads((tmp_path / "leaderboard.json").read_text())["metrics"]["flags"]
    assert flags["replay NDCG@3"].startswith("NDCG@3 of replay-rec 0.")

    # A job measured by both is no job measured by one.
    plain = run_leaderboard(config, tmp_path, resume=True)
    assert not [column for column in plain if column.startswith("replay")]
    assert len(list((tmp_path / "jobs").glob("*.json"))) == 4
    assert "<th>ndcg@3</th>" in (tmp_path / "leaderboard.html").read_text()


def test_users_who_are_not_served_count_in_both_libraries() -> None:
    train = make_dataset([("a", 1, 0), ("b", 2, 0), ("b", 3, 0), ("c", 4, 0)])
    test = pd.DataFrame([("a", 2), ("a", 3), ("b", 1), ("c", 2), ("c", 2)], columns=Columns.UserItem)
    fold = Fold(0, 0, train, test.assign(**{Columns.Weight: 1.0}), "")
    reco = pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": [4, 2, 1], "score": [2.0, 2.0, 1.0], "rank": [1, 2, 1]})
    found = evaluate(reco, fold, [2], [], with_replay=True).metrics
    a = (1 / np.log2(3)) / (1 + 1 / np.log2(3))
    assert found["replay NDCG@2"] == pytest.approx((a + 1 + 0) / 3)
    assert found["replay HitRate@2"] == pytest.approx(2 / 3)
    assert found["replay Coverage@2"] == pytest.approx(3 / 4)
    nobody = evaluate(reco.head(0), fold, [2], [], with_replay=True).metrics
    assert (nobody["replay NDCG@2"], nobody["replay Coverage@2"]) == (0, 0)


def test_board_of_cold_users(tmp_path: Path) -> None:
    split = {"name": "replay_cold_user", "test_size": 0.25}
    models = {"Popular": {"cls": "PopularModel", "baseline": True}, "EASE": {"cls": "EASEModel"}}
    config = {"data": random_dataset(), "split": split, "seeds": [0, 1], "k": [3], "metric": "ndcg@3", "models": models}
    frame = run_leaderboard({**config, "replay_metrics": True}, tmp_path).set_index("model")
    assert frame["finished"].tolist() == [2, 2]
    assert frame.loc["Popular", "ndcg@3"] > 0.1
    # A model that serves no cold users has nothing to show.
    assert frame.loc["EASE", ["ndcg@3", "replay NDCG@3", "served@3"]].tolist() == [0, 0, 0]
