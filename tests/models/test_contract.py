"""What holds for every model of the pack."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pytest
import rectools.models
from contract import (
    CASES,
    assert_same,
    global_state,
    hot_users,
    is_own_group,
    items_of,
    make_model,
    own_share,
    recommend,
    with_other_id_types,
    with_rows,
)
from pandas.testing import assert_frame_equal
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.metrics import NDCG, CoveredUsers, Recall, calc_metrics
from rectools.model_selection import LastNSplitter, cross_validate
from rectools.models import PopularModel, load_model
from rectools.models.base import ModelBase
from rectools.models.ranking import CandidateGenerator, CandidateRankingModel, PerUserNegativeSampler, Reranker
from rectools.utils.misc import make_dict_flat
from sklearn.linear_model import LogisticRegression

import rectools_neural
from rectools_neural.models.base import NeuralModelBase
from rectools_neural.models.two_sided import TwoSidedModel
from rectools_neural.registry import MODELS

Model: TypeAlias = ModelBase[Any]
COLD_USER, COLD_ITEM = "nobody", 9999


def test_each_model_has_its_case() -> None:
    assert set(CASES) == set(MODELS)


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
def plain(make_frames: Callable[..., Any]) -> Any:
    """Without features."""
    return weighted(make_frames(features=None))


@pytest.fixture(scope="module")
def model(name: str, dataset: Dataset) -> Model:
    return make_model(name).fit(dataset)


@pytest.fixture(scope="module")
def plain_model(name: str, plain: Any) -> Model:
    return make_model(name).fit(plain.dataset())


@pytest.fixture(scope="module")
def good_model(name: str, dataset: Dataset) -> Model:
    return make_model(name, "good").fit(dataset)


class TestConfig:
    @pytest.mark.parametrize("options", ["fast", "rich"])
    def test_round_trips(self, name: str, options: str) -> None:
        model = make_model(name, options)
        cls, config, simple = type(model), model.get_config(), model.get_config(simple_types=True)
        assert config["cls"] is cls
        assert simple["cls"] == f"rectools_neural.{name}"
        assert json.loads(json.dumps(simple)) == simple
        made = [
            cls.from_config(config),
            cls.from_config(simple),
            cls.from_config(model.get_config(mode="pydantic")),
            cls.from_params(model.get_params()),
            cls.from_params(json.loads(json.dumps(model.get_params(simple_types=True)))),
            cls.from_params(model.get_params(sep="__"), sep="__"),
            rectools.models.model_from_config(simple),
            rectools.models.model_from_config(config),
            rectools.models.model_from_params(model.get_params(simple_types=True)),
            rectools_neural.model_from_config(simple),
            rectools_neural.model_from_config({**simple, "cls": name}),
            rectools_neural.model_from_params(model.get_params(simple_types=True)),
        ]
        for other in made:
            assert type(other) is cls
            assert other.get_config() == config
            assert other.get_config(simple_types=True) == simple
            assert other.get_params() == model.get_params()

    def test_rich_options_arrive(self, name: str) -> None:
        """Else the round trips above would show little."""
        flat = make_model(name, "rich").get_params(simple_types=True)
        for key, value in make_dict_flat(CASES[name].rich).items():
            found = flat[key] if key in flat else flat[f"{key}.name"]
            # A function may be imported from elsewhere than where it stands.
            assert found == value or str(found).endswith(f".{str(value).rpartition('.')[2]}")

    def test_signature(self, name: str) -> None:
        cls = getattr(rectools_neural, name)
        parameters = inspect.signature(cls).parameters
        assert list(parameters) == [field for field in cls.config_class.model_fields if field != "cls"]
        assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
        defaults = {parameter: p.default for parameter, p in parameters.items()}
        assert cls(**defaults).get_config() == cls().get_config()

    def test_each_parameter_is_an_attribute_and_documented(self, name: str) -> None:
        model = make_model(name, "rich")
        config = model.get_config(mode="pydantic")
        for parameter in inspect.signature(type(model)).parameters:
            assert getattr(model, parameter) == getattr(config, parameter)
            if parameter != "verbose":
                assert parameter in str(type(model).__doc__)

    def test_unknown_parameter_names_the_nearest(self, name: str) -> None:
        cls = getattr(rectools_neural, name)
        for parameter in inspect.signature(cls).parameters:
            if len(parameter) > 2:
                with pytest.raises(TypeError, match=f"`{parameter}q`.*did you mean `{parameter}`"):
                    cls(**{f"{parameter}q": 1})
        with pytest.raises(TypeError):
            cls(1)

    def test_fit_and_recommend_leave_the_options(self, name: str, dataset: Dataset) -> None:
        model = make_model(name, "rich")
        parameters = list(inspect.signature(type(model)).parameters)
        config, before = model.get_config(), {parameter: getattr(model, parameter) for parameter in parameters}
        recommend(model.fit(dataset), dataset)
        assert model.get_config() == config
        assert all(getattr(model, parameter) is before[parameter] for parameter in parameters)


class TestFrame:
    @pytest.mark.parametrize("other_types", [False, True])
    def test_form(self, name: str, frames: Any, other_types: bool) -> None:
        dataset = (with_other_id_types(frames) if other_types else frames).dataset()
        reco = recommend(make_model(name).fit(dataset), dataset, k=4)
        assert reco.columns.tolist() == [Columns.User, Columns.Item, Columns.Score, Columns.Rank]
        assert reco[Columns.User].dtype == dataset.user_id_map.external_dtype == (int if other_types else object)
        assert reco[Columns.Item].dtype == dataset.item_id_map.external_dtype == (object if other_types else int)
        assert reco[Columns.Score].dtype == np.float32
        assert reco[Columns.Rank].dtype == np.int64
        assert reco.index.tolist() == list(range(len(reco)))
        assert set(reco[Columns.User]) == set(hot_users(dataset))
        assert set(reco[Columns.Item]) <= set(dataset.get_raw_interactions()[Columns.Item])
        assert not reco.duplicated(Columns.UserItem).any()
        for _, of_user in reco.groupby(Columns.User):
            assert of_user[Columns.Rank].tolist() == list(range(1, len(of_user) + 1))
            assert of_user[Columns.Score].is_monotonic_decreasing
        assert np.isfinite(reco[Columns.Score]).all()
        sizes = reco.groupby(Columns.User).size()
        assert sizes.max() == 4
        assert sizes.min() == 4 or not CASES[name].scores_any_item

    def test_without_ranks(self, model: Model, dataset: Dataset) -> None:
        without = recommend(model, dataset, add_rank_col=False)
        assert_frame_equal(without, recommend(model, dataset).drop(columns=Columns.Rank))

    def test_seen_items(self, name: str, model: Model, dataset: Dataset) -> None:
        """What is filtered is exactly what was seen, and the rest keeps its order and scores."""
        seen = pd.MultiIndex.from_frame(dataset.get_raw_interactions()[Columns.UserItem])
        everything = recommend(model, dataset, k=100, filter_viewed=False)
        is_seen = pd.MultiIndex.from_frame(everything[Columns.UserItem]).isin(seen)
        assert is_seen.any()
        rest = everything[~is_seen].drop(columns=Columns.Rank).reset_index(drop=True)
        assert_frame_equal(recommend(model, dataset, k=100).drop(columns=Columns.Rank), rest)
        if CASES[name].scores_any_item:
            assert (
                len(everything)
                == len(hot_users(dataset))
                * dataset.item_id_map.convert_to_internal(dataset.get_raw_interactions()[Columns.Item].unique()).size
            )

    @pytest.mark.parametrize("filter_viewed", [False, True])
    def test_whitelist(self, model: Model, dataset: Dataset, filter_viewed: bool) -> None:
        whitelist = [123, 100, 107, 110, 104, COLD_ITEM]
        everything = recommend(model, dataset, k=100, filter_viewed=filter_viewed)
        expected = everything[everything[Columns.Item].isin(whitelist)].reset_index(drop=True)
        expected[Columns.Rank] = expected.groupby(Columns.User).cumcount() + 1
        options: dict[str, Any] = {"filter_viewed": filter_viewed, "items_to_recommend": whitelist}
        assert_same(recommend(model, dataset, k=100, **options), expected)
        assert_same(recommend(model, dataset, k=2, **options), expected[expected[Columns.Rank] <= 2])

    @pytest.mark.parametrize(
        "options", [{"items_to_recommend": []}, {"items_to_recommend": [COLD_ITEM]}, {"users": []}]
    )
    def test_nothing_to_recommend(self, model: Model, dataset: Dataset, options: dict[str, Any]) -> None:
        reco = recommend(model, dataset, **options)
        assert reco.empty
        assert_frame_equal(reco, recommend(model, dataset).iloc[:0], check_index_type=False)

    def test_prefixes(self, model: Model, dataset: Dataset) -> None:
        everything = recommend(model, dataset, k=100)
        for k in (1, 7):
            assert_same(recommend(model, dataset, k=k), everything[everything[Columns.Rank] <= k])

    def test_other_users_change_nothing(self, model: Model, dataset: Dataset) -> None:
        together = recommend(model, dataset)
        few = ["u031", "u004", "u017"]
        alone = recommend(model, dataset, few)
        assert alone[Columns.User].unique().tolist() == few
        for user in few:
            assert_same(alone[alone[Columns.User] == user], together[together[Columns.User] == user])


class TestReproducibility:
    def test_two_fits(self, name: str, model: Model, dataset: Dataset) -> None:
        expected = recommend(model, dataset, k=100)
        assert_frame_equal(recommend(make_model(name).fit(dataset), dataset, k=100), expected)
        # Nothing is left of an earlier fit.
        again = make_model(name).fit(dataset.filter_interactions(np.arange(100))).fit(dataset)
        assert_frame_equal(recommend(again, dataset, k=100), expected)

    @pytest.mark.parametrize("options", ["fast", "rich"])
    def test_order_of_rows(self, name: str, options: str, frames: Any) -> None:
        dataset, shuffled = frames.dataset(), frames.shuffled(1).dataset()
        assert dataset.user_id_map.external_ids.tolist() != shuffled.user_id_map.external_ids.tolist()
        model, other = (make_model(name, options).fit(data) for data in (dataset, shuffled))
        expected = recommend(model, dataset, k=100)
        assert_frame_equal(recommend(model, shuffled, k=100), expected)
        assert_frame_equal(recommend(other, dataset, k=100), expected)
        assert_frame_equal(recommend(other, shuffled, k=100), expected)

    @pytest.mark.parametrize("options", ["fast", "rich"])
    def test_save_and_load(self, name: str, options: str, dataset: Dataset, tmp_path: Path) -> None:
        model = make_model(name, options).fit(dataset)
        expected = recommend(model, dataset, k=100)
        assert model.save(tmp_path / "model") == (tmp_path / "model").stat().st_size
        with (tmp_path / "other").open("wb") as file:
            model.save(file)
        loaded = [
            load_model(tmp_path / "model"),
            type(model).load(tmp_path / "other"),
            type(model).loads(model.dumps()),
            pickle.loads(pickle.dumps(pickle.loads(model.dumps()))),
        ]
        for other in loaded:
            assert type(other) is type(model)
            assert other.is_fitted
            assert other.get_config() == model.get_config()
            assert_frame_equal(recommend(other, dataset, k=100), expected)

    def test_a_pickle_holds_no_trainer(self, model: Model) -> None:
        """And so can be loaded where there is no accelerator, and is small."""
        data = model.dumps()
        assert b"pytorch_lightning" not in data
        assert b"cuda" not in data
        assert len(data) < 100_000

    def test_unfitted_models_can_be_saved(self, name: str, dataset: Dataset, model: Model) -> None:
        other = pickle.loads(make_model(name).dumps())
        assert not other.is_fitted
        assert_frame_equal(recommend(other.fit(dataset), dataset), recommend(model, dataset))


def test_a_new_process_gives_the_same(frames: Any, tmp_path: Path) -> None:
    """Saved models recommend the same there, and fits there give the same models, whatever the hash seed."""
    dataset = frames.dataset()
    expected = {}
    for name in MODELS:
        model = make_model(name).fit(dataset)
        model.save(tmp_path / name)
        expected[name] = recommend(model, dataset, k=100)
    (tmp_path / "data").write_bytes(pickle.dumps((dataset, hot_users(dataset), list(MODELS))))
    code = (
        "import pickle\n"
        "from pathlib import Path\n"
        "from rectools.models import load_model, model_from_config\n"
        "dataset, users, names = pickle.loads(Path('data').read_bytes())\n"
        "found = {}\n"
        "for name in names:\n"
        "    model = load_model(name)\n"
        "    other = model_from_config(model.get_config(simple_types=True)).fit(dataset)\n"
        "    found[name] = [m.recommend(users, dataset, 100, True) for m in (model, other)]\n"
        "Path('found').write_bytes(pickle.dumps(found))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(rectools_neural.__file__).parents[1]), "PYTHONHASHSEED": "17"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(os.listdir(tmp_path)) == sorted([*MODELS, "data", "found"])
    for name, (from_loaded, from_fitted) in pd.read_pickle(tmp_path / "found").items():
        assert_frame_equal(from_loaded, expected[name])
        assert_frame_equal(from_fitted, expected[name])


class TestLaterDatasets:
    def test_additional_users_and_rows(self, model: Model, frames: Any) -> None:
        """Who has no new rows keeps the recommendations, who has some no longer gets the new items."""
        twins = {"new1": "u003", "new2": "u002"}
        rows = [*(("new1", item) for item in (101, 103, 105)), ("new2", 110), ("u005", 119), ("u005", 121)]
        before, after = frames.dataset(), with_rows(frames, rows, twins).dataset()
        assert before.user_id_map.convert_to_internal(["u000"]) != after.user_id_map.convert_to_internal(["u000"])
        unchanged = [user for user in hot_users(before) if user != "u005"]
        assert_same(recommend(model, after, unchanged), recommend(model, before, unchanged))
        changed = recommend(model, after, ["u005"], k=100)
        assert len(changed) > 0
        assert not set(changed[Columns.Item]) & {119, 121, *items_of(frames, "u005")}

    def test_new_users_are_served(self, name: str, model: Model, frames: Any) -> None:
        rows = [("new", item) for item in (101, 103, 105)]
        reco = recommend(model, with_rows(frames, rows, {"new": "u003"}).dataset(), ["new", "u001"], k=5)
        assert set(reco[Columns.User]) == {"new", "u001"}
        assert len(reco) == 10
        assert not set(reco.loc[reco[Columns.User] == "new", Columns.Item]) & {101, 103, 105}

    def test_dataset_of_one_new_user(self, plain_model: Model, plain: Any) -> None:
        """The catalogue is the fitted one, whatever the dataset holds."""
        history = [101, 105, 109]
        rows = [("new", item) for item in history]
        together = recommend(plain_model, with_rows(plain, rows).dataset(), ["new"], k=100)
        assert len(together) > 5
        alone = Dataset.construct(with_rows(plain, rows).interactions.iloc[: len(rows)])
        assert_same(recommend(plain_model, alone, ["new"], k=100), together)

    def test_dataset_that_lacks_users_and_items(self, plain_model: Model, plain: Any) -> None:
        table = plain.interactions
        few = Dataset.construct(table[table[Columns.User].isin(["u011", "u012", "u013"])])
        assert few.item_id_map.size < 24
        assert_same(recommend(plain_model, few), recommend(plain_model, plain.dataset(), ["u011", "u012", "u013"]))

    def test_new_items_are_ranked_only_on_request(self, name: str, model: Model, frames: Any) -> None:
        rows = [("u001", 999), ("u003", 999), ("u003", 998), ("only", 999)]
        dataset = with_rows(frames, rows, {999: 101, 998: 100, "only": "u001"}).dataset()
        assert not set(recommend(model, dataset, k=100, filter_viewed=False)[Columns.Item]) & {998, 999}
        # The rows themselves say nothing to the model.
        unchanged = [user for user in hot_users(frames.dataset()) if user not in ("u001", "u003")]
        assert_same(recommend(model, dataset, unchanged), recommend(model, frames.dataset(), unchanged))
        asked = recommend(model, dataset, k=100, items_to_recommend=[999, 998, 100, COLD_ITEM], filter_viewed=False)
        assert COLD_ITEM not in set(asked[Columns.Item])
        if CASES[name].scores_any_item:
            assert asked.groupby(Columns.User)[Columns.Item].agg(set).tolist() == [{999, 998, 100}] * 41
            assert np.isfinite(asked[Columns.Score]).all()
            unseen = recommend(model, dataset, ["u001", "u003"], items_to_recommend=[999, 998])
            assert list(zip(unseen[Columns.User], unseen[Columns.Item], strict=True)) == [("u001", 998)]
        else:
            assert set(asked[Columns.Item]) <= {100}

    def test_warm_items_are_ranked_only_on_request(self, name: str, model: Model, dataset: Dataset) -> None:
        assert {124, 125} <= set(dataset.item_id_map.external_ids)
        assert not set(recommend(model, dataset, k=100)[Columns.Item]) & {124, 125}
        asked = recommend(model, dataset, items_to_recommend=[124, 125])
        assert len(asked) == (80 if CASES[name].scores_any_item else 0)
        assert np.isfinite(asked[Columns.Score]).all()

    def test_given_dataset_stays_as_it_was(self, name: str, frames: Any) -> None:
        dataset, untouched = frames.dataset(), frames.dataset()
        recommend(make_model(name).fit(dataset), dataset)
        assert_frame_equal(dataset.interactions.df, untouched.interactions.df)
        for actual, expected in (
            (dataset.user_features, untouched.user_features),
            (dataset.item_features, untouched.item_features),
        ):
            assert actual.names == expected.names
            assert (actual.values != expected.values).nnz == 0


class TestTargets:
    @pytest.mark.parametrize(("kind", "user"), [("warm", "u040"), ("cold", COLD_USER)])
    def test_users_without_interactions(self, model: Model, dataset: Dataset, kind: str, user: str) -> None:
        expected = recommend(model, dataset, ["u007"])
        # RecTools treats warm users as cold ones where a model has nothing better.
        if getattr(model, f"recommends_for_{kind}") or model.recommends_for_cold:
            reco = recommend(model, dataset, [user, "u007"], k=5)
            assert reco[Columns.User].tolist() == ["u007"] * 5 + [user] * 5
            assert_same(reco.iloc[:5], expected)
            assert reco.iloc[5:][Columns.Score].is_monotonic_decreasing
            assert reco.iloc[5:][Columns.Item].nunique() == 5
            whitelisted = recommend(model, dataset, [user], items_to_recommend=[100, 103])
            assert set(whitelisted[Columns.Item]) == {100, 103}
            return
        with pytest.raises(ValueError, match=f"doesn't support recommendations for .*{kind}"):
            recommend(model, dataset, [user, "u007"])
        with pytest.warns(UserWarning, match=f"doesn't support recommendations for .*{kind}"):
            assert_same(recommend(model, dataset, [user, "u007"], on_unsupported_targets="warn"), expected)
        assert_same(recommend(model, dataset, [user, "u007"], on_unsupported_targets="ignore"), expected)

    def test_all_kinds_of_users_at_once(self, model: Model, dataset: Dataset) -> None:
        if not model.recommends_for_cold:
            pytest.skip("hot users only")
        users = [COLD_USER, "u041", "u007", "somebody", "u001", "u040"]
        reco = recommend(model, dataset, users, k=3)
        assert sorted(reco[Columns.User]) == sorted(users * 3)
        by_user = {user: part[Columns.Item].tolist() for user, part in reco.groupby(Columns.User)}
        # Nothing is known of either.
        assert by_user[COLD_USER] == by_user["somebody"]


class TestPairs:
    """Each model scores given pairs as it scores them in a ranking."""

    def test_scores_are_those_of_the_ranking(self, model: Model, dataset: Dataset) -> None:
        users = [*hot_users(dataset), *(["u040", "u041"] if model.recommends_for_cold else [])]
        reco = recommend(model, dataset, users, k=100, filter_viewed=False)
        # Mixed up and with repetitions, an index of its own and a further column.
        asked = reco[Columns.UserItem].sample(frac=1.5, replace=True, random_state=0)
        asked["number"] = np.arange(len(asked))
        asked.index = asked.index[::-1] + 7
        before = asked.copy()
        scored = model.predict_pairs(asked, dataset)
        assert_frame_equal(asked, before)
        assert_frame_equal(scored[[*asked.columns]], asked)
        expected = asked.merge(reco, on=Columns.UserItem)
        assert len(expected) == len(asked)
        np.testing.assert_allclose(scored[Columns.Score], expected[Columns.Score], rtol=1e-5, atol=1e-6)

    def test_one_pair_at_a_time(self, model: Model, dataset: Dataset) -> None:
        pairs = pd.DataFrame([("u001", 101), ("u003", 101), ("u001", 100)], columns=Columns.UserItem)
        together = model.predict_pairs(pairs, dataset)[Columns.Score]
        alone = [model.predict_pairs(pairs.iloc[[row]], dataset)[Columns.Score].iloc[0] for row in range(3)]
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
        assert model.predict_pairs(pairs.iloc[:0], dataset)[Columns.Score].tolist() == []

    def test_new_users_and_their_histories(self, name: str, plain_model: Model, plain: Any) -> None:
        dataset = with_rows(plain, [("new", item) for item in (101, 105, 109)]).dataset()
        reco = recommend(plain_model, dataset, ["new"], k=100, filter_viewed=False)
        scored = plain_model.predict_pairs(reco[Columns.UserItem], dataset)
        np.testing.assert_allclose(scored[Columns.Score], reco[Columns.Score], rtol=1e-5, atol=1e-6)

    def test_users_without_a_history(self, model: Model, dataset: Dataset) -> None:
        """Whoever can't be recommended to for want of a history has a neutral score, not an error."""
        pairs = pd.DataFrame({Columns.User: ["u040", "u040"], Columns.Item: [100, 101]})
        assert np.isfinite(model.predict_pairs(pairs, dataset)[Columns.Score]).all()

    def test_items_that_the_model_does_not_know(self, name: str, model: Model, dataset: Dataset) -> None:
        pairs = pd.DataFrame({Columns.User: ["u001"], Columns.Item: [124]})
        if CASES[name].scores_any_item:
            assert np.isfinite(model.predict_pairs(pairs, dataset)[Columns.Score]).all()
        else:
            with pytest.raises(ValueError, match=r"`item_id` of `pairs` has 1 ids .*\[124\]"):
                model.predict_pairs(pairs, dataset)

    @pytest.mark.parametrize(
        ("pairs", "said"),
        [
            ({Columns.Item: [100]}, r"`pairs` lack the columns \['user_id'\]"),
            ({Columns.User: ["u001"], "item": [100]}, r"`pairs` lack the columns \['item_id'\]"),
            ({Columns.User: [COLD_USER], Columns.Item: [100]}, r"`user_id` of `pairs` has 1 ids .*nobody"),
            ({Columns.User: ["u001"], Columns.Item: [COLD_ITEM]}, r"`item_id` of `pairs` has 1 ids .*9999"),
        ],
        ids=["user column", "item column", "user", "item"],
    )
    def test_bad_pairs(self, model: Model, dataset: Dataset, pairs: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            model.predict_pairs(pd.DataFrame(pairs), dataset)

    def test_unfitted(self, name: str, dataset: Dataset) -> None:
        with pytest.raises(NotFittedError, match=name):
            make_model(name).predict_pairs(pd.DataFrame({Columns.User: ["u001"], Columns.Item: [100]}), dataset)


class TestItemsToItems:
    @pytest.fixture(autouse=True)
    def _only_where_served(self, name: str) -> None:
        if not CASES[name].serves_items:
            pytest.skip("recommends to users only")

    def test_form(self, model: Model, dataset: Dataset) -> None:
        targets = [105, 100, 123]
        reco = model.recommend_to_items(targets, dataset, k=4)
        assert reco.columns.tolist() == [Columns.TargetItem, Columns.Item, Columns.Score, Columns.Rank]
        assert reco.dtypes.astype(str).tolist() == ["int64", "int64", "float32", "int64"]
        assert reco[Columns.TargetItem].tolist() == np.repeat(targets, 4).tolist()
        assert reco[Columns.Rank].tolist() == [1, 2, 3, 4] * 3
        assert not reco.duplicated([Columns.TargetItem, Columns.Item]).any()
        for _, of_target in reco.groupby(Columns.TargetItem):
            assert of_target[Columns.Score].is_monotonic_decreasing

    def test_the_item_itself(self, model: Model, dataset: Dataset) -> None:
        with_itself = model.recommend_to_items([105, 100], dataset, k=100, filter_itself=False)
        assert with_itself.groupby(Columns.TargetItem).size().tolist() == [24, 24]
        rest = with_itself[with_itself[Columns.TargetItem] != with_itself[Columns.Item]].drop(columns=Columns.Rank)
        without = model.recommend_to_items([105, 100], dataset, k=100).drop(columns=Columns.Rank)
        assert_frame_equal(without, rest.reset_index(drop=True))

    def test_whitelist(self, model: Model, dataset: Dataset) -> None:
        everything = model.recommend_to_items([105, 100], dataset, k=100)
        whitelist = [100, 102, 117]
        expected = everything[everything[Columns.Item].isin(whitelist)].drop(columns=Columns.Rank)
        actual = model.recommend_to_items([105, 100], dataset, k=100, items_to_recommend=whitelist)
        assert_same(actual.drop(columns=Columns.Rank), expected)

    def test_warm_targets(self, name: str, model: Model, dataset: Dataset) -> None:
        if not model.recommends_for_warm:
            with pytest.raises(ValueError, match=f"{name} was not fitted on the items .*124"):
                model.recommend_to_items([124, 100], dataset, k=5)
            return
        reco = model.recommend_to_items([124, 100], dataset, k=5)
        assert reco.groupby(Columns.TargetItem).size().to_dict() == {100: 5, 124: 5}
        assert not set(reco[Columns.Item]) & {124, 125}
        asked = model.recommend_to_items([124], dataset, k=5, items_to_recommend=[124, 125, 103])
        assert set(asked[Columns.Item]) == {125, 103}

    def test_cold_targets(self, model: Model, dataset: Dataset) -> None:
        with pytest.raises(ValueError, match=str(COLD_ITEM)):
            model.recommend_to_items([100, COLD_ITEM], dataset, k=5)

    def test_cold_targets_can_be_left_out(self, model: Model, dataset: Dataset) -> None:
        expected = model.recommend_to_items([100], dataset, k=5)
        options: dict[str, Any] = {"target_items": [100, COLD_ITEM], "dataset": dataset, "k": 5}
        assert_frame_equal(model.recommend_to_items(**options, on_unsupported_targets="ignore"), expected)
        with pytest.warns(UserWarning, match=str(COLD_ITEM)):
            assert_frame_equal(model.recommend_to_items(**options, on_unsupported_targets="warn"), expected)

    def test_order_of_rows(self, model: Model, frames: Any) -> None:
        dataset, shuffled = frames.dataset(), frames.shuffled(1).dataset()
        expected = model.recommend_to_items([105, 100], dataset, k=100)
        assert_frame_equal(model.recommend_to_items([105, 100], shuffled, k=100), expected)


def test_models_for_users_alone_say_so(name: str, model: Model, dataset: Dataset) -> None:
    if CASES[name].serves_items:
        pytest.skip("recommends to items as well")
    with pytest.raises(NotImplementedError, match=f"{name}.*items"):
        model.recommend_to_items([100], dataset, k=2)


class TestPipelines:
    metrics = {"ndcg": NDCG(5), "recall": Recall(5), "users": CoveredUsers(5)}  # noqa: RUF012

    def test_cross_validate(self, name: str, dataset: Dataset) -> None:
        splitter = LastNSplitter(1, n_splits=2)
        model = make_model(name)
        result = cross_validate(dataset, splitter, self.metrics, {"model": model}, k=5, filter_viewed=True)
        for (train, test, _), row in zip(splitter.split(dataset.interactions), result["metrics"], strict=True):
            fold = dataset.filter_interactions(train, keep_features_for_removed_entities=True)
            truth = dataset.get_raw_interactions().iloc[test]
            reco = recommend(make_model(name).fit(fold), fold, truth[Columns.User].unique())
            expected = calc_metrics(self.metrics, reco, truth, catalog=fold.item_id_map.external_ids)
            assert {metric: row[metric] for metric in expected} == pytest.approx(expected)
            assert 0 < row["recall"] < 1
            assert row["users"] == 1

    def test_metrics_app(self, name: str, dataset: Dataset) -> None:
        pytest.importorskip("ipywidgets")
        pytest.importorskip("plotly")
        from rectools.visuals import MetricsApp

        models = {"model": make_model(name), "popular": PopularModel()}
        result = cross_validate(dataset, LastNSplitter(1), self.metrics, models, k=5, filter_viewed=True)
        app = MetricsApp.construct(pd.DataFrame(result["metrics"]), auto_display=False)
        assert set(app.data[Columns.Model]) == {"model", "popular"}

    def test_candidates_for_a_reranker(self, name: str, dataset: Dataset) -> None:
        ranker = CandidateRankingModel(
            [CandidateGenerator(make_model(name), 8, keep_ranks=True, keep_scores=True)],
            splitter=LastNSplitter(1),
            reranker=Reranker(LogisticRegression()),
            sampler=PerUserNegativeSampler(n_negatives=3, random_state=0),
        )
        reco = recommend(ranker.fit(dataset), dataset, k=3)
        candidates = recommend(make_model(name).fit(dataset), dataset, k=8)
        assert set(reco[Columns.User]) == set(hot_users(dataset))
        assert reco[Columns.Rank].max() == 3
        assert len(reco.merge(candidates, on=Columns.UserItem)) == len(reco)

    def test_index_of_nearest_neighbours(self, name: str, model: Model, dataset: Dataset) -> None:
        if not isinstance(model, TwoSidedModel):
            pytest.skip("has no vectors")
        pytest.importorskip("nmslib")
        from rectools.tools.ann import UserToItemAnnRecommender

        options = {"similarity": "dot"} if hasattr(model, "similarity") else {}
        model = make_model(name, **options).fit(dataset)
        users, items = model.get_vectors(dataset)
        index = UserToItemAnnRecommender(
            users,
            items,
            dataset.user_id_map,
            dataset.item_id_map,
            index_init_params={"method": "hnsw", "space": "negdotprod"},
        ).fit()
        found = index.get_item_list_for_user_batch(["u001", "u002"], top_n=5)
        catalogue = dataset.item_id_map.external_ids
        exact = recommend(model, dataset, ["u001", "u002"], filter_viewed=False, items_to_recommend=catalogue)
        assert np.concatenate(found).tolist() == exact[Columns.Item].tolist()


class TestErrors:
    def test_unfitted(self, name: str, dataset: Dataset) -> None:
        model = make_model(name)
        uses: list[Callable[[], Any]] = [
            lambda: recommend(model, dataset),
            lambda: model.recommend_to_items([100], dataset, k=2),
        ]
        uses.append(lambda: model.fitted_config)
        if isinstance(model, TwoSidedModel):
            uses.append(lambda: model.get_vectors(dataset))
        for use in uses:
            with pytest.raises(NotFittedError, match=name):
                use()

    @pytest.mark.parametrize("k", [0, -1])
    def test_k(self, name: str, model: Model, dataset: Dataset, k: int) -> None:
        with pytest.raises(ValueError, match="`k`"):
            recommend(model, dataset, k=k)
        with pytest.raises(ValueError, match="`k`"):
            model.recommend_to_items([100], dataset, k=k)

    def test_no_interactions(self, name: str, dataset: Dataset) -> None:
        model = make_model(name)
        with pytest.raises(ValueError, match="`dataset` has no interactions"):
            model.fit(dataset.filter_interactions([], keep_features_for_removed_entities=True))
        assert not model.is_fitted

    @pytest.mark.parametrize("method", ["fit", "fit_partial"])
    @pytest.mark.parametrize("wrong", ["frame", "interactions", None])
    def test_wrong_type(self, name: str, method: str, wrong: str | None, frames: Any) -> None:
        model = make_model(name)
        if method == "fit_partial" and not isinstance(model, NeuralModelBase):
            pytest.skip("is fitted as a whole")
        values = {"frame": frames.interactions, "interactions": frames.dataset().interactions, None: None}
        with pytest.raises(TypeError, match=r"`dataset` must be a rectools\.dataset\.Dataset, got"):
            getattr(model, method)(values[wrong])
        assert not model.is_fitted

    def test_failed_fit_leaves_the_model(self, name: str, dataset: Dataset) -> None:
        model = make_model(name).fit(dataset)
        expected = recommend(model, dataset)
        with pytest.raises(ValueError, match="no interactions"):
            model.fit(dataset.filter_interactions([]))
        assert model.is_fitted
        assert_frame_equal(recommend(model, dataset), expected)


class TestSideEffects:
    def test_global_state(
        self, name: str, model: Model, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        before = global_state()
        fitted = make_model(name).fit(dataset)
        between = global_state()
        recommend(fitted, dataset)
        if CASES[name].serves_items:
            fitted.recommend_to_items([100], dataset, k=2)
        pickle.loads(fitted.dumps())
        after = global_state()
        for part, value in before.items():
            assert between[part] == value, part
            assert after[part] == value, part
        assert os.listdir(tmp_path) == []

    def test_silent_by_default(self, name: str, dataset: Dataset, capfd: pytest.CaptureFixture[str]) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            recommend(make_model(name).fit(dataset), dataset)
        assert capfd.readouterr() == ("", "")
        assert [str(warning.message) for warning in caught] == []

    def test_says_something_on_demand(self, name: str, dataset: Dataset, capfd: pytest.CaptureFixture[str]) -> None:
        recommend(make_model(name, verbose=1).fit(dataset), dataset)
        out, err = capfd.readouterr()
        assert out + err


class TestLearning:
    """Each user likes one half of the catalogue, popular items of the other half are what popularity gives."""

    def test_top_one_is_of_the_own_group(self, good_model: Model, dataset: Dataset) -> None:
        seen = dataset.get_raw_interactions()
        own = seen[is_own_group(seen)].groupby(Columns.User)[Columns.Item].nunique()
        open_users = own.index[own < 12]
        assert len(open_users) == 40
        best = recommend(good_model, dataset, open_users, k=1)
        assert is_own_group(best).sum() >= 0.95 * len(open_users)

    def test_beats_popularity(self, good_model: Model, dataset: Dataset) -> None:
        popular = PopularModel().fit(dataset)
        assert own_share(good_model, dataset) > own_share(popular, dataset) + 0.5

    def test_without_features(self, name: str, plain: Any) -> None:
        dataset = plain.dataset()
        assert own_share(make_model(name, "good").fit(dataset), dataset, k=1) >= 0.95

    def test_users_that_came_later(self, good_model: Model, make_frames: Callable[..., Any], frames: Any) -> None:
        others = make_frames(n_warm=2, seed=1).interactions
        users = others[Columns.User].unique()[:20]
        rows = others[others[Columns.User].isin(users)]
        pairs = [(f"n{user[1:]}", item) for user, item in zip(rows[Columns.User], rows[Columns.Item], strict=True)]
        dataset = with_rows(frames, pairs, {f"n{user[1:]}": user for user in users}).dataset()
        best = recommend(good_model, dataset, [f"n{user[1:]}" for user in users], k=1)
        assert len(best) == 20
        assert is_own_group(best).mean() >= 0.9
