"""Weighted sums of table rows with a gradient that is fast on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..data.batches import HistoryBatch


class _SumOfRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table: torch.Tensor,
        indices: torch.Tensor,
        lengths: torch.Tensor,
        weights: torch.Tensor | None,
        sparse: bool,
    ) -> torch.Tensor:
        ctx.save_for_backward(indices, lengths, weights)
        ctx.shape, ctx.sparse = table.shape, sparse
        offsets = lengths.cumsum(0) - lengths
        return F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        # The gradient of a sum of rows is a sum of rows over the transposed indices: no scattered additions.
        indices, lengths, weights = ctx.saved_tensors
        ordered, order = indices.sort(stable=True)
        bags = torch.arange(len(lengths), device=indices.device).repeat_interleave(lengths).index_select(0, order)
        if ctx.sparse:
            rows, counts = ordered.unique_consecutive(return_counts=True)
        else:
            counts = torch.bincount(indices, minlength=ctx.shape[0])
        weights = None if weights is None else weights.index_select(0, order)
        offsets = counts.cumsum(0) - counts
        result = F.embedding_bag(bags, gradient, offsets, mode="sum", per_sample_weights=weights)
        if ctx.sparse:
            result = torch.sparse_coo_tensor(
                rows.unsqueeze(0), result, ctx.shape, check_invariants=False, is_coalesced=True
            )
        return result, None, None, None, None


def sum_of_rows(
    table: torch.Tensor, indices: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum `lengths[i]` consecutive rows ``table[indices]`` for each i, shape ``(len(lengths), dim)``."""
    result: torch.Tensor = _SumOfRows.apply(table, indices, lengths, weights, _is_watched(table, indices))
    return result


def normalised_sum_of_rows(table: torch.Tensor, history: HistoryBatch) -> torch.Tensor:
    """Product of histories, scaled to length 1, with a table of item rows, shape ``(n_users, dim)``."""
    total = sum_of_rows(table, history.items, history.lengths, history.weights)
    if history.weights is None:
        squares = history.lengths.to(total.dtype)
    else:
        squares = total.new_zeros(len(total)).index_add_(0, history.rows(), history.weights.square().to(total.dtype))
    # No division by the 0 of an empty history.
    return total * squares.masked_fill(squares == 0, 1).rsqrt().unsqueeze(1)


def take_rows(table: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Rows of a table; None stands for all of them in order, which spares the look-up."""
    is_watched = _is_watched(table, rows)
    return table if rows is None else F.embedding(rows, table, sparse=is_watched)


Watcher = Callable[[torch.Tensor, torch.Tensor | None], None]


def watch(table: torch.Tensor, before_look_up: Watcher | None) -> None:
    """
    Let an optimiser know which rows of a table are used: before a look-up, and by a gradient that is sparse.

    Parameters
    ----------
    table : torch.Tensor
        The table.
    before_look_up : callable or None
        Gets the table and the rows, which may repeat, or None for all of them. None in its place ends it.
    """
    table.before_look_up = before_look_up  # type: ignore[attr-defined]


def _is_watched(table: torch.Tensor, rows: torch.Tensor | None) -> bool:
    before_look_up: Watcher | None = getattr(table, "before_look_up", None)
    if before_look_up is None:
        return False
    before_look_up(table, rows)
    return True
