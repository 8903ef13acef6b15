from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from contract import (
    assert_same,
    hot_users,
    interactions,
    is_own_group,
    items_of,
    own_share,
    recommend,
    with_rows,
)
from pandas.testing import assert_frame_equal
from pydantic import ValidationError
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import PopularModel

from rectools_neural import DSSMModel

# Quick, and enough to learn the two groups with any loss.
OPTIONS: dict[str, Any] = {"n_factors": 8, "epochs": 30, "batch_size": 40, "learning_rate": 0.05}
WARM_USERS, WARM_ITEMS = ["u040", "u041", "u042", "u043"], [124, 125, 126, 127]
TRIPLETS = [{"name": "triplet", "margin": 0.4, "mining": mining} for mining in ("random", "semi_hard", "hard")]


def make(**options: Any) -> DSSMModel:
    return DSSMModel(**{**OPTIONS, **options})


def name_of(value: Any) -> str:
    """Id of a case: the names in an option."""
    if isinstance(value, dict):
        return "-".join(str(part) for part in value.values())
    return str(value)


@pytest.fixture(scope="module")
def frames(make_frames: Callable[..., Any]) -> Any:
    return make_frames(n_warm=4)


@pytest.fixture(scope="module")
def dataset(frames: Any) -> Dataset:
    return frames.dataset()


@pytest.fixture(scope="module")
def plain(make_dataset: Callable[..., Dataset]) -> Dataset:
    """Without features."""
    return make_dataset(features=None)


@pytest.fixture(scope="module")
def popular_share(plain: Dataset) -> float:
    return own_share(PopularModel().fit(plain), plain)


@pytest.fixture(scope="module")
def learnt(dataset: Dataset) -> DSSMModel:
    return make(loss="bpr").fit(dataset)


@pytest.fixture(scope="module")
def quick(dataset: Dataset) -> DSSMModel:
    return make(epochs=3).fit(dataset)


def scores_by_vectors(model: DSSMModel, dataset: Dataset, reco: pd.DataFrame, euclidean: bool) -> np.ndarray:
    users, items = model.get_vectors(dataset)
    user = users[dataset.user_id_map.convert_to_internal(reco[Columns.User])]
    item = items[dataset.item_id_map.convert_to_internal(reco[Columns.Item])]
    return -np.linalg.norm(user - item, axis=1) if euclidean else (user * item).sum(axis=1)


class TestLosses:
    """Each user likes one half of the catalogue: popularity hits it in a tenth of the cases, see `own_share`."""

    @pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
    @pytest.mark.parametrize("loss", ["sampled_softmax", "bpr", *TRIPLETS], ids=name_of)
    def test_sampled(self, loss: Any, similarity: str, plain: Dataset, popular_share: float) -> None:
        model = make(loss=loss, similarity=similarity).fit(plain)
        assert model.history["loss"].iloc[-1] < model.history["loss"].iloc[0]
        assert own_share(model, plain) > popular_share + 0.5

    @pytest.mark.parametrize("similarity", ["dot", "cosine"])
    @pytest.mark.parametrize("loss", ["squared", "softmax", "bce"])
    def test_of_scores_of_both_signs(self, loss: str, similarity: str, plain: Dataset, popular_share: float) -> None:
        # A squared error wants scores between 0 and 1.
        temperature = {"temperature": 1.0} if loss == "squared" else {}
        model = make(loss=loss, similarity=similarity, **temperature).fit(plain)
        assert model.history["loss"].iloc[-1] < model.history["loss"].iloc[0]
        assert own_share(model, plain) > popular_share + 0.5

    def test_unobserved_weight(self, plain: Dataset) -> None:
        """The more the unobserved items weigh, the nearer to zero are their scores."""
        means = []
        for weight in (0.05, 1.0):
            model = make(loss={"name": "squared", "unobserved_weight": weight}).fit(plain)
            means.append(recommend(model, plain, k=100)[Columns.Score].mean())
        assert means[0] > means[1] + 0.1

    def test_temperature(self, plain: Dataset) -> None:
        for temperature in (0.1, 0.5):
            model = make(similarity="cosine", loss="softmax", temperature=temperature, use_item_bias=False).fit(plain)
            users, items = model.get_vectors(plain)
            assert np.linalg.norm(users, axis=1) == pytest.approx(1 / temperature, rel=1e-5)
            assert np.linalg.norm(items, axis=1) == pytest.approx(1, rel=1e-5)


class TestNegatives:
    @pytest.mark.parametrize(
        "negatives",
        [
            "uniform",
            "popularity",
            "in_batch",
            "hard",
            {"name": "uniform", "n": 4},
            {"name": "popularity", "n": 3, "power": 0.3},
            {"name": "uniform", "n": 16, "shared": True},
            {"name": "popularity", "n": 16, "shared": True},
            {"name": "hard", "n": 2, "pool": 4},
            {"name": "hard", "n": 2, "pool": 8, "shared": True},
        ],
        ids=name_of,
    )
    @pytest.mark.parametrize("loss", ["sampled_softmax", "bpr"])
    def test_learns(self, loss: str, negatives: Any, plain: Dataset, popular_share: float) -> None:
        model = make(loss=loss, similarity="dot", negatives=negatives).fit(plain)
        assert own_share(model, plain) > popular_share + 0.4

    @pytest.mark.parametrize("name", ["uniform", "popularity", "hard"])
    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize("loss", ["sampled_softmax", "bpr", "bce", "triplet"])
    def test_more_than_there_are_items(self, loss: str, shared: bool, name: str, plain: Dataset) -> None:
        model = make(epochs=2, loss=loss, negatives={"name": name, "n": 50, "shared": shared, "pool": 2}).fit(plain)
        assert np.isfinite(model.history["loss"]).all()
        assert np.isfinite(recommend(model, plain)[Columns.Score]).all()

    @pytest.mark.parametrize("loss", ["sampled_softmax", "bpr", "bce", *TRIPLETS], ids=name_of)
    def test_batches_without_a_negative(self, loss: Any, plain: Dataset) -> None:
        """The only targets of a batch of one user are the user's own."""
        model = make(epochs=2, loss=loss, negatives="in_batch", batch_size=1).fit(plain)
        assert np.isfinite(model.history["loss"]).all()
        assert np.isfinite(recommend(model, plain)[Columns.Score]).all()

    @pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "bpr"])
    def test_positives_per_user(self, loss: str, plain: Dataset, popular_share: float) -> None:
        model = make(loss=loss, similarity="dot", positives_per_user=2).fit(plain)
        assert own_share(model, plain) > popular_share + 0.5


class TestParts:
    """Towers, history encoders and embeddings, with the loss that is least particular about its options."""

    @pytest.mark.parametrize(
        "options",
        [
            {"user_tower": "mlp"},
            {"item_tower": "mlp"},
            {"user_tower": "mlp", "item_tower": "mlp"},
            {"user_tower": "residual", "item_tower": "residual"},
            {"user_tower": {"name": "mlp", "hidden": (64, 32), "activation": "silu", "dropout": 0.1}},
            {"user_tower": {"name": "residual", "hidden": (16, 12), "normalisation": "layer"}},
            {"user_tower": {"name": "mlp", "normalisation": "batch"}, "item_tower": "mlp"},
            {"item_tower": {"name": "residual", "normalisation": "batch", "activation": "tanh"}},
            {"item_tower": {"name": "mlp", "normalisation": "layer", "activation": "gelu"}},
            {"history_encoder": {"name": "mean", "power": 0}},
            {"history_encoder": {"name": "mean", "power": 1}},
            {"history_encoder": "attention"},
            {"history_encoder": "gru"},
            {"history_encoder": "transformer"},
            {"history_encoder": {"name": "transformer", "n_layers": 2, "n_heads": 4, "max_length": 3}},
            {"history_encoder": {"name": "gru", "n_layers": 2, "dropout": 0.2}, "epochs": 80},
            {"merge": "product"},
            {"merge": "product", "item_tower": "mlp"},
            {"use_user_ids": True},
            {"share_item_embedding": False},
            {"use_item_bias": False},
            {"history_dropout": 0.0},
            {"entity_dropout": 0.0},
            {"entity_dropout": 0.5},
            {"n_factors": 1, "history_encoder": {"n_heads": 1}},
        ],
        ids=str,
    )
    def test_learns(self, options: dict[str, Any], plain: Dataset, popular_share: float) -> None:
        model = make(**{"loss": "bpr", "similarity": "dot", "epochs": 40, **options}).fit(plain)
        assert own_share(model, plain) > popular_share + 0.4

    @pytest.mark.parametrize("options", [{}, {"item_tower": "mlp"}, {"share_item_embedding": False}], ids=str)
    def test_items_by_their_features_alone(self, options: dict[str, Any], dataset: Dataset) -> None:
        """Items of equal features have equal vectors."""
        model = make(use_item_ids=False, loss="bpr", use_item_bias=False, **options).fit(dataset)
        assert own_share(model, dataset) > 0.6

    def test_items_without_ids_and_features(self, plain: Dataset) -> None:
        model = make(use_item_ids=False)
        with pytest.raises(ValueError, match="`use_item_ids`"):
            model.fit(plain)
        assert not model.is_fitted

    def test_user_ids_tell_users_of_one_history_apart(self, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(features=None)
        twins = with_rows(frames, [("twin", item) for item in items_of(frames, "u003")])
        # At the same times, so that the histories are equal to any encoder.
        times = frames.interactions.loc[frames.interactions[Columns.User] == "u003", Columns.Datetime].to_numpy()
        twins.interactions.loc[: len(times) - 1, Columns.Datetime] = times
        dataset = twins.dataset()
        rows = dataset.user_id_map.convert_to_internal(["u003", "twin"])
        for use_user_ids in (False, True):
            one, other = make(epochs=2, use_user_ids=use_user_ids).fit(dataset).get_vectors(dataset)[0][rows]
            assert np.allclose(one, other, atol=1e-6) != use_user_ids

    def test_max_length_of_a_history(self, make_frames: Callable[..., Any]) -> None:
        """Only the latest items count."""
        frames = make_frames(features=None)
        dataset = frames.dataset()
        model = make(epochs=3, history_encoder={"name": "gru", "max_length": 2}).fit(dataset)
        latest = frames.interactions.sort_values(Columns.Datetime).groupby(Columns.User).tail(2)
        assert_same(
            recommend(model, Dataset.construct(latest), filter_viewed=False),
            recommend(model, dataset, filter_viewed=False),
        )

    @pytest.mark.parametrize("encoder", ["gru", "transformer"])
    def test_order_of_a_history(self, encoder: str, plain: Dataset) -> None:
        """By time, and only for the encoders of sequences."""
        raw = plain.get_raw_interactions()
        latest = raw[Columns.Datetime].max() + pd.Timedelta(days=1)
        reverse = Dataset.construct(raw.assign(**{Columns.Datetime: latest - (raw[Columns.Datetime] - latest)}))
        for name in (encoder, "mean"):
            model = make(epochs=3, history_encoder=name).fit(plain)
            one, other = (recommend(model, data, k=100) for data in (plain, reverse))
            changed = np.abs(_by_pair(one) - _by_pair(other)).max()
            assert (changed > 1e-3) == (name == encoder)


def _by_pair(reco: pd.DataFrame) -> pd.Series:
    return reco.set_index(Columns.UserItem)[Columns.Score].sort_index()


class TestScores:
    """The score in the frame is the dot product of the vectors, or minus their distance."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"similarity": "dot", "use_item_bias": False},
            {"similarity": "cosine"},
            {"similarity": "euclidean"},
            {"similarity": "euclidean", "merge": "similarity", "user_tower": "mlp", "item_tower": "residual"},
            {"merge": "product"},
            {"history_encoder": "transformer", "user_tower": {"name": "mlp", "normalisation": "batch", "dropout": 0.2}},
            {"use_user_ids": True, "share_item_embedding": False},
        ],
        ids=str,
    )
    def test_are_those_of_the_vectors(self, options: dict[str, Any], frames: Any) -> None:
        model = make(**{"epochs": 3, "loss": "bpr", **options}).fit(frames.dataset())
        rows = [("new", 101), ("new", 900), ("u001", 900)]
        later = with_rows(frames, rows, {"new": "u001", 900: 101}).shuffled(4).dataset()
        users, items = model.get_vectors(later)
        assert users.shape == (later.user_id_map.size, items.shape[1])
        assert items.shape[0] == later.item_id_map.size
        assert users.dtype == items.dtype == np.float32
        everybody = [*hot_users(later), *WARM_USERS]
        whitelist = [100, 117, 900, *WARM_ITEMS]
        euclidean = options.get("similarity") == "euclidean"
        for choice in ({}, {"items_to_recommend": whitelist}, {"items_to_recommend": whitelist[:1]}):
            reco = recommend(model, later, everybody, k=100, filter_viewed=False, **choice)
            assert len(reco) == 45 * len(choice.get("items_to_recommend", range(24)))
            expected = scores_by_vectors(model, later, reco, euclidean)
            np.testing.assert_allclose(reco[Columns.Score], expected, rtol=1e-4, atol=2e-5)

    @pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean"])
    def test_between_items(self, similarity: str, dataset: Dataset) -> None:
        """By direction, or by distance; how popular an item is does not count."""
        model = make(epochs=3, loss="bpr", similarity=similarity).fit(dataset)
        reco = model.recommend_to_items([100, 103, 124], dataset, k=100, filter_itself=False)
        items = model.get_vectors(dataset)[1]
        if similarity != "euclidean":
            items = items[:, :-1]
            items = items / np.linalg.norm(items, axis=1, keepdims=True)
        one, other = (
            items[dataset.item_id_map.convert_to_internal(reco[column])]
            for column in (Columns.TargetItem, Columns.Item)
        )
        expected = -np.linalg.norm(one - other, axis=1) if similarity == "euclidean" else (one * other).sum(axis=1)
        # The distance of an item to itself is a difference of nearly equal numbers.
        np.testing.assert_allclose(reco[Columns.Score], expected, rtol=1e-4, atol=1e-3)
        first = reco[reco[Columns.Rank] == 1].query("target_item_id != 124")
        assert first[Columns.Item].tolist() == first[Columns.TargetItem].tolist()

    def test_bias_is_the_last_coordinate(self, dataset: Dataset) -> None:
        users, items = make(epochs=3, similarity="dot", use_item_bias=True).fit(dataset).get_vectors(dataset)
        assert users.shape[1] == items.shape[1] == 9
        assert (users[:, -1] == 1).all()
        is_warm = np.isin(dataset.item_id_map.external_ids, WARM_ITEMS)
        assert (items[is_warm, -1] == 0).all()
        assert (items[~is_warm, -1] != 0).all()
        without = make(epochs=3, similarity="dot", use_item_bias=False).fit(dataset).get_vectors(dataset)
        assert [vectors.shape[1] for vectors in without] == [8, 8]

    def test_vectors_of_a_shuffled_dataset(self, quick: DSSMModel, frames: Any) -> None:
        dataset, shuffled = frames.dataset(), frames.shuffled(2).dataset()
        pairs = zip(quick.get_vectors(dataset), quick.get_vectors(shuffled), strict=True)
        for side, (one, other) in zip(("user_id_map", "item_id_map"), pairs, strict=True):
            ids = getattr(dataset, side).external_ids
            np.testing.assert_allclose(other[getattr(shuffled, side).convert_to_internal(ids)], one, atol=1e-6)

    def test_chunks_change_nothing(self, quick: DSSMModel, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = recommend(quick, dataset, k=100)
        monkeypatch.setattr("rectools_neural.models.two_sided._CHUNK", 7)
        monkeypatch.setattr("rectools_neural.ranking.MAX_SCORES", 60)
        assert_same(recommend(quick, dataset, k=100), expected)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"loss": "squared", "negatives": "uniform"}, ["loss `squared`", "`negatives`"]),
            ({"loss": "softmax", "negatives": {"n": 5}}, ["loss `softmax`", "`negatives`"]),
            ({"loss": "squared", "similarity": "euclidean"}, ["loss `squared`", "similarity `euclidean`"]),
            ({"loss": "softmax", "similarity": "euclidean"}, ["loss `softmax`", "similarity `euclidean`"]),
            ({"loss": "bce", "similarity": "euclidean"}, ["loss `bce`", "similarity `euclidean`"]),
            ({"merge": "product", "similarity": "cosine"}, ["merge `product`", "`cosine`", "`similarity`"]),
            ({"merge": "product", "similarity": "euclidean"}, ["merge `product`", "`euclidean`", "`similarity`"]),
            (
                {"n_factors": 6, "history_encoder": {"name": "attention", "n_heads": 4}},
                ["`n_factors` (6)", "`n_heads` (4)"],
            ),
            (
                {"n_factors": 7, "history_encoder": {"name": "transformer", "n_heads": 2}},
                ["`n_factors` (7)", "`n_heads` (2)"],
            ),
            ({"negatives": {"n": 0}}, ["negatives.n"]),
            ({"negatives": {"n": 1.5}}, ["negatives.n"]),
            ({"negatives": {"name": "hard", "pool": 0}}, ["negatives.pool"]),
            ({"negatives": {"name": "popularity", "power": -1}}, ["negatives.power"]),
            ({"negatives": {"name": "uniform", "size": 3}}, ["negatives.size"]),
            ({"loss": {"name": "triplet", "margin": 0}}, ["loss.triplet.margin"]),
            ({"loss": {"name": "bpr", "margin": 0.1}}, ["loss.bpr.margin"]),
            ({"n_factors": 0}, ["n_factors"]),
            ({"positives_per_user": 0}, ["positives_per_user"]),
            ({"temperature": 0}, ["temperature"]),
            ({"history_dropout": 1.0}, ["history_dropout"]),
            ({"entity_dropout": -0.1}, ["entity_dropout"]),
            ({"use_item_ids": "sometimes"}, ["use_item_ids"]),
            ({"loss": "tripet"}, ["loss", "`tripet`", "did you mean `triplet`"]),
            ({"loss": {"name": "sampled-softmax"}}, ["loss", "did you mean `sampled_softmax`"]),
            ({"user_tower": "mpl"}, ["user_tower", "`mpl`", "did you mean `mlp`"]),
            ({"item_tower": {"name": "residul"}}, ["item_tower", "did you mean `residual`"]),
            ({"history_encoder": "transfomer"}, ["history_encoder", "did you mean `transformer`"]),
            ({"negatives": "in-batch"}, ["negatives", "did you mean `in_batch`"]),
            ({"optimizer": "adamm"}, ["optimizer", "did you mean `adam"]),
            ({"optimizer": {"schedule": "cosin"}}, ["optimizer.schedule", "did you mean `cosine`"]),
            ({"validation": "randm"}, ["validation", "did you mean `random`"]),
            ({"similarity": "cosin"}, ["similarity", "'cosine'"]),
            ({"merge": "sum"}, ["merge", "'product'"]),
        ],
        ids=name_of,
    )
    def test_name_the_options(self, options: dict[str, Any], named: list[str]) -> None:
        with pytest.raises(ValidationError) as error:
            DSSMModel(**options)
        with pytest.raises(ValidationError):
            DSSMModel.from_config({"cls": "rectools_neural.DSSMModel", **options})
        for part in named:
            assert part in str(error.value)

    @pytest.mark.parametrize(
        "options",
        [
            {"n_factors": 7, "history_encoder": {"name": "gru", "n_heads": 2}},
            {"loss": "squared", "similarity": "dot", "merge": "product"},
            {"similarity": "euclidean"},
            {"negatives": "popularity"},
            {"merge": "product"},
        ],
        ids=str,
    )
    def test_what_fits_is_not_refused(self, options: dict[str, Any], plain: Dataset) -> None:
        """What is left open follows from what is given."""
        model = DSSMModel(**{"epochs": 2, "n_factors": 8, **options}).fit(plain)
        config: Any = model.fitted_config
        assert config.loss.name in ("squared", "softmax", "sampled_softmax", "bpr", "bce", "triplet")
        for option in ("similarity", "merge"):
            if option in options:
                assert getattr(config, option) == options[option]
        if "negatives" in options:
            assert config.loss.name not in ("squared", "softmax")
            assert config.negatives.name == "popularity"


class TestFeatures:
    @pytest.mark.parametrize("kind", ["sparse", "dense"])
    def test_warm_users_and_items(self, kind: str, make_dataset: Callable[..., Dataset]) -> None:
        """Those without interactions are known by their features."""
        dataset = make_dataset(n_warm=4, features=kind)
        model = make(loss="bpr").fit(dataset)
        assert own_share(model, dataset, WARM_USERS, k=3) >= 0.9
        ranked = recommend(model, dataset, k=2, items_to_recommend=WARM_ITEMS)
        assert is_own_group(ranked).mean() >= 0.9
        both = recommend(model, dataset, WARM_USERS, k=2, items_to_recommend=WARM_ITEMS)
        assert is_own_group(both).mean() >= 0.75
        neighbours = model.recommend_to_items(WARM_ITEMS, dataset, k=3)
        assert (neighbours[Columns.TargetItem] % 2 == neighbours[Columns.Item] % 2).mean() >= 0.9

    def test_cold_users_get_one_ranking(self, learnt: DSSMModel, dataset: Dataset) -> None:
        """Near to that of popularity: nothing is known of them."""
        reco = recommend(learnt, dataset, ["x", "y"], k=24)
        one, other = (reco.loc[reco[Columns.User] == user, [Columns.Item, Columns.Score]] for user in "xy")
        assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))
        counts = dataset.get_raw_interactions()[Columns.Item].value_counts()
        top, bottom = (one[Columns.Item].map(counts).iloc[part].mean() for part in (slice(8), slice(-8, None)))
        assert top > 1.3 * bottom

    @pytest.mark.parametrize("side", ["user", "item"])
    @pytest.mark.parametrize("kind", ["sparse", "dense"])
    def test_of_one_side(self, kind: str, side: str, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(n_warm=4, features=kind)
        other = {"user": "item_features", "item": "user_features"}[side]
        dataset = replace(frames, **{other: None}).dataset()
        model = make(loss="bpr").fit(dataset)
        assert own_share(model, dataset) > 0.6
        if side == "user":
            assert own_share(model, dataset, WARM_USERS, k=3) >= 0.9
        else:
            ranked = recommend(model, dataset, k=2, items_to_recommend=WARM_ITEMS)
            assert is_own_group(ranked).mean() >= 0.9

    @pytest.mark.parametrize(
        ("kind", "side", "feature"),
        [("dense", "user", "age"), ("dense", "item", "price"), ("sparse", "user", "age"), ("sparse", "item", "price")],
    )
    def test_nan_is_named(self, kind: str, side: str, feature: str, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(n_warm=4, features=kind)
        table = getattr(frames, f"{side}_features").reset_index(drop=True)
        column = feature if kind == "dense" else "value"
        rows = slice(2, 2) if kind == "dense" else table.index[table["feature"] == feature][2]
        table.loc[rows, column] = np.nan
        broken = replace(frames, **{f"{side}_features": table}).dataset()
        model = make(epochs=2)
        with pytest.raises(ValueError, match=rf"{side} features .*`{feature}`"):
            model.fit(broken)
        assert not model.is_fitted
        model.fit(frames.dataset())
        with pytest.raises(ValueError, match=rf"{side} features .*`{feature}`"):
            recommend(model, broken, ["u001"])

    @pytest.mark.parametrize("other", [None, "dense"])
    def test_of_another_kind_are_refused(
        self, other: str | None, quick: DSSMModel, make_dataset: Callable[..., Dataset]
    ) -> None:
        wrong = make_dataset(n_warm=4, features=other)
        uses: list[Callable[[], Any]] = [
            lambda: recommend(quick, wrong, ["u001"]),
            lambda: quick.recommend_to_items([100], wrong, k=2),
            lambda: quick.get_vectors(wrong),
        ]
        for use in uses:
            with pytest.raises(ValueError, match=f"features are {other or 'none'}, but .* with sparse ones"):
                use()

    @pytest.mark.parametrize("side", ["user", "item"])
    def test_of_other_names_are_refused(self, side: str, quick: DSSMModel, frames: Any) -> None:
        table = getattr(frames, f"{side}_features")
        more = pd.concat([table, table.iloc[:1].assign(feature="colour", value=3.0)])
        wrong = replace(frames, **{f"{side}_features": more}).dataset()
        with pytest.raises(ValueError, match=f"{side} features .*colour"):
            recommend(quick, wrong, ["u001"])

    def test_dataset_of_one_new_user(self, learnt: DSSMModel, frames: Any) -> None:
        """With the features of the user and of a few items; those of the other items are known from the fit."""
        table, users, items = frames.interactions, frames.user_features, frames.item_features
        mine = table[table[Columns.User] == "u012"].assign(**{Columns.User: "new"})
        small = replace(
            frames,
            interactions=mine,
            user_features=users[users["id"] == "u012"].assign(id="new"),
            item_features=items[items["id"].isin(mine[Columns.Item])],
        )
        expected = recommend(learnt, frames.dataset(), ["u012"], k=100)
        actual = recommend(learnt, small.dataset(), ["new"], k=100)
        assert_same(actual, expected.assign(**{Columns.User: "new"}))

    def test_one_new_user_of_whom_less_is_known(self, learnt: DSSMModel, frames: Any) -> None:
        """A feature that nobody in the dataset has is a missing one."""
        table, users = frames.interactions, frames.user_features
        mine = table[table[Columns.User] == "u013"].assign(**{Columns.User: "new"})
        known = users[users["id"] == "u013"].assign(id="new")
        assert "age" not in set(known["feature"])
        small = replace(frames, interactions=mine, user_features=known).dataset()
        expected = recommend(learnt, frames.dataset(), ["u013"], k=100)
        assert_same(recommend(learnt, small, ["new"], k=100), expected.assign(**{Columns.User: "new"}))

    @pytest.mark.parametrize("item", [100, 126])
    def test_newer_features_of_an_item_count(self, item: int, learnt: DSSMModel, frames: Any) -> None:
        """Those of the dataset at hand, whether the model was fitted on the item or not."""
        items = frames.item_features
        is_genre = (items["id"] == item) & (items["feature"] == "genre")
        moved = replace(frames, item_features=items.assign(value=items["value"].mask(is_genre, "c1")))
        best: dict[str, list[float]] = {"even": [], "odd": []}
        for data in (frames.dataset(), moved.dataset()):
            reco = recommend(learnt, data, items_to_recommend=[item], filter_viewed=False)
            is_odd = reco[Columns.User].str[1:].astype(int) % 2 == 1
            best["even"].append(reco.loc[~is_odd, Columns.Score].mean())
            best["odd"].append(reco.loc[is_odd, Columns.Score].mean())
        assert best["even"][0] > best["even"][1]
        assert best["odd"][0] < best["odd"][1]


class TestChoices:
    """What is left open follows from the data; what is chosen stands in `fitted_config` alone."""

    @staticmethod
    def sparse() -> Dataset:
        """Three items of a thousand for each of 500 users."""
        rng = np.random.default_rng(0)
        pairs = np.column_stack([np.repeat(np.arange(500), 3), rng.integers(0, 1000, 1500)])
        return Dataset.construct(interactions(pairs))

    def test_dense_and_sparse_data(self, plain: Dataset) -> None:
        chosen: list[Any] = []
        for dataset in (plain, self.sparse()):
            model = DSSMModel(n_factors=8, get_trainer_func_kwargs={"max_steps": 2})
            before = model.get_config()
            model.fit(dataset)
            assert model.get_config() == before
            assert [model.loss, model.similarity, model.batch_size, model.epochs] == [None] * 4
            chosen.append(model.fitted_config)
            assert chosen[-1].batch_size >= 1
            assert chosen[-1].epochs >= 1
            assert len(recommend(model, dataset, k=3)) == 3 * dataset.user_id_map.size
        assert [(config.loss.name, config.similarity) for config in chosen] == [
            ("squared", "dot"),
            ("sampled_softmax", "cosine"),
        ]

    @pytest.mark.parametrize(
        "options", [{"loss": "triplet"}, {"similarity": "cosine"}, {"batch_size": 5}, {"epochs": 2}], ids=str
    )
    def test_what_is_given_stays(self, options: dict[str, Any], plain: Dataset) -> None:
        model = DSSMModel(n_factors=8, get_trainer_func_kwargs={"max_steps": 1}, **options).fit(plain)
        (name,) = options
        assert getattr(model.fitted_config, name) == getattr(model, name)

    def test_are_saved(self, plain: Dataset) -> None:
        model = DSSMModel(n_factors=8, get_trainer_func_kwargs={"max_steps": 1}).fit(plain)
        assert DSSMModel.loads(model.dumps()).fitted_config == model.fitted_config

    def test_defaults_learn(self, plain: Dataset, popular_share: float) -> None:
        model = DSSMModel().fit(plain)
        assert own_share(model, plain) > popular_share + 0.3


class TestTraining:
    def test_what_goes_together(self) -> None:
        """Users have one of six pairs of items each: who comes later with half of a pair gets the other half."""
        rows = [(user, 2 * (user % 6) + side) for user in range(60) for side in (0, 1)]
        frame = interactions(rows)
        model = make(loss="bpr", epochs=40, entity_dropout=0.0).fit(Dataset.construct(frame))
        half = frame[frame[Columns.Item] % 2 == 0].assign(**{Columns.User: lambda table: table[Columns.User] + 100})
        best = recommend(model, Dataset.construct(half), k=1)
        expected = 2 * ((best[Columns.User] - 100) % 6) + 1
        assert (best[Columns.Item] == expected).mean() >= 0.95

    def test_later_history_counts(self, learnt: DSSMModel, frames: Any) -> None:
        """Without a refit: whoever has only odd items gets odd ones."""
        without_user_features = [("new0", item) for item in (101, 103, 105)] + [("new1", i) for i in (100, 102, 104)]
        dataset = with_rows(frames, without_user_features).dataset()
        reco = recommend(learnt, dataset, ["new0", "new1"], k=3)
        odd = reco[Columns.Item] % 2 == 1
        assert odd[reco[Columns.User] == "new0"].all()
        assert not odd[reco[Columns.User] == "new1"].any()
