"""Embedding of encoded features."""

from __future__ import annotations

import torch
from torch import nn

from ..data.batches import FeatureBatch, FeatureSchema
from .bags import sum_of_rows


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
        parts = []
        if self.categories is not None:
            lengths = torch.diff(features.offsets, append=features.offsets.new_tensor([len(features.categories)]))
            weights = features.weights.to(self.categories.dtype)
            parts.append(sum_of_rows(self.categories, features.categories, lengths, weights))
        if self.numeric is not None:
            parts.append(self.numeric(features.numeric.to(self.numeric.weight.dtype)))
        return sum(parts[1:], start=parts[0]) if parts else features.numeric.new_zeros(len(features.numeric), self.dim)
