"""Base of the models that score by a vector for the user and one for the item."""

from __future__ import annotations

from typing import Any, Generic

import numpy as np
import torch
import torch.nn.functional as F
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from scipy import sparse

from ..data.batches import TrainingBatch
from ..data.reader import Items, Users, match
from ..ranking import Ranking, rank_vectors
from ..training import losses
from .base import NeuralConfig, NeuralModelBase

_CHUNK = 4096  # users or items encoded at once: bounds the memory of sequence encoders


class TwoSidedModel(NeuralModelBase[NeuralConfig], Generic[NeuralConfig]):
    """
    A model whose score is the dot product, or minus the distance, of a user vector and an item vector.

    The module of a family has ``user_vectors(UserBatch)``, ``item_vectors(ItemBatch)``, ``euclidean`` (whether the
    score is minus the distance) and ``has_bias`` (whether the last coordinate of an item is a bias).
    """

    def get_vectors(self, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """
        Return the vectors of all users and items of a dataset, ready for an index of nearest neighbours.

        The score of a pair is the dot product of its vectors (minus their distance for Euclidean similarity).

        Parameters
        ----------
        dataset : Dataset
            Users with their histories and features, items with their features.

        Returns
        -------
        user_vectors, item_vectors : np.ndarray
            By internal id of the dataset, shapes ``(n_users, dim)`` and ``(n_items, dim)``, float32.

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        """
        if not self.is_fitted:
            raise NotFittedError(type(self).__name__)
        reader = self._fitted.reader
        aligned = reader.align(dataset)
        users = reader.users(aligned, np.arange(dataset.user_id_map.size))
        place = match(dataset.item_id_map.external_ids, aligned.item_id_map.external_ids)
        items = aligned.items.take(place)
        user_vectors, item_vectors = self._on_device(
            lambda module: (_user_vectors(module, users), _item_vectors(module, items))
        )
        return user_vectors.cpu().numpy(), item_vectors.cpu().numpy()

    def _rank_for_users(
        self, module: Any, users: Users, items: Items, k: int, seen: sparse.csr_matrix | None
    ) -> Ranking:
        candidates = _item_vectors(module, items)
        return rank_vectors(_user_vectors(module, users), candidates, k, module.euclidean, seen)

    def _rank_for_items(self, module: Any, targets: Items, items: Items, k: int) -> Ranking:
        subjects, candidates = _item_vectors(module, targets), _item_vectors(module, items)
        if module.has_bias:
            subjects, candidates = subjects[:, :-1], candidates[:, :-1]
        if not module.euclidean:
            subjects, candidates = F.normalize(subjects, dim=1), F.normalize(candidates, dim=1)
        return rank_vectors(subjects, candidates, k, module.euclidean)


def catalogue_loss(loss: Any, users: torch.Tensor, items: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
    """
    Loss of a batch with dot scores: over the whole catalogue, or over a sample of it that the batch shares.

    Parameters
    ----------
    loss : SquaredLoss or LogisticLoss or SoftmaxLoss or SampledSoftmaxLoss
        Which one.
    users, items : torch.Tensor
        Vectors of the users and of the items of the batch, shapes ``(n_users, dim)`` and ``(n_items, dim)``.
    batch : TrainingBatch
        What to predict.

    Returns
    -------
    torch.Tensor
        A scalar.
    """
    rows, targets, weights = batch.rows, batch.targets, batch.weights
    if loss.name == "squared":
        return losses.squared_loss(users, items, rows, targets, loss.unobserved_weight, weights)
    if loss.name == "logistic":
        return losses.logistic_loss(users @ items.T, rows, targets, weights)
    if loss.name == "softmax":
        return losses.softmax_loss(users @ items.T, rows, targets, weights)
    assert batch.negatives is not None
    assert batch.negatives.is_positive is not None
    negative = (users @ F.embedding(batch.negatives.items, items).T).masked_fill(
        batch.negatives.is_positive, -torch.inf
    )
    positive = losses.pair_scores(users, items, rows, targets)
    return losses.sampled_softmax_loss(positive, negative, rows, batch.negatives.log_inclusion, weights)


def _user_vectors(module: Any, users: Users) -> torch.Tensor:
    return _in_chunks(module, module.user_vectors, users)


def _item_vectors(module: Any, items: Items) -> torch.Tensor:
    return _in_chunks(module, module.item_vectors, items)


def _in_chunks(module: Any, encode: Any, entities: Users | Items) -> torch.Tensor:
    device = next(module.parameters()).device
    positions = np.arange(len(entities))
    chunks = [positions[start : start + _CHUNK] for start in range(0, max(len(positions), 1), _CHUNK)]
    return torch.cat([encode(entities.take(chunk).batch().to(device)).float() for chunk in chunks])
