"""Propagation of vectors along the edges of a bipartite graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class _Propagation(torch.autograd.Function):
    """Product with a symmetric matrix, whose gradient is the product of the gradient with the same matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        table: torch.Tensor,
        scale: torch.Tensor,
        neighbours: torch.Tensor,
        offsets: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(scale, neighbours, offsets, weights)
        ctx.dtype = table.dtype
        if torch.is_autocast_enabled(table.device.type):
            ctx.dtype = torch.get_autocast_dtype(table.device.type)
        return _product(table, scale, neighbours, offsets, weights, ctx.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        scale, neighbours, offsets, weights = ctx.saved_tensors
        return _product(gradient, scale, neighbours, offsets, weights, ctx.dtype), None, None, None, None


def _product(
    table: torch.Tensor,
    scale: torch.Tensor,
    neighbours: torch.Tensor,
    offsets: torch.Tensor,
    weights: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    # Reading the neighbours is what takes the time, so they are in the dtype of the autocast; the result is not.
    weights = None if weights is None else weights.to(dtype)
    total = F.embedding_bag(neighbours, (table * scale).to(dtype), offsets, mode="sum", per_sample_weights=weights)
    return total.to(scale.dtype).mul_(scale)


class BipartiteGraph(nn.Module):
    """
    Users and items joined by interactions, with the symmetric normalisation ``1 / sqrt(d_u d_i)`` (He et al. 2020).

    The nodes are the users followed by the items. The normalisation is a factor of the one end times a factor of the
    other, so that it scales tables, not edges: memory is two integers an edge and direction. Nothing of the graph is
    part of the state of a module that holds it.

    Parameters
    ----------
    items : torch.Tensor
        Items of all users one after the other, shape ``(n_edges,)``.
    lengths : torch.Tensor
        Items of each user, shape ``(n_users,)``.
    n_items : int
        Number of items.

    Attributes
    ----------
    scale : torch.Tensor
        ``1 / sqrt(degree)`` of each node, 0 for those without edges, shape ``(n_nodes, 1)``.
    """

    scale: torch.Tensor
    _neighbours: torch.Tensor
    _offsets: torch.Tensor
    _by_item: torch.Tensor

    def __init__(self, items: torch.Tensor, lengths: torch.Tensor, n_items: int) -> None:
        super().__init__()
        users = torch.arange(len(lengths)).repeat_interleave(lengths)
        by_item = items.argsort(stable=True)
        degrees = torch.cat([lengths, torch.bincount(items, minlength=n_items)])
        state = {
            "scale": degrees.float().rsqrt().masked_fill(degrees == 0, 0.0).unsqueeze(1),
            # 32 bits: half of the memory, and of what a sum reads besides the vectors.
            "_neighbours": torch.cat([items + len(lengths), users[by_item]]).int(),
            "_offsets": (degrees.cumsum(0) - degrees).int(),
            "_by_item": by_item,
        }
        for name, tensor in state.items():
            self.register_buffer(name, tensor, persistent=False)

    def drop_edges(self, share: float) -> torch.Tensor | None:
        """
        Draw which edges to leave out, each in both directions.

        Parameters
        ----------
        share : float
            Of the edges; 0 draws nothing.

        Returns
        -------
        torch.Tensor or None
            Weights of the edges for `forward`: 0, or what keeps the expected sum as it was, shape ``(2 * n_edges,)``.
        """
        if not share:
            return None
        kept = torch.rand(len(self._by_item), device=self.scale.device, dtype=self.scale.dtype) >= share
        weights = kept.to(self.scale.dtype) / (1 - share)
        return torch.cat([weights, weights[self._by_item]])

    def forward(self, table: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """
        Give each node the normalised sum of the vectors of its neighbours.

        Parameters
        ----------
        table : torch.Tensor
            Vectors of all nodes, shape ``(n_nodes, dim)``.
        weights : torch.Tensor, optional
            From `drop_edges`.

        Returns
        -------
        torch.Tensor
            Shape ``(n_nodes, dim)``.
        """
        result: torch.Tensor = _Propagation.apply(table, self.scale, self._neighbours, self._offsets, weights)
        return result
