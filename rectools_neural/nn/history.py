"""History encoders: a vector for a user from the embeddings of the items in the history."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..config import HistoryEncoderConfig
from ..data.batches import HistoryBatch
from .bags import sum_of_rows


def make_history_encoder(config: HistoryEncoderConfig, dim: int) -> nn.Module:
    """Build the history encoder of a config for item embeddings of size `dim`."""
    if config.name == "mean":
        return MeanHistory(config.power)
    if config.name == "attention":
        return AttentionHistory(dim, config.n_heads, config.max_length, config.dropout)
    if config.name == "gru":
        return GRUHistory(dim, config.n_layers, config.max_length, config.dropout)
    return TransformerHistory(dim, config.n_heads, config.n_layers, config.max_length, config.dropout)


class MeanHistory(nn.Module):
    """
    Sum of the item embeddings divided by a power of their number.

    Parameters
    ----------
    power : float
        0 is the sum, 1 the mean; in between, long histories speak louder than short ones.
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, history: HistoryBatch, embedding: torch.Tensor) -> torch.Tensor:
        """
        Encode histories.

        Parameters
        ----------
        history : HistoryBatch
            The visible items.
        embedding : torch.Tensor
            Of all items, shape ``(n_items, dim)``.

        Returns
        -------
        torch.Tensor
            Shape ``(n_users, dim)``; zeros for an empty history.
        """
        total = sum_of_rows(embedding, history.items, history.lengths)
        return total / self._divisors(history, total.dtype)

    def parts(self, history: HistoryBatch, embedding: torch.Tensor) -> torch.Tensor:
        """Give what each item adds to the vector of one user, shape ``(n_history, dim)``."""
        return F.embedding(history.items, embedding) / self._divisors(history, embedding.dtype)

    def _divisors(self, history: HistoryBatch, dtype: torch.dtype) -> torch.Tensor:
        return history.lengths.clamp(min=1).to(dtype).pow(self.power).unsqueeze(1)


class AttentionHistory(nn.Module):
    """
    Attention pooling with one learnt query a head (Lin et al. 2017).

    Parameters
    ----------
    dim : int
        Size of the item embedding.
    n_heads : int
        Number of queries, each over its own part of the embedding.
    max_length : int
        Latest items that count.
    dropout : float
        Share of attention weights dropped in training.
    """

    def __init__(self, dim: int, n_heads: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.max_length = max_length
        self.key = nn.Linear(dim, dim)
        self.query = nn.Parameter(torch.zeros(n_heads, dim // n_heads))
        self.dropout = nn.Dropout(dropout)

    def forward(self, history: HistoryBatch, embedding: torch.Tensor) -> torch.Tensor:
        """Encode histories, shape ``(n_users, dim)``; zeros for an empty history."""
        items, mask = history.padded(self.max_length)
        values = F.embedding(items, embedding)
        shape = (*items.shape, *self.query.shape)
        logits = (self.key(values).view(shape) * self.query).sum(dim=3)
        weights = self.dropout(_masked_softmax(logits, mask.unsqueeze(2), dim=1))
        pooled = (weights.unsqueeze(3) * values.view(shape)).sum(dim=1).flatten(1)
        # As loud as the sum over the square root of the length, so that all encoders start on one scale.
        return pooled * mask.sum(dim=1, keepdim=True).sqrt()


class GRUHistory(nn.Module):
    """
    Last state of a gated recurrent unit over the time-ordered history (Hidasi et al. 2016).

    Parameters
    ----------
    dim : int
        Size of the item embedding and of the state.
    n_layers : int
        Stacked units.
    max_length : int
        Latest items that count.
    dropout : float
        Dropout between the layers.
    """

    def __init__(self, dim: int, n_layers: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.max_length = max_length
        self.gru = nn.GRU(dim, dim, n_layers, batch_first=True, dropout=dropout if n_layers > 1 else 0.0)

    def forward(self, history: HistoryBatch, embedding: torch.Tensor) -> torch.Tensor:
        """Encode histories, shape ``(n_users, dim)``; zeros for an empty history."""
        items, mask = history.padded(self.max_length)
        states, _ = self.gru(F.embedding(items, embedding))
        return _last_state(states, mask)


class TransformerHistory(nn.Module):
    """
    Last state of a causal Transformer over the time-ordered history (Kang and McAuley 2018).

    Parameters
    ----------
    dim : int
        Size of the item embedding.
    n_heads, n_layers : int
        Attention heads and stacked blocks.
    max_length : int
        Latest items that count.
    dropout : float
        Dropout in the blocks.
    """

    def __init__(self, dim: int, n_heads: int, n_layers: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.max_length = max_length
        self.position = nn.Parameter(torch.randn(max_length, dim) * 0.01)
        block = nn.TransformerEncoderLayer(
            dim, n_heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, n_layers, enable_nested_tensor=False)

    def forward(self, history: HistoryBatch, embedding: torch.Tensor) -> torch.Tensor:
        """Encode histories, shape ``(n_users, dim)``; zeros for an empty history."""
        items, mask = history.padded(self.max_length)
        length = items.shape[1]
        # Positions count back from the latest item, so that they mean the same for short and long histories.
        back = (mask.sum(dim=1, keepdim=True) - 1 - torch.arange(length, device=items.device)).clamp(min=0)
        states = self.blocks(
            F.embedding(items, embedding) + self.position[back],
            mask=nn.Transformer.generate_square_subsequent_mask(length, device=items.device),
            is_causal=True,
        )
        return _last_state(states, mask)


def _last_state(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    lengths = mask.sum(dim=1)
    last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp(min=0)]
    return last * (lengths > 0).unsqueeze(1)


def _masked_softmax(logits: torch.Tensor, mask: torch.Tensor, dim: int) -> torch.Tensor:
    weights = logits.masked_fill(~mask, -1e9).softmax(dim=dim)
    return weights * mask
