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
    """

    indptr: np.ndarray
    items: np.ndarray
    n_items: int

    @classmethod
    def from_dataset(cls, dataset: Dataset, item_index: np.ndarray, n_items: int) -> Histories:
        """
        Read the interactions of a dataset.

        Repeated interactions of a user with an item count once, at the time of the last one.

        Parameters
        ----------
        dataset : Dataset
            The interactions.
        item_index : np.ndarray
            Item row of each internal item id of the dataset, -1 to leave the item out.
        n_items : int
            Size of the item axis.
        """
        frame = dataset.interactions.df
        users = frame[Columns.User].to_numpy().astype(np.int64)
        items = item_index[frame[Columns.Item].to_numpy()]
        # Equal times fall back to the item, so that the order of the rows in the frame never matters.
        order = stable_order(items)
        order = order[items[order] >= 0]
        order = order[stable_order(frame[Columns.Datetime].to_numpy()[order].view(np.int64))]
        return cls.from_pairs(users[order], items[order], dataset.user_id_map.size, n_items)

    @classmethod
    def from_pairs(cls, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> Histories:
        """Build from pairs in time order; of equal pairs the last one counts."""
        keep = np.flatnonzero(~pd.Series(users * n_items + items).duplicated(keep="last"))
        keep = keep[stable_order(users[keep])]
        indptr = np.zeros(n_users + 1, np.int64)
        np.cumsum(np.bincount(users[keep], minlength=n_users), out=indptr[1:])
        return cls(indptr, items[keep], n_items)

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
        return Histories(indptr, self.items[positions], self.n_items)

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
        """Users x items matrix of ones, float32, with sorted columns."""
        matrix = sparse.csr_matrix(
            (np.ones(len(self.items), np.float32), self.items, self.indptr), shape=(len(self), self.n_items)
        )
        matrix.sort_indices()
        return matrix


def stable_order(values: np.ndarray) -> np.ndarray:
    """Stable argsort of integers; a radix sort in torch, several times as fast as NumPy's."""
    return torch.from_numpy(values).argsort(stable=True).numpy()
