from __future__ import annotations

import pandas as pd
import pytest
from rectools import Columns

pytest.importorskip("pyspark", reason="Spark is not installed: pip install rectools-neural[spark]")

from benchmarks.spark import compare

RECO = pd.DataFrame(
    [(1, 10, 0.5, 1), (1, 11, 0.25, 2), (2, 11, 0.5, 1), (2, 12, 0.5, 2)],
    columns=[Columns.User, Columns.Item, Columns.Score, Columns.Rank],
)


def test_compare_counts_ties() -> None:
    swapped = RECO.assign(item_id=[10, 11, 12, 11])
    rows, others, difference = compare("Spark", swapped.sample(frac=1, random_state=0), RECO)
    assert (rows.values, others.values, difference.values) == ([4], [2], [0.0])


@pytest.mark.parametrize(
    ("reco", "problem"),
    [
        (RECO.iloc[1:], "3 rows, and not the users and ranks of the 4 expected ones"),
        (pd.concat([RECO, RECO.iloc[:1]]), "5 rows"),
        (RECO.assign(item_id=[10, 10, 11, 12]), "recommended to a user twice"),
        (RECO.assign(score=[0.5, 0.26, 0.5, 0.5]), "1 scores differ, by up to 0.04"),
    ],
)
def test_compare_refuses(reco: pd.DataFrame, problem: str) -> None:
    with pytest.raises(RuntimeError, match=problem):
        compare("Spark", reco, RECO)
