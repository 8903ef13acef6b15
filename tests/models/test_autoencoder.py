from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from contract import interactions, own_share, recommend
from pydantic import ValidationError
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from rectools.model_selection import RandomSplitter, cross_validate
from rectools.models import PopularModel
from torch import nn

import rectools_neural
from rectools_neural import load_dataset
from rectools_neural.data.batches import FeatureBatch, FeatureSchema, HistoryBatch, ItemBatch, TrainingBatch, UserBatch
from rectools_neural.data.features import EncodedFeatures
from rectools_neural.data.histories import Histories
from rectools_neural.data.reader import Users, history_batch
from rectools_neural.models.autoencoder import (
    AutoencoderModel,
    CompositePrior,
    DenselyConnectedEncoder,
    GaussianPrior,
    VariationalModule,
)
from rectools_neural.models.base import DataSchema

LOCAL_DATA = os.environ.get("RECTOOLS_NEURAL_DATA")
NAMES = ["DAEModel", "MultDAEModel", "MultVAEModel", "RecVAEModel"]
N_ITEMS = 9
HISTORIES = [[0, 3, 8], [], [5], [1, 2, 3, 4]]  # what the model sees
TARGETS = [[0, 3, 8, 7], [6], [5], [1, 2, 3, 4, 0]]  # what it must predict
LENGTHS = torch.tensor([len(history) for history in HISTORIES])


def make(name: str, **options: Any) -> AutoencoderModel[Any]:
    return getattr(rectools_neural, name)(**options)


def nothing(n: int) -> FeatureBatch:
    empty = torch.zeros(0)
    return FeatureBatch(empty.long(), empty, torch.zeros(n, dtype=torch.int64), torch.zeros(n, 0))


def batch_of(weights: bool = False) -> TrainingBatch:
    items = torch.tensor([item for history in HISTORIES for item in history])
    targets = torch.tensor([item for target in TARGETS for item in target])
    rows = torch.arange(4).repeat_interleave(torch.tensor([len(target) for target in TARGETS]))
    seen_weights = torch.linspace(0.5, 2, len(items), dtype=torch.float64) if weights else None
    target_weights = torch.linspace(0.5, 3, len(targets), dtype=torch.float64) if weights else None
    users = UserBatch(torch.arange(4), HistoryBatch(items, LENGTHS, seen_weights), nothing(4))
    catalogue = ItemBatch(None, torch.zeros(N_ITEMS, 1, dtype=torch.bool), nothing(N_ITEMS))
    return TrainingBatch(users, catalogue, rows, targets, weights=target_weights)


def dense_histories(batch: TrainingBatch) -> torch.Tensor:
    history = batch.users.history
    x = torch.zeros(4, N_ITEMS, dtype=torch.float64)
    x[history.rows(), history.items] = 1.0 if history.weights is None else history.weights
    return torch.nn.functional.normalize(x, dim=1)


def training_users() -> Users:
    """The users of the batches, with whole histories."""
    indptr = np.cumsum([0, *map(len, TARGETS)])
    histories = Histories(indptr, np.array([item for target in TARGETS for item in target]), N_ITEMS)
    return Users(np.arange(4), histories, EncodedFeatures.missing(FeatureSchema(), 4))


def whole_histories() -> torch.Tensor:
    return torch.nn.functional.normalize((dense_targets(batch_of()) > 0).double(), dim=1)


def dense_targets(batch: TrainingBatch) -> torch.Tensor:
    y = torch.zeros(4, N_ITEMS, dtype=torch.float64)
    y[batch.rows, batch.targets] = 1.0 if batch.weights is None else batch.weights
    return y


#: As in the papers, and small.
OPTIONS: dict[str, Any] = {
    "similarity": "dot",
    "loss": "softmax",
    "n_factors": 4,
    "hidden": (6,),
    "decoder_hidden": None,
    "history_dropout": 0.5,
    "epochs": 2,
    "batch_size": 4,
}


def module_of(name: str, **options: Any) -> tuple[Any, Any, Any]:
    """A model, its config with everything filled in, and its module in float64 with weights that all matter."""
    model: Any = make(name, **{**OPTIONS, **options})
    schema = DataSchema(20, N_ITEMS, 60, FeatureSchema(), FeatureSchema())
    config = model._adapt(model.get_config(mode="pydantic"), schema)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        module = model._build_module(config, schema).double()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.4)
    model._read_training_data(module, training_users())
    return model, config, module


def perceptron_scores(module: Any, batch: TrainingBatch, code_is_hidden: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoder gives and a function of the code: hidden layer, then scores; tanh in between."""
    encoder = module.encoder
    first = torch.tanh(dense_histories(batch) @ encoder.items + encoder.bias)
    linear = encoder.rest[1]
    code = first @ linear.weight.T + linear.bias
    return (torch.tanh(code) if code_is_hidden else code), first


def decoded(module: Any, code: torch.Tensor) -> torch.Tensor:
    linear, *_ = module.decoder.hidden
    hidden = torch.tanh(code @ linear.weight.T + linear.bias)
    return hidden @ module.decoder.items.T + module.decoder.bias.T


def sampled(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        noise = torch.randn_like(mean)
    return mean + noise * torch.sqrt(log_variance.exp())


def loss_of(model: Any, config: Any, module: Any, batch: Any) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model._batch_loss(config, module, batch)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("weights", [False, True])
class TestLossesAgainstDenseReferences:
    def test_dae_squared(self, weights: bool) -> None:
        model, config, module = module_of("DAEModel", loss={"name": "squared", "unobserved_weight": 0.2})
        batch = batch_of(weights)
        y, scores = dense_targets(batch), decoded(module, perceptron_scores(module, batch, True)[0])
        expected = ((0.2 + 0.8 * (y > 0).double()) * (y - scores).square()).sum() / 4
        assert_same(loss_of(model, config, module, batch), expected)

    def test_dae_logistic(self, weights: bool) -> None:
        model, config, module = module_of("DAEModel", loss="logistic")
        batch = batch_of(weights)
        y, scores = dense_targets(batch), decoded(module, perceptron_scores(module, batch, True)[0])
        likelihood = y * torch.sigmoid(scores).log() + (y == 0) * torch.sigmoid(-scores).log()
        assert_same(loss_of(model, config, module, batch), -likelihood.sum() / 4)

    def test_mult_dae(self, weights: bool) -> None:
        model, config, module = module_of("MultDAEModel")
        batch = batch_of(weights)
        scores = decoded(module, perceptron_scores(module, batch, True)[0])
        expected = -(dense_targets(batch) * scores.softmax(dim=1).log()).sum() / 4
        assert_same(loss_of(model, config, module, batch), expected)

    def test_mult_vae(self, weights: bool) -> None:
        model, config, module = module_of("MultVAEModel", beta=0.7, annealing_steps=0)
        batch = batch_of(weights)
        mean, log_variance = perceptron_scores(module, batch, False)[0].chunk(2, dim=1)
        scores = decoded(module, sampled(mean, log_variance))
        likelihood = (dense_targets(batch) * scores.softmax(dim=1).log()).sum() / 4
        posterior = torch.distributions.Normal(mean, log_variance.exp().sqrt())
        prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
        divergence = torch.distributions.kl_divergence(posterior, prior).sum() / 4
        assert_same(loss_of(model, config, module, batch), -likelihood + 0.7 * divergence)

    def test_rec_vae(self, weights: bool) -> None:
        model, config, module = module_of("RecVAEModel", decoder_hidden=(), gamma=0.3, mixture=(0.2, 0.5, 0.3))
        batch = batch_of(weights)
        former = DenselyConnectedEncoder(N_ITEMS, 6, 8).double()
        module.prior.renew(former)  # another encoder than the present one
        mean, log_variance = densely_connected(module.encoder, dense_histories(batch)).chunk(2, dim=1)
        code = sampled(mean, log_variance)
        scores = code @ module.decoder.items.T + module.decoder.bias.T
        y = dense_targets(batch)
        likelihood = (y * scores.softmax(dim=1).log()).sum(dim=1)
        former_mean, former_log_variance = densely_connected(former, whole_histories()).chunk(2, dim=1)
        zero, normal = torch.zeros_like(mean), torch.distributions.Normal
        density = (
            0.2 * normal(zero, zero + 1).log_prob(code).exp()
            + 0.5 * normal(former_mean, former_log_variance.exp().sqrt()).log_prob(code).exp()
            + 0.3 * normal(zero, zero + math.exp(5)).log_prob(code).exp()
        )
        posterior = normal(mean, log_variance.exp().sqrt()).log_prob(code)
        divergence = (posterior - density.log()).sum(dim=1)
        expected = (-likelihood + 0.3 * (y > 0).sum(dim=1) * divergence).mean()
        loss = AutoencoderModel._batch_loss
        with torch.random.fork_rng():
            torch.manual_seed(1)
            assert_same(loss(model, config, module, batch), expected)


def densely_connected(encoder: DenselyConnectedEncoder, histories: torch.Tensor) -> torch.Tensor:
    inputs = histories @ encoder.items + encoder.bias
    states: list[torch.Tensor] = []
    for number in range(5):
        if number:
            layer: Any = encoder.layers[number - 1]
            inputs = states[-1] @ layer.weight.T + layer.bias + sum(states)
        activated = inputs * torch.sigmoid(inputs)
        centred = activated - activated.mean(dim=1, keepdim=True)
        norm: Any = encoder.norms[number]
        scale = (centred.square().mean(dim=1, keepdim=True) + norm.eps).sqrt()
        states.append(centred / scale * norm.weight + norm.bias)
    return states[-1] @ encoder.out.weight.T + encoder.out.bias


def test_cosine() -> None:
    model, config, module = module_of("MultDAEModel", similarity="cosine", temperature=0.3)
    batch = batch_of()
    linear, *_ = module.decoder.hidden
    hidden = torch.tanh(perceptron_scores(module, batch, True)[0] @ linear.weight.T + linear.bias)
    lengths = hidden.norm(dim=1, keepdim=True) * module.decoder.items.norm(dim=1)
    scores = hidden @ module.decoder.items.T / lengths / 0.3 + module.decoder.bias.T
    expected = -(dense_targets(batch) * scores.softmax(dim=1).log()).sum() / 4
    assert_same(loss_of(model, config, module, batch), expected)


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str) -> None:
    """By finite differences, through encoder, sampling, decoder, loss and penalty."""
    model, config, module = module_of(name)
    weights = {key: value.detach() for key, value in module.named_parameters()}
    loss = AutoencoderModel._batch_loss

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self) -> torch.Tensor:
            torch.manual_seed(1)
            return loss(model, config, self.module, batch_of())

    names = [f"module.{key}" for key in weights]

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        if name == "MultVAEModel":
            module.prior.step.zero_()
        result: torch.Tensor = torch.func.functional_call(Loss(), dict(zip(names, tensors, strict=True)), ())
        return result

    with torch.random.fork_rng():
        assert torch.autograd.gradcheck(value, [tensor.requires_grad_() for tensor in weights.values()])


class TestPriors:
    def test_annealing(self) -> None:
        prior = GaussianPrior(beta=0.4, annealing_steps=4)
        mean, batch = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), batch_of()
        values = [float(prior(mean, mean, torch.zeros(2, 2), batch)) for _ in range(7)]
        # The divergence is half of the squares: (0.5 + 2) / 2 on average.
        assert values == pytest.approx([0.4 * share * 1.25 for share in (0, 0.25, 0.5, 0.75, 1, 1, 1)])

    def test_annealing_takes_the_whole_training_by_default(self, make_dataset: Callable[..., Dataset]) -> None:
        model: Any = make("MultVAEModel", epochs=3, batch_size=15).fit(make_dataset())
        assert model.fitted_config.annealing_steps == 3 * 3
        assert float(model._fitted.module.prior.step) == 9

    def test_the_prior_is_what_the_former_encoder_said_of_whole_histories(self) -> None:
        encoder = DenselyConnectedEncoder(N_ITEMS, 6, 8).double()
        prior = CompositePrior(0.1, (0.2, 0.5, 0.3))
        users = training_users()
        prior.watch(replace(users, rows=np.array([2, 0, 5, 1])))
        prior.renew(encoder)
        expected = densely_connected(encoder, whole_histories())
        assert_same(prior.former[[2, 0, 5, 1]], expected)
        with torch.no_grad():
            encoder.items.add_(1)
        assert_same(prior.former[[2, 0, 5, 1]], expected)
        assert not prior.former.requires_grad
        prior.watch(None)
        assert prior.former.numel() == 0


class TestAlternatingUpdates:
    def test_each_part_learns_in_its_turn(self, make_dataset: Callable[..., Dataset]) -> None:
        seen: list[tuple[str, bool, bool, bool, int]] = []

        class Spy(rectools_neural.RecVAEModel):
            def _batch_loss(self, config: Any, module: Any, batch: Any) -> torch.Tensor:
                loss = super()._batch_loss(config, module, batch)
                encoder, decoder = (
                    torch.autograd.grad(loss, [part], retain_graph=True, allow_unused=True)[0] is not None
                    if part.requires_grad
                    else False
                    for part in (module.encoder.items, module.decoder.items)
                )
                code = module.encoder(history_batch(module.prior._users.histories))
                same = torch.allclose(module.prior.former, code)
                hidden = len(batch.batch.targets) - len(batch.batch.users.history.items)
                seen.append((batch.trains, encoder, decoder, same, hidden))
                return loss

        Spy(epochs=2, batch_size=40, n_factors=4, hidden=(8,), encoder_passes=3, decoder_passes=2).fit(make_dataset())
        assert [row[0] for row in seen] == (["encoder"] * 3 + ["decoder"] * 2) * 2
        for trains, encoder, decoder, same, hidden in seen:
            assert (encoder, decoder) == (trains == "encoder", trains == "decoder")
            # The decoder sees whole histories, and its prior is the encoder of now.
            assert (hidden > 0) == (trains == "encoder")
            assert same or trains == "encoder"
        assert [row[3] for row in seen[:5]] == [True, False, False, True, True]


class TestServing:
    @pytest.mark.parametrize("name", NAMES)
    def test_users_without_history_get_what_is_popular(self, name: str, make_dataset: Callable[..., Dataset]) -> None:
        dataset = make_dataset(n_warm=1)
        model = make(name, epochs=1, n_factors=4, hidden=(8,)).fit(dataset)
        counts = dataset.get_raw_interactions()[Columns.Item].value_counts()
        for user in ("u040", "nobody"):
            reco = model.recommend([user], dataset, 5, True)
            assert reco[Columns.Score].tolist() == sorted(counts, reverse=True)[:5]
            assert reco[Columns.Score].tolist() == counts[reco[Columns.Item]].tolist()

    def test_a_history_of_unknown_items_is_none(self, make_dataset: Callable[..., Dataset], make_frames: Any) -> None:
        model = make("MultVAEModel", epochs=1, n_factors=4, hidden=(8,)).fit(make_dataset())
        later = pd.concat([make_frames().interactions, interactions([("new", 900), ("u001", 900)])])
        dataset = Dataset.construct(later)
        reco = recommend(model, dataset, ["u000", "new", "u001"])
        assert reco[Columns.User].unique().tolist() == ["u000", "new", "u001"]
        assert (
            reco.loc[reco[Columns.User] == "new", Columns.Score].tolist()
            == sorted(make_frames().interactions[Columns.Item].value_counts(), reverse=True)[:5]
        )

    def test_scores_are_those_of_the_vectors(self, make_dataset: Callable[..., Dataset]) -> None:
        dataset = make_dataset()
        model = make("RecVAEModel", epochs=2, n_factors=4, hidden=(8,)).fit(dataset)
        users, items = model.get_vectors(dataset)
        reco = recommend(model, dataset, k=24, filter_viewed=False)
        rows = dataset.user_id_map.convert_to_internal(reco[Columns.User])
        columns = dataset.item_id_map.convert_to_internal(reco[Columns.Item])
        np.testing.assert_allclose(reco[Columns.Score], (users @ items.T)[rows, columns], rtol=1e-4, atol=1e-5)


class TestWeights:
    def test_are_used_on_request(self, make_frames: Callable[..., Any]) -> None:
        table = make_frames(features=None).interactions
        heavy = table.assign(**{Columns.Weight: np.linspace(1, 5, len(table))})
        for use_weights in (False, True):
            recos = [
                recommend(make("DAEModel", epochs=2, n_factors=4, hidden=(), use_weights=use_weights).fit(d), d)
                for d in (Dataset.construct(table), Dataset.construct(heavy))
            ]
            assert recos[0].equals(recos[1]) != use_weights

    def test_wrong_ones_are_refused_only_where_used(self, make_frames: Callable[..., Any]) -> None:
        table = make_frames(features=None).interactions.assign(**{Columns.Weight: -1.0})
        dataset = Dataset.construct(table)
        options: dict[str, Any] = {"epochs": 1, "n_factors": 4, "hidden": ()}
        assert make("DAEModel", **options).fit(dataset).is_fitted
        with pytest.raises(ValueError, match=r"`weight` of the interactions has .* negative"):
            make("DAEModel", **options, use_weights=True).fit(dataset)


class TestOptions:
    @pytest.mark.parametrize(
        ("name", "options", "dense", "sparse"),
        [
            ("DAEModel", {}, "squared", "squared"),
            ("DAEModel", {"negatives": "in_batch"}, "sampled_softmax", "sampled_softmax"),
            ("MultDAEModel", {}, "softmax", "softmax"),
            ("MultVAEModel", {}, "squared", "softmax"),
            ("RecVAEModel", {}, "squared", "softmax"),
            ("MultVAEModel", {"negatives": "in_batch"}, "sampled_softmax", "sampled_softmax"),
            ("MultVAEModel", {"loss": "logistic"}, "logistic", "logistic"),
        ],
    )
    def test_follow_from_the_data(self, name: str, options: dict[str, Any], dense: str, sparse: str) -> None:
        model: Any = make(name, **options)
        for n_interactions, loss, temperature, dropout in ((1000, dense, 0.2, 0.5), (90, sparse, 0.09, 0.1)):
            schema = DataSchema(100, 200, n_interactions, FeatureSchema(), FeatureSchema())
            config = model._adapt(model.get_config(mode="pydantic"), schema)
            assert config.loss.name == loss
            assert config.similarity == ("cosine" if loss.endswith("softmax") else "dot")
            assert (config.temperature, config.history_dropout) == (temperature, dropout)

    def test_given_ones_stay(self) -> None:
        config = module_of("MultVAEModel", temperature=0.7, history_dropout=0.0, annealing_steps=0)[1]
        assert (config.temperature, config.history_dropout, config.annealing_steps) == (0.7, 0.0, 0)

    @pytest.mark.parametrize("n_items", [99_999, 100_000])
    def test_large_catalogues_are_sampled(self, n_items: int) -> None:
        model: Any = make("MultVAEModel")
        schema = DataSchema(100, n_items, 1000, FeatureSchema(), FeatureSchema())
        expected = "softmax" if n_items < 100_000 else "sampled_softmax"
        assert model._adapt(model.get_config(mode="pydantic"), schema).loss.name == expected

    def test_too_large_a_catalogue_for_the_loss(self) -> None:
        model: Any = make("MultDAEModel", loss="softmax", batch_size=1000)
        schema = DataSchema(100, 2_000_000, 1000, FeatureSchema(), FeatureSchema())
        match = r"`softmax` scores 2000000 items for the 1000 users .* 14.9 GiB .*`batch_size`.*`loss`"
        with pytest.raises(ValueError, match=match):
            model._adapt(model.get_config(mode="pydantic"), schema)

    @pytest.mark.parametrize("share", [False, True])
    def test_shared_embedding(self, share: bool) -> None:
        _, _, module = module_of("MultVAEModel", share_item_embedding=share)
        vectors = module.item_vectors(batch_of().items)
        assert torch.equal(vectors[:, :-1], module.encoder.items) == share

    @pytest.mark.parametrize(
        ("sizes", "match"),
        [
            ({"hidden": (20,), "decoder_hidden": (10,)}, "20 and 10"),
            ({"hidden": (), "n_factors": 10}, "20 and 10"),  # mean and variance
        ],
    )
    def test_sizes_of_a_shared_embedding(
        self, sizes: dict[str, Any], match: str, make_dataset: Callable[..., Dataset]
    ) -> None:
        with pytest.raises(ValueError, match=rf"`share_item_embedding` needs .* {match}"):
            make("MultVAEModel", share_item_embedding=True, **sizes).fit(make_dataset())

    @pytest.mark.parametrize(
        ("name", "options", "match"),
        [
            ("DAEModel", {"history_noise": 1.5}, "history_noise"),
            ("DAEModel", {"history_noise": -0.1}, "history_noise"),
            ("MultVAEModel", {"history_dropout": 1.0}, "history_dropout"),
            ("MultVAEModel", {"loss": "softmx"}, "`softmx`.*`softmax`"),
            ("MultVAEModel", {"loss": "bpr"}, "unknown name `bpr`"),
            ("MultVAEModel", {"loss": "softmax", "negatives": "in_batch"}, "takes no `negatives`"),
            ("MultVAEModel", {"negatives": "uniform"}, "`shared`"),
            ("MultVAEModel", {"beta": -1}, "beta"),
            ("MultVAEModel", {"hidden": (0,)}, "hidden"),
            ("RecVAEModel", {"hidden": (10, 10)}, "hidden"),
            ("RecVAEModel", {"mixture": (0.5, 0.5, 0.0)}, "mixture"),
        ],
    )
    def test_wrong_ones(self, name: str, options: dict[str, Any], match: str) -> None:
        with pytest.raises(ValidationError, match=match):
            make(name, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax", "sampled_softmax"])
def test_every_loss_learns(name: str, loss: str, make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(features=None)
    options: dict[str, Any] = {"negatives": {"n": 10, "shared": True}} if loss == "sampled_softmax" else {}
    model = make(name, loss=loss, epochs=40, batch_size=20, n_factors=8, hidden=(16,), learning_rate=0.02, **options)
    assert own_share(model.fit(dataset), dataset, k=1) >= 0.9


def test_a_module_is_variational_where_the_paper_is() -> None:
    assert [isinstance(module_of(name)[2], VariationalModule) for name in NAMES] == [False, False, True, True]


@pytest.mark.skipif(not LOCAL_DATA or not (Path(LOCAL_DATA) / "ml-100k").is_dir(), reason="no local MovieLens-100k")
def test_beats_popularity_on_real_data() -> None:
    dataset = load_dataset("ml-100k")
    metrics = {"ndcg": NDCG(10, divide_by_achievable=True)}
    models = {
        "popular": PopularModel(),
        "vae": make("MultVAEModel", n_factors=64, hidden=(128,), decoder_hidden=(), epochs=40, learning_rate=0.005),
        "dae": make("DAEModel", n_factors=64, hidden=(), epochs=30),
    }
    splitter = RandomSplitter(0.2, random_state=0)
    result = cross_validate(dataset, splitter, metrics, models, k=10, filter_viewed=True)
    popular, vae, dae = (row["ndcg"] for row in result["metrics"])
    assert vae > 1.5 * popular
    assert dae > 1.5 * popular
