from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract import assert_same, hot_users, interactions, own_share, recommend, with_rows
from pydantic import ValidationError
from pytorch_lightning import Callback
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from rectools.models import PopularModel

from rectools_neural import LightGCNModel, load_dataset
from rectools_neural.data.batches import (
    FeatureBatch,
    FeatureSchema,
    HistoryBatch,
    ItemBatch,
    NegativeBatch,
    TrainingBatch,
    UserBatch,
)
from rectools_neural.models.base import DataSchema
from rectools_neural.models.lightgcn import LightGCNModelConfig, LightGCNModule
from rectools_neural.nn.graph import BipartiteGraph

OPTIONS: dict[str, Any] = {
    "loss": "bpr",
    "n_layers": 3,
    "n_factors": 8,
    "epochs": 30,
    "batch_size": 64,
    "learning_rate": 0.05,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "bpr": {},
    "one layer": {"n_layers": 1},
    "weights": {"layer_weights": (0.5, 0.0, 0.3, 0.2)},
    "without ego": {"layer_weights": (0.0, 1.0, 0.5, 0.2)},
    "softmax": {"loss": "sampled_softmax"},
    "squared": {"loss": "squared"},
    "dropout": {"edge_dropout": 0.3},
    "simgcl": {"contrastive": "simgcl"},
    "xsimgcl": {"contrastive": "xsimgcl", "n_layers": 2},
}


def make(**options: Any) -> LightGCNModel:
    return LightGCNModel(**{**OPTIONS, **options})


@pytest.fixture(scope="module")
def frames(make_frames: Callable[..., Any]) -> Any:
    return make_frames(features=None)


@pytest.fixture(scope="module")
def plain(frames: Any) -> Dataset:
    return frames.dataset()


@pytest.fixture(scope="module")
def popular_share(plain: Dataset) -> float:
    return own_share(PopularModel().fit(plain), plain)


# A small graph, and everything about it by dense matrices in double precision.

LISTS = [[0, 3], [1], [0, 1, 2, 4], [4, 0], [2, 3]]
N_USERS, N_ITEMS = len(LISTS), 5
NOTHING = FeatureBatch(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)), numeric=torch.zeros(0, 0))


# What a fit would fill in.
EXPLICIT: dict[str, Any] = {"n_factors": 6, "n_layers": 3, "loss": "bpr", "embedding_l2": 0.0}


def make_module(**options: Any) -> tuple[LightGCNModelConfig, LightGCNModule]:
    config = LightGCNModelConfig(**{**EXPLICIT, "similarity": "dot", **options})
    schema = DataSchema(N_USERS, N_ITEMS, sum(map(len, LISTS)), FeatureSchema(), FeatureSchema())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = LightGCNModule(schema, config)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    items = torch.tensor([item for part in LISTS for item in part])
    module.graph = BipartiteGraph(items, torch.tensor([len(part) for part in LISTS]), N_ITEMS)
    return config, module


def dense_layers(module: LightGCNModule, n_layers: int) -> list[torch.Tensor]:
    """Embeddings times the powers of the normalised adjacency matrix."""
    ones = torch.zeros(N_USERS, N_ITEMS, dtype=torch.float64)
    for user, part in enumerate(LISTS):
        ones[user, part] = 1
    normalised = ones / (ones.sum(dim=1, keepdim=True) * ones.sum(dim=0)).sqrt()
    matrix = torch.zeros(N_USERS + N_ITEMS, N_USERS + N_ITEMS, dtype=torch.float64)
    matrix[:N_USERS, N_USERS:], matrix[N_USERS:, :N_USERS] = normalised, normalised.T
    ego = torch.cat([module.users, module.items]).double()
    return [torch.linalg.matrix_power(matrix, power) @ ego for power in range(n_layers + 1)]


def users_with(histories: list[list[int]], rows: list[int]) -> UserBatch:
    items = torch.tensor([item for part in histories for item in part], dtype=torch.int64)
    history = HistoryBatch(items, torch.tensor([len(part) for part in histories]))
    return UserBatch(torch.tensor(rows), history, NOTHING)


ALL_ITEMS = ItemBatch(None, torch.zeros(N_ITEMS, 1, dtype=torch.bool), NOTHING)


def pair_batch(negatives: NegativeBatch | None = None) -> TrainingBatch:
    """The pairs (0, 3), (2, 1), (2, 4) of the users 0 and 2, over the whole catalogue."""
    users = users_with([[], []], [0, 2])
    return TrainingBatch(users, ALL_ITEMS, torch.tensor([0, 1, 1]), torch.tensor([3, 1, 4]), negatives)


OWN = NegativeBatch(torch.tensor([[1], [3], [3]]), torch.zeros(3, 1), None)


class TestPropagation:
    @pytest.mark.parametrize("n_layers", [1, 2, 3, 5])
    def test_layers(self, n_layers: int) -> None:
        _, module = make_module(n_layers=n_layers)
        for actual, expected in zip(module.propagate(), dense_layers(module, n_layers), strict=True):
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "weights"),
        [
            ({}, [1 / 4] * 4),
            ({"n_layers": 1}, [1 / 2] * 2),
            ({"layer_weights": (0.1, 0.0, 2.0, 0.5)}, [0.1, 0.0, 2.0, 0.5]),
            ({"contrastive": "simgcl"}, [0, 1 / 3, 1 / 3, 1 / 3]),
            ({"contrastive": "xsimgcl", "n_layers": 2}, [0, 1 / 2, 1 / 2]),
            ({"contrastive": "xsimgcl", "layer_weights": (1, 0, 0, 2)}, [1, 0, 0, 2]),
        ],
        ids=str,
    )
    def test_weights_of_the_layers(self, options: dict[str, Any], weights: list[float]) -> None:
        _, module = make_module(**options)
        table = sum(w * layer for w, layer in zip(weights, dense_layers(module, len(weights) - 1), strict=True))
        torch.testing.assert_close(module.combine(module.propagate()).double(), table, rtol=0, atol=1e-5)
        items = module.eval().item_vectors(ALL_ITEMS)
        torch.testing.assert_close(items.double(), table[N_USERS:], rtol=0, atol=1e-5)
        # From the histories alone: the graph is not there any more.
        module.graph = None
        users = module.user_vectors(users_with(LISTS, list(range(N_USERS))))
        torch.testing.assert_close(users.double(), table[:N_USERS], rtol=0, atol=1e-5)

    def test_noise_has_its_length_and_the_signs_of_the_vector(self) -> None:
        _, module = make_module(n_layers=1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            noisy, other = module.propagate(0.3)[1], module.propagate(0.3)[1]
        clean = module.propagate()[1]
        torch.testing.assert_close((noisy - clean).norm(dim=1), torch.full((N_USERS + N_ITEMS,), 0.3))
        assert ((noisy - clean) * clean >= 0).all()
        assert not torch.allclose(noisy, other)

    def test_user_that_came_later(self) -> None:
        """As one without an embedding of the own, and without influence on the items."""
        _, module = make_module(n_layers=2)
        layers, history = dense_layers(module, 2), [1, 3, 4]
        degrees = torch.tensor([sum(item in part for part in LISTS) for item in history]).double()
        spread = sum(layer[[N_USERS + item for item in history]] for layer in layers[:2]) / 3
        expected = (spread / (3 * degrees).sqrt().unsqueeze(1)).sum(dim=0)
        actual = module.eval().user_vectors(users_with([history], [-1]))
        torch.testing.assert_close(actual[0].double(), expected, rtol=0, atol=1e-5)

    def test_evaluation_follows_training(self) -> None:
        _, module = make_module()
        before = module.eval().item_vectors(ALL_ITEMS)
        with torch.no_grad():
            module.train().users.mul_(2)
        assert torch.equal(module.item_vectors(ALL_ITEMS), before)
        assert not torch.allclose(module.eval().item_vectors(ALL_ITEMS), before)
        assert not module.propagated_items.requires_grad

    def test_state(self) -> None:
        """Two tables of embeddings and two of what was propagated, whatever the number of edges."""
        _, module = make_module()
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        items = ("items", "propagated_items", "history_items")
        assert shapes == {"users": (N_USERS, 6), **dict.fromkeys(items, (N_ITEMS, 6))}


class TestLosses:
    """Against hand-written references on dense matrices, in double precision, values and gradients."""

    def check(self, expected: Callable[[LightGCNModule], torch.Tensor], batch: TrainingBatch, **options: Any) -> None:
        config, module = make_module(**options)
        module.double()
        reference = expected(module)
        actual = LightGCNModel(**options)._batch_loss(config, module, batch)
        torch.testing.assert_close(actual, reference, rtol=0, atol=1e-6)
        parameters = [module.users, module.items]
        for one, other in zip(*(torch.autograd.grad(x, parameters) for x in (actual, reference)), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)

    @staticmethod
    def final(module: LightGCNModule, n_layers: int = 3, first: int = 0) -> torch.Tensor:
        layers = dense_layers(module, n_layers)[first:]
        return torch.stack(layers).mean(dim=0)

    def test_bpr(self) -> None:
        def expected(module: LightGCNModule) -> torch.Tensor:
            table = self.final(module)
            terms, squares = [], []
            for user, positive, negative in ((0, 3, 1), (2, 1, 3), (2, 4, 3)):
                margin = table[user] @ table[N_USERS + positive] - table[user] @ table[N_USERS + negative]
                terms.append(-torch.log(torch.sigmoid(margin)))
                rows = module.users[user], module.items[positive], module.items[negative]
                squares.append(sum(row.square().sum() for row in rows))
            return (torch.stack(terms).sum() + 0.01 * torch.stack(squares).sum() / 2) / 3

        self.check(expected, pair_batch(OWN), embedding_l2=0.01)

    def test_sampled_softmax(self) -> None:
        """With shared candidates, of which the own ones of a user don't count, and the logQ correction."""
        candidates, log_inclusion = [0, 1, 3], torch.tensor([-0.5, -1.0, -2.0]).double()
        is_positive = torch.tensor([[True, False, True], [True, True, False]])

        def expected(module: LightGCNModule) -> torch.Tensor:
            table = F.normalize(self.final(module), dim=1)
            terms, squares = [], []
            for user, row, positive in ((0, 0, 3), (2, 1, 1), (2, 1, 4)):
                scores = table[user] @ table[N_USERS:].T / 0.3
                others = [
                    torch.exp(scores[item] - log_inclusion[place])
                    for place, item in enumerate(candidates)
                    if not is_positive[row, place]
                ]
                wanted = torch.exp(scores[positive])
                terms.append(-torch.log(wanted / (wanted + sum(others))))
                squares.append(module.users[user].square().sum() + module.items[positive].square().sum())
            return (torch.stack(terms).sum() + 0.01 * torch.stack(squares).sum() / 2) / 3

        drawn = NegativeBatch(torch.tensor(candidates), log_inclusion, is_positive)
        options = {"loss": "sampled_softmax", "similarity": "cosine", "temperature": 0.3, "embedding_l2": 0.01}
        self.check(expected, pair_batch(drawn), **options)

    def test_squared(self) -> None:
        users = users_with([[], []], [0, 2])
        rows = torch.tensor([0, 0, 1, 1, 1, 1])
        batch = TrainingBatch(users, ALL_ITEMS, rows, torch.tensor([*LISTS[0], *LISTS[2]]))

        def expected(module: LightGCNModule) -> torch.Tensor:
            table = self.final(module)
            total = table.new_zeros(())
            for user in (0, 2):
                for item in range(N_ITEMS):
                    score = table[user] @ table[N_USERS + item]
                    total = total + ((1 - score) ** 2 if item in LISTS[user] else 0.3 * score**2)
            return total / 6  # pairs

        self.check(expected, batch, loss={"name": "squared", "unobserved_weight": 0.3}, embedding_l2=0.0)

    @staticmethod
    def info_nce(one: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
        terms = []
        for i in range(len(one)):
            similar = [torch.exp(torch.cosine_similarity(one[i], row, dim=0) / temperature) for row in other]
            terms.append(-torch.log(similar[i] / sum(similar)))
        return torch.stack(terms).mean()

    @pytest.mark.parametrize("name", ["simgcl", "xsimgcl"])
    def test_contrastive(self, name: str) -> None:
        """Without noise, of the users and the positive items of the batch, each once."""

        def expected(module: LightGCNModule) -> torch.Tensor:
            table = self.final(module, first=1)
            other = dense_layers(module, 3)[2] if name == "xsimgcl" else table
            terms = []
            for user, positive, negative in ((0, 3, 1), (2, 1, 3), (2, 4, 3)):
                margin = table[user] @ (table[N_USERS + positive] - table[N_USERS + negative])
                terms.append(-torch.log(torch.sigmoid(margin)))
            users, items = [0, 2], [N_USERS + item for item in (1, 3, 4)]
            contrast = sum(self.info_nce(table[rows], other[rows], 0.4) for rows in (users, items))
            return torch.stack(terms).mean() + 0.7 * contrast

        contrastive = {"name": name, "weight": 0.7, "noise": 0.0, "temperature": 0.4, "layer": 2}
        self.check(expected, pair_batch(OWN), contrastive=contrastive, embedding_l2=0.0)

    def test_simgcl_scores_without_noise_and_xsimgcl_with_it(self) -> None:
        """The loss of the interactions alone, told apart by two draws of the noise."""
        for name, differs in (("simgcl", False), ("xsimgcl", True)):
            options = {"contrastive": {"name": name, "weight": 1e-9, "noise": 0.5}}
            config, module = make_module(**options)
            model = LightGCNModel(**options)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                one, other = (model._batch_loss(config, module, pair_batch(OWN)).item() for _ in range(2))
            assert math.isclose(one, other, abs_tol=1e-6) != differs


class TestFit:
    @pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
    def test_learns(self, options: dict[str, Any], plain: Dataset, popular_share: float) -> None:
        model = make(**options).fit(plain)
        assert model.history["loss"].iloc[-1] < model.history["loss"].iloc[0]
        assert own_share(model, plain) > popular_share + 0.4

    @pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
    def test_fitted_users_get_what_full_propagation_gives(self, options: dict[str, Any], plain: Dataset) -> None:
        """Fold-in by the history is no approximation for them."""
        model = make(**{**options, "epochs": 3}).fit(plain)
        module, reader = model._fitted.module, model._fitted.reader
        assert isinstance(module, LightGCNModule)
        assert module.graph is None
        model._read_training_data(module, reader.training_users(plain))
        users, items = module.split(module.combine(module.propagate()))
        order = [reader.user_ids.tolist().index(user) for user in plain.user_id_map.external_ids]
        actual_users, actual_items = model.get_vectors(plain)
        np.testing.assert_allclose(actual_users, module.for_user(users)[order].detach(), rtol=0, atol=1e-5)
        order = [reader.item_ids.tolist().index(item) for item in plain.item_id_map.external_ids]
        np.testing.assert_allclose(actual_items, module.for_item(items)[order].detach(), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("negatives", ["uniform", "popularity", "in_batch", "hard", {"n": 16, "shared": True}])
    @pytest.mark.parametrize("loss", ["bpr", "sampled_softmax"])
    def test_negatives(self, loss: str, negatives: Any, plain: Dataset, popular_share: float) -> None:
        model = make(loss=loss, negatives=negatives).fit(plain)
        assert own_share(model, plain) > popular_share + 0.4

    @pytest.mark.parametrize("precision", ["bfloat16", "float64"])
    @pytest.mark.parametrize("options", [{}, VARIANTS["xsimgcl"], VARIANTS["squared"]], ids=str)
    def test_precision(self, options: dict[str, Any], precision: str, plain: Dataset, popular_share: float) -> None:
        model = make(precision=precision, edge_dropout=0.1, **options).fit(plain)
        assert {tensor.dtype for tensor in model._fitted.module.state_dict().values()} == {torch.float32}
        assert own_share(model, plain) > popular_share + 0.4

    def test_penalty_shrinks_the_embeddings(self, plain: Dataset) -> None:
        norms = [
            float(make(embedding_l2=embedding_l2).fit(plain)._fitted.module.items.detach().norm())  # type: ignore
            for embedding_l2 in (0.0, 0.1)
        ]
        assert norms[1] < 0.7 * norms[0]

    @pytest.mark.parametrize("loss", ["bpr", "sampled_softmax", "squared"])
    def test_batch_size_counts_interactions(self, loss: str, plain: Dataset) -> None:
        steps: list[int] = []

        class Counter(Callback):
            def on_train_end(self, trainer: Any, pl_module: Any) -> None:
                steps.append(trainer.global_step)

        n_pairs = len(plain.interactions.df)
        for batch_size in (n_pairs, n_pairs // 4):
            make(epochs=1, loss=loss, batch_size=batch_size, get_trainer_func_kwargs={"callbacks": [Counter()]}).fit(
                plain
            )
        assert steps == [1, 4]

    @pytest.mark.parametrize("options", [{}, {"validation": "random"}], ids=str)
    def test_edges_are_not_kept(self, options: dict[str, Any], plain: Dataset) -> None:
        module = make(epochs=1, **options).fit(plain)._fitted.module
        shapes = {tuple(tensor.shape) for tensor in [*module.parameters(), *module.buffers()]}
        assert shapes == {(40, 8), (24, 8)}
        assert module.graph is None


class TestChoices:
    """What is left open follows from the data; what is chosen stands in `fitted_config` alone."""

    @staticmethod
    def sparse() -> Dataset:
        """Three items of a thousand for each of 500 users."""
        rng = np.random.default_rng(0)
        return Dataset.construct(interactions(np.column_stack([np.arange(1500) // 3, rng.integers(0, 1000, 1500)])))

    def test_dense_and_sparse_data(self, plain: Dataset) -> None:
        chosen: list[Any] = []
        for dataset in (plain, self.sparse()):
            model = LightGCNModel(n_factors=8, get_trainer_func_kwargs={"max_steps": 2})
            before = model.get_config()
            chosen.append(model.fit(dataset).fitted_config)
            assert model.get_config() == before
            assert LightGCNModel.loads(model.dumps()).fitted_config == chosen[-1]
        assert [(config.loss.name, config.similarity, config.embedding_l2) for config in chosen] == [
            ("squared", "dot", 0.05),
            ("sampled_softmax", "cosine", 1e-4),
        ]

    @pytest.mark.parametrize(
        "options",
        [{"loss": "bpr"}, {"similarity": "cosine"}, {"batch_size": 5}, {"epochs": 2}, {"embedding_l2": 0.0}],
        ids=str,
    )
    def test_what_is_given_stays(self, options: dict[str, Any], plain: Dataset) -> None:
        model = LightGCNModel(n_factors=8, get_trainer_func_kwargs={"max_steps": 1}, **options).fit(plain)
        (name,) = options
        assert getattr(model.fitted_config, name) == getattr(model, name)

    def test_defaults_learn(self, plain: Dataset, popular_share: float) -> None:
        assert own_share(LightGCNModel().fit(plain), plain) > popular_share + 0.3


class TestLater:
    def test_history_in_the_dataset_counts(self, plain: Dataset, frames: Any) -> None:
        """Without a refit: whoever has only odd items gets odd ones."""
        model = make(n_layers=2).fit(plain)
        rows = [("new0", item) for item in (101, 103, 105)] + [("new1", item) for item in (100, 102, 104)]
        reco = recommend(model, with_rows(frames, rows).dataset(), ["new0", "new1"], k=3)
        is_odd = reco[Columns.Item] % 2 == 1
        assert is_odd[reco[Columns.User] == "new0"].all()
        assert not is_odd[reco[Columns.User] == "new1"].any()

    def test_partial_fit_on_more_users_and_items(self, frames: Any) -> None:
        first = make().fit(frames.dataset())
        fans = [f"n{j:03}" for j in range(20)]
        rows = [(fan, item) for j, fan in enumerate(fans) for item in (100 + j % 2, 102 + j % 2, 200 + j % 2)]
        more = with_rows(frames, rows).dataset()
        model = LightGCNModel.loads(first.dumps()).fit_partial(more, epochs=20)
        assert model._fitted.module.items.shape == (26, 8)
        assert own_share(model, more, fans, k=1) >= 0.9
        neighbours = model.recommend_to_items([200, 201], more, k=2)
        assert (neighbours[Columns.TargetItem] % 2 == neighbours[Columns.Item] % 2).all()

    def test_partial_fit_on_other_data_keeps_the_items_that_are_not_there(self, plain: Dataset, frames: Any) -> None:
        model = make(epochs=5).fit(plain)
        before = model._fitted.module.propagated_items.clone()  # type: ignore[operator]
        history_before = model._fitted.module.history_items.clone()  # type: ignore[operator]
        few = Dataset.construct(interactions([("u000", 100), ("u001", 101), ("new", 100)]))
        model.fit_partial(few, epochs=1)
        after: Any = model._fitted.module
        assert torch.equal(after.propagated_items[2:], before[2:])
        assert torch.equal(after.history_items[2:], history_before[2:])
        assert not torch.allclose(after.propagated_items[:2], before[:2])
        assert np.isfinite(recommend(model, plain, k=24)[Columns.Score]).all()

    def test_users_without_history_get_what_is_popular(self, plain: Dataset) -> None:
        reco = recommend(make(epochs=2).fit(plain), plain, ["nobody"], k=5)
        counts = plain.get_raw_interactions()[Columns.Item].value_counts()
        assert counts[reco[Columns.Item]].tolist() == counts.iloc[:5].tolist()


class TestValidation:
    @pytest.mark.parametrize("contrastive", [None, "simgcl"])
    def test_reports_what_the_best_model_reaches(self, contrastive: str | None, frames: Any) -> None:
        """The tables are those of the best epoch: the metric can be measured again."""
        held = np.random.default_rng(0).random(len(frames.interactions)) < 0.25
        train, valid = (Dataset.construct(frames.interactions[mask]) for mask in (~held, held))
        validation = {"patience": 3, "metric": "ndcg", "k": 5}
        model = make(validation=validation, epochs=40, contrastive=contrastive).fit(train, valid)
        assert len(model.history) < 40
        truth = valid.get_raw_interactions()
        truth = truth[truth[Columns.User].isin(hot_users(train))]
        truth = truth[truth[Columns.Item].isin(train.item_id_map.external_ids)]
        reco = recommend(model, train, truth[Columns.User].unique(), k=5)
        measured = NDCG(5, divide_by_achievable=True).calc(reco, truth)
        assert measured == pytest.approx(model.history["ndcg@5"].max(), abs=1e-6)

    def test_leaves_the_weights(self, plain: Dataset, frames: Any) -> None:
        """Training goes on after each validation as if there had been none."""
        options: dict[str, Any] = {"epochs": 4, "contrastive": "xsimgcl"}
        expected = make(**options).fit(plain)
        model = make(**options, validation={"patience": 100, "min_epochs": 4}).fit(plain, plain)
        np.testing.assert_allclose(model.history["loss"], expected.history["loss"], rtol=1e-5)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"layer_weights": (1, 1)}, ["`layer_weights` has 2", "`n_layers` 2", "3 layers"]),
            ({"n_layers": 1, "layer_weights": (1, 1, 1)}, ["`layer_weights` has 3", "2 layers"]),
            ({"layer_weights": (0, 0, 0)}, ["`layer_weights`", "all 0"]),
            ({"layer_weights": (1, 1, -1)}, ["layer_weights", "greater than or equal to 0"]),
            ({"n_layers": 0}, ["n_layers"]),
            ({"edge_dropout": 1.0}, ["edge_dropout", "less than 1"]),
            ({"edge_dropout": -0.1}, ["edge_dropout"]),
            ({"contrastive": {"noise": 1.0}}, ["contrastive", "noise"]),
            ({"contrastive": {"noise": -0.1}}, ["contrastive", "noise"]),
            ({"contrastive": {"layer": 3}}, ["`layer` 3", "`contrastive`", "`n_layers` is 2"]),
            ({"contrastive": "simclr"}, ["`simclr`", "did you mean `simgcl`"]),
            ({"embedding_l2": -1}, ["embedding_l2"]),
            ({"temperature": 0}, ["temperature"]),
            ({"similarity": "euclidean"}, ["similarity", "'dot' or 'cosine'"]),
            ({"loss": "triplet"}, ["loss `triplet`", "bpr, sampled_softmax, squared"]),
            ({"loss": "bce"}, ["loss `bce`", "bpr, sampled_softmax, squared"]),
            ({"loss": "softmax"}, ["loss `softmax`", "bpr, sampled_softmax, squared"]),
            ({"loss": "squared", "negatives": "uniform"}, ["`squared`", "`negatives`"]),
        ],
        ids=str,
    )
    def test_bad_ones_are_named(self, options: dict[str, Any], named: list[str]) -> None:
        with pytest.raises(ValidationError) as error:
            LightGCNModel(**options)
        for part in named:
            assert part in str(error.value)

    def test_more_factors_than_entities(self, plain: Dataset) -> None:
        assert own_share(make(n_factors=200, epochs=10).fit(plain), plain) > 0.6

    @pytest.mark.parametrize("name", ["simgcl", "xsimgcl"])
    def test_plain_names(self, name: str, plain: Dataset) -> None:
        one, other = (make(epochs=2, contrastive=value).fit(plain) for value in (name, {"name": name, "weight": 0.1}))
        assert_same(recommend(one, plain), recommend(other, plain))
        assert one.get_config() == other.get_config()

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("n_layers", 2),
            ("layer_weights", (1, 0, 0, 0)),
            ("edge_dropout", 0.5),
            ("embedding_l2", 0.1),
            ("similarity", "cosine"),
            ("contrastive", "simgcl"),
            ("contrastive", {"name": "simgcl", "noise": 0.5}),
            ("contrastive", {"name": "simgcl", "temperature": 1.0}),
            ("contrastive", {"name": "simgcl", "weight": 1.0}),
            ("contrastive", {"name": "xsimgcl", "layer": 2}),
        ],
        ids=str,
    )
    def test_each_matters(self, option: str, value: Any, plain: Dataset) -> None:
        base = {"contrastive": {"name": value.get("name")}} if isinstance(value, dict) else {}
        one, other = make(**base, epochs=3).fit(plain), make(**{option: value}, epochs=3).fit(plain)
        assert not np.allclose(one.get_vectors(plain)[1], other.get_vectors(plain)[1], atol=1e-4)

    def test_temperature_is_the_length_of_a_user(self, plain: Dataset) -> None:
        users, items = make(epochs=1, similarity="cosine", temperature=0.5).fit(plain).get_vectors(plain)
        assert np.linalg.norm(users, axis=1) == pytest.approx(2, rel=1e-5)
        assert np.linalg.norm(items, axis=1) == pytest.approx(1, rel=1e-5)


@pytest.mark.skipif("RECTOOLS_NEURAL_DATA" not in os.environ, reason="needs MovieLens-100k")
def test_movielens() -> None:
    """Far better than popularity on a random fifth, as are all good models."""
    dataset = load_dataset("ml-100k")
    held = np.random.default_rng(0).random(len(dataset.interactions.df)) < 0.2
    train = dataset.filter_interactions(np.flatnonzero(~held))
    truth = dataset.get_raw_interactions().iloc[np.flatnonzero(held)]
    truth = truth[truth[Columns.User].isin(hot_users(train))]
    metric = NDCG(10, divide_by_achievable=True)
    users = truth[Columns.User].unique()
    popular, learnt = (
        metric.calc(recommend(model.fit(train), train, users, k=10), truth)
        for model in (
            PopularModel(),
            LightGCNModel(),
        )
    )
    assert learnt > 1.5 * popular


def test_too_large_a_batch_for_the_loss() -> None:
    model = LightGCNModel(batch_size=2**19)
    schema = DataSchema(250_000, 50_000, 5_000_000, FeatureSchema(), FeatureSchema())
    match = r"`sampled_softmax` scores 50000 items for the 250000 users .* 93.1 GiB .*`batch_size`"
    with pytest.raises(ValueError, match=match):
        model._adapt(model.get_config(mode="pydantic"), schema)
    config = LightGCNModel(batch_size=2**19, loss="bpr").get_config(mode="pydantic")
    assert model._adapt(config, schema).batch_size == 2**19
