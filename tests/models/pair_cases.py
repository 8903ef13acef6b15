"""
Small batches with all that a model of pairs may see, for the tests of `PairModel` and its families.

References work on them one pair at a time, in double precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn

from rectools_neural.data.batches import (
    FeatureBatch,
    FeatureSchema,
    HistoryBatch,
    ItemBatch,
    NegativeBatch,
    TrainingBatch,
    UserBatch,
)
from rectools_neural.data.features import EncodedFeatures
from rectools_neural.models.base import DataSchema
from rectools_neural.models.pairs import PairModel
from rectools_neural.nn.features import FeatureEmbedding

N_USERS, N_ITEMS = 5, 6
USER_SCHEMA = FeatureSchema(("group",), (("group", "a"), ("group", "b")), ("age",))
ITEM_SCHEMA = FeatureSchema(("colour", "genre"), (("colour", "red"), ("genre", "x"), ("genre", "y")), ("price", "year"))
CONTEXT_SCHEMA = FeatureSchema(("place",), (("place", "home"), ("place", "work")), ("hour",))
NOTHING = FeatureSchema()


def features(schema: FeatureSchema, n: int, seed: int) -> EncodedFeatures:
    """Random ones: some entities have several values of a field, others none."""
    rng = np.random.default_rng(seed)
    weights = np.zeros((n, schema.n_categories), np.float32)
    for number, field in enumerate(schema.fields):
        values = [j for j, (name, _) in enumerate(schema.values) if name == field]
        for row in range(n):
            some = rng.permutation(values)[: rng.integers(0, len(values) + 1)]
            weights[row, some if len(some) else [len(schema.values) + number]] = 1 / max(len(some), 1)
    numbers = rng.normal(size=(n, len(schema.numeric))).astype(np.float32)
    return EncodedFeatures(schema, sparse.csr_matrix(weights), numbers)


def data_schema(with_features: bool = True, with_context: bool = False) -> DataSchema:
    sides = (USER_SCHEMA, ITEM_SCHEMA) if with_features else (NOTHING, NOTHING)
    return DataSchema(N_USERS, N_ITEMS, 12, *sides, CONTEXT_SCHEMA if with_context else NOTHING)


def encode(schema: FeatureSchema, n: int, seed: int) -> FeatureBatch:
    """The same as a batch in double precision, as a Trainer of that precision makes it."""
    batch = features(schema, n, seed).batch()
    return FeatureBatch(batch.categories, batch.weights.double(), batch.offsets, batch.numeric.double())


#: Rows of the users and items of the batches, -1 for unknown ones, and what the users are seen to have.
USER_ROWS, ITEM_ROWS = [3, -1, 0, 2], [4, 0, -1, 5, 1]
HISTORIES = [[0, 3], [5], [], [1, 2, 4]]


def user_batch(schema: DataSchema) -> UserBatch:
    items = torch.tensor([item for history in HISTORIES for item in history])
    history = HistoryBatch(items, torch.tensor([len(part) for part in HISTORIES]))
    return UserBatch(torch.tensor(USER_ROWS), history, encode(schema.user_features, 4, 1))


def item_batch(schema: DataSchema) -> ItemBatch:
    rows = torch.tensor(ITEM_ROWS)
    return ItemBatch(rows.clamp(min=0), (rows < 0).unsqueeze(1), encode(schema.item_features, 5, 2))


def module_of(model: PairModel[Any], schema: DataSchema, seed: int = 5) -> tuple[Any, Any]:
    """The config with everything filled in, and the module in float64 with weights that all matter."""
    config = model._adapt(model.get_config(mode="pydantic"), schema)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = model._build_module(config, schema).double()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
    return config, module.eval()


def linear_in_features(embedding: FeatureEmbedding, encoded: EncodedFeatures, row: int) -> torch.Tensor:
    """Sum over all features of an entity, by definition."""
    total = torch.zeros(embedding.dim, dtype=torch.float64)
    for category, weight in enumerate(encoded.categories.toarray()[row]):
        if weight:
            assert embedding.categories is not None
            total = total + float(weight) * embedding.categories[category]
    for number, value in enumerate(encoded.numeric[row]):
        assert embedding.numeric is not None
        total = total + float(value) * embedding.numeric.weight[:, number]
    return total


def perceptron(layers: Any, vector: torch.Tensor, activation: Any) -> torch.Tensor:
    """Apply a sequence of linear layers and activations to one vector."""
    for layer in layers:
        vector = layer.weight @ vector + layer.bias if isinstance(layer, nn.Linear) else activation(vector)
    return vector


#: Pairs (user, item) by position in the batch, and own negatives of each.
PAIRS, OWN = [(0, 3), (0, 1), (2, 0), (3, 4), (3, 1)], [[0, 2], [4, 2], [1, 3], [0, 2], [3, 2]]


def training_batch(schema: DataSchema, negatives: NegativeBatch | None = None, context: bool = False) -> TrainingBatch:
    rows, targets = torch.tensor(PAIRS).T
    situation = encode(schema.context, len(PAIRS), 4) if context else None
    weights = torch.tensor([1.0, 4.0, 3.0, 0.0, 5.0], dtype=torch.float64)
    return TrainingBatch(user_batch(schema), item_batch(schema), rows, targets, negatives, weights, situation)


def has_right_gradients(module: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> bool:
    """Tell whether those of a loss with respect to all weights of a module are those by finite differences."""
    names = list(dict(module.named_parameters()))

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self) -> torch.Tensor:
            return loss()

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        weights = {f"module.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}
        result: torch.Tensor = torch.func.functional_call(Loss(), weights, ())
        return result

    return torch.autograd.gradcheck(value, [p.detach().clone().requires_grad_() for p in module.parameters()])
