"""Base of the models that score by a vector for the user and one for the item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic

import numpy as np
import torch
import torch.nn.functional as F
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from scipy import sparse
from torch import nn

from ..config import NegativesConfig
from ..data.batches import TrainingBatch
from ..data.features import EncodedFeatures
from ..data.reader import Items, Users, match
from ..ranking import Ranking, rank_vectors
from ..training import losses
from .base import NeuralConfig, NeuralModelBase
from .pack import LinearParts

_MAX_TABLE = 4 * 2**30  # bytes that the scores of a batch may take, with their gradient
_PAIRS_AT_ONCE = 1 << 16
_CHUNK = 4096  # users or items encoded at once: bounds the memory of sequence encoders


class TwoSidedModel(NeuralModelBase[NeuralConfig], Generic[NeuralConfig]):
    """
    A model whose score is the dot product, or minus the distance, of a user vector and an item vector.

    The module of a family has ``user_vectors(UserBatch)``, ``item_vectors(ItemBatch)``, ``euclidean`` (whether the
    score is minus the distance) and ``has_bias`` (whether the last coordinate of an item is a bias). One whose scores
    are linear says so by ``is_linear``, and takes them apart by ``linear_parts(UserBatch, ItemBatch)``.
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

    def _prepare(self, module: Any, items: Items) -> torch.Tensor:
        return _item_vectors(module, items)

    def _rank_for_users(
        self, module: Any, users: Users, prepared: torch.Tensor, k: int, seen: sparse.csr_matrix | None
    ) -> Ranking:
        return rank_vectors(_user_vectors(module, users), prepared, k, module.euclidean, seen)

    def _score_pairs(
        self, users: Users, items: Items, rows: np.ndarray, columns: np.ndarray, context: EncodedFeatures | None
    ) -> np.ndarray:
        def infer(module: Any) -> np.ndarray:
            subjects, candidates, parts = _user_vectors(module, users), _item_vectors(module, items), [torch.zeros(0)]
            for start in range(0, len(rows), _PAIRS_AT_ONCE):
                part = slice(start, start + _PAIRS_AT_ONCE)
                of_users, of_items = (
                    vectors[torch.from_numpy(places[part]).to(vectors.device)]
                    for vectors, places in ((subjects, rows), (candidates, columns))
                )
                parts.append(_pair_scores(of_users, of_items, module.euclidean).cpu())
            return torch.cat(parts).numpy()

        return self._on_device(infer)

    def _linear_parts(self, user: Users, item: Items) -> LinearParts | None:
        def take_apart(module: Any) -> LinearParts:
            device = next(module.parameters()).device
            parts: LinearParts = module.linear_parts(user.batch().to(device), item.batch().to(device))
            return parts

        return self._on_device(take_apart) if getattr(self._fitted.module, "is_linear", False) else None

    def _rank_for_items(self, module: Any, targets: Items, items: Items, k: int) -> Ranking:
        subjects, candidates = _item_vectors(module, targets), _item_vectors(module, items)
        if module.has_bias:
            subjects, candidates = subjects[:, :-1], candidates[:, :-1]
        if not module.euclidean:
            subjects, candidates = F.normalize(subjects, dim=1), F.normalize(candidates, dim=1)
        return rank_vectors(subjects, candidates, k, module.euclidean)


def check_table(loss: str, n_users: int, n_items: int, width: int = 1) -> None:
    """Raise where the scores of a batch, each of `width` numbers, and their gradient would not fit into memory."""
    needed = 2 * 4 * n_users * n_items * width
    if needed > _MAX_TABLE:
        units = f" by {width} hidden units each" if width > 1 else ""
        raise ValueError(
            f"loss `{loss}` scores {n_items} items for the {n_users} users of a batch{units}, which takes "
            f"{needed / 2**30:.1f} GiB with the gradient: lower `batch_size`, or set `loss` or `negatives` to what "
            "needs fewer scores"
        )


def catalogue_loss(loss: Any, users: torch.Tensor, items: torch.Tensor, batch: TrainingBatch) -> torch.Tensor:
    """
    Loss of a batch with dot scores over the whole catalogue.

    Parameters
    ----------
    loss : SquaredLoss or LogisticLoss or SoftmaxLoss
        Which one.
    users, items : torch.Tensor
        Vectors of the users of the batch and of all items, shapes ``(n_users, dim)`` and ``(n_items, dim)``.
    batch : TrainingBatch
        What to predict.

    Returns
    -------
    torch.Tensor
        A scalar.
    """
    if loss.name == "squared":
        return losses.squared_loss(users, items, batch.rows, batch.targets, loss.unobserved_weight, batch.weights)
    over_logits = losses.logistic_loss if loss.name == "logistic" else losses.softmax_loss
    return over_logits(users @ items.T, batch.rows, batch.targets, batch.weights)


def sampled_loss(
    loss: Any,
    negatives: NegativesConfig,
    users: torch.Tensor,
    items: torch.Tensor,
    batch: TrainingBatch,
    euclidean: bool = False,
) -> torch.Tensor:
    """
    Loss of a batch against its negatives.

    Parameters
    ----------
    loss : SampledSoftmaxLoss or BPRLoss or BCELoss or TripletLoss
        Which one.
    negatives : NegativesConfig
        Where the negatives of the batch come from.
    users, items : torch.Tensor
        Vectors of the users and of the items of the batch, shapes ``(n_users, dim)`` and ``(n_items, dim)``.
    batch : TrainingBatch
        What to predict.
    euclidean : bool
        Whether a score is minus the distance, not the dot product.

    Returns
    -------
    torch.Tensor
        A scalar.
    """
    drawn = batch.negatives
    assert drawn is not None
    owners = F.embedding(batch.rows, users)
    positive = _pair_scores(owners, F.embedding(batch.targets, items), euclidean)
    others = F.embedding(drawn.items, items)
    if drawn.is_positive is not None:  # candidates shared by the users of the batch
        negative = -torch.cdist(users, others) if euclidean else users @ others.T
    else:
        negative = _pair_scores(owners.unsqueeze(1), others, euclidean)
    return loss_of_scores(loss, negatives, positive, negative, batch)


def loss_of_scores(
    loss: Any, negatives: NegativesConfig, positive: torch.Tensor, negative: torch.Tensor, batch: TrainingBatch
) -> torch.Tensor:
    """
    Loss of a batch from the scores of its pairs and negatives.

    Parameters
    ----------
    loss, negatives, batch
        As for `sampled_loss`.
    positive : torch.Tensor
        Scores of the pairs, shape ``(n_pairs,)``.
    negative : torch.Tensor
        Scores of the negatives: of each pair, shape ``(n_pairs, n_negatives)``, or those of each user where the batch
        shares them, shape ``(n_users, n_candidates)``.

    Returns
    -------
    torch.Tensor
        A scalar.
    """
    drawn = batch.negatives
    assert drawn is not None
    rows = torch.arange(len(negative), device=negative.device)
    if drawn.is_positive is not None:
        negative, rows = negative.masked_fill(drawn.is_positive, -torch.inf), batch.rows
    if loss.name == "sampled_softmax":
        return losses.sampled_softmax_loss(positive, negative, rows, drawn.log_inclusion, batch.weights)
    if negatives.name == "hard":
        negative = negative.topk(min(negatives.n, negative.shape[1]), dim=1).values
    if loss.name == "bpr":
        return losses.bpr_loss(positive, negative[rows])
    if loss.name == "bce":
        return losses.bce_loss(positive, negative[rows])
    return losses.triplet_loss(positive, negative[rows], loss.margin, loss.mining)


def _pair_scores(users: torch.Tensor, items: torch.Tensor, euclidean: bool) -> torch.Tensor:
    return -(users - items).norm(dim=-1) if euclidean else (users * items).sum(dim=-1)


def _user_vectors(module: Any, users: Users) -> torch.Tensor:
    return encode_in_chunks(module, module.user_vectors, users).float()


def _item_vectors(module: Any, items: Items) -> torch.Tensor:
    return encode_in_chunks(module, module.item_vectors, items).float()


def encode_in_chunks(module: nn.Module, encode: Callable[[Any], torch.Tensor], entities: Users | Items) -> torch.Tensor:
    """Apply a part of a module to users or items in chunks, shape ``(n_entities, dim)``."""
    return torch.cat([encode(batch) for batch in in_chunks(module, entities)])


def in_chunks(module: nn.Module, entities: Users | Items) -> Iterator[Any]:
    """Batches of users or items where the module is, at least one."""
    device = next(module.parameters()).device
    positions = np.arange(len(entities))
    for start in range(0, max(len(positions), 1), _CHUNK):
        yield entities.take(positions[start : start + _CHUNK]).batch().to(device)
