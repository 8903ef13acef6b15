from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rectools import Columns
from rectools.dataset import Dataset

pytest.importorskip("psutil", reason="psutil is not installed: pip install rectools-neural[dev]")
pytest.importorskip("uvicorn", reason="the service is not installed: pip install rectools-neural[serving]")

from benchmarks.serving import N_EXTRA, Service, difference, expected_answers, main, make_queries, problems, running
from rectools_neural import DSSMModel

QUERY = {"user_id": 1, "k": 3}
EXPECTED = pd.Series([5.0, 4.0, 4.0 - 2e-5, 4.0 - 4e-5, 3.0], index=[10, 11, 12, 13, 14])


def answer(items: list[int], scores: list[float], ignored: tuple[int, ...] = ()) -> dict[str, Any]:
    rows = [{"item_id": item, "score": score} for item, score in zip(items, scores, strict=True)]
    return {"model": "a", "items": rows, "ignored": list(ignored)}


@pytest.mark.parametrize(
    "given",
    [
        answer([10, 11, 12], [5.0, 4.0, 4.0]),
        answer([10, 12, 11], [5.0, 4.0, 4.0]),  # a tie within the list
        answer([10, 11, 13], [5.0, 4.0, 4.0]),  # a tie with an item behind its end
        answer([10, 11, 12], [5.0004, 4.0, 4.0]),
    ],
)
def test_same_answers(given: dict[str, Any]) -> None:
    assert difference(given, QUERY, EXPECTED) is None


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (answer([11, 10, 12], [5.0, 4.0, 4.0]), r"items \[11, 10, 12\] instead of \[10, 11, 12\]"),
        (answer([10, 11, 14], [5.0, 4.0, 4.0]), "items"),
        (answer([10, 11, 99], [5.0, 4.0, 4.0]), "items"),
        (answer([10, 11, 12], [5.001, 4.0, 4.0]), "scores"),
        (answer([10, 11, 12], [5.0, 4.0, float("nan")]), "scores"),
        (answer([10, 11], [5.0, 4.0]), "2 different items in a list of 2"),
        (answer([10, 11, 11], [5.0, 4.0, 4.0]), "2 different items in a list of 3"),
        (answer([10, 11, 12], [5.0, 4.0, 4.0], ignored=(7,)), r"ignored \[7\]"),
    ],
)
def test_other_answers(given: dict[str, Any], problem: str) -> None:
    assert re.search(problem, difference(given, QUERY, EXPECTED) or "")


@pytest.fixture(scope="module")
def dataset(make_frames: Callable[..., Any]) -> Dataset:
    return make_frames(n_users=60, n_items=60).dataset()


def test_queries_have_their_shares_and_ask_for_what_is_there(dataset: Dataset) -> None:
    queries = make_queries(dataset, 2_000)
    assert queries == make_queries(dataset, 2_000)
    assert json.loads(json.dumps(queries)) == queries
    kinds = Counter(
        "history" if "history" in q else "whitelist" if "items" in q else "k" if q["k"] > 10 else "user"
        for q in queries
    )
    shares = {kind: n / 2_000 for kind, n in kinds.items()}
    assert shares == pytest.approx({"user": 0.7, "history": 0.2, "k": 0.05, "whitelist": 0.05}, abs=0.03)
    assert {q["user_id"] for q in queries if "user_id" in q} == set(dataset.user_id_map.external_ids)
    assert not any("history" in q for q in make_queries(dataset, 100, with_histories=False))
    named = {item for q in queries for item in (*q.get("history", ()), *q.get("items", ()))}
    assert named == set(dataset.get_raw_interactions()[Columns.Item])


def test_expected_answers_are_those_of_the_model(dataset: Dataset) -> None:
    model = DSSMModel(epochs=1, n_factors=4).fit(dataset)
    user, other = dataset.user_id_map.external_ids[:2]
    whitelist = dataset.item_id_map.external_ids[:30].tolist()
    history = dataset.get_raw_interactions().loc[lambda frame: frame[Columns.User] == user, Columns.Item].tolist()
    queries = [
        {"user_id": other, "k": 2},
        {"user_id": user, "k": 2},
        {"user_id": user, "k": 5, "items": whitelist},
        {"history": history, "k": 2},
        {"history": history[:1], "k": 2},
    ]
    found = expected_answers(model, dataset, queries)
    reco = model.recommend([other, user], dataset, 2 + N_EXTRA, True)
    for series, one in zip(found, (other, user), strict=False):
        rows = reco[reco[Columns.User] == one]
        assert series.index.tolist() == rows[Columns.Item].tolist()
        np.testing.assert_allclose(series, rows[Columns.Score])
    assert not found[0].equals(found[1])
    assert set(found[2].index) == set(whitelist) - set(history)
    assert not set(found[3].index) & set(history)
    assert history[0] not in found[4].index
    assert set(history[1:]) & set(found[4].index)
    assert all(series.is_monotonic_decreasing for series in found)


def test_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--output", str(tmp_path / "serving.json")])
    result = json.loads((tmp_path / "serving.json").read_text())
    assert problems(result) == []
    (case,), swaps = result["cases"].values(), result["swaps"]
    figures = case["figures"]
    assert figures["answers compared"] == 10
    assert 0 < figures["p50, ms"] <= figures["p95, ms"] <= figures["p99, ms"] <= figures["longest, ms"]
    assert figures["requests a second"] <= 101
    assert 0 < figures["CPU of the server, ms a request"] < 1e3
    assert case["steps"][0]["rate"] == 100
    assert swaps["figures"]["swaps"] == 1
    assert swaps["figures"]["answers compared"] == 20
    (swap,) = swaps["swaps"]
    assert 0 < swap["began"] < swap["saved"] < swap["served"]
    assert len(swaps["memory"]) == 2
    printed = capsys.readouterr().out
    assert f"| answers compared | {figures['answers compared']} |" in printed
    assert "| swaps | 1 |" in printed
    figures["failed"] = 2
    assert problems(result) == ["a few generated items, DSSM: 2 failed"]


@pytest.mark.parametrize("option", ["--seconds", "--rate", "--swap-minutes"])
def test_nothing_is_measured_in_no_time(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([option, "0"])
    assert "must be above 0" in capsys.readouterr().err


def test_processes_are_stopped_where_the_measuring_fails() -> None:
    with pytest.raises(KeyError), running([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        raise KeyError
    assert process.returncode is not None


def test_service_that_ends_is_an_error(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("wb") as log,
        running([sys.executable, "-c", "raise SystemExit('no such folder')"], stderr=log) as process,
        pytest.raises(RuntimeError, match=r"The service has ended:\nno such folder"),
    ):
        Service(process, 9, tmp_path / "log").next_version(None, 60.0)  # nothing answers at port 9
