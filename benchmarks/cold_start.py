"""Users whose history is withheld: recommendations from features alone, against popularity.

From the repository root: ``python -m benchmarks.cold_start``. On MovieLens-1M (ratings from 3) a fifth of the users
lose all their interactions before training; their age, gender and occupation stay known. What they watched is the
truth. The difference to popularity is tested user by user.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from rectools.models import PopularModel

from benchmarks.files import write_atomically
from benchmarks.provenance import provenance
from benchmarks.significance import compare
from rectools_neural import DSSMModel, load_dataset

MIN_RATING, WITHHELD, K = 3, 0.2, 10


def withhold(dataset: Dataset, seed: int) -> tuple[Dataset, pd.DataFrame]:
    """
    Take the interactions of a random share of the users out of a dataset.

    Parameters
    ----------
    dataset : Dataset
        All data.
    seed : int
        Chooses the users.

    Returns
    -------
    Dataset, pd.DataFrame
        The dataset without these interactions, with all features; and the interactions, with external ids.
    """
    frame = dataset.interactions.df
    users = frame[Columns.User].unique()
    chosen = np.random.default_rng(seed).choice(users, int(WITHHELD * len(users)), replace=False)
    liked = (frame["rating"] >= MIN_RATING).to_numpy()
    is_withheld = frame[Columns.User].isin(chosen).to_numpy()
    dataset.interactions.df[Columns.Weight] = 1.0
    truth = dataset.get_raw_interactions().iloc[np.flatnonzero(liked & is_withheld)]
    return dataset.filter_interactions(np.flatnonzero(liked & ~is_withheld)), truth


def measure(seed: int) -> dict[str, Any]:
    """Train and compare on the users of one seed: the mean nDCG of both models and the paired comparison."""
    train, truth = withhold(load_dataset("ml-1m"), seed)
    hot_items = train.item_id_map.convert_to_external(np.unique(train.interactions.df[Columns.Item]))
    truth = truth[truth[Columns.Item].isin(hot_items)]
    users = truth[Columns.User].unique()
    metric = NDCG(K, divide_by_achievable=True)
    values = {}
    for name, model in {"DSSMModel": DSSMModel(seed=seed), "PopularModel": PopularModel()}.items():
        reco = model.fit(train).recommend(users, train, K, filter_viewed=False)
        values[name] = metric.calc_per_user(reco, truth).reindex(users)
    comparison = compare((values["DSSMModel"] - values["PopularModel"]).to_numpy())
    means = {name: float(per_user.mean()) for name, per_user in values.items()}
    return {"seed": seed, f"ndcg@{K}": means, "comparison": asdict(comparison)}


def main() -> None:
    """Run all seeds, print them and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cold_start.json"))
    options = parser.parse_args()
    rows = [measure(seed) for seed in options.seeds]
    for row in rows:
        means, difference = row[f"ndcg@{K}"], row["comparison"]
        print(
            f"seed {row['seed']}: DSSMModel {means['DSSMModel']:.4f}, popularity {means['PopularModel']:.4f}, "
            f"difference {difference['difference']:+.4f} [{difference['ci_low']:+.4f}, {difference['ci_high']:+.4f}], "
            f"p {difference['p_value']:.2g}, {difference['users']} users"
        )
    result = {
        "data": f"ml-1m, ratings from {MIN_RATING}; {WITHHELD:.0%} of the users without history",
        "metric": f"rectools NDCG(k={K}, divide_by_achievable=True)",
        "rows": rows,
        "provenance": provenance(),
    }
    write_atomically(options.output, json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
