"""Exact top-k for any scorer, in chunks, so that memory stays bounded whatever the number of users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse

Ranking = tuple[np.ndarray, np.ndarray, np.ndarray]
#: Ranks for subjects: them, how many candidates, what they must not get.
Ranker = Callable[[Any, int, "sparse.csr_matrix | None"], Ranking]

#: Scores held at once: 4 M float32 are 16 MB. Larger buffers leave the cache, and page faults eat the gain.
MAX_SCORES = 1 << 22

_BLOCK = 32  # columns whose maximum stands for them in the search for the best

_PRESELECTED = 4  # candidates of the bfloat16 pass, as a multiple of k ...
_PRESELECTED_MIN = 128  # ... and at least
_FEW = 64  # subjects: for fewer, another copy of the candidates costs more than it gains


def rank(
    score: Callable[[slice], torch.Tensor],
    n_subjects: int,
    n_candidates: int,
    k: int,
    seen: sparse.csr_matrix | None = None,
    max_scores: int = MAX_SCORES,
) -> Ranking:
    """
    Find the `k` best candidates of each subject.

    Parameters
    ----------
    score : callable
        Gives the scores of a slice of subjects for all candidates, shape ``(n_rows, n_candidates)``; the larger
        the better. The tensor may be overwritten.
    n_subjects, n_candidates : int
        How many there are.
    k : int
        How many to keep for each subject; fewer where fewer candidates are left.
    seen : csr_matrix, optional
        Pairs that must not be ranked, shape ``(n_subjects, n_candidates)``.
    max_scores : int
        How many scores may be held at once.

    Returns
    -------
    subjects, candidates, scores : np.ndarray
        Flat, grouped by subject in the given order, best first.
    """
    return _flatten(*_top(score, n_subjects, min(k, n_candidates), seen, max(1, max_scores // max(n_candidates, 1))))


def pick(
    score: Callable[[slice], torch.Tensor],
    n_subjects: int,
    n_candidates: int,
    rows: np.ndarray,
    columns: np.ndarray,
    max_scores: int = MAX_SCORES,
) -> np.ndarray:
    """
    Score some pairs with a scorer of all candidates.

    Parameters
    ----------
    score, n_subjects, n_candidates, max_scores
        As for `rank`.
    rows, columns : np.ndarray
        Subject and candidate of each pair, shape ``(n_pairs,)``.

    Returns
    -------
    np.ndarray
        Shape ``(n_pairs,)``, float32.
    """
    found = np.zeros(len(rows), np.float32)
    order = np.argsort(rows, kind="stable")
    chunk = max(1, max_scores // max(n_candidates, 1))
    for start in range(0, n_subjects, chunk):
        span = slice(start, min(start + chunk, n_subjects))
        places = order[np.searchsorted(rows, span.start, sorter=order) : np.searchsorted(rows, span.stop, sorter=order)]
        if len(places):
            found[places] = score(span).cpu().numpy()[rows[places] - start, columns[places]]
    return found


def rank_vectors(
    subjects: torch.Tensor,
    candidates: torch.Tensor,
    k: int,
    euclidean: bool = False,
    seen: sparse.csr_matrix | None = None,
    preselect: bool | None = None,
) -> Ranking:
    """
    Find the `k` best candidates of each subject by dot product or by distance.

    Parameters
    ----------
    subjects, candidates : torch.Tensor
        Vectors, shapes ``(n_subjects, dim)`` and ``(n_candidates, dim)``, float32, on one device.
    k : int
        How many to keep for each subject.
    euclidean : bool, default False
        Score by minus the distance instead of the dot product.
    seen : csr_matrix, optional
        Pairs that must not be ranked, shape ``(n_subjects, n_candidates)``.
    preselect : bool, optional
        Look for candidates in bfloat16 first and score these alone in float32, where this provably gives the
        exact top-k, subject by subject. By default where the processor multiplies bfloat16 matrices by itself
        (Intel AMX), which makes it several times as fast.

    Returns
    -------
    subjects, candidates, scores : np.ndarray
        Flat, grouped by subject in the given order, best first.
    """
    if euclidean:
        # The nearest have the largest 2 s'c - |c|^2; the distance itself is worked out for the winners alone.
        augmented = torch.cat([2 * candidates, -candidates.square().sum(dim=1, keepdim=True)], dim=1)
        ones = torch.ones(len(subjects), 1, device=subjects.device)
        rows, columns, scores = rank_vectors(torch.cat([subjects, ones], 1), augmented, k, False, seen, preselect)
        squared = subjects.square().sum(dim=1).cpu().numpy()[rows] - scores
        return rows, columns, -np.sqrt(np.maximum(squared, 0))
    if preselect is None:
        preselect = len(subjects) > _FEW and subjects.device.type == "cpu" and _multiplies_bfloat16()
    if preselect and len(subjects) and len(candidates) > 4 * max(_PRESELECTED * k, _PRESELECTED_MIN):
        return _rank_preselected(subjects, candidates, k, seen)
    transposed = candidates.T if len(subjects) <= _FEW else candidates.T.contiguous()
    return rank(lambda rows: subjects[rows] @ transposed, len(subjects), len(candidates), k, seen)


def _rank_preselected(
    subjects: torch.Tensor, candidates: torch.Tensor, k: int, seen: sparse.csr_matrix | None
) -> Ranking:
    # Rounding both factors and the result to 8 significant bits moves a score by at most 3 units of 2^-8 of
    # |s||c|, plus second-order terms and the float32 sum: 2^-6 of the largest product of norms covers it all.
    margins = subjects.norm(dim=1) * (candidates.norm(dim=1).max() * 2.0**-6)
    low_subjects, low_candidates = subjects.bfloat16(), candidates.bfloat16().T.contiguous()
    n_preselected = max(_PRESELECTED * k, _PRESELECTED_MIN)
    chunk = max(1, MAX_SCORES // len(candidates))
    values = torch.empty(len(subjects), k)
    indices = torch.empty(len(subjects), k, dtype=torch.int64)
    unproven = []
    for start in range(0, len(subjects), chunk):
        rows = slice(start, min(start + chunk, len(subjects)))
        rough = low_subjects[rows] @ low_candidates
        _hide(rough, seen, rows)
        best = rough.topk(n_preselected, dim=1)
        exact = torch.einsum("rd,rcd->rc", subjects[rows], candidates[best.indices])
        exact = exact.masked_fill(best.values.isinf(), -torch.inf)
        top = exact.topk(k, dim=1)
        values[rows], indices[rows] = top.values, best.indices.gather(1, top.indices)
        # Whatever was not selected scores at most the last rough value plus the margin.
        proven = (top.values[:, -1] >= best.values[:, -1].float() + margins[rows]) | best.values[:, -1].isinf()
        unproven.append(rows.start + (~proven).nonzero().squeeze(1).cpu())
    rest = torch.cat(unproven)
    if len(rest):
        kept, transposed = subjects[rest], candidates.T.contiguous()
        kept_seen = None if seen is None else seen[rest.numpy()]
        values[rest], indices[rest] = _top(lambda rows: kept[rows] @ transposed, len(rest), k, kept_seen, chunk)
    return _flatten(values, indices)


def _top(
    score: Callable[[slice], torch.Tensor], n_subjects: int, k: int, seen: sparse.csr_matrix | None, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = torch.empty(n_subjects, k), torch.empty(n_subjects, k, dtype=torch.int64)
    for start in range(0, n_subjects, chunk):
        rows = slice(start, min(start + chunk, n_subjects))
        scores = score(rows)
        _hide(scores, seen, rows)
        values[rows], indices[rows] = _topk(scores, k)
    return values, indices


def _topk(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Look only into the k blocks of columns with the largest maxima: the k best can't lie elsewhere."""
    n_rows, n = scores.shape
    n_blocks = n // _BLOCK
    if n_blocks < 4 * k:
        values, indices = scores.topk(k, dim=1)
        return values, indices
    tail = torch.arange(n_blocks * _BLOCK, n, device=scores.device).expand(n_rows, -1)
    maxima = scores[:, : n_blocks * _BLOCK].view(n_rows, n_blocks, _BLOCK).amax(dim=2)
    blocks = maxima.topk(k, dim=1, sorted=False).indices.unsqueeze(2)
    columns = (blocks * _BLOCK + torch.arange(_BLOCK, device=scores.device)).flatten(1)
    columns = torch.cat([columns, tail], dim=1)
    values, place = scores.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, place)


def _hide(scores: torch.Tensor, seen: sparse.csr_matrix | None, rows: slice) -> None:
    if seen is None:
        return
    indptr = seen.indptr[rows.start : rows.stop + 1].astype(np.int64)
    columns = torch.from_numpy(seen.indices[indptr[0] : indptr[-1]].astype(np.int64))
    subjects = torch.from_numpy(np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)))
    scores[subjects.to(scores.device), columns.to(scores.device)] = -torch.inf


def _flatten(values: torch.Tensor, indices: torch.Tensor) -> Ranking:
    real = (values > -torch.inf).numpy()
    subjects = np.repeat(np.arange(len(values)), real.sum(axis=1))
    return subjects, indices.numpy()[real], values.numpy()[real]


def _multiplies_bfloat16() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)  # not public before torch 2.6, and may move
    return bool(probe and probe())
