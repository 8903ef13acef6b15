from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("faiss", reason="faiss is not installed: pip install rectools-neural[ann]")

from benchmarks.ann import run
from benchmarks.speed import screen_table


def test_measures_both_sides() -> None:
    threads = torch.get_num_threads()
    result = run(n_items=5_000, n_queries=50, repeats=2)
    assert torch.get_num_threads() == threads
    json.dumps(result, allow_nan=False)
    found = {m["name"]: m for m in result["parts"]["search"]}
    recall = found["recall@10 of the index, other queries"]
    assert len(recall["values"]) == 2
    assert 0.9 <= recall["median"] <= 1
    assert all(value > 0 for m in found.values() if m["unit"] != "MB" for value in m["values"])
    assert "index against exact ranking" in screen_table(result)
