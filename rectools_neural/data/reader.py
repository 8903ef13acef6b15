"""Datasets as a fitted model sees them: by its own ids, whatever the order of rows in the dataset."""

from __future__ import annotations

from dataclasses import dataclass

import attr
import numpy as np
import torch
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.dataset.features import Features
from scipy import sparse

from .batches import HistoryBatch, ItemBatch, UserBatch
from .features import EncodedFeatures, FeatureEncoder
from .histories import Histories


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
    """

    rows: np.ndarray
    histories: Histories
    features: EncodedFeatures

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> Users:
        """Users by position."""
        return Users(self.rows[positions], self.histories.take(positions), self.features.take(positions))

    def batch(self) -> UserBatch:
        """Tensors of all these users."""
        return UserBatch(torch.from_numpy(self.rows), history_batch(self.histories), self.features.batch())


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


@attr.s(slots=True, frozen=True)
class AlignedDataset(Dataset):  # type: ignore[misc]
    """A dataset whose items are those of the fitted model, in its order, followed by the dataset's other items."""

    items: Items = attr.ib(kw_only=True)
    # Whether it is for recommendations to items: RecTools asks for those of cold users and of cold items alike.
    is_for_items: bool = attr.ib(kw_only=True)


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
    use_features, use_weights : bool
        Whether features are read, and whether the weights of the interactions are.
    """

    user_ids: np.ndarray
    item_ids: np.ndarray
    user_encoder: FeatureEncoder
    item_encoder: FeatureEncoder
    item_features: EncodedFeatures
    popularity: np.ndarray
    use_features: bool = True
    use_weights: bool = False

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        earlier: DatasetReader | None = None,
        use_features: bool = True,
        use_weights: bool = False,
    ) -> DatasetReader:
        """
        Learn ids and encoders, or extend earlier ones by the new users and items of a dataset.

        Raises
        ------
        ValueError
            If features hold NaN or differ from the earlier ones.
        """
        users, items = (np.unique(dataset.interactions.df[column]) for column in (Columns.User, Columns.Item))
        # Sorted ids: the order of the rows in the dataset must not change the model.
        user_ids = _sorted(dataset.user_id_map.convert_to_external(users))
        item_ids = _sorted(dataset.item_id_map.convert_to_external(items))
        if earlier is None:
            user_encoder = FeatureEncoder.fit(dataset.user_features if use_features else None, "user", users)
            item_encoder = FeatureEncoder.fit(dataset.item_features if use_features else None, "item", items)
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
        reader = cls(user_ids, item_ids, user_encoder, item_encoder, features, popularity, use_features, use_weights)
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
            Histories.from_dataset(dataset, item_rows, len(self.item_ids), self.use_weights).take(ids),
            self.user_encoder.encode(self._seen(dataset.user_features), dataset.user_id_map.size).take(ids),
        )

    def _seen(self, features: Features | None) -> Features | None:
        return features if self.use_features else None

    def unknown_user(self) -> Users:
        """One user of whom nothing is known."""
        nothing = np.zeros(0, np.int64)
        histories = Histories(np.zeros(2, np.int64), nothing, len(self.item_ids))
        return Users(np.array([-1]), histories, self.user_encoder.missing(1))

    def training_users(self, dataset: Dataset) -> Users:
        """Users of a dataset with interactions, in the order of their rows."""
        active = np.unique(dataset.interactions.df[Columns.User])
        rows = match(dataset.user_id_map.external_ids[active], self.user_ids)
        return self.users(dataset, active[np.argsort(rows)])

    def align(self, dataset: Dataset, is_for_items: bool = False) -> AlignedDataset:
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
