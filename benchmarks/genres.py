"""Do item vectors know genres that training never saw? Towers trained with four losses beside PureSVD.

From the repository root: ``python -m benchmarks.genres``. MovieLens-1M, every rating a positive; features are withheld,
so that vectors hold what users did alone. Films of one genre are asked for the genres of their nearest neighbours
among themselves. The scores of interacted and other pairs are drawn side by side, for train pairs and for held-out ones
(one of ten, drawn at random).
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
from rectools.models import PureSVDModel
from sklearn.metrics import roc_auc_score

from benchmarks.files import write_atomically
from benchmarks.provenance import provenance
from rectools_neural import DSSMModel, load_dataset
from rectools_neural.analysis import neighbour_accuracy, similarity_distributions

LOSSES = ("squared", "softmax", "triplet", "bpr")
TEST_SHARE, K, N_FACTORS, EPOCHS = 0.1, 10, 64, 20


def only_genres(dataset: Dataset) -> pd.Series:
    """Genre of each film that has exactly one, by external id."""
    columns = [place for place, (name, _) in enumerate(dataset.item_features.names) if name == "genre"]
    genres = dataset.item_features.values[:, columns].tocsr()
    single = np.flatnonzero(np.diff(genres.indptr) == 1)
    names = np.array([dataset.item_features.names[place][1] for place in columns], dtype=object)
    ids = dataset.item_id_map.external_ids[single]
    return pd.Series(names[genres.indices[genres.indptr[single]]], index=ids)


def split(dataset: Dataset, seed: int) -> tuple[Dataset, pd.DataFrame]:
    """Split without features into a train part and held-out interactions."""
    raw = dataset.get_raw_interactions()
    held = np.random.default_rng(seed).random(len(raw)) < TEST_SHARE
    return Dataset.construct(raw[~held]), raw[held]


def distributions(model: DSSMModel, train: Dataset, test: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Quantiles of the scores of interacted and other pairs, and how well they are told apart."""
    traces = similarity_distributions(model, train, test, seed=seed).data
    found = {}
    for name, (interacted, others) in {"train": traces[:2], "test": traces[2:]}.items():
        labels = np.repeat([1, 0], [len(interacted.x), len(others.x)])
        found[name] = {
            "quantiles": [0.05, 0.25, 0.5, 0.75, 0.95],
            **{
                trace.name: np.quantile(trace.x, [0.05, 0.25, 0.5, 0.75, 0.95]).round(4).tolist()
                for trace in (interacted, others)
            },
            "auc": float(roc_auc_score(labels, np.concatenate([interacted.x, others.x]))),
        }
    return found


def measure(seed: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train all models and look at their vectors."""
    dataset = load_dataset("ml-1m")
    genres = only_genres(dataset)
    train, test = split(dataset, seed)
    ids = train.item_id_map.external_ids
    rated = np.unique(train.interactions.df[Columns.Item])
    labels = genres.reindex(ids[rated]).to_numpy(dtype=object)
    rows = []
    for loss in LOSSES:
        model = DSSMModel(n_factors=N_FACTORS, loss=loss, epochs=EPOCHS, seed=seed)
        started = time.perf_counter()
        model.fit(train)
        seconds = time.perf_counter() - started
        vectors = model.get_vectors(train)[1][rated, :N_FACTORS]  # without the bias
        row = {
            "model": f"DSSMModel, {loss}",
            "similarity": model.fitted_config.similarity,
            "epochs": model.fitted_config.epochs,
            "fit_s": seconds,
            "genre_accuracy": neighbour_accuracy(vectors, labels, K),
            "scores": distributions(model, train, test, seed),
        }
        rows.append(row)
        report(row)
    svd = PureSVDModel(factors=N_FACTORS, random_state=None)
    started = time.perf_counter()
    svd.fit(train)
    seconds = time.perf_counter() - started
    vectors = np.asarray(svd.get_vectors()[1])[rated]
    rows.append({"model": "PureSVD", "fit_s": seconds, "genre_accuracy": neighbour_accuracy(vectors, labels, K)})
    report(rows[-1])
    counts = pd.Series(labels).value_counts()
    return rows, {"films": int(counts.sum()), "share_of_the_largest": float(counts.max() / counts.sum())}


def report(row: dict[str, Any]) -> None:
    """Print a row."""
    aucs = {name: round(of["auc"], 3) for name, of in row.get("scores", {}).items()}
    print(f"{row['model']}: genre accuracy {row['genre_accuracy']:.4f}, {row['fit_s']:.0f} s, AUC {aucs}", flush=True)


def main() -> None:
    """Measure all models, print them and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/genres.json"))
    options = parser.parse_args()
    rows, films = measure(options.seed)
    result = {
        "data": f"ml-1m without features, every rating a positive, {TEST_SHARE:.0%} held out at random",
        "genre_accuracy": f"share of the films of one genre for which their {K} nearest among these, by cosine, vote",
        "films": films,
        "n_factors": N_FACTORS,
        "seed": options.seed,
        "rows": rows,
        "provenance": provenance(),
    }
    write_atomically(options.output, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
