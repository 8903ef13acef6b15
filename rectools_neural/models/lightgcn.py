"""LightGCN, propagation of embeddings over the graph of interactions, and its contrastive relatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import nn
from typing_extensions import Self

from ..config import Contrastive, Dropout, Loss, Negatives, NegativesConfig, SampledSoftmaxLoss, SquaredLoss
from ..data.batches import HistoryBatch, ItemBatch, TrainingBatch, UserBatch
from ..data.reader import Items, Users
from ..data.sources import PairBatches, UserBatches
from ..nn.bags import sum_of_rows, take_rows
from ..nn.graph import BipartiteGraph
from ..training.loop import Batches
from ..training.losses import info_nce_loss
from .base import DataSchema, NeuralModelConfig
from .pack import LinearParts
from .two_sided import TwoSidedModel, catalogue_loss, check_table, sampled_loss

LOSSES = ("bpr", "sampled_softmax", "squared")
# Steps of the optimiser for the square root of the interactions.
_STEPS = {"bpr": 3.0, "sampled_softmax": 1.5, "squared": 1.8}
# A sampled loss scores all users of a batch for all its candidates.
_MAX_BATCH = {"bpr": 16384, "sampled_softmax": 4096, "squared": 16384}


class LightGCNModelConfig(NeuralModelConfig):
    """Options of `LightGCNModel`; see there."""

    n_factors: PositiveInt = 64
    n_layers: PositiveInt = 2
    layer_weights: tuple[NonNegativeFloat, ...] | None = None
    loss: Loss | None = None
    negatives: Negatives | None = None
    similarity: Literal["dot", "cosine"] | None = None
    temperature: PositiveFloat | None = None
    edge_dropout: Dropout = 0.0
    embedding_l2: NonNegativeFloat | None = None
    contrastive: Contrastive | None = None
    learning_rate: PositiveFloat = 1e-2

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.loss is not None and self.loss.name not in LOSSES:
            raise ValueError(f"loss `{self.loss.name}` is not for LightGCN: use {', '.join(LOSSES)}")
        if self.loss is not None and self.loss.name == "squared" and self.negatives is not None:
            raise ValueError(
                "loss `squared` is over the whole catalogue and takes no `negatives`: leave them out, or use bpr or "
                "sampled_softmax"
            )
        weights = self.layer_weights
        if weights is not None and len(weights) != self.n_layers + 1:
            raise ValueError(
                f"`layer_weights` has {len(weights)} weights, but with `n_layers` {self.n_layers} there are "
                f"{self.n_layers + 1} layers: that of the embeddings themselves comes first"
            )
        if weights is not None and not any(weights):
            raise ValueError("`layer_weights` are all 0: at least one layer must count")
        if self.contrastive is not None and self.contrastive.layer > self.n_layers:
            raise ValueError(
                f"`layer` {self.contrastive.layer} of `contrastive` is beyond the last one: `n_layers` is "
                f"{self.n_layers}"
            )
        return self


class LightGCNModule(nn.Module):
    """
    Embeddings of users and items, and what their propagation gives.

    A trained module needs no graph: it keeps the propagated vectors of the items, and for each item the vectors whose
    sum over a history, scaled by its length, is the propagated vector of the user but for the user's own embedding.

    Parameters
    ----------
    schema : DataSchema
        Sizes of the data.
    config : LightGCNModelConfig
        The options.
    """

    euclidean = False
    has_bias = False

    propagated_items: torch.Tensor
    history_items: torch.Tensor

    def __init__(self, schema: DataSchema, config: LightGCNModelConfig) -> None:
        super().__init__()
        dim, n_layers = config.n_factors, config.n_layers
        # The embeddings themselves have no noise: they would give away what the contrast asks for.
        uniform = (1.0,) * (n_layers + 1) if config.contrastive is None else (0.0, *(1.0,) * n_layers)
        self._weights = config.layer_weights or tuple(weight / sum(uniform) for weight in uniform)
        self._cosine_scale = 1 / (config.temperature or 1.0) if config.similarity == "cosine" else None
        self.users = nn.Parameter(torch.randn(schema.n_users, dim) * 0.1)
        self.items = nn.Parameter(torch.randn(schema.n_items, dim) * 0.1)
        self.register_buffer("propagated_items", torch.zeros(schema.n_items, dim))
        self.register_buffer("history_items", torch.zeros(schema.n_items, dim))
        self.graph: BipartiteGraph | None = None

    def propagate(self, noise: float = 0.0, edges: torch.Tensor | None = None) -> list[torch.Tensor]:
        """
        Spread the embeddings over the graph.

        Parameters
        ----------
        noise : float
            Length of the random vector, with the signs of the node's own, that each layer adds to each node.
        edges : torch.Tensor, optional
            Their weights, from `BipartiteGraph.drop_edges`.

        Returns
        -------
        list of torch.Tensor
            The embeddings and each layer, users before items, shape ``(n_users + n_items, dim)``.
        """
        assert self.graph is not None
        layers = [torch.cat([self.users, self.items])]
        for _ in self._weights[1:]:
            table = self.graph(layers[-1], edges)
            if noise:
                table = table + noise * F.normalize(torch.rand_like(table), dim=1) * table.detach().sign()
            layers.append(table)
        return layers

    def combine(self, layers: list[torch.Tensor]) -> torch.Tensor:
        """Weighted sum of the layers, shape ``(n_users + n_items, dim)``."""
        return _weighted_sum(self._weights, layers)

    def split(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of all users and of all items, from those of the nodes."""
        users, items = table.split([len(self.users), len(self.items)])
        return users, items

    def for_user(self, vectors: torch.Tensor) -> torch.Tensor:
        """Turn propagated vectors of users into those whose dot product with an item's is the score."""
        return vectors if self._cosine_scale is None else F.normalize(vectors, dim=1) * self._cosine_scale

    def for_item(self, vectors: torch.Tensor) -> torch.Tensor:
        """Turn propagated vectors of items into their counterparts."""
        return vectors if self._cosine_scale is None else F.normalize(vectors, dim=1)

    def user_vectors(self, users: UserBatch) -> torch.Tensor:
        """Vectors of users from their histories, known at the fit or not, shape ``(n_users, dim)``."""
        history = users.history
        spread = sum_of_rows(self.history_items, history.items, history.lengths)
        return self.for_user(self._own(users) + _scale(history, spread.dtype) * spread)

    def _own(self, users: UserBatch) -> torch.Tensor:
        own = F.embedding(users.rows.clamp(min=0), self.users) * (users.rows >= 0).unsqueeze(1)
        return self._weights[0] * own

    @property
    def is_linear(self) -> bool:
        """Whether a score is linear in the items of the history."""
        return self._cosine_scale is None

    def linear_parts(self, user: UserBatch, item: ItemBatch) -> LinearParts:
        """Take apart the score of one user and one item, where it is linear."""
        vector, nothing = self.item_vectors(item)[0], np.zeros(0, np.float32)
        parts = _scale(user.history, vector.dtype) * F.embedding(user.history.items, self.history_items) @ vector
        return LinearParts(parts.cpu().numpy(), nothing, nothing, float(self._own(user)[0] @ vector))

    def item_vectors(self, items: ItemBatch) -> torch.Tensor:
        """Vectors of items, shape ``(n_items, dim)``."""
        return self.for_item(take_rows(self.propagated_items, items.rows))

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation, for which the vectors of the items are computed once."""
        if not mode and self.graph is not None:
            self._refresh(self.graph)
        return super().train(mode)

    @torch.no_grad()
    def _refresh(self, graph: BipartiteGraph) -> None:
        layers = self.propagate()
        sources = _weighted_sum(self._weights[1:], layers[:-1])
        scale = self.split(graph.scale)[1]
        # Items without interactions, which a further fit on other data may leave, keep what they had.
        has_edges = scale > 0
        self.propagated_items = torch.where(has_edges, self.split(self.combine(layers))[1], self.propagated_items)
        self.history_items = torch.where(has_edges, self.split(sources * graph.scale)[1], self.history_items)


class LightGCNModel(TwoSidedModel[LightGCNModelConfig]):
    """
    LightGCN: embeddings spread over the graph of interactions (He et al. 2020), SimGCL and XSimGCL.

    The vector of a user or item is the mean of the embedding and of what some steps of propagation make of it. A
    trained model serves users by their histories: those it was fitted on and those that came later, whatever was added
    to the histories since. Users without a history get what is popular. Features are not used.

    Parameters
    ----------
    n_factors : int
        Size of the vectors.
    n_layers : int
        Steps of propagation.
    layer_weights : tuple of float, optional
        Weights of the embeddings and of each step, ``n_layers + 1`` numbers; by default all are equal, and with
        `contrastive` the embeddings themselves don't count.
    loss : str or dict or loss config, optional
        "bpr", "sampled_softmax" or "squared", which is over the whole catalogue; by default squared on dense data
        (MovieLens) and sampled_softmax on sparse data.
    negatives : str or dict or NegativesConfig, optional
        Where a sampled loss takes its negatives: "uniform", "popularity", "in_batch", "hard"; by default one uniform
        negative a pair for "bpr", and those of the batch for "sampled_softmax".
    similarity : {"dot", "cosine"}, optional
        How the vectors meet; by default cosine for "sampled_softmax" and dot for the others.
    temperature : float, optional
        What a cosine is divided by; by default 0.2 on dense and 0.1 on sparse data.
    edge_dropout : float
        Share of the edges that a training step leaves out.
    embedding_l2 : float, optional
        Penalty on the embeddings of the users and items of a batch, ``||e||^2 / 2`` for each pair; by default 0.05 for
        "squared" and 1e-4, as in the paper, for the others.
    contrastive : str or dict or ContrastiveConfig, optional
        "simgcl" or "xsimgcl" for a further loss between noisy views of the graph.
    **params
        Those of every neural model: ``epochs``, ``batch_size``, which counts interactions here, ``learning_rate``,
        ``optimizer``, ``validation``, ``seed``, ``device``, ``devices``, ``strategy``, ``precision``,
        ``get_trainer_func``, ``get_trainer_func_kwargs``, ``verbose``; see `NeuralModelConfig`.

    Notes
    -----
    The graph is that of the dataset given to `fit` or `fit_partial`: give `fit_partial` the old interactions as well.

    References
    ----------
    He et al., LightGCN: Simplifying and powering graph convolution network for recommendation, SIGIR 2020.
    Yu et al., Are graph augmentations necessary? Simple graph contrastive learning for recommendation, SIGIR 2022.
    Yu et al., XSimGCL: Towards extremely simple graph contrastive learning for recommendation, TKDE 2023.

    Examples
    --------
    >>> from rectools_neural import LightGCNModel, load_dataset
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> model = LightGCNModel(contrastive="xsimgcl").fit(dataset)  # doctest: +SKIP
    >>> model.recommend([1, 2], dataset, k=10, filter_viewed=True)  # doctest: +SKIP
    """

    config_class = LightGCNModelConfig

    def _adapt(self, config: LightGCNModelConfig, schema: DataSchema) -> LightGCNModelConfig:
        loss: Any = config.loss
        if loss is None:
            suits_squared = config.negatives is None and config.similarity in (None, "dot")
            loss = SquaredLoss() if schema.is_dense and suits_squared else SampledSoftmaxLoss()
        n_pairs = schema.n_interactions
        batch_size = config.batch_size or min(max(2 ** round(math.log2(n_pairs / 8)), 2048), _MAX_BATCH[loss.name])
        steps = _STEPS[loss.name] * n_pairs**0.5
        penalty = 0.05 if loss.name == "squared" else 1e-4
        chosen = {
            "loss": loss,
            "similarity": config.similarity or ("cosine" if loss.name == "sampled_softmax" else "dot"),
            "temperature": config.temperature or (0.2 if schema.is_dense else 0.1),
            "embedding_l2": penalty if config.embedding_l2 is None else config.embedding_l2,
            "batch_size": batch_size,
            "epochs": config.epochs or max(round(steps / math.ceil(n_pairs / batch_size)), 3),
        }
        adapted = LightGCNModelConfig(**{**dict(config), **chosen})
        negatives = _negatives(adapted)
        if loss.name != "squared" and (negatives.shared or negatives.name == "in_batch"):
            n_candidates = batch_size if negatives.name == "in_batch" else negatives.n
            check_table(loss.name, min(batch_size, schema.n_users), min(n_candidates, schema.n_items))
        return adapted

    def _build_module(self, config: LightGCNModelConfig, schema: DataSchema) -> LightGCNModule:
        return LightGCNModule(schema, config)

    def _read_training_data(self, module: LightGCNModule, users: Users) -> None:
        lengths = torch.zeros(len(module.users), dtype=torch.int64)
        lengths[users.rows] = torch.from_numpy(users.histories.lengths)
        module.graph = BipartiteGraph(torch.from_numpy(users.histories.items), lengths, len(module.items))

    def _forget_training_data(self, module: LightGCNModule) -> None:
        module.graph = None

    def _make_batches(
        self, config: LightGCNModelConfig, users: Users, items: Items, generator: torch.Generator
    ) -> Batches:
        assert config.loss is not None
        assert config.batch_size is not None
        if config.loss.name == "squared":  # needs all items of a user at once
            n_users = math.ceil(config.batch_size * len(users) / len(users.histories.items))
            return UserBatches(users, items, n_users, generator)
        return PairBatches(users, items, config.batch_size, generator).with_negatives(_negatives(config))

    def _batch_loss(self, config: LightGCNModelConfig, module: LightGCNModule, batch: TrainingBatch) -> torch.Tensor:
        assert config.loss is not None
        assert config.embedding_l2 is not None
        assert module.graph is not None
        edges = module.graph.drop_edges(config.edge_dropout)
        contrastive = config.contrastive
        is_single_pass = contrastive is not None and contrastive.name == "xsimgcl"
        layers = module.propagate(contrastive.noise if contrastive is not None and is_single_pass else 0.0, edges)
        table = module.combine(layers)
        users, items = module.split(table)
        users, items = (
            module.for_user(take_rows(users, batch.users.rows)),
            module.for_item(take_rows(items, batch.items.rows)),
        )
        if batch.negatives is None:
            # A mean over the pairs like the other losses, to be weighed against the penalties.
            loss = catalogue_loss(config.loss, users, items, batch) * (len(batch.users) / len(batch.rows))
        else:
            loss = sampled_loss(config.loss, _negatives(config), users, items, batch)
        loss = loss + config.embedding_l2 * _size_of_embeddings(module, batch)
        if contrastive is None:
            return loss
        if is_single_pass:
            one, other = table, layers[contrastive.layer]
        else:
            one, other = (module.combine(module.propagate(contrastive.noise, edges)) for _ in range(2))
        targets = batch.targets.unique()
        targets = targets if batch.items.rows is None else batch.items.rows[targets]
        for nodes in (batch.users.rows, len(module.users) + targets):
            views = take_rows(one, nodes), take_rows(other, nodes)
            loss = loss + contrastive.weight * info_nce_loss(*views, contrastive.temperature)
        return loss


def _negatives(config: LightGCNModelConfig) -> NegativesConfig:
    if config.negatives is not None:
        return config.negatives
    is_pairwise = config.loss is not None and config.loss.name == "bpr"
    return NegativesConfig() if is_pairwise else NegativesConfig(name="in_batch")


def _size_of_embeddings(module: LightGCNModule, batch: TrainingBatch) -> torch.Tensor:
    """Half of the squared norms of the user, the item and the own negatives of a pair, mean over the pairs."""
    users = take_rows(module.users, batch.users.rows).square().sum(dim=1)
    items = take_rows(module.items, batch.items.rows).square().sum(dim=1)
    total = users[batch.rows].sum() + items[batch.targets].sum()
    if batch.negatives is not None and batch.negatives.is_positive is None:
        total = total + items[batch.negatives.items].sum()
    return total / (2 * len(batch.rows))


def _scale(history: HistoryBatch, dtype: torch.dtype) -> torch.Tensor:
    return history.lengths.clamp(min=1).to(dtype).rsqrt().unsqueeze(1)


def _weighted_sum(weights: Sequence[float], tables: Sequence[torch.Tensor]) -> torch.Tensor:
    total = weights[0] * tables[0]
    for weight, table in zip(weights[1:], tables[1:], strict=True):
        total = total.add(table, alpha=weight)
    return total
