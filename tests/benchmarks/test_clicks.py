from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks import clicks
from benchmarks.clicks import (
    CATEGORIES,
    LIKE_THRESHOLD,
    N_FOLDS,
    NUMBERS,
    FactorizationMachine,
    OneHotLogistic,
    prepare_criteo,
    probability_metrics,
    read_criteo,
    split_criteo,
    split_likes,
    table_boosting,
    table_logistic,
)
from benchmarks.published import read_results


@pytest.fixture
def criteo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Four hundred rows: a click if I3 is missing or C5 is "on", with little noise; the file as it comes."""
    rng = np.random.default_rng(3)
    rows = pd.DataFrame({column: rng.integers(-2, 50, 400).astype(float) for column in NUMBERS})
    for column in CATEGORIES:
        rows[column] = rng.choice(["on", "off", "dim"], 400)
    rows.loc[rng.random(400) < 0.3, "I3"] = np.nan
    rows.loc[rng.random(400) < 0.1, "C7"] = np.nan
    rows.loc[:3, "C9"] = [f"once {row}" for row in range(4)]
    rows.insert(0, "label", ((rows["I3"].isna() | (rows["C5"] == "on")) ^ (rng.random(400) < 0.02)).astype(int))
    folder = tmp_path / "second" / "criteo-kaggle-head8000"
    folder.mkdir(parents=True)
    rows.assign(part="train").to_csv(folder / "criteo.csv", index=False)
    monkeypatch.setattr(clicks, "_default_places", lambda: [tmp_path / "first", tmp_path / "second"])
    return rows


@pytest.fixture
def likes(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Ratings of 60 users and 40 items: those of one parity like items of that parity, told by features alone."""
    pairs = np.random.default_rng(3).permutation(60 * 40)[:1200]
    frame = pd.DataFrame({Columns.User: 100 + pairs // 40, Columns.Item: 1000 + pairs % 40})
    frame[Columns.Weight] = np.where((frame[Columns.User] + frame[Columns.Item]) % 2 == 0, 5, 1)
    users, items = (
        pd.DataFrame({"id": ids, "feature": "parity", "value": ids % 2})
        for ids in (np.arange(100, 160), np.arange(1000, 1040))
    )
    dataset = Dataset.construct(
        frame.assign(datetime="2020-01-01"), users, ["parity"], item_features_df=items, cat_item_features=["parity"]
    )
    monkeypatch.setattr(clicks, "_load", lambda: dataset)
    return dataset


def test_metrics_by_hand() -> None:
    found = probability_metrics(np.array([5.0, 4, 2, 1]), np.array([0.9, 0.4, 0.5, 0.2]), 3.5)
    assert found == pytest.approx({"AUC": 3 / 4, "log loss": -np.log([0.9, 0.4, 0.5, 0.8]).mean()})


def test_criteo_columns(criteo: pd.DataFrame, tmp_path: Path) -> None:
    rows = read_criteo([tmp_path / "second"])
    train = np.arange(400) >= 2
    prepared = prepare_criteo(rows, train)
    assert prepared.loc[5, list(NUMBERS)].tolist() == pytest.approx(
        np.log1p(criteo.loc[5, list(NUMBERS)].astype(float).clip(lower=0)).fillna(-1).tolist()
    )
    assert set(prepared["C9"]) == {"on", "off", "dim", "rare"}
    assert (prepared.loc[:3, "C9"] == "rare").all()
    assert set(prepared["C7"]) == {"on", "off", "dim", ""}
    assert prepared[Columns.Weight].equals(criteo["label"].astype(float))
    # What only test rows have is rare, however often they have it.
    often = rows.assign(C1=np.where(np.arange(400) < 200, "new", rows["C1"]))
    assert set(prepare_criteo(often, np.arange(400) >= 200).loc[:199, "C1"]) == {"rare"}


def test_criteo_folds(criteo: pd.DataFrame) -> None:
    parts = [split_criteo(fold, False) for fold in range(N_FOLDS)]
    assert [(len(part.train.interactions.df), len(part.test)) for part in parts] == [(320, 80)] * N_FOLDS
    asked = pd.concat([part.test[list(NUMBERS)] for part in parts]).fillna(-1)
    numbers = prepare_criteo(read_criteo(clicks._default_places()), np.full(400, True))[list(NUMBERS)].fillna(-1)
    assert sorted(map(tuple, asked.to_numpy())) == sorted(map(tuple, numbers.to_numpy()))
    validation = split_criteo(0, True)
    assert (len(validation.train.interactions.df), len(validation.test)) == (280, 40)
    tested, seen = (
        set(map(tuple, frame[list(NUMBERS)].fillna(-1).to_numpy()))
        for frame in (parts[0].test, validation.train.get_raw_interactions(include_extra_cols=True))
    )
    assert not tested & (seen | set(map(tuple, validation.test[list(NUMBERS)].fillna(-1).to_numpy())))


def test_missing_criteo(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"criteo-kaggle-head8000.*does not download it"):
        read_criteo([tmp_path])


def test_table_models_find_gaps_and_categories(criteo: pd.DataFrame, tmp_path: Path) -> None:
    config = tmp_path / "clicks.yaml"
    config.write_text(
        "criteo:\n"
        "  logistic: {factory: benchmarks.clicks.table_logistic, strength: 1.0}\n"
        "  boosting: {factory: benchmarks.clicks.table_boosting, learning_rate: 0.1, max_iter: 50, max_leaf_nodes: 4,"
        " seed_param: seed}\n"
    )
    clicks.main(["criteo", "--config", str(config), "--output", str(tmp_path / "out")])
    rows = read_results(tmp_path / "out" / "criteo.json")["rows"]
    assert [(row["model"], row["seed"]) for row in rows] == [(m, s) for m in ("boosting", "logistic") for s in range(5)]
    assert min(row["metrics"]["AUC"] for row in rows) > 0.9


@pytest.mark.parametrize("make", [lambda: table_logistic(0.1), lambda: table_boosting(0.1, 10, 4, 0)])
def test_table_models_keep_rows_and_take_new_categories(make: object, criteo: pd.DataFrame) -> None:
    part = split_criteo(0, False)
    pairs = part.test.assign(C3="never seen").set_index(np.arange(80)[::-1])
    found = make().fit(part.train).predict_pairs(pairs, part.train)  # type: ignore[operator]
    assert found.index.equals(pairs.index)
    assert found[Columns.Score].between(0, 1).all()


def test_likes_are_cut_in_tenths(likes: Dataset) -> None:
    test, validation = split_likes(0, False), split_likes(0, True)
    assert test.train.get_raw_interactions().equals(validation.train.get_raw_interactions())
    assert [len(test.train.interactions.df), len(test.test), len(validation.test)] == [960, 120, 120]
    pairs = [set(part.test[Columns.UserItem].itertuples(index=False)) for part in (test, validation)]
    assert not pairs[0] & pairs[1]
    assert test.train.user_features is not None


@pytest.mark.parametrize(
    ("model", "low", "high"),
    [
        (OneHotLogistic(1.0), 0.3, 0.65),  # it has no pairs of columns
        (FactorizationMachine(4, 40, 64, 0.02, 0.0, seed=1), 0.99, 1.0),
    ],
)
def test_only_pairs_of_columns_tell_who_likes_what(
    model: OneHotLogistic | FactorizationMachine, low: float, high: float, likes: Dataset
) -> None:
    part = split_likes(0, False)
    found = model.fit(part.train).predict_pairs(part.test, part.train)
    auc = probability_metrics(found[Columns.Weight].to_numpy(), found[Columns.Score].to_numpy(), LIKE_THRESHOLD)["AUC"]
    assert low <= auc <= high


def test_factorisation_machine_by_hand(likes: Dataset) -> None:
    part = split_likes(0, False)
    model = FactorizationMachine(3, 1, 64, 0.1, 0.0, seed=1)
    model.fit(part.train)
    (logit,) = model._logits(model._columns(pd.DataFrame({Columns.User: [4], Columns.Item: [7]}), part.train)).tolist()
    users, items = part.train.user_id_map.size, part.train.item_id_map.size
    parities = [features.get_sparse().toarray() for features in (part.train.user_features, part.train.item_features)]
    one_hot = np.concatenate([np.eye(users)[4], parities[0][4], np.eye(items)[7], parities[1][7]])
    table = model.table.detach().numpy()
    expected = model.bias.item() + one_hot @ table[:, -1]
    active = np.flatnonzero(one_hot)
    expected += sum(table[i, :3] @ table[j, :3] for i in active for j in active if i < j)
    assert logit == pytest.approx(expected, abs=1e-5)
