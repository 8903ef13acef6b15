"""Embedding of ids and encoded features."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from ..data.batches import FeatureBatch, FeatureSchema
from .bags import sum_of_rows, take_rows
from .towers import ACTIVATIONS


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

    def parts(self, features: FeatureBatch) -> torch.Tensor:
        """Embed the features of one entity one by one, the numbers last, shape ``(n_features, dim)``; they add up."""
        parts = [features.numeric.new_zeros(0, self.dim)]
        if self.categories is not None:
            parts.append(self.categories[features.categories] * features.weights.unsqueeze(1))
        if self.numeric is not None:
            parts.append((self.numeric.weight * features.numeric).T)
        return torch.cat(parts)


class IdEmbedding(nn.Module):
    """
    A vector for each id, and one for all that are unknown.

    Parameters
    ----------
    n : int
        Number of ids.
    dim : int
        Size of the vectors.
    """

    def __init__(self, n: int, dim: int) -> None:
        super().__init__()
        scale = 0.1 / dim**0.5
        self.known = nn.Parameter(torch.randn(n, dim) * scale)
        self.unknown = nn.Parameter(torch.randn(1, dim) * scale)

    def forward(self, rows: torch.Tensor | None, is_unknown: torch.Tensor) -> torch.Tensor:
        """
        Look up vectors.

        Parameters
        ----------
        rows : torch.Tensor or None
            Any valid row for those that are unknown, shape ``(n,)``; None for all in order.
        is_unknown : torch.Tensor
            Shape ``(n, 1)``.

        Returns
        -------
        torch.Tensor
            Shape ``(n, dim)``.
        """
        return torch.lerp(take_rows(self.known, rows), self.unknown, is_unknown.to(self.known.dtype))


class FieldEmbedding(nn.Module):
    """
    A vector for each categorical field of an entity, and one that a perceptron makes of its numbers.

    The values of a field of many values are averaged by their weights.

    Parameters
    ----------
    schema : FeatureSchema
        The features of the side.
    dim : int
        Size of the vectors.
    bottom_hidden : tuple of int
        Hidden layers of the perceptron.
    activation : str
        After each of its layers.
    """

    field_of_category: torch.Tensor

    def __init__(self, schema: FeatureSchema, dim: int, bottom_hidden: tuple[int, ...], activation: str) -> None:
        super().__init__()
        self.n_fields, self.dim = len(schema.fields), dim
        self.categories: nn.Parameter | None = None
        if schema.fields:
            self.categories = nn.Parameter(torch.randn(schema.n_categories, dim) * (0.1 / dim**0.5))
        position = {name: number for number, name in enumerate(schema.fields)}
        fields = [position[name] for name, _ in schema.values] + list(range(self.n_fields))
        self.register_buffer("field_of_category", torch.tensor(fields, dtype=torch.int64), persistent=False)
        self.bottom: nn.Module | None = None
        if schema.numeric:
            sizes = (len(schema.numeric), *bottom_hidden, dim)
            layers = [
                layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), ACTIVATIONS[activation]())
            ]
            self.bottom = nn.Sequential(*layers)

    @property
    def n_vectors(self) -> int:
        """How many vectors an entity gets."""
        return self.n_fields + (self.bottom is not None)

    def forward(self, features: FeatureBatch) -> torch.Tensor:
        """Embed entities, shape ``(n_entities, n_vectors, dim)``, the vector of the numbers last."""
        n = len(features.numeric)
        parts = []
        if self.categories is not None:
            counts = torch.diff(features.offsets, append=features.offsets.new_tensor([len(features.categories)]))
            owner = torch.arange(n, device=counts.device).repeat_interleave(counts)
            bag = owner * self.n_fields + self.field_of_category[features.categories]
            order = bag.argsort(stable=True)
            lengths = torch.bincount(bag, minlength=n * self.n_fields)
            weights = features.weights.to(self.categories.dtype)[order]
            vectors = sum_of_rows(self.categories, features.categories[order], lengths, weights)
            parts.append(vectors.view(n, self.n_fields, self.dim))
        if self.bottom is not None:
            first: torch.Tensor = next(self.bottom.parameters())
            parts.append(self.bottom(features.numeric.to(first.dtype)).unsqueeze(1))
        return torch.cat(parts, dim=1) if parts else features.numeric.new_zeros(n, 0, self.dim)
