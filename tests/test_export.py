from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rectools import Columns

from rectools_neural import to_jsonl


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_object_a_user(tmp_path: Path) -> None:
    reco = pd.DataFrame({Columns.User: [7, 7, 3, 7], Columns.Item: [1, 2, 2, 9], Columns.Rank: [2, 1, 1, 3]})
    to_jsonl(reco, tmp_path / "reco.jsonl")
    assert read(tmp_path / "reco.jsonl") == [{"user": 7, "tracks": [2, 1, 9]}, {"user": 3, "tracks": [2]}]
    assert os.listdir(tmp_path) == ["reco.jsonl"]


def test_without_ranks_the_rows_are_in_order(tmp_path: Path) -> None:
    reco = pd.DataFrame({Columns.User: ["b", "a", "b"], Columns.Item: ["ж", "y", 5]})
    to_jsonl(reco, tmp_path / "reco.jsonl", user="id", items="films", verbose=1)
    assert read(tmp_path / "reco.jsonl") == [{"id": "b", "films": ["ж", 5]}, {"id": "a", "films": ["y"]}]
    assert "ж" in (tmp_path / "reco.jsonl").read_text(encoding="utf-8")


def test_no_recommendations(tmp_path: Path) -> None:
    to_jsonl(pd.DataFrame({Columns.User: [], Columns.Item: []}), tmp_path / "reco.jsonl")
    assert (tmp_path / "reco.jsonl").read_bytes() == b""


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    to_jsonl(pd.DataFrame({Columns.User: [1], Columns.Item: [2]}), tmp_path / "reco.jsonl")
    assert (tmp_path / "reco.jsonl").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("reco", "options", "words"),
    [
        (pd.DataFrame({Columns.User: [1]}), {}, ["item_id"]),
        (pd.DataFrame({Columns.User: [1], Columns.Item: [2]}), {"items": "user"}, ["user", "differ"]),
        (pd.DataFrame({Columns.User: [1, np.nan], Columns.Item: [2, 3]}), {}, ["user_id", "missing"]),
    ],
)
def test_bad_input_leaves_the_file_as_it_was(
    reco: pd.DataFrame, options: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "reco.jsonl").write_text("before")
    with pytest.raises(ValueError, match=words[0]) as error:
        to_jsonl(reco, tmp_path / "reco.jsonl", **options)
    assert all(word in str(error.value) for word in words)
    assert (tmp_path / "reco.jsonl").read_text() == "before"


def test_a_failure_while_writing_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    (tmp_path / "reco.jsonl").write_text("before")
    reco = pd.DataFrame({Columns.User: [1, 2], Columns.Item: [2, Broken()]})
    with pytest.raises(RuntimeError, match="no text"):
        to_jsonl(reco, tmp_path / "reco.jsonl")
    assert (tmp_path / "reco.jsonl").read_text() == "before"
    assert os.listdir(tmp_path) == ["reco.jsonl"]
