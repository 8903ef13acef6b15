from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cli_program import refused, succeed

from rectools_neural import explain, from_pretrained
from rectools_neural.cli.tables import Names, make_dataset, read_interactions


@pytest.fixture
def pair(folder: Path, files: Path, features: list[object]) -> list[object]:
    return ["explain", folder, "--interactions", files / "log.csv", *features, "--user", "u003", "--item", "101"]


def test_the_parts_are_those_of_python(folder: Path, files: Path, pair: list[object], tmp_path: Path) -> None:
    names = Names()
    log = read_interactions(files / "log.csv", names)
    dataset = make_dataset(log, names, files / "users.csv", files / "items.parquet")
    expected = explain(from_pretrained(folder), dataset, "u003", 101)
    printed = succeed(*pair)
    assert printed.stderr == expected.sentence() + "\n"
    assert printed.stdout == expected.contributions.to_csv(index=False)
    assert succeed(*pair, "--output", tmp_path / "why.json").stdout == ""
    found = json.loads((tmp_path / "why.json").read_text())
    assert (found["user"], found["item"], found["is_exact"]) == ("u003", "101", expected.is_exact)
    assert (found["score"], found["sentence"]) == (pytest.approx(expected.score), expected.sentence())
    rows = found["contributions"]
    assert [row["name"] for row in rows] == expected.contributions["name"].tolist()
    assert sum(row["contribution"] for row in rows) == pytest.approx(expected.score, rel=1e-4)
    assert succeed(*pair, "--output", tmp_path / "why.csv", "--quiet").output == ""
    assert (tmp_path / "why.csv").read_text() == printed.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--user", "zoe"], ["--user", "`zoe`"]),
        (["--user", ""], ["--user"]),
        (["--item", "7"], ["--item", "`7`"]),
        (["--item", "drama"], ["--item", "`drama`", "whole number"]),
        (["--item", ""], ["--item"]),
        (["--output", "why.txt"], ["why.txt", ".json"]),
        (["--output", "nowhere/why.csv"], ["nowhere"]),
        (["--output", "there.csv"], ["there.csv", "--overwrite"]),
        (["--interactions", "lost.csv"], ["lost.csv"]),
        (["--interactions", "gaps.csv"], ["`item_id`", "missing", "row 2"]),
        (["--users", "u003"], ["--users", "--user"]),
    ],
)
def test_bad_options(
    options: list[str], words: list[str], pair: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("before")
    pd.DataFrame({"user_id": ["u003", "u003"], "item_id": [101, np.nan]}).to_csv("gaps.csv", index=False)
    message = refused(*pair, *options)
    assert [word for word in words if word not in message] == []
    assert sorted(os.listdir(tmp_path)) == ["gaps.csv", "there.csv"]
    assert (tmp_path / "there.csv").read_text() == "before"


def test_models_and_features_must_fit(plain: Path, folder: Path, files: Path, pair: list[Any], tmp_path: Path) -> None:
    assert "--item" in refused(*pair[:-2])
    assert "lost" in refused("explain", tmp_path / "lost", *pair[2:])
    assert "give --item-features" in refused(*pair[:6], *pair[8:])
    # An item that is in the newer file alone: a model without features does not know it.
    log = pd.read_csv(files / "log.csv")
    pd.concat([log, log.tail(1).assign(item_id=999)]).to_csv(tmp_path / "newer.csv", index=False)
    command = ["explain", plain, "--interactions", tmp_path / "newer.csv", "--user", "u003", "--item"]
    assert "999" in refused(*command, 999)
    assert "kind,name,value,contribution" in succeed(*command, 101).stdout
