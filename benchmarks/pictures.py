"""What the best model has learnt, drawn for the leaderboard's page."""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from rectools.dataset import Dataset, SparseFeatures
from rectools.dataset.features import DIRECT_FEATURE_VALUE

import rectools_neural
from benchmarks.jobs import run_in_process
from benchmarks.measure import Job, build_model
from rectools_neural.analysis import embedding_map, similarity_distributions, training_curves
from rectools_neural.models.two_sided import TwoSidedModel
from rectools_neural.registry import MODELS


def section(job: Job, time_limit: float, log: Path) -> str:
    """
    Fit a model once more, in a process of its own, and draw it.

    Parameters
    ----------
    job : Job
        The model and the fold that it is fitted on.
    time_limit : float
        Seconds after which there are no pictures.
    log : Path
        File for what the process printed, if it failed.

    Returns
    -------
    str
        HTML: plotly's library and the figures, or one line that says why there are none.
    """
    reason = _obstacle(job.config)
    if reason is not None:
        return note(f"There are no pictures of {job.model}: {reason}.")
    outcome = run_in_process(partial(draw, job), time_limit, log)
    if "error" in outcome:
        return note(f"There are no pictures of {job.model}: {outcome['error']}.")
    library = importlib.import_module("plotly.offline").get_plotlyjs()
    about = f"{job.model}, the best model that is no baseline, fitted on seed {job.fold.seed}, fold {job.fold.index}."
    figures = "".join(f"<figure>{figure}</figure>" for figure in outcome["figures"])
    return f"{note(about)}<script>{library}</script>{figures}"


def note(text: str) -> str:
    """Say something in one line of HTML."""
    return f"<p>{escape(text)}</p>"


def draw(job: Job) -> dict[str, Any]:
    """
    Fit the model of a job and draw it.

    Parameters
    ----------
    job : Job
        A model with vectors.

    Returns
    -------
    dict
        ``figures``: similarities, the map of the items and the training, each a ``<div>`` that needs plotly's library.
    """
    model: Any = build_model(job.config).fit(job.fold.train)
    train, seed = job.fold.train, job.fold.seed
    figures = (
        similarity_distributions(model, train, job.fold.test, seed=seed),
        embedding_map(model, train, color=_first_category(train), seed=seed),
        training_curves({job.model: model}),
    )
    # Named, as plotly would name them at random: the same run writes the same page.
    return {
        "figures": [
            figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"picture-{number}", default_height="40rem")
            for number, figure in enumerate(figures)
        ]
    }


def _obstacle(config: dict[str, Any]) -> str | None:
    """Tell, before a fit, why a model can't be drawn."""
    name = config.get("cls", "").removeprefix("rectools_neural.")
    if name not in MODELS or not issubclass(getattr(rectools_neural, name), TwoSidedModel):
        return "it has no vectors of users and items"
    if importlib.util.find_spec("plotly") is None:
        return 'plotly is not installed (pip install ".[analysis]")'
    return None


def _first_category(dataset: Dataset) -> str | None:
    features = dataset.item_features
    if not isinstance(features, SparseFeatures):
        return None
    return next((str(name) for name, value in features.names if value != DIRECT_FEATURE_VALUE), None)
