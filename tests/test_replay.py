"""RePlay: the recommender and the conversions of datasets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import rectools.metrics
import rectools.models
from models.contract import make_model
from pandas.testing import assert_frame_equal
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.models import EASEModel, PopularModel
from replay.data import Dataset as ReplayDataset
from replay.data import FeatureHint, FeatureInfo, FeatureSchema, FeatureType
from replay.metrics import NDCG, Experiment

from rectools_neural import DLRMModel, DSSMModel, GFCFModel, UserKNNModel
from rectools_neural.registry import MODELS
from rectools_neural.replay import ReplayRecommender, to_rectools, to_replay

QUERY, ITEM, RATING = "customer", "sku", "stars"
KINDS = ["pandas", "polars", "spark"]

SCHEMA = {
    QUERY: (FeatureType.CATEGORICAL, FeatureHint.QUERY_ID),
    ITEM: (FeatureType.CATEGORICAL, FeatureHint.ITEM_ID),
    RATING: (FeatureType.NUMERICAL, FeatureHint.RATING),
    "time": (FeatureType.NUMERICAL, FeatureHint.TIMESTAMP),
    "device": (FeatureType.CATEGORICAL, None),
    "hour": (FeatureType.NUMERICAL, None),
    "group": (FeatureType.CATEGORICAL, None),
    "hobbies": (FeatureType.CATEGORICAL_LIST, None),
    "age": (FeatureType.NUMERICAL, None),
    "taste": (FeatureType.NUMERICAL_LIST, None),
    "genre": (FeatureType.CATEGORICAL, None),
    "price": (FeatureType.NUMERICAL, None),
}


@dataclass(frozen=True)
class Tables:
    """What a dataset of RePlay is made of, in pandas."""

    interactions: pd.DataFrame
    queries: pd.DataFrame | None
    items: pd.DataFrame | None

    def dataset(self, convert: Callable[[pd.DataFrame], Any] = lambda table: table, **types: Any) -> ReplayDataset:
        """Make the dataset from converted tables, some columns of which are of other types than usually."""
        tables = [self.interactions, self.queries, self.items]
        found = {name for table in tables if table is not None for name in table.columns}
        infos = {**SCHEMA, **{name: (kind, None) for name, kind in types.items()}}
        schema = FeatureSchema([FeatureInfo(name, *info) for name, info in infos.items() if name in found])
        return ReplayDataset(schema, *(None if table is None else convert(table) for table in tables))

    def shuffled(self) -> Tables:
        return Tables(*(table.sample(frac=1, random_state=1) for table in vars(self).values()))

    def with_queries(self, **columns: Any) -> Tables:
        assert self.queries is not None
        return replace(self, queries=self.queries.assign(**columns))

    def with_interactions(self, **columns: Any) -> Tables:
        return replace(self, interactions=self.interactions.assign(**columns))


@pytest.fixture(scope="module")
def tables() -> Tables:
    """Thirty customers of two groups; the last two customers and items have features and no interactions."""
    rng = np.random.default_rng(0)
    n_queries, n_items = 30, 20
    rows = []
    for query in range(n_queries):
        own = np.arange(query % 2, n_items, 2)
        for item in rng.choice(own, 6, replace=False):
            rows.append((f"c{query:02}", 100 + item))
    interactions = pd.DataFrame(rows, columns=[QUERY, ITEM])
    n = len(interactions)
    interactions[RATING] = rng.uniform(1, 5, n)
    interactions["time"] = 1_700_000_000 + rng.permutation(n) * 60
    interactions["device"] = rng.choice(["phone", "desk"], n)
    interactions["hour"] = rng.integers(0, 24, n)
    who, what = np.arange(n_queries + 2), np.arange(n_items + 2)
    ages = np.where(who % 5 == 0, np.nan, who % 4 * 10.0)
    queries = pd.DataFrame({QUERY: [f"c{query:02}" for query in who], "group": [f"g{query % 2}" for query in who]})
    queries.loc[3, "group"] = None
    queries["hobbies"] = [None if query % 7 == 6 else ["chess", "golf", "sailing"][: query % 4] for query in who]
    queries["age"] = ages
    queries["taste"] = [None if query == 4 else [query / 8, 0.0] for query in who]
    items = pd.DataFrame({ITEM: 100 + what, "genre": what % 2 + 1, "price": what % 3 * 1.5})
    return Tables(interactions, queries, items)


@pytest.fixture(scope="module")
def as_kind(request: pytest.FixtureRequest) -> Callable[[pd.DataFrame, str], Any]:
    def convert(table: pd.DataFrame, kind: str) -> Any:
        if kind == "polars":
            return pl.from_pandas(table)
        if kind == "spark":
            return request.getfixturevalue("spark").createDataFrame(table)
        return table

    return convert


@pytest.fixture(scope="module")
def in_kind(tables: Tables, as_kind: Callable[[pd.DataFrame, str], Any]) -> Callable[[str], ReplayDataset]:
    """Give the dataset in frames of a kind, made once."""
    made: dict[str, ReplayDataset] = {}

    def get(kind: str) -> ReplayDataset:
        if kind not in made:
            made[kind] = tables.dataset(lambda table: as_kind(table, kind))
        return made[kind]

    return get


@pytest.fixture(scope="module", params=KINDS)
def dataset(request: pytest.FixtureRequest, in_kind: Callable[[str], ReplayDataset]) -> ReplayDataset:
    return in_kind(request.param)


@pytest.fixture(scope="module")
def of_pandas(in_kind: Callable[[str], ReplayDataset]) -> ReplayDataset:
    return in_kind("pandas")


@pytest.fixture(scope="module")
def recommender(of_pandas: ReplayDataset) -> ReplayRecommender:
    return ReplayRecommender(make_model("DSSMModel")).fit(of_pandas)


def to_pandas(frame: Any) -> pd.DataFrame:
    if isinstance(frame, pd.DataFrame):
        return frame
    return frame.toPandas() if hasattr(frame, "toPandas") else frame.to_pandas()


def by_rectools(model: Any, dataset: Dataset, k: int = 5, users: Any = None, **options: Any) -> pd.DataFrame:
    """What RecTools recommends to the users with interactions, under the names of RePlay."""
    users = dataset.get_raw_interactions()[Columns.User].unique() if users is None else users
    reco = model.recommend(users, dataset, k, **{"filter_viewed": True, "add_rank_col": False, **options})
    return reco.set_axis([QUERY, ITEM, RATING], axis=1)


def assert_same(actual: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Same rankings, whatever the order of the queries."""
    actual, expected = (reco.sort_values(QUERY, kind="stable").reset_index(drop=True) for reco in (actual, expected))
    assert_frame_equal(actual, expected, rtol=1e-4, atol=1e-5)


class TestRecommendations:
    @pytest.fixture(scope="class", params=MODELS)
    def model_and_expected(self, request: pytest.FixtureRequest, tables: Tables) -> tuple[str, pd.DataFrame]:
        """Name of a model, and what it recommends where RecTools fits it on the same rows in another order."""
        dataset = to_rectools(tables.shuffled().dataset())
        return request.param, by_rectools(make_model(request.param).fit(dataset), dataset)

    @pytest.mark.parametrize("kind", KINDS)
    def test_all_frames_and_rectools_agree(
        self, kind: str, model_and_expected: tuple[str, pd.DataFrame], in_kind: Callable[[str], ReplayDataset]
    ) -> None:
        name, expected = model_and_expected
        recommended = ReplayRecommender(make_model(name)).fit_predict(in_kind(kind), 5)
        assert_same(to_pandas(recommended), expected)

    def test_frame(self, tables: Tables, dataset: ReplayDataset, recommender: ReplayRecommender) -> None:
        answer = recommender.predict(dataset, 3)
        assert type(answer) is type(dataset.interactions)
        reco = to_pandas(answer)
        assert reco.columns.tolist() == [QUERY, ITEM, RATING]
        assert set(reco[QUERY]) == set(tables.interactions[QUERY])
        runs = (reco[QUERY] != reco[QUERY].shift()).sum()
        assert runs == reco[QUERY].nunique()  # each query stands in one place
        for _, of_query in reco.groupby(QUERY):
            assert len(of_query) == 3
            assert of_query[RATING].is_monotonic_decreasing
        types = recommender.predict(dataset, 3)[[QUERY, ITEM]].dtypes
        assert list(types) == list(dataset.interactions[[QUERY, ITEM]].dtypes)

    def test_seen_items(self, tables: Tables, dataset: ReplayDataset, recommender: ReplayRecommender) -> None:
        seen = pd.MultiIndex.from_frame(tables.interactions[[QUERY, ITEM]])
        new, every = (
            to_pandas(recommender.predict(dataset, 20, filter_seen_items=filtered)) for filtered in (True, False)
        )
        assert not pd.MultiIndex.from_frame(new[[QUERY, ITEM]]).isin(seen).any()
        assert pd.MultiIndex.from_frame(every[[QUERY, ITEM]]).isin(seen).sum() == len(seen)

    @pytest.mark.parametrize("form", ["list", "array", "generator", "series", *KINDS])
    def test_queries_and_items(
        self, form: str, of_pandas: ReplayDataset, recommender: ReplayRecommender, as_kind: Callable[..., Any]
    ) -> None:
        """Ids in any form; the items may be warm, which are not recommended unless asked for."""

        def given(column: str, ids: list[Any]) -> Any:
            if form in KINDS:
                return as_kind(pd.DataFrame({column: ids, "further": 1.0}), form)
            forms = {"array": np.array, "generator": iter, "series": pl.Series, "list": list}
            return forms[form](ids)

        queries, items = ["c05", "c02", "c05"], [121, 103, 104, 999]
        reco = recommender.predict(of_pandas, 9, given(QUERY, queries), given(ITEM, items), filter_seen_items=False)
        expected = by_rectools(
            recommender.model, to_rectools(of_pandas), 9, ["c05", "c02"], items_to_recommend=items, filter_viewed=False
        )
        assert_frame_equal(reco, expected)
        assert set(reco[ITEM]) == {103, 104, 121}

    def test_warm_and_cold_queries(self, dataset: ReplayDataset, recommender: ReplayRecommender) -> None:
        """Queries with features alone, and unknown ones, get what the model has for them, or nothing."""
        reco = to_pandas(recommender.predict(dataset, 4, queries=["c31", "c01", "nobody"]))
        assert reco.groupby(QUERY).size().to_dict() == {"c01": 4, "c31": 4, "nobody": 4}
        neighbours = ReplayRecommender(UserKNNModel()).fit(dataset)
        reco = to_pandas(neighbours.predict(dataset, 4, queries=["c31", "c01"]))
        assert set(reco[QUERY]) == {"c01"}
        assert to_pandas(neighbours.predict(dataset, 4, queries=["c31"])).empty

    def test_new_dataset(self, tables: Tables, recommender: ReplayRecommender) -> None:
        """A model of the pack serves a dataset with other queries, of another kind."""
        new = tables.interactions.query(f"{QUERY} < 'c03'").assign(**{QUERY: lambda table: "n" + table[QUERY]})
        assert tables.queries is not None
        queries = tables.queries.head(3).assign(**{QUERY: lambda table: "n" + table[QUERY]})
        dataset = Tables(new, queries, tables.items).dataset(pl.from_pandas)
        assert set(recommender.predict(dataset, 3)[QUERY]) == {"nc00", "nc01", "nc02"}

    def test_encoded_ids_without_rating_time_and_features(self, tables: Tables) -> None:
        encoded = tables.interactions[[QUERY, ITEM]].apply(lambda column: pd.factorize(column)[0]).astype(np.int32)
        dataset = Tables(encoded, None, None).dataset()
        reco = ReplayRecommender({"cls": "GFCFModel", "n_factors": 3}).fit_predict(dataset, 2)
        assert reco.columns.tolist() == [QUERY, ITEM, "rating"]
        assert (reco[[QUERY, ITEM]].dtypes == np.int32).all()
        raw = to_rectools(dataset).get_raw_interactions()
        assert (raw[Columns.Weight] == 1).all()
        assert raw[Columns.Datetime].nunique() == 1

    @pytest.mark.parametrize("dtype", ["string", "category"])
    def test_types_of_ids(self, tables: Tables, dtype: str) -> None:
        typed = tables.with_interactions(**{QUERY: tables.interactions[QUERY].astype(dtype)})
        reco = ReplayRecommender(make_model("UserKNNModel")).fit_predict(replace(typed, queries=None).dataset(), 3)
        plain = ReplayRecommender(make_model("UserKNNModel")).fit_predict(replace(tables, queries=None).dataset(), 3)
        assert_frame_equal(reco.astype({QUERY: object}), plain)

    def test_file(self, dataset: ReplayDataset, recommender: ReplayRecommender, tmp_path: Path, spark: Any) -> None:
        path = tmp_path / "recs.parquet"
        path.write_text("what was there")
        assert recommender.predict(dataset, 3, recs_file_path=str(path)) is None
        expected = to_pandas(recommender.predict(dataset, 3))
        for read in (pd.read_parquet(path), spark.read.parquet(str(path)).toPandas()):
            assert_same(read, expected)
        assert list(tmp_path.iterdir()) == [path]

    def test_metrics_of_replay(self, tables: Tables) -> None:
        """The frame goes into RePlay's metrics as it is, and NDCG is that of RecTools with the ideal of the user."""
        is_test = tables.interactions.groupby(QUERY)["time"].rank(ascending=False) <= 2
        train, test = tables.interactions[~is_test], tables.interactions[is_test]
        reco = ReplayRecommender(make_model("DSSMModel", "good")).fit_predict(Tables(train, None, None).dataset(), 5)
        experiment = Experiment([NDCG(5)], test, train, query_column=QUERY, item_column=ITEM, rating_column=RATING)
        experiment.add_result("two towers", reco)
        ranked = reco.set_axis([Columns.User, Columns.Item, Columns.Score], axis=1)
        ranked[Columns.Rank] = ranked.groupby(Columns.User).cumcount() + 1
        truth = test.rename(columns={QUERY: Columns.User, ITEM: Columns.Item})
        expected = rectools.metrics.NDCG(5, divide_by_achievable=True).calc(ranked, truth)
        assert experiment.results.loc["two towers", "NDCG@5"] == pytest.approx(expected)
        assert expected > 0.1


class TestPairs:
    @pytest.mark.parametrize("kind", KINDS)
    def test_scores_are_those_of_the_ranking(
        self, kind: str, dataset: ReplayDataset, recommender: ReplayRecommender, as_kind: Callable[..., Any]
    ) -> None:
        reco = to_pandas(recommender.predict(dataset, 4))
        pairs = reco[[QUERY, ITEM]].sample(frac=1, random_state=0)
        scored = recommender.predict_pairs(as_kind(pairs, kind), dataset)
        assert type(scored) is type(dataset.interactions)
        expected = pairs.merge(reco, on=[QUERY, ITEM])
        assert_frame_equal(to_pandas(scored), expected, rtol=1e-4, atol=1e-5)

    def test_best_of_each_query(self, dataset: ReplayDataset, recommender: ReplayRecommender, tmp_path: Path) -> None:
        reco = to_pandas(recommender.predict(dataset, 4))
        pairs, path = reco[[QUERY, ITEM]].sample(frac=1, random_state=0), tmp_path / "pairs.parquet"
        assert recommender.predict_pairs(pairs, dataset, str(path), 2) is None
        assert_same(pd.read_parquet(path), to_pandas(recommender.predict(dataset, 2)))

    def test_context(self, tables: Tables, of_pandas: ReplayDataset) -> None:
        """Further columns of the interactions reach a model that goes by context, and so do those of the pairs."""
        model = DLRMModel(context_numeric=("hour",), context_categorical=("device",), epochs=2, top_hidden=(8,))
        recommender = ReplayRecommender(model).fit(of_pandas)
        pairs = tables.interactions.drop(columns=RATING)
        scored = recommender.predict_pairs(pairs, of_pandas)
        assert scored.columns.tolist() == [QUERY, ITEM, RATING]
        changed = recommender.predict_pairs(pairs.assign(hour=23 - pairs["hour"]), of_pandas)
        assert (scored[RATING] != changed[RATING]).mean() > 0.9
        with pytest.raises(ValueError, match=r"situation.*predict_pairs"):
            recommender.predict(of_pandas, 3)

    def test_bad_pairs(self, tables: Tables, of_pandas: ReplayDataset, recommender: ReplayRecommender) -> None:
        pairs = tables.interactions[[QUERY, ITEM]].head(3)
        with pytest.raises(ValueError, match="`dataset` is needed"):
            recommender.predict_pairs(pairs)
        with pytest.raises(ValueError, match=rf"columns `{QUERY}` and `{ITEM}`: \['{ITEM}'\]"):
            recommender.predict_pairs(pairs[[QUERY]], of_pandas)
        with pytest.raises(ValueError, match=rf"`{QUERY}` of `pairs` has 1 ids that are not known.*'x'"):
            recommender.predict_pairs(pairs.replace("c00", "x"), of_pandas)
        with pytest.raises(ValueError, match=rf"`{ITEM}` of `pairs` has 3 ids that are not known.*-"):
            recommender.predict_pairs(pairs.assign(**{ITEM: -pairs[ITEM]}), of_pandas)
        with pytest.raises(TypeError, match=rf"`{ITEM}` of `pairs` holds ids of type string.*integer"):
            recommender.predict_pairs(pairs.astype(str), of_pandas)
        with pytest.raises(ValueError, match="no rows"):
            recommender.predict_pairs(pairs.head(0), of_pandas)
        with pytest.raises(ValueError, match="`k`"):
            recommender.predict_pairs(pairs, of_pandas, k=0)
        with pytest.raises(TypeError, match="EASEModel of RecTools"):
            ReplayRecommender(EASEModel()).fit(of_pandas).predict_pairs(pairs, of_pandas)


class TestVectors:
    @pytest.mark.parametrize("kind", KINDS)
    def test_products_are_the_scores(
        self, kind: str, dataset: ReplayDataset, recommender: ReplayRecommender, as_kind: Callable[..., Any]
    ) -> None:
        reco = to_pandas(recommender.predict(dataset, 4))
        asked = pd.DataFrame({QUERY: ["nobody", *reco[QUERY].unique()]})
        queries, rank = recommender.get_features(as_kind(asked, kind), dataset)
        items, item_rank = recommender.get_features(as_kind(reco[[ITEM]], kind), dataset)
        assert type(queries) is type(items) is type(dataset.interactions)
        queries, items = to_pandas(queries), to_pandas(items)
        assert queries.columns.tolist() == [QUERY, "user_factors"]
        assert items.columns.tolist() == [ITEM, "item_factors"]
        assert queries[QUERY].tolist() == asked[QUERY].tolist()[1:]  # as in RePlay, unknown ones are left out
        pairs = reco.merge(queries).merge(items)
        left, right = (np.stack(pairs[f"{side}_factors"].to_numpy()) for side in ("user", "item"))
        assert left.shape[1] == rank == item_rank
        np.testing.assert_allclose((left * right).sum(1), pairs[RATING], rtol=1e-4, atol=1e-5)

    def test_no_vectors(self, of_pandas: ReplayDataset, recommender: ReplayRecommender) -> None:
        ids = pd.DataFrame({QUERY: ["c00"]})
        with pytest.raises(TypeError, match="GFCFModel has no vectors"):
            ReplayRecommender(GFCFModel(n_factors=2)).fit(of_pandas).get_features(ids, of_pandas)
        for others in (ids.add_suffix("_"), ["c00"]):
            with pytest.raises(ValueError, match=f"`{QUERY}` or `{ITEM}`"):
                recommender.get_features(others, of_pandas)


class TestModels:
    def test_config(self, of_pandas: ReplayDataset) -> None:
        recommender = ReplayRecommender({"cls": "DSSMModel", "epochs": 1, "n_factors": 4})
        assert isinstance(recommender.model, DSSMModel)
        assert repr(recommender) == "ReplayRecommender(DSSMModel(epochs=1, n_factors=4))"
        assert repr(ReplayRecommender({"cls": "EASEModel"})) == "ReplayRecommender(EASEModel)"
        assert recommender.fit(of_pandas) is recommender
        with pytest.raises(TypeError, match=r"`model` must be a model.*got str"):
            ReplayRecommender("DSSMModel")  # type: ignore[arg-type]

    def test_rectools_models(self, tables: Tables, dataset: ReplayDataset) -> None:
        """Models that go by internal ids serve the dataset of their fit, in any order of rows, and no other."""
        converted = to_rectools(dataset)
        expected = by_rectools(EASEModel().fit(converted), converted)
        recommender = ReplayRecommender(EASEModel()).fit(dataset)
        shuffled = replace(tables, interactions=tables.interactions.sample(frac=1, random_state=3)).dataset()
        assert_same(recommender.predict(shuffled, 5), expected)
        fewer = replace(tables, interactions=tables.interactions.query(f"{QUERY} > 'c04'"), queries=None).dataset()
        with pytest.raises(ValueError, match="EASEModel of RecTools serves only the users and items"):
            recommender.predict(fewer, 5)
        with pytest.raises(ValueError, match="fitted elsewhere"):
            ReplayRecommender(EASEModel().fit(converted)).predict(dataset, 5)

    @pytest.mark.parametrize("model", [DSSMModel(epochs=1, n_factors=4), EASEModel(), PopularModel()])
    def test_save_and_load(self, model: Any, of_pandas: ReplayDataset, tmp_path: Path) -> None:
        recommender, path = ReplayRecommender(model).fit(of_pandas), tmp_path / "model.pkl"
        recommender.save(path)
        recommender.save(str(path))
        assert list(tmp_path.iterdir()) == [path]
        loaded = ReplayRecommender.load(str(path))
        assert_frame_equal(loaded.predict(of_pandas, 5), recommender.predict(of_pandas, 5))
        assert repr(loaded) == repr(recommender)

    def test_load_something_else(self, tmp_path: Path) -> None:
        EASEModel().save(tmp_path / "ease.pkl")
        with pytest.raises(ValueError, match=r"ease.pkl` was not written by `ReplayRecommender.save`"):
            ReplayRecommender.load(tmp_path / "ease.pkl")

    def test_not_fitted(self, of_pandas: ReplayDataset) -> None:
        recommender, ids = ReplayRecommender(DSSMModel()), pd.DataFrame({QUERY: ["c00"], ITEM: [100]})
        for ask in (
            lambda: recommender.predict(of_pandas, 3),
            lambda: recommender.predict_pairs(ids, of_pandas),
            lambda: recommender.get_features(ids, of_pandas),
        ):
            with pytest.raises(NotFittedError, match="DSSMModel"):
                ask()


class TestBadInput:
    @pytest.mark.parametrize("k", [0, -1, 2.5, True, None])
    def test_k(self, k: Any, of_pandas: ReplayDataset, recommender: ReplayRecommender) -> None:
        with pytest.raises(ValueError, match="`k` must be a whole number of at least 1"):
            recommender.predict(of_pandas, k)

    def test_not_a_dataset_of_replay(self, of_pandas: ReplayDataset, recommender: ReplayRecommender) -> None:
        for other, name in ((to_rectools(of_pandas), "rectools.dataset.dataset.Dataset"), (None, "NoneType")):
            for ask in (to_rectools, recommender.fit, lambda data: recommender.predict(data, 3)):
                with pytest.raises(TypeError, match=rf"replay.data.Dataset, got .*{name}"):
                    ask(other)
        with pytest.raises(TypeError, match=r"rectools.dataset.Dataset, got replay"):
            to_replay(of_pandas)

    @pytest.mark.parametrize(
        ("parameter", "value", "error", "message"),
        [
            ("queries", ["c00", "x", "y"], ValueError, rf"`{QUERY}` of `queries` has 2 ids .*\['x', 'y'\]"),
            (
                "queries",
                [1, 2],
                TypeError,
                rf"`{QUERY}` of `queries` holds ids of type integer.* string, such as 'c00'",
            ),
            ("queries", ["c00", None], ValueError, rf"`{QUERY}` of `queries` has missing ids"),
            ("queries", pd.DataFrame({"user": ["c00"]}), ValueError, rf"`queries` has no column `{QUERY}`.*user"),
            ("queries", [], ValueError, "`queries` has no ids"),
            ("queries", "c00", TypeError, rf"`queries` must be a frame with the column `{QUERY}` or an iterable"),
            ("items", ["100"], TypeError, rf"`{ITEM}` of `items` holds ids of type string.* integer, such as 100"),
            ("items", pl.DataFrame({ITEM: [None, 100]}), ValueError, rf"`{ITEM}` of `items` has missing ids"),
            ("items", 100, TypeError, rf"`items` must be a frame with the column `{ITEM}` or an iterable"),
            ("recs_file_path", "hdfs://a/b", ValueError, "local file"),
            ("recs_file_path", ".", ValueError, "is a folder"),
            ("recs_file_path", "nowhere/recs.parquet", ValueError, "doesn't exist"),
        ],
    )
    def test_request(
        self, parameter: str, value: Any, error: type[Exception], message: str, of_pandas: ReplayDataset
    ) -> None:
        """Refused before the model is fitted."""
        recommender = ReplayRecommender(UserKNNModel())
        with pytest.raises(error, match=message):
            recommender.fit_predict(of_pandas, 3, **{parameter: value})
        assert not recommender.model.is_fitted

    def test_replay_itself_refuses(self, tables: Tables) -> None:
        schema = FeatureSchema([FeatureInfo(QUERY, FeatureType.CATEGORICAL, FeatureHint.QUERY_ID)])
        with pytest.raises(ValueError, match="Item id column is not set"):
            ReplayDataset(schema, tables.interactions)
        mixed = iter([lambda table: table, pl.from_pandas, pl.from_pandas])
        with pytest.raises(TypeError, match="same type"):
            tables.dataset(lambda table: next(mixed)(table))

    def test_interactions(self, tables: Tables) -> None:
        rows = tables.interactions
        for columns, message in (
            ({QUERY: rows[QUERY].mask(rows.index == 2)}, f"`{QUERY}` of `interactions` has missing ids"),
            ({RATING: rows[RATING].mask(rows.index == 2)}, f"`{RATING}` of `interactions` has missing ratings"),
            ({RATING: "good"}, f"`{RATING}` of `interactions` has values that are not numbers"),
            ({"time": rows["time"].mask(rows.index == 2)}, "`time` of `interactions` has missing times"),
            ({"time": "yesterday?"}, "`time` of `interactions` does not hold times"),
            ({"weight": 1.0}, r"further columns \['weight'\] of the `interactions`"),
        ):
            changed = replace(tables.with_interactions(**columns), queries=None)
            with pytest.raises(ValueError, match=message):
                to_rectools(changed.dataset(weight=FeatureType.NUMERICAL))
        with pytest.raises(ValueError, match="`interactions` of the dataset are empty"):
            to_rectools(replace(tables, interactions=rows.head(0)).dataset())
        schema = FeatureSchema(
            [
                FeatureInfo(QUERY, FeatureType.CATEGORICAL, FeatureHint.QUERY_ID),
                FeatureInfo("article", FeatureType.CATEGORICAL, FeatureHint.ITEM_ID),
            ]
        )
        with pytest.raises(ValueError, match="`interactions` lack the column `article`"):
            to_rectools(ReplayDataset(schema, rows[[QUERY]]))

    def test_features(self, tables: Tables) -> None:
        assert tables.queries is not None
        n = len(tables.queries)
        numbers, categories = FeatureType.NUMERICAL_LIST, FeatureType.CATEGORICAL_LIST
        for columns, types, message in (
            (
                {"x": "a"},
                {"x": FeatureType.NUMERICAL},
                "NUMERICAL feature `x` of `query_features` has values that are not",
            ),
            (
                {"x": [[1]] * n},
                {"x": FeatureType.CATEGORICAL},
                "`x` of `query_features` is CATEGORICAL, but holds lists",
            ),
            ({"x": "a|b"}, {"x": categories}, "`x` of `query_features` is a list .* such as 'a|b'"),
            (
                {"x": [[1.0]] * (n - 1) + [[1.0, 2.0]]},
                {"x": numbers},
                r"`x` of `query_features` are of the lengths \[1, 2\]",
            ),
            (
                {"x": [["a"]] * n},
                {"x": numbers},
                "NUMERICAL_LIST feature `x` of `query_features` has values that are not",
            ),
            ({"taste_0": 1.0}, {"taste_0": FeatureType.NUMERICAL}, r"called \['taste_0'\]"),
        ):
            with pytest.raises(ValueError, match=message):
                to_rectools(tables.with_queries(**columns).dataset(**types))
        twice = replace(tables, queries=pd.concat([tables.queries, tables.queries.head(1)]))
        with pytest.raises(ValueError, match=rf"several rows for the ids \['c00'\] of `{QUERY}`"):
            to_rectools(twice.dataset())

    def test_names_that_replay_cannot_hold(self, make_frames: Callable[..., Any]) -> None:
        frames = make_frames()
        named = replace(frames, user_features=frames.user_features.replace("age", "item_id")).dataset()
        with pytest.raises(ValueError, match="`item_id` beside the column of this name"):
            to_replay(named)
        named = replace(frames, user_features=frames.user_features.replace("age", "genre")).dataset()
        with pytest.raises(ValueError, match=r"one type for a name, but `genre`"):
            to_replay(named)


class TestConversions:
    def test_all_frames_agree(self, tables: Tables, in_kind: Callable[[str], ReplayDataset], dataset: Any) -> None:
        """All of them give one and the same dataset, with the same internal ids, whatever the order of rows."""
        converted, expected = to_rectools(dataset), to_rectools(in_kind("pandas"))
        for one in (converted, to_rectools(tables.shuffled().dataset())):
            for side in ("user", "item"):
                ids, features = (getattr(one, f"{side}_{part}") for part in ("id_map", "features"))
                assert ids.external_ids.tolist() == getattr(expected, f"{side}_id_map").external_ids.tolist()
                assert features.names == getattr(expected, f"{side}_features").names
                assert (features.values != getattr(expected, f"{side}_features").values).nnz == 0
                assert features.values.nnz == getattr(expected, f"{side}_features").values.nnz
        assert_frame_equal(converted.interactions.df, expected.interactions.df)

    def test_interactions(self, tables: Tables, of_pandas: ReplayDataset) -> None:
        raw = to_rectools(of_pandas).get_raw_interactions()
        times = pd.to_datetime(tables.interactions["time"], unit="s")
        expected = tables.interactions.assign(time=times)
        names = [Columns.User, Columns.Item, Columns.Weight, Columns.Datetime, "device", "hour"]
        assert_frame_equal(raw, expected.set_axis(names, axis=1))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "convert",
        [
            lambda times: times,
            lambda times: times.astype("int64"),
            lambda times: times.astype("int64") // 10**3,
            lambda times: times.astype("int64") // 10**6,
            lambda times: times.astype("int64") // 10**9,
            lambda times: times.astype("int64") / 10**9,
            lambda times: times.astype(str),
        ],
        ids=["datetime", "ns", "us", "ms", "s", "float s", "text"],
    )
    def test_times(self, kind: str, convert: Any, tables: Tables, as_kind: Callable[..., Any]) -> None:
        times = pd.to_datetime(tables.interactions["time"], unit="s").astype("datetime64[ns]")
        dataset = Tables(tables.interactions[[QUERY, ITEM]].assign(time=convert(times)), None, None)
        converted = to_rectools(dataset.dataset(lambda table: as_kind(table, kind)))
        assert_frame_equal(converted.interactions.df[[Columns.Datetime]], times.to_frame(Columns.Datetime))

    def test_time_zone(self, tables: Tables) -> None:
        times = pd.to_datetime(tables.interactions["time"], unit="s").astype("datetime64[ns]")
        zoned = times.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
        dataset = Tables(tables.interactions[[QUERY, ITEM]].assign(time=zoned), None, None).dataset()
        assert to_rectools(dataset).interactions.df[Columns.Datetime].tolist() == times.tolist()

    def test_features(self, of_pandas: ReplayDataset) -> None:
        """Zeros are values, missing values are none, and those without interactions are warm."""
        converted = to_rectools(of_pandas)
        assert converted.user_id_map.size == converted.n_hot_users + 2
        assert converted.item_id_map.size == converted.n_hot_items + 2

        def of(features: Any, id_map: Any, external: Any) -> dict[Any, float]:
            row = features.values[id_map.convert_to_internal([external])[0]]
            return {features.names[column]: value for column, value in zip(row.indices, row.data, strict=True)}

        direct = "__is_direct_feature"
        users = converted.user_features, converted.user_id_map
        assert of(*users, "c04") == {("group", "g0"): 1, ("age", direct): 0}
        assert of(*users, "c03") == {
            ("hobbies", "chess"): 1,
            ("hobbies", "golf"): 1,
            ("hobbies", "sailing"): 1,
            ("age", direct): 30,
            ("taste_0", direct): 0.375,
            ("taste_1", direct): 0,
        }
        assert of(*users, "c05") == {
            ("group", "g1"): 1,
            ("hobbies", "chess"): 1,
            ("taste_0", direct): 0.625,
            ("taste_1", direct): 0,
        }
        items = converted.item_features, converted.item_id_map
        assert of(*items, 121) == {("genre", 2): 1, ("price", direct): 0}

    def test_a_zero_is_not_a_missing_number(self, tables: Tables) -> None:
        """The model itself tells a warm user of age 0 from one whose age is not known."""
        warm = pd.DataFrame({QUERY: ["zero", "none"], "age": [0.0, np.nan]})
        assert tables.queries is not None
        queries = pd.concat([tables.queries[[QUERY, "age"]], warm])
        dataset = replace(tables, queries=queries).dataset()
        recommender = ReplayRecommender(make_model("DSSMModel")).fit(dataset)
        vectors = recommender.get_features(warm[[QUERY]], dataset)[0]["user_factors"]
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-4

    def test_gaps_leave_categories_integer(self, tables: Tables) -> None:
        codes = pd.Series([np.nan, 2.0, *[3.0] * 30])
        converted = to_rectools(tables.with_queries(code=codes).dataset(code=FeatureType.CATEGORICAL))
        assert converted.user_features is not None
        assert [repr(value) for name, value in converted.user_features.names if name == "code"] == ["2", "3"]

    def test_features_without_any_value(self, tables: Tables) -> None:
        """Ids without features, or with missing ones alone, are known all the same."""
        assert tables.queries is not None
        for queries in (tables.queries[[QUERY]], tables.queries[[QUERY]].assign(group=None)):
            dataset = replace(tables, queries=queries).dataset()
            converted = to_rectools(dataset)
            assert converted.user_features is None
            assert converted.user_id_map.size == converted.n_hot_users + 2
            reco = ReplayRecommender(make_model("DSSMModel")).fit(dataset).predict(dataset, 3, queries=["c31"])
            assert len(reco) == 3
            assert len(to_replay(converted).query_features) == converted.user_id_map.size

    def test_from_replay_and_back(self, tables: Tables, dataset: ReplayDataset) -> None:
        """Names are those of RecTools, and lists of numbers a column for each place; all else is as it was."""
        back = to_replay(to_rectools(dataset))
        assert back.is_pandas
        assert tables.queries is not None
        assert tables.items is not None
        times = pd.to_datetime(tables.interactions["time"], unit="s")
        expected = tables.interactions.assign(time=times).rename(
            columns={QUERY: "user_id", ITEM: "item_id", RATING: "weight", "time": "datetime"}
        )
        assert_rows(back.interactions, expected, ["user_id", "item_id"])
        places = pd.DataFrame([(np.nan, np.nan) if taste is None else taste for taste in tables.queries["taste"]])
        queries = tables.queries.rename(columns={QUERY: "user_id"}).drop(columns="taste")
        # An empty list says no more than a missing one.
        queries["hobbies"] = [hobbies or None for hobbies in queries["hobbies"]]
        assert_rows(back.query_features, queries.assign(taste_0=places[0], taste_1=places[1]), ["user_id"])
        assert_rows(back.item_features, tables.items.rename(columns={ITEM: "item_id"}), ["item_id"])
        types = {info.column: (info.feature_type, info.feature_hint) for info in back.feature_schema.all_features}
        renamed = {QUERY: "user_id", ITEM: "item_id", RATING: "weight", "time": "datetime"}
        kept = {renamed.get(name, name): info for name, info in SCHEMA.items() if name != "taste"}
        number = FeatureType.NUMERICAL, None
        assert types == {**kept, "taste_0": number, "taste_1": number}

    @pytest.mark.parametrize("features", ["sparse", "dense", None])
    def test_from_rectools_and_back(self, features: str | None, make_frames: Callable[..., Any]) -> None:
        """A model fitted on the one recommends the same from the other, and takes its features as its own."""
        original = make_frames(features=features, n_warm=2 if features == "sparse" else 0).dataset()
        back = to_rectools(to_replay(original))
        users = original.user_id_map.external_ids
        if features == "dense":  # they come back sparse: another form of the same numbers
            model = make_model("UserKNNModel").fit(original)
        else:
            model = make_model("DSSMModel").fit(original)
        assert_same(*(by_rectools(model, dataset, users=users) for dataset in (original, back)))
        again = make_model("DSSMModel").fit(back)
        if features != "dense":
            assert_same(*(by_rectools(fitted, back, users=users) for fitted in (model, again)))

    def test_dense_features(self, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(features="dense")
        converted = to_replay(frames.dataset())
        expected = frames.user_features.rename(columns={"id": "user_id"})
        assert_rows(converted.query_features, expected, ["user_id"])
        assert converted.feature_schema["age"].feature_type is FeatureType.NUMERICAL

    def test_counts_of_categories(self, tables: Tables) -> None:
        """A category that is listed twice counts twice, there and back."""
        assert tables.queries is not None
        hobbies = [["chess", "chess", "golf"], *[["golf"]] * (len(tables.queries) - 1)]
        converted = to_rectools(tables.with_queries(hobbies=hobbies).dataset())
        assert converted.user_features is not None
        column = converted.user_features.names.index(("hobbies", "chess"))
        assert converted.user_features.values[:, [column]].sum() == 2
        queries = to_replay(converted).query_features
        assert queries.set_index("user_id")["hobbies"].tolist() == hobbies


def assert_rows(actual: pd.DataFrame, expected: pd.DataFrame, by: list[str]) -> None:
    """Same rows in any order, with columns in any order; a gap is a gap, and an integer may be a float."""
    actual, expected = (
        table.sort_values(by).reset_index(drop=True).astype(object).where(table.sort_values(by).notna().values, None)
        for table in (actual, expected)
    )
    assert set(actual.columns) == set(expected.columns)
    assert_frame_equal(actual[expected.columns], expected, check_dtype=False, rtol=1e-6)


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_without_pyspark(kind: str, tmp_path: Path) -> None:
    """RePlay without pyspark is enough, and importing the package loads neither."""
    script = f"""
import sys
sys.modules["pyspark"] = None
import rectools_neural
assert not any(name.partition(".")[0] in ("replay", "polars") for name in sys.modules)
import pandas as pd, polars as pl
from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureType
from rectools_neural.replay import ReplayRecommender
frame = pd.DataFrame({{"user": [1, 1, 2, 2, 3], "item": ["a", "b", "b", "c", "a"]}})
hints = FeatureHint.QUERY_ID, FeatureHint.ITEM_ID
schema = FeatureSchema([FeatureInfo(c, FeatureType.CATEGORICAL, h) for c, h in zip(frame, hints)])
dataset = Dataset(schema, frame if {kind!r} == "pandas" else pl.from_pandas(frame))
reco = ReplayRecommender({{"cls": "GFCFModel", "n_factors": 2}}).fit_predict(dataset, 1)
assert type(reco).__module__.startswith({kind!r}), type(reco)
assert sorted(zip(reco["user"], reco["item"])) == [(1, "c"), (2, "a"), (3, "b")]
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_without_replay(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["replay"] = None
try:
    import rectools_neural.replay
except ImportError as error:
    assert "pip install rectools-neural[replay]" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_stopped_session(tmp_path: Path, spark: Any) -> None:
    """In a process of its own, as a process has one Spark context."""
    script = """
from pyspark.sql import SparkSession
from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureType
from rectools_neural.replay import to_rectools
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
frame = spark.createDataFrame([(1, 2)], ["user", "item"])
hints = FeatureHint.QUERY_ID, FeatureHint.ITEM_ID
schema = FeatureSchema([FeatureInfo(c, FeatureType.CATEGORICAL, h) for c, h in zip(frame.columns, hints)])
dataset = Dataset(schema, frame)
spark.stop()
try:
    to_rectools(dataset)
except ValueError as error:
    assert "The Spark session of `interactions` has been stopped" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
