"""Paired comparison of two models over the same users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import wilcoxon

RESAMPLES = 2000
# Equal lists can differ in the last bits of a sum; such users are ties.
TIE = 1e-12


@dataclass(frozen=True)
class Comparison:
    """
    How far one model is from another.

    Attributes
    ----------
    difference : float
        Mean over users of the model's value minus the reference's.
    ci_low, ci_high : float
        Percentile bootstrap interval of that mean, 95 %.
    p_value : float
        Wilcoxon signed-rank test, two-sided; 1 if no user differs.
    users : int
        Number of users compared.
    """

    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    users: int


def compare(differences: npt.NDArray[np.float64]) -> Comparison:
    """
    Test whether paired differences are centred on zero.

    Parameters
    ----------
    differences : ndarray
        One difference per user, shape ``(n_users,)``, not empty.

    Returns
    -------
    Comparison
        The same for the same input: the bootstrap has its own fixed seed.
    """
    differences = np.where(np.abs(differences) < TIE, 0.0, differences)
    low, high = np.percentile(_bootstrap_means(differences), [2.5, 97.5])
    p_value = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
    return Comparison(float(differences.mean()), float(low), float(high), p_value, len(differences))


def _bootstrap_means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Draw the means of resampled users one resample at a time, so that memory stays that of one sample."""
    random = np.random.default_rng(0)
    return np.array([values[random.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)])


def compare_models(records: Sequence[dict[str, Any]], model: str, reference: str, metric: str) -> dict[str, Any] | None:
    """
    Compare two models of a leaderboard.

    The pooled comparison takes one difference per user, the mean over the seeds and folds that test the user: the
    same user under several seeds is not several independent observations.

    Parameters
    ----------
    records : sequence of dict
        Records of finished jobs.
    model, reference : str
        Names of the two models.
    metric : str
        Label of a metric that was kept per user.

    Returns
    -------
    dict or None
        Fields of the pooled `Comparison`, and ``per_seed``: seed -> fields of that seed's comparison. None if the
        two models share no finished job.
    """
    paired = pd.concat(
        [_values(records, model, metric), _values(records, reference, metric)],
        axis=1,
        join="inner",
        keys=["model", "reference"],
    )
    if paired.empty:
        return None
    differences = paired["model"] - paired["reference"]
    per_seed = {
        str(seed): asdict(compare(group.groupby(level="user").mean().to_numpy()))
        for seed, group in differences.groupby(level="seed")
    }
    pooled = compare(differences.groupby(level="user").mean().to_numpy())
    return {"reference": reference, "metric": metric, **asdict(pooled), "per_seed": per_seed}


def _values(records: Sequence[dict[str, Any]], model: str, metric: str) -> pd.Series:
    parts = {
        (record["seed"], record["fold"]): pd.Series(record["per_user"][metric], index=record["users"])
        for record in records
        if record["model"] == model and record["error"] is None
    }
    if not parts:
        empty = pd.MultiIndex.from_tuples([], names=["seed", "fold", "user"])
        return pd.Series(index=empty, dtype=float)
    values: pd.Series = pd.concat(parts, names=["seed", "fold", "user"])
    return values
