from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from rectools import Columns
from rectools.dataset import Dataset

import rectools_neural
from rectools_neural import DSSMModel, from_pretrained

testing = pytest.importorskip("typer.testing", reason="pip install rectools-neural[cli]")

from rectools_neural.cli.commands import app  # noqa: E402

OPTIONS = {"epochs": 3, "n_factors": 8}
SETTINGS = [part for name, value in OPTIONS.items() for part in ("--set", f"{name}={value}")]
HOBBIES = ["chess", "golf | chess", None, "sailing"]


def run(*arguments: object) -> Any:
    return testing.CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(*arguments: object, code: int = 2) -> str:
    """Run what must fail, and return the one line that says why."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.fixture(scope="module")
def log(make_frames: Callable[..., Any]) -> pd.DataFrame:
    table: pd.DataFrame = make_frames(n_users=30, n_items=20).interactions
    return table.assign(**{Columns.Weight: np.random.default_rng(0).uniform(1, 5, len(table))})


@pytest.fixture(scope="module")
def files(log: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interactions in both formats, and wide features of all users, of one without interactions, and of all items."""
    folder = tmp_path_factory.mktemp("files")
    log.to_csv(folder / "log.csv", index=False)
    log.to_parquet(folder / "log.parquet", index=False)
    users = [*sorted(log[Columns.User].unique()), "newcomer"]
    ages = [None if row % 7 == 3 else 20 + row for row in range(len(users))]
    hobbies = [HOBBIES[row % 4] for row in range(len(users))]
    pd.DataFrame({"user_id": users, "age": ages, "hobby": hobbies}).to_csv(folder / "users.csv", index=False)
    items = np.sort(log[Columns.Item].unique())
    genres = [f"g{item % 2}" for item in items]
    pd.DataFrame({"item_id": items, "genre": genres, "price": items / 10}).to_parquet(folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def features(files: Path) -> list[object]:
    return ["--user-features", files / "users.csv", "--item-features", files / "items.parquet"]


@pytest.fixture(scope="module")
def dataset(log: pd.DataFrame, files: Path) -> Dataset:
    """What the files hold, as one writes it in Python."""
    users, items = pd.read_csv(files / "users.csv"), pd.read_parquet(files / "items.parquet")
    user_rows = [(user, "age", age) for user, age in zip(users["user_id"], users["age"], strict=True) if age == age]
    for user, hobby in zip(users["user_id"], users["hobby"], strict=True):
        user_rows += [(user, "hobby", part.strip()) for part in str(hobby).split("|") if hobby == hobby]
    item_rows = [(item, "genre", genre) for item, genre in zip(items["item_id"], items["genre"], strict=True)]
    item_rows += [(item, "price", price) for item, price in zip(items["item_id"], items["price"], strict=True)]
    flat = ["id", "feature", "value"]
    return Dataset.construct(
        log,
        pd.DataFrame(user_rows, columns=flat),
        ["hobby"],
        False,
        pd.DataFrame(item_rows, columns=flat),
        ["genre"],
        False,
    )


@pytest.fixture(scope="module")
def folder(files: Path, features: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dssm"
    result = succeed("fit", files / "log.csv", *features, *SETTINGS, "--output", folder)
    assert result.stdout == ""
    assert "DSSMModel was fitted on 30 users, 20 items, 240 interactions" in result.stderr
    return folder


@pytest.fixture(scope="module")
def plain(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without features, quick to fit."""
    folder = tmp_path_factory.mktemp("models") / "knn"
    result = succeed("fit", files / "log.parquet", "--model", "UserKNNModel", "-o", folder, "--quiet")
    assert result.output == ""
    return folder


# ---------------------------------------------------------------------- recommend


@pytest.mark.parametrize("keep_seen", [False, True])
def test_the_answers_are_those_of_python(
    folder: Path,
    files: Path,
    features: list[object],
    dataset: Dataset,
    log: pd.DataFrame,
    keep_seen: bool,
    tmp_path: Path,
) -> None:
    model = DSSMModel(**OPTIONS).fit(dataset)
    expected = model.recommend(log[Columns.User].unique(), dataset, 5, filter_viewed=not keep_seen)
    command = ["recommend", folder, "--interactions", files / "log.csv", *features, "-k", 5]
    command += ["--keep-seen"] * keep_seen
    succeed(*command, "--output", tmp_path / "reco.parquet")
    assert_frame_equal(pd.read_parquet(tmp_path / "reco.parquet"), expected, check_exact=True)
    succeed(*command, "--output", tmp_path / "reco.csv")
    assert run(*command).stdout == (tmp_path / "reco.csv").read_text()
    from_csv = pd.read_csv(tmp_path / "reco.csv").astype({Columns.Score: np.float32})
    assert_frame_equal(from_csv, expected, check_exact=True)
    succeed(*command, "--output", tmp_path / "reco.jsonl")
    rectools_neural.to_jsonl(expected, tmp_path / "expected.jsonl")
    assert (tmp_path / "reco.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
    assert set(os.listdir(tmp_path)) == {"reco.parquet", "reco.csv", "reco.jsonl", "expected.jsonl"}


def test_chosen_users_and_items(
    folder: Path, files: Path, features: list[object], dataset: Dataset, tmp_path: Path
) -> None:
    pd.DataFrame({"item_id": [104, 101, 110]}).to_csv(tmp_path / "stock.csv", index=False)
    command = ["recommend", folder, "--interactions", files / "log.parquet", *features, "--keep-seen"]
    command += ["--items", tmp_path / "stock.csv", "--users", "u003, newcomer,u001"]
    succeed(*command, "--output", tmp_path / "reco.parquet")
    model = from_pretrained(folder)
    users, items = ["u003", "newcomer", "u001"], [104, 101, 110]
    expected = model.recommend(users, dataset, 10, filter_viewed=False, items_to_recommend=items)
    assert set(expected[Columns.User]) == set(users)
    assert_frame_equal(pd.read_parquet(tmp_path / "reco.parquet"), expected, check_exact=True)


def test_k_beyond_the_catalogue_gives_all_items(plain: Path, files: Path) -> None:
    result = succeed("recommend", plain, "--interactions", files / "log.csv", "-k", 10**6, "--users", "u001", "-q")
    rows = result.stdout.splitlines()
    assert rows[0] == "user_id,item_id,score,rank"
    assert 1 <= len(rows) - 1 <= 20


def test_features_must_be_those_of_the_fit(folder: Path, files: Path, features: list[object], tmp_path: Path) -> None:
    log = ["--interactions", files / "log.csv"]
    assert "give --item-features" in refused("recommend", folder, *log, *features[:2])
    succeed("fit", files / "log.csv", *SETTINGS, "--output", tmp_path / "model")
    assert "leave out --user-features" in refused("recommend", tmp_path / "model", *log, *features[:2])


def test_ids_keep_their_zeros_and_the_type_of_the_model(log: pd.DataFrame, tmp_path: Path) -> None:
    texts = log.assign(user_id=log[Columns.User].str.replace("u", "0"), item_id=log[Columns.Item] + 1)
    texts.rename(columns={"user_id": "client", "item_id": "film"}).to_csv(tmp_path / "log.csv", index=False)
    columns = ["--user-column", "client", "--item-column", "film"]
    succeed("fit", tmp_path / "log.csv", *columns, "--model", "UserKNNModel", "-o", tmp_path / "model")
    reader = from_pretrained(tmp_path / "model")._fitted.reader
    assert reader.user_ids[1] == "0001"
    assert reader.item_ids.dtype == np.int64
    # All users of the newer file look like numbers; those of the model are text.
    newer = pd.DataFrame({"client": [7, 7, 7], "film": [101, 103, 105]})
    newer.to_csv(tmp_path / "newer.csv", index=False)
    result = succeed("recommend", tmp_path / "model", "--interactions", tmp_path / "newer.csv", *columns)
    assert result.stdout.splitlines()[1].startswith("7,")
    newer.assign(film="x").to_csv(tmp_path / "other.csv", index=False)
    message = refused("recommend", tmp_path / "model", "--interactions", tmp_path / "other.csv", *columns)
    assert "`film`" in message
    assert "`x`" in message


# ---------------------------------------------------------------------- fit, evaluate, inspect


def test_config_and_settings(files: Path, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("cls: DSSMModel\nloss: triplet\nn_factors: 4\nepochs: 50\n")
    settings = ["--set", "loss.margin=0.3", "--set", "epochs=1", "--set", "loss.mining=semi_hard"]
    succeed("fit", files / "log.csv", "--config", tmp_path / "model.yaml", *settings, "-o", tmp_path / "model")
    config = from_pretrained(tmp_path / "model").get_config(mode="pydantic")
    assert (config.n_factors, config.epochs, config.verbose) == (4, 1, 0)
    assert (config.loss.name, config.loss.margin, config.loss.mining) == ("triplet", 0.3, "semi_hard")


def test_an_existing_model_is_replaced_only_when_told(files: Path, plain: Path, tmp_path: Path) -> None:
    fit = ["fit", files / "log.csv", "--model", "UserKNNModel", "-o", tmp_path / "model"]
    succeed(*fit)
    before = (tmp_path / "model" / "config.json").read_bytes()
    assert "--overwrite" in refused(*fit, "--set", "n_neighbors=3")
    assert (tmp_path / "model" / "config.json").read_bytes() == before
    succeed(*fit, "--set", "n_neighbors=3", "--overwrite")
    assert from_pretrained(tmp_path / "model").get_config()["n_neighbors"] == 3
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Dear")
    assert "letters" in refused(*fit[:-1], tmp_path / "letters", "--overwrite")
    assert os.listdir(tmp_path / "letters") == ["dear.txt"]


def test_a_table_is_replaced_only_when_told(plain: Path, files: Path, tmp_path: Path) -> None:
    (tmp_path / "reco.csv").write_text("before")
    command = ["recommend", plain, "--interactions", files / "log.csv", "--output", tmp_path / "reco.csv"]
    assert "--overwrite" in refused(*command)
    assert (tmp_path / "reco.csv").read_text() == "before"
    succeed(*command, "--overwrite")
    assert len(pd.read_csv(tmp_path / "reco.csv")) > 30


@pytest.mark.parametrize(
    ("model", "split"),
    [("UserKNNModel", ["last_n", "--size", "2"]), ("EASEModel", ["time"]), ("GFCFModel", ["random"])],
)
def test_evaluate(files: Path, model: str, split: list[str], tmp_path: Path) -> None:
    options = ["--model", model, "--split", *split, "-k", 5, "--output", tmp_path / "metrics.json"]
    table = pd.read_csv(pd.io.common.StringIO(succeed("evaluate", files / "log.parquet", *options).stdout))
    assert list(table["model"]) == [model, "PopularModel"]
    facts = json.loads((tmp_path / "metrics.json").read_text())
    assert facts["split"]["name"] == split[0]
    for row in table.to_dict("records"):
        assert facts["metrics"][row.pop("model")] == pytest.approx(row)
    # Two groups of users, each with its own half of the items: what is popular with all is no match.
    assert table["recall@5"][0] > table["recall@5"][1]


def test_evaluate_by_hand(tmp_path: Path) -> None:
    # Everybody's last item is the one that all others have had: popularity ranks it first.
    rows = [(user, item, day) for user in range(6) for day, item in enumerate(np.roll(np.arange(6), user)[:3], 1)]
    rows += [(user, 9, 10) if user == 0 else (user, 9, 0) for user in range(6)]
    log = pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])
    log[(log["user_id"] == 0) | (log["datetime"] < 10)].to_csv(tmp_path / "log.csv", index=False)
    result = succeed(
        "evaluate", tmp_path / "log.csv", "--split", "time", "--size", "0.01", "-k", 1, "--model", "EASEModel"
    )
    popular = dict(zip(*(line.split(",") for line in result.stdout.splitlines()[::2]), strict=True))
    assert popular["model"] == "PopularModel"
    assert [float(popular[name]) for name in ("ndcg@1", "recall@1", "map@1")] == [1, 1, 1]
    assert float(popular["coverage@1"]) == pytest.approx(1 / 7)


def facts_of(*arguments: object) -> dict[str, list[str]]:
    table = pd.read_csv(pd.io.common.StringIO(succeed("inspect", *arguments).stdout))
    return table.astype(str).groupby("property")["value"].agg(list).to_dict()


def test_inspect_a_model(folder: Path, tmp_path: Path) -> None:
    facts = facts_of(folder)
    assert (facts["model"], facts["users"], facts["items"]) == (["DSSMModel"], ["30"], ["20"])
    assert (facts["user features"], facts["item features"]) == (["age, hobby"], ["genre, price"])
    assert (facts["option epochs"], facts["interactions"]) == (["3"], ["240"])
    assert facts["stored users"] == ["31"]  # with the one who has features alone
    assert facts["version of rectools-neural"] == [rectools_neural.__version__]
    from_pretrained(folder).save_pretrained(tmp_path / "model")
    assert facts_of(tmp_path / "model")["stored users"] == ["0"]


def test_inspect_data(files: Path, tmp_path: Path) -> None:
    facts = facts_of(files / "log.csv")
    assert facts["rows"] == ["240"]
    assert facts["users"] == ["30 (ids are text)"]
    assert facts["items"] == ["20 (ids are whole numbers)"]
    assert facts["density"] == ["40.0000%"]
    assert "problem" not in facts
    bad = pd.DataFrame(
        {"user_id": [1, 1, 2], "item_id": [5, 5, None], "datetime": ["2024-01-01", "soon", "2024-01-02"]}
    )
    bad.to_csv(tmp_path / "bad.csv", index=False)
    problems = facts_of(tmp_path / "bad.csv")["problem"]
    assert len(problems) == 2
    assert "`item_id`" in problems[0]
    assert "row 3" in problems[0]
    assert "`datetime`" in problems[1]
    assert "row 2" in problems[1]
    pd.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 5, 5]}).to_csv(tmp_path / "again.csv", index=False)
    doubts = facts_of(tmp_path / "again.csv")["problem"]
    assert [doubt.split()[0] for doubt in doubts] == ["1", "1"]


# ---------------------------------------------------------------------- times


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-01", "2024-01-01 00:00:05"],
        ["2024-01-01T02:00:00+02:00", "2024-01-01T00:00:05Z"],
        [1704067200, 1704067205],
        [1704067200.0, 1704067205.0],
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_times(times: list[Any], suffix: str, tmp_path: Path) -> None:
    table = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], "when": times})
    path = tmp_path / f"log{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    facts = facts_of(path, "--datetime-column", "when")
    assert facts["time span"] == ["2024-01-01 00:00:00 to 2024-01-01 00:00:05"]


# ---------------------------------------------------------------------- bad input

GOOD = {"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"]}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"user": ["a"], "item_id": ["x"]}, ["`user_id`", "--user-column", "did you mean `user`"]),
        ({"user_id": ["a"]}, ["`item_id`", "--item-column"]),
        ({**GOOD, "user_id": ["a", None, "b"]}, ["`user_id`", "missing", "row 2"]),
        ({**GOOD, "item_id": [1.0, 2.0, np.nan]}, ["`item_id`", "missing", "row 3"]),
        ({**GOOD, "weight": ["1", "many", "2"]}, ["`weight`", "row 2", "numbers"]),
        ({**GOOD, "weight": [1, np.nan, 2]}, ["`weight`", "row 2", "missing"]),
        ({**GOOD, "weight": [1, 2, np.inf]}, ["`weight`", "row 3", "finite"]),
        ({**GOOD, "datetime": ["2024-01-01", "x", "x"]}, ["`datetime`", "row 2", "in 2 rows"]),
        ({**GOOD, "datetime": [1704067200000, 1, 1]}, ["`datetime`", "row 1", "Unix seconds"]),
        ({name: [] for name in GOOD}, ["no rows"]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_bad_tables(table: dict[str, list[Any]], words: list[str], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"log{suffix}"
    frame = pd.DataFrame(table)
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    message = refused("fit", path, "--output", tmp_path / "model")
    assert path.name in message
    assert [word for word in words if word not in message] == []
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.csv", b"", ["log.csv", "can't be read"]),
        ("log.csv", b"user_id,item_id\na,x\na\n", ["log.csv", "can't be read"]),
        ("log.csv", b"user_id,item_id,item_id\na,x,y\n", ["`item_id`", "twice"]),
        ("log.parquet", b"no parquet", ["log.parquet", "can't be read"]),
        ("log.xlsx", b"", ["log.xlsx", ".csv"]),
    ],
)
def test_bad_files(name: str, content: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = refused("fit", tmp_path / name, "--output", tmp_path / "model")
    assert [word for word in words if word not in message] == []
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "DSMModel"], ["`DSMModel`", "did you mean `DSSMModel`"]),
        (["--model", "EASEModel"], ["EASEModel", "`evaluate`"]),
        (["--set", "epoch=3"], ["`epoch`", "did you mean `epochs`"]),
        (["--set", "epochs=many"], ["`epochs`", "'many'"]),
        (["--set", "loss=tripplet"], ["`loss`", "did you mean `triplet`"]),
        (["--set", "loss.name=triplet", "--set", "loss.margn=3"], ["margn"]),
        (["--set", "epochs"], ["--set epochs", "="]),
        (["--set", "epochs=[3"], ["--set epochs=[3", "YAML"]),
        (["--config", "no.yaml"], ["no.yaml"]),
        (["--config", "no.yaml", "--model", "DSSMModel"], ["--model", "--config"]),
        (["--model", "DLRMModel", "--set", "context_numeric=[hour]"], ["context_numeric", "Python"]),
        (["--weight-column", "wight"], ["`wight`", "--weight-column", "did you mean `weight`"]),
        (["--modle", "DSSMModel"], ["--modle", "--model"]),
    ],
)
def test_bad_options_of_fit(options: list[str], words: list[str], files: Path, tmp_path: Path) -> None:
    message = refused("fit", files / "log.csv", "--output", tmp_path / "model", *options)
    assert [word for word in words if word not in message] == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-k", "0"], ["-k", "1"]),
        (["-k", "few"], ["-k"]),
        (["--users", "u001,zoe,yan"], ["--users", "`zoe`", "`yan`"]),
        (["--users", ","], ["--users"]),
        (["--users", "no.csv"], ["no.csv"]),
        (["--items", "100,7"], ["--items", "`7`"]),
        (["--items", "drama"], ["--items", "`drama`"]),
        (["--output", "reco.txt"], ["reco.txt", ".jsonl"]),
        (["--output", "nowhere/reco.csv"], ["nowhere"]),
    ],
)
def test_bad_options_of_recommend(
    options: list[str], words: list[str], plain: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused("recommend", plain, "--interactions", files / "log.csv", *options)
    assert [word for word in words if word not in message] == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"item_id": [100], "genre": [["a", "b"]]}, ["`genre`", "|"]),
        ({"item_id": [100, 100], "genre": ["a", "b"]}, ["`item_id`", "row 2", "before"]),
        ({"item_id": ["one"], "genre": ["a"]}, ["`item_id`", "`one`"]),
        ({"item_id": [100]}, ["besides `item_id`"]),
        ({"id": [100], "genre": ["a"]}, ["`item_id`", "--item-column"]),
        ({"item_id": [100], "price": [np.inf]}, ["`price`", "infinite"]),
    ],
)
def test_bad_features(table: dict[str, list[Any]], words: list[str], files: Path, tmp_path: Path) -> None:
    pd.DataFrame(table).to_parquet(tmp_path / "items.parquet")
    options = ["--item-features", tmp_path / "items.parquet", "--output", tmp_path / "model"]
    message = refused("fit", files / "log.csv", *options)
    assert [word for word in words if word not in message] == []
    assert os.listdir(tmp_path) == ["items.parquet"]


def test_other_bad_input(files: Path, plain: Path, tmp_path: Path) -> None:
    assert "did you mean 'fit'" in refused("fti").lower()
    assert "lost" in refused("recommend", tmp_path / "lost", "--interactions", files / "log.csv")
    assert "config.json" in refused("inspect", tmp_path)
    assert "--size" in refused("evaluate", files / "log.csv", "--split", "time", "--size", 3)
    pd.DataFrame(GOOD).to_csv(tmp_path / "log.csv", index=False)
    assert "--datetime-column" in refused("evaluate", tmp_path / "log.csv", "--split", "last_n")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in plain.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[:-1])
    assert "damaged" in refused("inspect", damaged)


# ---------------------------------------------------------------------- the process


def test_a_failure_of_the_work(files: Path, tmp_path: Path) -> None:
    fit = ["fit", files / "log.csv", *SETTINGS, "--set", "device=cuda:99", "--output", tmp_path / "model"]
    assert "`device`" in refused(*fit, code=1)
    assert isinstance(run(*fit, "--debug").exception, ValueError)
    assert os.listdir(tmp_path) == []


def test_ctrl_c(files: Path, tmp_path: Path) -> None:
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    message = refused("fit", files / "log.csv", "--set", "epochs=1000000", "--output", tmp_path / "model", code=130)
    assert "interrupted" in message
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_terminal_gets_a_table(files: Path) -> None:
    import pty

    mine, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(rectools_neural.__file__).parents[1]), "COLUMNS": "100"}
    command = [sys.executable, "-m", "rectools_neural.cli", "inspect", str(files / "log.csv")]
    subprocess.run(command, stdout=theirs, env=environment, timeout=60, check=True)
    os.close(theirs)
    shown = os.read(mine, 10_000).decode()
    os.close(mine)
    assert "density" in shown
    assert "│" in shown
    assert "property,value" not in shown


SCRIPT = """
import sys
from rectools_neural.cli import app
try:
    app()
finally:
    print(sorted({"numpy", "pandas", "rectools", "torch"} & set(sys.modules)))
"""


def test_the_program(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(rectools_neural.__file__).parents[1])}

    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)

    started = time.perf_counter()
    helped = program("--help")
    assert time.perf_counter() - started < 5
    assert helped.returncode == 0
    assert "rectools-neural recommend model" in helped.stdout
    assert helped.stdout.splitlines()[-1] == "[]"
    versioned = program("--version")
    assert versioned.stdout.splitlines() == [f"rectools-neural {rectools_neural.__version__}", "[]"]
    failed = program("fit", "lost.csv", "--output", "model")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert "lost.csv" in failed.stderr
