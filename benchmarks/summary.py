"""From the records of jobs to one row per model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.config import LeaderboardConfig
from benchmarks.significance import compare_models

COSTS = ("fit_seconds", "recommend_seconds", "peak_memory_mb")


def summarise(records: Sequence[dict[str, Any]], config: LeaderboardConfig) -> tuple[pd.DataFrame, dict[str, Any]]:
    """
    Average the jobs of each model and compare the models with the best baseline.

    Parameters
    ----------
    records : sequence of dict
        Records of all jobs, failed ones included.
    config : LeaderboardConfig
        Names the models, the baselines and the main metric.

    Returns
    -------
    DataFrame
        One row per model, best first: ``model``, ``baseline``, ``jobs``, ``finished``, the mean and standard deviation
        (``<label> std``) of each metric over the finished jobs, the mean costs, ``reference`` (the best baseline),
        ``difference``, ``ci_low``, ``ci_high``, ``p_value`` (all of the main metric) and ``error`` (the first).
    dict
        Model -> what `compare_models` returned, without the best baseline itself.
    """
    labels = list(next((record["metrics"] for record in records if record["error"] is None), {}))
    rows = [_row(name, records, labels, config.models[name].baseline) for name in config.models]
    frame = pd.DataFrame(rows)
    if config.metric not in frame:  # every job failed
        frame[config.metric] = np.nan
    reference = _best_baseline(frame, config.metric)
    comparisons = {}
    for name in config.models:
        compared = compare_models(records, name, reference, config.metric) if reference not in (None, name) else None
        if compared is not None:
            comparisons[name] = compared
    for field in ("reference", "difference", "ci_low", "ci_high", "p_value"):
        frame[field] = [comparisons.get(name, {}).get(field) for name in frame["model"]]
    frame["error"] = frame.pop("error")  # a long text reads best at the end
    ranked = frame.sort_values(config.metric, ascending=False, na_position="last", kind="stable")
    return ranked.reset_index(drop=True), comparisons


def _row(name: str, records: Sequence[dict[str, Any]], labels: list[str], baseline: bool) -> dict[str, Any]:
    jobs = [record for record in records if record["model"] == name]
    finished = [record for record in jobs if record["error"] is None]
    errors = [record["error"] for record in jobs if record["error"] is not None]
    measured = pd.DataFrame(
        [{**record["metrics"], **{cost: record[cost] for cost in COSTS}} for record in finished],
        columns=[*labels, *COSTS],
        dtype=float,
    )
    return {
        "model": name,
        "baseline": baseline,
        "jobs": len(jobs),
        "finished": len(finished),
        **{column: measured[column].mean() for column in [*labels, *COSTS]},
        **{f"{label} std": measured[label].std() for label in labels},
        "error": errors[0] if errors else None,
    }


def _best_baseline(frame: pd.DataFrame, metric: str) -> str | None:
    """Choose among the baselines that finished every job: a mean over fewer folds is another quantity."""
    complete = frame[frame["baseline"] & (frame["finished"] == frame["jobs"])].dropna(subset=metric)
    return None if complete.empty else str(complete["model"].iloc[complete[metric].argmax()])
