"""User histories as compressed rows: the only place that reads interactions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from scipy import sparse


@dataclass(frozen=True)
class Histories:
    """
    The items of each user, oldest first, each item once.

    Parameters
    ----------
    indptr : np.ndarray
        Where each user's row begins and ends, shape ``(n_users + 1,)``, int64.
    items : np.ndarray
        Item rows of all users one after the other, shape ``(n_interactions,)``, int64.
    n_items : int
        Size of the item axis.
    weights : np.ndarray, optional
        Weight of each, float64, shape ``(n_interactions,)``; None where weights are not used and each counts 1.
    """

    indptr: np.ndarray
    items: np.ndarray
    n_items: int
    weights: np.ndarray | None = None

    @classmethod
    def from_dataset(
        cls, dataset: Dataset, item_index: np.ndarray, n_items: int, use_weights: bool = False
    ) -> Histories:
        """
        Read the interactions of a dataset.

        Repeated interactions of a user with an item count once, at the time of the last one and with the sum of their
        weights. With weights, those of weight 0 are left out.

        Parameters
        ----------
        dataset : Dataset
            The interactions.
        item_index : np.ndarray
            Item row of each internal item id of the dataset, -1 to leave the item out.
        n_items : int
            Size of the item axis.
        use_weights : bool
            Whether to read the weights.

        Raises
        ------
        ValueError
            If weights are used and one of them is negative or not finite.
        """
        frame = dataset.interactions.df
        weights = read_weights(dataset) if use_weights else None
        users = frame[Columns.User].to_numpy().astype(np.int64)
        items = item_index[frame[Columns.Item].to_numpy()]
        # Equal times fall back to the item, so that the order of the rows in the frame never matters.
        order = stable_order(items)
        order = order[items[order] >= 0]
        order = order[stable_order(frame[Columns.Datetime].to_numpy()[order].view(np.int64))]
        weights = None if weights is None else weights[order]
        return cls.from_pairs(users[order], items[order], dataset.user_id_map.size, n_items, weights)

    @classmethod
    def from_pairs(
        cls, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int, weights: np.ndarray | None = None
    ) -> Histories:
        """Build from pairs in time order; of equal pairs the last one counts, with the sum of their weights."""
        keys = pd.Series(users * n_items + items)
        keep = np.flatnonzero(~keys.duplicated(keep="last"))
        if weights is not None:
            weights = pd.Series(weights).groupby(keys, sort=False).transform("sum").to_numpy()
            keep = keep[weights[keep] > 0]
        keep = keep[stable_order(users[keep])]
        indptr = np.zeros(n_users + 1, np.int64)
        np.cumsum(np.bincount(users[keep], minlength=n_users), out=indptr[1:])
        return cls(indptr, items[keep], n_items, None if weights is None else weights[keep])

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Items of each user, shape ``(n_users,)``."""
        return np.diff(self.indptr)

    def take(self, users: np.ndarray) -> Histories:
        """Rows of the given users, in the given order."""
        lengths = self.indptr[users + 1] - self.indptr[users]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(indptr[-1]) + np.repeat(self.indptr[users] - indptr[:-1], lengths)
        weights = None if self.weights is None else self.weights[positions]
        return Histories(indptr, self.items[positions], self.n_items, weights)

    def rows(self) -> np.ndarray:
        """User row of each entry of `items`, shape ``(n_interactions,)``."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def keys(self) -> np.ndarray:
        """Sorted ``user * n_items + item`` of all pairs, shape ``(n_interactions,)``, int64."""
        return np.sort(self.rows() * self.n_items + self.items)

    def popularity(self) -> np.ndarray:
        """Users of each item, shape ``(n_items,)``, int64."""
        return np.bincount(self.items, minlength=self.n_items)

    def to_csr(self) -> sparse.csr_matrix:
        """Users x items matrix of the weights (float64) or of ones (float32), with sorted columns."""
        values = np.ones(len(self.items), np.float32) if self.weights is None else self.weights
        # A copy: the columns are sorted in place.
        matrix = sparse.csr_matrix((values, self.items, self.indptr), shape=(len(self), self.n_items), copy=True)
        matrix.sort_indices()
        return matrix


def stable_order(values: np.ndarray) -> np.ndarray:
    """Stable argsort of integers; a radix sort in torch, several times as fast as NumPy's."""
    return torch.from_numpy(values).argsort(stable=True).numpy()


def read_weights(dataset: Dataset) -> np.ndarray:
    """Weights of the interactions, float64, shape ``(n_interactions,)``; raise where one makes no sense."""
    frame = dataset.interactions.df
    weights: np.ndarray = frame[Columns.Weight].to_numpy(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        user, item = frame.iloc[wrong[0]][[Columns.User, Columns.Item]].astype(int)
        user, item = dataset.user_id_map.external_ids[user], dataset.item_id_map.external_ids[item]
        raise ValueError(
            f"Column `{Columns.Weight}` of the interactions has {len(wrong)} values that are negative or not finite, "
            f"the first of them {weights[wrong[0]]} of user {user} and item {item}: weights must be 0 or more. Drop "
            "these rows, or give them other weights"
        )
    return weights
