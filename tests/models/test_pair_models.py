"""What models of pairs share: targets, and what they say of bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from contract import recommend
from pair_cases import data_schema
from pandas.testing import assert_frame_equal
from pydantic import ValidationError
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.model_selection import LastNSplitter
from rectools.models import PopularModel
from rectools.models.ranking import CandidateFeatureCollector, CandidateGenerator, CandidateRankingModel, Reranker
from sklearn.metrics import roc_auc_score

from rectools_neural import DLRMModel, NCFModel
from rectools_neural.models.pairs import PairModel

MODELS: list[type[PairModel[Any]]] = [NCFModel, DLRMModel]
CONTEXT: dict[str, Any] = {"context_numeric": ("hour",), "context_categorical": ("place",)}


def ratings() -> pd.DataFrame:
    """How users rate items: by a level of each and by whether their groups fit, which no sum of levels tells."""
    rng = np.random.default_rng(0)
    users, items = (part.ravel() for part in np.meshgrid(np.arange(60), np.arange(50)))
    levels = 3 + rng.normal(0, 0.5, 60)[users] + rng.normal(0, 0.5, 50)[items]
    fit = np.where((users // 2 + items // 2) % 2 == 0, 1.0, -1.0)
    weights = np.clip(levels + fit + rng.normal(0, 0.1, len(users)), 0, 6)
    columns = {Columns.User: users, Columns.Item: items, Columns.Weight: weights}
    return pd.DataFrame(columns).assign(**{Columns.Datetime: pd.Timestamp("2024-01-01")})


TABLE = ratings()
HELD = np.random.default_rng(1).random(len(TABLE)) < 0.4


@pytest.fixture(scope="module")
def rated() -> Dataset:
    return Dataset.construct(TABLE[~HELD])


@pytest.mark.parametrize("model_class", MODELS)
class TestTargets:
    def test_labels(self, model_class: type[PairModel[Any]], rated: Dataset) -> None:
        model = model_class(n_factors=8, target={"name": "label", "threshold": 3}).fit(rated)
        probabilities = model.predict_pairs(TABLE[HELD], rated)[Columns.Score]
        labels = TABLE[HELD][Columns.Weight] > 3
        assert roc_auc_score(labels, probabilities) > 0.95
        assert probabilities.between(0, 1).all()
        assert probabilities.mean() == pytest.approx(labels.mean(), abs=0.03)
        # Sure of what is clear, and right to be.
        assert labels[probabilities > 0.9].mean() > 0.9
        assert labels[probabilities < 0.1].mean() < 0.1
        reco = recommend(model, rated, k=5)
        assert reco[Columns.Score].between(0, 1).all()
        truth = TABLE.set_index(Columns.UserItem)[Columns.Weight]
        assert (truth.loc[pd.MultiIndex.from_frame(reco[Columns.UserItem])] > 3).mean() > 0.95

    @pytest.mark.parametrize("level", [0, 40])
    def test_ratings(self, model_class: type[PairModel[Any]], rated: Dataset, level: float) -> None:
        """On the scale of the weights, wherever that begins."""
        table = TABLE.assign(**{Columns.Weight: TABLE[Columns.Weight] + level})
        dataset = Dataset.construct(table[~HELD])
        model = model_class(n_factors=8, target="rating").fit(dataset)
        predicted, truth = model.predict_pairs(table[HELD], dataset)[Columns.Score], table[HELD][Columns.Weight]
        by_item = table[~HELD].groupby(Columns.Item)[Columns.Weight].mean()
        of_item = table[HELD][Columns.Item].map(by_item)
        errors = [float(((values - truth) ** 2).mean() ** 0.5) for values in (predicted, of_item)]
        assert errors[0] < 0.5 * errors[1]
        assert predicted.mean() == pytest.approx(truth.mean(), abs=0.1)
        assert predicted.std() == pytest.approx(truth.std(), rel=0.2)

    def test_weights_of_zero_count(self, model_class: type[PairModel[Any]]) -> None:
        """They are labels, although nothing of a history."""
        table = TABLE.assign(**{Columns.Weight: (TABLE[Columns.Weight] > 4).astype(float)})
        dataset = Dataset.construct(table[~HELD])
        model = model_class(n_factors=8, target="label").fit(dataset)
        predicted, truth = model.predict_pairs(table[HELD], dataset)[Columns.Score], table[HELD][Columns.Weight]
        assert predicted.mean() == pytest.approx(truth.mean(), abs=0.05)
        assert roc_auc_score(truth, predicted) > 0.9

    def test_implicit_goes_by_no_weights(self, model_class: type[PairModel[Any]], rated: Dataset) -> None:
        other = Dataset.construct(TABLE[~HELD].assign(**{Columns.Weight: np.nan}))
        one, two = (recommend(model_class(n_factors=2, epochs=1).fit(data), rated) for data in (rated, other))
        assert_frame_equal(one, two)

    @pytest.mark.parametrize("target", [{"name": "label", "threshold": 3}, "rating"], ids=["label", "rating"])
    def test_further_fits_keep_the_base(self, model_class: type[PairModel[Any]], target: Any, rated: Dataset) -> None:
        model = model_class(n_factors=2, epochs=1, target=target).fit(rated)
        before = float(model._fitted.module.base)  # type: ignore[arg-type]
        model.fit_partial(Dataset.construct(TABLE[TABLE[Columns.Weight] > 3]), 1)
        assert float(model._fitted.module.base) == before  # type: ignore[arg-type]
        share = float((TABLE[~HELD][Columns.Weight] > 3).mean())
        mean = float(TABLE[~HELD][Columns.Weight].mean())
        assert before == pytest.approx(mean if target == "rating" else np.log(share / (1 - share)), abs=1e-5)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("model_class", "options", "named"),
    [
        *(
            (model_class, {"target": target, option: value}, [f"target `{target}`", "leave `loss` and `negatives` out"])
            for model_class in MODELS
            for target in ("label", "rating")
            for option, value in (("loss", "bce"), ("negatives", {"n": 3}))
        ),
        *(
            (model_class, {"loss": loss, "negatives": negatives}, [f"`{loss}`", "`negatives`", said])
            for model_class in MODELS
            for loss, negatives, said in (
                ("logistic", "uniform", "takes no `negatives`"),
                ("softmax", {"n": 5, "shared": True}, "takes no `negatives`"),
                ("squared", {"n": 5}, "set `shared`"),
                ("sampled_softmax", "popularity", "set `shared`"),
                ("bce", {"n": 5, "shared": True}, "leave `shared` out"),
                ("bpr", "in_batch", "drawn for each pair"),
            )
        ),
        (NCFModel, {"target": "labels"}, ["target", "`labels`", "did you mean `label`"]),
        (NCFModel, {"loss": "triplet"}, ["loss", "`triplet`"]),
        (NCFModel, {"architecture": "neumf", "hidden": ()}, ["`neumf`", "`hidden`", "at least one layer"]),
        (NCFModel, {"architecture": "mlp", "hidden": ()}, ["`mlp`", "`hidden`"]),
        (NCFModel, {"architecture": "gmf", "pretraining": {}}, ["`pretraining`", "`gmf`", "leave it out"]),
        (NCFModel, {"pretraining": {"alpha": 1.0}}, ["pretraining.alpha", "less than 1"]),
        (NCFModel, {"dropout": 1.0}, ["dropout", "less than 1"]),
        (DLRMModel, {"history_encoder": "mean", "target": "label"}, ["`history_encoder`", "Leave it out"]),
        (DLRMModel, {"history_encoder": "mean", **CONTEXT}, ["`history_encoder`", "without context"]),
        (
            DLRMModel,
            {"history_encoder": {"name": "attention", "n_heads": 3}, "n_factors": 8},
            ["`n_factors` (8)", "`n_heads` (3)"],
        ),
        (
            DLRMModel,
            {"self_interaction": True, "interaction": "concatenation"},
            ["`self_interaction`", "`interaction`"],
        ),
        (DLRMModel, {"shortcut": False, "top_hidden": ()}, ["`shortcut`", "`top_hidden`"]),
        (DLRMModel, {"context_numeric": ("a",), "context_categorical": ("b", "a")}, ["['a']", "choose one"]),
        (DLRMModel, {"context_numeric": "hour"}, ["context_numeric", "tuple"]),
    ],
    ids=str,
)
def test_bad_options_are_named(model_class: type[PairModel[Any]], options: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValidationError) as error:
        model_class(**options)
    for part in named:
        assert part in str(error.value)


def in_context(frames: Any, **columns: Any) -> Dataset:
    """With a context, which the further columns replace."""
    n = np.arange(len(frames.interactions))
    columns = {"hour": n % 24.0, "place": np.where(n % 3, "home", "work"), **columns}
    table = frames.interactions.assign(**{name: value for name, value in columns.items() if value is not None})
    return Dataset.construct(table, keep_extra_cols=True)


class TestFits:
    """Those that fail leave the model as it was."""

    @pytest.mark.parametrize("model_class", MODELS)
    @pytest.mark.parametrize(
        ("columns", "options", "said"),
        [
            ({}, {"target": "label"}, r"weights above the `threshold` 0.0 .*they are 1 to 1.*one class.*Change"),
            ({"weight": 0.0}, {"target": "label"}, r"up to the `threshold` 0.0 .*they are 0 to 0.*Change `threshold`"),
            ({}, {"target": {"name": "label", "threshold": 7}}, r"up to the `threshold` 7.0 .*Change `threshold`"),
            ({"weight": np.nan}, {"target": "rating"}, r"Column `weight` .* 320 values"),
            ({"weight": -1.0}, {"target": "label"}, r"Column `weight` .* negative"),
        ],
        ids=str,
    )
    def test_targets(
        self,
        model_class: type[PairModel[Any]],
        columns: dict[str, Any],
        options: dict[str, Any],
        said: str,
        make_frames: Callable[..., Any],
    ) -> None:
        self.check(model_class, options, in_context(make_frames(), **columns), said, make_frames)

    @pytest.mark.parametrize(
        ("columns", "options", "said"),
        [
            ({"hour": None}, {}, r"The interactions lack the context columns \['hour'\].*`keep_extra_cols=True`"),
            ({"hour": None, "place": None}, {}, r"lack the context columns \['hour', 'place'\]: add them"),
            ({"hour": "noon"}, {}, r"`hour` is in `context_numeric`, but not all .* numbers"),
            ({"hour": np.inf}, {}, r"`hour` hold NaN or infinite"),
            ({"place": np.nan}, {}, r"\['place'\] .* have no values: leave them out of"),
            ({}, {"validation": "random"}, r"Validation .* context .*: leave `validation` and `dataset_valid` out"),
            ({}, {"loss": "squared"}, r"loss `squared` is over users.*: use bce or bpr"),
            ({}, {"negatives": {"n": 4, "shared": True}}, r"`negatives` of `bce` .*leave `shared` out"),
        ],
        ids=str,
    )
    def test_context(
        self, columns: dict[str, Any], options: dict[str, Any], said: str, make_frames: Callable[..., Any]
    ) -> None:
        self.check(DLRMModel, {**CONTEXT, **options}, in_context(make_frames(), **columns), said, make_frames)

    def test_nothing_to_go_by(self, make_frames: Callable[..., Any]) -> None:
        options = {"use_user_ids": False, "use_item_ids": False}
        said = (
            r"nothing to go by: `use_user_ids` and `use_item_ids` are off, and there are neither features nor context"
        )
        self.check(DLRMModel, options, in_context(make_frames()), said, make_frames)

    @staticmethod
    def check(
        model_class: type[PairModel[Any]],
        options: dict[str, Any],
        dataset: Dataset,
        said: str,
        make_frames: Callable[..., Any],
    ) -> None:
        good = make_frames().dataset()
        with pytest.raises(ValueError, match=said):
            model_class(epochs=1, **options).fit(dataset)
        model = model_class(epochs=1, n_factors=2).fit(good)
        expected = recommend(model, good)
        usual = {name: getattr(model, name) for name in options}
        for name in options:
            setattr(model, name, getattr(model_class(**options), name))
        with pytest.raises(ValueError, match=said):
            model.fit(dataset)
        for name, value in usual.items():
            setattr(model, name, value)
        assert_frame_equal(recommend(model, good), expected)

    @pytest.mark.parametrize("model_class", MODELS)
    @pytest.mark.parametrize("loss", ["logistic", "softmax", "squared"])
    def test_a_catalogue_too_large(self, model_class: type[PairModel[Any]], loss: str) -> None:
        schema = replace(data_schema(), n_users=200_000, n_items=1_000_000, n_interactions=5_000_000)
        model = model_class(loss=loss, negatives={"n": 10**6, "shared": True} if loss == "squared" else None)
        said = (
            rf"loss `{loss}` scores 1000000 items for the 512 users of a batch by 32 hidden units each, which takes "
            r"122.1 GiB .*: lower `batch_size`, or set `loss` or `negatives`"
        )
        with pytest.raises(ValueError, match=said):
            model._adapt(model.get_config(mode="pydantic"), schema)
        for change in ({"batch_size": 8}, {"loss": "bce", "negatives": None}, {"loss": None, "negatives": None}):
            config = model.get_config(mode="pydantic")
            other = type(config)(**{**dict(config), **change})
            assert model._adapt(other, schema).batch_size is not None


class TestUses:
    @pytest.fixture(scope="class")
    def dataset(self, make_frames: Callable[..., Any]) -> Dataset:
        return in_context(make_frames())

    @pytest.fixture(scope="class")
    def model(self, dataset: Dataset) -> DLRMModel:
        return DLRMModel(epochs=1, n_factors=2, **CONTEXT).fit(dataset)

    GOOD = pd.DataFrame({Columns.User: ["u001", "u002"], "hour": 1.0, "place": "home"})
    PAIRS = GOOD.assign(**{Columns.Item: [100, 101]})

    @pytest.mark.parametrize(
        ("context", "said"),
        [
            (None, r"requires `context`"),
            (GOOD.drop(columns="hour"), r"`context` lack the context columns \['hour'\]"),
            (GOOD.drop(columns=Columns.User), r"The `context` lacks the column `user_id`"),
            (pd.concat([GOOD, GOOD.iloc[:1]]), r"more than one row for the user u001"),
            (GOOD.iloc[:1], r"no row for 1 of the users, such as \['u002'\]"),
            (GOOD.assign(hour="noon"), r"`hour` is in `context_numeric`, but not all .* numbers"),
            (GOOD.assign(hour=-np.inf), r"`hour` hold NaN or infinite"),
        ],
        ids=["none", "column", "user column", "twice", "user", "number", "infinite"],
    )
    def test_recommend(self, model: DLRMModel, dataset: Dataset, context: Any, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            recommend(model, dataset, ["u001", "u002"], context=context)

    def test_a_context_that_is_not_asked_for(self, dataset: Dataset) -> None:
        model = NCFModel(epochs=1, n_factors=2).fit(dataset)
        users = ["u001", "u002"]
        with pytest.warns(UserWarning, match="context"):
            with_it = recommend(model, dataset, users, context=self.GOOD)
        assert_frame_equal(with_it, recommend(model, dataset, users))

    @pytest.mark.parametrize(
        ("pairs", "said"),
        [
            (PAIRS.drop(columns=Columns.User), r"`pairs` lack the columns \['user_id'\]"),
            (PAIRS[["hour", "place"]], r"`pairs` lack the columns \['user_id', 'item_id'\]"),
            (
                PAIRS.assign(user_id=["u001", "nobody"]),
                r"Column `user_id` of `pairs` has 1 ids .*\['nobody'\]: add them",
            ),
            (PAIRS.assign(item_id=[7, 9999]), r"Column `item_id` of `pairs` has 2 ids .*\[7, 9999\]"),
            (PAIRS.drop(columns="place"), r"The `pairs` lack the context columns \['place'\]"),
            (PAIRS.assign(hour="noon"), r"`hour` is in `context_numeric`"),
        ],
        ids=["user column", "both columns", "user", "items", "context", "number"],
    )
    def test_predict_pairs(self, model: DLRMModel, dataset: Dataset, pairs: pd.DataFrame, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            model.predict_pairs(pairs, dataset)
        assert np.isfinite(model.predict_pairs(self.PAIRS, dataset)[Columns.Score]).all()

    @pytest.mark.parametrize("model_class", MODELS)
    def test_unfitted(self, model_class: type[PairModel[Any]], dataset: Dataset) -> None:
        with pytest.raises(NotFittedError, match=model_class.__name__):
            model_class().predict_pairs(self.PAIRS, dataset)


def test_reranks_in_a_candidate_ranking_model(rated: Dataset) -> None:
    """RecTools' two stages: popular candidates, in the order of the scores that the pairs get."""
    model = NCFModel(n_factors=8, target="rating").fit(rated)

    class Scores(CandidateFeatureCollector):  # type: ignore[misc]
        def _get_user_item_features(self, useritem: pd.DataFrame, dataset: Dataset, fold_info: Any) -> pd.DataFrame:
            return model.predict_pairs(useritem[Columns.UserItem], dataset).rename(columns={Columns.Score: "rating"})

    class ByRating:
        def fit(self, **data: Any) -> ByRating:
            assert "rating" in data["X"]
            return self

        def predict(self, features: pd.DataFrame) -> np.ndarray:
            return features["rating"].to_numpy()

    candidates = CandidateGenerator(PopularModel(), num_candidates=20, keep_ranks=False, keep_scores=False)
    two_stages = CandidateRankingModel(
        [candidates], LastNSplitter(5, n_splits=1), Reranker(ByRating()), feature_collector=Scores()
    ).fit(rated)
    users = [3, 10, 21]
    reco = two_stages.recommend(users, rated, k=5, filter_viewed=True)
    popular = PopularModel().fit(rated).recommend(users, rated, k=20, filter_viewed=True)
    scored = model.predict_pairs(popular[Columns.UserItem], rated).sort_values(Columns.Score, ascending=False)
    for user in users:
        best = scored[scored[Columns.User] == user].head(5)
        own = reco[reco[Columns.User] == user]
        assert own[Columns.Item].tolist() == best[Columns.Item].tolist()
        np.testing.assert_allclose(own[Columns.Score], best[Columns.Score], atol=1e-5)
