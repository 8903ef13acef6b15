from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import (
    MAP,
    MRR,
    NDCG,
    AvgRecPopularity,
    CatalogCoverage,
    CoveredUsers,
    HitRate,
    IntraListDiversity,
    MeanInvUserFreq,
    PairwiseHammingDistanceCalculator,
    Recall,
    Serendipity,
)
from rectools.model_selection import LastNSplitter, RandomSplitter, TimeRangeSplitter, cross_validate
from rectools.models import EASEModel, PopularModel

import rectools_neural
from benchmarks import pictures
from benchmarks.config import DataConfig, load_config
from benchmarks.data import folds, prepare
from benchmarks.leaderboard import main, run_leaderboard
from benchmarks.measure import Job
from benchmarks.provenance import provenance
from benchmarks.significance import compare, compare_models
from benchmarks.tuning import validation_fold
from rectools_neural.registry import MODELS

REPOSITORY = Path(__file__).resolve().parents[2]
N_USERS, N_ITEMS = 60, 30
POPULAR = {"cls": "PopularModel", "baseline": True}
EASE = {"cls": "EASEModel", "regularization": 20.0}
RANDOM = {"name": "random", "test_fold_frac": 0.25}

BROKEN_MODELS = """
import os, signal, time
import numpy as np
from rectools.models import PopularModel

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def slow(pid_file):
    with open(pid_file, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

class Hungry(PopularModel):
    def _fit(self, dataset):
        np.ones(25_000_000).sum()
        super()._fit(dataset)

def hungry():
    return Hungry()

def fails_unless(flag):
    if not os.path.exists(flag):
        raise RuntimeError("no flag yet\\nsecond line")
    return PopularModel()
"""


def genres(item: int) -> list[str]:
    return ["drama"] * (item % 2 == 0) + ["comedy"] * (item % 3 == 0) + ["war"] * (item % 5 == 0)


def make_dataset() -> Dataset:
    """Two groups of users that like two halves of the catalogue, ids that are not row numbers, some cold items."""
    rng = np.random.default_rng(7)
    rows = []
    for user in range(N_USERS):
        taste = np.where(np.arange(N_ITEMS) % 2 == user % 2, 1.0, 0.02) / np.sqrt(np.arange(2, N_ITEMS + 2))
        for item in rng.choice(N_ITEMS, size=10, replace=False, p=taste / taste.sum()):
            rows.append((f"u{user}", 100 + item, rng.integers(1, 6), rng.integers(0, 40)))
    interactions = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight, "day"])
    interactions[Columns.Datetime] = pd.Timestamp("2024-01-01") + pd.to_timedelta(interactions.pop("day"), unit="D")
    features = pd.DataFrame(
        [(100 + item, "genre", genre) for item in range(N_ITEMS) for genre in genres(item)],
        columns=["id", "feature", "value"],
    )
    return Dataset.construct(interactions, item_features_df=features, cat_item_features=["genre"])


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make_dataset()


@pytest.fixture
def broken_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_models.py").write_text(BROKEN_MODELS)
    monkeypatch.syspath_prepend(tmp_path)


def settings(data: Dataset, models: dict[str, dict], **others: object) -> dict:
    return {"data": data, "split": RANDOM, "seeds": [0], "k": [3, 5], "metric": "ndcg@3", "models": models, **others}


def job_files(output: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (output / "jobs").glob("*.json")}


def read_result(output: Path) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads((output / "leaderboard.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize(
    ("split", "splitter"),
    [
        ({**RANDOM, "n_splits": 2}, lambda seed: RandomSplitter(0.25, n_splits=2, random_state=seed)),
        ({"name": "time", "test_size": "7D", "n_splits": 2}, lambda seed: TimeRangeSplitter("7D", n_splits=2)),
        ({"name": "last_n", "n": 2}, lambda seed: LastNSplitter(2)),
    ],
    ids=["random", "time", "last_n"],
)
def test_rows_equal_rectools_cross_validate(dataset: Dataset, tmp_path: Path, split: dict, splitter) -> None:
    seeds = [0, 5]
    config = settings(dataset, {"Popular": POPULAR, "EASE": EASE}, split=split, seeds=seeds)
    frame = run_leaderboard(config, tmp_path).set_index("model")

    flags = pd.DataFrame(
        {genre: [float(genre in genres(item)) for item in range(N_ITEMS)] for genre in ("drama", "comedy", "war")},
        index=range(100, 100 + N_ITEMS),
    )
    metrics = {
        "ndcg@3": NDCG(3, divide_by_achievable=True),
        "ndcg@5": NDCG(5, divide_by_achievable=True),
        "map@3": MAP(3),
        "recall@5": Recall(5),
        "hit_rate@3": HitRate(3),
        "mrr@5": MRR(5),
        "novelty@3": MeanInvUserFreq(3),
        "serendipity@3": Serendipity(3),
        "coverage@3": CatalogCoverage(3, normalize=True),
        "popularity@3": AvgRecPopularity(3),
        "served@3": CoveredUsers(3),
        "diversity@3": IntraListDiversity(3, distance_calculator=PairwiseHammingDistanceCalculator(flags)),
    }
    models = {"Popular": PopularModel(), "EASE": EASEModel(regularization=20.0)}
    results = [cross_validate(dataset, splitter(seed), metrics, models, k=5, filter_viewed=True) for seed in seeds]
    expected = pd.DataFrame([row for result in results for row in result["metrics"]])
    for name in models:
        rows = expected[expected["model"] == name]
        assert frame.loc[name, "jobs"] == frame.loc[name, "finished"] == len(rows)
        for label in metrics:
            assert np.isfinite(frame.loc[name, label])
            # RecTools' sparse distances are single precision.
            precision = 1e-6 if label == "diversity@3" else 1e-12
            assert frame.loc[name, label] == pytest.approx(rows[label].mean(), rel=precision), (name, label)
        assert frame.loc[name, "ndcg@3 std"] == pytest.approx(rows["ndcg@3"].std(), rel=1e-9, abs=1e-15)
    assert (frame[["fit_seconds", "recommend_seconds"]] > 0).all(axis=None)
    assert frame["ndcg@3"].is_monotonic_decreasing


def test_failing_models_get_a_row_and_stop_nothing(dataset: Dataset, tmp_path: Path, broken_models: None) -> None:
    lines: list[str] = []
    models = {
        "Killed": {"factory": "broken_models.killed"},
        "Too many factors": {"cls": "PureSVDModel", "factors": 10_000, "baseline": True},
        "Popular": POPULAR,
    }
    frame = run_leaderboard(settings(dataset, models), tmp_path / "out", progress=lines.append).set_index("model")

    assert frame.loc["Popular", "finished"] == 1
    assert frame.index[0] == "Popular"
    assert frame.loc["Popular", "error"] is None
    assert frame.loc["Killed", "finished"] == 0
    assert frame.loc["Killed", "error"] == "the process died, signal SIGKILL (out of memory?)"
    assert frame.loc["Too many factors", "error"].startswith("ValueError")
    assert frame.loc[["Killed", "Too many factors"], "ndcg@3"].isna().all()
    assert [line.split("]")[0] for line in lines[:3]] == ["[1/3", "[2/3", "[3/3"]
    assert "FAILED" in lines[0]
    assert "Killed: 1 of 1 jobs failed: the process died" in "\n".join(lines)
    logs = list((tmp_path / "out" / "jobs").glob("*.log"))
    assert sorted(log.name.split("-")[0] for log in logs) == ["Killed", "Too_many_factors"]
    assert "Traceback" in next(log for log in logs if log.name.startswith("Too")).read_text()


def test_a_job_over_its_time_limit_is_stopped(dataset: Dataset, tmp_path: Path, broken_models: None) -> None:
    models = {"Slow": {"factory": "broken_models.slow", "pid_file": str(tmp_path / "pid")}}
    frame = run_leaderboard(settings(dataset, models, time_limit=2), tmp_path / "out")
    assert frame["error"].tolist() == ["took longer than the time limit of 2 s"]
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is not measured on Windows")
def test_peak_memory_is_that_of_the_model(dataset: Dataset, tmp_path: Path, broken_models: None) -> None:
    models = {"Hungry": {"factory": "broken_models.hungry"}, "Popular": POPULAR}
    memory = run_leaderboard(settings(dataset, models), tmp_path / "out").set_index("model")["peak_memory_mb"]
    assert 190 < memory["Hungry"] < 300  # 25 million numbers of 8 bytes
    assert memory["Popular"] < 60


def test_resume_runs_only_what_is_missing(dataset: Dataset, tmp_path: Path, broken_models: None) -> None:
    flag = tmp_path / "flag"
    flaky = {"factory": "broken_models.fails_unless", "flag": str(flag)}
    config = settings(dataset, {"Popular": POPULAR, "EASE": EASE, "Flaky": flaky})
    output = tmp_path / "out"
    first = run_leaderboard(config, output)
    before = job_files(output)
    assert len(before) == 3
    assert first.set_index("model").loc["Flaky", "error"] == "RuntimeError: no flag yet"

    flag.touch()
    second = run_leaderboard(config, output, resume=True, seeds=[0, 1])
    after = job_files(output)
    assert len(after) == 6
    rerun = [name for name in before if after[name] != before[name]]
    assert [name.split("-")[0] for name in rerun] == ["Flaky"]
    assert second["finished"].tolist() == [2, 2, 2]

    third = run_leaderboard(config, output, resume=True, seeds=[0, 1])
    assert job_files(output) == after
    pd.testing.assert_frame_equal(third, second)

    run_leaderboard(config, output, models=["Popular"])
    again = job_files(output)
    assert {name.split("-")[0] for name in after if again[name] != after[name]} == {"Popular"}


def test_resume_notices_another_configuration_or_other_data(dataset: Dataset, tmp_path: Path) -> None:
    run_leaderboard(settings(dataset, {"EASE": EASE}), tmp_path)
    run_leaderboard(settings(dataset, {"EASE": {**EASE, "regularization": 21.0}}), tmp_path, resume=True)
    assert len(job_files(tmp_path)) == 2
    less = dataset.filter_interactions(np.arange(1, len(dataset.interactions.df)))
    run_leaderboard(settings(less, {"EASE": EASE}), tmp_path, resume=True)
    assert len(job_files(tmp_path)) == 3


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended; whoever started it has not yet asked.
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def slow_second(folder: Path) -> dict:
    slow = {"factory": "broken_models.slow", "pid_file": str(folder / "pid")}
    return settings(make_dataset(), {"Popular": POPULAR, "Slow": slow})


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_kill_leaves_finished_jobs_and_no_process(tmp_path: Path, broken_models: None) -> None:
    output = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from test_leaderboard import run_leaderboard, slow_second\n"
        "run_leaderboard(slow_second(Path(sys.argv[1])), sys.argv[2])"
    )
    paths = [str(tmp_path), str(Path(__file__).parent), str(REPOSITORY)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(output)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        pid_file = tmp_path / "pid"
        wait_for(lambda: process.poll() is not None or (pid_file.exists() and pid_file.read_text()))
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not is_alive(int(pid_file.read_text())), seconds=20)

    files = job_files(output)
    assert [name.split("-")[0] for name in files] == ["Popular"]
    assert not (output / "leaderboard.json").exists()
    frame = run_leaderboard(slow_second(tmp_path), output, resume=True, models=["Popular"])
    assert job_files(output) == files
    assert frame["finished"].tolist() == [1]
    assert read_result(output)["rows"][0]["model"] == "Popular"


def test_wilcoxon_and_bootstrap_by_hand() -> None:
    # Ranks 1..5, the negative one has rank 2: 3 of the 32 sign patterns are as extreme on that side.
    mixed = compare(np.array([1.0, -2.0, 3.0, 4.0, 5.0]))
    assert mixed.p_value == pytest.approx(2 * 3 / 32)
    assert mixed.difference == pytest.approx(2.2)
    assert mixed.users == 5

    certain = compare(np.full(6, 0.25))
    assert (certain.difference, certain.ci_low, certain.ci_high) == (0.25, 0.25, 0.25)

    # Two users: a resample's mean is 0, 1/2 or 1 with the chances 1/4, 1/2, 1/4.
    coin = compare(np.array([0.0, 1.0]))
    assert (coin.ci_low, coin.ci_high) == (0.0, 1.0)

    rounding = compare(np.array([1e-16, -1e-16, 0.0]))
    assert (rounding.difference, rounding.p_value) == (0.0, 1.0)

    # The interval of a mean of many users is that of the normal distribution.
    many = compare(np.random.default_rng(1).normal(0.1, 1.0, size=4000))
    assert many.ci_high - many.ci_low == pytest.approx(2 * 1.96 / 4000**0.5, rel=0.08)


def record(model: str, seed: int, users: list[str], values: list[float] | None) -> dict:
    error = "failed" if values is None else None
    return {"model": model, "seed": seed, "fold": 0, "error": error, "users": users, "per_user": {"m": values}}


def test_comparison_counts_a_user_once() -> None:
    records = [
        record("A", 0, ["u", "v"], [0.5, 0.9]),
        record("B", 0, ["u", "v"], [0.4, 0.6]),
        record("A", 1, ["v", "w"], [0.8, 0.3]),
        record("B", 1, ["w", "v"], [0.4, 0.7]),
        record("A", 2, ["u"], [1.0]),
        record("B", 2, ["u"], None),
    ]
    compared = compare_models(records, "A", "B", "m")
    # u: 0.1; v: the mean of 0.3 and 0.1; w: -0.1. Seed 2 has no pair.
    assert compared is not None
    assert compared["users"] == 3
    assert compared["difference"] == pytest.approx((0.1 + 0.2 - 0.1) / 3)
    assert compared["per_seed"]["0"]["difference"] == pytest.approx(0.2)
    assert compared["per_seed"]["1"]["difference"] == pytest.approx(0.0)
    assert set(compared["per_seed"]) == {"0", "1"}
    assert compare_models(records, "A", "missing", "m") is None


def test_significance_is_against_the_best_complete_baseline(
    dataset: Dataset, tmp_path: Path, broken_models: None
) -> None:
    models = {
        "Random": {"cls": "RandomModel", "random_state": 1, "baseline": True},
        "Popular": POPULAR,
        "Not a baseline": EASE,
        "Killed": {"factory": "broken_models.killed", "baseline": True},
    }
    frame = run_leaderboard(settings(dataset, models, seeds=[0, 1]), tmp_path / "out").set_index("model")
    assert frame.loc["Popular", "ndcg@3"] > frame.loc["Random", "ndcg@3"]
    assert frame["reference"].to_dict() == {
        "Not a baseline": "Popular",
        "Popular": None,
        "Random": "Popular",
        "Killed": None,
    }
    assert frame.loc["Not a baseline", "difference"] > 0 > frame.loc["Random", "difference"]
    assert 0 < frame.loc["Not a baseline", "ci_low"] < frame.loc["Not a baseline", "difference"]
    assert frame.loc["Not a baseline", "p_value"] < 0.001


def read_page(output: Path) -> str:
    return (output / "leaderboard.html").read_text(encoding="utf-8")


class StrictParser(HTMLParser):
    """Checks that tags nest; collects the text of each cell and what the page refers to."""

    VOID = ("meta", "br", "link", "img", "hr", "input")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.row_names: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "th" and ("scope", "row") in attrs:
            self.row_names.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-2:] == ["tr", "th"] and "tbody" in self.open:
            self.row_names[-1] += data


def test_result_files(dataset: Dataset, tmp_path: Path) -> None:
    models = {"Popular": POPULAR, 'A <b>&"': EASE, "Fails": {"cls": "PureSVDModel", "factors": 10_000}}
    lines: list[str] = []
    config = settings(dataset, models, seeds=[3, 4], title="Small & quick")
    frame = run_leaderboard(config, tmp_path, progress=lines.append)

    page = (tmp_path / "leaderboard.html").read_text()
    parser = StrictParser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert parser.row_names == frame["model"].tolist()
    assert parser.seen.count("svg") == 3
    assert parser.references == []
    assert "http" not in page
    assert page.count("<rect") == page.count("<circle") // 2 == 2  # one bar, two points for each finished model

    result = read_result(tmp_path)
    own = provenance()
    assert result["provenance"]["machine"] == own["machine"]
    assert result["provenance"]["versions"] == own["versions"]
    assert set(result["provenance"]) == {"machine", "versions", "git", "threads", "command", "utc"}
    assert own["versions"]["rectools"] in result["metrics"]["library"]
    assert result["metrics"]["flags"]["ndcg@3"] == ("NDCG(k=3, log_base=2, divide_by_achievable=True)")
    assert result["config"]["seeds"] == [3, 4]
    assert result["data"]["interactions"] == N_USERS * 10
    assert len(result["jobs"]) == 6
    assert "per_user" not in result["jobs"][0]

    table = pd.read_csv(tmp_path / "leaderboard.csv", float_precision="round_trip")
    assert table["model"].tolist() == frame["model"].tolist()
    np.testing.assert_array_equal(table["ndcg@3"], frame["ndcg@3"])
    assert json.loads(table["seeds"][0]) == [3, 4]
    assert json.loads(table["versions"][0]) == own["versions"]
    assert {"machine", "git", "threads", "metric_flags"} <= set(table.columns)

    screen = lines[-2]
    assert all(name in screen for name in models)
    assert f"{frame['ndcg@3'][0]:.4f}" in screen
    assert not list(tmp_path.rglob("*.tmp"))


def test_pictures(dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plotly is not installed")
    towers = {"cls": "DSSMModel", "seed_param": "seed", "epochs": 5, "n_factors": 8}
    config = settings(dataset, {"Popular": POPULAR, "Towers & co": towers}, seeds=[3, 4])
    assert run_leaderboard(config, tmp_path)["error"].isna().all()
    page = (tmp_path / "leaderboard.html").read_text()
    assert "Towers &amp; co, the best model that is no baseline, fitted on seed 3, fold 0." in page
    assert page.count("plotly.js v") == 1
    for number, kind in enumerate(("histogram", "scatter", "scatter")):
        figure = page.partition(f'id="picture-{number}"')[2].partition("</script>")[0]
        assert f'"type":"{kind}"' in figure
    assert all(f'"name":"{genre}"' in page for genre in ("drama", "comedy", "war"))
    parser = StrictParser()
    parser.feed(page)
    assert parser.open == []
    assert parser.references == []

    # The same run draws the same pictures, and what can't be drawn is told in a line.
    run_leaderboard(config, tmp_path / "again", resume=True)
    drawn = [text.partition("<h2>")[2].partition("<details>")[0] for text in (page, read_page(tmp_path / "again"))]
    assert drawn[0] == drawn[1]
    assert not list((tmp_path / "jobs").glob("*.log"))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"GF": {"cls": "GFCFModel"}}, "There are no pictures of GF: it has no vectors of users and items."),
        ({"Popular": POPULAR}, "none besides the baselines has finished."),
    ],
)
def test_no_pictures(models: dict, message: str, dataset: Dataset, tmp_path: Path) -> None:
    run_leaderboard(settings(dataset, models), tmp_path)
    assert message in read_page(tmp_path)
    assert "plotly" not in read_page(tmp_path).partition("<details>")[0]


def test_pictures_that_fail(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold = next(folds(dataset, load_config(settings(dataset, {"Popular": POPULAR})).split, 0))
    job = Job("Towers", {"cls": "DSSMModel", "epochs": 10_000}, fold, [3], [])
    assert pictures.section(job, 0.5, tmp_path / "log") == (
        "<p>There are no pictures of Towers: took longer than the time limit of 0.5 s.</p>"
    )
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    assert "plotly is not installed (pip install" in pictures.section(job, 0.5, tmp_path / "log")


def test_a_board_on_which_everything_failed_is_still_written(dataset: Dataset, tmp_path: Path) -> None:
    models = {"Fails": {"cls": "PureSVDModel", "factors": 10_000, "baseline": True}}
    frame = run_leaderboard(settings(dataset, models), tmp_path)
    assert frame["finished"].tolist() == [0]
    assert read_result(tmp_path)["rows"][0]["ndcg@3"] is None
    parser = StrictParser()
    parser.feed((tmp_path / "leaderboard.html").read_text())
    assert parser.open == []
    assert parser.row_names[0].startswith("Fails")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": {"name": "alphabetic"}}, "split.*'alphabetic'.*'random', 'time', 'last_n'"),
        ({"split": {"name": "random", "test_fold_frac": 1.5}}, "test_fold_frac"),
        ({"split": {"name": "time", "test_size": "a week"}}, "test_size"),
        ({"models": {"A": {"cls": "EaseModle"}}}, "model 'A'.*EaseModle"),
        ({"models": {"A": {"cls": "no_such_package.Model"}}}, "model 'A'.*no_such_package"),
        ({"models": {"A": {"cls": "rectools.models.NoSuchModel"}}}, "model 'A'.*NoSuchModel"),
        ({"models": {"A": {"factory": "benchmarks.baselines.nothing"}}}, "model 'A'.*nothing"),
        ({"models": {"A": {"cls": "EASEModel", "lambda": 3}}}, "model 'A'.*lambda"),
        ({"models": {"A": {"regularization": 3}}}, "models.A.*`cls`"),
        ({"models": {"A": {"cls": "EASEModel", "factory": "a.b"}}}, "models.A.*`cls`"),
        ({"models": {}}, "models.*at least 1 item"),
        ({"models": {"A": {"cls": "EASEModel", "search": {"regularization": {"type": "float", "low": 5, "high": 1}}}}},
         "models.A.*low"),
        ({"k": [10, -1]}, "k.*greater than 0"),
        ({"k": []}, "k.*at least 1 item"),
        ({"seeds": []}, "seeds.*at least 1 item"),
        ({"seeds": [1, 1]}, "seeds.*differ"),
        ({"metric": "ndcg@7"}, "ndcg@7.*ndcg@3"),
        ({"time_limit": 0}, "time_limit"),
        ({"trials": -1}, "trials"),
        ({"colour": "red"}, "colour"),
    ],
)  # fmt: skip
def test_wrong_configurations_are_refused_before_any_job(
    dataset: Dataset, tmp_path: Path, change: dict, message: str
) -> None:
    config = {**settings(dataset, {"Popular": POPULAR}), **change}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        run_leaderboard(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_model_to_select(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown models \['EASE'\].*Popular"):
        run_leaderboard(settings(dataset, {"Popular": POPULAR}), tmp_path / "out", models=["EASE"])


def test_split_that_leaves_no_test_rows(dataset: Dataset, tmp_path: Path) -> None:
    config = settings(dataset, {"Popular": POPULAR}, split={"name": "last_n", "n": 50})
    with pytest.raises(ValueError, match="split 'last_n', seed 0, fold 0: 0 train"):
        run_leaderboard(config, tmp_path)


def test_command_line(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**settings(dataset, {"Popular": POPULAR, "EASE": EASE}), "data": {"name": "ml-100k"}}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(rectools_neural, "load_dataset", {"ml-100k": dataset}.__getitem__, raising=False)
    arguments = ["--config", str(file), "--output", str(tmp_path / "out"), "--models", "EASE", "--seeds", "5"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "[1/1] EASE  seed 5  ndcg@3" in shown
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"jobs", "small.csv", "small.json", "small.html"}

    assert main(["--config", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml" in capsys.readouterr().err
    assert main([*arguments, "--models", "DLRM"]) == 2
    assert "unknown models ['DLRM']" in capsys.readouterr().err


def test_prepare_filters_and_binarises(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", 1, 5), ("a", 2, 4), ("b", 1, 4), ("b", 2, 2), ("c", 1, 5), ("c", 3, 5), ("d", 3, 1)]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight])
    loaded = Dataset.construct(frame.assign(**{Columns.Datetime: pd.Timestamp("2024-01-01")}))
    monkeypatch.setattr(rectools_neural, "load_dataset", {"tiny": loaded}.__getitem__, raising=False)

    def pairs(**options: object) -> set[tuple]:
        kept = prepare(DataConfig(name="tiny", **options)).get_raw_interactions()
        return set(zip(kept[Columns.User], kept[Columns.Item], kept[Columns.Weight], strict=True))

    assert pairs() == set(rows)
    assert pairs(binary=True) == {(user, item, 1) for user, item, _ in rows}
    assert pairs(min_rating=4) == {row for row in rows if row[2] >= 4}
    # Without d (one row) item 3 has one row, without it c has one.
    assert pairs(k_core=2) == {("a", 1, 5), ("a", 2, 4), ("b", 1, 4), ("b", 2, 2)}
    with pytest.raises(ValueError, match="min_rating 9"):
        pairs(min_rating=9)


def test_validation_rows_come_from_the_train_part(dataset: Dataset) -> None:
    def pairs(frame: pd.DataFrame) -> set[tuple]:
        return set(zip(frame[Columns.User], frame[Columns.Item], strict=True))

    config = load_config(settings(dataset, {"Popular": POPULAR}, split={**RANDOM, "n_splits": 3}))
    outer = next(folds(dataset, config.split, 0))
    inner = validation_fold(outer, config)
    train = pairs(outer.train.get_raw_interactions())
    inner_train = pairs(inner.train.get_raw_interactions())
    assert len(inner_train) == round(0.75 * len(train))
    assert inner_train | pairs(inner.test) <= train
    assert not inner_train & pairs(inner.test)
    assert not train & pairs(outer.test)


def test_tuning(dataset: Dataset, tmp_path: Path) -> None:
    search = {"regularization": {"type": "float", "low": 0.1, "high": 1000.0, "log": True}}
    models = {
        "Popular": POPULAR,
        "EASE": {**EASE, "regularization": 900.0, "search": search},
        "ItemKNN": {
            "cls": "ImplicitItemKNNWrapperModel",
            "model": {"cls": "TFIDFRecommender", "K": 1},
            "search": {
                "model.K": {"type": "int", "low": 1, "high": 30},
                "model.cls": {"type": "categorical", "choices": ["TFIDFRecommender", "CosineRecommender"]},
            },
        },
    }
    config = settings(dataset, models, tuned=tmp_path / "tuned.yaml")
    lines: list[str] = []
    output = tmp_path / "out"
    run_leaderboard(config, output, trials=4, progress=lines.append)
    tuning_lines = [line for line in lines if line.startswith("tuning")]
    assert len(tuning_lines) == 8  # the same budget for both, none for a model without a search space
    assert tuning_lines[0].startswith("tuning EASE [1/4] regularization=900 ")  # the configuration's own values first

    tuned = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    assert set(tuned) == {"EASE", "ItemKNN"}
    assert {tuned[name]["trials"] for name in tuned} == {4}
    ease_scores = {line.split()[3]: float(line.split()[-1]) for line in tuning_lines[:4]}
    best = max(ease_scores, key=ease_scores.__getitem__)
    assert tuned["EASE"]["score"] == pytest.approx(ease_scores[best], abs=5e-5)
    assert best == f"regularization={tuned['EASE']['params']['regularization']:.4g}"
    result = read_result(output)
    used = {job["model"]: job["config"] for job in result["jobs"]}
    assert used["EASE"]["regularization"] == tuned["EASE"]["params"]["regularization"]
    assert used["ItemKNN"]["model"]["K"] == tuned["ItemKNN"]["params"]["model.K"]
    assert result["tuned"] == tuned

    # Stored parameters are used without tuning again; a resumed tuning recalls its trials.
    files = job_files(output)
    run_leaderboard(config, output, resume=True)
    run_leaderboard(config, output, resume=True, trials=4)
    assert job_files(output) == files
    assert yaml.safe_load((tmp_path / "tuned.yaml").read_text())["EASE"]["params"] == tuned["EASE"]["params"]

    lines.clear()
    run_leaderboard({**config, "split": {"name": "last_n", "n": 2}}, output, progress=lines.append)
    assert "EASE: its parameters were tuned for" in lines[0]


def test_seed_goes_where_the_model_takes_it(dataset: Dataset, tmp_path: Path) -> None:
    models = {"ALS": {"cls": "ImplicitALSWrapperModel", "seed_param": "model.random_state", "model": {"factors": 4}}}
    config = settings(dataset, models, seeds=[1, 2], split={"name": "last_n", "n": 2})
    first = run_leaderboard(config, tmp_path / "one")
    again = run_leaderboard(config, tmp_path / "two")
    seeds = [job["config"]["model"]["random_state"] for job in read_result(tmp_path / "one")["jobs"]]
    assert seeds == [1, 2]
    assert first["ndcg@3"].tolist() == again["ndcg@3"].tolist()


def test_default_configuration_is_valid() -> None:
    config = load_config(REPOSITORY / "benchmarks" / "configs" / "leaderboard.yaml")
    required = {"Popular", "ItemKNN", "UserKNN", "LightFM", "iALS", "PureSVD", "EASE", "RecTools DSSM", "DSSMModel"}
    assert required <= set(config.models)
    assert config.seeds == [0, 1, 2]
    assert (config.split.name, config.data.name, config.data.binary, config.k) == ("random", "ml-100k", True, [10, 20])
    ours = {spec.cls for spec in config.models.values() if not spec.baseline}
    assert ours == set(MODELS) - {"UserKNNModel"}
