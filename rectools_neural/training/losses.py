"""Every loss of the package: pure functions on score tensors, each averaged over the users of a batch or its pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Scores of a matrix product that cost as much as one gathered pair, forward and backward.
_DENSE_RATIO = 64


def squared_loss(
    users: torch.Tensor,
    items: torch.Tensor,
    rows: torch.Tensor,
    targets: torch.Tensor,
    unobserved_weight: float,
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Weighted squared loss over the whole catalogue, without negatives (Hu et al. 2008, Chen et al. 2020).

    The sum over all items of ``w (y - s)^2``, with ``y = 1, w = 1`` for the targets and ``y = 0,
    w = unobserved_weight`` for the rest. With dot scores the sum of squares over the catalogue is ``u' (V'V) u``:
    the cost of the negatives is one small product, whatever the size of the catalogue. Where the pairs are dense, the
    table of all scores is the faster way to the same sum.

    Parameters
    ----------
    users : torch.Tensor
        Vectors of the batch, shape ``(n_users, dim)``.
    items : torch.Tensor
        Vectors of the whole catalogue, shape ``(n_items, dim)``.
    rows, targets : torch.Tensor
        User row (in the batch) and item row of each positive pair, shape ``(n_pairs,)``.
    unobserved_weight : float
        Weight of the items that are not targets.
    values : torch.Tensor, optional
        What the scores of the pairs should be, shape ``(n_pairs,)``; 1 by default.

    Returns
    -------
    torch.Tensor
        Mean over the users, a scalar.
    """
    if len(users) * len(items) <= _DENSE_RATIO * len(rows):
        return squared_table_loss(users @ items.T, rows, targets, unobserved_weight, values)
    scores = pair_scores(users, items, rows, targets)
    everything = ((users @ (items.T @ items)) * users).sum()
    return _squared(scores, everything, unobserved_weight, values) / len(users)


def squared_table_loss(
    table: torch.Tensor,
    rows: torch.Tensor,
    targets: torch.Tensor,
    unobserved_weight: float,
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `squared_loss`, from the scores of all items for the users of a batch, shape ``(n_users, n_items)``."""
    return _squared(table[rows, targets], table.square().sum(), unobserved_weight, values) / len(table)


def softmax_loss(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Multinomial log likelihood over the whole catalogue (Liang et al. 2018).

    Parameters
    ----------
    logits : torch.Tensor
        Shape ``(n_users, n_items)``.
    rows, targets : torch.Tensor
        User row (in the batch) and item row of each positive pair, shape ``(n_pairs,)``.
    weights : torch.Tensor, optional
        How often each pair counts, shape ``(n_pairs,)``; once by default.

    Returns
    -------
    torch.Tensor
        Mean over the users, a scalar.
    """
    counts = torch.bincount(rows, weights, minlength=len(logits))
    return (counts * logits.logsumexp(dim=1)).sum().sub(_weighted(logits[rows, targets], weights).sum()) / len(logits)


def logistic_loss(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Binary cross entropy over the whole catalogue.

    Parameters
    ----------
    logits : torch.Tensor
        Shape ``(n_users, n_items)``.
    rows, targets : torch.Tensor
        User row (in the batch) and item row of each positive pair, shape ``(n_pairs,)``.
    weights : torch.Tensor, optional
        How often each positive pair counts, shape ``(n_pairs,)``; once by default.

    Returns
    -------
    torch.Tensor
        Mean over the users, a scalar.
    """
    scores = logits[rows, targets]
    positive = _weighted(F.softplus(-scores), weights) - F.softplus(scores)
    return (positive.sum() + F.softplus(logits).sum()) / len(logits)


def sampled_softmax_loss(
    positive: torch.Tensor,
    negative: torch.Tensor,
    rows: torch.Tensor,
    log_inclusion: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Cross entropy of each positive among its sampled negatives with the logQ correction (Bengio and Senécal 2008).

    A sampled negative stands for all items like it: its weight is one over its probability to be drawn, so that the
    sum over the sample estimates the sum over the catalogue.

    Parameters
    ----------
    positive : torch.Tensor
        Scores of the positive pairs, shape ``(n_pairs,)``.
    negative : torch.Tensor
        Scores of sets of negatives, ``-inf`` for those that don't count, shape ``(n_sets, n_negatives)``.
    rows : torch.Tensor
        Which set belongs to each pair, shape ``(n_pairs,)``.
    log_inclusion : torch.Tensor
        Log of how often each negative is expected in its set, of a shape that broadcasts to `negative`.
    weights : torch.Tensor, optional
        How often each pair counts, shape ``(n_pairs,)``; once by default.

    Returns
    -------
    torch.Tensor
        Mean over the pairs, a scalar.
    """
    # One sum a set, not one a pair: pairs of one user share their negatives.
    everything_else = (negative - log_inclusion).logsumexp(dim=1)
    return _weighted(F.softplus(everything_else[rows] - positive), weights).mean()


def bpr_loss(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """
    Bayesian personalised ranking, ``-log sigmoid(positive - negative)`` (Rendle et al. 2009).

    Parameters
    ----------
    positive : torch.Tensor
        Scores of the positive pairs, shape ``(n_pairs,)``.
    negative : torch.Tensor
        Scores of their negatives, ``-inf`` for those that don't count, shape ``(n_pairs, n_negatives)``.

    Returns
    -------
    torch.Tensor
        Mean over the pairs and negatives, a scalar.
    """
    return _mean_of_valid(F.softplus(negative - positive.unsqueeze(1)), negative)


def bce_loss(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """
    Binary cross entropy of positives against sampled negatives, each side with half of the weight.

    Parameters
    ----------
    positive : torch.Tensor
        Logits of the positive pairs, shape ``(n_pairs,)``.
    negative : torch.Tensor
        Logits of their negatives, ``-inf`` for those that don't count, shape ``(n_pairs, n_negatives)``.

    Returns
    -------
    torch.Tensor
        Mean over the positives plus mean over the negatives, a scalar.
    """
    return F.softplus(-positive).mean() + _mean_of_valid(F.softplus(negative), negative)


def triplet_loss(positive: torch.Tensor, negative: torch.Tensor, margin: float, mining: str) -> torch.Tensor:
    """
    Triplet margin loss ``max(0, margin - positive + negative)`` with mining (Schroff et al. 2015).

    Parameters
    ----------
    positive : torch.Tensor
        Scores of the positive pairs (a distance enters with a minus sign), shape ``(n_pairs,)``.
    negative : torch.Tensor
        Scores of their negatives, ``-inf`` for those that don't count, shape ``(n_pairs, n_negatives)``.
    margin : float
        By how much the positive must win.
    mining : {"random", "semi_hard", "hard"}
        Which negatives of a pair count: all; the best that still loses to the positive, or, where none loses,
        the least wrong one; the best.

    Returns
    -------
    torch.Tensor
        Mean over the pairs (and negatives, with random mining), a scalar.
    """
    if mining == "random":
        return _mean_of_valid(F.relu(margin - positive.unsqueeze(1) + negative), negative)
    hardest = negative.max(dim=1).values
    if mining == "semi_hard":
        loses = negative < positive.unsqueeze(1)
        best_loser = negative.masked_fill(~loses, -torch.inf).max(dim=1).values
        least_wrong = negative.masked_fill(loses, torch.inf).min(dim=1).values
        hardest = torch.where(best_loser.isfinite(), best_loser, least_wrong)
    return _mean_of_valid(F.relu(margin - positive + hardest), hardest)


def info_nce_loss(one: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Cross entropy of finding the same entity in another view by the cosine (van den Oord et al. 2018).

    Parameters
    ----------
    one, other : torch.Tensor
        Two views of the same entities, shape ``(n_entities, dim)``.
    temperature : float
        What the cosines are divided by.

    Returns
    -------
    torch.Tensor
        Mean over the entities, a scalar.
    """
    logits = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(one), device=one.device))


def pair_scores(users: torch.Tensor, items: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Dot products of the pairs ``(users[rows], items[targets])``, shape ``(n_pairs,)``."""
    return (users.index_select(0, rows) * items.index_select(0, targets)).sum(dim=1)


def sampled_squared_loss(
    positive: torch.Tensor, candidates: torch.Tensor, log_inclusion: torch.Tensor, unobserved_weight: float
) -> torch.Tensor:
    """
    Estimate `squared_loss` from a sample of the catalogue, without bias.

    Parameters
    ----------
    positive : torch.Tensor
        Scores of the positive pairs, shape ``(n_pairs,)``.
    candidates : torch.Tensor
        Scores of the sampled items, a user's own ones among them, shape ``(n_users, n_candidates)``.
    log_inclusion : torch.Tensor
        Log probability of each to be in the sample, shape ``(n_candidates,)``.
    unobserved_weight : float
        Weight of the items that are not targets.

    Returns
    -------
    torch.Tensor
        Mean over the users, a scalar.
    """
    everything = (candidates.square() * (-log_inclusion).exp()).sum()
    return _squared(positive, everything, unobserved_weight, None) / len(candidates)


def _squared(
    scores: torch.Tensor, everything: torch.Tensor, unobserved_weight: float, values: torch.Tensor | None
) -> torch.Tensor:
    errors = scores - (1 if values is None else values)
    return (errors.square() - unobserved_weight * scores.square()).sum() + unobserved_weight * everything


def _weighted(values: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return values if weights is None else values * weights


def _mean_of_valid(values: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    valid = negative.isfinite()
    return values.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)
