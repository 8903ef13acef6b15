"""DSSM, the two-tower model."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn
from typing_extensions import Self

from ..config import (
    Dropout,
    HistoryEncoder,
    HistoryEncoderConfig,
    Loss,
    Negatives,
    NegativesConfig,
    SquaredLoss,
    Tower,
    TowerConfig,
)
from ..data.batches import ItemBatch, TrainingBatch, UserBatch
from ..data.reader import Items, Users
from ..data.sampling import NegativeSampler
from ..data.sources import UserBatches
from ..nn.features import FeatureEmbedding
from ..nn.history import make_history_encoder
from ..nn.towers import make_tower
from ..training import losses
from ..training.loop import Batches
from .base import DataSchema, NeuralModelConfig
from .two_sided import TwoSidedModel

WHOLE_CATALOGUE = ("squared", "softmax")


class DSSMModelConfig(NeuralModelConfig):
    """
    Options of `DSSMModel`; see there.
    """

    n_factors: PositiveInt = 64
    loss: Loss = Field(default_factory=SquaredLoss)
    negatives: Negatives | None = None
    positives_per_user: PositiveInt | None = None
    similarity: Literal["dot", "cosine", "euclidean"] = "dot"
    temperature: PositiveFloat = 0.1
    merge: Literal["similarity", "product"] = "similarity"
    user_tower: Tower = Field(default_factory=TowerConfig)
    item_tower: Tower = Field(default_factory=TowerConfig)
    history_encoder: HistoryEncoder = Field(default_factory=HistoryEncoderConfig)
    history_dropout: Dropout = 0.5
    use_user_ids: bool = False
    use_item_ids: bool = True
    share_item_embedding: bool = True
    use_item_bias: bool = True
    entity_dropout: Dropout = 0.05

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.loss.name in WHOLE_CATALOGUE and self.negatives is not None:
            raise ValueError(
                f"loss `{self.loss.name}` is over the whole catalogue and takes no `negatives`: leave them out, or use "
                "a sampled loss (sampled_softmax, bpr, bce, triplet)"
            )
        if self.similarity == "euclidean" and self.loss.name in ("squared", "softmax", "bce"):
            raise ValueError(
                f"loss `{self.loss.name}` does not fit similarity `euclidean`, whose scores are never positive: use "
                "triplet, bpr or sampled_softmax, or another similarity"
            )
        if self.merge == "product" and self.similarity != "dot":
            raise ValueError(
                f"merge `product` replaces the similarity `{self.similarity}` by a linear layer: leave `similarity` "
                "at `dot`"
            )
        return self


class TwoTowerModule(nn.Module):
    """
    Both towers.

    Parameters
    ----------
    schema : DataSchema
        Sizes and features of the data.
    config : DSSMModelConfig
        The options.
    """

    def __init__(self, schema: DataSchema, config: DSSMModelConfig) -> None:
        super().__init__()
        dim = config.n_factors
        self._config = config
        self.euclidean = config.similarity == "euclidean"
        self.has_bias = config.use_item_bias and not self.euclidean
        self.item_ids = _embedding(schema.n_items, dim) if config.use_item_ids else None
        self.unknown_item = _embedding(1, dim) if config.use_item_ids else None
        own_history = not (config.use_item_ids and config.share_item_embedding)
        self.history_items = _embedding(schema.n_items, dim) if own_history else None
        self.no_history = nn.Parameter(torch.zeros(dim))
        self.user_ids = _embedding(schema.n_users, dim) if config.use_user_ids else None
        self.user_features = FeatureEmbedding(schema.user_features, dim)
        self.item_features = FeatureEmbedding(schema.item_features, dim)
        self.history_encoder = make_history_encoder(config.history_encoder, dim)
        self.user_tower = make_tower(config.user_tower, dim)
        self.item_tower = make_tower(config.item_tower, dim)
        self.merge_weight = nn.Parameter(torch.ones(dim)) if config.merge == "product" else None
        self.item_bias = nn.Parameter(torch.zeros(schema.n_items, 1)) if self.has_bias else None

    def user_vectors(self, users: UserBatch) -> torch.Tensor:
        """Vectors of users, shape ``(n_users, dim)``, with a last 1 where items have a bias."""
        table = self.item_ids if self.history_items is None else self.history_items
        empty = (users.history.lengths == 0).unsqueeze(1)
        vectors = self.history_encoder(users.history, table) + empty * self.no_history
        vectors = vectors + self.user_features(users.features)
        if self.user_ids is not None:
            known = (users.rows >= 0).unsqueeze(1)
            vectors = vectors + known * self.user_ids[users.rows.clamp(min=0)]
        vectors = self.user_tower(vectors)
        if self.merge_weight is not None:
            vectors = vectors * self.merge_weight
        if self._config.similarity == "cosine":
            vectors = F.normalize(vectors, dim=1) / self._config.temperature
        return F.pad(vectors, (0, 1), value=1.0) if self.has_bias else vectors

    def item_vectors(self, items: ItemBatch) -> torch.Tensor:
        """Vectors of items, shape ``(n_items, dim)``, with the bias last."""
        vectors = self.item_features(items.features)
        if self.item_ids is not None:
            vectors = vectors + torch.where(items.is_unknown, self.unknown_item, _take(self.item_ids, items.rows))
        vectors = self.item_tower(vectors)
        if self._config.similarity == "cosine":
            vectors = F.normalize(vectors, dim=1)
        if self.item_bias is None:
            return vectors
        return torch.cat([vectors, _take(self.item_bias, items.rows).masked_fill(items.is_unknown, 0.0)], dim=1)

    def pair_scores(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores of pairs of vectors, over the last dimension."""
        return -(users - items).norm(dim=-1) if self.euclidean else (users * items).sum(dim=-1)

    def all_scores(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Scores of all users for all items, shape ``(n_users, n_items)``."""
        return -torch.cdist(users, items) if self.euclidean else users @ items.T


def _take(table: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return table if rows is None else F.embedding(rows, table)


def _embedding(n: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(n, dim) * (0.1 / dim**0.5))


def _default_negatives(loss: str) -> NegativesConfig:
    # A softmax needs many negatives, and can have them for the price of a product; a pairwise loss needs few.
    if loss == "sampled_softmax":
        return NegativesConfig(n=1000, shared=True)
    return NegativesConfig(n=16 if loss == "triplet" else 4)


class DSSMModel(TwoSidedModel[DSSMModelConfig]):
    """
    DSSM: a user tower and an item tower that meet in one score (Huang et al. 2013).
    """

    config_class: ClassVar[type[DSSMModelConfig]] = DSSMModelConfig

    def _build_module(self, schema: DataSchema) -> TwoTowerModule:
        return TwoTowerModule(schema, self._get_config())

    def _make_batches(self, users: Users, items: Items, generator: torch.Generator) -> Batches:
        batches = UserBatches(
            users,
            items,
            self.batch_size,
            self.history_dropout,
            generator,
            positives_per_user=self.positives_per_user,
            entity_dropout=self.entity_dropout,
        )
        if self.loss.name in WHOLE_CATALOGUE:
            return batches
        negatives = self._negatives()
        power = {"popularity": negatives.power, "in_batch": 1.0}.get(negatives.name, 0.0)
        return replace(
            batches,
            sampler=NegativeSampler(users.histories, power),
            n_negatives=negatives.n * (negatives.pool if negatives.name == "hard" else 1),
            shared=negatives.shared,
            in_batch=negatives.name == "in_batch",
        )

    def _negatives(self) -> NegativesConfig:
        return self.negatives or _default_negatives(self.loss.name)

    def _batch_loss(self, module: TwoTowerModule, batch: TrainingBatch) -> torch.Tensor:
        users, items = module.user_vectors(batch.users), module.item_vectors(batch.items)
        if self.loss.name == "squared":
            return losses.squared_loss(users, items, batch.rows, batch.targets, self.loss.unobserved_weight)
        if self.loss.name == "softmax":
            return losses.softmax_loss(users @ items.T, batch.rows, batch.targets)
        positive = module.pair_scores(users[batch.rows], items[batch.targets])
        negative, rows = self._negative_scores(module, users, items, batch)
        if self.loss.name == "sampled_softmax":
            return losses.sampled_softmax_loss(positive, negative, rows, batch.target_log_q, batch.negative_log_q)
        if self.loss.name == "bpr":
            return losses.bpr_loss(positive, negative[rows])
        if self.loss.name == "bce":
            return losses.bce_loss(positive, negative[rows])
        return losses.triplet_loss(positive, negative[rows], self.loss.margin, self.loss.mining)

    def _negative_scores(
        self, module: TwoTowerModule, users: torch.Tensor, items: torch.Tensor, batch: TrainingBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of the negatives, and for each pair the row of them that is its own."""
        assert batch.negatives is not None
        if batch.is_positive is not None:  # candidates shared by the users of the batch
            scores = module.all_scores(users, items[batch.negatives])
            return scores.masked_fill(batch.is_positive, -torch.inf), batch.rows
        scores = module.pair_scores(users[batch.rows].unsqueeze(1), items[batch.negatives])
        negatives = self._negatives()
        if negatives.name == "hard":
            scores = scores.topk(negatives.n, dim=1).values
        return scores, torch.arange(len(scores), device=scores.device)
