"""RePlay: models behind the interface of its recommenders, and datasets converted both ways."""

from __future__ import annotations

import io
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype, is_list_like, is_numeric_dtype
from rectools import Columns
from rectools.dataset import Dataset, DenseFeatures, IdMap, Interactions, SparseFeatures
from rectools.dataset.features import DIRECT_FEATURE_VALUE
from rectools.exceptions import NotFittedError
from rectools.models import load_model
from rectools.models.base import ModelBase
from scipy import sparse
from typing_extensions import Self

from .data.features import Features
from .data.reader import match
from .files import replacing
from .models.pack import PackModel
from .registry import model_from_config

try:
    from replay.data import Dataset as ReplayDataset
    from replay.data import FeatureHint, FeatureInfo, FeatureSchema, FeatureType
except ImportError as error:
    raise ImportError("RePlay is not installed: `pip install rectools-neural[replay]`") from error

#: A DataFrame of pandas, polars or Spark: the latter two may not be installed.
Frame: TypeAlias = Any
# Names and entries (rows, columns, values) of a few columns of a feature matrix.
_Block: TypeAlias = tuple[list[tuple[str, Any]], np.ndarray, np.ndarray, np.ndarray]

_NO_TIME = pd.Timestamp("1970-01-01")
_UNITS = {"s": 1e9, "ms": 1e6, "us": 1e3}  # nanoseconds
_RATING = "rating"


class ReplayRecommender:
    """
    A model with the methods of RePlay's recommenders.

    It takes `replay.data.Dataset` in pandas, polars or Spark, with encoded ids or others, and answers in the same kind
    of frame under the names of the dataset's `FeatureSchema`: query, item and rating (``"rating"`` where the schema has
    none). Spark data are collected: the model itself runs in this process.

    Parameters
    ----------
    model : ModelBase or mapping
        A model of this pack or of RecTools, or the config of one (see `rectools_neural.model_from_config`).

    Examples
    --------
    >>> from rectools_neural.replay import ReplayRecommender
    >>> recommender = ReplayRecommender({"cls": "DSSMModel"})
    >>> recommendations = recommender.fit_predict(dataset, k=10)  # doctest: +SKIP
    """

    def __init__(self, model: ModelBase[Any] | Mapping[str, Any]) -> None:
        if not isinstance(model, ModelBase | Mapping):
            raise TypeError(
                f"`model` must be a model of this pack or of RecTools, or the config of one, got {type(model).__name__}"
            )
        self.model: ModelBase[Any] = model_from_config(model) if isinstance(model, Mapping) else model
        # Models of RecTools know users and items by the internal ids of one dataset alone: these are its external ones.
        self._ids: tuple[np.ndarray, np.ndarray] | None = None

    def __repr__(self) -> str:
        # RecTools' models have no representation of their own.
        shown = repr(self.model) if isinstance(self.model, PackModel) else type(self.model).__name__
        return f"{type(self).__name__}({shown})"

    def fit(self, dataset: ReplayDataset) -> Self:
        """
        Fit the model anew.

        Parameters
        ----------
        dataset : replay.data.Dataset
            Interactions, and features of queries and items where there are any.

        Returns
        -------
        Self
            The fitted recommender.
        """
        self._fit(to_rectools(dataset))
        return self

    def predict(
        self,
        dataset: ReplayDataset,
        k: int,
        queries: Frame | Iterable[Any] | None = None,
        items: Frame | Iterable[Any] | None = None,
        filter_seen_items: bool = True,
        recs_file_path: str | os.PathLike[str] | None = None,
    ) -> Frame | None:
        """
        Recommend items.

        Parameters
        ----------
        dataset : replay.data.Dataset
            Where queries are known from: their interactions and features. Models of this pack take any dataset,
            those of RecTools one with the users and items that they were fitted on.
        k : int
            Recommendations for each query.
        queries : frame or iterable, optional
            Ids, or a frame of any kind with their column; all queries with interactions by default. Those that the
            model can't serve get nothing, as in RePlay.
        items : frame or iterable, optional
            Items to choose from, likewise; those that the model was fitted on by default. Unknown ones are left out.
        filter_seen_items : bool, default True
            Whether to leave out what a query has interactions with.
        recs_file_path : path, optional
            Local parquet file to write instead of returning the recommendations.

        Returns
        -------
        frame or None
            Query, item and rating, of the kind of the dataset: by query, best first.

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        TypeError, ValueError
            If an argument is not what it should be; if queries are not in the dataset and the model has nothing to
            recommend to those of whom it knows nothing.
        """
        self._check_fitted()
        return self._predict(dataset, k, queries, items, filter_seen_items, recs_file_path, fit=False)

    def fit_predict(
        self,
        dataset: ReplayDataset,
        k: int,
        queries: Frame | Iterable[Any] | None = None,
        items: Frame | Iterable[Any] | None = None,
        filter_seen_items: bool = True,
        recs_file_path: str | os.PathLike[str] | None = None,
    ) -> Frame | None:
        """Fit the model and recommend from the same dataset; see `predict` for the parameters."""
        return self._predict(dataset, k, queries, items, filter_seen_items, recs_file_path, fit=True)

    def predict_pairs(
        self,
        pairs: Frame,
        dataset: ReplayDataset | None = None,
        recs_file_path: str | os.PathLike[str] | None = None,
        k: int | None = None,
    ) -> Frame | None:
        """
        Score given pairs; for models of this pack.

        Parameters
        ----------
        pairs : frame
            Columns of queries and items, and those of the context for models that go by it.
        dataset : replay.data.Dataset
            Where queries and items are known from. RePlay lets some of its models do without; these can't.
        recs_file_path : path, optional
            Local parquet file to write instead of returning the scores.
        k : int, optional
            How many of the pairs of a query to keep, best first. By default all stay in their order.

        Returns
        -------
        frame or None
            Query, item and rating, of the kind of the dataset.

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        TypeError, ValueError
            If an argument is not what it should be, a query is not in the dataset, or an item is not known.
        """
        self._check_fitted()
        if not isinstance(self.model, PackModel):
            raise TypeError(f"{type(self.model).__name__} of RecTools can't score given pairs: use `predict`")
        if dataset is None:
            raise ValueError("`dataset` is needed: the model knows queries and items by its interactions and features")
        _check_dataset(dataset)
        _check_answer(1 if k is None else k, recs_file_path)
        query, item = dataset.feature_schema.query_id_column, dataset.feature_schema.item_id_column
        pairs = _read_pairs(pairs, query, item)
        converted = to_rectools(dataset)
        reader = self.model._fitted.reader
        known_items = converted.item_id_map.add_ids(reader.item_ids).external_ids
        for column, known in ((query, converted.user_id_map.external_ids), (item, known_items)):
            ids = _check_ids(pairs[column].to_numpy(), column, known, "pairs")
            _refuse_unknown(ids, column, known, "pairs")
        further = pairs.drop(columns=[query, item])
        renamed = further.assign(**{Columns.User: pairs[query], Columns.Item: pairs[item]})
        scored = self.model.predict_pairs(renamed, converted)[[Columns.User, Columns.Item, Columns.Score]]
        if k is not None:
            order = np.lexsort((-scored[Columns.Score], pd.factorize(scored[Columns.User])[0]))
            scored = scored.iloc[order].groupby(Columns.User, sort=False).head(k)
        return _answer(scored, dataset, recs_file_path)

    def get_features(self, ids: Frame, dataset: ReplayDataset) -> tuple[Frame, int]:
        """
        Return the vectors of queries or of items, for models that score by vectors.

        RePlay's recommenders take the features of the ids in place of the dataset; here a vector may hang on the
        interactions of a query, too.

        Parameters
        ----------
        ids : frame
            With the column of queries or that of items.
        dataset : replay.data.Dataset
            Where they are known from.

        Returns
        -------
        frame, int
            The ids with a column of lists, ``"user_factors"`` or ``"item_factors"``, without those that are not in the
            dataset; and the length of the vectors. Scores are dot products of the vectors (minus their distances for
            Euclidean similarity).

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        TypeError, ValueError
            If the model has no vectors, or an argument is not what it should be.
        """
        self._check_fitted()
        if not isinstance(self.model, PackModel) or not hasattr(self.model, "get_vectors"):
            raise TypeError(f"{type(self.model).__name__} has no vectors: it does not score by them")
        _check_dataset(dataset)
        query, item = dataset.feature_schema.query_id_column, dataset.feature_schema.item_id_column
        column = next((name for name in (query, item) if name in getattr(ids, "columns", ())), None)
        if column is None:
            raise ValueError(f"`ids` must be a frame with the column `{query}` or `{item}`")
        converted = to_rectools(dataset)
        known = (converted.user_id_map if column == query else converted.item_id_map).external_ids
        asked = _read_ids(ids, column, known, "ids")
        rows = match(asked, known)
        vectors = self.model.get_vectors(converted)[0 if column == query else 1]
        found = pd.DataFrame({column: asked[rows >= 0]})
        found["user_factors" if column == query else "item_factors"] = vectors[rows[rows >= 0]].tolist()
        return _like(found, dataset, "array<float>"), vectors.shape[1]

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Save the recommender to a file, which is there as a whole or not at all.

        Parameters
        ----------
        path : path
            Where to. A file that is there already is replaced.
        """
        _check_file(path, "path")
        content = pickle.dumps({"model": self.model.dumps(), "ids": self._ids})
        with replacing(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """
        Load a recommender from a file. Like any pickle, it can run code: load only files that you trust.

        Parameters
        ----------
        path : path
            A file that `save` wrote.

        Returns
        -------
        Self
            The recommender, fitted if it was so.

        Raises
        ------
        ValueError
            If the file holds something else.
        """
        content = pickle.loads(Path(path).read_bytes())
        if not isinstance(content, dict) or set(content) != {"model", "ids"}:
            raise ValueError(
                f"`{path}` was not written by `{cls.__name__}.save`: open a model of RecTools with "
                "`rectools.models.load_model`"
            )
        recommender = cls(load_model(io.BytesIO(content["model"])))
        recommender._ids = content["ids"]
        return recommender

    def _check_fitted(self) -> None:
        if not self.model.is_fitted:
            raise NotFittedError(type(self.model).__name__)

    def _fit(self, converted: Dataset) -> None:
        self.model.fit(converted)
        if not isinstance(self.model, PackModel):
            self._ids = converted.user_id_map.external_ids, converted.item_id_map.external_ids

    def _predict(
        self,
        dataset: ReplayDataset,
        k: int,
        queries: Frame | Iterable[Any] | None,
        items: Frame | Iterable[Any] | None,
        filter_seen_items: bool,
        recs_file_path: str | os.PathLike[str] | None,
        fit: bool,
    ) -> Frame | None:
        _check_dataset(dataset)
        _check_answer(k, recs_file_path)
        if self.model.require_recommend_context:
            raise ValueError(
                f"{type(self.model).__name__} recommends for a situation, and RePlay has no place for it: use "
                "`predict_pairs` with the columns of the context, or the model itself"
            )
        schema = dataset.feature_schema
        converted = to_rectools(dataset)
        if not fit:
            self._check_same_ids(converted)
        user_ids, item_ids = converted.user_id_map.external_ids, converted.item_id_map.external_ids
        if queries is None:
            users = user_ids[: converted.n_hot_users]
        else:
            users = _read_ids(queries, schema.query_id_column, user_ids, "queries")
            if not self.model.recommends_for_cold:
                _refuse_unknown(users, schema.query_id_column, user_ids, "queries")
        whitelist = None if items is None else _read_ids(items, schema.item_id_column, item_ids, "items")
        if whitelist is not None and not isinstance(self.model, PackModel) and (match(whitelist, item_ids) < 0).all():
            raise ValueError(f"None of the `items` is in column `{schema.item_id_column}` of the dataset")
        if fit:
            self._fit(converted)
        recommended = self.model.recommend(
            users,
            converted,
            k,
            filter_viewed=filter_seen_items,
            items_to_recommend=whitelist,
            add_rank_col=False,
            on_unsupported_targets="ignore",
        )
        return _answer(recommended, dataset, recs_file_path)

    def _check_same_ids(self, converted: Dataset) -> None:
        if isinstance(self.model, PackModel):
            return
        name = type(self.model).__name__
        if self._ids is None:
            raise ValueError(
                f"{name} of RecTools was fitted elsewhere, with internal ids that are not known here: fit it by "
                "`ReplayRecommender.fit`"
            )
        found = converted.user_id_map.external_ids, converted.item_id_map.external_ids
        if not all(np.array_equal(*ids) for ids in zip(found, self._ids, strict=True)):
            raise ValueError(
                f"{name} of RecTools serves only the users and items that it was fitted on, and `dataset` has others: "
                "give the dataset of the fit, or fit the model on this one"
            )


# ---------------------------------------------------------------------- from RePlay to RecTools


def to_rectools(dataset: ReplayDataset) -> Dataset:
    """
    Convert a dataset of RePlay to one of RecTools.

    Query and item ids keep their values. The rating becomes the weight, 1 where there is none. The timestamp becomes
    the datetime, one constant date where there is none; numbers count seconds since 1970, or milli-, micro- or
    nanoseconds where they are too large for that; time zones become UTC. Further columns of the interactions are kept.

    Features become sparse ones: CATEGORICAL and CATEGORICAL_LIST categories, NUMERICAL numbers, and NUMERICAL_LIST a
    number for each place, called ``name_0``, ``name_1``, ... A missing value is no value. Queries and items that have
    features alone become warm users and items.

    Parameters
    ----------
    dataset : replay.data.Dataset
        In pandas, polars or Spark.

    Returns
    -------
    rectools.dataset.Dataset
        The same data. Internal ids do not depend on the order of rows.

    Raises
    ------
    TypeError, ValueError
        If it is no dataset of RePlay, has no interactions, or has values that don't fit its `FeatureSchema`.
    """
    _check_dataset(dataset)
    schema = dataset.feature_schema
    interactions = _read_interactions(_to_pandas(dataset.interactions), schema)
    user_ids, user_features = _read_entities(
        interactions[Columns.User], dataset.query_features, schema, schema.query_id_column, "query_features"
    )
    item_ids, item_features = _read_entities(
        interactions[Columns.Item], dataset.item_features, schema, schema.item_id_column, "item_features"
    )
    rows = Interactions.from_raw(interactions, user_ids, item_ids, keep_extra_cols=True)
    return Dataset(user_ids, item_ids, rows, user_features, item_features)


def _read_interactions(frame: pd.DataFrame, schema: FeatureSchema) -> pd.DataFrame:
    users, items = schema.query_id_column, schema.item_id_column
    rating, time = schema.interactions_rating_column, schema.interactions_timestamp_column
    if frame.empty:
        raise ValueError("The `interactions` of the dataset are empty: there is nothing to learn from")
    further = [name for name in frame.columns if name not in (users, items, rating, time)]
    clashes = [name for name in further if name in Columns.Interactions]
    if clashes:
        raise ValueError(
            f"The further columns {clashes} of the `interactions` have names that RecTools uses for other things: "
            "rename them, or give them a feature hint"
        )
    frame = frame.reset_index(drop=True)
    read = {
        Columns.User: _read_id_column(frame, users, "interactions"),
        Columns.Item: _read_id_column(frame, items, "interactions"),
        Columns.Weight: 1.0 if rating is None else _read_ratings(frame[rating]),
        Columns.Datetime: _NO_TIME if time is None else _read_times(frame[time]),
    }
    return pd.DataFrame({**read, **{name: frame[name] for name in further}})


def _read_id_column(frame: pd.DataFrame, column: str, source: str) -> np.ndarray:
    if column not in frame.columns:
        raise ValueError(f"`{source}` lack the column `{column}` of ids, which the FeatureSchema names")
    if frame[column].isna().any():
        raise ValueError(f"Column `{column}` of `{source}` has missing ids: drop these rows")
    return np.asarray(frame[column])


def _read_ratings(column: pd.Series) -> np.ndarray:
    if column.isna().any():
        raise ValueError(f"Column `{column.name}` of `interactions` has missing ratings: fill them or drop these rows")
    return _to_numbers(column, f"The rating `{column.name}` of `interactions`", "leave out its feature hint")


def _read_times(column: pd.Series) -> pd.Series:
    if column.isna().any():
        raise ValueError(f"Column `{column.name}` of `interactions` has missing times: fill them or drop these rows")
    unit: Any = None
    if is_numeric_dtype(column):
        largest = float(column.abs().max())
        unit = next((unit for unit, length in _UNITS.items() if largest * length < 2**63), "ns")
    try:
        return pd.to_datetime(column, unit=unit, utc=True).dt.tz_localize(None)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Column `{column.name}` of `interactions` does not hold times: {error}") from error


def _read_entities(
    active: pd.Series, frame: Frame | None, schema: FeatureSchema, column: str, source: str
) -> tuple[IdMap, SparseFeatures | None]:
    """Read one side: all ids, those with interactions first, and the features."""
    # Sorted: Spark keeps no order of rows, and RecTools' models go by internal ids.
    id_map = IdMap(_sorted_unique(active))
    if frame is None:
        return id_map, None
    table = _to_pandas(frame)
    ids = _read_id_column(table, column, source)
    repeated = pd.unique(ids[pd.Series(ids).duplicated()])
    if len(repeated):
        raise ValueError(f"`{source}` have several rows for the ids {list(repeated[:5])} of `{column}`: keep one each")
    id_map = id_map.add_ids(_sorted_unique(ids))
    table = table.drop(columns=column).set_index(match(ids, id_map.external_ids))
    return id_map, _read_features(table, schema, id_map.size, source)


def _sorted_unique(ids: Any) -> np.ndarray:
    return np.asarray(pd.factorize(np.asarray(ids), sort=True)[1])


def _read_features(table: pd.DataFrame, schema: FeatureSchema, n_entities: int, source: str) -> SparseFeatures | None:
    """Read features from a table by internal id."""
    blocks = [_BLOCKS[schema[name].feature_type](table[name], f"`{name}` of `{source}`") for name in table.columns]
    names = [name for block in blocks for name in block[0]]
    repeated = sorted(feature for (feature, _), n in Counter(names).items() if n > 1)
    if repeated:
        raise ValueError(
            f"The places of a list in `{source}` are called {repeated}, as other columns are: rename these"
        )
    if not names:
        return None
    offsets = np.cumsum([0] + [len(block[0]) for block in blocks])
    rows = np.concatenate([block[1] for block in blocks])
    columns = np.concatenate([block[2] + offset for block, offset in zip(blocks, offsets, strict=False)])
    values = np.concatenate([block[3] for block in blocks]).astype(np.float32)
    # Zeros stay stored: a number that isn't is missing.
    matrix = sparse.csr_matrix((values, (rows, columns)), shape=(n_entities, len(names)))
    return SparseFeatures(matrix, tuple(names))


def _read_categories(column: pd.Series, described: str) -> _Block:
    known = column.dropna()
    if known.map(is_list_like).any():
        raise ValueError(f"The feature {described} is CATEGORICAL, but holds lists: declare it CATEGORICAL_LIST")
    values = np.asarray(known)
    if values.dtype.kind == "f" and (values % 1 == 0).all():
        values = values.astype(np.int64)  # in pandas a gap makes numbers of all integers of a column
    codes, categories = pd.factorize(values, sort=True)
    names = [(str(column.name), category) for category in categories.tolist()]
    return names, known.index.to_numpy(), codes, np.ones(len(known))


def _read_category_lists(column: pd.Series, described: str) -> _Block:
    return _read_categories(_lists(column, described).explode(), described)


def _read_numbers(column: pd.Series, described: str) -> _Block:
    known = column.dropna()
    numbers = _to_numbers(known, f"The NUMERICAL feature {described}", "declare it CATEGORICAL")
    return [(str(column.name), DIRECT_FEATURE_VALUE)], known.index.to_numpy(), np.zeros(len(known), np.int64), numbers


def _read_number_lists(column: pd.Series, described: str) -> _Block:
    lists = _lists(column, described)
    lengths = lists.map(len).unique()
    if len(lengths) > 1:
        raise ValueError(
            f"The lists of the NUMERICAL_LIST feature {described} are of the lengths {sorted(lengths)}: they must be "
            "of one length"
        )
    length = int(lengths[0]) if len(lengths) else 0
    flat = lists.explode() if length else lists
    numbers = _to_numbers(flat, f"The NUMERICAL_LIST feature {described}", "declare it CATEGORICAL_LIST")
    known = ~np.isnan(numbers)
    places = np.tile(np.arange(length), len(lists))
    names = [(f"{column.name}_{place}", DIRECT_FEATURE_VALUE) for place in range(length)]
    return names, flat.index.to_numpy()[known], places[known], numbers[known]


_BLOCKS: dict[FeatureType, Callable[[pd.Series, str], _Block]] = {
    FeatureType.CATEGORICAL: _read_categories,
    FeatureType.CATEGORICAL_LIST: _read_category_lists,
    FeatureType.NUMERICAL: _read_numbers,
    FeatureType.NUMERICAL_LIST: _read_number_lists,
}


def _lists(column: pd.Series, described: str) -> pd.Series:
    known = column.dropna()
    others = known[~known.map(is_list_like).astype(bool)]
    if len(others):
        raise ValueError(
            f"The feature {described} is a list by the FeatureSchema, but has other values, such as {others.iloc[0]!r}"
        )
    return known


def _to_numbers(column: pd.Series, described: str, remedy: str) -> np.ndarray:
    try:
        return column.astype(np.float64).to_numpy()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{described} has values that are not numbers ({error}): convert it, or {remedy}") from error


# ---------------------------------------------------------------------- from RecTools to RePlay


def to_replay(dataset: Dataset) -> ReplayDataset:
    """
    Convert a dataset of RecTools to one of RePlay, in pandas.

    Queries are called ``user_id``, items ``item_id``, the rating ``weight``, the timestamp ``datetime``; further
    columns of the interactions and features keep their names. A category of which some user or item has several values
    is CATEGORICAL_LIST (one with a count of 2 is listed twice, other weights are lost), other categories are
    CATEGORICAL; numbers are NUMERICAL. What a user or item lacks is missing.

    Parameters
    ----------
    dataset : rectools.dataset.Dataset
        With features of any kind.

    Returns
    -------
    replay.data.Dataset
        The same data.

    Raises
    ------
    TypeError, ValueError
        If it is no dataset of RecTools, or has names that one table or `FeatureSchema` can't hold together.
    """
    if not isinstance(dataset, Dataset):
        raise TypeError(f"`dataset` must be a rectools.dataset.Dataset, got {_full_name(dataset)}")
    interactions = dataset.get_raw_interactions()
    further = interactions.columns.drop(list(Columns.Interactions))
    types = {str(name): _guess_type(interactions[name]) for name in further}
    queries = _write_entities(dataset.user_features, dataset.user_id_map, dataset.n_hot_users, Columns.User, types)
    items = _write_entities(dataset.item_features, dataset.item_id_map, dataset.n_hot_items, Columns.Item, types)
    schema = FeatureSchema(
        [
            FeatureInfo(Columns.User, FeatureType.CATEGORICAL, FeatureHint.QUERY_ID),
            FeatureInfo(Columns.Item, FeatureType.CATEGORICAL, FeatureHint.ITEM_ID),
            FeatureInfo(Columns.Weight, FeatureType.NUMERICAL, FeatureHint.RATING),
            FeatureInfo(Columns.Datetime, FeatureType.NUMERICAL, FeatureHint.TIMESTAMP),
            *(FeatureInfo(name, kind) for name, kind in types.items()),
        ]
    )
    return ReplayDataset(schema, interactions, queries, items)


def _guess_type(column: pd.Series) -> FeatureType:
    if is_numeric_dtype(column):
        return FeatureType.NUMERICAL
    known = column.dropna()
    if len(known) and is_list_like(known.iloc[0]):
        numeric = is_numeric_dtype(known.explode().infer_objects())
        return FeatureType.NUMERICAL_LIST if numeric else FeatureType.CATEGORICAL_LIST
    return FeatureType.CATEGORICAL


def _write_entities(
    features: Features | None, id_map: IdMap, n_hot: int, column: str, types: dict[str, FeatureType]
) -> pd.DataFrame | None:
    """Write the features of one side as a table, and note their types."""
    if features is None and id_map.size == n_hot:
        return None
    ids = id_map.external_ids
    table: dict[str, Any] = {column: pd.Series(ids)}
    for name, kind, values in _columns_of(features):
        if name in table or name in Columns.Interactions:
            raise ValueError(f"RePlay can't hold the feature `{name}` beside the column of this name: rename it")
        if types.setdefault(name, kind) is not kind:
            raise ValueError(
                f"RePlay knows one type for a name, but `{name}` is {types[name].name} in one table and {kind.name} in "
                f"that of `{column}`: rename it in one of them"
            )
        table[name] = values
    return pd.DataFrame(table, index=pd.RangeIndex(len(ids)))


def _columns_of(features: Features | None) -> Iterator[tuple[str, FeatureType, pd.Series]]:
    """Give the features one by one: name, type, values by internal id."""
    if features is None:
        return
    if isinstance(features, DenseFeatures):
        for name, numbers in zip(features.names, features.values.T, strict=True):
            yield str(name), FeatureType.NUMERICAL, pd.Series(numbers)
        return
    matrix = features.values.tocsc()
    of_name: dict[Any, list[int]] = {}
    for j, (name, value) in enumerate(features.names):
        if isinstance(value, str) and value == DIRECT_FEATURE_VALUE:
            span = slice(matrix.indptr[j], matrix.indptr[j + 1])
            yield str(name), FeatureType.NUMERICAL, pd.Series(matrix.data[span], matrix.indices[span])
        else:
            of_name.setdefault(name, []).append(j)
    for name, columns in of_name.items():
        entries = matrix[:, columns].tocoo()
        categories = np.empty(len(columns), object)
        categories[:] = [features.names[j][1] for j in columns]
        counts = np.where(entries.data > 0, np.maximum(np.rint(entries.data), 1), 0).astype(np.int64)
        values = pd.Series(np.repeat(categories[entries.col], counts), np.repeat(entries.row, counts))
        if values.index.is_unique:
            yield str(name), FeatureType.CATEGORICAL, values
        else:
            yield str(name), FeatureType.CATEGORICAL_LIST, values.groupby(level=0).agg(list)


# ---------------------------------------------------------------------- checks and frames


def _check_dataset(dataset: Any) -> None:
    if not isinstance(dataset, ReplayDataset):
        raise TypeError(f"`dataset` must be a replay.data.Dataset, got {_full_name(dataset)}")
    for name in ("interactions", "query_features", "item_features"):
        _check_session(getattr(dataset, name), name)


def _full_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _check_session(frame: Frame | None, name: str) -> None:
    """Raise where a frame of Spark has lost its session: what Spark says itself doesn't tell that."""
    context = getattr(getattr(frame, "sparkSession", None), "_sc", None)
    if context is not None and context._jsc is None:
        raise ValueError(f"The Spark session of `{name}` has been stopped: read the data anew in a running session")


def _check_answer(k: int, path: str | os.PathLike[str] | None) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"`k` must be a whole number of at least 1, got {k!r}")
    if path is not None:
        _check_file(path, "recs_file_path")


def _check_file(path: str | os.PathLike[str], parameter: str) -> None:
    if "://" in str(path):
        raise ValueError(f"`{parameter}` must be a local file, got `{path}`")
    if Path(path).is_dir():
        raise ValueError(f"`{parameter}` `{path}` is a folder: name a file")
    if not Path(path).parent.is_dir():
        raise ValueError(f"The folder of `{parameter}` `{path}` doesn't exist: create it first")


def _to_pandas(frame: Frame) -> pd.DataFrame:
    if isinstance(frame, pd.DataFrame):
        return frame
    return frame.toPandas() if hasattr(frame, "toPandas") else frame.to_pandas()


def _read_ids(asked: Any, column: str, known: np.ndarray, parameter: str) -> np.ndarray:
    """Read ids that are asked for, each once, from a frame of any kind or an iterable."""
    if hasattr(asked, "columns"):
        if column not in asked.columns:
            raise ValueError(f"`{parameter}` has no column `{column}`, but {list(asked.columns)}")
        _check_session(asked, parameter)
        ids = np.asarray(_to_pandas(asked[[column]])[column])
    elif isinstance(asked, str | bytes) or not isinstance(asked, Iterable):
        raise TypeError(
            f"`{parameter}` must be a frame with the column `{column}` or an iterable of ids, got {asked!r}"
        )
    else:
        ids = np.asarray(pd.Series(list(asked)))
    if not len(ids):
        raise ValueError(f"`{parameter}` has no ids")
    return _check_ids(np.asarray(pd.unique(ids)), column, known, parameter)


def _check_ids(ids: np.ndarray, column: str, known: np.ndarray, parameter: str) -> np.ndarray:
    if pd.isna(ids).any():
        raise ValueError(f"Column `{column}` of `{parameter}` has missing ids: drop them")
    found, expected = infer_dtype(ids), infer_dtype(known)
    if found != expected and not expected.startswith("mixed"):
        raise TypeError(
            f"Column `{column}` of `{parameter}` holds ids of type {found}, such as {ids[0]!r}, where the dataset has "
            f"{expected}, such as {known[0]!r}: convert them"
        )
    return ids


def _refuse_unknown(ids: np.ndarray, column: str, known: np.ndarray, parameter: str) -> None:
    unknown = pd.unique(ids[match(ids, known) < 0])
    if len(unknown):
        raise ValueError(
            f"Column `{column}` of `{parameter}` has {len(unknown)} ids that are not known, such as "
            f"{unknown[:5].tolist()}: add them to the dataset by a feature or an interaction, or leave them out"
        )


def _read_pairs(pairs: Frame, query: str, item: str) -> pd.DataFrame:
    absent = [name for name in (query, item) if name not in getattr(pairs, "columns", ())]
    if absent:
        raise ValueError(f"`pairs` must be a frame with the columns `{query}` and `{item}`: {absent} are not there")
    _check_session(pairs, "pairs")
    table = _to_pandas(pairs)
    if table.empty:
        raise ValueError("`pairs` has no rows")
    return table


def _answer(recommended: pd.DataFrame, dataset: ReplayDataset, path: str | os.PathLike[str] | None) -> Frame | None:
    """Put recommendations of RecTools into a frame of the dataset's kind and names, or into a file."""
    schema = dataset.feature_schema
    rating = schema.interactions_rating_column or _RATING
    names = [schema.query_id_column, schema.item_id_column, rating]
    table = recommended.set_axis(names, axis=1).reset_index(drop=True)
    if path is None:
        return _like(table, dataset, "float")
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)
    return None


def _like(table: pd.DataFrame, dataset: ReplayDataset, spark_type: str) -> Frame:
    """Make a frame of the dataset's kind, with its types of ids; in Spark the last column is of the given type."""
    frame, ids = dataset.interactions, list(table.columns[:-1])
    if dataset.is_spark:
        types = {**dict(frame.dtypes), table.columns[-1]: spark_type}
        schema = ", ".join(f"`{name}` {types[name]}" for name in table.columns)
        return frame.sparkSession.createDataFrame(table, schema)
    if dataset.is_polars:
        import polars as pl  # comes with RePlay

        return pl.from_pandas(table, schema_overrides={name: frame.schema[name] for name in ids})
    return table.astype(
        {name: frame[name].dtype for name in ids if not isinstance(frame[name].dtype, pd.CategoricalDtype)}
    )
