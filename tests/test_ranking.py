from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rectools.models.rank import Distance, TorchRanker
from scipy import sparse

from rectools_neural import ranking
from rectools_neural.ranking import Ranking, rank, rank_vectors


def brute_force(scores: np.ndarray, k: int, seen: np.ndarray | None = None) -> list[list[tuple[int, float]]]:
    """The top k of each row as (candidate, score), by a full sort."""
    result = []
    for row, values in enumerate(scores):
        allowed = [j for j in range(len(values)) if seen is None or not seen[row, j]]
        best = sorted(allowed, key=lambda j: -values[j])[:k]
        result.append([(j, float(values[j])) for j in best])
    return result


def grouped(result: Ranking, n_subjects: int) -> list[list[tuple[int, float]]]:
    subjects, candidates, scores = result
    assert len(subjects) == len(candidates) == len(scores)
    assert (np.diff(subjects) >= 0).all()
    lists: list[list[tuple[int, float]]] = [[] for _ in range(n_subjects)]
    for subject, candidate, score in zip(subjects.tolist(), candidates.tolist(), scores.tolist(), strict=True):
        lists[subject].append((candidate, score))
    return lists


def random_seen(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """From nothing to everything seen, with some rows of each kind."""
    seen = rng.random(shape) < rng.random((shape[0], 1))
    kind = rng.integers(0, 4, shape[0])
    seen[kind == 0] = False
    seen[kind == 1] = True
    return seen


def assert_is_top(
    actual: Ranking, subjects: torch.Tensor, candidates: torch.Tensor, k: int, seen: np.ndarray | None, euclidean: bool
) -> None:
    """Compare with float64, where candidates whose float32 scores are equal may come in any order."""
    a, b = subjects.double().numpy(), candidates.double().numpy()
    scores = -np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2)) if euclidean else a @ b.T
    tolerance = 1e-5 * max(1.0, float(np.abs(scores).max(initial=0)))
    expected = brute_force(scores, k, seen)
    lists = grouped(actual, len(a))
    for row, (ours, best) in enumerate(zip(lists, expected, strict=True)):
        chosen = [j for j, _ in ours]
        assert len(set(chosen)) == len(chosen) == len(best)
        assert seen is None or not seen[row, chosen].any()
        values = np.array([value for _, value in ours])
        assert (np.diff(values) <= 0).all()
        np.testing.assert_allclose(values, scores[row, chosen], atol=tolerance, rtol=0)
        np.testing.assert_allclose(values, [value for _, value in best], atol=tolerance, rtol=0)


class TestRank:
    @given(
        seed=st.integers(0, 2**32 - 1),
        n_subjects=st.integers(0, 9),
        n_candidates=st.integers(0, 12),
        k=st.integers(1, 15),
        with_seen=st.booleans(),
        max_scores=st.integers(1, 120),
    )
    def test_equals_brute_force_in_chunks_of_any_size(
        self, seed: int, n_subjects: int, n_candidates: int, k: int, with_seen: bool, max_scores: int
    ) -> None:
        rng = np.random.default_rng(seed)
        # A permutation: no ties, so that the result is unique.
        scores = rng.permutation(n_subjects * n_candidates).reshape(n_subjects, n_candidates).astype(np.float32)
        seen = random_seen(rng, (n_subjects, n_candidates)) if with_seen else None
        sizes = []

        def score(rows: slice) -> torch.Tensor:
            part = torch.from_numpy(scores[rows].copy())
            sizes.append(part.numel())
            return part

        csr = None if seen is None else sparse.csr_matrix(seen)
        actual = rank(score, n_subjects, n_candidates, k, csr, max_scores)
        assert grouped(actual, n_subjects) == brute_force(scores, k, seen)
        assert all(size <= max(max_scores, n_candidates) for size in sizes)

    def test_by_hand(self) -> None:
        scores = torch.tensor([[0.1, 0.9, 0.5], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
        seen = sparse.csr_matrix(np.array([[0, 1, 0], [0, 0, 0], [1, 1, 1]]))
        subjects, candidates, values = rank(lambda rows: scores[rows].clone(), 3, 3, 2, seen)
        assert subjects.tolist() == [0, 0, 1, 1]
        assert candidates.tolist() == [2, 0, 0, 2]
        np.testing.assert_array_equal(values, np.array([0.5, 0.1, 3.0, 2.0], np.float32))

    def test_seen_may_have_any_form(self) -> None:
        scores = torch.arange(8.0).reshape(2, 4)
        # Unsorted columns, a pair given twice, counts instead of ones.
        seen = sparse.csr_matrix((np.array([3.0, 1.0, 1.0, 2.0]), np.array([3, 1, 3, 2]), np.array([0, 3, 4])), (2, 4))
        assert grouped(rank(lambda rows: scores[rows].clone(), 2, 4, 2, seen), 2) == [
            [(2, 2.0), (0, 0.0)],
            [(3, 7.0), (1, 5.0)],
        ]

    def test_candidates_that_the_scorer_rules_out(self) -> None:
        scores = torch.tensor([[1.0, -torch.inf, 2.0]])
        assert grouped(rank(lambda rows: scores[rows].clone(), 1, 3, 3), 1) == [[(2, 2.0), (0, 1.0)]]


class TestRankVectors:
    @given(
        seed=st.integers(0, 2**32 - 1),
        n_subjects=st.integers(0, 9),
        n_candidates=st.integers(0, 30),
        k=st.integers(1, 35),
        with_seen=st.booleans(),
        euclidean=st.booleans(),
    )
    def test_equals_brute_force(
        self, seed: int, n_subjects: int, n_candidates: int, k: int, with_seen: bool, euclidean: bool
    ) -> None:
        rng = np.random.default_rng(seed)
        subjects, candidates = (
            torch.from_numpy(rng.normal(size=(n, 5)).astype(np.float32)) for n in (n_subjects, n_candidates)
        )
        seen = random_seen(rng, (n_subjects, n_candidates)) if with_seen else None
        csr = None if seen is None else sparse.csr_matrix(seen)
        actual = rank_vectors(subjects, candidates, k, euclidean, csr)
        assert_is_top(actual, subjects, candidates, k, seen, euclidean)

    def test_distance_by_hand(self) -> None:
        candidates = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
        _, ranked, scores = rank_vectors(torch.tensor([[0.0, 0.0]]), candidates, 3, euclidean=True)
        assert ranked.tolist() == [0, 2, 1]
        np.testing.assert_allclose(scores, [0.0, -(2**0.5), -5.0], rtol=1e-6)

    def test_near_neighbours_far_from_the_origin(self) -> None:
        # Squared lengths near 10^6 and squared distances near 10 leave two digits to the difference in float32.
        candidates = 250 + vectors(300, 16)
        subjects = 250 + vectors(20, 16, seed=1)
        actual = rank_vectors(subjects, candidates, 10, euclidean=True)
        expected = brute_force(-torch.cdist(subjects.double(), candidates.double()).numpy(), 10)
        right = [
            len({j for j, _ in ours} & {j for j, _ in best})
            for ours, best in zip(grouped(actual, 20), expected, strict=True)
        ]
        assert np.mean(right) >= 9.9

    @pytest.mark.parametrize("k", [3, 40])
    # RecTools' own ranker loses neighbours where pairs are filtered by distance: it ranks the filtered ones first.
    @pytest.mark.parametrize(("euclidean", "with_seen"), [(False, False), (False, True), (True, False)])
    def test_equals_rectools(self, k: int, euclidean: bool, with_seen: bool) -> None:
        subjects, candidates = vectors(30, 8), vectors(40, 8, seed=1)
        seen = sparse.csr_matrix(random_seen(np.random.default_rng(3), (30, 40)).astype(float)) if with_seen else None
        distance = Distance.EUCLIDEAN if euclidean else Distance.DOT
        theirs = TorchRanker(distance, "cpu", subjects, candidates).rank(np.arange(30), k, seen)
        ours = rank_vectors(subjects, candidates, k, euclidean, seen)
        assert ours[0].tolist() == list(theirs[0])
        assert ours[1].tolist() == list(theirs[1])
        # RecTools gives the distance itself.
        np.testing.assert_allclose(ours[2], -theirs[2] if euclidean else theirs[2], rtol=1e-4, atol=1e-5)


def vectors(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


class TestPreselection:
    """The bfloat16 pass never changes the result, whatever it saves."""

    @pytest.mark.parametrize("k", [1, 10, 50])
    @pytest.mark.parametrize("dim", [1, 16, 256])
    @pytest.mark.parametrize("with_seen", [False, True])
    def test_random(self, k: int, dim: int, with_seen: bool) -> None:
        subjects, candidates = vectors(40, dim), vectors(1500, dim, seed=1)
        seen = random_seen(np.random.default_rng(1), (40, 1500)) if with_seen else None
        self._check(subjects, candidates, k, seen)

    def test_rows_with_fewer_candidates_than_k(self) -> None:
        seen = np.ones((6, 800), bool)
        for row in range(6):
            seen[row, np.random.default_rng(row).permutation(800)[: 3 * row]] = False
        self._check(vectors(6, 8), vectors(800, 8, seed=1), 10, seen)

    @pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-5])
    def test_near_ties(self, gap: float) -> None:
        # All candidates are alike in bfloat16; only the small steps in float32 tell them apart.
        n = 2000
        steps = torch.randperm(n, generator=torch.Generator().manual_seed(0)).float().unsqueeze(1)
        candidates = torch.cat([torch.ones(n, 3), 1 + gap * steps / n], dim=1)
        self._check(torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) + 0.5, candidates, 10, None)

    @pytest.mark.parametrize("with_seen", [False, True])
    def test_some_rows_are_harder_than_others(self, with_seen: bool) -> None:
        # Every third subject sees the spread coordinate; to the others all candidates are nearly the same.
        n, generator = 2000, torch.Generator().manual_seed(0)
        small, spread = torch.randperm(n, generator=generator), torch.randperm(n, generator=generator)
        candidates = torch.cat(
            [torch.ones(n, 3), (1 + 1e-3 * small / n).unsqueeze(1), (spread / 200).unsqueeze(1)], dim=1
        )
        subjects = torch.rand(30, 5, generator=generator) + 0.5
        subjects[:, 4] = 0
        subjects[::3] = torch.tensor([0.0, 0, 0, 0, 1])
        seen = random_seen(np.random.default_rng(2), (30, n)) if with_seen else None
        self._check(subjects, candidates, 10, seen)

    def test_errors_that_add_up(self) -> None:
        # Coordinates just below the middle of two bfloat16 numbers, all rounded down for the best candidates; just
        # above it, all rounded up, for many others.
        dim, n = 64, 1200
        spacing = 2.0**-7
        candidates = torch.full((n, dim), 1 + 0.51 * spacing)
        best = torch.arange(100, 120)
        candidates[best] = 1 + 0.49 * spacing
        candidates[best, : dim // 2] += 0.05 * spacing * torch.arange(20).unsqueeze(1) / 20
        candidates[:, :2] += 1e-4 * torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
        self._check(torch.full((3, dim), 1 + 0.49 * spacing), candidates, 10, None)
        self._check(torch.full((3, dim), -1 - 0.49 * spacing), candidates, 10, None)

    @pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6, 1e15])
    def test_norms_of_any_size(self, scale: float) -> None:
        subjects, candidates = vectors(20, 16) * scale, vectors(1500, 16, seed=1)
        self._check(subjects, candidates, 10, None, scale)
        self._check(candidates[:20], vectors(1500, 16, seed=2) * scale, 10, None, scale)

    def test_one_giant_candidate(self) -> None:
        candidates = vectors(1500, 16)
        candidates[7] *= 1e4
        self._check(vectors(20, 16, seed=1), candidates, 10, None)

    def test_null_vectors(self) -> None:
        subjects = vectors(5, 8)
        subjects[2] = 0
        _, ranked, scores = rank_vectors(subjects, vectors(1500, 8, seed=1), 10, preselect=True)
        assert len(ranked) == 50
        assert (scores[20:30] == 0).all()

    @pytest.mark.parametrize("n_seen", [0, 1])
    def test_exact_arithmetic(self, n_seen: int) -> None:
        # Small integers: no rounding in float32, many ties. The scores must be the very same.
        generator = torch.Generator().manual_seed(0)
        subjects = torch.randint(-300, 300, (30, 6), generator=generator).float()
        candidates = torch.randint(-300, 300, (3000, 6), generator=generator).float()
        seen = sparse.csr_matrix(random_seen(np.random.default_rng(0), (30, 3000))) if n_seen else None
        plain, fast = (rank_vectors(subjects, candidates, 20, False, seen, preselect) for preselect in (False, True))
        assert plain[0].tolist() == fast[0].tolist()
        assert plain[2].tolist() == fast[2].tolist()

    def test_euclidean(self) -> None:
        subjects, candidates = vectors(30, 16), vectors(1500, 16, seed=1)
        fast = rank_vectors(subjects, candidates, 10, True, None, True)
        assert_is_top(fast, subjects, candidates, 10, None, True)

    @pytest.mark.parametrize("max_scores", [1, 700, 5_000])
    def test_chunks_do_not_matter(self, max_scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
        subjects, candidates = vectors(20, 16), vectors(700, 16, seed=1)
        seen = sparse.csr_matrix(random_seen(np.random.default_rng(0), (20, 700)))
        whole = rank_vectors(subjects, candidates, 10, False, seen, preselect=True)
        monkeypatch.setattr(ranking, "MAX_SCORES", max_scores)
        chunks = rank_vectors(subjects, candidates, 10, False, seen, preselect=True)
        assert whole[0].tolist() == chunks[0].tolist()
        assert whole[1].tolist() == chunks[1].tolist()
        # The matrix product of another shape may round otherwise.
        np.testing.assert_allclose(whole[2], chunks[2], rtol=1e-5, atol=1e-6)

    def test_no_subjects(self) -> None:
        for result in rank_vectors(torch.zeros(0, 8), vectors(1500, 8), 10, preselect=True):
            assert result.shape == (0,)

    def test_is_really_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Guard of the tests above: they must not fall back to the plain form by their sizes."""
        calls = []
        real = ranking._rank_preselected

        def counted(*args: Any) -> Ranking:
            calls.append(args)
            return real(*args)

        monkeypatch.setattr(ranking, "_rank_preselected", counted)
        for k, n in ((1, 700), (10, 700), (50, 1500)):
            rank_vectors(vectors(2, 4), vectors(n, 4), k, preselect=True)
        assert len(calls) == 3

    @staticmethod
    def _check(
        subjects: torch.Tensor, candidates: torch.Tensor, k: int, seen: np.ndarray | None, scale: float = 1.0
    ) -> None:
        csr = None if seen is None else sparse.csr_matrix(seen)
        fast = rank_vectors(subjects, candidates, k, False, csr, preselect=True)
        plain = rank_vectors(subjects, candidates, k, False, csr, preselect=False)
        assert fast[0].tolist() == plain[0].tolist()
        # Scores of two matrix products may differ in the last bit, no more, even where that changes the order.
        size = float(subjects.norm(dim=1).max() * candidates.norm(dim=1).max())
        np.testing.assert_allclose(fast[2], plain[2], rtol=1e-6, atol=2e-7 * size)
        exact = (subjects.double()[fast[0]] * candidates.double()[fast[1]]).sum(dim=1)
        np.testing.assert_allclose(fast[2], exact, rtol=1e-6, atol=2e-7 * size)
        pairs = set(zip(fast[0].tolist(), fast[1].tolist(), strict=True))
        assert len(pairs) == len(fast[0])
        assert seen is None or not seen[fast[0], fast[1]].any()
