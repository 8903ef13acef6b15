from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from contract import assert_same, own_share, recommend, with_rows
from hypothesis import given
from hypothesis import strategies as st
from pair_cases import (
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

from rectools_neural import NCFModel
from rectools_neural.data.batches import NegativeBatch
from rectools_neural.data.reader import Users
from rectools_neural.models.base import DataSchema
from rectools_neural.models.ncf import NCFModule, start_from

# Quick, and enough to learn the two groups with any loss.
QUICK: dict[str, Any] = {
    "n_factors": 8,
    "hidden": (8,),
    "epochs": 60,
    "learning_rate": 0.02,
    "optimizer": {"name": "adamw", "l2": 0.3},
}
OPTIONS: dict[str, Any] = {"n_factors": 4, "hidden": (5, 3), "activation": "tanh", "epochs": 1}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gmf": {"architecture": "gmf"},
    "mlp": {"architecture": "mlp"},
    "product": {"architecture": "mlp", "merge": "product"},
    "towers": {"architecture": "mlp", "user_tower": "mlp", "item_tower": {"name": "residual", "hidden": (3,)}},
    "neumf": {"architecture": "neumf"},
    "neumf product": {"architecture": "neumf", "merge": "product", "user_tower": "residual"},
}


def make(**options: Any) -> NCFModel:
    return NCFModel(**{**OPTIONS, **options})


def reference(module: NCFModule, config: Any, schema: DataSchema) -> torch.Tensor:
    """Scores of all pairs of the batch, from the definition."""
    n_gmf = 0 if config.architecture == "mlp" else config.n_factors

    def entity(side: Any, row: int, encoded: Any, place: int) -> tuple[Any, torch.Tensor]:
        own = side.ids.known[row] if row >= 0 else side.ids.unknown[0]
        bias = side.bias[row, 0] if row >= 0 else 0.0
        return bias, own + linear_in_features(side.features, encoded, place)

    of_users, of_items = features(schema.user_features, 4, 1), features(schema.item_features, 5, 2)
    users = [entity(module.users, row, of_users, place) for place, row in enumerate(USER_ROWS)]
    items = [entity(module.items, row, of_items, place) for place, row in enumerate(ITEM_ROWS)]
    scores = []
    for user_bias, user in users:
        for item_bias, item in items:
            score = module.offset + user_bias + item_bias
            if config.architecture != "mlp":
                score = score + (module.gmf_weight * user[:n_gmf] * item[:n_gmf]).sum()
            if config.architecture != "gmf":
                one, other = module.user_tower(user[n_gmf:]), module.item_tower(item[n_gmf:])
                hidden: torch.Tensor = module.first_bias
                if config.merge == "product":
                    assert module.network.cross is not None
                    hidden = hidden + module.network.cross.weight @ (one * other)
                else:
                    both = torch.cat([module.user_first.weight, module.item_first.weight], dim=1)
                    hidden = hidden + both @ torch.cat([one, other])
                score = score + perceptron(module.network.rest, hidden, torch.tanh)[0]
            scores.append(score)
    return torch.stack(scores).view(4, 5)


def scores_of(module: NCFModule, schema: DataSchema) -> torch.Tensor:
    users, items = module.user_side(user_batch(schema)), module.item_side(item_batch(schema))
    return module.network.table(users, items) + module.offset


class TestForward:
    @pytest.mark.parametrize("with_features", [False, True])
    @pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
    def test_equals_the_definition(self, options: dict[str, Any], with_features: bool) -> None:
        schema = data_schema(with_features)
        config, module = module_of(make(**options), schema)
        expected = reference(module, config, schema)
        assert expected.std() > 0.3
        torch.testing.assert_close(scores_of(module, schema), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
    def test_all_weights_matter(self, options: dict[str, Any]) -> None:
        schema = data_schema()
        _, module = module_of(make(**options), schema)
        scores_of(module, schema).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


#: Which of the candidates are a user's own: those of `PAIRS` that are among them.
CANDIDATES = [0, 1, 4]
OF_CATALOGUE = torch.tensor([[(user, item) in PAIRS for item in range(5)] for user in range(4)])
OWN_NEGATIVES = NegativeBatch(torch.tensor(OWN), torch.zeros(5, 2), None)


class TestLosses:
    """Against values by hand in double precision, on the scores of the reference."""

    @staticmethod
    def check(
        expected: Callable[[torch.Tensor], torch.Tensor], drawn: NegativeBatch | None = None, **options: Any
    ) -> None:
        model, schema = make(architecture="neumf", **options), data_schema()
        config, module = module_of(model, schema)
        config = config.model_copy(update={"negatives": None}) if drawn is None else config
        value = expected(reference(module, config, schema))
        actual = model._batch_loss(config, module, training_batch(schema, drawn))
        torch.testing.assert_close(actual, value, rtol=0, atol=1e-6)
        parameters = list(module.parameters())
        for one, other in zip(*(torch.autograd.grad(loss, parameters) for loss in (actual, value)), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)

    @staticmethod
    def squared(scores: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for user in range(4):
            for item in range(5):
                score = scores[user, item]
                total = total + ((1 - score) ** 2 if (user, item) in PAIRS else 0.3 * score**2)
        return total / 4

    def test_squared(self) -> None:
        self.check(self.squared, loss={"name": "squared", "unobserved_weight": 0.3})

    def test_squared_by_candidates(self) -> None:
        """All of the catalogue, each for sure, is the whole loss; the order is that of the candidates."""
        order = torch.tensor([2, 0, 4, 3, 1])
        drawn = NegativeBatch(order, torch.zeros(5), OF_CATALOGUE[:, order])
        self.check(self.squared, drawn, loss={"name": "squared", "unobserved_weight": 0.3})

    def test_squared_by_weighted_candidates(self) -> None:
        inclusion = torch.tensor([0.5, 0.8, 0.25], dtype=torch.float64)

        def expected(scores: torch.Tensor) -> torch.Tensor:
            sampled = (scores[:, CANDIDATES].square() / inclusion).sum()
            positive = torch.stack([scores[pair] for pair in PAIRS])
            return ((1 - positive).square().sum() + 0.3 * (sampled - positive.square().sum())) / 4

        drawn = NegativeBatch(torch.tensor(CANDIDATES), inclusion.log(), OF_CATALOGUE[:, CANDIDATES])
        self.check(expected, drawn, loss={"name": "squared", "unobserved_weight": 0.3})

    def test_logistic(self) -> None:
        def expected(scores: torch.Tensor) -> torch.Tensor:
            likelihood = torch.where(OF_CATALOGUE, torch.sigmoid(scores).log(), torch.sigmoid(-scores).log())
            return -likelihood.sum() / 4

        self.check(expected, loss="logistic")

    def test_softmax(self) -> None:
        def expected(scores: torch.Tensor) -> torch.Tensor:
            return -torch.stack([scores[user].softmax(dim=0)[item].log() for user, item in PAIRS]).sum() / 4

        self.check(expected, loss="softmax")

    def test_sampled_softmax(self) -> None:
        """Own candidates of a user don't count, and the others do by one over their inclusion."""
        log_inclusion = torch.tensor([-0.5, -1.0, -2.0], dtype=torch.float64)

        def expected(scores: torch.Tensor) -> torch.Tensor:
            terms = []
            for (user, item), weight in zip(PAIRS, [1.0, 4.0, 3.0, 0.0, 5.0], strict=True):
                others = [
                    torch.exp(scores[user, other] - log_inclusion[place])
                    for place, other in enumerate(CANDIDATES)
                    if (user, other) not in PAIRS
                ]
                wanted = torch.exp(scores[user, item])
                terms.append(-weight * torch.log(wanted / (wanted + sum(others))))
            return torch.stack(terms).mean()

        drawn = NegativeBatch(torch.tensor(CANDIDATES), log_inclusion, OF_CATALOGUE[:, CANDIDATES])
        self.check(expected, drawn, loss="sampled_softmax")

    @pytest.mark.parametrize("hard", [False, True])
    def test_bce(self, hard: bool) -> None:
        def expected(scores: torch.Tensor) -> torch.Tensor:
            positive = torch.stack([torch.sigmoid(scores[pair]).log() for pair in PAIRS])
            negative = [
                [torch.sigmoid(-scores[user, item]).log() for item in own]
                for (user, _), own in zip(PAIRS, OWN, strict=True)
            ]
            counted = [min(part) for part in negative] if hard else [value for part in negative for value in part]
            return -positive.mean() - torch.stack(counted).mean()

        self.check(expected, OWN_NEGATIVES, loss="bce", negatives={"name": "hard" if hard else "uniform", "n": 1})

    def test_bpr(self) -> None:
        def expected(scores: torch.Tensor) -> torch.Tensor:
            terms = [
                -torch.log(torch.sigmoid(scores[user, item] - scores[user, other]))
                for (user, item), own in zip(PAIRS, OWN, strict=True)
                for other in own
            ]
            return torch.stack(terms).mean()

        self.check(expected, OWN_NEGATIVES, loss="bpr")

    def test_label(self) -> None:
        """The weights of the pairs are 1, 4, 3, 0 and 5: above 3 are the second and the last."""

        def expected(scores: torch.Tensor) -> torch.Tensor:
            terms = [
                -torch.log(torch.sigmoid(scores[pair] if number in (1, 4) else -scores[pair]))
                for number, pair in enumerate(PAIRS)
            ]
            return torch.stack(terms).mean()

        self.check(expected, target={"name": "label", "threshold": 3})

    def test_rating(self) -> None:
        def expected(scores: torch.Tensor) -> torch.Tensor:
            errors = [scores[pair] - rating for pair, rating in zip(PAIRS, [1, 4, 3, 0, 5], strict=True)]
            return torch.stack(errors).square().mean()

        self.check(expected, target="rating")

    @pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
    def test_gradients(self, loss: str) -> None:
        """By finite differences, through embeddings, both paths of NeuMF and the loss."""
        model, schema = make(loss=loss), data_schema()
        config, module = module_of(model, schema)
        config = config.model_copy(update={"negatives": None})
        batch = training_batch(schema)
        assert has_right_gradients(module, lambda: model._batch_loss(config, module, batch))


class TestPretraining:
    @given(
        st.floats(0.01, 0.99),
        st.booleans(),
        st.sampled_from([(), (5,), (6, 5, 3)]),
        st.sampled_from(["concatenation", "product"]),
        st.sampled_from(["linear", "mlp", "residual"]),
        st.sampled_from([0.0, 0.4]),
    )
    def test_starts_as_a_mean_of_both(
        self, alpha: float, with_features: bool, hidden: tuple[int, ...], merge: str, tower: str, dropout: float
    ) -> None:
        schema = data_schema(with_features)
        hidden = hidden or (4,)
        options = {"hidden": hidden, "merge": merge, "user_tower": tower, "dropout": dropout}
        gmf, mlp, neumf = (
            module_of(make(architecture=name, **options), schema, seed)[1]
            for seed, name in enumerate(("gmf", "mlp", "neumf"))
        )
        start_from(neumf, gmf, mlp, alpha)
        expected = alpha * scores_of(gmf, schema) + (1 - alpha) * scores_of(mlp, schema)
        torch.testing.assert_close(scores_of(neumf, schema), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("features", [None, "sparse", "dense"])
    def test_from_what_separate_fits_give(self, features: str | None, make_dataset: Callable[..., Dataset]) -> None:
        """With the epochs of the parts, and those of the NeuMF by default."""
        dataset = make_dataset(features=features)
        started: list[Any] = []

        class Spy(NCFModel):
            def _read_training_data(self, module: Any, users: Users) -> None:
                super()._read_training_data(module, users)
                started.append(copy.deepcopy(module))

        for epochs in (None, 3):
            options: dict[str, Any] = {"loss": "bce", "n_factors": 3, "hidden": (4,), "epochs": 2}
            Spy(**options, pretraining={"alpha": 0.3, "epochs": epochs}).fit(dataset)
            parts = [NCFModel(**{**options, "architecture": name, "epochs": epochs or 2}) for name in ("gmf", "mlp")]
            reader = parts[0].fit(dataset)._fitted.reader
            users, items = reader.training_users(dataset).batch(), reader.items(dataset).batch()
            actual, gmf, mlp = (
                module.network.table(module.user_side(users), module.item_side(items)) + module.offset
                for module in (started.pop(), *(part.fit(dataset)._fitted.module for part in parts))
            )
            torch.testing.assert_close(actual, 0.3 * gmf + 0.7 * mlp, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("refit", [False, True])
    def test_users_that_are_held_out_altogether(self, refit: bool, make_frames: Callable[..., Any]) -> None:
        """The training part lacks them, and the refit has them."""
        frames = make_frames(features=None)
        frames = with_rows(frames, [(f"x{n}", 100 + n % 24) for n in range(30)])
        validation = {"name": "random", "size": 0.5, "refit": refit}
        model = NCFModel(epochs=2, n_factors=2, hidden=(3,), pretraining={"epochs": 1}, validation=validation)
        module = model.fit(frames.dataset())._fitted.module
        assert isinstance(module, NCFModule)
        assert (len(module.users.bias) == 70) == refit
        assert np.isfinite(recommend(model, frames.dataset())[Columns.Score]).all()

    def test_further_fits_go_on(self, make_dataset: Callable[..., Dataset]) -> None:
        """From the weights of before, not from new parts."""
        n_parts: list[int] = []

        class Spy(NCFModel):
            def _read_training_data(self, module: Any, users: Users) -> None:
                super()._read_training_data(module, users)
                n_parts.append(len(self._parts))

        model = Spy(epochs=1, n_factors=2, hidden=(3,), pretraining={"epochs": 1})
        model.fit_partial(make_dataset()).fit_partial(make_dataset()).fit(make_dataset())
        assert n_parts == [2, 0, 2]


def quadrants(n: int = 32) -> pd.DataFrame:
    """
    All pairs of four groups of users and four of items: a group likes the own one and the next, in a circle.

    No product of single numbers with biases tells likes from dislikes: users at ``(x, bias)`` in the plane are liked
    above a line, and if 0 and 1 are above a line that 2 and 3 are below, and the other way round, then both of one
    pair have a smaller ``x`` than both of the other; so do 1 and 2 against 3 and 0, which is a contradiction.
    """
    users, items = (part.ravel() for part in np.meshgrid(np.arange(n), np.arange(n)))
    table = pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Datetime: "2024-01-01"})
    return table.assign(**{Columns.Weight: ((items - users) % 4 < 2).astype(float)})


class TestFit:
    def test_a_perceptron_finds_what_a_product_cannot(self) -> None:
        table = quadrants()
        held = np.random.default_rng(0).random(len(table)) < 0.3
        dataset = Dataset.construct(table[~held])
        accuracy = {}
        for name, options in {
            "gmf": {"architecture": "gmf", "n_factors": 1},
            "mlp": {"architecture": "mlp", "n_factors": 2, "hidden": (32, 16)},
            "rank 2": {"architecture": "gmf", "n_factors": 2},
        }.items():
            model = NCFModel(
                target="label", epochs=100, batch_size=64, learning_rate=0.02, optimizer={"name": "adam"}, **options
            ).fit(dataset)
            predicted = model.predict_pairs(table[held], dataset)[Columns.Score] > 0.5
            accuracy[name] = float((predicted == (table[held][Columns.Weight] > 0)).mean())
        assert accuracy["gmf"] < 0.95
        assert accuracy["mlp"] > 0.99
        assert accuracy["rank 2"] > 0.99

    @pytest.mark.parametrize(
        "options",
        [
            *({**ARCHITECTURES[name], "loss": "squared"} for name in ("gmf", "mlp", "product", "neumf")),
            *({"loss": loss} for loss in ("logistic", "softmax", "sampled_softmax", "bce", "bpr")),
        ],
        ids=str,
    )
    def test_learns(self, options: dict[str, Any], make_dataset: Callable[..., Dataset]) -> None:
        dataset = make_dataset(features=None)
        batch_size = 64 if options["loss"] in ("bce", "bpr") else 10
        model = NCFModel(**options, **QUICK, batch_size=batch_size).fit(dataset)
        assert model.history["loss"].iloc[-1] < model.history["loss"].iloc[0]
        assert own_share(model, dataset) > own_share(PopularModel().fit(dataset), dataset) + 0.3

    @pytest.mark.parametrize("options", ARCHITECTURES.values(), ids=ARCHITECTURES)
    def test_save_and_load(self, options: dict[str, Any], make_dataset: Callable[..., Dataset]) -> None:
        dataset = make_dataset(n_warm=2)
        model = make(**options).fit(dataset)
        loaded = NCFModel.loads(model.dumps())
        users = ["u003", "u041", "nobody"]
        assert recommend(loaded, dataset, users).equals(recommend(model, dataset, users))
        assert loaded.recommend_to_items([100, 124], dataset, 5).equals(
            model.recommend_to_items([100, 124], dataset, 5)
        )

    def test_seeds(self, make_dataset: Callable[..., Dataset]) -> None:
        dataset = make_dataset()
        one, same, other = (recommend(make(seed=seed).fit(dataset), dataset, k=24) for seed in (1, 1, 2))
        assert one.equals(same)
        assert not np.allclose(one[Columns.Score], other[Columns.Score], atol=1e-4)

    @pytest.mark.parametrize("precision", ["bfloat16", "float64"])
    def test_precision(self, precision: str, make_dataset: Callable[..., Dataset]) -> None:
        dataset = make_dataset()
        model = NCFModel(**QUICK, batch_size=20, precision=precision)
        assert own_share(model.fit(dataset), dataset) > 0.5
        assert {tensor.dtype for tensor in model._fitted.module.state_dict().values()} == {torch.float32}


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("architecture", "gmf"),
            ("architecture", "mlp"),
            ("hidden", (5,)),
            ("merge", "product"),
            ("user_tower", "mlp"),
            ("item_tower", "mlp"),
            ("activation", "relu"),
            ("dropout", 0.5),
            ("entity_dropout", 0.5),
            ("pretraining", {"alpha": 0.9}),
            ("target", "rating"),
            ("loss", {"name": "squared", "unobserved_weight": 0.1}),
            ("loss", "logistic"),
            ("negatives", {"n": 4, "shared": True}),
            ("negatives", "in_batch"),
            ("negatives", {"name": "hard", "n": 2}),
        ],
        ids=str,
    )
    def test_each_matters(self, option: str, value: Any, make_dataset: Callable[..., Dataset]) -> None:
        dataset = make_dataset()
        one, other = (recommend(make(**kw).fit(dataset), dataset, k=24) for kw in ({}, {option: value}))
        both = one.merge(other, on=Columns.UserItem)
        assert not np.allclose(both["score_x"], both["score_y"], atol=1e-4)

    def test_what_is_left_open(self) -> None:
        """Squared loss on dense data, over the whole catalogue where scores are cheap; else sampled."""
        dense, rare = data_schema(), replace(data_schema(), n_users=10_000, n_items=5_000, n_interactions=20_000)
        cases: list[tuple[DataSchema, dict[str, Any], str, Any]] = [
            (dense, {"architecture": "gmf"}, "squared", None),
            (dense, {}, "squared", (2048, True)),
            (rare, {}, "sampled_softmax", (2048, True)),
            (rare, {"negatives": "in_batch"}, "sampled_softmax", (1, False)),
            (rare, {"negatives": {"n": 100, "shared": True}}, "sampled_softmax", (100, True)),
            (dense, {"negatives": {"n": 3}}, "bce", (3, False)),
            (rare, {"loss": "bpr"}, "bpr", (4, False)),
            (rare, {"loss": "softmax", "batch_size": 10}, "softmax", None),
        ]
        for schema, options, loss, negatives in cases:
            model = NCFModel(**options)
            config = model._adapt(model.get_config(mode="pydantic"), schema)
            assert config.loss is not None
            found = None if config.negatives is None else (config.negatives.n, config.negatives.shared)
            assert (config.loss.name, found) == (loss, negatives)
            assert model._adapt(config, schema) == config

    def test_loaded_twins_recommend_the_same(self, make_dataset: Callable[..., Dataset]) -> None:
        """Plain names and dicts of defaults are one thing."""
        dataset = make_dataset()
        one, other = (make(loss=loss).fit(dataset) for loss in ("bce", {"name": "bce"}))
        assert_same(recommend(one, dataset), recommend(other, dataset))
