"""Do item vectors know genres that training never saw? Towers trained with four losses beside PureSVD.

From the repository root: ``python -m benchmarks.genres [--picture FILE]``. MovieLens-1M, every rating a positive;
features are withheld, so that vectors hold what users did alone. Films of one genre are asked for the genres of their
nearest neighbours among themselves. The scores of interacted and other pairs are drawn side by side, for train pairs
and for held-out ones (one of ten, drawn at random).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import PureSVDModel
from sklearn.metrics import roc_auc_score

from benchmarks.files import write_atomically
from benchmarks.provenance import provenance
from rectools_neural import DSSMModel, load_dataset
from rectools_neural.analysis import neighbour_accuracy, save_figure, similarity_distributions

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


def distributions(figure: go.Figure) -> dict[str, Any]:
    """Quantiles of the scores of interacted and other pairs, and how well they are told apart."""
    traces = figure.data
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


def side_by_side(figures: Mapping[str, go.Figure]) -> go.Figure:
    """Put the distributions of several models into one figure: a column for each, train above test."""
    titles = [f"{name}, {part}" for part in ("train", "test") for name in figures]
    joint = make_subplots(2, len(figures), subplot_titles=titles, horizontal_spacing=0.04, vertical_spacing=0.12)
    for column, figure in enumerate(figures.values(), start=1):
        for place, trace in enumerate(figure.data):
            trace.update(showlegend=column == 1 and place < 2, xaxis=None, yaxis=None)
            joint.add_trace(trace, place // 2 + 1, column)
        joint.update_layout(barmode="overlay", legend=figure.layout.legend, margin=figure.layout.margin)
    joint.update_layout(title="Scores of pairs by the loss of the towers")
    joint.update_xaxes(title="score", row=2)
    joint.update_yaxes(title="density", col=1)
    return joint


def measure(seed: int) -> tuple[list[dict[str, Any]], dict[str, Any], go.Figure]:
    """Train all models, look at their vectors and draw their scores."""
    dataset = load_dataset("ml-1m")
    genres = only_genres(dataset)
    train, test = split(dataset, seed)
    ids = train.item_id_map.external_ids
    rated = np.unique(train.interactions.df[Columns.Item])
    labels = genres.reindex(ids[rated]).to_numpy(dtype=object)
    rows, figures = [], {}
    for loss in LOSSES:
        model = DSSMModel(n_factors=N_FACTORS, loss=loss, epochs=EPOCHS, seed=seed)
        started = time.perf_counter()
        model.fit(train)
        seconds = time.perf_counter() - started
        vectors = model.get_vectors(train)[1][rated, :N_FACTORS]  # without the bias
        figures[loss] = similarity_distributions(model, train, test, seed=seed)
        row = {
            "model": f"DSSMModel, {loss}",
            "similarity": model.fitted_config.similarity,
            "epochs": model.fitted_config.epochs,
            "fit_s": seconds,
            "genre_accuracy": neighbour_accuracy(vectors, labels, K),
            "scores": distributions(figures[loss]),
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
    films = {"films": int(counts.sum()), "share_of_the_largest": float(counts.max() / counts.sum())}
    return rows, films, side_by_side(figures)


def report(row: dict[str, Any]) -> None:
    """Print a row."""
    aucs = {name: round(of["auc"], 3) for name, of in row.get("scores", {}).items()}
    print(f"{row['model']}: genre accuracy {row['genre_accuracy']:.4f}, {row['fit_s']:.0f} s, AUC {aucs}", flush=True)


def main() -> None:
    """Measure all models, print them and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/genres.json"))
    parser.add_argument("--picture", type=Path, help="HTML or PNG file for the distributions of the scores")
    options = parser.parse_args()
    rows, films, picture = measure(options.seed)
    if options.picture is not None:
        save_figure(picture, options.picture)
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
