"""DLRM: dot products of all the fields of a pair, and a perceptron on top."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import nn
from typing_extensions import Self

from ..config import HistoryEncoder
from ..data.batches import FeatureBatch, FeatureSchema, ItemBatch, UserBatch
from ..data.reader import Reading
from ..nn.bags import take_rows
from ..nn.features import FeatureEmbedding, FieldEmbedding, IdEmbedding
from ..nn.history import make_history_encoder
from ..nn.pairs import DotCross, PairNetwork, Side
from .base import DataSchema
from .pairs import PairModel, PairModelConfig, PairModule


class DLRMModelConfig(PairModelConfig):
    """Options of `DLRMModel`; see there."""

    n_factors: PositiveInt = 64
    bottom_hidden: tuple[PositiveInt, ...] = (32,)
    top_hidden: tuple[PositiveInt, ...] = (32, 16)
    interaction: Literal["dot", "concatenation"] = "dot"
    self_interaction: bool = False
    shortcut: bool = True
    use_user_ids: bool = True
    use_item_ids: bool = True
    history_encoder: HistoryEncoder | None = None
    context_numeric: tuple[str, ...] = ()
    context_categorical: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if self.self_interaction and self.interaction == "concatenation":
            raise ValueError("`self_interaction` is about dot products: leave it out, or set `interaction` to `dot`")
        if self.history_encoder is not None and (self.target.name != "implicit" or self.context):
            raise ValueError(
                "`history_encoder` is for target `implicit` without context: the history of a user would hold the very "
                "interactions that are to be predicted. Leave it out"
            )
        encoder = self.history_encoder
        if encoder is not None and encoder.name in ("attention", "transformer") and self.n_factors % encoder.n_heads:
            raise ValueError(
                f"`n_factors` ({self.n_factors}) must be a multiple of the encoder's `n_heads` ({encoder.n_heads})"
            )
        if not (self.shortcut or self.top_hidden):
            raise ValueError(
                "Without `shortcut` the top perceptron is all there is: give `top_hidden` at least one layer"
            )
        both = set(self.context_numeric) & set(self.context_categorical)
        if both:
            raise ValueError(f"{sorted(both)} are in `context_numeric` and in `context_categorical`: choose one")
        return self

    @property
    def context(self) -> tuple[str, ...]:
        """All columns of context."""
        return (*self.context_numeric, *self.context_categorical)

    @property
    def reading(self) -> Reading:
        """What the model reads of a dataset."""
        is_labelled = self.target.name != "implicit"
        columns = self.context_numeric, self.context_categorical
        return Reading(True, is_labelled, is_labelled or bool(self.context), *columns)


class DLRMModule(PairModule):
    """
    Vectors of all fields, their dot products, and the perceptron on top.

    Each side has a bottom perceptron for its numbers. What the dot products within a side and the bottom perceptrons
    add to the first layer is known before the sides meet.

    Parameters
    ----------
    schema : DataSchema
        Sizes and features of the data.
    config : DLRMModelConfig
        The options.
    """

    def __init__(self, schema: DataSchema, config: DLRMModelConfig) -> None:
        dim = config.n_factors
        n_history = int(config.history_encoder is not None)
        context = _Fields(None, schema.context, config)
        users = _Fields(schema.n_users if config.use_user_ids else None, schema.user_features, config)
        items = _Fields(schema.n_items if config.use_item_ids else None, schema.item_features, config)
        n_vectors = users.n_vectors + n_history + context.n_vectors, items.n_vectors
        if not any(n_vectors):
            raise ValueError(
                "There is nothing to go by: `use_user_ids` and `use_item_ids` are off, and there are neither features "
                "nor context"
            )
        is_dot = config.interaction == "dot"
        width = config.top_hidden[0] if config.top_hidden else 0
        n_products = n_vectors[0] * n_vectors[1] if is_dot else 0
        cross = DotCross(*n_vectors, width, n_products**-0.5) if n_products and width else None
        super().__init__(PairNetwork(config.top_hidden, cross, config.activation, config.dropout))
        self.users, self.items, self.context = users, items, context
        self.history: nn.Module | None = None
        if config.history_encoder is not None:
            self.history = make_history_encoder(config.history_encoder, dim)
            self.history_items = nn.Parameter(torch.randn(schema.n_items, dim) * (0.1 / dim**0.5))
        n_numeric = users.has_numbers + context.has_numbers, int(items.has_numbers)
        self._diagonal = 0 if config.self_interaction else 1
        self.first, self.linear = nn.ModuleList(), nn.ModuleList()
        for number in range(2):
            n = n_vectors[number]
            n_own = n * (n + 1) // 2 if config.self_interaction else n * (n - 1) // 2
            n_in = n_numeric[number] * dim + n_own if is_dot else n * dim
            self.first.append(_linear(n_in, width))
            self.linear.append(_linear(n_in, 1))
        self.first_bias = nn.Parameter(torch.zeros(width))
        self.direct = nn.Parameter(torch.ones(n_vectors)) if n_products else None
        self._is_dot, self._has_shortcut = is_dot, config.shortcut
        if config.shortcut and config.top_hidden:
            # It starts as the shortcut alone, and the perceptron learns what that misses.
            for parameter in self.network.rest[-1].parameters():
                nn.init.zeros_(parameter)

    def user_side(
        self, users: UserBatch, rows: torch.Tensor | None = None, context: FeatureBatch | None = None
    ) -> Side:
        """Compute what users contribute, in their situations where there is a context."""
        vectors, numbers, bias = self.users(users.rows.clamp(min=0), (users.rows < 0).unsqueeze(1), users.features)
        if self.history is not None:
            vectors = torch.cat([vectors, self.history(users.history, self.history_items).unsqueeze(1)], dim=1)
        if context is not None:
            own, own_numbers, own_bias = self.context(None, None, context)
            if rows is not None:
                vectors, numbers, bias = vectors[rows], numbers[rows], bias[rows]
            vectors, numbers = torch.cat([vectors, own], dim=1), torch.cat([numbers, own_numbers], dim=1)
            bias = bias + own_bias
        return self._side(0, vectors, numbers, bias, self.first_bias)

    def item_side(self, items: ItemBatch) -> Side:
        """Compute what items contribute."""
        vectors, numbers, bias = self.items(items.rows, items.is_unknown, items.features)
        return self._side(1, vectors, numbers, bias, None)

    def _side(
        self, number: int, vectors: torch.Tensor, numbers: torch.Tensor, bias: torch.Tensor, first: torch.Tensor | None
    ) -> Side:
        inputs = vectors.flatten(1)
        if self._is_dot:
            n = vectors.shape[1]
            one, other = torch.triu_indices(n, n, self._diagonal, device=vectors.device)
            products = torch.bmm(vectors, vectors.transpose(1, 2))[:, one, other]
            inputs = torch.cat([numbers.flatten(1), products], dim=1)
        hidden, direct = self.first[number](inputs), bias.new_zeros(len(bias), 0)
        if self._has_shortcut:
            bias = bias + self.linear[number](inputs).squeeze(1)
            if self.direct is not None:
                direct = (torch.einsum("ui,nid->nud", self.direct, vectors) if number else vectors).flatten(1)
        return Side(bias, direct, hidden if first is None else hidden + first, vectors)


class _Fields(nn.Module):
    """Vectors of the id and of all features of a side, and its part of the score that is linear in them."""

    def __init__(self, n_ids: int | None, schema: FeatureSchema, config: DLRMModelConfig) -> None:
        super().__init__()
        dim = config.n_factors
        self.ids = None if n_ids is None else IdEmbedding(n_ids, dim)
        self.bias = None if n_ids is None else nn.Parameter(torch.zeros(n_ids, 1))
        self.features = FieldEmbedding(schema, dim, config.bottom_hidden, config.activation)
        self.linear = FeatureEmbedding(schema, 1)
        self.has_numbers = int(bool(schema.numeric))
        self.n_vectors = self.features.n_vectors + (n_ids is not None)

    def forward(
        self, rows: torch.Tensor | None, is_unknown: torch.Tensor | None, features: FeatureBatch
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Vectors of all fields, those of the numbers again, and the linear part."""
        vectors = self.features(features)
        numbers = vectors[:, vectors.shape[1] - self.has_numbers :]
        bias = self.linear(features).squeeze(1)
        if self.ids is not None and self.bias is not None:
            assert is_unknown is not None
            vectors = torch.cat([self.ids(rows, is_unknown).unsqueeze(1), vectors], dim=1)
            own_bias = take_rows(self.bias, rows).masked_fill(is_unknown, 0.0)
            bias = bias + own_bias.squeeze(1)
        return vectors, numbers, bias


def _linear(n_in: int, n_out: int) -> nn.Module:
    return nn.Linear(n_in, n_out, bias=False) if n_in and n_out else _Nothing(n_out)


class _Nothing(nn.Module):
    """Stands for a linear layer without inputs or outputs."""

    def __init__(self, n_out: int) -> None:
        super().__init__()
        self._n_out = n_out

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.new_zeros(len(inputs), self._n_out)


class DLRMModel(PairModel[DLRMModelConfig]):
    """
    DLRM: a deep learning recommendation model (Naumov et al. 2019).

    Each field of a pair is a vector: the ids, each categorical feature (the mean over its values), what a bottom
    perceptron makes of the numbers of a side, and the history. A top perceptron sees the dot products of all of them
    and the vectors of the numbers. Besides, ids and features have weights of their own, as in a factorisation machine.

    All items are scored exactly, without a pass through the network for each pair.

    Parameters
    ----------
    n_factors : int
        Size of the vectors.
    bottom_hidden : tuple of int
        Hidden layers of the bottom perceptrons.
    top_hidden : tuple of int
        Hidden layers of the top perceptron.
    shortcut : bool
        Whether a linear layer over the inputs of the top perceptron adds to the score: it learns faster than the
        perceptron alone, which is the paper's. With no `top_hidden` it is all there is, a factorisation machine.
    interaction : {"dot", "concatenation"}
        What the top perceptron sees of the vectors: their dot products, or all of them side by side.
    self_interaction : bool
        Whether the product of a vector with itself is among the dot products.
    use_user_ids, use_item_ids : bool
        Whether ids are fields.
    history_encoder : str or dict or HistoryEncoderConfig, optional
        Make the items of a user a field: "mean", "attention", "gru", "transformer". In training half of a history is
        hidden. Users that came after fit are known by it.
    context_numeric, context_categorical : tuple of str
        Columns of the interactions that tell their situation, fields of the user's side. `Dataset.construct` keeps
        them with ``keep_extra_cols=True``; `recommend` and `predict_pairs` need them as well.
    target, loss, negatives, activation, dropout, entity_dropout, ranking_precision
        As for `NCFModel`; with a context "bce" is the default loss.
    **params
        Those of every neural model: ``epochs``, ``batch_size``, which counts users for losses over a catalogue or over
        shared candidates and with `history_encoder`, and interactions for the others, ``learning_rate``, ``optimizer``,
        ``validation``, ``seed``, ``device``, ``devices``, ``strategy``, ``precision``, ``get_trainer_func``,
        ``get_trainer_func_kwargs``, ``verbose``; see `NeuralModelConfig`.

    References
    ----------
    Naumov et al., Deep learning recommendation model for personalization and recommendation systems, 2019.

    Examples
    --------
    >>> from rectools_neural import DLRMModel, load_dataset
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> model = DLRMModel(history_encoder="mean").fit(dataset)  # doctest: +SKIP
    >>> clicks = DLRMModel(target={"name": "label", "threshold": 3.5}).fit(dataset)  # doctest: +SKIP
    >>> clicks.predict_pairs(pairs, dataset)  # doctest: +SKIP
    """

    config_class = DLRMModelConfig

    def _width(self, config: DLRMModelConfig) -> int:
        return config.top_hidden[0] if config.top_hidden else 1

    def _build_module(self, config: DLRMModelConfig, schema: DataSchema) -> DLRMModule:
        return DLRMModule(schema, config)
