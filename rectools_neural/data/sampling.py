"""Negative sampling: items that a user has not interacted with."""

from __future__ import annotations

import math

import numpy as np
import torch

from .histories import Histories

_SLOTS_PER_KEY = 16
_SHIFTS = (20, 35)  # two slots a key, from different bits of its hash
_HASH_MULTIPLIER = -7046029254386353131  # 2**64 / golden ratio, as a signed number
_MAX_ROUNDS = 20


class PositivePairs:
    """
    Membership test for (user, item) pairs.

    A small hashed table answers most questions; only the pairs that it can't rule out are looked up in the
    sorted keys ``user * n_items + item``, which makes the test several times as fast as the search alone.

    Parameters
    ----------
    histories : Histories
        The positive pairs.
    """

    def __init__(self, histories: Histories) -> None:
        self._n_items = histories.n_items
        self._keys = torch.from_numpy(histories.keys())
        n_slots = 1 << math.ceil(math.log2(max(len(self._keys), 1) * _SLOTS_PER_KEY))
        self._mask = n_slots - 1
        self._table = torch.zeros(n_slots, dtype=torch.bool)
        for shift in _SHIFTS:
            self._table[self._slot(self._keys, shift)] = True

    def __call__(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """
        Tell which pairs are positive.

        Parameters
        ----------
        users, items : torch.Tensor
            Rows, int64, shapes that broadcast to each other.

        Returns
        -------
        torch.Tensor
            Bool, of the broadcast shape.
        """
        keys = users * self._n_items + items
        left = keys.flatten()
        place = torch.arange(len(left))
        for shift in _SHIFTS:
            maybe = self._table.index_select(0, self._slot(left, shift)).nonzero().squeeze(1)
            left, place = left.index_select(0, maybe), place.index_select(0, maybe)
        position = torch.searchsorted(self._keys, left).clamp_(max=max(len(self._keys) - 1, 0))
        found = torch.zeros(keys.numel(), dtype=torch.bool)
        found[place] = self._keys[position] == left
        return found.view(keys.shape)

    def _slot(self, keys: torch.Tensor, shift: int) -> torch.Tensor:
        return (keys * _HASH_MULTIPLIER).bitwise_right_shift_(shift).bitwise_and_(self._mask)


class NegativeSampler:
    """
    Draws negatives, uniformly or by popularity, and rejects the user's own items.

    Parameters
    ----------
    histories : Histories
        All positive pairs of the training data.
    popularity_power : float, default 0
        Items are drawn in proportion to ``popularity ** popularity_power``; 0 is uniform.
    """

    def __init__(self, histories: Histories, popularity_power: float = 0.0) -> None:
        self.is_positive = PositivePairs(histories)
        self.n_items = histories.n_items
        self._histories = histories
        self._uniform = popularity_power == 0
        self._weights = torch.from_numpy(histories.popularity()).double().pow(popularity_power)
        self._threshold, self._alias = _alias_table(self._weights.numpy())
        self._probability = self._weights / self._weights.sum()
        own = np.bincount(
            histories.rows(), weights=self._probability.numpy()[histories.items], minlength=len(histories)
        )
        # How probable it is that a draw is rejected for a user; a user of all items has no negatives anyway.
        self._rejection = torch.from_numpy(own).clamp(max=1 - 1e-9)

    def log_inclusion(self, n: int) -> torch.Tensor:
        """Log probability of each item to be among `n` shared draws, shape ``(n_items,)``: for the logQ correction."""
        return torch.log(-torch.expm1(n * torch.log1p(-self._probability))).float()

    def log_expected(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """
        Log of how often each item is expected among a user's own draws, for the logQ correction.

        Parameters
        ----------
        users : torch.Tensor
            User rows, shape ``(n_users,)``.
        items : torch.Tensor
            What `sample` drew for them, shape ``(n_users, n)``.

        Returns
        -------
        torch.Tensor
            Shape ``(n_users, n)``, float32.
        """
        accepted = torch.log1p(-self._rejection[users]).unsqueeze(1)
        return (math.log(items.shape[1]) + self._probability[items].log() - accepted).float()

    def sample(self, users: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
        """
        Draw `n` negatives for each user.

        A user who has all items gets some of them.

        Parameters
        ----------
        users : torch.Tensor
            User rows, shape ``(n_users,)``, int64.
        n : int
            Negatives a user.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        torch.Tensor
            Item rows, shape ``(n_users, n)``, int64.
        """
        owners = users.repeat_interleave(n)
        items = self._draw(len(owners), generator)
        rejected = self.is_positive(owners, items).nonzero().squeeze(1)
        for _ in range(_MAX_ROUNDS):
            if not len(rejected):
                break
            items[rejected] = self._draw(len(rejected), generator)
            rejected = rejected[self.is_positive(owners[rejected], items[rejected])]
        for user in owners[rejected].unique().tolist():  # users of nearly all items: look at what is left
            weights = self._weights.clone()
            weights[torch.from_numpy(self._histories.take(np.array([user])).items)] = 0
            places = rejected[owners[rejected] == user]
            if weights.sum() > 0:
                items[places] = torch.multinomial(weights, len(places), replacement=True, generator=generator)
        return items.view(len(users), n)

    def sample_shared(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw `n` items for a whole batch without rejection; each is returned once, in order, shape ``(<= n,)``."""
        return self._draw(n, generator).unique()

    def _draw(self, n: int, generator: torch.Generator) -> torch.Tensor:
        if self._uniform:
            return torch.randint(0, self.n_items, (n,), generator=generator)
        items = torch.randint(0, self.n_items, (n,), generator=generator)
        keep = torch.rand(n, generator=generator) < self._threshold.index_select(0, items)
        return torch.where(keep, items, self._alias.index_select(0, items))


def _alias_table(weights: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Split each weight over slots of equal size, two items a slot, so that a draw takes two look-ups (Walker 1977)."""
    threshold = weights * (len(weights) / weights.sum())
    alias = np.arange(len(weights))
    light, heavy = list(np.flatnonzero(threshold < 1)), list(np.flatnonzero(threshold >= 1))
    while light and heavy:
        small, large = light.pop(), heavy[-1]
        alias[small] = large
        threshold[large] -= 1 - threshold[small]
        if threshold[large] < 1:
            light.append(heavy.pop())
    threshold[light + heavy] = 1  # what rounding leaves
    return torch.from_numpy(threshold).float(), torch.from_numpy(alias)
