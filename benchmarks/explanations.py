"""Do explanations name what a recommendation is due to? Without it, the item should fall in the ranking.

From the repository root: ``python -m benchmarks.explanations``. Models with default options are fitted on
MovieLens-100k, every rating a positive. For sampled pairs of a user and an item, the items of the history that
contribute most by `explain` are taken out of the history, and all items that the user had not seen are ranked again,
without a new fit; beside them as many items of the history drawn at random. The item is one of the user's ten best,
which stand far apart, so that many keep their place; or any item that the user had not seen.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks.files import write_atomically
from benchmarks.provenance import provenance
from rectools_neural import explain, load_dataset, model_from_config
from rectools_neural.explanation import HISTORY_ITEM

MODELS = ("DSSMModel", "MultVAEModel", "GFCFModel")
K, TAKEN_OUT = 10, (1, 5)
CASES = {"ten best": K, "all unseen": None}


def place(model: Any, dataset: Dataset, user: Any, item: Any, seen: set[Any]) -> int:
    """Place of an item, from 0, among those that the user had not seen."""
    order = model.recommend([user], dataset, dataset.item_id_map.size, filter_viewed=False)[Columns.Item]
    return [other for other in order if other not in seen].index(item)


def without(dataset: Dataset, items: list[Any]) -> Dataset:
    """Take items out of the history of the only user of a dataset."""
    kept = ~dataset.get_raw_interactions()[Columns.Item].isin(items).to_numpy()
    return dataset.filter_interactions(np.flatnonzero(kept))


def measure(model: Any, dataset: Dataset, cases: str, n_pairs: int, seed: int) -> dict[str, Any]:
    """Explain and check sampled pairs of a fitted model."""
    raw = dataset.get_raw_interactions()
    users = raw[Columns.User].unique()
    rng = np.random.default_rng(seed)
    reco = model.recommend(users, dataset, CASES[cases] or dataset.item_id_map.size, filter_viewed=True)
    reco = reco.iloc[rng.choice(len(reco), n_pairs, replace=False)]
    rows: list[dict[str, Any]] = []
    seconds, exact = 0.0, set()
    for user, item in reco[Columns.UserItem].itertuples(index=False):
        own = dataset.filter_interactions(np.flatnonzero((raw[Columns.User] == user).to_numpy()))
        started = time.perf_counter()
        explanation = explain(model, dataset, user, item)
        seconds += time.perf_counter() - started
        exact.add(explanation.is_exact)
        table = explanation.contributions
        history = table[table["kind"] == HISTORY_ITEM].sort_values("contribution", ascending=False)["name"]
        seen = set(history)
        before = place(model, own, user, item, seen)
        for n in TAKEN_OUT:
            choices = {"top": history.head(n).tolist(), "random": rng.choice(history, n, replace=False).tolist()}
            for choice, items in choices.items():
                after = place(model, without(own, items), user, item, seen)
                rows.append({"n": n, "choice": choice, "falls": after - before})
    moves = pd.DataFrame(rows)
    return {
        "model": type(model).__name__,
        "cases": cases,
        "pairs": n_pairs,
        "is_exact": exact == {True},
        "seconds_per_explanation": seconds / n_pairs,
        "taken_out": {
            f"{choice} {n}": {
                "falls": float((of["falls"] > 0).mean()),
                "stays": float((of["falls"] == 0).mean()),
                "rises": float((of["falls"] < 0).mean()),
                "falls_where_it_moves": float((of["falls"] > 0).sum() / max((of["falls"] != 0).sum(), 1)),
                "median_places": float(of["falls"].median()),
                "mean_places": float(of["falls"].mean()),
            }
            for (n, choice), of in moves.groupby(["n", "choice"])
        },
    }


def main() -> None:
    """Measure all models, print them and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/explanations.json"))
    options = parser.parse_args()
    dataset, results = load_dataset("ml-100k"), []
    for name in MODELS:
        model = model_from_config({"cls": name}).fit(dataset)
        results += [measure(model, dataset, cases, options.pairs, options.seed) for cases in CASES]
        for result in results[-len(CASES) :]:
            for choice, of in result["taken_out"].items():
                print(
                    f"{name}, {result['cases']}, without {choice}: falls {of['falls']:.3f}, stays {of['stays']:.3f}, "
                    f"rises {of['rises']:.3f}, median {of['median_places']:+.0f} places, mean {of['mean_places']:+.1f}",
                    flush=True,
                )
    summary = {
        "data": "ml-100k, every rating a positive; pairs sampled from the best, or from all, unseen items of each user",
        "rank": "among the items not seen, with the whole history and without some of its items, no new fit",
        "seed": options.seed,
        "rows": results,
        "provenance": provenance(),
    }
    write_atomically(options.output, json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
