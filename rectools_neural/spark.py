"""
Batch inference on Spark, for histories that don't fit one machine.

A fitted model is small beside the histories of all users: it is shipped to the workers, and the users come to it, each
with the whole history and features in one row of an Arrow batch. A worker reads a batch as a RecTools dataset and calls
`recommend`, so the answers are those of one machine. The package must be installed where Spark's workers run.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pandas.api.types import infer_dtype
from rectools import Columns
from rectools.dataset import Dataset, DenseFeatures, IdMap, Interactions, SparseFeatures
from rectools.dataset.features import DIRECT_FEATURE_VALUE
from rectools.exceptions import NotFittedError
from scipy import sparse

from .data.batches import FeatureSchema
from .data.features import Features
from .data.reader import DatasetReader, Items, match
from .models.pack import PackModel

try:
    from pyspark import TaskContext
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql import functions as F
    from pyspark.sql import types as T
except ImportError as error:
    raise ImportError("rectools_neural.spark needs pyspark: `pip install rectools-neural[spark]`") from error

_ID_TYPES = {"integer": T.IntegralType, "string": T.StringType}

# Columns of the table that has a row for each user, besides the id: arrays, but for users without any.
_NUMBERS, _FEATURE, _VALUE, _FEATURE_WEIGHT = "numbers", "feature", "value", "feature_weight"


def recommend(
    model: PackModel[Any],
    spark: SparkSession,
    interactions: DataFrame,
    users: DataFrame | Iterable[Any] | None,
    k: int,
    *,
    user_features: DataFrame | None = None,
    filter_viewed: bool = True,
    items_to_recommend: Iterable[Any] | None = None,
    on_unsupported_targets: Literal["raise", "warn", "ignore"] = "raise",
    path: str | os.PathLike[str] | None = None,
) -> DataFrame | None:
    """
    Recommend to users of a Spark table what `model.recommend` would on one machine.

    Memory of a worker is bounded by the model and by the users of an Arrow batch
    (`spark.sql.execution.arrow.maxRecordsPerBatch`) with their histories, whatever the number of users. Rows and
    their order within a partition are the same each time, so a task that Spark runs again gives what it gave before.

    Parameters
    ----------
    model : PackModel
        A fitted model of the pack; one that asks for the context of the recommendation is not supported.
    spark : SparkSession
        Any session but one of Spark Connect.
    interactions : Spark DataFrame
        Columns `user_id`, `item_id` and, optionally, `weight` (1 by default) and `datetime`. They may be newer than the
        fit and hold users and items that it lacked.
    users : Spark DataFrame or iterable or None
        Whom to recommend to: a table with the column `user_id`, a list of ids, or None for all users of the
        interactions.
    k : int
        Recommendations for each user.
    user_features : Spark DataFrame, optional
        Features in the form that the model was fitted with: flat (columns `feature`, `value` and, optionally,
        `weight`), or wide (a column for each dense feature); ids stand in `user_id` or `id`. In a flat table of strings
        a value that is a number is written as `str` writes it. Features of items are those of the fit.
    filter_viewed : bool, default True
        Leave out what a user has interactions with.
    items_to_recommend : iterable, optional
        Whitelist of items that the model was fitted on.
    on_unsupported_targets : {"raise", "warn", "ignore"}, default "raise"
        What to do about users without interactions where the model doesn't serve them. Only for such a model, and
        unless "ignore", they are looked for first, which costs a join.
    path : path, optional
        Folder of Parquet files to write. One that is there already is replaced.

    Returns
    -------
    Spark DataFrame or None
        Columns `user_id` and `item_id` of the types that the interactions have, `score`, `rank`; not computed before
        it is used, and each time that it is. None with a `path`.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    TypeError, ValueError
        If an argument makes no sense, a column is missing or of another type than in the fit, or users are not
        supported. What only the rows can tell (missing ids, unknown features) fails the job of Spark instead.

    Examples
    --------
    >>> from rectools_neural.spark import recommend
    >>> reco = recommend(model, spark, interactions, None, k=10)  # doctest: +SKIP
    """
    _check_session(spark)
    _check_model(model)
    _check_options(k, on_unsupported_targets)
    reader = model._fitted.reader
    _check_interactions(interactions, reader)
    whitelist = None if items_to_recommend is None else _whitelist(items_to_recommend, reader)
    asked = _asked_users(spark, users, interactions, reader)
    features = _features_by_user(user_features, interactions, reader)
    if asked is not None:
        _check_supported(model, asked, interactions, features, on_unsupported_targets)
    table = _rows_by_user(interactions, asked, features, reader)
    job = _Job(k, filter_viewed, whitelist)
    shipped = spark.sparkContext.broadcast(_for_workers(model))
    ids = [T.StructField(column, interactions.schema[column].dataType) for column in Columns.UserItem]
    results = [T.StructField(Columns.Score, T.FloatType()), T.StructField(Columns.Rank, T.LongType())]
    reco = table.mapInArrow(partial(_recommend_batches, shipped=shipped, job=job), T.StructType([*ids, *results]))
    if path is None:
        return reco
    try:
        reco.write.mode("overwrite").parquet(os.fspath(path))
    finally:
        shipped.destroy()
    return None


# ---------------------------------------------------------------------- checks, before any job of Spark


def _check_session(spark: Any) -> None:
    if not isinstance(spark, SparkSession):
        raise TypeError(f"`spark` must be a SparkSession (not one of Spark Connect), got {type(spark).__name__}")
    if spark.sparkContext._jsc is None:
        raise ValueError("The session `spark` has been stopped: start a new one and read the tables with it")


def _check_model(model: Any) -> None:
    if not isinstance(model, PackModel):
        raise TypeError(
            f"`model` must be a model of rectools_neural, got {type(model).__name__}: a worker sees some of the users, "
            "and other models take the internal ids of such a dataset for those of their fit"
        )
    if not model.is_fitted:
        raise NotFittedError(type(model).__name__)
    if model.require_recommend_context:
        raise ValueError(
            f"This {type(model).__name__} goes by the context of a recommendation, which Spark inference has no place "
            "for: fit it without context columns, or recommend on one machine"
        )


def _check_options(k: Any, on_unsupported_targets: str) -> None:
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise ValueError(f"`k` must be a positive integer, got {k!r}")
    if on_unsupported_targets not in ("raise", "warn", "ignore"):
        raise ValueError(
            f'`on_unsupported_targets` must be "raise", "warn" or "ignore", got {on_unsupported_targets!r}'
        )


def _check_columns(frame: Any, columns: Iterable[str], name: str) -> None:
    if not isinstance(frame, DataFrame):
        raise TypeError(
            f"`{name}` must be a Spark DataFrame, got {type(frame).__module__}.{type(frame).__name__}: make it one by "
            "`spark.createDataFrame`"
        )
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        raise ValueError(f"`{name}` lacks the columns {absent}: it has {frame.columns}")


def _check_type(frame: DataFrame, column: str, allowed: tuple[type, ...], name: str, expected: str) -> None:
    found = frame.schema[column].dataType
    if not isinstance(found, allowed):
        raise TypeError(f"Column `{column}` of `{name}` is of the type {found.simpleString()}: {expected}")


def _check_ids(frame: DataFrame, column: str, fitted: np.ndarray, name: str) -> None:
    kind = infer_dtype(fitted)
    if kind not in _ID_TYPES:
        raise TypeError(f"The model was fitted on {kind} ids: Spark inference needs integers or strings")
    expected = f"the model was fitted on ids such as {fitted[0]!r}, cast the column to {kind}"
    _check_type(frame, column, (_ID_TYPES[kind],), name, expected)


def _check_interactions(interactions: Any, reader: DatasetReader) -> None:
    _check_columns(interactions, Columns.UserItem, "interactions")
    _check_ids(interactions, Columns.User, reader.user_ids, "interactions")
    _check_ids(interactions, Columns.Item, reader.item_ids, "interactions")
    if Columns.Weight in interactions.columns:
        _check_type(interactions, Columns.Weight, (T.NumericType,), "interactions", "weights are numbers")
    if Columns.Datetime in interactions.columns:
        allowed = (T.TimestampType, T.TimestampNTZType, T.DateType, T.IntegralType)
        _check_type(interactions, Columns.Datetime, allowed, "interactions", "cast it to timestamp")


def _whitelist(items: Iterable[Any], reader: DatasetReader) -> np.ndarray:
    found = pd.Series(list(items), dtype=object).drop_duplicates().to_numpy()
    unknown = found[match(found, reader.item_ids) < 0]
    if len(unknown):
        raise ValueError(
            f"`items_to_recommend` has {len(unknown)} items that the model was not fitted on, such as "
            f"{list(unknown[:5])}: leave them out, or fit the model on them"
        )
    return found.astype(reader.item_ids.dtype)


def _asked_users(spark: SparkSession, users: Any, interactions: DataFrame, reader: DatasetReader) -> DataFrame | None:
    """One row for each user of `users`, with the type of id that the interactions have; None for all of them."""
    if users is None:
        return None
    dtype = interactions.schema[Columns.User].dataType
    if not isinstance(users, (DataFrame, pd.DataFrame)):
        kind, ids = infer_dtype(reader.user_ids), np.array(list(users), dtype=object)
        found = infer_dtype(ids, skipna=False)
        if len(ids) and found != kind:
            raise TypeError(f"`users` holds {found} ids, but the model was fitted on {kind} ones")
        schema = T.StructType([T.StructField(Columns.User, dtype)])
        # NumPy's integers are none to Spark.
        plain = [user.item() if isinstance(user, np.generic) else user for user in ids]
        users = spark.createDataFrame([(user,) for user in plain], schema)
    _check_columns(users, [Columns.User], "users")
    _check_ids(users, Columns.User, reader.user_ids, "users")
    return users.select(F.col(Columns.User).cast(dtype)).distinct()


def _check_supported(
    model: PackModel[Any], asked: DataFrame, interactions: DataFrame, features: DataFrame | None, behaviour: str
) -> None:
    if model.recommends_for_cold or behaviour == "ignore":
        return
    known = interactions.select(Columns.User)
    if model.recommends_for_warm and features is not None:
        known = known.union(features.select(Columns.User))
    found = [row[0] for row in asked.join(known, Columns.User, "left_anti").limit(5).collect()]
    if not found:
        return
    explanation = (
        f"{type(model).__name__} serves no users without interactions, such as {found}: leave them out of `users`, or "
        'give on_unsupported_targets="ignore"'
    )
    if behaviour == "raise":
        raise ValueError(explanation)
    warnings.warn(explanation, stacklevel=3)


# ---------------------------------------------------------------------- the table with a row for each user


def _rows_by_user(
    interactions: DataFrame, asked: DataFrame | None, features: DataFrame | None, reader: DatasetReader
) -> DataFrame:
    # Sorted by time, so that the order alone tells it to the workers; ties by item, as on one machine.
    order = [column for column in (Columns.Datetime, Columns.Item) if column in interactions.columns]
    weight = F.col(Columns.Weight).cast("double") if Columns.Weight in interactions.columns else F.lit(1.0)
    sent = [Columns.Item, Columns.Weight] if reader.reading.weights else [Columns.Item]
    rows = interactions if asked is None else interactions.join(asked, Columns.User, "left_semi")
    rows = rows.withColumn(Columns.Weight, weight)
    history = F.sort_array(F.collect_list(F.struct(*dict.fromkeys([*order, *sent]))))
    table = rows.groupBy(Columns.User).agg(history.alias("history"))
    table = table.select(Columns.User, *(F.col(f"history.{column}").alias(column) for column in sent))
    if asked is not None:
        table = asked.join(table, Columns.User, "left")
    if features is not None:
        table = table.join(features, Columns.User, "left")
    # Sorted, so that a task that runs again cuts the same batches.
    return table.sortWithinPartitions(Columns.User)


def _features_by_user(features: Any, interactions: DataFrame, reader: DatasetReader) -> DataFrame | None:
    """One row for each user with features."""
    if not reader.reading.features:
        return None
    kind, schema = reader.user_encoder.kind, reader.user_encoder.schema
    if features is None:
        if kind != "none":
            names = ", ".join(map(str, [*schema.fields, *schema.numeric]))
            raise ValueError(f"The model was fitted with features of users ({names}): give them as `user_features`")
        return None
    _check_columns(features, [], "user_features")
    column = Columns.User if Columns.User in features.columns else "id"
    _check_columns(features, [column], "user_features")
    _check_ids(features, column, reader.user_ids, "user_features")
    if kind == "none":
        raise ValueError("The model was fitted without features of users: leave `user_features` out")
    by_user = features.groupBy(F.col(column).cast(interactions.schema[Columns.User].dataType).alias(Columns.User))
    return _wide(features, by_user, column, schema) if kind == "dense" else _flat(features, by_user, schema)


def _wide(features: DataFrame, by_user: Any, id_column: str, schema: FeatureSchema) -> DataFrame:
    found = {column for column in features.columns if column != id_column}
    if found != set(schema.numeric):
        missing, unknown = sorted(set(schema.numeric) - found), sorted(found - set(schema.numeric))
        raise ValueError(
            f"`user_features` differ from the dense features of the fit: missing columns {missing}, unknown {unknown}"
        )
    for name in schema.numeric:
        _check_type(features, name, (T.NumericType,), "user_features", "dense features are numbers")
    numbers = F.array(*(F.col(name).cast("double") for name in schema.numeric))
    return by_user.agg(F.collect_list(numbers).alias(_NUMBERS))


def _flat(features: DataFrame, by_user: Any, schema: FeatureSchema) -> DataFrame:
    _check_columns(features, [_FEATURE, _VALUE], "user_features")
    _check_type(features, _FEATURE, (T.StringType,), "user_features", "it holds the names of the features")
    only_strings = bool(schema.values) and all(isinstance(value, str) for _, value in schema.values)
    allowed = (T.StringType,) if only_strings else (T.StringType, T.NumericType)
    _check_type(features, _VALUE, allowed, "user_features", "cast it to string, as some values of the fit are strings")
    weight = F.lit(1.0)
    if Columns.Weight in features.columns:
        _check_type(features, Columns.Weight, (T.NumericType,), "user_features", "weights are numbers")
        weight = F.col(Columns.Weight).cast("double")
    row = F.struct(_FEATURE, _VALUE, weight.alias(_FEATURE_WEIGHT))
    names = (_FEATURE, _VALUE, _FEATURE_WEIGHT)
    table = by_user.agg(F.sort_array(F.collect_list(row)).alias("features"))
    return table.select(Columns.User, *(F.col(f"features.{name}").alias(name) for name in names))


# ---------------------------------------------------------------------- in a worker


@dataclass(frozen=True)
class _Job:
    """What is asked of the model, for all users."""

    k: int
    filter_viewed: bool
    whitelist: np.ndarray | None


class _StoredItemsReader(DatasetReader):
    """Reader of histories that come without features of items: those of the fit hold."""

    def items(self, dataset: Dataset) -> Items:
        n_others = int((match(dataset.item_id_map.external_ids, self.item_ids) < 0).sum())
        rows = np.concatenate([np.arange(len(self.item_ids)), np.full(n_others, -1)])
        return Items(rows, self.item_features.append(self.item_encoder.missing(n_others)))


def _for_workers(model: PackModel[Any]) -> PackModel[Any]:
    shipped: Any = copy.copy(model)
    reader = _StoredItemsReader(**vars(shipped._fitted.reader))
    shipped._fitted = replace(shipped._fitted, reader=reader)
    return shipped  # type: ignore[no-any-return]


def _recommend_batches(batches: Iterable[pa.RecordBatch], shipped: Any, job: _Job) -> Iterator[pa.RecordBatch]:
    threads = torch.get_num_threads()
    # Spark runs as many tasks as there are cores; the process lives on and serves other jobs.
    torch.set_num_threads(TaskContext.get().cpus())
    try:
        for batch in batches:
            # Spark unpickles a broadcast value once in the life of a worker's process.
            yield _recommend_batch(batch, shipped.value, job)
    finally:
        torch.set_num_threads(threads)


def _recommend_batch(batch: pa.RecordBatch, model: PackModel[Any], job: _Job) -> pa.RecordBatch:
    dataset = _dataset(batch, model._fitted.reader)
    users = _ids(batch[Columns.User], Columns.User)
    # Unsupported users that had to be refused have been: the others are left out.
    reco = model.recommend(users, dataset, job.k, job.filter_viewed, job.whitelist, on_unsupported_targets="ignore")
    types = [batch[Columns.User].type, batch[Columns.Item].type.value_type, pa.float32(), pa.int64()]
    columns = [Columns.User, Columns.Item, Columns.Score, Columns.Rank]
    arrays = [pa.array(reco[column], type=dtype) for column, dtype in zip(columns, types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=columns)


def _dataset(batch: pa.RecordBatch, reader: DatasetReader) -> Dataset:
    """Users of a batch; RecTools puts those with interactions first, then those with features alone."""
    n_items = _lengths(batch[Columns.Item])
    features = next((name for name in (_FEATURE, _NUMBERS) if name in batch.schema.names), None)
    has_features = np.zeros(len(n_items), bool) if features is None else _lengths(batch[features]) > 0
    known = np.concatenate([np.flatnonzero(n_items > 0), np.flatnonzero(has_features & (n_items == 0))])
    user_ids = IdMap(_ids(batch[Columns.User], Columns.User)[known])
    rows = np.full(len(n_items), -1)
    rows[known] = np.arange(len(known))
    items, item_ids = pd.factorize(_ids(batch[Columns.Item].flatten(), Columns.Item))
    weights = _numbers(batch[Columns.Weight].flatten()) if Columns.Weight in batch.schema.names else 1.0
    interactions = pd.DataFrame(
        {
            Columns.User: np.repeat(rows, n_items),
            Columns.Item: items.astype(np.int64),
            Columns.Weight: weights,
            Columns.Datetime: np.arange(len(items)).astype("datetime64[ns]"),
        }
    )
    user_features: Features | None = None
    if features == _NUMBERS:
        user_features = _dense_features(batch, user_ids, rows, reader.user_encoder.schema)
    elif features == _FEATURE:
        user_features = _sparse_features(batch, rows, len(known), reader.user_encoder.schema)
    return Dataset(user_ids, IdMap(item_ids), Interactions(interactions), user_features)


def _dense_features(batch: pa.RecordBatch, user_ids: IdMap, rows: np.ndarray, schema: FeatureSchema) -> DenseFeatures:
    n_rows = _lengths(batch[_NUMBERS])
    wrong = user_ids.external_ids[rows[(rows >= 0) & (n_rows != 1)]]
    if len(wrong):
        raise ValueError(
            f"Wide `user_features` need one row for each user with interactions: {wrong[0]!r} has none or several"
        )
    values = np.empty((user_ids.size, len(schema.numeric)), np.float32)
    values[rows[n_rows == 1]] = _numbers(batch[_NUMBERS].flatten().flatten()).reshape(-1, len(schema.numeric))
    return DenseFeatures(values, schema.numeric)


def _sparse_features(batch: pa.RecordBatch, rows: np.ndarray, n_users: int, schema: FeatureSchema) -> SparseFeatures:
    names, values = (batch[column].flatten().to_pylist() for column in (_FEATURE, _VALUE))
    unknown = sorted({str(name) for name in names} - set(map(str, [*schema.fields, *schema.numeric])))
    if unknown:
        raise ValueError(f"Column `{_FEATURE}` of `user_features` has features that the fit lacked: {unknown}")
    weights = _numbers(batch[_FEATURE_WEIGHT].flatten())
    columns = [*schema.values, *((name, DIRECT_FEATURE_VALUE) for name in schema.numeric)]
    # A table of strings writes numbers, too, as text.
    place = {(str(name), alias): j for j, (name, value) in enumerate(columns) for alias in (str(value), value)}
    direct = set(map(str, schema.numeric))
    keys = [
        (name, DIRECT_FEATURE_VALUE if name in direct else value) for name, value in zip(names, values, strict=True)
    ]
    found = np.array([place.get(key, -1) for key in keys], np.int64)
    is_direct = found >= len(schema.values)
    weights[is_direct] *= pd.to_numeric(pd.Series(values, dtype=object)[is_direct], errors="coerce").to_numpy(float)
    owners = np.repeat(rows, _lengths(batch[_FEATURE]))
    kept = found >= 0  # a value that the fit lacked tells the model nothing
    matrix = sparse.csr_matrix((weights[kept], (owners[kept], found[kept])), shape=(n_users, len(columns)))
    return SparseFeatures.from_iterables(matrix, columns)


def _ids(array: pa.Array, column: str) -> np.ndarray:
    if array.null_count:
        raise ValueError(f"Column `{column}` has missing ids: drop these rows")
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values.astype(np.int64) if values.dtype.kind == "i" else values


def _numbers(array: pa.Array) -> np.ndarray:
    """Float64, NaN where a number is missing; a copy."""
    return np.array(array.to_numpy(zero_copy_only=False), np.float64)


def _lengths(lists: pa.Array) -> np.ndarray:
    """How long each list is, 0 where there is none."""
    lengths: np.ndarray = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)
