from __future__ import annotations

import os
import signal
import sys
import threading
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from cli_program import refused, run, succeed

from rectools_neural import from_pretrained
from rectools_neural.cli.evaluation import measure, split_dataset
from rectools_neural.cli.models import build_pack_model
from rectools_neural.cli.spaces import SPACES
from rectools_neural.cli.tables import Names, make_dataset, read_interactions
from rectools_neural.cli.tuning import choose_space, with_values
from rectools_neural.registry import MODELS


def write(path: Path, value: Any) -> Path:
    path.write_text(yaml.safe_dump(value))
    return path


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_space_of_valid_options(name: str) -> None:
    space = choose_space(name, {"cls": name}, None)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        values = {option: choice.suggest(trial, option) for option, choice in space.items()}
        config = build_pack_model(with_values({"cls": name}, values)).get_params(simple_types=True)
        for option, value in values.items():
            assert config[option if option in config else f"{option}.name"] == value
    assert set(SPACES) == set(MODELS)


@pytest.fixture(scope="module")
def knn(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What a search has written and printed."""
    path = tmp_path_factory.mktemp("tuned") / "best.yaml"
    options = ["--model", "UserKNNModel", "--trials", 6, "--metric", "recall@5", "--set", "similarity=cosine"]
    before = optuna.logging.get_verbosity()
    printed = succeed("tune", files / "log.csv", *options, "--output", path)
    assert optuna.logging.get_verbosity() == before
    assert printed.stderr.count("\n") == 1
    return path, printed.stdout


def test_fit_takes_what_tune_wrote(knn: tuple[Path, str], files: Path, tmp_path: Path) -> None:
    succeed("fit", files / "log.csv", "--config", knn[0], "--output", tmp_path / "model")
    best = yaml.safe_load(knn[0].read_text())
    config = from_pretrained(tmp_path / "model").get_config()
    assert best.pop("cls") == "UserKNNModel"
    assert best["similarity"] == "cosine"
    assert {name: config[name] for name in best} == best


def test_it_is_measured_on_rows_that_evaluate_does_not_hold_out(knn: tuple[Path, str], files: Path) -> None:
    names = Names()
    dataset = make_dataset(read_interactions(files / "log.csv", names), names, None, None)
    rest, test = split_dataset(dataset, "random", None)
    train, validation = split_dataset(rest, "random", None)
    held_out = [{*zip(part["user_id"], part["item_id"], strict=True)} for part in (test, validation)]
    assert held_out[0] & held_out[1] == set()
    values = []
    for options in ({"cls": "UserKNNModel", "similarity": "cosine"}, yaml.safe_load(knn[0].read_text())):
        model = build_pack_model(options).fit(train)
        values.append(measure(model, train, validation, 5)["recall@5"])
    assert values[1] >= values[0]
    table = pd.read_csv(StringIO(knn[1]))
    assert table["recall@5"].tolist() == pytest.approx(values)
    comments = [line for line in knn[0].read_text().splitlines() if line.startswith("#")]
    assert [f"{value:.6f}" in comments[1] for value in values] == [True, True]
    assert "log.csv" in comments[0]
    assert "random" in comments[2]


def test_the_same_search_finds_the_same(knn: tuple[Path, str], files: Path, tmp_path: Path) -> None:
    options = ["--model", "UserKNNModel", "--trials", 6, "--metric", "recall@5", "--set", "similarity=cosine", "-q"]
    assert succeed("tune", files / "log.csv", *options, "-o", tmp_path / "again.yaml").stdout == knn[1]
    assert (tmp_path / "again.yaml").read_text() == knn[0].read_text()


def test_a_search_that_pays(files: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "space.yaml", {"learning_rate": {"choices": [0.05]}})
    # Three epochs are too few for the learning rate that a model has by default.
    command = ["tune", files / "log.csv", "--set", "epochs=3", "--search", path, "--trials", 1]
    result = succeed(*command, "-o", tmp_path / "best.yaml")
    without, with_search = pd.read_csv(StringIO(result.stdout))["ndcg@10"]
    assert with_search > without
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["learning_rate"] == 0.05
    assert "the best options are in" in result.stderr


def test_a_space_of_ones_own(files: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    # YAML takes 1e0 for text.
    space.write_text("n_neighbors: {low: 10, high: 25}\nb: {choices: [0.3]}\nk1: {low: 1e0, high: 1e2, log: true}\n")
    write(tmp_path / "poor.yaml", {"cls": "UserKNNModel", "normalise": False, "similarity": "bm25"})
    command = ["tune", files / "log.csv", "--config", tmp_path / "poor.yaml", "--trials", 3, "--search", space]
    succeed(*command, "-o", tmp_path / "best.yaml")
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert (best["normalise"], best["similarity"], best.get("b", 0.3)) == (False, "bm25", 0.3)
    assert "n_neighbors, b, k1" in (tmp_path / "best.yaml").read_text()


def test_nested_options_and_time(files: Path, tmp_path: Path) -> None:
    space = {
        "loss.margin": {"low": 0.1, "high": 0.9},
        "user_tower.name": {"choices": ["mlp"]},
        "user_tower.hidden": {"choices": [[4], [4, 2]]},
        "n_factors": {"low": 2, "high": 8},
    }
    path = write(tmp_path / "space.yaml", space)
    command = ["tune", files / "log.csv", "--set", "epochs=1", "--search", path, "-o", tmp_path / "best.yaml"]
    assert "`loss.margin`" in refused(*command, "--set", "loss=triplet")
    write(path, {"loss.name": {"choices": ["triplet"]}, **space})
    succeed(*command, "--trials", 1000, "--timeout", 0, "--metric", "map@3")
    text = (tmp_path / "best.yaml").read_text()
    assert "trials: 1." in text
    assert "map@3" in text
    succeed("fit", files / "log.csv", "--config", tmp_path / "best.yaml", "-o", tmp_path / "model")


def test_trials_that_fail_are_skipped(files: Path, tmp_path: Path) -> None:
    space = write(tmp_path / "space.yaml", {"device": {"choices": ["cuda:99", "cpu"]}})
    command = ["tune", files / "log.csv", "--search", space, "--set", "epochs=1", "--set", "n_factors=2"]
    result = succeed(*command, "--trials", 8, "-o", tmp_path / "best.yaml")
    warned = [line for line in result.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warned) >= 1
    assert all("cuda:99" in line for line in warned)
    assert "no trial was better" in result.stderr
    assert f"trials: {8 - len(warned)}." in (tmp_path / "best.yaml").read_text()
    write(space, {"device": {"choices": ["cuda:99"]}})
    failed = run(*command, "--trials", 2, "-o", tmp_path / "worst.yaml", "--quiet")
    assert failed.exit_code == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("Error: all trials failed")
    assert "cuda:99" in failed.stderr
    assert sorted(os.listdir(tmp_path)) == ["best.yaml", "space.yaml"]


def test_ctrl_c_keeps_the_best_so_far(files: Path, tmp_path: Path) -> None:
    command = ["tune", files / "log.csv", "--model", "UserKNNModel", "--trials", 10**6, "-o", tmp_path / "best.yaml"]
    threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    message = refused(*command, code=130)
    assert "the best options so far" in message
    assert "best.yaml" in message
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["cls"] == "UserKNNModel"
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    endless = ["tune", files / "log.csv", "--set", "epochs=1000000", "-o", tmp_path / "none.yaml"]
    assert "nothing was written" in refused(*endless, code=130)
    assert os.listdir(tmp_path) == ["best.yaml"]


SEARCHES: list[tuple[Any, list[str]]] = [
    ({}, ["no options"]),
    (["n_factors"], ["no options"]),
    ({"n_factor": {"choices": [1]}}, ["`n_factor`", "did you mean `n_factors`"]),
    ({"n_factors": 64}, ["`n_factors`", "64", "choices"]),
    ({"n_factors": {"choices": []}}, ["`n_factors`", "[]"]),
    ({"n_factors": {"choices": 64}}, ["`n_factors`", "64"]),
    ({"n_factors": {"choices": [8, -1]}}, ["`n_factors`", "-1", "greater than 0"]),
    ({"n_factors": {"low": 8}}, ["`n_factors`", "high"]),
    ({"n_factors": {"low": 8, "high": 16, "step": 2}}, ["`n_factors`", "step"]),
    ({"n_factors": {"low": 8, "high": "many"}}, ["`n_factors`", "'many'"]),
    ({"n_factors": {"low": 8, "high": 16, "log": "yes please"}}, ["`n_factors`", "yes please"]),
    ({"n_factors": {"low": 16, "high": 8}}, ["`n_factors`", "16", "8"]),
    ({"n_factors": {"low": 0.5, "high": 8}}, ["`n_factors`", "0.5"]),
    ({"learning_rate": {"low": 0, "high": 1, "log": True}}, ["`learning_rate`", "more than 0"]),
    ({"learning_rate": {"low": 1e-3, "high": np.inf}}, ["`learning_rate`", "finite"]),
    ({"learning_rate": {"low": True, "high": 2}}, ["`learning_rate`", "True"]),
    ({"learning_rate": {"low": -1.0, "high": 1.0}}, ["`learning_rate`", "-1"]),
    ({"epochs": {"choices": [1, 2]}}, ["`epochs`", "--set"]),
    ({"seed.x": {"choices": [1]}}, ["`seed", "x"]),
    ({"cls": {"choices": ["GFCFModel"]}}, ["`cls`"]),
    ({7: {"choices": [1]}}, ["`7`"]),
]


@pytest.mark.parametrize(("search", "words"), SEARCHES)
def test_bad_spaces(search: Any, words: list[str], files: Path, tmp_path: Path) -> None:
    space = write(tmp_path / "space.yaml", search)
    options = ["--search", space, "--set", "epochs=1", "-o", tmp_path / "best.yaml"]
    message = refused("tune", files / "log.csv", *options)
    assert [word for word in ["space.yaml", *words] if word not in message] == []
    assert os.listdir(tmp_path) == ["space.yaml"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metric", "auc@10"], ["auc@10", "ndcg"]),
        (["--metric", "ndcg"], ["ndcg@10"]),
        (["--metric", "ndcg@0"], ["ndcg@0"]),
        (["--trials", "0"], ["--trials"]),
        (["--timeout", "-1"], ["--timeout"]),
        (["--timeout", "soon"], ["--timeout"]),
        (["--model", "EASEModel"], ["EASEModel", "`leaderboard`"]),
        (["--model", "DSMModel"], ["did you mean `DSSMModel`"]),
        (["--set", "epoch=3"], ["`epoch`", "did you mean `epochs`"]),
        (["--set", "epochs=3", "--set", "epochs.x=3"], ["`epochs.x`"]),
        (["--model", "UserKNNModel", "--config", "all.yaml"], ["--model", "--config"]),
        (["--config", "all.yaml"], ["UserKNNModel", "--search"]),
        (["--search", "lost.yaml"], ["lost.yaml"]),
        (["--search", "text.yaml"], ["text.yaml", "no YAML"]),
        (["--output", "best.json"], ["best.json", ".yaml"]),
        (["--output", "all.yaml"], ["all.yaml", "--overwrite"]),
        (["--output", "nowhere/best.yaml"], ["nowhere"]),
        (["--size", "2"], ["--size"]),
        (["--trails", "2"], ["--trails", "--trials"]),
    ],
)
def test_bad_options(
    options: list[str], words: list[str], files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.yaml").write_text("[")
    values = {"cls": "UserKNNModel", "similarity": "bm25", "n_neighbors": 5, "k1": 1.0, "b": 0.5}
    write(tmp_path / "all.yaml", values)
    message = refused("tune", files / "log.csv", "--output", "best.yaml", *options)
    assert [word for word in words if word not in message] == []
    assert sorted(os.listdir(tmp_path)) == ["all.yaml", "text.yaml"]
    assert yaml.safe_load((tmp_path / "all.yaml").read_text()) == values


def test_without_optuna(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    message = refused("tune", files / "log.csv", "-o", tmp_path / "best.yaml")
    assert "`optuna`" in message
    assert "rectools-neural[cli]" in message
