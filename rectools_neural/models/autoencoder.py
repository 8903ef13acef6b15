"""Autoencoders: DAE, Mult-DAE, Mult-VAE and RecVAE."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import nn
from typing_extensions import Self

from ..config import (
    CatalogueLoss,
    Dropout,
    Negatives,
    NegativesConfig,
    SampledSoftmaxLoss,
    SoftmaxLoss,
    SquaredLoss,
)
from ..data.batches import HistoryBatch, ItemBatch, TrainingBatch, UserBatch
from ..data.reader import Items, Reading, Users
from ..data.sources import UserBatches
from ..nn.bags import normalised_sum_of_rows, take_rows
from ..nn.towers import ACTIVATIONS
from ..training.loop import Batches
from .base import DataSchema, NeuralModelConfig
from .two_sided import TwoSidedModel, catalogue_loss, check_table, encode_in_chunks, sampled_loss

_LARGE_CATALOGUE = 100_000  # items from which on a softmax over all of them costs more than it gives
_STEPS = 2.0  # steps of the optimiser for the square root of the interactions


class AutoencoderConfig(NeuralModelConfig):
    """Options of all autoencoders; see `MultVAEModel`."""

    n_factors: PositiveInt = 256
    hidden: tuple[PositiveInt, ...] = ()
    decoder_hidden: tuple[PositiveInt, ...] | None = ()
    activation: Literal["tanh", "relu", "elu", "gelu", "leaky_relu", "silu"] = "tanh"
    share_item_embedding: bool = False
    similarity: Literal["dot", "cosine"] | None = None
    temperature: PositiveFloat | None = None
    history_dropout: Dropout | None = None
    loss: CatalogueLoss | None = None
    negatives: Negatives | None = None
    use_weights: bool = False

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.negatives is not None and self.loss is not None and self.loss.name != "sampled_softmax":
            raise ValueError(
                f"loss `{self.loss.name}` is over the whole catalogue and takes no `negatives`: leave them out, or use "
                "`sampled_softmax`"
            )
        if self.negatives is not None and not (self.negatives.shared or self.negatives.name == "in_batch"):
            raise ValueError("`negatives` of an autoencoder are for the whole batch: set `shared`, or use `in_batch`")
        return self

    @property
    def decoder_sizes(self) -> tuple[int, ...]:
        """Hidden layers of the decoder."""
        return self.hidden[::-1] if self.decoder_hidden is None else self.decoder_hidden


Config = TypeVar("Config", bound=AutoencoderConfig)


class Encoder(nn.Module):
    """
    From a history, scaled to length 1, to a code: a perceptron.

    Parameters
    ----------
    n_items : int
        Size of the catalogue.
    sizes : sequence of int
        Of the layers, the last one being the code.
    activation : str
        Between the layers.
    is_hidden : bool
        Whether the code is a hidden layer too, with an activation.
    """

    def __init__(self, n_items: int, sizes: tuple[int, ...], activation: str, is_hidden: bool) -> None:
        super().__init__()
        self.items = _table(n_items, sizes[0])
        self.bias = nn.Parameter(torch.zeros(sizes[0]))
        make = ACTIVATIONS[activation]
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (make(), nn.Linear(*pair))]
        self.rest = nn.Sequential(*layers, *([make()] if is_hidden else []))

    def forward(self, history: HistoryBatch) -> torch.Tensor:
        """Encode histories, shape ``(n_users, sizes[-1])``."""
        code: torch.Tensor = self.rest(normalised_sum_of_rows(self.items, history) + self.bias)
        return code


class DenselyConnectedEncoder(nn.Module):
    """
    RecVAE's encoder: five layers, each of which sees all the ones before it.

    Parameters
    ----------
    n_items : int
        Size of the catalogue.
    hidden : int
        Size of the layers.
    n_out : int
        Size of the code.
    """

    def __init__(self, n_items: int, hidden: int, n_out: int) -> None:
        super().__init__()
        self.items = _table(n_items, hidden)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(5))
        self.out = nn.Linear(hidden, n_out)

    def forward(self, history: HistoryBatch) -> torch.Tensor:
        """Encode histories, shape ``(n_users, n_out)``."""
        state = self.norms[0](F.silu(normalised_sum_of_rows(self.items, history) + self.bias))
        before = state
        for layer, norm in zip(self.layers, list(self.norms)[1:], strict=True):
            state = norm(F.silu(layer(state) + before))
            before = before + state
        code: torch.Tensor = self.out(state)
        return code


class Decoder(nn.Module):
    """
    From a code to the last hidden layer, and the weights of the items on top of it.

    Parameters
    ----------
    n_items : int
        Size of the catalogue.
    sizes : sequence of int
        Of the code and the hidden layers.
    activation : str
        Of the hidden layers.
    has_items : bool
        Whether it has a table of item vectors of its own.
    """

    def __init__(self, n_items: int, sizes: tuple[int, ...], activation: str, has_items: bool) -> None:
        super().__init__()
        make = ACTIVATIONS[activation]
        layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), make())]
        self.hidden = nn.Sequential(*layers)
        self.items = _table(n_items, sizes[-1]) if has_items else None
        self.bias = nn.Parameter(torch.zeros(n_items, 1))

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        """Decode to the last hidden layer, shape ``(n_users, sizes[-1])``."""
        hidden: torch.Tensor = self.hidden(code)
        return hidden


class AutoencoderModule(nn.Module):
    """
    Encoder and decoder; the last layer of the decoder is the item vectors.

    Parameters
    ----------
    schema : DataSchema
        Sizes of the data.
    config : AutoencoderConfig
        The options.
    encoder : nn.Module
        From histories to codes.
    """

    euclidean = False
    has_bias = True

    def __init__(self, schema: DataSchema, config: AutoencoderConfig, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        sizes = (config.n_factors, *config.decoder_sizes)
        first = cast(torch.Tensor, encoder.items).shape[1]
        if config.share_item_embedding and first != sizes[-1]:
            raise ValueError(
                f"`share_item_embedding` needs a first layer of the encoder as large as the last one of the decoder, "
                f"got {first} and {sizes[-1]}: change `hidden`, `decoder_hidden` or `n_factors`"
            )
        self.decoder = Decoder(schema.n_items, sizes, config.activation, not config.share_item_embedding)
        self._temperature = config.temperature if config.similarity == "cosine" else None

    def code(self, users: UserBatch) -> torch.Tensor:
        """Codes that users are served with, shape ``(n_users, n_factors)``."""
        code: torch.Tensor = self.encoder(users.history)
        return code

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Vectors of users with a last 1 for the biases of the items, shape ``(n_users, dim + 1)``."""
        vectors = self.decoder(code)
        if self._temperature is not None:
            vectors = F.normalize(vectors, dim=1) / self._temperature
        return F.pad(vectors, (0, 1), value=1.0)

    def user_vectors(self, users: UserBatch) -> torch.Tensor:
        """Vectors of users with a last 1 for the biases of the items, shape ``(n_users, dim + 1)``."""
        return self.decode(self.code(users))

    def item_vectors(self, items: ItemBatch) -> torch.Tensor:
        """Vectors of items, the bias last, shape ``(n_items, dim + 1)``."""
        table = self.encoder.items if self.decoder.items is None else self.decoder.items
        vectors = cast(torch.Tensor, table)
        if self._temperature is not None:
            vectors = F.normalize(vectors, dim=1)
        vectors = torch.cat([vectors, self.decoder.bias], dim=1)
        return take_rows(vectors, items.rows)

    def training_vectors(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of users to learn with, and a penalty on their codes, a scalar."""
        vectors = self.user_vectors(batch.users)
        return vectors, vectors.new_zeros(())


class VariationalModule(AutoencoderModule):
    """
    An autoencoder whose code is a normal distribution, given by its mean and the logarithm of its variance.

    Parameters
    ----------
    schema, config, encoder
        As for `AutoencoderModule`; the encoder gives mean and log-variance side by side.
    prior : nn.Module
        Gives the penalty of a batch of codes.
    """

    def __init__(self, schema: DataSchema, config: AutoencoderConfig, encoder: nn.Module, prior: nn.Module) -> None:
        super().__init__(schema, config, encoder)
        self.prior = prior

    def code(self, users: UserBatch) -> torch.Tensor:
        """Mean codes, shape ``(n_users, n_factors)``."""
        return super().code(users).chunk(2, dim=1)[0]

    def training_vectors(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of users from sampled codes, and how far these are from the prior."""
        mean, log_variance = self.encoder(batch.users.history).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        # The penalty teaches the encoder alone: where that is frozen it would be work for nothing.
        penalty = self.prior(code, mean, log_variance, batch) if mean.requires_grad else mean.new_zeros(())
        return self.decode(code), penalty


class GaussianPrior(nn.Module):
    """
    Kullback-Leibler divergence from the standard normal distribution, its weight growing to a cap.

    Parameters
    ----------
    beta : float
        The cap.
    annealing_steps : int
        Steps until it is reached.
    """

    step: torch.Tensor

    def __init__(self, beta: float, annealing_steps: int) -> None:
        super().__init__()
        self._beta, self._annealing_steps = beta, annealing_steps
        self.register_buffer("step", torch.zeros(()))

    def forward(
        self, code: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, batch: TrainingBatch
    ) -> torch.Tensor:
        """Weighted divergence, mean over the users, a scalar."""
        weight = (self.step / self._annealing_steps).clamp(max=1) if self._annealing_steps else self.step.new_ones(())
        self.step += 1
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
        return self._beta * weight * divergence.mean()


class CompositePrior(nn.Module):
    """
    RecVAE's prior: a mixture of the standard normal, the posterior of the former encoder and a wide normal.

    Of the former encoder it keeps what it said of the whole histories of the training users.

    Parameters
    ----------
    gamma : float
        Weight of the divergence for each item of a user.
    mixture : tuple of float
        Weights of the standard normal, of the former posterior and of the wide normal.
    """

    WIDE_LOG_VARIANCE = 10.0

    log_mixture: torch.Tensor
    former: torch.Tensor

    def __init__(self, gamma: float, mixture: tuple[float, float, float]) -> None:
        super().__init__()
        self._gamma = gamma
        self._users: Users | None = None
        self.register_buffer("log_mixture", torch.tensor(mixture).log(), persistent=False)
        self.register_buffer("former", torch.zeros(0), persistent=False)

    def watch(self, users: Users | None) -> None:
        """Make these the training users; None forgets them and what an encoder said of them."""
        self._users = users
        self.former = torch.zeros(0, device=self.former.device)

    @torch.no_grad()
    def renew(self, encoder: nn.Module) -> None:
        """Make the given encoder the former one."""
        assert self._users is not None
        codes = encode_in_chunks(encoder, lambda users: encoder(users.history), self._users)
        self.former = codes.new_zeros(int(self._users.rows.max()) + 1, codes.shape[1])
        self.former[torch.from_numpy(self._users.rows)] = codes

    def forward(
        self, code: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, batch: TrainingBatch
    ) -> torch.Tensor:
        """Weighted divergence, estimated from one sample a user, mean over the users, a scalar."""
        former_mean, former_log_variance = self.former[batch.users.rows].chunk(2, dim=1)
        zero = torch.zeros_like(mean)
        components = torch.stack(
            [
                log_normal(code, zero, zero),
                log_normal(code, former_mean, former_log_variance),
                log_normal(code, zero, zero + self.WIDE_LOG_VARIANCE),
            ]
        )
        prior = (components + self.log_mixture.view(3, 1, 1)).logsumexp(dim=0)
        divergence = (log_normal(code, mean, log_variance) - prior).sum(dim=1)
        n_items = torch.bincount(batch.rows, minlength=len(code))
        return self._gamma * (n_items * divergence).mean()


def log_normal(x: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Logarithm of the density of a normal distribution, element by element."""
    return -0.5 * (log_variance + math.log(2 * math.pi) + (x - mean).square() / log_variance.exp())


class AutoencoderModel(TwoSidedModel[Config], Generic[Config]):
    """
    Base of the autoencoders: a user is the set of the items; the model reproduces it from a part of it.

    A member of the family says what its module is.
    """

    def _adapt(self, config: Config, schema: DataSchema) -> Config:
        batch_size = config.batch_size or min(max(2 ** round(math.log2(4 * schema.n_users**0.5)), 64), 512)
        n_batches = math.ceil(schema.n_users / batch_size)
        loss: Any = config.loss or self._usual_loss(schema)
        is_large = config.loss is None and loss.name == "softmax" and schema.n_items >= _LARGE_CATALOGUE
        if is_large or (config.loss is None and config.negatives is not None):
            loss = SampledSoftmaxLoss()
        steps = _STEPS * schema.n_interactions**0.5
        epochs = config.epochs or max(round(steps / (n_batches * self._passes(config))), 3)
        if loss.name in ("softmax", "logistic"):
            check_table(loss.name, batch_size, schema.n_items)
        dropout = config.history_dropout
        similarity = config.similarity or ("cosine" if loss.name in ("softmax", "sampled_softmax") else "dot")
        chosen = {
            "loss": loss,
            "similarity": similarity,
            "temperature": config.temperature or (0.2 if schema.is_dense else 0.09),
            "history_dropout": (0.5 if schema.is_dense else 0.1) if dropout is None else dropout,
            "batch_size": batch_size,
            "epochs": epochs,
        }
        return type(config)(**{**dict(config), **chosen})

    def _reading(self, config: Config) -> Reading:
        return Reading(features=False, weights=config.use_weights)

    def _usual_loss(self, schema: DataSchema) -> SquaredLoss | SoftmaxLoss:
        return SquaredLoss() if schema.is_dense else SoftmaxLoss()

    def _passes(self, config: Config) -> int:
        """How often an epoch goes over the data."""
        return 1

    def _make_batches(self, config: Config, users: Users, items: Items, generator: torch.Generator) -> Batches:
        assert config.loss is not None
        assert config.batch_size is not None
        batches = UserBatches(users, items, config.batch_size, generator, hidden=config.history_dropout or 0.0)
        return batches.with_negatives(_negatives(config)) if config.loss.name == "sampled_softmax" else batches

    def _batch_loss(self, config: Config, module: AutoencoderModule, batch: TrainingBatch) -> torch.Tensor:
        assert config.loss is not None
        vectors, penalty = module.training_vectors(batch)
        items = module.item_vectors(batch.items)
        if config.loss.name != "sampled_softmax":
            return catalogue_loss(config.loss, vectors, items, batch) + penalty
        loss = sampled_loss(config.loss, _negatives(config), vectors, items, batch)
        # A sum over the items of a user like the other losses, to be weighed against the penalty.
        return loss * (len(batch.rows) / len(batch.users)) + penalty


class DAEModelConfig(AutoencoderConfig):
    """Options of `DAEModel`; see there."""

    history_noise: Dropout = 0.0


class DAEModel(AutoencoderModel[DAEModelConfig]):
    """
    DAE: a denoising autoencoder with squared or logistic loss (Vincent et al. 2008, Wu et al. 2016).

    Parameters
    ----------
    history_noise : float
        Probability of an item that the user does not have to be seen in training.
    n_factors, hidden, decoder_hidden, activation, share_item_embedding, similarity, temperature,
    history_dropout, loss, negatives, use_weights
        As for `MultVAEModel`; `loss` is "squared" by default.
    **params
        Those of every neural model: ``epochs``, ``batch_size``, ``learning_rate``, ``optimizer``, ``validation``,
        ``seed``, ``device``, ``devices``, ``strategy``, ``precision``, ``get_trainer_func``,
        ``get_trainer_func_kwargs``, ``verbose``; see `NeuralModelConfig`.

    References
    ----------
    Vincent et al., Extracting and composing robust features with denoising autoencoders, ICML 2008.
    Wu et al., Collaborative denoising auto-encoders for top-N recommender systems, WSDM 2016.

    Examples
    --------
    >>> from rectools_neural import DAEModel, load_dataset
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> model = DAEModel(loss="logistic").fit(dataset)  # doctest: +SKIP
    """

    config_class = DAEModelConfig

    def _usual_loss(self, schema: DataSchema) -> SquaredLoss:
        return SquaredLoss()

    def _build_module(self, config: DAEModelConfig, schema: DataSchema) -> AutoencoderModule:
        return deterministic_module(schema, config)

    def _make_batches(self, config: DAEModelConfig, users: Users, items: Items, generator: torch.Generator) -> Any:
        batches: Any = super()._make_batches(config, users, items, generator)
        return replace(batches, noise=config.history_noise)


class MultDAEModelConfig(AutoencoderConfig):
    """Options of `MultDAEModel`; see there."""

    learning_rate: PositiveFloat = 2e-3


class MultDAEModel(AutoencoderModel[MultDAEModelConfig]):
    """
    Mult-DAE: a denoising autoencoder with multinomial likelihood (Liang et al. 2018).

    Parameters
    ----------
    n_factors, hidden, decoder_hidden, activation, share_item_embedding, similarity, temperature,
    history_dropout, loss, negatives, use_weights
        As for `MultVAEModel`; the loss is a softmax by default.
    **params
        Those of every neural model: ``epochs``, ``batch_size``, ``learning_rate``, ``optimizer``, ``validation``,
        ``seed``, ``device``, ``devices``, ``strategy``, ``precision``, ``get_trainer_func``,
        ``get_trainer_func_kwargs``, ``verbose``; see `NeuralModelConfig`.

    References
    ----------
    Liang et al., Variational autoencoders for collaborative filtering, WWW 2018.

    Examples
    --------
    >>> from rectools_neural import MultDAEModel, load_dataset
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> model = MultDAEModel(hidden=(), n_factors=200).fit(dataset)  # doctest: +SKIP
    """

    config_class = MultDAEModelConfig

    def _usual_loss(self, schema: DataSchema) -> SoftmaxLoss:
        return SoftmaxLoss()

    def _build_module(self, config: MultDAEModelConfig, schema: DataSchema) -> AutoencoderModule:
        return deterministic_module(schema, config)


class MultVAEModelConfig(AutoencoderConfig):
    """Options of `MultVAEModel`; see there."""

    n_factors: PositiveInt = 128
    hidden: tuple[PositiveInt, ...] = (200,)
    beta: NonNegativeFloat = 0.05
    learning_rate: PositiveFloat = 3e-3
    annealing_steps: NonNegativeInt | None = None


class MultVAEModel(AutoencoderModel[MultVAEModelConfig]):
    """
    Mult-VAE: a variational autoencoder with multinomial likelihood (Liang et al. 2018).

    A user is served from the history in the given dataset, whether the model was fitted on it or not. Users without a
    history get what is popular.

    Parameters
    ----------
    n_factors : int
        Size of the code.
    hidden : tuple of int
        Hidden layers of the encoder; none is a linear map from the items to the code.
    decoder_hidden : tuple of int, optional
        Hidden layers of the decoder, none by default; None for those of the encoder, the other way round, as in the
        paper.
    activation : {"tanh", "relu", "elu", "gelu", "leaky_relu", "silu"}
        Of the hidden layers.
    share_item_embedding : bool
        Whether the decoder's last layer is the encoder's first one; both need the same size.
    similarity : {"dot", "cosine"}, optional
        How the last hidden layer meets the item vectors; by default cosine for the softmax losses, where it does
        better (Ma et al. 2019), and dot for the others. The papers have dot.
    temperature : float, optional
        What a cosine is divided by; by default 0.2 on dense and 0.09 on sparse data.
    history_dropout : float, optional
        Share of each history that is hidden in training; by default 0.5 on dense and 0.1 on sparse data.
    loss : str or dict or loss config, optional
        "softmax", which is the multinomial likelihood of the paper, "sampled_softmax", "squared" or "logistic". By
        default squared on dense data, where it does better, and softmax on sparse data; where the catalogue has
        100 000 items or more, over a sample of it.
    negatives : str or dict or NegativesConfig, optional
        Of the sampled softmax; by default 8192 that a batch shares.
    use_weights : bool
        Whether the weights of the interactions are used: as strength of the input, and as counts of the likelihood or
        as values of the squared loss. Otherwise each interaction counts 1.
    beta : float
        Weight of the divergence between code and prior when fully grown.
    annealing_steps : int, optional
        Steps of the optimiser in which the weight grows from 0; by default all of them. 0 starts with the full weight.
    **params
        Those of every neural model: ``epochs``, ``batch_size``, ``learning_rate``, ``optimizer``, ``validation``,
        ``seed``, ``device``, ``devices``, ``strategy``, ``precision``, ``get_trainer_func``,
        ``get_trainer_func_kwargs``, ``verbose``; see `NeuralModelConfig`.

    References
    ----------
    Liang et al., Variational autoencoders for collaborative filtering, WWW 2018.
    Ma et al., Learning disentangled representations for recommendation, NeurIPS 2019 (cosine).

    Examples
    --------
    >>> from rectools_neural import MultVAEModel, load_dataset
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> model = MultVAEModel(epochs=100).fit(dataset)  # doctest: +SKIP
    >>> model.recommend([1, 2], dataset, k=10, filter_viewed=True)  # doctest: +SKIP
    """

    config_class = MultVAEModelConfig

    def _adapt(self, config: MultVAEModelConfig, schema: DataSchema) -> MultVAEModelConfig:
        config = super()._adapt(config, schema)
        if config.annealing_steps is not None:
            return config
        assert config.epochs is not None
        assert config.batch_size is not None
        steps = config.epochs * math.ceil(schema.n_users / config.batch_size)
        return MultVAEModelConfig(**{**dict(config), "annealing_steps": steps})

    def _build_module(self, config: MultVAEModelConfig, schema: DataSchema) -> AutoencoderModule:
        assert config.annealing_steps is not None
        encoder = Encoder(schema.n_items, (*config.hidden, 2 * config.n_factors), config.activation, is_hidden=False)
        return VariationalModule(schema, config, encoder, GaussianPrior(config.beta, config.annealing_steps))


class RecVAEModelConfig(AutoencoderConfig):
    """Options of `RecVAEModel`; see there."""

    n_factors: PositiveInt = 128
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=1)] = (200,)
    gamma: PositiveFloat = 0.005
    mixture: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.15, 0.75, 0.1)
    encoder_passes: PositiveInt = 3
    decoder_passes: PositiveInt = 1
    learning_rate: PositiveFloat = 2e-3


class RecVAEModel(AutoencoderModel[RecVAEModelConfig]):
    """
    RecVAE: a variational autoencoder with a composite prior and alternating updates (Shenbin et al. 2020).

    The encoder is five densely connected layers, the decoder is linear. An epoch updates the encoder with noisy
    histories, then the decoder with whole ones; the prior remembers the former encoder. The weight of the divergence
    grows with the history of the user.

    Parameters
    ----------
    hidden : tuple of one int
        Size of the layers of the encoder.
    gamma : float
        Weight of the divergence for each item of a user.
    mixture : tuple of three float
        Weights in the prior of the standard normal, of the former encoder and of a wide normal.
    encoder_passes, decoder_passes : int
        Passes over the data in an epoch that update the encoder, and the decoder.
    n_factors, decoder_hidden, activation, share_item_embedding, similarity, temperature,
    history_dropout, loss, negatives, use_weights
        As for `MultVAEModel`.
    **params
        Those of every neural model: ``epochs``, ``batch_size``, ``learning_rate``, ``optimizer``, ``validation``,
        ``seed``, ``device``, ``devices``, ``strategy``, ``precision``, ``get_trainer_func``,
        ``get_trainer_func_kwargs``, ``verbose``; see `NeuralModelConfig`.

    References
    ----------
    Shenbin et al., RecVAE: a new variational autoencoder for top-N recommendations with implicit feedback, WSDM 2020.

    Examples
    --------
    >>> from rectools_neural import RecVAEModel, load_dataset
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> model = RecVAEModel(gamma=0.005).fit(dataset)  # doctest: +SKIP
    """

    config_class = RecVAEModelConfig
    trains_in_turns: ClassVar[bool] = True

    def _passes(self, config: RecVAEModelConfig) -> int:
        return config.encoder_passes + config.decoder_passes

    def _build_module(self, config: RecVAEModelConfig, schema: DataSchema) -> VariationalModule:
        encoder = DenselyConnectedEncoder(schema.n_items, config.hidden[0], 2 * config.n_factors)
        return VariationalModule(schema, config, encoder, CompositePrior(config.gamma, config.mixture))

    def _read_training_data(self, module: Any, users: Users) -> None:
        module.prior.watch(users)
        module.prior.renew(module.encoder)

    def _forget_training_data(self, module: Any) -> None:
        module.prior.watch(None)

    def _make_batches(
        self, config: RecVAEModelConfig, users: Users, items: Items, generator: torch.Generator
    ) -> Batches:
        noisy: Any = super()._make_batches(config, users, items, generator)
        return AlternatingBatches(noisy, replace(noisy, hidden=0.0), config.encoder_passes, config.decoder_passes)

    def _batch_loss(self, config: RecVAEModelConfig, module: Any, batch: Any) -> torch.Tensor:
        if batch.is_first and batch.trains == "decoder":
            module.prior.renew(module.encoder)
        # What has no gradient is left as it is by the optimiser.
        module.encoder.requires_grad_(batch.trains == "encoder")
        module.decoder.requires_grad_(batch.trains == "decoder")
        return super()._batch_loss(config, module, batch.batch)


@dataclass
class AlternatingBatch:
    """
    A batch and the part of the model that learns from it.

    Parameters
    ----------
    batch : TrainingBatch
        The batch.
    trains : {"encoder", "decoder"}
        The part.
    is_first : bool
        Whether the other part learned from the batch before.
    """

    batch: TrainingBatch
    trains: str
    is_first: bool

    def to(self, device: torch.device) -> AlternatingBatch:
        """Move to a device."""
        return AlternatingBatch(self.batch.to(device), self.trains, self.is_first)


@dataclass
class AlternatingBatches:
    """
    Batches for the encoder, then batches for the decoder.

    Parameters
    ----------
    of_encoder, of_decoder : UserBatches
        Their sources.
    encoder_passes, decoder_passes : int
        How often an epoch goes over each.
    """

    of_encoder: UserBatches
    of_decoder: UserBatches
    encoder_passes: int
    decoder_passes: int

    @property
    def generator(self) -> torch.Generator:
        """Source of all randomness of both."""
        return self.of_encoder.generator

    @property
    def n_rows(self) -> int | None:
        """As of the sources."""
        return self.of_encoder.n_rows

    def share(self, rank: int, world_size: int) -> None:
        """Take a part of each batch; see the sources."""
        self.of_encoder.share(rank, world_size)
        self.of_decoder.share(rank, world_size)

    def __len__(self) -> int:
        return self.encoder_passes * len(self.of_encoder) + self.decoder_passes * len(self.of_decoder)

    def __iter__(self) -> Iterator[AlternatingBatch]:
        for trains, source, passes in (
            ("encoder", self.of_encoder, self.encoder_passes),
            ("decoder", self.of_decoder, self.decoder_passes),
        ):
            batches = itertools.chain.from_iterable(itertools.repeat(source, passes))
            for number, batch in enumerate(batches):
                yield AlternatingBatch(batch, trains, is_first=number == 0)


def deterministic_module(schema: DataSchema, config: AutoencoderConfig) -> AutoencoderModule:
    """Build encoder and decoder of a plain autoencoder, whose code is a hidden layer like the others."""
    sizes = (*config.hidden, config.n_factors)
    return AutoencoderModule(schema, config, Encoder(schema.n_items, sizes, config.activation, is_hidden=True))


def _negatives(config: AutoencoderConfig) -> NegativesConfig:
    return config.negatives or NegativesConfig(n=8192, shared=True)


def _table(n_items: int, dim: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(n_items, dim)))
