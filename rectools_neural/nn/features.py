"""Embedding of encoded features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..data.batches import FeatureBatch, FeatureSchema


class FeatureEmbedding(nn.Module):
    """
    Sum of the embeddings of all features of an entity: the linear first layer over its multi-hot features.

    Parameters
    ----------
    schema : FeatureSchema
        The features of the side.
    dim : int
        Size of the result.
    """

    def __init__(self, schema: FeatureSchema, dim: int) -> None:
        super().__init__()
        self.categories = nn.Parameter(torch.empty(schema.n_categories, dim)) if schema.fields else None
        self.dim = dim
        self.numeric = nn.Linear(len(schema.numeric), dim, bias=False) if schema.numeric else None
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1 / dim**0.5)

    def forward(self, features: FeatureBatch) -> torch.Tensor:
        """Embed entities, shape ``(n_entities, dim)``."""
        total: torch.Tensor = features.numeric.new_zeros(len(features.numeric), self.dim)
        if self.categories is not None:
            total = total + F.embedding_bag(
                features.categories,
                self.categories,
                features.offsets,
                per_sample_weights=features.weights.to(self.categories.dtype),
                mode="sum",
            )
        if self.numeric is not None:
            total = total + self.numeric(features.numeric.to(self.numeric.weight.dtype))
        return total
