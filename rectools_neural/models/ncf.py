"""NCF: neural collaborative filtering."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
import torch
from pydantic import Field, PositiveInt, model_validator
from rectools.dataset import Dataset
from torch import nn
from typing_extensions import Self

from ..config import NeuMFPretraining, Tower, TowerConfig, ValidationConfig
from ..data.batches import FeatureBatch, FeatureSchema, ItemBatch, UserBatch
from ..data.reader import Users
from ..nn.bags import take_rows
from ..nn.features import FeatureEmbedding, IdEmbedding
from ..nn.pairs import PairNetwork, ProductCross, Side
from ..nn.towers import make_tower
from ..training.checkpoint import Checkpoints
from ..training.loop import Outcome
from .base import DataSchema, FittedState
from .pairs import PairModel, PairModelConfig, PairModule


class NCFModelConfig(PairModelConfig):
    """Options of `NCFModel`; see there."""

    architecture: Literal["gmf", "mlp", "neumf"] = "neumf"
    n_factors: PositiveInt = 64
    hidden: tuple[PositiveInt, ...] = (32, 16)
    merge: Literal["concatenation", "product"] = "concatenation"
    user_tower: Tower = Field(default_factory=TowerConfig)
    item_tower: Tower = Field(default_factory=TowerConfig)
    pretraining: NeuMFPretraining | None = None

    @model_validator(mode="after")
    def _check_architecture(self) -> Self:
        if self.architecture != "gmf" and not self.hidden:
            raise ValueError(f"architecture `{self.architecture}` has a perceptron: give `hidden` at least one layer")
        if self.pretraining is not None and self.architecture != "neumf":
            raise ValueError(f"`pretraining` is for architecture `neumf`, not for `{self.architecture}`: leave it out")
        return self


class NCFModule(PairModule):
    """
    Generalised matrix factorisation, a perceptron over both embeddings, or both.

    Parameters
    ----------
    schema : DataSchema
        Sizes and features of the data.
    config : NCFModelConfig
        The options.
    """

    def __init__(self, schema: DataSchema, config: NCFModelConfig) -> None:
        dim, has_gmf, has_mlp = config.n_factors, config.architecture != "mlp", config.architecture != "gmf"
        cross = ProductCross(dim, config.hidden[0]) if has_mlp and config.merge == "product" else None
        super().__init__(PairNetwork(config.hidden if has_mlp else (), cross, config.activation, config.dropout))
        self._n_direct, n_towers = dim * has_gmf, dim * has_mlp
        self.users = _Entities(schema.n_users, schema.user_features, self._n_direct + n_towers)
        self.items = _Entities(schema.n_items, schema.item_features, self._n_direct + n_towers)
        if has_gmf:
            self.gmf_weight = nn.Parameter(torch.ones(dim))
        self._has_mlp, self._is_product = has_mlp, cross is not None
        if has_mlp:
            self.user_tower = make_tower(config.user_tower, dim)
            self.item_tower = make_tower(config.item_tower, dim)
            self.first_bias = nn.Parameter(torch.zeros(config.hidden[0]))
            if cross is None:
                self.user_first = nn.Linear(dim, config.hidden[0], bias=False)
                self.item_first = nn.Linear(dim, config.hidden[0], bias=False)

    def user_side(
        self, users: UserBatch, rows: torch.Tensor | None = None, context: FeatureBatch | None = None
    ) -> Side:
        """Compute what users contribute; there is no context."""
        is_unknown = (users.rows < 0).unsqueeze(1)
        bias, direct, vectors = self._split(*self.users(users.rows.clamp(min=0), is_unknown, users.features))
        if self._n_direct:
            direct = direct * self.gmf_weight
        if not self._has_mlp:
            return Side(bias, direct, vectors, vectors.unsqueeze(2))
        vectors = self.user_tower(vectors)
        if self._is_product:
            return Side(bias, direct, self.first_bias.expand(len(bias), -1), vectors.unsqueeze(1))
        return Side(bias, direct, self.user_first(vectors) + self.first_bias, bias.new_zeros(len(bias), 0, 0))

    def item_side(self, items: ItemBatch) -> Side:
        """Compute what items contribute."""
        bias, direct, vectors = self._split(*self.items(items.rows, items.is_unknown, items.features))
        if not self._has_mlp:
            return Side(bias, direct, vectors, vectors.unsqueeze(2))
        vectors = self.item_tower(vectors)
        if self._is_product:
            return Side(bias, direct, torch.zeros_like(self.first_bias).expand(len(bias), -1), vectors.unsqueeze(1))
        return Side(bias, direct, self.item_first(vectors), bias.new_zeros(len(bias), 0, 0))

    def _split(self, bias: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return bias, vectors[:, : self._n_direct], vectors[:, self._n_direct :]


class _Entities(nn.Module):
    """Biases, and sums of the vectors of id and features, of users or items."""

    def __init__(self, n: int, features: FeatureSchema, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n, 1))
        self.ids = IdEmbedding(n, dim)
        self.features = FeatureEmbedding(features, dim)

    def forward(
        self, rows: torch.Tensor | None, is_unknown: torch.Tensor, features: FeatureBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shapes ``(n,)`` and ``(n, dim)``."""
        bias = take_rows(self.bias, rows).masked_fill(is_unknown, 0.0).squeeze(1)
        return bias, self.ids(rows, is_unknown) + self.features(features)


class NCFModel(PairModel[NCFModelConfig]):
    """
    NCF: generalised matrix factorisation (GMF), a perceptron over pairs (MLP), and NeuMF, which is both.

    Users and items are their ids and features; users whom the model was not fitted on are known by their features.
    All items are scored exactly, without a pass through the network for each pair.

    Parameters
    ----------
    architecture : {"gmf", "mlp", "neumf"}
        Which of them.
    n_factors : int
        Size of the embeddings; NeuMF has two a side.
    hidden : tuple of int
        Layers of the perceptron over the pair.
    merge : {"concatenation", "product"}
        What the perceptron sees of the pair: both vectors, or their element-wise product.
    user_tower, item_tower : str or dict or TowerConfig
        What turns an embedding into the vector that is merged: "linear" leaves it as it is (shallow towers, whose
        merger is deep), "mlp", "residual".
    pretraining : dict or NeuMFPretraining, optional
        Start a NeuMF from a GMF and an MLP that are fitted first.
    target : str or dict or target config
        "implicit": every interaction is a positive. "label": those whose weight is above a threshold are, and the
        others are negatives; scores are probabilities. "rating": the weight is what the score should be.
    loss : str or dict or loss config, optional
        For target "implicit": "squared", "logistic" or "softmax", which are over the whole catalogue,
        "sampled_softmax" over candidates that a batch of users shares, "bce" (that of the paper) or "bpr" with
        negatives of each pair; by default squared on dense data (MovieLens) and sampled_softmax on sparse data.
    negatives : str or dict or NegativesConfig, optional
        Of a sampled loss; by default 2048 that a batch shares, or 4 for each pair. New ones are drawn all the time.
        The squared loss of models with a perceptron is estimated from shared ones, without bias, and so it is where
        you give them.
    activation : {"relu", "elu", "gelu", "leaky_relu", "silu", "tanh"}
        Of the hidden layers.
    dropout : float
        Share of hidden units dropped in training.
    entity_dropout : float, optional
        Share of users and items that lose their id, or their features, for a training step: it teaches what to make
        of new ones. 0.02 by default.
    ranking_precision : {"float32", "bfloat16", "float16"}
        In which all items are scored.
    **params
        Those of every neural model: ``epochs``, ``batch_size``, which counts users for losses over a catalogue or over
        shared candidates and interactions for the others, ``learning_rate``, ``optimizer``, ``validation``, ``seed``,
        ``device``, ``devices``, ``strategy``, ``precision``, ``get_trainer_func``, ``get_trainer_func_kwargs``,
        ``verbose``; see `NeuralModelConfig`.

    References
    ----------
    He et al., Neural collaborative filtering, WWW 2017.
    Rendle et al., Neural collaborative filtering vs. matrix factorization revisited, RecSys 2020.

    Examples
    --------
    >>> from rectools_neural import NCFModel, load_dataset
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> model = NCFModel(loss="bce").fit(dataset)  # doctest: +SKIP
    >>> model.recommend([1, 2], dataset, k=10, filter_viewed=True)  # doctest: +SKIP
    >>> ratings = NCFModel(architecture="gmf", target="rating").fit(dataset)  # doctest: +SKIP
    """

    config_class = NCFModelConfig

    def _width(self, config: NCFModelConfig) -> int:
        return max(config.hidden[0] if config.architecture != "gmf" else 1, 1)

    def _build_module(self, config: NCFModelConfig, schema: DataSchema) -> NCFModule:
        return NCFModule(schema, config)

    def _train(
        self,
        dataset: Dataset,
        dataset_valid: Dataset | None,
        config: NCFModelConfig,
        earlier: FittedState[NCFModelConfig] | None,
        epochs: int | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._parts: list[Any] = []
        self._stops: dict[str, int] = {}
        try:
            super()._train(dataset, dataset_valid, config, earlier, epochs, checkpoints)
        finally:
            del self._parts, self._stops

    def _train_once(
        self,
        dataset: Dataset,
        held_out: pd.DataFrame | None,
        validation: ValidationConfig | None,
        config: NCFModelConfig,
        earlier: FittedState[NCFModelConfig] | None,
        epochs: int | None,
        stop_after: int | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> tuple[FittedState[NCFModelConfig], Outcome]:
        self._parts = []
        if config.pretraining is not None and earlier is None:
            options = {**dict(self._get_config()), "pretraining": None}
            options["epochs"] = config.pretraining.epochs or options["epochs"]
            for name in ("gmf", "mlp"):
                part = NCFModelConfig(**{**options, "architecture": name})
                # On the same interactions, since their users and items are those of the NeuMF; in a refit as long as
                # was best before.
                once = NCFModel._from_config(part)._train_once
                fitted, outcome = once(
                    dataset, held_out, validation, part, None, None, self._stops.get(name), checkpoints
                )
                self._stops[name] = outcome.best_epoch
                self._parts.append(fitted.module)
        return super()._train_once(dataset, held_out, validation, config, earlier, epochs, stop_after, checkpoints)

    def _read_training_data(self, module: NCFModule, users: Users) -> None:
        super()._read_training_data(module, users)
        if self._parts and self.pretraining is not None:
            gmf, mlp = self._parts
            start_from(module, gmf, mlp, self.pretraining.alpha)


@torch.no_grad()
def start_from(module: NCFModule, gmf: NCFModule, mlp: NCFModule, alpha: float) -> None:
    """Make a NeuMF score ``alpha`` times as its GMF and ``1 - alpha`` times as its MLP."""
    of_gmf, of_mlp = gmf.state_dict(), mlp.state_dict()
    last = f"network.rest.{len(module.network.rest) - 1}."
    for name, tensor in module.state_dict().items():
        if name in ("base", "shift") or name.endswith("s.bias"):
            tensor.copy_(alpha * of_gmf[name] + (1 - alpha) * of_mlp[name])
        elif name == "gmf_weight":
            tensor.copy_(alpha * of_gmf[name])
        elif name not in of_gmf:
            tensor.copy_(of_mlp[name] * (1 - alpha if name.startswith(last) else 1))
        else:  # embeddings: those of both side by side
            # Numbers are embedded by weights of shape (dim, n_numeric).
            tensor.copy_(torch.cat([of_gmf[name], of_mlp[name]], dim=0 if name.endswith("numeric.weight") else 1))
