from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from contract import own_share, recommend, with_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_cases import (
    HISTORIES,
    ITEM_ROWS,
    OWN,
    PAIRS,
    USER_ROWS,
    data_schema,
    features,
    has_right_gradients,
    item_batch,
    linear_in_features,
    module_of,
    perceptron,
    training_batch,
    user_batch,
)
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import PopularModel

from rectools_neural import DLRMModel, NCFModel
from rectools_neural.data.batches import NegativeBatch
from rectools_neural.data.features import EncodedFeatures
from rectools_neural.models.base import DataSchema
from rectools_neural.models.dlrm import DLRMModule
from rectools_neural.models.pairs import PairModel

OPTIONS: dict[str, Any] = {
    "n_factors": 4,
    "bottom_hidden": (3,),
    "top_hidden": (5, 3),
    "activation": "tanh",
    "epochs": 1,
}
# Quick, and enough to learn the two groups.
QUICK: dict[str, Any] = {
    "n_factors": 8,
    "epochs": 60,
    "batch_size": 10,
    "learning_rate": 0.02,
    "loss": "squared",
    "optimizer": {"name": "adamw", "l2": 1.0},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "dot": {},
    "with itself": {"self_interaction": True},
    "without shortcut": {"shortcut": False},
    "factorisation machine": {"top_hidden": ()},
    "concatenation": {"interaction": "concatenation"},
    "concatenation alone": {"interaction": "concatenation", "shortcut": False},
    "linear": {"interaction": "concatenation", "top_hidden": ()},
    "history": {"history_encoder": {"name": "mean", "power": 0.5}},
    "without ids": {"use_user_ids": False, "use_item_ids": False},
    "without user ids": {"use_user_ids": False, "self_interaction": True},
    "shallow bottom": {"bottom_hidden": ()},
}
CONTEXT: dict[str, Any] = {"context_numeric": ("hour",), "context_categorical": ("place",)}


def make(**options: Any) -> DLRMModel:
    return DLRMModel(**{**OPTIONS, **options})


def vectors_of(part: Any, row: int | None, encoded: EncodedFeatures, place: int) -> tuple[list[Any], list[Any], Any]:
    """Vectors of the fields of an entity, that of its numbers apart, and what is linear in them."""
    vectors, score = [], linear_in_features(part.linear, encoded, place)[0]
    if part.ids is not None:
        vectors.append(part.ids.unknown[0] if row is None or row < 0 else part.ids.known[row])
        score = score + (0.0 if row is None or row < 0 else part.bias[row, 0])
    schema = encoded.schema
    names = [name for name, _ in schema.values] + list(schema.fields)
    for field in schema.fields:
        weights = encoded.categories.toarray()[place]
        vectors.append(
            sum(float(w) * part.features.categories[j] for j, w in enumerate(weights) if names[j] == field and w)
        )
    numbers = []
    if schema.numeric:
        numbers.append(perceptron(part.features.bottom, torch.from_numpy(encoded.numeric[place]).double(), torch.tanh))
    return vectors, numbers, score


def score_of(module: DLRMModule, config: Any, user: tuple[Any, ...], item: tuple[Any, ...]) -> torch.Tensor:
    """
    Score a pair from the vectors of its sides, of their numbers, and their linear parts.

    The inputs of the top perceptron are the vectors of the numbers and the products of all vectors with all later
    ones, or all vectors side by side; each has a column of weights.
    """
    vectors, is_dot = [*user[0], *item[0]], config.interaction == "dot"
    n_users, width = len(user[0]), len(module.first_bias)
    inputs: list[torch.Tensor] = []
    columns: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    for number, (own, numbers, _) in enumerate((user, item)):
        of_side = [*numbers] if is_dot else [*own]
        if is_dot:
            pairs = itertools.combinations_with_replacement(own, 2) if config.self_interaction else None
            of_side += [(a @ b).view(1) for a, b in pairs or itertools.combinations(own, 2)]
        if of_side:
            side = torch.cat(of_side)
            inputs.append(side)
            first: Any = module.first[number]
            linear: Any = module.linear[number]
            columns.append(first.weight if width else side.new_zeros(0, len(side)))
            weights.append(linear.weight[0])
    if is_dot:
        for i, j in itertools.product(range(n_users), range(n_users, len(vectors))):
            inputs.append((vectors[i] @ vectors[j]).view(1))
            if width:
                assert module.network.cross is not None
                columns.append(module.network.cross.weight[:, i, j - n_users, None])
            assert module.direct is not None
            weights.append(module.direct[i, j - n_users].view(1))
    score = module.offset + user[2] + item[2]
    if config.shortcut:
        score = score + torch.cat(weights) @ torch.cat(inputs)
    if width:
        hidden = module.first_bias + torch.cat(columns, dim=1) @ torch.cat(inputs)
        score = score + perceptron(module.network.rest, hidden, torch.tanh)[0]
    return score


def reference(
    module: DLRMModule, config: Any, schema: DataSchema, situations: EncodedFeatures | None = None
) -> torch.Tensor:
    """Scores of all users and items of the batch; with situations, those of `PAIRS`, each in its own."""
    of_users, of_items = features(schema.user_features, 4, 1), features(schema.item_features, 5, 2)
    users, items = [], []
    for place, row in enumerate(USER_ROWS):
        vectors, numbers, score = vectors_of(module.users, row, of_users, place)
        own: list[Any] = [*vectors, *numbers]
        if config.history_encoder is not None:
            history = [module.history_items[item] for item in HISTORIES[place]]
            zero = torch.zeros(config.n_factors, dtype=torch.float64)
            own.append(sum(history, start=zero) / max(len(history), 1) ** 0.5)
        users.append((own, numbers, score))
    for place, row in enumerate(ITEM_ROWS):
        vectors, numbers, score = vectors_of(module.items, row, of_items, place)
        items.append(([*vectors, *numbers], numbers, score))
    if situations is None:
        return torch.stack([score_of(module, config, user, item) for user in users for item in items]).view(4, 5)
    scores = []
    for place, (user, item) in enumerate(PAIRS):
        vectors, numbers, score = vectors_of(module.context, None, situations, place)
        whole = users[user]
        in_situation = [*whole[0], *vectors, *numbers], [*whole[1], *numbers], whole[2] + score
        scores.append(score_of(module, config, in_situation, items[item]))
    return torch.stack(scores)


class TestForward:
    @pytest.mark.parametrize("with_features", [False, True])
    @pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
    def test_equals_the_definition(self, options: dict[str, Any], with_features: bool) -> None:
        if not with_features and not options.get("use_item_ids", True):
            pytest.skip("nothing to go by")
        schema = data_schema(with_features)
        config, module = module_of(make(**options), schema)
        expected = reference(module, config, schema)
        assert expected.std() > 0.3
        actual = module.network.table(module.user_side(user_batch(schema)), module.item_side(item_batch(schema)))
        torch.testing.assert_close(actual + module.offset, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
    def test_context(self, options: dict[str, Any]) -> None:
        """Fields of the user's side, those of the pair at hand."""
        if "history_encoder" in options:
            pytest.skip("not with a context")
        schema = data_schema(with_context=True)
        config, module = module_of(make(**options, **CONTEXT), schema)
        batch = training_batch(schema, context=True)
        expected = reference(module, config, schema, features(schema.context, len(PAIRS), 4))
        owners = module.user_side(batch.users, batch.rows, batch.context)
        items = module.item_side(batch.items).take(batch.targets)
        actual = module.network.pairs(owners, items) + module.offset
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
    def test_all_weights_matter(self, options: dict[str, Any]) -> None:
        schema = data_schema()
        _, module = module_of(make(**options), schema)
        table = module.network.table(module.user_side(user_batch(schema)), module.item_side(item_batch(schema)))
        (table + module.offset).square().sum().backward()
        spared = () if options.get("shortcut", True) else ("linear.", "direct")  # the shortcut alone
        for name, parameter in module.named_parameters():
            if not name.startswith(spared) or not spared:
                assert parameter.numel() == 0 or (parameter.grad is not None and parameter.grad.any()), name

    @pytest.mark.parametrize("options", [{}, {"interaction": "concatenation"}, VARIANTS["with itself"]], ids=str)
    def test_gradients(self, options: dict[str, Any]) -> None:
        """By finite differences, through fields, products and both paths, in a context."""
        model, schema = make(**options, target="rating", **CONTEXT), data_schema(with_context=True)
        config, module = module_of(model, schema)
        batch = training_batch(schema, context=True)
        assert has_right_gradients(module, lambda: model._batch_loss(config, module, batch))


class TestLossesInContext:
    """Each pair is scored in its own situation, and so are its negatives."""

    @staticmethod
    def scores(module: DLRMModule, config: Any, schema: DataSchema) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the pairs and of their own negatives, by their situations."""
        batch = training_batch(schema, context=True)
        owners = module.user_side(batch.users, batch.rows, batch.context)
        items = module.item_side(batch.items)
        table = module.network.table(owners, items) + module.offset
        positive = reference(module, config, schema, features(schema.context, len(PAIRS), 4))
        torch.testing.assert_close(table[torch.arange(5), batch.targets], positive, rtol=0, atol=1e-6)
        return positive, table.gather(1, torch.tensor(OWN))

    def check(self, expected: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], **options: Any) -> None:
        model, schema = make(**options, **CONTEXT), data_schema(with_context=True)
        config, module = module_of(model, schema)
        drawn = NegativeBatch(torch.tensor(OWN), torch.zeros(5, 2), None) if config.loss is not None else None
        actual = model._batch_loss(config, module, training_batch(schema, drawn, context=True))
        torch.testing.assert_close(actual, expected(*self.scores(module, config, schema)), rtol=0, atol=1e-6)

    def test_bce_is_the_default(self) -> None:
        self.check(lambda one, other: -torch.sigmoid(one).log().mean() - torch.sigmoid(-other).log().mean())

    def test_bpr(self) -> None:
        self.check(lambda one, other: -torch.sigmoid(one[:, None] - other).log().mean(), loss="bpr")

    def test_label(self) -> None:
        labels = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0])

        def expected(scores: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return -(labels * torch.sigmoid(scores).log() + (1 - labels) * torch.sigmoid(-scores).log()).mean()

        self.check(expected, target={"name": "label", "threshold": 3})

    def test_rating(self) -> None:
        ratings = torch.tensor([1.0, 4.0, 3.0, 0.0, 5.0])
        self.check(lambda scores, _: (scores - ratings).square().mean(), target="rating")


# ---------------------------------------------------------------------- fitted models


def in_context(frames: Any) -> Dataset:
    """With an hour, which some rows lack, and a place, which follows the item."""
    table = frames.interactions
    hours = np.random.default_rng(1).uniform(0, 24, len(table))
    hours[::7] = np.nan
    places = np.where(table[Columns.Item] % 4 < 2, "home", "work")
    frames = replace(frames, interactions=table.assign(hour=hours, place=places))
    features = ["group", "hobby"], False, frames.item_features, ["genre"], False
    return Dataset.construct(frames.interactions, frames.user_features, *features, keep_extra_cols=True)


def shaken(model: PairModel[Any]) -> PairModel[Any]:
    """With weights that all matter, which those of a short training hardly do."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model._fitted.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


USERS = ["u001", "u040", "u007", "u041", "u022"]  # warm ones among them


def situations(users: list[str]) -> pd.DataFrame:
    n = np.arange(len(users))
    places = np.array(["home", "work", "nowhere", None], dtype=object)[n % 4]
    return pd.DataFrame({Columns.User: users, "hour": np.where(n % 3 == 2, np.nan, 5.0 * n), "place": places})


@pytest.fixture(scope="module")
def frames(make_frames: Callable[..., Any]) -> Any:
    return make_frames(n_warm=2)


@pytest.fixture(scope="module")
def dataset(frames: Any) -> Dataset:
    return in_context(frames)


_ACTIVATIONS = st.sampled_from(["relu", "elu", "gelu", "leaky_relu", "silu", "tanh"])
_TARGETS = st.sampled_from(["implicit", {"name": "label", "threshold": 1.5}, "rating"])
_NCF = st.fixed_dictionaries(
    {
        "architecture": st.sampled_from(["gmf", "mlp", "neumf"]),
        "merge": st.sampled_from(["concatenation", "product"]),
        "user_tower": st.sampled_from(["linear", "mlp", "residual"]),
        "item_tower": st.sampled_from(["linear", "mlp", "residual"]),
        "hidden": st.sampled_from([(6,), (5, 4)]),
    }
)
_DLRM = st.fixed_dictionaries(
    {
        "bottom_hidden": st.sampled_from([(), (3,)]),
        "top_hidden": st.sampled_from([(), (6,), (5, 4)]),
        "interaction": st.sampled_from(["dot", "concatenation"]),
        "self_interaction": st.booleans(),
        "shortcut": st.booleans(),
        "use_user_ids": st.booleans(),
        "use_item_ids": st.booleans(),
        "history_encoder": st.sampled_from([None, "mean", "attention", "gru"]),
        "with_context": st.booleans(),
    }
)


class TestPairsAndRankings:
    @settings(max_examples=40)
    @given(st.one_of(_NCF, _DLRM), _TARGETS, _ACTIVATIONS, st.integers(1, 6))
    def test_one_score(
        self, dataset: Dataset, options: dict[str, Any], target: Any, activation: str, n_factors: int
    ) -> None:
        """`recommend` and `predict_pairs` give a pair the same, for known and warm users and items."""
        model: PairModel[Any]
        common: dict[str, Any] = {"target": target, "activation": activation, "n_factors": 2 * n_factors, "epochs": 1}
        context = None
        if "architecture" in options:
            model = NCFModel(**options, **common)
        else:
            options = dict(options)
            if options.pop("with_context"):
                context = situations(USERS)
                options.update(CONTEXT)
            if options["interaction"] == "concatenation":
                options["self_interaction"] = False
            if target != "implicit" or context is not None:
                options["history_encoder"] = None
            options["shortcut"] |= not options["top_hidden"]
            model = DLRMModel(**options, **common)
        frame = dataset.get_raw_interactions()
        weights = np.random.default_rng(0).integers(1, 4, len(frame))
        model = shaken(model.fit(with_weights(dataset, weights)))
        items = [100, 124, 113, 101, 125]
        asked: dict[str, Any] = {} if context is None else {"context": context}
        reco = recommend(model, dataset, USERS, k=10, filter_viewed=False, items_to_recommend=items, **asked)
        assert len(reco) == 25
        pairs = reco[Columns.UserItem] if context is None else reco[Columns.UserItem].merge(context, on=Columns.User)
        scored = model.predict_pairs(pairs, dataset)
        assert scored.columns.tolist() == [*pairs.columns, Columns.Score]
        scale = max(1.0, float(reco[Columns.Score].abs().max()))
        np.testing.assert_allclose(scored[Columns.Score], reco[Columns.Score], rtol=0, atol=1e-5 * scale)
        if target != "implicit" and target != "rating":
            assert scored[Columns.Score].between(0, 1).all()

    def test_pairs_keep_their_order_and_columns(self, dataset: Dataset) -> None:
        model = shaken(NCFModel(epochs=1, n_factors=4, hidden=(4,)).fit(dataset))
        table = pd.DataFrame(
            {Columns.Item: [105, 100, 105, 124], "note": list("abcd"), Columns.User: ["u005", "u005", "u001", "u005"]},
            index=[7, 7, 3, 0],
        )
        scored = model.predict_pairs(table, dataset)
        assert scored.drop(columns=Columns.Score).equals(table)
        assert Columns.Score not in table.columns
        for place in range(4):
            alone = model.predict_pairs(table.iloc[[place]], dataset)[Columns.Score].iloc[0]
            assert alone == pytest.approx(scored[Columns.Score].iloc[place], abs=1e-6)
        assert scored[Columns.Score].nunique() == 4
        assert model.predict_pairs(table.iloc[:0], dataset)[Columns.Score].tolist() == []


def with_weights(dataset: Dataset, weights: Any) -> Dataset:
    table = dataset.get_raw_interactions().assign(**{Columns.Weight: weights})
    interactions = dataset.interactions.from_raw(table, dataset.user_id_map, dataset.item_id_map, keep_extra_cols=True)
    features = dataset.user_features, dataset.item_features
    return Dataset(dataset.user_id_map, dataset.item_id_map, interactions, *features)


class TestContext:
    @pytest.fixture(scope="class")
    def model(self, dataset: Dataset) -> PairModel[Any]:
        return shaken(make(**CONTEXT).fit(dataset))

    def test_each_user_in_the_own_situation(self, model: DLRMModel, dataset: Dataset) -> None:
        """Whoever else asks, in whatever order; cold users too."""
        users = [*USERS, "nobody", "somebody", "noone"]
        asked = situations(users).assign(unused=1)
        together = recommend(model, dataset, users, k=24, filter_viewed=False, context=asked.iloc[::-1])
        assert sorted(together[Columns.User].unique()) == sorted(users)
        for user in users:
            own = asked[asked[Columns.User] == user]
            alone = recommend(model, dataset, [user], k=24, filter_viewed=False, context=own)
            of_user = together[together[Columns.User] == user]
            assert of_user[Columns.Item].tolist() == alone[Columns.Item].tolist()
            np.testing.assert_allclose(of_user[Columns.Score], alone[Columns.Score], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("user", ["u007", "u040", "nobody"])
    def test_situations_matter(self, model: DLRMModel, dataset: Dataset, user: str) -> None:
        def items(**situation: Any) -> pd.Series:
            context = pd.DataFrame([{Columns.User: user, "hour": 1.0, "place": "home", **situation}])
            reco = recommend(model, dataset, [user], k=24, filter_viewed=False, context=context)
            return reco.set_index(Columns.Item)[Columns.Score].sort_index()

        usual, unseen = items(), items(place="moon")
        for other in (items(place="work"), items(hour=20.0), unseen):
            assert (other - usual).abs().max() > 1e-3
        # An unseen category is a missing one; a missing number is told apart from the mean.
        np.testing.assert_allclose(items(place=None), unseen, rtol=0, atol=1e-5)
        mean = float(dataset.interactions.df["hour"].mean())
        assert (items(hour=np.nan) - items(hour=mean)).abs().max() > 1e-3

    def test_learns_from_it(self, dataset: Dataset) -> None:
        """The place tells which of the items."""
        options: dict[str, Any] = {"n_factors": 8, "epochs": 40, "batch_size": 64, "learning_rate": 0.02}
        model = DLRMModel(context_categorical=("place",), **options).fit(dataset)
        users = [f"u{number:03}" for number in range(40)]
        home, work = (
            recommend(
                model,
                dataset,
                users,
                k=24,
                filter_viewed=False,
                context=pd.DataFrame({Columns.User: users, "place": place}),
            )
            for place in ("home", "work")
        )
        both = home.merge(work, on=Columns.UserItem)
        assert len(both) == 40 * 24
        assert ((both["score_x"] > both["score_y"]) == (both[Columns.Item] % 4 < 2)).mean() > 0.95

    def test_save_and_load(self, model: DLRMModel, dataset: Dataset) -> None:
        loaded = DLRMModel.loads(model.dumps())
        asked: dict[str, Any] = {"context": situations(USERS)}
        assert recommend(loaded, dataset, USERS, **asked).equals(recommend(model, dataset, USERS, **asked))

    def test_further_fits_keep_the_encoding(self, dataset: Dataset) -> None:
        model = make(**CONTEXT).fit(dataset)
        before = model._fitted.reader.context_encoder
        model.fit_partial(dataset.filter_interactions(np.arange(50)), 1)
        assert model._fitted.reader.context_encoder is before


class TestFit:
    @pytest.mark.parametrize("name", [name for name in VARIANTS if name != "linear"])
    def test_learns(self, name: str, make_dataset: Callable[..., Dataset]) -> None:
        """All but the model that is linear in the fields, which ranks the same for all."""
        dataset, options = make_dataset(), {**QUICK, **VARIANTS[name]}
        if name == "without shortcut":  # learns more slowly
            options.update(epochs=100, learning_rate=0.05, activation="elu")
        model = DLRMModel(**options).fit(dataset)
        assert model.history["loss"].iloc[-1] < model.history["loss"].iloc[0]
        assert own_share(model, dataset) > own_share(PopularModel().fit(dataset), dataset) + 0.25

    def test_histories_of_new_users_count(self, make_frames: Callable[..., Any]) -> None:
        frames, others = make_frames(features=None), make_frames(features=None, seed=1).interactions
        model = DLRMModel(history_encoder="mean", use_user_ids=False, **QUICK).fit(frames.dataset())
        rows = [(f"n{user[1:]}", item) for user, item in zip(others[Columns.User], others[Columns.Item], strict=True)]
        users = [f"n{number:03}" for number in range(40)]
        assert own_share(model, with_rows(frames, rows).dataset(), users) > 0.9

    @pytest.mark.parametrize("loss", ["bce", "bpr", "squared"])
    def test_steps_with_a_history(self, loss: str) -> None:
        """A batch counts users then, and so do the default epochs."""
        schema = replace(data_schema(), n_users=1_000, n_items=500, n_interactions=100_000)
        model = DLRMModel(history_encoder="mean", loss=loss)
        config = model._adapt(model.get_config(mode="pydantic"), schema)
        assert config.batch_size is not None
        assert config.batch_size <= 512
        assert config.epochs is not None
        n_steps = config.epochs * -(-1_000 // config.batch_size)
        assert n_steps == pytest.approx(2 * 100_000**0.5, rel=0.05)

    @pytest.mark.parametrize("model_class", [NCFModel, DLRMModel])
    @pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.05), ("float16", 0.005)])
    def test_ranking_precision(
        self, model_class: type[PairModel[Any]], precision: str, tolerance: float, dataset: Dataset
    ) -> None:
        model = shaken(model_class(epochs=1, n_factors=8).fit(dataset))
        exact = recommend(model, dataset, k=24, filter_viewed=False)
        model.ranking_precision = precision
        rough = recommend(model, dataset, k=24, filter_viewed=False)
        assert rough[Columns.Score].dtype == np.float32
        both = exact.merge(rough, on=Columns.UserItem)
        error = (both["score_x"] - both["score_y"]).abs().max() / both["score_x"].abs().max()
        assert 0 < error < tolerance
        # The fitted weights are left as they are.
        model.ranking_precision = "float32"
        assert recommend(model, dataset, k=24, filter_viewed=False).equals(exact)


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("bottom_hidden", ()),
            ("top_hidden", ()),
            ("interaction", "concatenation"),
            ("self_interaction", True),
            ("shortcut", False),
            ("use_user_ids", False),
            ("use_item_ids", False),
            ("history_encoder", "mean"),
            ("activation", "relu"),
            ("dropout", 0.5),
            ("entity_dropout", 0.5),
            ("loss", "bpr"),
        ],
        ids=str,
    )
    def test_each_matters(self, option: str, value: Any, make_dataset: Callable[..., Dataset]) -> None:
        dataset = make_dataset()
        # Long enough for the perceptron, which starts at 0.
        one, other = (recommend(make(**kw, epochs=10).fit(dataset), dataset, k=24) for kw in ({}, {option: value}))
        both = one.merge(other, on=Columns.UserItem)
        assert not np.allclose(both["score_x"], both["score_y"], rtol=0, atol=1e-5)
