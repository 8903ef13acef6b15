from __future__ import annotations

import html
import json
import os
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from cli_program import refused, run, succeed

METRICS = ["ndcg@5", "recall@5", "map@5", "coverage@5"]


def write(path: Path, value: Any) -> Path:
    path.write_text(yaml.safe_dump(value))
    return path


def read(text: str) -> pd.DataFrame:
    return pd.read_csv(StringIO(text)).set_index("model")


def test_a_row_is_what_evaluate_measures(files: Path, tmp_path: Path) -> None:
    options = {"n_factors": 8, "epochs": 2}
    entries = [{"name": "towers", "cls": "DSSMModel", **options}, {"cls": "EASEModel", "regularization": 5}]
    config = write(tmp_path / "models.yaml", entries)
    split = [files / "log.parquet", "--split", "time", "--size", "0.2", "-k", 5]
    command = ["leaderboard", *split, "--config", config, "--seeds", 2]
    table = read(succeed(*command, "--output", tmp_path / "report.json").stdout)
    assert set(table.index) == {"towers", "EASEModel", "PopularModel"}
    assert table["ndcg@5"].is_monotonic_decreasing
    assert table["fits"].to_dict() == {"towers": 2, "EASEModel": 1, "PopularModel": 1}
    assert table["error"].isna().all()
    measured = []
    for seed in (0, 1):
        settings = [f"--set={name}={value}" for name, value in {**options, "seed": seed}.items()]
        measured.append(read(succeed("evaluate", *split, *settings).stdout))
    fits = pd.DataFrame([fit.loc["DSSMModel"] for fit in measured])
    for name in METRICS:
        assert table.loc["towers", name] == pytest.approx(fits[name].mean())
        assert table.loc["towers", f"{name}_std"] == pytest.approx(fits[name].std())
        assert table.loc["PopularModel", name] == pytest.approx(measured[0].loc["PopularModel", name])
    assert table["times_popular"].tolist() == pytest.approx(table["ndcg@5"] / table.loc["PopularModel", "ndcg@5"])
    assert table["ndcg@5_std"].isna().to_dict() == {"towers": False, "EASEModel": True, "PopularModel": True}
    facts = json.loads((tmp_path / "report.json").read_text())
    assert [row["model"] for row in facts["models"]] == list(table.index)
    assert facts["options"]["towers"] == {"cls": "DSSMModel", **options}
    assert (facts["split"], facts["seeds"]) == ({"name": "time", "size": 0.2, "seed": 0}, 2)
    # Every fit has its seed: the same table again.
    again = read(succeed(*command).stdout)
    pd.testing.assert_frame_equal(again.drop(columns="fit_seconds"), table.drop(columns="fit_seconds"))


def test_seeds_of_models_inside_models(files: Path, tmp_path: Path) -> None:
    als = {"cls": "ImplicitALSWrapperModel", "model": {"factors": 4}}
    given = {"cls": "ImplicitALSWrapperModel", "name": "given", "model": {"factors": 4, "random_state": 1}}
    config = write(tmp_path / "models.yaml", [als, given, {"cls": "GFCFModel", "seed": 3}])
    table = read(succeed("leaderboard", files / "log.csv", "--config", config, "--seeds", 2).stdout)
    assert table["fits"].to_dict() == {"ImplicitALSWrapperModel": 2, "given": 1, "GFCFModel": 1, "PopularModel": 1}


def test_a_model_that_fails_leaves_the_others_alone(files: Path, tmp_path: Path) -> None:
    broken = {"name": "<b>broken</b>", "cls": "DSSMModel", "device": "cuda:99"}
    config = write(tmp_path / "models.yaml", [broken, {"cls": "GFCFModel"}])
    command = ["leaderboard", files / "log.csv", "--config", config]
    result = run(*command, "--output", tmp_path / "report.html")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert [part in result.stderr for part in ("1 of 3 models failed", "<b>broken</b>", "cuda:99")] == [True] * 3
    table = read(result.stdout)
    assert list(table.index) == ["GFCFModel", "PopularModel", "<b>broken</b>"]
    assert "cuda:99" in table.loc["<b>broken</b>", "error"]
    assert np.isnan(table.loc["<b>broken</b>", "ndcg@10"])
    page = (tmp_path / "report.html").read_text()
    assert "<b>broken" not in page
    assert "cuda:99" in page
    assert "Traceback" in run(*command, "--debug").stderr


def test_the_page_stands_alone(files: Path, tmp_path: Path) -> None:
    models = ["--models", "PopularModel, UserKNNModel", "--seeds", 1]
    table = read(succeed("leaderboard", files / "log.csv", *models, "-o", tmp_path / "report.html").stdout)
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r"(?:src|href)=|https?:", page) == []
    rows = re.findall(r"<tr><th>([^<]*)</th>(.*?)</tr>", page)[-2:]
    assert [html.unescape(name) for name, _ in rows] == list(table.index)
    for name, cells in rows:
        assert f">{table.loc[name, 'ndcg@10']:.4f}<" in cells
        assert f"width: {table.loc[name, 'ndcg@10'] / table['ndcg@10'].max():.1%}" in cells
    assert "log.csv" in page
    written = tmp_path / "report.csv"
    succeed("leaderboard", files / "log.csv", *models, "-o", written)
    pd.testing.assert_frame_equal(
        read(written.read_text()).drop(columns="fit_seconds"), table.drop(columns="fit_seconds")
    )


def test_lists_longer_than_the_catalogue(files: Path) -> None:
    models = ["--models", "UserKNNModel,EASEModel,GFCFModel", "--seeds", 1]
    table = read(succeed("leaderboard", files / "log.csv", *models, "-k", 10**6).stdout)
    assert table.loc[["EASEModel", "PopularModel"], "recall@1000000"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models", "DSMModel"], ["--models, model 1", "did you mean `DSSMModel`"]),
        (["--models", ","], ["--models", "no models"]),
        (["--models", "EASEModel,EASEModel"], ["`EASEModel` twice", "`name`"]),
        (["--models", "EASEModel", "--config", "good.yaml"], ["--models", "--config"]),
        (["--config", "lost.yaml"], ["lost.yaml"]),
        (["--config", "text.yaml"], ["text.yaml", "no YAML"]),
        (["--config", "empty.yaml"], ["empty.yaml", "no models"]),
        (["--config", "one.yaml"], ["one.yaml", "a list"]),
        (["--config", "plain.yaml"], ["plain.yaml, model 2", "'EASEModel'", "cls"]),
        (["--config", "option.yaml"], ["`epoch`", "did you mean `epochs`"]),
        (["--config", "value.yaml"], ["`epochs`", "'many'"]),
        (["--config", "name.yaml"], ["name 7"]),
        (["-k", "0"], ["-k"]),
        (["--seeds", "0"], ["--seeds"]),
        (["--seeds", "few"], ["--seeds"]),
        (["--size", "3"], ["--size"]),
        (["--size", "nan"], ["--size"]),
        (["--split", "future"], ["--split"]),
        (["--output", "report.txt"], ["report.txt", ".html"]),
        (["--output", "good.csv"], ["good.csv", "--overwrite"]),
        (["--output", "nowhere/report.csv"], ["nowhere"]),
        (["--model", "EASEModel"], ["--model", "--models"]),
        (["--item-features", "lost.csv"], ["lost.csv"]),
    ],
)
def test_bad_options(
    options: list[str], words: list[str], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.yaml").write_text("[")
    (tmp_path / "good.csv").write_text("before")
    write(tmp_path / "empty.yaml", [])
    write(tmp_path / "one.yaml", {"cls": "EASEModel"})
    write(tmp_path / "plain.yaml", [{"cls": "EASEModel"}, "EASEModel"])
    write(tmp_path / "option.yaml", [{"cls": "DSSMModel", "epoch": 3}])
    write(tmp_path / "value.yaml", [{"cls": "DSSMModel", "epochs": "many"}])
    write(tmp_path / "name.yaml", [{"cls": "DSSMModel", "name": 7}])
    before = sorted(os.listdir(tmp_path))
    message = refused("leaderboard", files / "log.csv", *options)
    assert [word for word in words if word not in message] == []
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "good.csv").read_text() == "before"


@pytest.mark.parametrize("command", [["leaderboard"], ["tune", "--output", "best.yaml"]])
def test_bad_data(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 6, 5]})
    log.to_csv("log.csv", index=False)
    log.assign(item_id=[5, np.nan, 6]).to_csv("gaps.csv", index=False)
    log.assign(weight=[1, np.nan, 6]).to_csv("weights.csv", index=False)
    log.head(0).to_csv("empty.csv", index=False)
    assert "lost.csv" in refused(*command, "lost.csv")
    assert "no rows" in refused(*command, "empty.csv")
    assert "`item_id`" in refused(*command, "gaps.csv")
    assert "`weight`" in refused(*command, "weights.csv")
    assert "--datetime-column" in refused(*command, "log.csv", "--split", "time")
    assert "--size" in refused(*command, "log.csv", "--size", "1e-9")
    assert "best.yaml" not in os.listdir(tmp_path)
