from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks import clicks, ratings
from benchmarks.pointwise import cut, load_specs, result_path, screen_table
from benchmarks.provenance import REPOSITORY
from benchmarks.published import read_results
from benchmarks.ratings import TASKS, SurpriseSVD, errors, split


class ItemMean:
    """The mean rating of the item, and a model that sees no more than it may."""

    def fit(self, dataset: Dataset) -> None:
        assert dataset.interactions.df[Columns.Weight].between(1, 5).all()

    def predict_pairs(self, pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
        assert not {Columns.Weight, Columns.Score} & set(pairs)
        mean = dataset.get_raw_interactions().groupby(Columns.Item)[Columns.Weight].mean()
        return pairs.assign(score=pairs[Columns.Item].map(mean))


@pytest.fixture
def dataset() -> Dataset:
    """Three hundred ratings of 30 users and 20 items that differ in their means."""
    rng = np.random.default_rng(4)
    pairs = rng.permutation(30 * 20)[:300]
    frame = pd.DataFrame({Columns.User: 100 + pairs // 20, Columns.Item: 1000 + pairs % 20})
    weights = np.clip(1 + (frame[Columns.Item] - 1000) // 4 + rng.integers(0, 2, 300), 1, 5)
    return Dataset.construct(frame.assign(weight=weights, datetime="2020-01-01"), keep_extra_cols=True)


def test_errors_by_hand() -> None:
    # A prediction of 7 counts as 5, one of -1 as 1.
    found = errors(np.array([4.0, 3.0, 1.0]), np.array([7.0, 3.5, -1.0]))
    assert found == pytest.approx({"RMSE": np.sqrt((1 + 0.25 + 0) / 3), "MAE": 0.5})


def test_cold_rows_are_left_out() -> None:
    rows = pd.DataFrame([(1, 10), (1, 20), (2, 10), (3, 20), (2, 20)], columns=Columns.UserItem)
    dataset = Dataset.construct(rows.assign(weight=[1, 2, 3, 4, 5], datetime="2020-01-01"))
    part = cut(dataset, np.array([1, 0, 1, 0, 0], bool), np.array([0, 1, 0, 1, 0], bool))
    assert part.train.get_raw_interactions()[Columns.Weight].tolist() == [1, 3]
    assert (len(part.test), part.cold_rows) == (0, 2)  # item 20 is unknown
    part = cut(dataset, np.array([1, 1, 1, 0, 0], bool), np.array([0, 0, 0, 1, 1], bool))
    assert part.test[[*Columns.UserItem, Columns.Weight]].to_numpy().tolist() == [[2, 20, 5]]
    assert part.cold_rows == 1


def test_split(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratings, "_load", lambda _name: dataset)
    parts = {validate: split("ml-100k", 0, validate) for validate in (False, True)}
    train, inner = (parts[validate].train.get_raw_interactions() for validate in (False, True))
    pairs = [set(frame[Columns.UserItem].itertuples(index=False)) for frame in (train, inner, *(
        parts[validate].test for validate in (False, True)))]  # fmt: skip
    assert pairs[1] < pairs[0]
    assert pairs[3] < pairs[0]
    assert not pairs[3] & (pairs[1] | pairs[2])
    assert not pairs[2] & pairs[0]
    assert 10 < len(pairs[2]) < 60
    assert not split("ml-100k", 1, False).test.equals(parts[False].test)


def test_rows_and_table(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ratings, "_load", lambda _name: dataset)
    config = tmp_path / "ratings.yaml"
    config.write_text("ml-100k: {item mean: {factory: test_ratings.ItemMean}}")
    for extra in ([], ["--validate"]):
        ratings.main(["ml-100k", "--config", str(config), "--output", str(tmp_path / "out"), *extra])
    results = read_results(tmp_path / "out" / "ml-100k.json")
    assert [(row["model"], row["seed"]) for row in results["rows"]] == [("item mean", seed) for seed in range(3)]
    assert "versions" in results["runs"][results["rows"][0]["run"]]
    values = [row["metrics"]["RMSE"] for row in results["rows"]]
    # Within an item ratings are one of two that are as likely: half a point from their mean.
    assert all(0.3 < value < 0.7 for value in values)
    sizes = [sum(row["cut"].values()) for row in results["rows"]]
    assert sizes == [300] * 3
    shown = capsys.readouterr().out
    assert f"item mean {np.mean(values):.4f}" in shown
    assert "VALIDATION" in shown
    validation = json.loads((tmp_path / "out" / "ml-100k-validation.json").read_text())
    assert validation["part"] == "validation"
    assert sum(validation["rows"][0]["cut"].values()) == results["rows"][0]["cut"]["train_rows"]


def test_best_first() -> None:
    task = TASKS["ml-100k"]
    rows = [{"model": name, "metrics": {"RMSE": value, "MAE": 1.0}} for name, value in (("a", 2), ("b", 1), ("b", 2))]
    for largest_first, expected in ((False, ["b", "a"]), (True, ["a", "b"])):
        shown = screen_table({"rows": rows}, dataclasses.replace(task, largest_first=largest_first)).splitlines()
        assert [line.split()[0] for line in shown[2:]] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ml-10m"], "unknown tasks ['ml-10m']; choose from ['ml-100k', 'ml-1m']"),
        (["--models", "EASE"], "unknown models for ml-100k ['EASE']"),
        (["--config", "{folder}/wrong.yaml"], "ml-100k: wrong cannot be made"),
        (["--config", "{folder}/missing.yaml"], "missing.yaml"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong.yaml").write_text("ml-100k: {wrong: {factory: test_ratings.ItemMean, depth: 3}}")
    with pytest.raises(SystemExit):
        ratings.main([*(part.format(folder=tmp_path) for part in arguments), "--output", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", ["ratings", "clicks"])
def test_configuration_fits(program: str) -> None:
    module: Any = {"ratings": ratings, "clicks": clicks}[program]
    specs = load_specs(REPOSITORY / "benchmarks" / "configs" / f"{program}.yaml", module.TASKS)
    assert list(specs) == list(module.TASKS)


def test_svd_gets_the_train_part_and_the_pairs(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_python: Path, worker: Path, request: dict[str, Any], folder: Path, _threads: int) -> list[float]:
        assert worker.name == "surprise_worker.py"
        assert (request["seed"], request["scale"]) == (3, [1, 5])
        train = pd.read_csv(folder / request["train"], header=None).to_numpy()
        expected = dataset.get_raw_interactions()[[*Columns.UserItem, Columns.Weight]]
        assert np.array_equal(train, expected.to_numpy())
        return pd.read_csv(folder / request["pairs"], header=None).sum(axis=1).tolist()

    monkeypatch.setattr(ratings, "ask_worker", answer)
    monkeypatch.setattr(type(ratings.ENVIRONMENT), "make", lambda _self, folder: folder)
    pairs = pd.DataFrame({Columns.User: [105, 101], Columns.Item: [1001, 1003]}, index=[7, 5])
    found = SurpriseSVD(3).fit(dataset).predict_pairs(pairs, dataset)
    assert found[Columns.Score].to_dict() == {7: 1106, 5: 1104}


def test_results_are_apart(tmp_path: Path) -> None:
    paths = {result_path(tmp_path, task, validate) for task in TASKS.values() for validate in (False, True)}
    assert len(paths) == 4
