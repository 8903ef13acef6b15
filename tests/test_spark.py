"""Inference on Spark gives what `recommend` gives on one machine."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from models.contract import make_model, with_other_id_types
from pandas.testing import assert_frame_equal
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.models import PopularModel

from rectools_neural.registry import MODELS

pytest.importorskip("pyspark", reason="Spark is not installed: pip install rectools-neural[spark]")

from pyspark.sql import functions as F

from benchmarks.spark import busy_worker
from rectools_neural.spark import (
    _for_workers,
    _Job,
    _recommend_batch,
    _recommend_batches,
    _rows_by_user,
    recommend,
)

USERS_A_BATCH = 7  # so that a partition has several
WARM, COLD = "u040", "nobody"
RECO = [Columns.User, Columns.Item, Columns.Score, Columns.Rank]


@pytest.fixture(autouse=True)
def _small_batches(spark: Any) -> Iterator[None]:
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(name)
    spark.conf.set(name, USERS_A_BATCH)
    yield
    spark.conf.set(name, before)


def weighted(frames: Any) -> Any:
    """Weights without ties, so that a model that goes by them has no ties either."""
    weights = np.random.default_rng(0).uniform(0.5, 5, len(frames.interactions))
    return replace(frames, interactions=frames.interactions.assign(**{Columns.Weight: weights}))


@pytest.fixture(scope="module")
def frames(make_frames: Callable[..., Any]) -> Any:
    return weighted(make_frames(n_warm=2))


@pytest.fixture(scope="module")
def dataset(frames: Any) -> Dataset:
    return frames.dataset()


@pytest.fixture(scope="module")
def interactions(spark: Any, frames: Any) -> Any:
    return spark.createDataFrame(frames.interactions)


@pytest.fixture(scope="module")
def user_features(spark: Any, frames: Any) -> Any:
    return spark.createDataFrame(frames.user_features.astype(str))


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> Any:
    return make_model("DSSMModel").fit(dataset)


def collected(reco: Any) -> pd.DataFrame:
    return ordered(reco.toPandas())


def ordered(reco: pd.DataFrame) -> pd.DataFrame:
    return reco.sort_values([Columns.User, Columns.Rank], ignore_index=True)


def assert_same(actual: Any, expected: pd.DataFrame) -> None:
    """Same rows; scores but for the rounding that depends on the shape of a matrix product."""
    assert len(expected)
    assert_frame_equal(collected(actual), ordered(expected), rtol=1e-6, atol=1e-7)


def hot_users(frames: Any) -> list[Any]:
    return sorted(frames.interactions[Columns.User].unique())


class TestSameAsOnOneMachine:
    @pytest.mark.parametrize("name", MODELS)
    def test_every_model(
        self, name: str, spark: Any, frames: Any, dataset: Dataset, interactions: Any, user_features: Any
    ) -> None:
        model = make_model(name).fit(dataset)
        everybody = recommend(model, spark, interactions, None, 5, user_features=user_features)
        assert_same(everybody, model.recommend(hot_users(frames), dataset, 5, filter_viewed=True))
        # With a whitelist, without the filter; a warm and a cold user, who get something where the model serves them.
        asked, items = ["u003", "u012", WARM, COLD], [101, 104, 110, 117, 123]
        options = {"filter_viewed": False, "items_to_recommend": items, "on_unsupported_targets": "ignore"}
        some = recommend(model, spark, interactions, asked, 3, user_features=user_features, **options)
        expected = model.recommend(asked, dataset, 3, **options)
        assert_same(some, expected)
        assert ({WARM, COLD} <= set(expected[Columns.User])) == model.recommends_for_cold

    def test_dense_features(self, spark: Any, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(features="dense", n_warm=2)
        model = make_model("DSSMModel").fit(frames.dataset())
        # The order of the columns doesn't count.
        features = spark.createDataFrame(frames.user_features[["group", "id", "age"]])
        asked = [*hot_users(frames), WARM, COLD]
        actual = recommend(model, spark, spark.createDataFrame(frames.interactions), asked, 5, user_features=features)
        assert_same(actual, model.recommend(asked, frames.dataset(), 5, filter_viewed=True))

    def test_other_types_of_ids(self, spark: Any, frames: Any) -> None:
        frames = with_other_id_types(frames)
        model = make_model("DSSMModel").fit(frames.dataset())
        table = spark.createDataFrame(frames.interactions)
        table = table.withColumn(Columns.User, F.col(Columns.User).cast("int"))
        features = spark.createDataFrame(frames.user_features.astype(str))
        features = features.withColumn("id", F.col("id").cast("long"))
        users = spark.createDataFrame([(3,), (7,), (40,), (3,)], "user_id short")
        actual = recommend(model, spark, table, users, 5, user_features=features)
        assert dict(actual.dtypes) == {"user_id": "int", "item_id": "string", "score": "float", "rank": "bigint"}
        expected = model.recommend([3, 7, 40], frames.dataset(), 5, filter_viewed=True)
        assert_same(actual, expected.astype({Columns.User: "int32"}))

    def test_values_that_are_numbers(self, spark: Any, make_frames: Callable[..., Any]) -> None:
        """A category may be a number: written as such, or as text."""
        frames = make_frames(n_warm=2)
        features = frames.user_features
        values = features["value"].map(
            lambda value: {"chess": 1, "golf": 2, "sailing": 3, "g0": 0, "g1": 1}.get(value, value)
        )
        numbers = features.assign(value=values.astype(float), weight=np.linspace(0.5, 2, len(features)))
        frames = replace(frames, user_features=numbers.assign(value=values.map(lambda v: int(v) if v < 4 else v)))
        model = make_model("DSSMModel").fit(frames.dataset())
        expected = model.recommend([*hot_users(frames), WARM], frames.dataset(), 5, filter_viewed=True)
        table = spark.createDataFrame(frames.interactions)
        for given in (numbers, frames.user_features.assign(value=frames.user_features["value"].map(str))):
            features = spark.createDataFrame(given)
            assert_same(
                recommend(model, spark, table, expected[Columns.User].unique(), 5, user_features=features), expected
            )

    @pytest.mark.parametrize("absent", [Columns.Weight, Columns.Datetime])
    def test_optional_columns(self, absent: str, spark: Any, make_frames: Callable[..., Any]) -> None:
        frames = weighted(make_frames(features=None))
        by_weight, by_time = ("GFCFModel", {"use_weights": True}), ("DSSMModel", {"history_encoder": "gru"})
        name, options = by_weight if absent == Columns.Weight else by_time
        model = make_model(name, **options).fit(frames.dataset())
        constant = 1.0 if absent == Columns.Weight else pd.Timestamp("2024-01-01")
        without = replace(frames, interactions=frames.interactions.assign(**{absent: constant}))
        expected = model.recommend(hot_users(frames), without.dataset(), 5, filter_viewed=True)
        table = spark.createDataFrame(frames.interactions)
        assert_same(recommend(model, spark, table.drop(absent), None, 5), expected)
        # The column counts where it is there.
        actual = recommend(model, spark, table, None, 5)
        assert_same(actual, model.recommend(hot_users(frames), frames.dataset(), 5, filter_viewed=True))
        assert not collected(actual).equals(ordered(expected))

    def test_new_users_and_items(self, spark: Any, make_frames: Callable[..., Any]) -> None:
        """Neither needs a new fit; an item that the model doesn't know says nothing, and makes a user hot."""
        frames = weighted(make_frames(features=None))
        model = make_model("UserKNNModel").fit(frames.dataset())
        new = pd.DataFrame(
            [("new", 101), ("new", 105), ("u003", 999), ("stranger", 999)], columns=list(Columns.UserItem)
        ).assign(weight=1.0, datetime=pd.Timestamp("2024-05-01"))
        grown = replace(frames, interactions=pd.concat([frames.interactions, new], ignore_index=True))
        expected = model.recommend(hot_users(grown), grown.dataset(), 5, filter_viewed=True)
        assert "new" in set(expected[Columns.User])
        assert_same(recommend(model, spark, spark.createDataFrame(grown.interactions), None, 5), expected)

    def test_order_of_rows(self, spark: Any, model: Any, frames: Any, dataset: Dataset) -> None:
        shuffled = frames.shuffled(3)
        table = spark.createDataFrame(shuffled.interactions).repartition(5)
        features = spark.createDataFrame(shuffled.user_features.astype(str)).repartition(3)
        actual = recommend(model, spark, table, None, 5, user_features=features)
        assert_same(actual, model.recommend(hot_users(frames), dataset, 5, filter_viewed=True))

    def test_model_stays_as_it_was(self, spark: Any, frames: Any, dataset: Dataset, interactions: Any) -> None:
        model = make_model("UserKNNModel").fit(dataset)
        before = model.dumps()
        collected(recommend(model, spark, interactions, ["u003"], 5))
        assert model.dumps() == before


class TestJob:
    def test_parquet(
        self, spark: Any, model: Any, dataset: Dataset, interactions: Any, user_features: Any, tmp_path: Path
    ) -> None:
        for user in ("u003", "u004"):  # the second run replaces what the first wrote
            path = tmp_path / "reco"
            assert recommend(model, spark, interactions, [user], 5, user_features=user_features, path=path) is None
            assert_same(spark.read.parquet(str(path)), model.recommend([user], dataset, 5, filter_viewed=True))
            assert (path / "_SUCCESS").exists()
            assert [file.name for file in tmp_path.iterdir()] == ["reco"]

    def test_nobody(self, spark: Any, model: Any, interactions: Any, user_features: Any) -> None:
        reco = recommend(model, spark, interactions, [], 5, user_features=user_features)
        assert reco.columns == RECO
        assert reco.count() == 0

    def test_killed_worker(self, spark: Any, model: Any, frames: Any) -> None:
        """Spark runs the task of a worker that died again: nothing is lost, and nothing is there twice."""
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 1)
        copies = pd.DataFrame({"copy": range(20)})
        many = frames.interactions.merge(copies, how="cross")
        many[Columns.User] += "-" + many.pop("copy").astype(str)
        features = frames.user_features.astype(str).merge(copies, how="cross")
        features["id"] += "-" + features.pop("copy").astype(str)
        dataset = replace(frames, interactions=many, user_features=features).dataset()
        reco = recommend(
            model, spark, spark.createDataFrame(many), None, 5, user_features=spark.createDataFrame(features)
        )
        found: list[pd.DataFrame] = []
        job = threading.Thread(target=lambda: found.append(collected(reco)))
        job.start()
        busy_worker(spark, lambda: not job.is_alive()).kill()
        n_failed = 0
        while job.is_alive():
            n_failed = max(n_failed, failed_tasks(spark))
            time.sleep(0.02)
        assert n_failed == 1
        expected = model.recommend(sorted(many[Columns.User].unique()), dataset, 5, filter_viewed=True)
        assert_frame_equal(found[0], ordered(expected), rtol=1e-6, atol=1e-7)

    def test_threads_of_a_worker(self, spark: Any, make_frames: Callable[..., Any]) -> None:
        """As many as the task has cores; afterwards as they were, for the jobs that the worker serves next."""
        frames = make_frames(features=None)
        model = make_model("DSSMModel").fit(frames.dataset())
        table = _rows_by_user(spark.createDataFrame(frames.interactions), None, None, model._fitted.reader)
        shipped = spark.sparkContext.broadcast(_for_workers(model))

        def probe(batches: Any) -> Iterator[pa.RecordBatch]:
            def count(when: str) -> pa.RecordBatch:
                return pa.RecordBatch.from_pydict({"when": [when], "threads": [torch.get_num_threads()]})

            torch.set_num_threads(3)
            for _ in _recommend_batches(batches, shipped, _Job(5, True, None)):
                yield count("during")
            yield count("after")

        counts = table.mapInArrow(probe, "when string, threads long").distinct().collect()
        assert {tuple(row) for row in counts} == {("during", 1), ("after", 3)}


def failed_tasks(spark: Any) -> int:
    tracker = spark.sparkContext.statusTracker()
    stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
    return sum(stage.numFailedTasks for stage in stages if stage is not None)


class TestRefused:
    """All of this before any job of Spark, but for what is in the rows."""

    @pytest.mark.parametrize("column", Columns.UserItem)
    def test_missing_column(self, column: str, spark: Any, model: Any, interactions: Any, user_features: Any) -> None:
        with pytest.raises(ValueError, match=rf"`interactions` lacks the columns \['{column}'\]"):
            recommend(model, spark, interactions.drop(column), None, 5, user_features=user_features)
        with pytest.raises(ValueError, match="`users` lacks the columns"):
            recommend(model, spark, interactions, interactions.select("weight"), 5, user_features=user_features)

    @pytest.mark.parametrize(
        ("column", "dtype"),
        [(Columns.User, "double"), (Columns.Item, "string"), (Columns.Weight, "string"), (Columns.Datetime, "string")],
    )
    def test_wrong_type(self, column: str, dtype: str, spark: Any, model: Any, interactions: Any) -> None:
        wrong = interactions.withColumn(column, F.lit("1").cast(dtype))
        with pytest.raises(TypeError, match=f"Column `{column}` of `interactions` is of the type {dtype}"):
            recommend(model, spark, wrong, None, 5)

    def test_users(self, spark: Any, model: Any, interactions: Any, user_features: Any) -> None:
        for users, problem in (
            ([1, 2], "`users` holds integer ids, but the model was fitted on string ones"),
            (["u003", None], "`users` holds mixed ids"),
            (spark.range(3).withColumnRenamed("id", "user_id"), "Column `user_id` of `users` is of the type bigint"),
            (pd.DataFrame({"user_id": ["u003"]}), "`users` must be a Spark DataFrame.*`spark.createDataFrame`"),
        ):
            with pytest.raises(TypeError, match=problem):
                recommend(model, spark, interactions, users, 5, user_features=user_features)

    def test_frames_of_pandas(self, spark: Any, model: Any, frames: Any, interactions: Any) -> None:
        with pytest.raises(TypeError, match=r"`interactions` must be a Spark DataFrame.*`spark.createDataFrame`"):
            recommend(model, spark, frames.interactions, None, 5)
        with pytest.raises(TypeError, match=r"`user_features` must be a Spark DataFrame.*`spark.createDataFrame`"):
            recommend(model, spark, interactions, None, 5, user_features=frames.user_features)

    def test_model(self, spark: Any, dataset: Dataset, interactions: Any) -> None:
        with pytest.raises(TypeError, match="must be a model of rectools_neural, got PopularModel"):
            recommend(PopularModel().fit(dataset), spark, interactions, None, 5)
        with pytest.raises(NotFittedError):
            recommend(make_model("DSSMModel"), spark, interactions, None, 5)

    def test_model_of_context(self, spark: Any, frames: Any, interactions: Any) -> None:
        with_hour = frames.interactions.assign(hour=frames.interactions[Columns.Datetime].dt.hour)
        model = make_model("DLRMModel", context_numeric=("hour",), target={"name": "label", "threshold": 2.0})
        model.fit(Dataset.construct(with_hour, keep_extra_cols=True))
        with pytest.raises(ValueError, match="goes by the context"):
            recommend(model, spark, interactions, None, 5)

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"k": 0}, "`k` must be a positive integer, got 0"),
            ({"k": 2.5}, "`k` must be a positive integer, got 2.5"),
            ({"on_unsupported_targets": "drop"}, '"raise", "warn" or "ignore", got \'drop\''),
            ({"items_to_recommend": [101, 999]}, r"`items_to_recommend` has 1 items .*\[999\]"),
            ({"user_features": None}, r"fitted with features of users \(group, hobby, age\)"),
        ],
    )
    def test_options(
        self, options: Any, problem: str, spark: Any, model: Any, interactions: Any, user_features: Any
    ) -> None:
        given = {"users": None, "k": 5, "user_features": user_features, **options}
        with pytest.raises(ValueError, match=problem):
            recommend(model, spark, interactions, **given)

    def test_session(self, spark: Any, model: Any, interactions: Any) -> None:
        with pytest.raises(TypeError, match=r"`spark` must be a SparkSession .*got str"):
            recommend(model, "local", interactions, None, 5)

    def test_stopped_session(self, dataset: Dataset) -> None:
        """In a process of its own: a session that stops takes all others with it."""
        code = """
            import sys
            sys.path[:0] = ["tests"]
            from pyspark.sql import SparkSession
            from rectools_neural.spark import recommend, _check_session
            spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
            _check_session(spark)
            spark.stop()
            try:
                recommend(None, spark, None, None, 5)
            except ValueError as error:
                print(error)
        """
        assert "has been stopped: start a new one" in run_python(code)

    def test_features(self, spark: Any, model: Any, frames: Any, interactions: Any, user_features: Any) -> None:
        plain = make_model("DSSMModel").fit(Dataset.construct(frames.interactions))
        for fitted, features, error, problem in (
            (plain, user_features, ValueError, "fitted without features of users"),
            (model, user_features.drop("id"), ValueError, "`user_features` lacks the columns"),
            (model, user_features.drop("value"), ValueError, r"lacks the columns \['value'\]"),
            (model, user_features.withColumn("value", F.lit(1.0)), TypeError, "Column `value` of `user_features`"),
        ):
            with pytest.raises(error, match=problem):
                recommend(fitted, spark, interactions, None, 5, user_features=features)

    def test_dense_features(self, spark: Any, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(features="dense")
        model = make_model("DSSMModel").fit(frames.dataset())
        table = spark.createDataFrame(frames.interactions)
        features = spark.createDataFrame(frames.user_features)
        with pytest.raises(ValueError, match=r"missing columns \['age'\], unknown \['years'\]"):
            recommend(model, spark, table, None, 5, user_features=features.withColumnRenamed("age", "years"))

    def test_unknown_features(self, model: Any) -> None:
        """Only the rows tell: in a worker, which makes the job fail."""
        columns = {Columns.User: ["u003"], Columns.Item: [[101]], "feature": [["height"]], "value": [["180"]]}
        batch = pa.RecordBatch.from_pydict({**columns, "feature_weight": [[1.0]]})
        with pytest.raises(ValueError, match=r"`feature` of `user_features` .* that the fit lacked: \['height'\]"):
            _recommend_batch(batch, model, _Job(5, True, None))

    @pytest.mark.parametrize("column", Columns.UserItem)
    def test_missing_ids(self, column: str, model: Any) -> None:
        whole = {Columns.User: ["u003", "u004"], Columns.Item: [[101], [102, 103]]}
        gap: dict[str, Any] = {Columns.User: ["u003", None], Columns.Item: [[101], [102, None]]}
        with pytest.raises(ValueError, match=f"Column `{column}` has missing ids"):
            _recommend_batch(pa.RecordBatch.from_pydict({**whole, column: gap[column]}), model, _Job(5, True, None))

    @pytest.mark.parametrize("numbers", [None, [[30.0, 1.0], [31.0, 1.0]]])
    def test_dense_features_of_each_user(self, numbers: Any, make_frames: Callable[..., Any]) -> None:
        model = make_model("DSSMModel").fit(make_frames(features="dense").dataset())
        columns = {
            Columns.User: ["u003", "u007"],
            Columns.Item: [[101], [102, 103]],
            "numbers": [[[30.0, 1.0]], numbers],
        }
        with pytest.raises(ValueError, match="'u007' has none or several"):
            _recommend_batch(pa.RecordBatch.from_pydict(columns), model, _Job(5, True, None))

    def test_users_that_the_model_does_not_serve(
        self, spark: Any, frames: Any, dataset: Dataset, interactions: Any
    ) -> None:
        model = make_model("UserKNNModel").fit(dataset)
        problem = r"serves no users without interactions, such as \['nobody'\]"
        with pytest.raises(ValueError, match=problem):
            recommend(model, spark, interactions, ["u003", COLD], 5)
        with pytest.warns(UserWarning, match=problem):
            actual = recommend(model, spark, interactions, ["u003", COLD], 5, on_unsupported_targets="warn")
        assert_same(actual, model.recommend(["u003"], dataset, 5, filter_viewed=True))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recommend(model, spark, interactions, ["u003", COLD], 5, on_unsupported_targets="ignore")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return done.stdout


def test_without_pyspark() -> None:
    """Nothing but this module needs it."""
    code = """
        import sys
        sys.modules["pyspark"] = None
        import rectools_neural
        for name in rectools_neural.__all__:
            getattr(rectools_neural, name)
        try:
            import rectools_neural.spark
        except ImportError as error:
            print(error)
    """
    assert "pip install rectools-neural[spark]" in run_python(code)
