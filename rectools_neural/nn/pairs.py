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

# Items and hidden units at once when many pairs are scored: what fits into the cache is several times as fast.
_ITEMS_AT_ONCE = 256
_MAX_HIDDEN = 1 << 18


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
        # Half of the parts are empty: there is nothing to look up.
        parts = (self.bias, self.direct, self.first, self.fields)
        return Side(*(p.index_select(0, rows) if p.numel() else p.new_zeros(len(rows), *p.shape[1:]) for p in parts))

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

    def fold_items(self, items: torch.Tensor) -> torch.Tensor:
        """Matrices that turn the fields of a user into each unit for all items, shape ``(n_out, dim, n_items)``."""
        return torch.einsum("hd,cd->hdc", self.weight, items.squeeze(1))

    def fold_users(self, users: torch.Tensor) -> torch.Tensor:
        """Matrices that turn the fields of an item into each unit for all users, shape ``(n_out, n_users, dim)``."""
        return torch.einsum("hd,ud->hud", self.weight, users.squeeze(1))


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

    def fold_items(self, items: torch.Tensor) -> torch.Tensor:
        """As for `ProductCross`, shape ``(n_out, n_user_fields * dim, n_items)``."""
        return torch.einsum("hab,cbd->hadc", self.weight, items).flatten(1, 2)

    def fold_users(self, users: torch.Tensor) -> torch.Tensor:
        """As for `ProductCross`, shape ``(n_out, n_users, n_item_fields * dim)``."""
        return torch.einsum("hab,uad->hubd", self.weight, users).flatten(2)


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
        scores = self._linear_part(users, items)
        if users.first.shape[1]:
            scores = scores + self._perceptron_part(self._of_users(users), self._of_items(items))
        return scores

    def table_in_chunks(self, users: Side, items: Side) -> torch.Tensor:
        """As `table`, some pairs at a time, so that what it holds besides the scores is bounded; not for training."""
        scores = self._linear_part(users, items)
        if not users.first.shape[1]:
            return scores
        widest = max(users.first.shape[1], *(len(p) for p in self.rest.parameters()))
        n_users = max(1, _MAX_HIDDEN // (_ITEMS_AT_ONCE * widest))
        all_rows = [slice(first, first + n_users) for first in range(0, len(users), n_users)]
        all_columns = [slice(start, start + _ITEMS_AT_ONCE) for start in range(0, len(items), _ITEMS_AT_ONCE)]
        if self.cross is not None and _is_less_work_by_users(users, items):
            for rows in all_rows:
                some, folded = users.take(rows), self.cross.fold_users(users.fields[rows])
                for columns in all_columns:
                    others = items.take(columns)
                    units = (folded @ others.fields.flatten(1).T).add_(others.first.T.unsqueeze(1))
                    scores[rows, columns] += self._rest_of(units.add_(some.first.T.unsqueeze(2)))
            return scores
        of_users = self._of_users(users)
        for columns in all_columns:
            of_items = self._of_items(items.take(columns))
            for rows in all_rows:
                scores[rows, columns] += self._perceptron_part(of_users[:, rows], of_items)
        return scores

    def _linear_part(self, users: Side, items: Side) -> torch.Tensor:
        return torch.addmm(items.bias, users.direct, items.direct.T).add_(users.bias.unsqueeze(1))

    def _of_users(self, users: Side) -> torch.Tensor:
        """Factor of the first layer, shape ``(hidden, n_users, n)``: fields, what the user adds, 1 for the item."""
        first = users.first.T.unsqueeze(2)
        parts = [first, torch.ones_like(first)]
        if self.cross is not None:
            parts.insert(0, users.fields.flatten(1).expand(len(first), -1, -1))
        return torch.cat(parts, dim=2)

    def _of_items(self, items: Side) -> torch.Tensor:
        """Its other factor, shape ``(hidden, n, n_items)``."""
        first = items.first.T.unsqueeze(1)
        parts = [torch.ones_like(first), first]
        if self.cross is not None:
            parts.insert(0, self.cross.fold_items(items.fields))
        return torch.cat(parts, dim=1)

    def _perceptron_part(self, of_users: torch.Tensor, of_items: torch.Tensor) -> torch.Tensor:
        return self._rest_of(torch.bmm(of_users, of_items))

    def _rest_of(self, units: torch.Tensor) -> torch.Tensor:
        # Unit by unit: then each layer is one product with a wide matrix, and nothing has to be moved around.
        n_users, n_items = units.shape[1:]
        units = units.flatten(1)
        for layer in self.rest:
            if isinstance(layer, nn.Linear):
                units = (layer.weight @ units).add_(layer.bias.unsqueeze(1))
            else:
                units = layer(units)
        return units.view(n_users, n_items)


def _is_less_work_by_users(users: Side, items: Side) -> bool:
    """Whether the first layer costs less with its weights folded into the users instead of the items."""
    of_users, of_items = users.fields.shape[1], items.fields.shape[1]
    by_items = of_users * len(items) * (of_items + len(users))
    return of_items * len(users) * (of_users + len(items)) < by_items
