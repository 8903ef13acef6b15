"""
Networks that score pairs, split so that all pairs of some users and some items cost little.

The first layer of a network over a pair is linear: what it makes of the user alone and of the item alone is computed
once for each, not once for each pair. What it makes of products of the two is a bilinear form, a matrix product.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn

from .towers import ACTIVATIONS

# Hidden units held at once when many pairs are scored: what fits into the cache is several times as fast.
_MAX_HIDDEN = 1 << 19


@dataclass
class Side:
    """
    What the users, or the items, of some pairs contribute to the score.

    Parameters
    ----------
    bias : torch.Tensor
        Added to the score, shape ``(n,)``.
    direct : torch.Tensor
        Adds its dot product with that of the other side to the score, shape ``(n, n_direct)``.
    first : torch.Tensor
        Added to the first layer of the network, shape ``(n, hidden)``.
    fields : torch.Tensor
        Vectors whose products with those of the other side enter the first layer, shape ``(n, n_fields, dim)``.
    """

    bias: torch.Tensor
    direct: torch.Tensor
    first: torch.Tensor
    fields: torch.Tensor

    def __len__(self) -> int:
        return len(self.bias)

    def take(self, rows: torch.Tensor | slice) -> Side:
        """Rows by position."""
        if isinstance(rows, slice):
            return Side(self.bias[rows], self.direct[rows], self.first[rows], self.fields[rows])
        return Side(*(getattr(self, name).index_select(0, rows) for name in ("bias", "direct", "first", "fields")))

    def to(self, dtype: torch.dtype) -> Side:
        """Convert to another precision."""
        return Side(self.bias.to(dtype), self.direct.to(dtype), self.first.to(dtype), self.fields.to(dtype))


class ProductCross(nn.Module):
    """
    A linear layer over the element-wise product of one vector a side.

    Parameters
    ----------
    dim : int
        Size of the vectors.
    n_out : int
        Units of the layer.
    """

    def __init__(self, dim: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_out, dim)))

    def pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Units of pairs, from fields of shapes ``(n, 1, dim)``: ``(n, n_out)``."""
        return (users * items).squeeze(1) @ self.weight.T

    def fold(self, items: torch.Tensor) -> torch.Tensor:
        """Matrix that turns the fields of a user into the units for all items, shape ``(dim, n_items * n_out)``."""
        return (items * self.weight).flatten(0, 1).T


class DotCross(nn.Module):
    """
    A linear layer over the dot products of all vectors of one side with all of the other.

    Parameters
    ----------
    n_user_fields, n_item_fields : int
        Vectors a side.
    n_out : int
        Units of the layer.
    scale : float
        Standard deviation of the weights at the start.
    """

    def __init__(self, n_user_fields: int, n_item_fields: int, n_out: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_user_fields, n_item_fields) * scale)

    def pairs(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Units of pairs, from fields of shapes ``(n, n_fields, dim)``: ``(n, n_out)``."""
        return torch.bmm(users, items.transpose(1, 2)).flatten(1) @ self.weight.flatten(1).T

    def fold(self, items: torch.Tensor) -> torch.Tensor:
        """As for `ProductCross`, shape ``(n_user_fields * dim, n_items * n_out)``."""
        folded = torch.einsum("hab,cbd->adch", self.weight, items)
        return folded.flatten(2).flatten(0, 1)


class PairNetwork(nn.Module):
    """
    Scores of pairs from their sides: biases, dot product, and a perceptron whose first layer the sides bring along.

    Parameters
    ----------
    hidden : tuple of int
        Units of the layers, the first one being that of the sides; empty for no perceptron.
    cross : ProductCross or DotCross or None
        What the first layer makes of products of the sides.
    activation : str
        Of the hidden layers.
    dropout : float
        Share of hidden units dropped in training.
    """

    def __init__(
        self, hidden: tuple[int, ...], cross: ProductCross | DotCross | None, activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.cross = cross
        layers: list[nn.Module] = []
        for size_in, size_out in itertools.pairwise((*hidden, 1)):
            # In place: what it overwrites is a sum, which no gradient needs.
            act = nn.ReLU(inplace=True) if activation == "relu" else ACTIVATIONS[activation]()
            layers += [act, *([nn.Dropout(dropout)] if dropout else [])]
            layers.append(nn.Linear(size_in, size_out))
        self.rest = nn.Sequential(*layers)

    def pairs(self, users: Side, items: Side) -> torch.Tensor:
        """Score pairs one by one, both sides of shape ``(n, ...)``: ``(n,)``."""
        scores = users.bias + items.bias + (users.direct * items.direct).sum(dim=1)
        if not users.first.shape[1]:
            return scores
        hidden = users.first + items.first
        if self.cross is not None:
            hidden = hidden + self.cross.pairs(users.fields, items.fields)
        return scores + self.rest(hidden).squeeze(1)

    def table(self, users: Side, items: Side) -> torch.Tensor:
        """Score all pairs of users and items, shape ``(n_users, n_items)``."""
        scores = torch.addmm(items.bias, users.direct, items.direct.T) + users.bias.unsqueeze(1)
        if not users.first.shape[1]:
            return scores
        if self.cross is None:
            hidden = users.first.unsqueeze(1) + items.first
        else:
            # The units of the items enter as the bias of the product.
            folded = torch.addmm(items.first.flatten(), users.fields.flatten(1), self.cross.fold(items.fields))
            hidden = folded.view(len(users), *items.first.shape) + users.first.unsqueeze(1)
        return scores + self.rest(hidden).squeeze(2)

    def table_in_chunks(self, users: Side, items: Side) -> torch.Tensor:
        """As `table`, some items at a time, so that what it holds besides the scores is bounded."""
        scores = users.bias.new_empty(len(users), len(items))
        step = max(1, _MAX_HIDDEN // max(len(users) * users.first.shape[1], 1))
        for start in range(0, len(items), step):
            part = slice(start, start + step)
            scores[:, part] = self.table(users, items.take(part))
        return scores
