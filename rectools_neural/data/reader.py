"""Datasets as a fitted model sees them: by its own ids, whatever the order of rows in the dataset."""

from __future__ import annotations

from dataclasses import dataclass, replace

import attr
import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.dataset.features import Features
from scipy import sparse

from .batches import HistoryBatch, ItemBatch, UserBatch
from .context import ContextEncoder
from .features import EncodedFeatures, FeatureEncoder
from .histories import Histories, read_weights


@dataclass(frozen=True)
class Pairs:
    """
    Interactions one by one, repeated ones too, by user and time.

    Parameters
    ----------
    users, items : np.ndarray
        Position of the user among the training users and row of the item, shape ``(n_pairs,)``.
    weights : np.ndarray or None
        Weight of each, float32, shape ``(n_pairs,)``; None where each counts 1.
    context : EncodedFeatures or None
        The situation of each; None for models that don't go by it.
    """

    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray | None
    context: EncodedFeatures | None = None

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Users:
    """
    Users with what is known of them.

    Parameters
    ----------
    rows : np.ndarray
        Rows in the fitted model, -1 for users that it was not fitted on, shape ``(n_users,)``.
    histories : Histories
        Their items, as rows in the fitted model.
    features : EncodedFeatures
        Their features.
    context : EncodedFeatures or None
        The situation in which each asks for recommendations.
    pairs : Pairs or None
        Of training users: the interactions one by one, for models that need more of them than the histories tell.
    """

    rows: np.ndarray
    histories: Histories
    features: EncodedFeatures
    context: EncodedFeatures | None = None
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> Users:
        """Users by position, without the pairs."""
        context = None if self.context is None else self.context.take(positions)
        return Users(self.rows[positions], self.histories.take(positions), self.features.take(positions), context)

    def batch(self) -> UserBatch:
        """Tensors of all these users."""
        context = None if self.context is None else self.context.batch()
        return UserBatch(torch.from_numpy(self.rows), history_batch(self.histories), self.features.batch(), context)


@dataclass(frozen=True)
class Items:
    """
    Items with what is known of them.

    Parameters
    ----------
    rows : np.ndarray
        Rows in the fitted model, -1 for items that it was not fitted on, shape ``(n_items,)``.
    features : EncodedFeatures
        Their features.
    """

    rows: np.ndarray
    features: EncodedFeatures

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> Items:
        """Items by position."""
        return Items(self.rows[positions], self.features.take(positions))

    def batch(self) -> ItemBatch:
        """Tensors of all these items."""
        rows = torch.from_numpy(self.rows)
        return ItemBatch(rows.clamp(min=0), (rows < 0).unsqueeze(1), self.features.batch())


@dataclass(frozen=True)
class Reading:
    """
    What a model reads of a dataset besides who interacted with what.

    Parameters
    ----------
    features, weights : bool
        The features of users and items; the weights of the interactions.
    pairs : bool
        Whether it is fitted on the interactions one by one.
    context_numeric, context_categorical : tuple of str
        Columns of the interactions that tell their situation.
    """

    features: bool = True
    weights: bool = False
    pairs: bool = False
    context_numeric: tuple[str, ...] = ()
    context_categorical: tuple[str, ...] = ()

    @property
    def context(self) -> bool:
        """Whether there are columns of context."""
        return bool(self.context_numeric or self.context_categorical)


@attr.s(slots=True, frozen=True)
class AlignedDataset(Dataset):  # type: ignore[misc]
    """A dataset whose items are those of the fitted model, in its order, followed by the dataset's other items."""

    items: Items = attr.ib(kw_only=True)
    # Whether it is for recommendations to items: RecTools asks for those of cold users and of cold items alike.
    is_for_items: bool = attr.ib(kw_only=True)
    # Situations in which users ask, by external id.
    context: pd.DataFrame | None = attr.ib(kw_only=True, default=None)


@dataclass
class DatasetReader:
    """
    Ids and feature encoders of a fitted model.

    Parameters
    ----------
    user_ids, item_ids : np.ndarray
        External ids of the users and items with interactions, by row.
    user_encoder, item_encoder : FeatureEncoder
        Encoders of their features.
    item_features : EncodedFeatures
        Features of the items by row: a later dataset need not contain them again.
    popularity : np.ndarray
        Training interactions of each item by row, int64.
    reading : Reading
        What the model reads.
    context_encoder : ContextEncoder or None
        Encoder of the context, where the model goes by it.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    user_encoder: FeatureEncoder
    item_encoder: FeatureEncoder
    item_features: EncodedFeatures
    popularity: np.ndarray
    reading: Reading
    context_encoder: ContextEncoder | None

    @classmethod
    def fit(
        cls, dataset: Dataset, earlier: DatasetReader | None = None, reading: Reading | None = None
    ) -> DatasetReader:
        """
        Learn ids and encoders, or extend earlier ones by the new users and items of a dataset.

        Raises
        ------
        ValueError
            If features hold NaN or differ from the earlier ones, or a column of context is not there.
        """
        reading = reading or Reading()
        users, items = (np.unique(dataset.interactions.df[column]) for column in (Columns.User, Columns.Item))
        # Sorted ids: the order of the rows in the dataset must not change the model.
        user_ids = _sorted(dataset.user_id_map.convert_to_external(users))
        item_ids = _sorted(dataset.item_id_map.convert_to_external(items))
        if earlier is None:
            user_encoder = FeatureEncoder.fit(dataset.user_features if reading.features else None, "user", users)
            item_encoder = FeatureEncoder.fit(dataset.item_features if reading.features else None, "item", items)
            features = item_encoder.missing(len(item_ids))
        else:
            user_ids = IdMap(earlier.user_ids).add_ids(user_ids).external_ids
            item_ids = IdMap(earlier.item_ids).add_ids(item_ids).external_ids
            user_encoder, item_encoder = earlier.user_encoder, earlier.item_encoder
            new_features = item_encoder.missing(len(item_ids) - len(earlier.item_ids))
            features = earlier.item_features.append(new_features)
        counts = np.bincount(dataset.interactions.df[Columns.Item], minlength=dataset.item_id_map.size)
        popularity = np.zeros(len(item_ids), np.int64)
        popularity[match(dataset.item_id_map.external_ids[items], item_ids)] = counts[items]
        context_encoder = earlier.context_encoder if earlier else None
        if reading.context and context_encoder is None:
            columns = reading.context_numeric, reading.context_categorical
            context_encoder = ContextEncoder.fit(dataset.interactions.df, *columns)
        encoders = user_encoder, item_encoder, features, popularity
        reader = cls(user_ids, item_ids, *encoders, reading, context_encoder)
        known = reader.items(dataset)
        reader.item_features = known.features.take(np.arange(len(item_ids)))
        return reader

    def items(self, dataset: Dataset) -> Items:
        """Items of the fitted model by row, followed by the dataset's other items by internal id."""
        rows = match(dataset.item_id_map.external_ids, self.item_ids)
        encoded = self.item_encoder.encode(self._seen(dataset.item_features), dataset.item_id_map.size)
        stored = self.item_features.append(encoded)
        # The dataset's own features of an item are newer than the stored ones.
        position = np.arange(len(self.item_ids))
        position[rows[rows >= 0]] = len(self.item_ids) + np.flatnonzero(rows >= 0)
        others = np.flatnonzero(rows < 0)
        all_rows = np.concatenate([np.arange(len(self.item_ids)), np.full(len(others), -1)])
        return Items(all_rows, stored.take(np.concatenate([position, len(self.item_ids) + others])))

    def users(self, dataset: Dataset, ids: np.ndarray) -> Users:
        """Users of a dataset by internal id; items that the model doesn't know are left out of the histories."""
        item_rows = match(dataset.item_id_map.external_ids, self.item_ids)
        return Users(
            match(dataset.user_id_map.external_ids[ids], self.user_ids),
            Histories.from_dataset(dataset, item_rows, len(self.item_ids), self.reading.weights).take(ids),
            self.user_encoder.encode(self._seen(dataset.user_features), dataset.user_id_map.size).take(ids),
        )

    def _seen(self, features: Features | None) -> Features | None:
        return features if self.reading.features else None

    def unknown_users(self, n: int) -> Users:
        """Users of whom nothing is known."""
        nothing = np.zeros(0, np.int64)
        histories = Histories(np.zeros(n + 1, np.int64), nothing, len(self.item_ids))
        return Users(np.full(n, -1), histories, self.user_encoder.missing(n))

    def training_users(self, dataset: Dataset) -> Users:
        """Users of a dataset with interactions, in the order of their rows."""
        active = np.unique(dataset.interactions.df[Columns.User])
        rows = match(dataset.user_id_map.external_ids[active], self.user_ids)
        active = active[np.argsort(rows)]
        users = self.users(dataset, active)
        return replace(users, pairs=self._pairs(dataset, active)) if self.reading.pairs else users

    def _pairs(self, dataset: Dataset, active: np.ndarray) -> Pairs:
        frame = dataset.interactions.df
        position = np.zeros(dataset.user_id_map.size, np.int64)
        position[active] = np.arange(len(active))
        users = position[frame[Columns.User].to_numpy()]
        items = match(dataset.item_id_map.external_ids, self.item_ids)[frame[Columns.Item].to_numpy()]
        # In the order of user, time and item: the order of rows must not change the model.
        order = np.lexsort((items, frame[Columns.Datetime].to_numpy(), users))
        weights = read_weights(dataset)[order].astype(np.float32) if self.reading.weights else None
        context = None
        if self.context_encoder is not None:
            context = self.context_encoder.encode(frame, "The interactions").take(order)
        return Pairs(users[order], items[order], weights, context)

    def context_of(self, dataset: AlignedDataset, external_ids: np.ndarray) -> EncodedFeatures | None:
        """Encode the situations in which users ask; None for models that don't go by it."""
        if self.context_encoder is None or dataset.context is None:
            return None
        return self.context_encoder.encode(dataset.context.reindex(external_ids), "The rows of `context`")

    def align(
        self, dataset: Dataset, is_for_items: bool = False, context: pd.DataFrame | None = None
    ) -> AlignedDataset:
        """Put the items of the fitted model first, in its order, and add those that the dataset lacks."""
        rows = match(dataset.item_id_map.external_ids, self.item_ids)
        others = np.flatnonzero(rows < 0)
        new_ids = rows.copy()
        new_ids[others] = len(self.item_ids) + np.arange(len(others))
        external = np.concatenate([self.item_ids, dataset.item_id_map.external_ids[others]])
        frame = dataset.interactions.df
        frame = frame.assign(**{Columns.Item: new_ids[frame[Columns.Item].to_numpy()]})
        return AlignedDataset(  # type: ignore[call-arg,misc]  # RecTools' attrs class is untyped
            dataset.user_id_map,
            IdMap(external),
            Interactions(frame),
            dataset.user_features,
            items=self.items(dataset),
            is_for_items=is_for_items,
            context=context,
        )


def history_batch(histories: Histories) -> HistoryBatch:
    """Tensors of all these histories."""
    weights = None if histories.weights is None else torch.from_numpy(histories.weights.astype(np.float32))
    return HistoryBatch(torch.from_numpy(histories.items), torch.from_numpy(histories.lengths), weights)


def match(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Position of each external id in `known`, -1 where it isn't there, shape ``(len(ids),)``, int64."""
    return IdMap(known).to_internal.index.get_indexer(ids).astype(np.int64)


def seen_matrix(dataset: Dataset, users: np.ndarray, candidates: np.ndarray) -> sparse.csr_matrix:
    """Interactions of users (internal ids) with candidates (internal ids), shape ``(n_users, n_candidates)``."""
    matrix = dataset.get_user_item_matrix(include_weights=False, include_warm_users=True, include_warm_items=True)
    return matrix[users][:, candidates]


def _sorted(ids: np.ndarray) -> np.ndarray:
    try:
        return np.sort(ids)
    except TypeError:  # ids of mixed types
        return ids[np.argsort(ids.astype(str), kind="stable")]
