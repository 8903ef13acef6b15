"""Figures of what a model has learnt: similarities, maps of vectors, training curves. Needs the extra `analysis`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset, DenseFeatures
from rectools.dataset.features import DIRECT_FEATURE_VALUE
from rectools.exceptions import NotFittedError

from .data.reader import match
from .errors import did_you_mean
from .files import replacing
from .models.base import NeuralModelBase
from .models.two_sided import TwoSidedModel
from .registry import MODELS

if TYPE_CHECKING:
    import plotly.graph_objects as go

Side = Literal["items", "users"]
Method = Literal["pca", "tsne", "umap"]

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf")
_SYMBOLS = ("circle", "diamond", "cross")  # the next one where the colours have run out
_MISSING, _OTHERS, _GREY = "missing", "others", "#c0c0c0"
_METHOD_NAMES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
_N_SVG = 5000  # points that a browser draws without WebGL, which not every one has
_N_BINS = 60
# The legend at the foot: on a narrow screen one beside the plot would leave it no room.
_LAYOUT: dict[str, Any] = {
    "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
    "margin": {"r": 20},
}
_ATTEMPTS = 100  # to draw an item that a user does not have
_NOT_MEASURES = ("epoch", "learning_rate", "seconds", "refit")
_CHUNK = 4096  # entities whose neighbours vote at once
_SUFFIXES = (".html", ".png")


def similarity_distributions(
    model: TwoSidedModel[Any],
    train: Dataset,
    test: Dataset | pd.DataFrame | None = None,
    n_pairs: int = 10_000,
    seed: int = 0,
) -> go.Figure:
    """
    Draw how the scores of pairs that interacted differ from those of pairs that did not.

    Scores are those that items are ranked by: dot products of the vectors, or minus their distances. Histories are read
    from `train` alone, so that the model doesn't see the pairs of `test`.

    Parameters
    ----------
    model : TwoSidedModel
        A fitted model with `get_vectors`.
    train : Dataset
        What it was fitted on.
    test : Dataset or pd.DataFrame, optional
        Held-out interactions, for a second panel; those of users or items that `train` lacks are left out.
    n_pairs : int
        Interactions drawn for a panel, all where there are fewer. Each comes with a pair of the same user and an item
        that the user has in neither part, but for users who have them all.
    seed : int
        Of the draws.

    Returns
    -------
    plotly.graph_objects.Figure
        Two histograms a panel, "interacted" and "not interacted", whose `x` are the scores.

    Raises
    ------
    ValueError
        If the model has no vectors, or a part has no interactions that the model knows.
    """
    _check_positive(n_pairs=n_pairs)
    _check_vectors(model)
    subplots, graph = _require("plotly.subplots"), _require("plotly.graph_objects")
    n_items = train.item_id_map.size
    parts = {"train": _pairs(train, train.get_raw_interactions(), "train")}
    if test is not None:
        raw = test.get_raw_interactions() if isinstance(test, Dataset) else test
        parts["test"] = _pairs(train, raw, "test")
    taken = np.unique(np.concatenate([users * n_items + items for users, items in parts.values()]))
    catalogue, rng = np.unique(parts["train"][1]), np.random.default_rng(seed)
    vectors = model.get_vectors(train)
    figure = subplots.make_subplots(
        1, len(parts), subplot_titles=list(parts), shared_xaxes="all", shared_yaxes="all", horizontal_spacing=0.05
    )
    panels = []
    for users, items in parts.values():
        drawn = np.sort(rng.choice(len(users), min(n_pairs, len(users)), replace=False))
        users, items = users[drawn], items[drawn]
        others, free = _draw_others(users, catalogue, taken, n_items, rng)
        panels.append((_scores(model, vectors, users, items), _scores(model, vectors, users[free], others[free])))
    bins = _bins(np.concatenate([scores for panel in panels for scores in panel]))
    for column, panel in enumerate(panels, start=1):
        for name, values, colour in zip(("interacted", "not interacted"), panel, _COLOURS[:2], strict=True):
            figure.add_trace(
                graph.Histogram(
                    x=values,
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    marker_color=colour,
                    opacity=0.6,
                    histnorm="probability density",
                    xbins=bins,
                ),
                1,
                column,
            )
    figure.update_layout(barmode="overlay", title=f"Scores of {type(model).__name__}", **_LAYOUT)
    figure.update_xaxes(title="score")
    figure.update_yaxes(title="density", col=1)
    return figure


def embedding_map(
    model: TwoSidedModel[Any],
    dataset: Dataset,
    side: Side = "items",
    method: Method = "pca",
    color: str | None = None,
    titles: Mapping[Any, str] | None = None,
    n_max: int = 5000,
    seed: int = 0,
) -> go.Figure:
    """
    Draw the vectors of items or users in the plane.

    Only those that the model knows are drawn. A bias, the last coordinate of some vectors, is left out.

    Parameters
    ----------
    model : TwoSidedModel
        A fitted model with `get_vectors`.
    dataset : Dataset
        Users with their histories, items, and the features to colour by.
    side : {"items", "users"}
        Whose vectors.
    method : {"pca", "tsne", "umap"}
        How they come into the plane; the last two start from the first.
    color : str, optional
        Feature to colour by; see `feature_labels`.
    titles : mapping, optional
        External id -> text to show on hover, instead of the id.
    n_max : int
        Entities drawn at most, a random sample where there are more.
    seed : int
        Of the sample and of the method: the same one gives the same figure.

    Returns
    -------
    plotly.graph_objects.Figure
        A scatter plot; one trace for each value of a category, the rare ones beyond 26 values in one.

    Raises
    ------
    ValueError
        If the model has no vectors, there are fewer than 3 of them, or an argument has no such value.
    """
    _check_positive(n_max=n_max)
    _check_choice("side", side, Side)
    _check_choice("method", method, Method)
    _check_vectors(model)
    labels = None if color is None else feature_labels(dataset, side, color)
    graph = _require("plotly.graph_objects")
    place = _PLACES[method]
    vectors, known = _known_vectors(model, dataset, side)
    rng = np.random.default_rng(seed)
    if len(known) > n_max:
        known = np.sort(rng.choice(known, n_max, replace=False))
    if len(known) < 3:
        raise ValueError(
            f"A map needs 3 {side} at least, but there are {len(known)} to draw: raise `n_max`, or give a `dataset` "
            "with more that the model knows"
        )
    points = place(vectors[known], seed)
    id_map = dataset.item_id_map if side == "items" else dataset.user_id_map
    names = dict(titles or {})
    texts = np.array([str(names.get(id_, id_)) for id_ in id_map.external_ids[known].tolist()], dtype=object)
    figure = graph.Figure()
    scatter = graph.Scatter if len(known) <= _N_SVG else graph.Scattergl

    def draw(mask: np.ndarray, name: str, **marker: Any) -> None:
        figure.add_trace(
            scatter(
                x=points[mask, 0],
                y=points[mask, 1],
                text=texts[mask],
                name=name,
                mode="markers",
                marker={"size": 6, **marker},
                hovertemplate=f"%{{text}}<extra>{'%{marker.color:.6g}' if 'colorbar' in marker else name}</extra>",
            )
        )

    if labels is None:
        draw(np.ones(len(known), bool), side, color=_COLOURS[0])
    else:
        _draw_by_label(draw, labels[known], str(color))
    name = _METHOD_NAMES[method]
    figure.update_layout(
        **_LAYOUT,
        title=f"{side.capitalize()} of {type(model).__name__}, {name}",
        legend_title=color,
        legend_itemsizing="constant",
        xaxis_title=f"{name} 1",
        yaxis_title=f"{name} 2",
    )
    return figure


def feature_labels(dataset: Dataset, side: Side, feature: str) -> np.ndarray:
    """
    Read one value of a feature for each item or user.

    Parameters
    ----------
    dataset : Dataset
        With features of that side.
    side : {"items", "users"}
        Whose.
    feature : str
        Name of the feature.

    Returns
    -------
    np.ndarray
        By internal id: numbers with NaN where they are missing, or strings with None; of several values of a category
        the one that the fewest have, for it tells most.

    Raises
    ------
    ValueError
        If there is no such feature.
    """
    _check_choice("side", side, Side)
    features, id_map = (
        (dataset.item_features, dataset.item_id_map)
        if side == "items"
        else (dataset.user_features, dataset.user_id_map)
    )
    if features is None:
        raise ValueError(f"The dataset has no features of {side}: there is no `{feature}` to go by")
    is_dense = isinstance(features, DenseFeatures)
    of_column = [name if is_dense else name[0] for name in features.names]
    if feature not in of_column:
        names = sorted({str(name) for name in of_column})
        raise ValueError(f"The {side} have no feature `{feature}`{did_you_mean(str(feature), names)}")
    columns = [number for number, name in enumerate(of_column) if name == feature]
    if is_dense:
        numbers = np.full(id_map.size, np.nan)
        numbers[: len(features.values)] = features.values[:, columns[0]]
        return numbers
    matrix = features.values.tocsc()
    stored = {column: slice(matrix.indptr[column], matrix.indptr[column + 1]) for column in columns}
    if features.names[columns[0]][1] == DIRECT_FEATURE_VALUE:
        numbers = np.full(id_map.size, np.nan)
        numbers[matrix.indices[stored[columns[0]]]] = matrix.data[stored[columns[0]]]
        return numbers
    labels = np.full(id_map.size, None, dtype=object)
    rows = {column: matrix.indices[span][matrix.data[span] > 0] for column, span in stored.items()}
    # The rarest value comes last and stays.
    for column in sorted(columns, key=lambda column: (-len(rows[column]), str(features.names[column][1]))):
        labels[rows[column]] = str(features.names[column][1])
    return labels


def neighbour_accuracy(vectors: np.ndarray, labels: Sequence[Any] | np.ndarray, k: int = 10) -> float:
    """
    Tell how well vectors know labels: how often the nearest neighbours of an entity vote for its own label.

    Nearest by the cosine, the entity itself left out; of labels with as many votes the one of the nearest counts.

    Parameters
    ----------
    vectors : np.ndarray
        Shape ``(n_entities, dim)``.
    labels : sequence
        One for each; entities whose label is None or NaN are left out.
    k : int
        Neighbours that vote.

    Returns
    -------
    float
        Share of the entities, from 0 to 1.

    Raises
    ------
    ValueError
        If the lengths differ, or fewer than k + 1 entities have a label.
    """
    _check_positive(k=k)
    vectors, table = np.asarray(vectors), pd.Series(list(labels), dtype=object)
    if len(vectors) != len(table):
        raise ValueError(f"There are {len(vectors)} `vectors` and {len(table)} `labels`: each vector needs one")
    kept = table.notna().to_numpy()
    if kept.sum() <= k:
        raise ValueError(f"{kept.sum()} entities have a label, but {k} neighbours of each need {k + 1}: lower `k`")
    codes, values = pd.factorize(table[kept])
    search = _require("sklearn.neighbors").NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute")
    # Without an argument: an entity is no neighbour of its own.
    votes = codes[search.fit(vectors[kept]).kneighbors(return_distance=False)]
    # The nearer, the more: never enough to outvote, always enough to break a tie.
    weights = 1 + 0.5 ** np.arange(2, k + 2)
    right = 0
    for start in range(0, len(votes), _CHUNK):
        part = votes[start : start + _CHUNK]
        counts = np.zeros((len(part), len(values)))
        np.add.at(counts, (np.arange(len(part))[:, None], part), weights)
        right += int((counts.argmax(axis=1) == codes[start : start + _CHUNK]).sum())
    return right / len(votes)


def training_curves(
    models: NeuralModelBase[Any] | Sequence[NeuralModelBase[Any]] | Mapping[str, NeuralModelBase[Any]],
) -> go.Figure:
    """
    Draw the loss, and the metrics where there was a validation, of each epoch of the last fit.

    Parameters
    ----------
    models : model, sequence of models, or mapping of names to models
        Fitted ones; without names they are called by their classes.

    Returns
    -------
    plotly.graph_objects.Figure
        A panel for each measure, below each other, and a line for each model; that of a refit after the validation is
        dashed.

    Raises
    ------
    NotFittedError
        If a model is not fitted.
    ValueError
        If a model is not trained in epochs, or there are none.
    """
    named = _named(models)
    for model in named.values():
        if not isinstance(model, NeuralModelBase):
            raise ValueError(f"{type(model).__name__} is not trained in epochs and has no curve: leave it out")
        if not model.is_fitted:
            raise NotFittedError(type(model).__name__)
    subplots, graph = _require("plotly.subplots"), _require("plotly.graph_objects")
    measures = list(dict.fromkeys(c for m in named.values() for c in m.history if c not in _NOT_MEASURES))
    figure = subplots.make_subplots(len(measures), 1, subplot_titles=measures, shared_xaxes=True, vertical_spacing=0.1)
    for number, (name, model) in enumerate(named.items()):
        table = model.history
        refit = table["refit"].eq(True) if "refit" in table else pd.Series(False, index=table.index)
        for row, measure in enumerate(measures, start=1):
            for is_refit in (False, True):
                part = table[(refit == is_refit) & table[measure].notna()] if measure in table else table[:0]
                if part.empty:
                    continue
                line = {"color": _COLOURS[number % len(_COLOURS)], "dash": "dash" if is_refit else "solid"}
                label = f"{name}, refit" if is_refit else name
                x, y, show = part["epoch"], part[measure], row == 1
                trace = graph.Scatter(x=x, y=y, name=label, legendgroup=label, showlegend=show, line=line)
                figure.add_trace(trace, row, 1)
    figure.update_xaxes(title="epoch", row=len(measures))
    figure.update_layout(title="Training", **_LAYOUT)
    return figure


def save_figure(figure: go.Figure, path: str | os.PathLike[str]) -> None:
    """
    Write a figure to a file, which is there as a whole or not at all.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
        The figure.
    path : path
        ``.html`` for a page that needs nothing else, not even the network; ``.png`` for an image, which needs the
        package kaleido and Google Chrome.

    Raises
    ------
    ValueError
        If the suffix is another one.
    FileNotFoundError
        If there is no such folder.
    RuntimeError
        If an image can't be made, with what is missing.
    """
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"`path` {str(path)!r} must end in {' or '.join(_SUFFIXES)}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(target.parent)!r} to write {target.name!r} to: make it first")
    is_page = target.suffix.lower() == ".html"
    content = _page(figure).encode() if is_page else _image(figure)
    with replacing(target) as temporary:
        temporary.write_bytes(content)


# ---------------------------------------------------------------------- vectors


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"rectools_neural.analysis needs `{package}`, which is not installed: pip install rectools-neural[analysis]"
        ) from error


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"`{name}` must be at least 1, got {number}")


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"Unknown `{name}` `{value}`{did_you_mean(str(value), list(get_args(choices)))}")


def _check_vectors(model: Any) -> None:
    if not isinstance(model, TwoSidedModel):
        package = importlib.import_module(__package__)
        able = [name for name in MODELS if issubclass(getattr(package, name), TwoSidedModel)]
        raise ValueError(f"{type(model).__name__} has no vectors of users and items; these have: {', '.join(able)}")
    if not model.is_fitted:
        raise NotFittedError(type(model).__name__)


def _known_vectors(model: TwoSidedModel[Any], dataset: Dataset, side: Side) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of a side without biases, and the internal ids of those of whom the model knows something."""
    of_users, of_items = model.get_vectors(dataset)
    vectors, id_map = (of_items, dataset.item_id_map) if side == "items" else (of_users, dataset.user_id_map)
    if model._fitted.module.has_bias:
        vectors = vectors[:, :-1]
    if model.uses_features:
        return vectors, np.arange(id_map.size)
    if side == "items":
        return vectors, np.flatnonzero(match(id_map.external_ids, model._fitted.reader.item_ids) >= 0)
    return vectors, np.unique(dataset.interactions.df[Columns.User])


def _scores(
    model: TwoSidedModel[Any], vectors: tuple[np.ndarray, np.ndarray], users: np.ndarray, items: np.ndarray
) -> np.ndarray:
    of_users, of_items = vectors[0][users], vectors[1][items]
    if model._fitted.module.euclidean:
        distances: np.ndarray = np.linalg.norm(of_users - of_items, axis=1)
        return -distances
    products: np.ndarray = np.einsum("pd,pd->p", of_users, of_items)
    return products


# ---------------------------------------------------------------------- pairs


def _pairs(train: Dataset, raw: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Different pairs of a table by their internal ids in `train`."""
    absent = [column for column in (Columns.User, Columns.Item) if column not in raw.columns]
    if absent:
        raise ValueError(f"`{name}` lacks the columns {absent}: give interactions")
    places = pd.DataFrame(
        {
            Columns.User: match(raw[Columns.User].to_numpy(), train.user_id_map.external_ids),
            Columns.Item: match(raw[Columns.Item].to_numpy(), train.item_id_map.external_ids),
        }
    )
    places = places[(places >= 0).all(axis=1)].drop_duplicates()
    if places.empty:
        raise ValueError(f"`{name}` has no interactions of users and items of `train`: there is nothing to compare")
    return places[Columns.User].to_numpy(), places[Columns.Item].to_numpy()


def _draw_others(
    users: np.ndarray, catalogue: np.ndarray, taken: np.ndarray, n_items: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an item for each user; and tell which of them are really not the user's."""
    items = rng.choice(catalogue, len(users))
    for _ in range(_ATTEMPTS):
        again = np.isin(users * n_items + items, taken)
        if not again.any():
            break
        items[again] = rng.choice(catalogue, again.sum())
    return items, ~np.isin(users * n_items + items, taken)


def _bins(scores: np.ndarray) -> dict[str, float]:
    """Bars of one width for all histograms of a figure; plotly leaves out what is at the very end."""
    low, high = float(scores.min()), float(scores.max())
    size = (high - low) / _N_BINS or 1.0
    return {"start": low, "end": high + size, "size": size}


# ---------------------------------------------------------------------- the plane


def _principal(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """Coordinates along the first two principal components, shape ``(n, 2)``; nothing of it is random."""
    centred = (vectors - vectors.mean(axis=0)).astype(np.float64)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is arbitrary: its largest weight is made positive.
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    points = (left * values * signs)[:, :2]
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    make, perplexity = _require("sklearn.manifold").TSNE, min(30, (len(vectors) - 1) / 3)
    start = _start(vectors, 1e-4)
    points: np.ndarray = make(perplexity=perplexity, init=start, random_state=seed, n_jobs=1).fit_transform(vectors)
    return points


def _umap(vectors: np.ndarray, seed: int) -> np.ndarray:
    n_threads = torch.get_num_threads()
    make, n_neighbors, start = _require("umap").UMAP, min(15, len(vectors) - 1), _start(vectors, 10.0)
    try:
        points: np.ndarray = make(n_neighbors=n_neighbors, init=start, random_state=seed, n_jobs=1).fit_transform(
            vectors
        )
    finally:
        torch.set_num_threads(n_threads)  # numba sets those of OpenMP, which torch shares
    return points


def _start(vectors: np.ndarray, scale: float) -> np.ndarray:
    points = _principal(vectors)
    spread = points[:, 0].std() or 1.0
    start: np.ndarray = (points / spread * scale).astype(np.float32)
    return start


_PLACES = {"pca": _principal, "tsne": _tsne, "umap": _umap}


# ---------------------------------------------------------------------- drawing


def _draw_by_label(draw: Any, labels: np.ndarray, feature: str) -> None:
    missing = pd.isna(labels)
    if labels.dtype != object:
        draw(~missing, feature, color=labels[~missing], colorscale="Viridis", colorbar={"title": feature})
    else:
        counts = pd.Series(labels[~missing]).value_counts().sort_index().sort_values(ascending=False, kind="stable")
        looks = [{"symbol": symbol, "color": colour} for symbol in _SYMBOLS for colour in _COLOURS]
        n_own = len(counts) if len(counts) <= len(looks) else len(looks) - 1
        for value, look in zip(counts.index[:n_own], looks, strict=False):
            draw(labels == value, value, **look)
        if n_own < len(counts):
            draw(np.isin(labels, counts.index[n_own:]), _OTHERS, **looks[-1])
    if missing.any():
        draw(missing, _MISSING, color=_GREY)


def _named(models: Any) -> dict[str, Any]:
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        listed = list(models) if isinstance(models, Sequence) else [models]
        classes = [type(model).__name__ for model in listed]
        # Models of one class are told apart by their numbers.
        named = {
            name if classes.count(name) == 1 else f"{name} {classes[: place + 1].count(name)}": model
            for place, (name, model) in enumerate(zip(classes, listed, strict=True))
        }
    if not named:
        raise ValueError("`models` is empty: there is nothing to draw")
    return named


def _page(figure: go.Figure) -> str:
    """Fill the window, a phone's too; the figure is named, as plotly would name it at random."""
    drawing = figure.to_html(full_html=False, include_plotlyjs=True, div_id="figure", default_height="100%")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(figure.layout.title.text or '')}</title>\n"
        "<style>html, body, body > div { height: 100%; margin: 0; }</style>\n"
        f"</head>\n<body>\n{drawing}\n</body>\n</html>\n"
    )


def _image(figure: go.Figure) -> bytes:
    try:
        image: bytes = figure.to_image(format="png", width=1000, height=650)
    except Exception as error:  # of kaleido, of plotly or of the browser, by their versions
        raise RuntimeError(
            "An image needs the package kaleido (pip install kaleido) and Google Chrome (plotly_get_chrome installs "
            f"one), or save the figure as .html. Kaleido says: {' '.join(str(error).split())}"
        ) from error
    return image
