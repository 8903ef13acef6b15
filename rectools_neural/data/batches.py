"""
Typed batches, each built whole with array operations.

They are not frozen: in double precision Lightning converts their fields one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class FeatureSchema:
    """
    What a side (users or items) offers as features, learnt from the training data.

    Parameters
    ----------
    fields : tuple of str
        Names of the categorical features.
    values : tuple of (str, object)
        The known (feature, value) pairs, one embedding row each.
    numeric : tuple of str
        Names of the numeric features.
    """

    fields: tuple[str, ...] = ()
    values: tuple[tuple[str, object], ...] = ()
    numeric: tuple[str, ...] = ()

    @property
    def n_categories(self) -> int:
        """Rows of the category embedding: known values, then one row a field for a missing or unseen value."""
        return len(self.values) + len(self.fields)

    @property
    def is_empty(self) -> bool:
        """Whether the side has no features."""
        return not (self.fields or self.numeric)


@dataclass
class FeatureBatch:
    """
    Features of some entities as tensors.

    Parameters
    ----------
    categories : torch.Tensor
        Category rows of all entities one after the other, shape ``(n_values,)``.
    weights : torch.Tensor
        Weight of each; those of one field of one entity add up to 1, shape ``(n_values,)``.
    offsets : torch.Tensor
        Where each entity begins, shape ``(n_entities,)``.
    numeric : torch.Tensor
        Standardised numbers, 0 where missing, shape ``(n_entities, n_numeric)``.
    """

    categories: torch.Tensor
    weights: torch.Tensor
    offsets: torch.Tensor
    numeric: torch.Tensor

    def take(self, rows: torch.Tensor) -> FeatureBatch:
        """Entities by position."""
        numeric = self.numeric.index_select(0, rows)
        if not len(self.categories):
            return FeatureBatch(self.categories, self.weights, torch.zeros_like(rows), numeric)
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([len(self.categories)])])
        starts = self.offsets.index_select(0, rows)
        lengths = ends.index_select(0, rows) - starts
        offsets = lengths.cumsum(0) - lengths
        place = (starts - offsets).repeat_interleave(lengths)
        place += torch.arange(len(place), device=place.device)
        return FeatureBatch(
            self.categories.index_select(0, place), self.weights.index_select(0, place), offsets, numeric
        )

    def to(self, device: torch.device) -> FeatureBatch:
        """Move to a device."""
        return FeatureBatch(
            self.categories.to(device), self.weights.to(device), self.offsets.to(device), self.numeric.to(device)
        )


@dataclass
class HistoryBatch:
    """
    Visible items of some users.

    Parameters
    ----------
    items : torch.Tensor
        Item rows of all users one after the other, oldest first, shape ``(n_entries,)``.
    lengths : torch.Tensor
        Entries of each user, shape ``(n_users,)``.
    weights : torch.Tensor or None
        Weight of each entry, shape ``(n_entries,)``; None where each counts 1.
    """

    items: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None = None

    def rows(self) -> torch.Tensor:
        """User row of each entry, shape ``(n_entries,)``."""
        users = torch.arange(len(self.lengths), device=self.lengths.device)
        return users.repeat_interleave(self.lengths)

    def offsets(self) -> torch.Tensor:
        """Where each user begins, shape ``(n_users,)``."""
        return self.lengths.cumsum(0) - self.lengths

    def keep(self, mask: torch.Tensor) -> HistoryBatch:
        """Keep the entries where `mask` is true."""
        kept = torch.zeros_like(self.lengths).index_add_(0, self.rows(), mask.to(self.lengths.dtype))
        return HistoryBatch(self.items[mask], kept, None if self.weights is None else self.weights[mask])

    def padded(self, max_length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return the last `max_length` items of each user as a matrix, padded on the right.

        Returns
        -------
        items, mask : torch.Tensor
            Item rows and where they are real, both of shape ``(n_users, longest)`` with ``longest >= 1``.
        """
        rows = self.rows()
        place = torch.arange(len(self.items), device=rows.device) - self.offsets()[rows]
        first = (self.lengths - max_length).clamp(min=0)
        kept = self.lengths - first
        column = place - first[rows]
        recent = column >= 0
        longest = max(int(kept.max()), 1) if len(kept) else 1
        items = rows.new_zeros((len(self.lengths), longest))
        items[rows[recent], column[recent]] = self.items[recent]
        mask = torch.arange(longest, device=rows.device) < kept.unsqueeze(1)
        return items, mask

    def to(self, device: torch.device) -> HistoryBatch:
        """Move to a device."""
        weights = None if self.weights is None else self.weights.to(device)
        return HistoryBatch(self.items.to(device), self.lengths.to(device), weights)


@dataclass
class ItemBatch:
    """
    Items to give vectors to.

    Parameters
    ----------
    rows : torch.Tensor or None
        Rows in the training data, shape ``(n_items,)``; None for all of them in order, which spares the look-up.
    is_unknown : torch.Tensor
        Items to treat as if they had not been in the training data, whatever their row, shape ``(n_items, 1)``.
    features : FeatureBatch
        Their features.
    """

    rows: torch.Tensor | None
    is_unknown: torch.Tensor
    features: FeatureBatch

    def to(self, device: torch.device) -> ItemBatch:
        """Move to a device."""
        rows = None if self.rows is None else self.rows.to(device)
        return ItemBatch(rows, self.is_unknown.to(device), self.features.to(device))


@dataclass
class UserBatch:
    """
    Users with what a model sees of them.

    Parameters
    ----------
    rows : torch.Tensor
        Rows in the training data, -1 for a user that was not in it, shape ``(n_users,)``.
    history : HistoryBatch
        The items that the model sees.
    features : FeatureBatch
        Their features.
    context : FeatureBatch or None
        In which situation each of them asks; None for models that don't go by it, and in training, where it belongs
        to the pairs.
    """

    rows: torch.Tensor
    history: HistoryBatch
    features: FeatureBatch
    context: FeatureBatch | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> UserBatch:
        """Move to a device."""
        context = None if self.context is None else self.context.to(device)
        return UserBatch(self.rows.to(device), self.history.to(device), self.features.to(device), context)


@dataclass
class NegativeBatch:
    """
    Sampled negatives, as positions in the items of their batch.

    Parameters
    ----------
    items : torch.Tensor
        Own negatives of each pair, shape ``(n_pairs, n_negatives)``, or candidates that the users of the batch
        share, shape ``(n_candidates,)``.
    log_inclusion : torch.Tensor
        Log of how often each is expected among those drawn, of the same shape.
    is_positive : torch.Tensor or None
        With shared candidates, which of them are the user's own items, shape ``(n_users, n_candidates)``.
    """

    items: torch.Tensor
    log_inclusion: torch.Tensor
    is_positive: torch.Tensor | None

    def to(self, device: torch.device) -> NegativeBatch:
        """Move to a device."""
        is_positive = None if self.is_positive is None else self.is_positive.to(device)
        return NegativeBatch(self.items.to(device), self.log_inclusion.to(device), is_positive)


@dataclass
class TrainingBatch:
    """
    Users with what a model sees of them and what it must predict.

    Parameters
    ----------
    users : UserBatch
        The users.
    items : ItemBatch
        The items that the batch is about: the whole catalogue or those that occur below.
    rows, targets : torch.Tensor
        User (position in `users`) and item (position in `items`) of each pair to predict, shape ``(n_pairs,)``.
    negatives : NegativeBatch or None
        None for losses over the whole catalogue.
    weights : torch.Tensor or None
        Weight of each pair, shape ``(n_pairs,)``; None where each counts 1.
    context : FeatureBatch or None
        The situation of each pair; None for models that don't go by it.
    """

    users: UserBatch
    items: ItemBatch
    rows: torch.Tensor
    targets: torch.Tensor
    negatives: NegativeBatch | None = None
    weights: torch.Tensor | None = None
    context: FeatureBatch | None = None

    def to(self, device: torch.device) -> TrainingBatch:
        """Move to a device."""
        negatives = None if self.negatives is None else self.negatives.to(device)
        weights = None if self.weights is None else self.weights.to(device)
        context = None if self.context is None else self.context.to(device)
        rows, targets = self.rows.to(device), self.targets.to(device)
        return TrainingBatch(self.users.to(device), self.items.to(device), rows, targets, negatives, weights, context)
