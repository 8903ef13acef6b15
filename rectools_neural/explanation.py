"""Why a model gives a pair its score: what the history and the features contribute."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import attr
import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset, Interactions
from rectools.exceptions import NotFittedError
from scipy import sparse

from .data.features import EncodedFeatures, FeatureEncoder
from .data.histories import Histories
from .data.reader import DatasetReader, Items, Users, match
from .models.pack import LinearParts, PackModel

HISTORY_ITEM, USER_FEATURE, ITEM_FEATURE, REST = "history item", "user feature", "item feature", "rest"
_MAX_ENTRIES = 1 << 22  # of the histories that are scored at once
_NOISE = 1e-6  # contributions below this share of the largest figure are rounding errors


@dataclass(frozen=True, eq=False)
class Explanation:
    """
    What contributed to the score of a pair.

    Parameters
    ----------
    user, item : object
        External ids.
    score : float
        The score, as `predict_pairs` gives it.
    is_exact : bool
        Whether the score is the sum of the contributions by nature, as linear models have it. Otherwise a contribution
        is what the score loses when the item or the feature is left out, and the row "rest" is what such losses don't
        add up to.
    contributions : pd.DataFrame
        Columns `kind` ("history item", "user feature", "item feature", "rest"), `name`, `value` (the weight of the
        interaction, the value of the feature) and `contribution`, the largest first, whatever its sign. They add up to
        the score.
    """

    user: Any
    item: Any
    score: float
    is_exact: bool
    contributions: pd.DataFrame

    def sentence(self) -> str:
        """Say in one sentence what spoke most for the item (up to three things) and what most against it."""
        table = self.contributions
        largest = max(abs(self.score), table["contribution"].abs().max())
        named = table[(table["kind"] != REST) & (table["contribution"].abs() > _NOISE * largest)]
        start = f"Item {self.item} scores {self.score:.3g} for user {self.user}"
        if named.empty:
            return f"{start}, which comes from {table.loc[table['kind'] == REST, 'name'].item()} alone."
        supports = named["contribution"] > 0
        pros, cons = (
            [_said(row) for row in part.itertuples()] for part in (named[supports].head(3), named[~supports].head(1))
        )
        against = f"{cons[0]} speaks most against it" if cons else ""
        if not pros:
            return f"{start}; {against}."
        return f"{start}, mostly by {_listed(pros)}{'; ' + against if against else ''}."

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.sentence())}</p>{self.contributions.to_html(index=False)}"


def _said(row: Any) -> str:
    value = f"{row.value:.6g}" if isinstance(row.value, float) else row.value
    if row.kind == HISTORY_ITEM:
        return f"{row.kind} {row.name} ({row.contribution:+.3g})"
    return f"{row.kind} {row.name} = {value} ({row.contribution:+.3g})"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def explain(model: PackModel[Any], dataset: Dataset, user: Any, item: Any) -> Explanation:
    """
    Tell what each item of the history and each feature contributed to the score of a pair.

    Where the score is linear in them, it is taken apart exactly: `GFCFModel`, `LightGCNModel` with dot scores, and
    `DSSMModel` with dot scores, linear towers and the mean of the history; its divisor is taken as it is, and the
    product of something of the user's with a feature of the item counts half for each (the Shapley value). For all
    other models each item of the history and each feature is left out in turn, without a new fit.

    A number that is missing or equal to the mean of the training data says nothing and is not listed.

    Parameters
    ----------
    model : PackModel
        A fitted model of this package.
    dataset : Dataset
        Where the user and the item are known from: history and features.
    user, item : object
        External ids.

    Returns
    -------
    Explanation
        The contributions; `sentence()` puts them into words. A user of whom the model knows nothing gets what is
        popular, and the explanation says so.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    TypeError
        If it is not a model of this package, or the dataset is none.
    ValueError
        If the user or the item is not known, or the model goes by a context.

    Examples
    --------
    >>> from rectools_neural import DSSMModel, explain, load_dataset
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> model = DSSMModel().fit(dataset)  # doctest: +SKIP
    >>> print(explain(model, dataset, user=1, item=300).sentence())  # doctest: +SKIP
    """
    reader = _checked_reader(model, dataset)
    return explain_pair(model, *_read_pair(model, reader, dataset, user, item), user, item)


def explain_pair(model: PackModel[Any], subject: Users, candidate: Items, user: Any, item: Any) -> Explanation:
    """
    As `explain`, of a pair that has been read already.

    Parameters
    ----------
    model : PackModel
        A fitted model without context.
    subject, candidate : Users, Items
        The pair, one of each.
    user, item : object
        What to call them.

    Returns
    -------
    Explanation
        As of `explain`.
    """
    reader = model._fitted.reader
    if not model._judges(subject)[0]:
        score = float(reader.popularity[candidate.rows[0]])
        table = _sorted_table([(REST, "popularity", None, score)])
        return Explanation(user, item, score, False, table)
    score = float(_scores(model, subject, candidate)[0])
    parts, rest_name = model._linear_parts(subject, candidate), "ids, biases and defaults"
    is_exact = parts is not None
    if parts is None:
        parts, rest_name = _leave_one_out(model, subject, candidate, score), "ids, biases, defaults and joint effects"
    rows = _history_rows(reader, subject.histories, parts.history)
    for kind, encoder, features, values in (
        (USER_FEATURE, reader.user_encoder, subject.features, parts.user_features),
        (ITEM_FEATURE, reader.item_encoder, candidate.features, parts.item_features),
    ):
        rows += _feature_rows(kind, encoder, features, values)
    # What stands for features that are not known, computed as parts as well, is part of the rest.
    named, everything = sum(row[3] for row in rows), _total(parts)
    rows.append((REST, rest_name, None, everything - named))
    return Explanation(user, item, score, is_exact, _sorted_table(rows))


def _checked_reader(model: PackModel[Any], dataset: Dataset) -> DatasetReader:
    if not isinstance(model, PackModel):
        raise TypeError(f"`model` must be a model of rectools_neural, got {type(model).__name__}")
    if not isinstance(dataset, Dataset):
        raise TypeError(f"`dataset` must be a rectools.dataset.Dataset, got {type(dataset).__name__}")
    if not model.is_fitted:
        raise NotFittedError(type(model).__name__)
    reader = model._fitted.reader
    if reader.context_encoder is not None:
        columns = [*reader.context_encoder.numeric, *reader.context_encoder.categorical]
        raise ValueError(
            f"The model goes by the context {columns}, and a pair of a user and an item has none: only models without "
            "context can be explained, so fit one without `context_numeric` and `context_categorical`"
        )
    return reader


def _read_pair(
    model: PackModel[Any], reader: DatasetReader, dataset: Dataset, user: Any, item: Any
) -> tuple[Users, Items]:
    user_id = _find(user, dataset.user_id_map.external_ids)
    if user_id < 0:
        raise ValueError(
            f"User {user!r} is not in `dataset`: add the user by an interaction or a feature, or name another one"
        )
    frame = dataset.interactions.df
    # All that is read of the others would be thrown away.
    own = attr.evolve(dataset, interactions=Interactions(frame[frame[Columns.User] == user_id].copy()))
    aligned = reader.align(own)
    known = aligned.item_id_map.external_ids if model.uses_features else reader.item_ids
    item_id = _find(item, known)
    if item_id < 0:
        raise ValueError(
            f"Item {item!r} is neither in `dataset` nor in the data that the model was fitted on: name another one"
            if model.uses_features
            else f"{type(model).__name__} was not fitted on item {item!r} and knows items by their interactions alone: "
            "fit it on data that have the item, or name another one"
        )
    return reader.users(aligned, np.array([user_id])), aligned.items.take(np.array([item_id]))


def _find(wanted: Any, known: np.ndarray) -> int:
    return int(match(pd.Series([wanted]).to_numpy(), known)[0])


def _scores(model: PackModel[Any], users: Users, items: Items) -> np.ndarray:
    """Scores of variants of a pair, of which either the users or the items are more than one."""
    n = max(len(users), len(items))
    rows, columns = (np.arange(n) if len(side) == n else np.zeros(n, np.int64) for side in (users, items))
    return model._score_pairs(users, items, rows, columns, None)


def _total(parts: LinearParts) -> float:
    arrays = (parts.history, parts.user_features, parts.item_features)
    return parts.rest + sum(float(array.sum(dtype=np.float64)) for array in arrays)


# ---------------------------------------------------------------------- leave-one-out


def _leave_one_out(model: PackModel[Any], user: Users, item: Items, score: float) -> LinearParts:
    """Score without each item of the history and without each feature: what is lost is their part."""
    losses = [score - _scores(model, users, item) for users in _without_each_item(user)]
    history = np.concatenate([np.zeros(0), *losses])
    user_features = np.zeros(_n_features(user.features))
    item_features = np.zeros(_n_features(item.features))
    known, variants = _without_each_feature(user.features)
    if len(known):
        users = replace(user.take(np.zeros(len(known), np.int64)), features=variants)
        user_features[known] = score - _scores(model, users, item)
    known, variants = _without_each_feature(item.features)
    if len(known):
        items = Items(np.repeat(item.rows, len(known)), variants)
        item_features[known] = score - _scores(model, user, items)
    rest = score - float(history.sum() + user_features.sum() + item_features.sum())
    return LinearParts(history, user_features, item_features, rest)


def _without_each_item(user: Users) -> Iterator[Users]:
    """Take each item out of the history of a user, in chunks of variants."""
    histories = user.histories
    n = len(histories.items)
    chunk = max(1, _MAX_ENTRIES // max(n, 1))
    for start in range(0, n, chunk):
        left_out = np.arange(start, min(start + chunk, n))
        kept = np.concatenate([np.delete(np.arange(n), place) for place in left_out])
        weights = None if histories.weights is None else histories.weights[kept]
        indptr = np.arange(len(left_out) + 1) * (n - 1)
        shorter = Histories(indptr, histories.items[kept], histories.n_items, weights)
        yield replace(user.take(np.zeros(len(left_out), np.int64)), histories=shorter)


def _without_each_feature(features: EncodedFeatures) -> tuple[list[int], EncodedFeatures]:
    """Places of the known features of an entity, and the entity without each of them."""
    known = [place for place in range(_n_features(features)) if _is_known(features, place)]
    variants = [_without(features, place) for place in known]
    categories = sparse.vstack([features.categories[:0], *(each.categories for each in variants)], format="csr")
    numeric = np.concatenate([features.numeric[:0], *(each.numeric for each in variants)])
    return known, EncodedFeatures(features.schema, categories, numeric)


def _without(features: EncodedFeatures, place: int) -> EncodedFeatures:
    """Encode an entity as if one feature had not been known."""
    schema, n_categories = features.schema, len(features.categories.indices)
    if place >= n_categories:
        numeric = features.numeric.copy()
        numeric[0, place - n_categories] = 0
        return replace(features, numeric=numeric)
    columns, weights = features.categories.indices.copy(), features.categories.data.copy()
    name = schema.values[columns[place]][0]
    weights[place] = 0
    siblings = np.array([column < len(schema.values) and schema.values[column][0] == name for column in columns])
    total = weights[siblings].sum()
    if total > 0:
        weights[siblings] /= total
    else:
        columns[place], weights[place] = len(schema.values) + schema.fields.index(name), 1
    matrix = sparse.csr_matrix((weights, columns, [0, n_categories]), shape=features.categories.shape)
    return replace(features, categories=matrix)


# ---------------------------------------------------------------------- the table


def _n_features(features: EncodedFeatures) -> int:
    return len(features.categories.indices) + features.numeric.shape[1]


def _is_known(features: EncodedFeatures, place: int) -> bool:
    """Whether a feature of an entity, the stored categories first and then the numbers, says anything."""
    columns = features.categories.indices
    if place < len(columns):
        return bool(columns[place] < len(features.schema.values))
    return bool(features.numeric[0, place - len(columns)] != 0)


def _history_rows(
    reader: DatasetReader, histories: Histories, parts: np.ndarray
) -> list[tuple[str, object, object, float]]:
    weights = np.ones(len(parts)) if histories.weights is None else histories.weights
    names = reader.item_ids[histories.items].tolist()
    return [
        (HISTORY_ITEM, name, float(weight), float(part))
        for name, weight, part in zip(names, weights, parts, strict=True)
    ]


def _feature_rows(
    kind: str, encoder: FeatureEncoder, features: EncodedFeatures, parts: np.ndarray
) -> list[tuple[str, object, object, float]]:
    schema, columns = features.schema, features.categories.indices
    rows: list[tuple[str, object, object, float]] = []
    for place, part in enumerate(parts):
        if not _is_known(features, place):
            continue
        name: object
        value: object
        if place < len(columns):
            name, value = schema.values[columns[place]]
        else:
            number = place - len(columns)
            name = schema.numeric[number]
            value = float(features.numeric[0, number] * encoder.std[number] + encoder.mean[number])
        rows.append((kind, name, value, float(part)))
    return rows


def _sorted_table(rows: list[tuple[str, object, object, float]]) -> pd.DataFrame:
    # Columns of objects: names and values are of all types.
    table = pd.DataFrame(rows, columns=["kind", "name", "value", "contribution"])
    table = table.astype({"name": object, "value": object, "contribution": float})
    order = np.argsort(-table["contribution"].abs().to_numpy(), kind="stable")
    return table.iloc[order].reset_index(drop=True)
