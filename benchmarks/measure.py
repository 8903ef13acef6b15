"""One measurement: build a model, fit it, recommend, evaluate. Runs inside a process of its own (see `jobs`)."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import rectools.models
import torch
from rectools import Columns
from rectools.compat import RequirementUnavailable
from rectools.dataset.context import get_context
from rectools.models.base import ModelBase
from rectools.utils.misc import import_object

from benchmarks.data import Fold
from benchmarks.metrics import evaluate
from rectools_neural.registry import MODELS, model_from_config

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Job:
    """
    A model to fit and evaluate on one fold.

    Attributes
    ----------
    model : str
        Name of the row.
    config : dict
        Complete configuration in `model_from_config` form, or with ``factory`` in place of ``cls``.
    fold : Fold
        Data and seed.
    ks : list of int
        List lengths, ascending.
    kept_per_user : list of str
        Labels of the metrics whose values per user are kept.
    replay_metrics : bool, default False
        Whether RePlay measures the lists as well.
    """

    model: str
    config: dict[str, Any]
    fold: Fold
    ks: list[int]
    kept_per_user: list[str]
    replay_metrics: bool = False


def model_module(config: dict[str, Any]) -> str:
    """
    Find the module that defines a model.

    Parameters
    ----------
    config : dict
        Configuration with ``cls`` or ``factory``.

    Returns
    -------
    str
        Name of the module.
    """
    path, _, name = (config.get("factory") or config["cls"]).rpartition(".")
    if path:
        return str(path)
    return MODELS.get(name) or str(getattr(rectools.models, name).__module__)


def build_model(config: dict[str, Any]) -> ModelBase[Any]:
    """
    Make an unfitted model.

    Parameters
    ----------
    config : dict
        Configuration with ``cls`` or ``factory``.

    Returns
    -------
    ModelBase
        The model.

    Raises
    ------
    ValueError, TypeError, AttributeError
        If the name or a parameter is wrong.
    ImportError
        If there is no such module, or RecTools lacks a package that this model needs.
    """
    if "factory" in config:
        params = {name: value for name, value in config.items() if name != "factory"}
        model: ModelBase[Any] = import_object(config["factory"])(**params)
        return model
    source = getattr(rectools.models, config["cls"], None)
    if isinstance(source, type) and issubclass(source, RequirementUnavailable):
        source()  # RecTools puts such a class in the place of the model: making one names the missing package
    return model_from_config(config)


def measure(job: Job) -> dict[str, Any]:
    """
    Fit, recommend to every test user, evaluate.

    Memory is the rise of this process's peak from just before `fit` to the end of `recommend`, so that neither the
    libraries nor the data count. A model that needs less than loading the data did shows as 0.

    Parameters
    ----------
    job : Job
        What to measure.

    Returns
    -------
    dict
        ``metrics``, ``users``, ``per_user``, ``fit_seconds``, ``recommend_seconds``, ``peak_memory_mb``.
    """
    fold = job.fold
    _seed_everything(fold.seed)
    model = build_model(job.config)
    users = fold.test[Columns.User].unique()
    context = get_context(fold.test) if model.require_recommend_context else None

    memory_before = peak_memory_mb()
    start = time.perf_counter()
    model.fit(fold.train)
    fitted = time.perf_counter()
    reco = model.recommend(
        users=users,
        dataset=fold.train,
        k=job.ks[-1],
        filter_viewed=True,
        on_unsupported_targets="ignore",
        context=context,
    )
    recommended = time.perf_counter()
    memory_after = peak_memory_mb()

    evaluation = evaluate(reco, fold, job.ks, job.kept_per_user, job.replay_metrics)
    return {
        "metrics": evaluation.metrics,
        "fit_seconds": fitted - start,
        "recommend_seconds": recommended - fitted,
        "peak_memory_mb": None if memory_before is None or memory_after is None else memory_after - memory_before,
        "users": evaluation.users,
        "per_user": evaluation.per_user,
    }


def _seed_everything(seed: int) -> None:
    # The process belongs to this job alone, and some models take no seed of their own.
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def peak_memory_mb() -> float | None:
    """Return the largest resident memory of this process so far, in MB; None where the system doesn't tell."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
