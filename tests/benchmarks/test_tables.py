from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables

PROVENANCE = {
    "machine": {"cpu": "a processor", "cores": 2},
    "threads": {},
    "versions": {"torch": "2.0"},
    "git": {"commit": "0123456789abcdef"},
}


def job(model: str, seed: int, value: float) -> dict[str, Any]:
    metrics = {"ndcg@10": value, "recall@20": value / 2, "map@10": 0.25, "coverage@10": 0.5}
    return {"model": model, "seed": seed, "error": None, "metrics": metrics, "fit_seconds": 2, "recommend_seconds": 1}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    comparison = {"difference": 0.1, "ci_low": 0.05, "ci_high": 0.15, "p_value": 0.001}
    board = {
        "title": "Some data",
        "metric": "ndcg@10",
        "config": {"seeds": [0, 1]},
        "metrics": {"library": "rectools", "flags": {"ndcg@10": "NDCG(k=10)"}},
        "rows": [{"model": "Ours"}, {"model": "EASE"}],
        "jobs": [job("Ours", 0, 0.5), job("Ours", 1, 0.3), job("EASE", 0, 0.3), job("EASE", 1, 0.3)],
        "comparisons": {"Ours": comparison},
        "provenance": PROVENANCE,
    }
    (tmp_path / "leaderboard.json").write_text(json.dumps(board))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def test_board_by_hand(results: Path) -> None:
    lines = (tables.board("leaderboard") or "").splitlines()
    assert lines[2] == (
        "| Ours | 0.4000 ± 0.1000 | 0.2000 ± 0.0500 | 0.2500 ± 0.0000 | 0.5000 ± 0.0000 | 2 | 1 | "
        "+0.1000 [+0.0500, +0.1500], p 0.001 |"
    )
    assert lines[3].startswith("| EASE | 0.3000 ± 0.0000 |")
    assert "NDCG(k=10); seeds 0, 1." in lines[-1]
    assert "0123456789" in lines[-1]


def test_protocol_without_published_rows(results: Path) -> None:
    def row(model: str, value: float) -> dict[str, Any]:
        package = "rectools_neural" if model.endswith("Model") else "rectools"
        metrics = {"NDCG@100": value, "Recall@100": 0.5, "Recall@20": 0.25}
        return {"model": model, "config": {"cls": f"{package}.{model}"}, "metrics": metrics}

    file = {"title": "Some data", "definitions": "some metrics", "runs": {"1": PROVENANCE}}
    path = results / "published" / "P5.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**file, "rows": [row("EASE", 0.4), row("EASE", 0.2)]}))
    assert (tables.published() or "").splitlines()[:5] == [
        "**P5: Some data**",
        "",
        "| model | NDCG@100 | Recall@100 | Recall@20 | source |",
        "| --- | --- | --- | --- | --- |",
        "| EASE | 0.3000 ± 0.1000 | 0.5000 ± 0.0000 | 0.2500 ± 0.0000 | measured, 2 seeds |",
    ]
    assert tables.summary() is None  # there is nothing of ours to sum up

    rows = [row("EASE", 0.4), row("DSSMModel", 0.5), row("DAEModel", 0.4), row("DAEModel", 0.8), row("GFCFModel", 0.3)]
    path.write_text(json.dumps({**file, "rows": rows}))
    assert (tables.summary() or "").splitlines()[2:] == [
        "| P5: Some data | NDCG@100 | 0.5000 DSSMModel | 0.6000 DAEModel |  | 0.4000 EASE |",
    ]
    assert "| **DAEModel** | 0.6000 ± 0.2000 |" in (tables.published() or "")


def test_tasks_by_hand(results: Path) -> None:
    def row(cls: str, model: str, auc: float) -> dict[str, Any]:
        return {"model": model, "config": {"cls": cls}, "metrics": {"AUC": auc, "log loss": 1 - auc}}

    rows = [
        row("rectools_neural.DLRMModel", "DLRM", 0.75),
        row("rectools_neural.DLRMModel", "DLRM", 0.25),
        {**row("", "linear", 0.625), "config": {"factory": "some.function"}},
    ]
    file = {"title": "Some clicks", "definitions": "some metrics", "runs": {"1": PROVENANCE}, "rows": rows}
    assert tables.clicks() is None
    (results / "clicks").mkdir()
    for name, part, largest_first in (("a", "test", True), ("b", "test", False), ("a-validation", "validation", True)):
        content = {**file, "part": part, "largest_first": largest_first}
        (results / "clicks" / f"{name}.json").write_text(json.dumps(content))
    lines = (tables.clicks() or "").splitlines()
    header = ["**Some clicks**", "", "| model | AUC | log loss | splits |", "| --- | --- | --- | --- |"]
    dlrm, linear = "| **DLRM** | 0.5000 ± 0.2500 | 0.5000 ± 0.2500 | 2 |", "| linear | 0.6250 | 0.3750 | 1 |"
    assert lines[:6] == [*header, linear, dlrm]
    assert lines[9:15] == [*header, dlrm, linear]
    assert len(lines) == 17
    assert "`benchmarks/results/clicks/a.json`" in lines[7]


def test_serving_by_hand(results: Path) -> None:
    assert tables.serving() is None
    cases = {
        "films, A": {"requests a second": 499.5, "failed": 0},
        "films, B": {"requests a second": 50.0, "failed": 1234},
    }
    content = {
        "provenance": PROVENANCE,
        "load before": 0.1,
        "settings": {"seconds": 30, "swap_seconds": 600, "queries": {"user": 0.7, "history": 0.3}},
        "cases": {name: {"figures": figures} for name, figures in cases.items()},
        "swaps": {"case": "films, A", "figures": {"swaps": 10, "p99, ms": 12.345}},
    }
    (results / "serving.json").write_text(json.dumps(content))
    lines = (tables.serving() or "").splitlines()
    assert lines[:8] == [
        "|  | films, A | films, B |",
        "| --- | --- | --- |",
        "| requests a second | 499.5 | 50 |",
        "| failed | 0 | 1,234 |",
        "",
        "| films, A, 600 s with models replaced |  |",
        "| --- | --- |",
        "| swaps | 10 |",
    ]
    assert lines[8] == "| p99, ms | 12.35 |"
    assert "(70% user, 30% history)" in lines[-1]


def test_page_is_filled_in_place(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- table: leaderboard -->\nold\n<!-- end -->\nbetween\n"
        "<!-- table: gowalla -->\nkept: no result\n<!-- end -->\nafter\n"
    )
    monkeypatch.setattr(tables, "PAGES", (page,))
    tables.main()
    once = page.read_text()
    assert "old" not in once
    assert "| Ours | 0.4000" in once
    assert "kept: no result" in once
    assert re.match(r"before\n<!-- table: leaderboard -->\n\|.*\n<!-- end -->\nafter\n\Z", once, re.DOTALL)
    tables.main()
    assert page.read_text() == once


def test_every_marker_of_the_pages_is_known() -> None:
    for page in tables.PAGES:
        names = re.findall(r"<!-- table: (\S+) -->", page.read_text(encoding="utf-8"))
        assert names
        assert set(names) <= set(tables.TABLES)
