from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks.speed import (
    BATCH_SIZE,
    ITEM_FIELDS,
    MULTI_VALUED,
    PARTS,
    USER_FIELDS,
    Sizes,
    _check_equal,
    kion_like,
    main,
    run,
    screen_table,
    take_users,
)

TINY = Sizes(users=600, items=200, rows=6_000, few_users=60, more_users=120, ranked_users=100, negatives=1_000)
PAIR = [Columns.User, Columns.Item]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return kion_like(n_users=800, n_items=700, n_rows=8_000, seed=3)


def values_per_entity(dataset: Dataset, side: str, field: str) -> np.ndarray:
    features = getattr(dataset, f"{side}_features")
    columns = [j for j, (name, _) in enumerate(features.names) if name == field]
    return np.asarray((features.values[:, columns] > 0).sum(axis=1)).ravel()


def test_generated_data_has_the_promised_shape(dataset: Dataset) -> None:
    frame = dataset.interactions.df
    assert 7_900 < len(frame) <= 8_000  # the limit to a history takes some
    assert not frame.duplicated(PAIR).any()
    assert frame[Columns.Datetime].is_monotonic_increasing
    rows_per_user = frame[Columns.User].value_counts()
    assert len(rows_per_user) == 800
    assert rows_per_user.min() >= 2
    assert rows_per_user.max() == 700 // 4 > 5 * rows_per_user.median()
    rows_per_item = frame[Columns.Item].value_counts()
    assert len(rows_per_item) == 700
    assert rows_per_item.iloc[:70].sum() > 0.4 * len(frame)


def test_generated_data_has_the_promised_features(dataset: Dataset) -> None:
    assert (len(USER_FIELDS), len(dataset.user_features.names)) == (4, 16)
    assert (len(ITEM_FIELDS), len(dataset.item_features.names)) == (6, 835)
    for side, fields in (("user", USER_FIELDS), ("item", ITEM_FIELDS)):
        for field in fields:
            counts = values_per_entity(dataset, side, field)
            assert counts.min() == 1
            assert (counts.max() > 1) == (field in MULTI_VALUED)


def test_generated_data_follow_the_seed(dataset: Dataset) -> None:
    same, other = (kion_like(800, 700, 8_000, seed).get_raw_interactions() for seed in (3, 4))
    pd.testing.assert_frame_equal(same, dataset.get_raw_interactions())
    assert not same[PAIR].equals(other[PAIR])


@pytest.mark.parametrize(("users", "items", "rows"), [(100, 101, 500), (100, 80, 199), (100, 80, 1_001)])
def test_impossible_shape_is_refused(users: int, items: int, rows: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} rows of {users} users and {items} items: give"):
        kion_like(users, items, rows)


def test_take_users_keeps_rows_features_and_all_items(dataset: Dataset) -> None:
    part = take_users(dataset, 50)
    kept = part.user_id_map.external_ids
    assert len(set(kept)) == 50
    whole = dataset.get_raw_interactions()
    pd.testing.assert_frame_equal(
        part.get_raw_interactions(), whole[whole[Columns.User].isin(kept)].reset_index(drop=True)
    )
    assert part.get_user_item_matrix().shape == (50, 700)
    rows = dataset.user_id_map.convert_to_internal(kept)
    np.testing.assert_array_equal(part.user_features.values.toarray(), dataset.user_features.values[rows].toarray())
    assert part.item_features is dataset.item_features


@pytest.fixture(scope="module")
def result() -> dict:
    return run(list(PARTS), TINY, repeats=2)


def test_everything_is_measured_each_time(result: dict) -> None:
    assert list(result["parts"]) == ["train", "rank", "sample"]
    assert result["sizes"]["users"] == 600
    assert {"machine", "versions", "git"} < set(result["provenance"])
    measured = [m for found in result["parts"].values() for m in found]
    assert len({m["name"] for m in measured}) == len(measured)
    for m in measured:
        assert len(m["values"]) == 2
        assert min(m["values"]) > 0
        assert m["median"] == sum(m["values"]) / 2
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_ratios_follow_from_the_times(result: dict) -> None:
    values = {m["name"]: m["values"] for m in result["parts"]["train"]}
    few, more = values["RecTools DSSM, epoch on 60 users"], values["RecTools DSSM, epoch on 120 users"]
    growth = values["RecTools DSSM, time a user with more users against with few"]
    whole = values["RecTools DSSM, epoch on 600 users, extrapolated"]
    epoch, fit = values[f"DSSM, batch {BATCH_SIZE}, epoch"], values[f"DSSM, batch {BATCH_SIZE}, fit of one epoch"]
    assert growth == pytest.approx([b / a / 2 for a, b in zip(few, more, strict=True)])
    assert whole == pytest.approx([5 * seconds for seconds in more])
    for ours, name in ((epoch, "epoch"), (fit, "fit")):
        ratio = values[f"DSSM, batch {BATCH_SIZE}, {name} against RecTools' epoch"]
        assert ratio == pytest.approx([a / b for a, b in zip(whole, ours, strict=True)])
    assert all(a < b for a, b in zip(epoch, fit, strict=True))


def test_all_rankers_are_measured_with_and_without_whitelist(result: dict) -> None:
    names = [m["name"] for m in result["parts"]["rank"] if m["unit"] == "users a second"]
    rankers = ("rank_vectors", "RecTools ImplicitRanker", "RecTools TorchRanker")
    cases = ("seen items left out", "and a whitelist of half of the items")
    assert names == [f"{ranker}, top-10, {case}" for case in cases for ranker in rankers]


def test_different_rankings_are_not_compared() -> None:
    rows = np.zeros(3)
    ranking = (rows, np.array([4, 2, 7]), np.array([3.0, 1.0, 1.0]))
    swapped = (rows, np.array([4, 7, 2]), np.array([3.0, 1.0, 1.0]))
    worse = (rows, np.array([4, 2, 9]), np.array([3.0, 1.0, 0.5]))
    shorter = tuple(column[:2] for column in ranking)
    _check_equal({"a": ranking, "b": swapped})
    for other in (worse, shorter):
        with pytest.raises(RuntimeError, match="a and b rank differently"):
            _check_equal({"a": ranking, "b": other})


def test_screen_table() -> None:
    speed = {"name": "speed", "unit": "times", "values": [40.0, 61.25], "median": 50.625, "required": "at least 50"}
    memory = {"name": "memory used", "unit": "MB", "values": [1234.5], "median": 1234.5, "required": ""}
    assert screen_table({"parts": {"train": [speed], "rank": [memory]}}).splitlines() == [
        "             median          range  unit   required",
        "speed          50.6      40 - 61.2  times  at least 50",
        "memory used   1,234  1,234 - 1,234  MB",
    ]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "speed.json"
    main(["sample", "--scale", "0.02", "--repeats", "1", "--output", str(output)])
    written = json.loads(output.read_text())
    assert list(written["parts"]) == ["sample"]
    assert written["sizes"] == vars(Sizes().scaled(0.02))
    assert capsys.readouterr().out == screen_table(written) + "\n"
    assert [path.name for path in output.parent.iterdir()] == ["speed.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown part `trian`; did you mean `train`?"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--scale", "1.5"], "--scale must be above 0 and at most 1, got 1.5"),
        (["--scale", "0.001"], "4000 rows of 231 users and 12 items: give"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "speed.json"
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--output", str(output)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not output.exists()
