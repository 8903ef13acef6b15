from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG, HitRate

from benchmarks import replay_experiment, tables
from benchmarks.replay_experiment import K, SparkRecommender, cut, main, measure, run
from rectools_neural import model_from_config
from rectools_neural.replay import ReplayRecommender, to_rectools

SMALL = {
    "DSSMModel": ({"cls": "rectools_neural.DSSMModel", "n_factors": 8, "epochs": 2}, (0, 1)),
    "GFCFModel": ({"cls": "rectools_neural.GFCFModel", "n_factors": 4}, (0,)),
}


def make_dataset(rows: pd.DataFrame) -> Dataset:
    """Columns `user_id`, `item_id`, `weight` and `minute`; users have a group, items one genre or two."""
    minutes = pd.to_timedelta(rows["minute"], unit="min")
    users, items = np.unique(rows[Columns.User]), np.unique(rows[Columns.Item])
    genres = pd.concat([pd.DataFrame({"id": items[:: n + 1], "feature": "genre", "value": f"g{n}"}) for n in range(2)])
    return Dataset.construct(
        rows[[*Columns.UserItem, Columns.Weight]].assign(datetime=pd.Timestamp("2024-01-01") + minutes),
        user_features_df=pd.DataFrame({"id": users, "feature": "group", "value": [f"u{user % 3}" for user in users]}),
        cat_user_features=["group"],
        item_features_df=genres,
        cat_item_features=["genre"],
    )


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(2, 62)
    lists = [rng.choice(60, 25, replace=False, p=popularity / popularity.sum()) for _ in range(50)]
    rows = pd.DataFrame(
        [(user, 100 + item) for user, own in enumerate(lists) for item in own], columns=Columns.UserItem
    )
    return make_dataset(rows.assign(weight=rng.integers(1, 6, len(rows)), minute=rng.permutation(len(rows))))


def rows_of(user: int, items: Sequence[int], start: int, weight: int = 5) -> pd.DataFrame:
    minutes = range(start, start + len(items))
    return pd.DataFrame({"user_id": user, "item_id": items, "weight": weight, "minute": minutes})


def test_cut_by_hand() -> None:
    early = [
        rows_of(1, range(40), 0),
        rows_of(1, range(45, 46), 60, weight=2),
        rows_of(2, range(40), 100, weight=3),  # a user who likes nothing
        rows_of(4, [*range(30), *range(32, 37)], 150),
    ]
    late = [
        rows_of(1, range(40, 44), 1000),  # new items
        rows_of(2, range(50, 52), 1010),
        rows_of(5, range(20), 1020),  # a new user
        rows_of(4, range(30, 31), 1040),
        rows_of(4, range(31, 32), 1041, weight=3),
        rows_of(2, range(45, 46), 1042, weight=4),
    ]
    assert len(pd.concat(late)) / len(pd.concat(early + late)) == 0.2
    rare = rows_of(3, range(19), 200)
    rows = pd.concat([*late, rare, *early], ignore_index=True)
    data = cut(make_dataset(rows.sample(frac=1, random_state=0)), validate=False)
    assert set(data.train.interactions[Columns.User]) == {1, 4}
    assert len(data.train.interactions) == 75
    # New users and items went before disliked rows did: user 2 and item 45 stay.
    assert set(data.test[Columns.UserItem].itertuples(index=False, name=None)) == {(4, 30), (2, 45)}
    assert data.queries.tolist() == [4]
    counts = data.describe()
    assert (counts["test_users"], counts["test_users_without_train_rows"]) == (2, 1)
    assert counts["test_rows_of_items_without_train_rows"] == 1


def test_validation_is_cut_from_the_train_part(dataset: Dataset) -> None:
    outer, inner = cut(dataset, validate=False), cut(dataset, validate=True)
    known = outer.train.interactions[Columns.UserItem]
    for part in (inner.train.interactions, inner.test):
        assert len(part)
        assert len(part.merge(known)) == len(part)
    assert inner.train.interactions[Columns.Datetime].max() < inner.test[Columns.Datetime].min()
    assert outer.train.interactions[Columns.Datetime].max() < outer.test[Columns.Datetime].min()


def test_figures_are_those_of_the_model_on_the_same_rows(dataset: Dataset) -> None:
    data = cut(dataset, validate=False)
    config = {"cls": "DSSMModel", "n_factors": 8, "epochs": 3, "seed": 0}
    metrics = measure(ReplayRecommender(config), data)["metrics"]
    train = to_rectools(data.train)
    reco = model_from_config(config).fit(train).recommend(data.queries, train, K, filter_viewed=True)
    assert metrics["NDCG@10"] == pytest.approx(NDCG(K, divide_by_achievable=True).calc(reco, data.test))
    assert metrics["HitRate@10"] == pytest.approx(HitRate(K).calc(reco, data.test))
    items = data.train.interactions[Columns.Item].nunique()
    assert metrics["Coverage@10"] == pytest.approx(reco[Columns.Item].nunique() / items)
    # The features came along.
    assert {name for name, _ in train.item_features.names} == {"genre"}
    assert {name for name, _ in train.user_features.names} == {"group"}


def test_run_and_table(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replay_experiment, "OURS", SMALL)
    output = tmp_path / "replay-experiment.json"
    run(dataset, list(SMALL), output)
    result = json.loads(output.read_text())
    expected = [("DSSMModel", 0), ("DSSMModel", 1), ("GFCFModel", 0)]
    assert [(row["model"], row["seed"]) for row in result["rows"]] == expected
    assert result["rows"][0]["metrics"] != result["rows"][1]["metrics"]
    assert result["data"] == cut(dataset, validate=False).describe()
    (origin,) = result["runs"].values()
    assert "replay-rec" in origin["versions"]
    assert "GFCFModel  seed 0  NDCG@10 0." in capsys.readouterr().out

    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    lines = (tables.replay_experiment() or "").splitlines()
    assert lines[0].startswith("| model | NDCG@10 | HitRate@10 | Coverage@10 |")
    assert [line.split(" | ")[0] for line in lines[2:5]].count("| **DSSMModel**") == 1
    assert sum("0.0345 | 0.2210 | 0.1910" in line and "course notebook" in line for line in lines) == 1
    assert "MinCountFilter(20)" in lines[-1]


def test_poprec_on_spark(dataset: Dataset, spark: Any) -> None:
    from replay.models import PopRec

    data = cut(dataset, validate=False)
    recommender = SparkRecommender(PopRec(), spark).fit(data.train)
    found = recommender.predict(data.train, K, queries=data.queries)
    assert set(found) == {*Columns.UserItem, Columns.Weight}
    assert sorted(found[Columns.User].unique()) == data.queries.tolist()
    rows = data.train.interactions
    listeners = rows[Columns.Item].value_counts()
    for user, own in found.groupby(Columns.User):
        seen = rows.loc[rows[Columns.User] == user, Columns.Item]
        expected = listeners.drop(seen).nlargest(K)
        # Items with as many users may come in any order.
        assert sorted(listeners[own[Columns.Item]], reverse=True) == expected.tolist()
        assert not own[Columns.Item].isin(seen).any()


def test_wrong_model_is_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--models", "ItemNKK"])
    assert "ItemNKK" in capsys.readouterr().err
