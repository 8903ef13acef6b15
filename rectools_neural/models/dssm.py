"""DSSM, the two-tower model."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, TypeVar

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
    SampledSoftmaxLoss,
    SquaredLoss,
    Tower,
    TowerConfig,
)
from ..data.batches import ItemBatch, TrainingBatch, UserBatch
from ..data.reader import Items, Users
from ..data.sources import UserBatches
from ..nn.bags import take_rows
from ..nn.features import FeatureEmbedding
from ..nn.history import MeanHistory, make_history_encoder
from ..nn.towers import make_tower
from ..training.loop import Batches
from .base import DataSchema, NeuralModelConfig
from .pack import LinearParts
from .two_sided import TwoSidedModel, catalogue_loss, sampled_loss

Value = TypeVar("Value")

WHOLE_CATALOGUE = ("squared", "softmax")
POSITIVE_SCORES = ("squared", "softmax", "bce")  # losses that need scores above and below zero
# Steps of the optimiser for the square root of the interactions: with fewer of them the model underfits, with more it
# overfits or, on sparse data, takes longer than it is worth.
_STEPS = {"squared": 1.4, "others": 1.0}


class DSSMModelConfig(NeuralModelConfig):
    """Options of `DSSMModel`; see there."""

    n_factors: PositiveInt = 128
    loss: Loss | None = None
    negatives: Negatives | None = None
    positives_per_user: PositiveInt | None = None
    similarity: Literal["dot", "cosine", "euclidean"] | None = None
    temperature: PositiveFloat | None = None
    merge: Literal["similarity", "product"] = "similarity"
    user_tower: Tower = Field(default_factory=TowerConfig)
    item_tower: Tower = Field(default_factory=TowerConfig)
    history_encoder: HistoryEncoder = Field(default_factory=HistoryEncoderConfig)
    history_dropout: Dropout | None = None
    use_user_ids: bool = False
    use_item_ids: bool = True
    share_item_embedding: bool | None = None
    use_item_bias: bool = True
    entity_dropout: Dropout | None = None
    learning_rate: PositiveFloat = 2e-3

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        loss = self.loss.name if self.loss else None
        if loss in WHOLE_CATALOGUE and self.negatives is not None:
            raise ValueError(
                f"loss `{loss}` is over the whole catalogue and takes no `negatives`: leave them out, or use a "
                "sampled loss (sampled_softmax, bpr, bce, triplet)"
            )
        if self.similarity == "euclidean" and loss in POSITIVE_SCORES:
            raise ValueError(
                f"loss `{loss}` does not fit similarity `euclidean`, whose scores are never positive: use triplet, "
                "bpr or sampled_softmax, or another similarity"
            )
        if self.merge == "product" and self.similarity not in (None, "dot"):
            raise ValueError(
                f"merge `product` replaces the similarity `{self.similarity}` by a linear layer: leave `similarity` "
                "out or at `dot`"
            )
        heads = self.history_encoder.n_heads
        if self.history_encoder.name in ("attention", "transformer") and self.n_factors % heads:
            raise ValueError(f"`n_factors` ({self.n_factors}) must be a multiple of the encoder's `n_heads` ({heads})")
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
        self._similarity, self._temperature = config.similarity, config.temperature or 1.0
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
        if self._similarity == "cosine":
            vectors = F.normalize(vectors, dim=1) / self._temperature
        return F.pad(vectors, (0, 1), value=1.0) if self.has_bias else vectors

    def item_vectors(self, items: ItemBatch) -> torch.Tensor:
        """Vectors of items, shape ``(n_items, dim)``, with the bias last."""
        vectors = self.item_features(items.features)
        if self.item_ids is not None and self.unknown_item is not None:
            vectors = vectors + torch.lerp(
                take_rows(self.item_ids, items.rows), self.unknown_item, items.is_unknown.to(self.item_ids.dtype)
            )
        vectors = self.item_tower(vectors)
        if self._similarity == "cosine":
            vectors = F.normalize(vectors, dim=1)
        if self.item_bias is None:
            return vectors
        return torch.cat([vectors, take_rows(self.item_bias, items.rows).masked_fill(items.is_unknown, 0.0)], dim=1)

    @property
    def is_linear(self) -> bool:
        """Whether a score is linear in the vectors of the user's parts, and in those of the item's."""
        towers = isinstance(self.user_tower, nn.Identity) and isinstance(self.item_tower, nn.Identity)
        return towers and self._similarity == "dot" and isinstance(self.history_encoder, MeanHistory)

    def linear_parts(self, user: UserBatch, item: ItemBatch) -> LinearParts:
        """
        Take apart the score of one user and one item, where it is linear.

        The product of a part of the user with a feature of the item belongs to both: each gets half, the Shapley value.
        Ids are no parts of their own, and neither is what stands for an empty history: their products belong to the
        other side.
        """
        table = self.item_ids if self.history_items is None else self.history_items
        assert isinstance(self.history_encoder, MeanHistory)
        assert table is not None
        history = self.history_encoder.parts(user.history, table)
        of_user = torch.cat([history, self.user_features.parts(user.features)])
        if self.merge_weight is not None:
            of_user = of_user * self.merge_weight
        of_item = self.item_features.parts(item.features)
        subject, candidate = self.user_vectors(user)[0], self.item_vectors(item)[0]
        dim = of_user.shape[1]
        user_rest, item_rest = subject[:dim] - of_user.sum(0), candidate[:dim] - of_item.sum(0)
        shared = of_user @ of_item.T / 2
        from_user = (of_user @ item_rest + shared.sum(1)).cpu().numpy()
        from_item = (of_item @ user_rest + shared.sum(0)).cpu().numpy()
        rest = user_rest @ item_rest + candidate[dim:].sum()
        n = len(history)
        return LinearParts(from_user[:n], from_user[n:], from_item, float(rest))


def _embedding(n: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(n, dim) * (0.1 / dim**0.5))


class DSSMModel(TwoSidedModel[DSSMModelConfig]):
    """
    DSSM: a user tower and an item tower that meet in one score (Huang et al. 2013).

    The user tower sees the items of the history, the features and, on request, the id of the user; the item tower
    sees the id and the features of the item. In training a part of each history is hidden, so that the model learns
    to predict what it does not see, and a few users and items lose ids, history and features, so that warm and cold
    ones get sensible vectors.

    Left alone, the model adapts to the data: on dense data (MovieLens) it minimises the squared error over the whole
    catalogue with dot scores, on sparse data (shops, check-ins) a softmax over thousands of shared negatives with
    cosine scores.

    Parameters
    ----------
    n_factors : int
        Size of the vectors.
    loss : str or dict or loss config, optional
        "squared", "softmax", "sampled_softmax", "bpr", "bce" or "triplet"; by default one that suits the data.
    negatives : str or dict or NegativesConfig, optional
        Where a sampled loss takes its negatives: "uniform", "popularity", "in_batch", "hard".
    positives_per_user : int, optional
        Items of each user to predict in an epoch, drawn anew each time; all by default.
    similarity : {"dot", "cosine", "euclidean"}, optional
        How the vectors meet; by default cosine for the softmax losses and dot for the others.
    temperature : float, optional
        What a cosine is divided by; by default 0.2 on dense and 0.09 on sparse data.
    merge : {"similarity", "product"}
        Score by the similarity, or by a linear layer over the element-wise product.
    user_tower, item_tower : str or dict or TowerConfig
        "linear", "mlp" or "residual".
    history_encoder : str or dict or HistoryEncoderConfig
        "mean", "attention", "gru" or "transformer".
    history_dropout : float, optional
        Share of each history that is hidden in training; by default 0.4 on dense and 0.1 on sparse data, whose
        histories are short.
    use_user_ids, use_item_ids : bool
        Whether a user or an item has an embedding of its own.
    share_item_embedding : bool, optional
        Whether the history uses the item tower's id embedding; by default it does, except with the squared loss,
        which is better off with two.
    use_item_bias : bool
        Whether an item has a bias, its last coordinate in `get_vectors`; not with Euclidean similarity.
    entity_dropout : float, optional
        Share of users and items that lose ids, history or features in training; by default 0.1 on dense and 0.02 on
        sparse data.
    **params
        Those of every neural model: ``epochs``, ``batch_size``, ``learning_rate``, ``optimizer``, ``validation``,
        ``seed``, ``device``, ``devices``, ``strategy``, ``precision``, ``get_trainer_func``,
        ``get_trainer_func_kwargs``, ``verbose``; see `NeuralModelConfig`.

    References
    ----------
    Huang et al., Learning deep structured semantic models for web search using clickthrough data, CIKM 2013.
    Hu, Koren and Volinsky, Collaborative filtering for implicit feedback datasets, ICDM 2008 (squared loss).
    Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations, RecSys 2019 (softmax).

    Examples
    --------
    >>> from rectools_neural import DSSMModel, load_dataset
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> model = DSSMModel(epochs=30).fit(dataset)  # doctest: +SKIP
    >>> model.recommend([1, 2], dataset, k=10, filter_viewed=True)  # doctest: +SKIP
    """

    config_class = DSSMModelConfig
    recommends_for_warm: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True

    def _adapt(self, config: DSSMModelConfig, schema: DataSchema) -> DSSMModelConfig:
        if not config.use_item_ids and schema.item_features.is_empty:
            raise ValueError("`use_item_ids` is off, but the dataset has no item features to tell items apart by")
        is_dense = schema.is_dense
        loss: Any = config.loss
        if loss is None:
            suits_squared = config.negatives is None and config.similarity in (None, "dot")
            loss = SquaredLoss() if is_dense and suits_squared else SampledSoftmaxLoss()
        similarity = config.similarity
        if similarity is None:
            is_softmax = loss.name in ("softmax", "sampled_softmax")
            similarity = "cosine" if is_softmax and config.merge == "similarity" else "dot"
        batch_size = config.batch_size or min(max(2 ** round(math.log2(4 * schema.n_users**0.5)), 64), 512)
        steps = _STEPS["squared" if loss.name == "squared" else "others"] * schema.n_interactions**0.5
        epochs = config.epochs or max(round(steps / math.ceil(schema.n_users / batch_size)), 3)
        chosen = {
            "loss": loss,
            "similarity": similarity,
            "share_item_embedding": _default(config.share_item_embedding, loss.name != "squared"),
            "temperature": _default(config.temperature, 0.2 if is_dense else 0.09),
            "history_dropout": _default(config.history_dropout, 0.4 if is_dense else 0.1),
            "entity_dropout": _default(config.entity_dropout, 0.1 if is_dense else 0.02),
            "batch_size": batch_size,
            "epochs": epochs,
        }
        return DSSMModelConfig(**{**dict(config), **chosen})

    def _build_module(self, config: DSSMModelConfig, schema: DataSchema) -> TwoTowerModule:
        return TwoTowerModule(schema, config)

    def _make_batches(self, config: DSSMModelConfig, users: Users, items: Items, generator: torch.Generator) -> Batches:
        assert config.loss is not None
        assert config.batch_size is not None
        batches = UserBatches(
            users,
            items,
            config.batch_size,
            generator,
            hidden=config.history_dropout or 0.0,
            predict_visible=config.loss.name not in ("bpr", "bce", "triplet"),
            positives_per_user=config.positives_per_user,
            entity_dropout=config.entity_dropout or 0.0,
        )
        if config.loss.name in WHOLE_CATALOGUE:
            return batches
        return batches.with_negatives(_negatives(config))

    def _batch_loss(self, config: DSSMModelConfig, module: TwoTowerModule, batch: TrainingBatch) -> torch.Tensor:
        loss = config.loss
        assert loss is not None
        users, items = module.user_vectors(batch.users), module.item_vectors(batch.items)
        if loss.name in WHOLE_CATALOGUE:
            return catalogue_loss(loss, users, items, batch)
        return sampled_loss(loss, _negatives(config), users, items, batch, module.euclidean)


def _default(value: Value | None, default: Value) -> Value:
    return default if value is None else value


def _negatives(config: DSSMModelConfig) -> NegativesConfig:
    """Negatives of a sampled loss: a softmax needs thousands, shared by the batch; a pairwise loss needs few."""
    if config.negatives is not None:
        return config.negatives
    if config.loss is not None and config.loss.name == "sampled_softmax":
        return NegativesConfig(n=8192, shared=True)
    return NegativesConfig(n=4)
