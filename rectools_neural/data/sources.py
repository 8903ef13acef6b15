"""Sources of training batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from typing_extensions import Self

from ..config import NegativesConfig
from .batches import FeatureBatch, HistoryBatch, ItemBatch, NegativeBatch, TrainingBatch, UserBatch
from .features import EncodedFeatures
from .reader import Items, Pairs, Users, history_batch
from .sampling import NegativeSampler


@dataclass
class _Batches:
    """
    What all sources share: whose and which interactions, and the negatives.

    Parameters
    ----------
    users : Users
        The training users.
    items : Items
        The training items, by row.
    batch_size : int
        What a batch counts is up to the source.
    generator : torch.Generator
        Source of all randomness.
    sampler : NegativeSampler, optional
        Source of negatives; None for losses over the whole catalogue.
    n_negatives : int
        Negatives a pair, or candidates a batch.
    shared : bool
        Whether a batch shares its candidates.
    in_batch : bool
        Whether the candidates are the targets of the batch.
    entity_dropout : float
        Share of users that lose their id and history, of items that lose their id, and of users and items that lose
        their features, each drawn by itself. It trains the vectors of warm and cold entities.
    """

    users: Users
    items: Items
    batch_size: int
    generator: torch.Generator
    sampler: NegativeSampler | None = None
    n_negatives: int = 1
    shared: bool = False
    in_batch: bool = False
    entity_dropout: float = 0.0

    def __post_init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self._catalogue = replace(self.items.batch(), rows=None)
        # One more row without features, for those that lose them.
        self._user_features = _with_missing_row(self.users.features)
        self._item_features = _with_missing_row(self.items.features)

    def with_negatives(self, negatives: NegativesConfig) -> Self:
        """Return the same batches with negatives."""
        power = {"popularity": negatives.power, "in_batch": 1.0}.get(negatives.name, 0.0)
        return replace(
            self,
            sampler=NegativeSampler(self.users.histories, power),
            n_negatives=negatives.n * (negatives.pool if negatives.name == "hard" else 1),
            shared=negatives.shared,
            in_batch=negatives.name == "in_batch",
        )

    def share(self, rank: int, world_size: int) -> None:
        """
        Take a part of each batch from now on: that of one of the processes that train together.

        Parameters
        ----------
        rank, world_size : int
            Which part of how many. The batches of all processes together are `world_size` times as large, and what
            each draws at random besides the order of the examples is its own.
        """
        self._rank, self._world_size = rank, world_size

    @property
    def n_rows(self) -> int | None:
        """How many rows of a table a batch touches, at most; None where it may be all of them."""
        return None

    def __len__(self) -> int:
        return -(-self._n_examples() // (self.batch_size * self._world_size))

    def __iter__(self) -> Iterator[TrainingBatch]:
        # The order is the same in all processes, all else is drawn by each for itself.
        order = torch.randperm(self._n_examples(), generator=self.generator).numpy()
        self._draws = torch.Generator().manual_seed(draw_seed(self.generator) + self._rank)
        # Batches of one size, give or take one: a last batch of a single example would be all noise.
        for examples in np.array_split(order, len(self)):
            yield self._batch(np.array_split(examples, self._world_size)[self._rank])

    def _n_examples(self) -> int:
        raise NotImplementedError

    def _batch(self, examples: np.ndarray) -> TrainingBatch:
        raise NotImplementedError

    def _users(self, positions: np.ndarray, history: HistoryBatch, is_new: torch.Tensor) -> UserBatch:
        rows = torch.from_numpy(self.users.rows[positions]).masked_fill(is_new, -1)
        return UserBatch(rows, history, self._features(self._user_features, torch.from_numpy(positions)))

    def _with_items(
        self,
        users: UserBatch,
        positions: np.ndarray,
        rows: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> TrainingBatch:
        """Complete a batch by the items that it is about; `positions` are those of its users."""
        if self.sampler is None:
            return TrainingBatch(users, self._items(None), rows, targets, weights=weights)
        is_positive = None
        if self.in_batch or self.shared:
            negatives = targets.unique() if self.in_batch else self.sampler.sample_shared(self.n_negatives, self._draws)
            is_positive = self._mark(history_batch(self.users.histories.take(positions)), negatives)
            log_inclusion = self.sampler.log_inclusion(len(targets) if self.in_batch else self.n_negatives)[negatives]
        else:
            owners = torch.from_numpy(positions)[rows]
            negatives = self.sampler.sample(owners, self.n_negatives, self._draws)
            log_inclusion = self.sampler.log_expected(owners, negatives)
        items, place = self._compact(torch.cat([targets, negatives.flatten()]))
        targets, negatives = place[: len(targets)], place[len(targets) :].view(negatives.shape)
        return TrainingBatch(users, items, rows, targets, NegativeBatch(negatives, log_inclusion, is_positive), weights)

    def _mark(self, history: HistoryBatch, candidates: torch.Tensor) -> torch.Tensor:
        """Tell which candidates (each given once) are a user's own, shape ``(n_users, n_candidates)``."""
        place = torch.full((len(self.items),), -1)
        place[candidates] = torch.arange(len(candidates))
        column = place[history.items]
        own = torch.zeros(len(history.lengths), len(candidates), dtype=torch.bool)
        own[history.rows()[column >= 0], column[column >= 0]] = True
        return own

    def _compact(self, wanted: torch.Tensor) -> tuple[ItemBatch, torch.Tensor]:
        """Only the items that occur get a vector, unless that is most of the catalogue anyway."""
        if len(wanted) >= len(self.items):
            return self._items(None), wanted
        rows, place = wanted.unique(return_inverse=True)
        return self._items(rows), place

    def _items(self, rows: torch.Tensor | None) -> ItemBatch:
        if rows is None and not self.entity_dropout:
            return self._catalogue
        n = len(self.items) if rows is None else len(rows)
        positions = torch.arange(n) if rows is None else rows
        return ItemBatch(rows, self._drop(n).unsqueeze(1), self._features(self._item_features, positions))

    def _features(self, features: FeatureBatch, positions: torch.Tensor) -> FeatureBatch:
        without = self._drop(len(positions))
        return features.take(positions.masked_fill(without, len(features.numeric) - 1))

    def _drop(self, n: int) -> torch.Tensor:
        return torch.rand(n, generator=self._draws) < self.entity_dropout


@dataclass
class UserBatches(_Batches):
    """
    Batches of users: each sees a part of the history and predicts all of it, or the hidden part.

    Parameters
    ----------
    users, items, batch_size, generator, sampler, n_negatives, shared, in_batch, entity_dropout
        As for all sources; a batch counts users.
    hidden : float
        Share of each history that is hidden.
    predict_visible : bool
        Whether the visible items are to be predicted as well. A loss that weighs an item against a whole catalogue
        learns from them; one that compares it with a few negatives would only learn that it is there.
    positives_per_user : int, optional
        Predict this many of the items at most, drawn anew each epoch; all by default.
    noise : float
        Probability of an item that is not in a history to be seen in it.
    """

    hidden: float = 0.0
    predict_visible: bool = True
    positives_per_user: int | None = None
    noise: float = 0.0

    def _n_examples(self) -> int:
        return len(self.users)

    def _batch(self, examples: np.ndarray) -> TrainingBatch:
        history = history_batch(self.users.histories.take(examples))
        hide = torch.rand(len(history.items), generator=self._draws) < self.hidden
        rows, targets = history.rows(), history.items
        predicted: torch.Tensor | slice = slice(None)
        if not self.predict_visible:
            hide = self._hide_at_least_one(history, hide)
            predicted = hide
        if self.positives_per_user is not None:
            chosen = self._choose(rows[predicted], len(examples), self.positives_per_user)
            mask = torch.zeros_like(hide)
            mask[predicted] = chosen
            predicted = mask
        is_new = self._drop(len(examples))
        visible = self._with_noise(history, history.keep(~hide & ~is_new[rows]))
        users = self._users(examples, visible, is_new)
        weights = None if history.weights is None else history.weights[predicted]
        return self._with_items(users, examples, rows[predicted], targets[predicted], weights)

    def _with_noise(self, whole: HistoryBatch, visible: HistoryBatch) -> HistoryBatch:
        """Add items that the users don't have, each with the same probability."""
        if not self.noise:
            return visible
        n_items = len(self.items)
        n_pairs = torch.tensor(float(len(whole.lengths) * n_items), dtype=torch.float64)
        n_added = int(torch.binomial(n_pairs, torch.tensor(self.noise).double(), generator=self._draws))
        added = torch.randint(int(n_pairs), (n_added,), generator=self._draws).unique()
        added = added[torch.isin(added, whole.rows() * n_items + whole.items, invert=True)]
        rows, items = torch.cat([visible.rows(), added // n_items]), torch.cat([visible.items, added % n_items])
        order = rows.argsort(stable=True)
        weights = visible.weights
        if weights is not None:
            weights = torch.cat([weights, torch.ones(len(added))])[order]
        return HistoryBatch(items[order], torch.bincount(rows, minlength=len(whole.lengths)), weights)

    def _hide_at_least_one(self, history: HistoryBatch, hide: torch.Tensor) -> torch.Tensor:
        rows = history.rows()
        first = self._choose(rows, len(history.lengths), 1)
        none_hidden = torch.zeros_like(history.lengths).index_add_(0, rows, hide.long()) == 0
        return hide | (first & none_hidden[rows])

    def _choose(self, rows: torch.Tensor, n_users: int, n: int) -> torch.Tensor:
        """Mark `n` random entries of each user, or all where there are fewer; `rows` is sorted."""
        lengths = torch.bincount(rows, minlength=n_users)
        first = lengths.cumsum(0) - lengths
        chosen = torch.zeros(len(rows), dtype=torch.bool)
        if n == 1:  # needs no shuffling
            place = torch.rand(n_users, generator=self.generator, dtype=torch.float64).mul_(lengths).long()
            chosen[(first + place)[lengths > 0]] = True
            return chosen
        shuffled = torch.rand(len(rows), generator=self.generator, dtype=torch.float64).add_(rows).argsort()
        chosen[shuffled[torch.arange(len(rows)) - first[rows] < n]] = True
        return chosen


@dataclass
class PairBatches(_Batches):
    """
    Batches of interactions: users that have them, without histories, in which the pair to predict would stand.

    These are the pairs of the users where there are any, else those of the histories.

    Each user of a batch is there once; `rows` of the batch tell whose each pair is.

    Parameters
    ----------
    users, items, batch_size, generator, sampler, n_negatives, shared, in_batch, entity_dropout
        As for all sources; a batch counts interactions.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        histories = self.users.histories
        weights = None if histories.weights is None else histories.weights.astype(np.float32)
        self._pairs = self.users.pairs or Pairs(histories.rows(), histories.items, weights)
        self._context = None if self._pairs.context is None else self._pairs.context.batch()

    @property
    def n_rows(self) -> int | None:
        """How many rows of a table a batch touches, at most, each feature having a single value."""
        return None if self.shared else self.batch_size * (1 if self.sampler is None else 1 + self.n_negatives)

    def _n_examples(self) -> int:
        return len(self._pairs)

    def _batch(self, examples: np.ndarray) -> TrainingBatch:
        pairs = self._pairs
        positions, rows = np.unique(pairs.users[examples], return_inverse=True)
        nothing = HistoryBatch(torch.zeros(0, dtype=torch.int64), torch.zeros(len(positions), dtype=torch.int64))
        users = self._users(positions, nothing, self._drop(len(positions)))
        weights = None if pairs.weights is None else torch.from_numpy(pairs.weights[examples])
        context = None if self._context is None else self._context.take(torch.from_numpy(examples))
        rows, targets = torch.from_numpy(rows), torch.from_numpy(pairs.items[examples])
        if self.sampler is None:
            items, targets = self._compact(targets)
            return TrainingBatch(users, items, rows, targets, weights=weights, context=context)
        return replace(self._with_items(users, positions, rows, targets, weights), context=context)


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator."""
    return int(torch.randint(2**62, (), generator=generator))


def _with_missing_row(features: EncodedFeatures) -> FeatureBatch:
    return features.append(EncodedFeatures.missing(features.schema, 1)).batch()
