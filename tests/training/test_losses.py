from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectools_neural.data.histories import Histories
from rectools_neural.data.sampling import NegativeSampler
from rectools_neural.training.losses import (
    bce_loss,
    bpr_loss,
    info_nce_loss,
    logistic_loss,
    pair_scores,
    sampled_softmax_loss,
    sampled_squared_loss,
    softmax_loss,
    squared_loss,
    squared_table_loss,
    triplet_loss,
)

INF = math.inf

PairLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
PAIR_LOSSES: dict[str, PairLoss] = {
    "bpr": bpr_loss,
    "bce": bce_loss,
    "random": lambda positive, negative: triplet_loss(positive, negative, 0.4, "random"),
    "semi_hard": lambda positive, negative: triplet_loss(positive, negative, 0.4, "semi_hard"),
    "hard": lambda positive, negative: triplet_loss(positive, negative, 0.4, "hard"),
    "sampled_softmax": lambda positive, negative: sampled_softmax_loss(
        positive, negative, torch.arange(len(positive)), torch.zeros(())
    ),
}


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_pairs(seed: int, n_users: int, n_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    owned = np.random.default_rng(seed).random((n_users, n_items)) < 0.4
    owned[:, 0] = True
    return tuple(torch.from_numpy(part) for part in owned.nonzero())  # type: ignore[return-value]


def gradients(loss: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, tensors))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


class TestSquared:
    @given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9), st.floats(0.01, 2))
    def test_equals_the_dense_double_sum(self, seed: int, n_users: int, n_items: int, weight: float) -> None:
        self._check(seed, n_users, n_items, weight, *random_pairs(seed, n_users, n_items))

    @pytest.mark.parametrize("n_pairs", [0, 1, 20, 2_000])
    def test_equals_the_dense_double_sum_however_sparse(self, n_pairs: int) -> None:
        pairs = torch.randperm(10 * 3_000, generator=torch.Generator().manual_seed(0))[:n_pairs]
        self._check(1, 10, 3_000, 0.3, pairs // 3_000, pairs % 3_000)

    @staticmethod
    def _check(seed: int, n_users: int, n_items: int, weight: float, rows: torch.Tensor, targets: torch.Tensor) -> None:
        users, items = normal(n_users, 4, seed=seed) / 2, normal(n_items, 4, seed=seed + 1) / 2
        users.requires_grad_()
        items.requires_grad_()
        y = torch.zeros(n_users, n_items, dtype=torch.float64)
        y[rows, targets] = 1
        w = y + weight * (1 - y)
        expected = (w * (y - users @ items.T).square()).sum() / n_users
        actual = squared_loss(users, items, rows, targets, weight)
        assert abs((actual - expected).item()) < 1e-10
        for ours, theirs in zip(gradients(actual, users, items), gradients(expected, users, items), strict=True):
            assert_same(ours, theirs)

    def test_by_hand(self) -> None:
        users = torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
        items = torch.tensor([[1.0, 1.0], [0.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
        # The scores are [1, 0, 3] and [3, 2, 6]; the targets are item 1 of the first, items 0 and 2 of the second.
        loss = squared_loss(users, items, torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2]), 0.1)
        assert float(loss) == pytest.approx(((1 + 0.1 * (1 + 9)) + (4 + 25 + 0.1 * 4)) / 2)

    def test_gradcheck(self) -> None:
        rows, targets = random_pairs(0, 3, 5)
        inputs = (normal(3, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_())
        assert torch.autograd.gradcheck(lambda users, items: squared_loss(users, items, rows, targets, 0.3), inputs)

    def test_user_without_targets_counts(self) -> None:
        users, items = normal(2, 3), normal(4, 3, seed=1)
        nothing = torch.zeros(0, dtype=torch.int64)
        loss = squared_loss(users, items, nothing, nothing, 0.5)
        assert_same(loss, 0.5 * (users @ items.T).square().sum() / 2)


class TestSoftmax:
    def test_by_hand(self) -> None:
        logits = torch.tensor([[0.0, math.log(3)], [math.log(2), math.log(6)]], dtype=torch.float64)
        # The probabilities are 1/4, 3/4 for both users; two targets of the first, one of the second.
        loss = softmax_loss(logits, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
        assert float(loss) == pytest.approx((math.log(4) + math.log(4 / 3) + math.log(4 / 3)) / 2)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9))
    def test_equals_the_dense_sum(self, seed: int, n_users: int, n_items: int) -> None:
        logits = normal(n_users, n_items, seed=seed).requires_grad_()
        rows, targets = random_pairs(seed, n_users, n_items)
        y = torch.zeros(n_users, n_items, dtype=torch.float64)
        y[rows, targets] = 1
        expected = -(y * torch.log_softmax(logits, dim=1)).sum() / n_users
        actual = softmax_loss(logits, rows, targets)
        assert_same(actual, expected)
        assert_same(gradients(actual, logits), gradients(expected, logits))

    def test_gradcheck(self) -> None:
        rows, targets = random_pairs(0, 3, 5)
        logits = normal(3, 5).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: softmax_loss(x, rows, targets), (logits,))

    def test_large_logits_stay_finite(self) -> None:
        logits = torch.tensor([[1e4, -1e4]])
        assert float(softmax_loss(logits, torch.tensor([0]), torch.tensor([1]))) == 2e4


class TestLogistic:
    def test_by_hand(self) -> None:
        logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]], dtype=torch.float64)
        rows, targets = torch.tensor([0, 1]), torch.tensor([0, 1])
        expected = (softplus(-2.0) + softplus(-1.0) + softplus(0.5) + softplus(0.0)) / 2
        assert_same(logistic_loss(logits, rows, targets), torch.tensor(expected, dtype=torch.float64))

    @given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 7))
    def test_equals_the_dense_sum(self, seed: int, n_users: int, n_items: int) -> None:
        logits = normal(n_users, n_items, seed=seed)
        rows, targets = random_pairs(seed, n_users, n_items)
        truth = torch.zeros_like(logits)
        truth[rows, targets] = 1
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
        assert_same(logistic_loss(logits, rows, targets), cross_entropy(logits, truth, reduction="sum") / n_users)

    def test_gradcheck(self) -> None:
        rows, targets = random_pairs(1, 3, 4)
        logits = normal(3, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda scores: logistic_loss(scores, rows, targets), [logits])


class TestWeights:
    """A weight of 2 is as good as a pair that occurs twice."""

    rows, targets = torch.tensor([0, 0, 1]), torch.tensor([1, 3, 2])
    twice = torch.tensor([0, 0, 1, 1])
    weights = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)

    def test_softmax(self) -> None:
        logits, again = normal(2, 4), torch.tensor([0, 1, 1, 2])
        expected = softmax_loss(logits, self.rows[again], self.targets[again])
        assert_same(softmax_loss(logits, self.rows, self.targets, self.weights), expected)

    def test_logistic(self) -> None:
        logits = normal(2, 4)
        plain = logistic_loss(logits, self.rows, self.targets)
        expected = plain + softplus(-logits[0, 3].item()) / 2
        assert_same(logistic_loss(logits, self.rows, self.targets, self.weights), expected)

    def test_sampled_softmax(self) -> None:
        positive, negative, again = normal(3), normal(2, 5, seed=1), torch.tensor([0, 1, 1, 2])
        zero = torch.zeros(())
        expected = sampled_softmax_loss(positive[again], negative, self.rows[again], zero) * 4 / 3
        assert_same(sampled_softmax_loss(positive, negative, self.rows, zero, self.weights), expected)

    def test_squared_takes_them_for_values(self) -> None:
        users, items = normal(2, 3), normal(4, 3, seed=1)
        scores = users @ items.T
        truth = torch.zeros_like(scores)
        truth[self.rows, self.targets] = self.weights
        importance = 0.3 + 0.7 * (truth > 0).double()
        expected = (importance * (truth - scores).square()).sum() / 2
        assert_same(squared_loss(users, items, self.rows, self.targets, 0.3, self.weights), expected)


class TestSampledSoftmax:
    def test_all_items_as_negatives_give_the_full_softmax(self) -> None:
        logits = normal(6, 9).requires_grad_()
        rows, targets = torch.arange(6), torch.tensor([3, 0, 8, 3, 1, 5])
        mask = torch.zeros(6, 9, dtype=torch.bool)
        mask[rows, targets] = True
        sampled = sampled_softmax_loss(
            logits[rows, targets], logits.masked_fill(mask, -INF), rows, torch.zeros(9, dtype=torch.float64)
        )
        full = softmax_loss(logits, rows, targets)
        assert_same(sampled, full)
        assert_same(gradients(sampled, logits), gradients(full, logits))

    def test_log_q_correction_by_hand(self) -> None:
        positive = torch.tensor([math.log(2), math.log(5)], dtype=torch.float64)
        negative = torch.tensor([[math.log(1), math.log(3)]], dtype=torch.float64)
        # Drawn with the probabilities 1/4 and 1/2, the negatives weigh 4 * 1 and 2 * 3.
        log_inclusion = torch.log(torch.tensor([0.25, 0.5], dtype=torch.float64))
        loss = sampled_softmax_loss(positive, negative, torch.tensor([0, 0]), log_inclusion)
        assert float(loss) == pytest.approx((math.log(12 / 2) + math.log(15 / 5)) / 2)

    def test_correction_of_own_negatives_by_hand(self) -> None:
        positive = torch.zeros(2, dtype=torch.float64)
        negative = torch.log(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
        log_inclusion = torch.log(torch.tensor([[0.5, 0.25], [1.0, 0.1]], dtype=torch.float64))
        loss = sampled_softmax_loss(positive, negative, torch.arange(2), log_inclusion)
        assert float(loss) == pytest.approx((math.log(1 + 2 + 8) + math.log(1 + 3 + 40)) / 2)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 5), st.integers(1, 6))
    def test_equals_cross_entropy(self, seed: int, n_pairs: int, n_sets: int, n: int) -> None:
        positive, negative = (
            normal(n_pairs, seed=seed).requires_grad_(),
            normal(n_sets, n, seed=seed + 1).requires_grad_(),
        )
        log_q = normal(n, seed=seed + 2)
        rows = torch.randint(0, n_sets, (n_pairs,), generator=torch.Generator().manual_seed(seed))
        logits = torch.cat([positive.unsqueeze(1), (negative - log_q)[rows]], dim=1)
        expected = torch.nn.functional.cross_entropy(logits, torch.zeros(n_pairs, dtype=torch.int64))
        actual = sampled_softmax_loss(positive, negative, rows, log_q)
        assert_same(actual, expected)
        ours, theirs = (gradients(loss, positive, negative) for loss in (actual, expected))
        assert_same(ours, theirs)

    def test_gradcheck(self) -> None:
        rows = torch.tensor([0, 0, 1, 2])
        inputs = (normal(4).requires_grad_(), normal(3, 5, seed=1).requires_grad_())
        assert torch.autograd.gradcheck(
            lambda positive, negative: sampled_softmax_loss(positive, negative, rows, normal(5, seed=2)), inputs
        )


class TestPairwise:
    def test_bpr_by_hand(self) -> None:
        loss = bpr_loss(torch.tensor([1.0, 0.0]), torch.tensor([[1.0, -1.0], [2.0, 0.5]]))
        expected = (softplus(0) + softplus(-2) + softplus(2) + softplus(0.5)) / 4
        assert float(loss) == pytest.approx(expected, rel=1e-6)

    def test_bce_by_hand(self) -> None:
        loss = bce_loss(torch.tensor([1.0, 0.0]), torch.tensor([[1.0, -1.0], [2.0, 0.5]]))
        expected = (softplus(-1) + softplus(0)) / 2 + (softplus(1) + softplus(-1) + softplus(2) + softplus(0.5)) / 4
        assert float(loss) == pytest.approx(expected, rel=1e-6)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 6))
    def test_equal_loops_over_the_pairs(self, seed: int, n_pairs: int, n: int) -> None:
        positive, negative = normal(n_pairs, seed=seed), normal(n_pairs, n, seed=seed + 1)
        invalid = np.random.default_rng(seed).random((n_pairs, n)) < 0.3
        negative[torch.from_numpy(invalid)] = -INF
        valid = [(i, j) for i, j in np.argwhere(~invalid).tolist()]
        pairs = [(float(positive[i]), float(negative[i, j])) for i, j in valid]
        n_valid = max(len(pairs), 1)
        bpr = sum(softplus(neg - pos) for pos, neg in pairs) / n_valid
        bce = np.mean([softplus(-float(pos)) for pos in positive]) + sum(softplus(neg) for _, neg in pairs) / n_valid
        triplet = sum(max(0.0, 0.7 - pos + neg) for pos, neg in pairs) / n_valid
        assert float(bpr_loss(positive, negative)) == pytest.approx(bpr, rel=1e-10)
        assert float(bce_loss(positive, negative)) == pytest.approx(bce, rel=1e-10)
        assert float(triplet_loss(positive, negative, 0.7, "random")) == pytest.approx(triplet, rel=1e-10)
        # The other minings, one negative a pair.
        hard, semi_hard = [], []
        for i in range(n_pairs):
            pos, own = float(positive[i]), [float(negative[a, b]) for a, b in valid if a == i]
            if own:
                losers = [neg for neg in own if neg < pos]
                hard.append(max(0.0, 0.7 - pos + max(own)))
                semi_hard.append(max(0.0, 0.7 - pos + (max(losers) if losers else min(own))))
        for mining, terms in (("hard", hard), ("semi_hard", semi_hard)):
            expected = sum(terms) / max(len(terms), 1)
            assert float(triplet_loss(positive, negative, 0.7, mining)) == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("name", PAIR_LOSSES)
    def test_gradcheck(self, name: str) -> None:
        inputs = (normal(4).requires_grad_(), normal(4, 5, seed=1).requires_grad_())
        assert torch.autograd.gradcheck(PAIR_LOSSES[name], inputs)


class TestTriplet:
    POSITIVE = (1.0, 0.5, -1.0, 2.0)
    NEGATIVE = (
        (0.9, 0.2, 1.3),  # 0.9 is the best that loses, 1.3 the best
        (0.6, 2.0, 0.8),  # none loses, 0.6 is the least wrong
        (-3.0, -2.0, -1.1),  # all lose, -1.1 is the best
        (2.0, 1.0, -INF),  # one as good as the positive does not lose to it
    )

    @pytest.mark.parametrize(
        ("mining", "terms"),
        [
            ("random", [0.4, 0.0, 0.8, 0.6, 2.0, 0.8, 0.0, 0.0, 0.4, 0.5, 0.0]),
            ("hard", [0.8, 2.0, 0.4, 0.5]),
            ("semi_hard", [0.4, 0.6, 0.4, 0.0]),
        ],
    )
    def test_minings_by_hand(self, mining: str, terms: list[float]) -> None:
        positive = torch.tensor(self.POSITIVE, dtype=torch.float64)
        negative = torch.tensor(self.NEGATIVE, dtype=torch.float64)
        loss = triplet_loss(positive, negative, 0.5, mining)
        assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-12)

    def test_gradient_reaches_only_the_mined_negative(self) -> None:
        positive = torch.tensor([1.0])
        for mining, expected in [("random", [1 / 3, 0, 1 / 3]), ("hard", [0, 0, 1]), ("semi_hard", [1, 0, 0])]:
            negative = torch.tensor([[0.9, 0.2, 1.3]], requires_grad=True)
            (gradient,) = gradients(triplet_loss(positive, negative, 0.4, mining), negative)
            assert gradient[0].tolist() == pytest.approx(expected)


class TestInvalidNegatives:
    """Negatives of -inf don't count, as if they were not there, and do no harm to the gradients."""

    @pytest.mark.parametrize("name", PAIR_LOSSES)
    def test_are_ignored(self, name: str) -> None:
        positive, negative = normal(4), normal(4, 5, seed=1)
        padded = torch.cat([negative, torch.full((4, 2), -INF)], dim=1)[:, [5, 0, 1, 6, 2, 3, 4]]
        assert_same(PAIR_LOSSES[name](positive, padded), PAIR_LOSSES[name](positive, negative))

    @pytest.mark.parametrize("name", PAIR_LOSSES)
    @pytest.mark.parametrize("n_users_without_any", [0, 1, 4])
    def test_gradients_are_finite(self, name: str, n_users_without_any: int) -> None:
        positive, scores = normal(4).requires_grad_(), normal(4, 5, seed=1).requires_grad_()
        mask = torch.zeros(4, 5, dtype=torch.bool)
        mask[0, 2] = mask[3, 0] = True
        mask[:n_users_without_any] = True
        loss = PAIR_LOSSES[name](positive, scores.masked_fill(mask, -INF))
        assert loss.isfinite()
        for gradient in gradients(loss, positive, scores):
            assert gradient.isfinite().all()
        assert gradients(loss_of(name, positive, scores, mask), scores)[0][mask].tolist() == [0.0] * int(mask.sum())

    @pytest.mark.parametrize("name", PAIR_LOSSES)
    def test_pair_without_negatives_is_left_alone(self, name: str) -> None:
        # But for bce, which learns from the positive itself.
        positive = normal(3).requires_grad_()
        negative = normal(3, 4, seed=1)
        negative[1] = -INF
        (gradient,) = gradients(PAIR_LOSSES[name](positive, negative), positive)
        assert (gradient[1] != 0) == (name == "bce")

    @pytest.mark.parametrize("name", PAIR_LOSSES)
    def test_extreme_scores_stay_finite(self, name: str) -> None:
        positive, negative = torch.tensor([-1e4, 1e4], requires_grad=True), torch.tensor([[1e4], [-1e4]])
        loss = PAIR_LOSSES[name](positive, negative)
        assert loss.isfinite()
        assert gradients(loss, positive)[0].isfinite().all()


def loss_of(name: str, positive: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return PAIR_LOSSES[name](positive, scores.masked_fill(mask, -INF))


def test_pair_scores() -> None:
    users, items = normal(3, 4), normal(5, 4, seed=1)
    rows, targets = torch.tensor([2, 0, 0, 1]), torch.tensor([4, 4, 1, 0])
    assert_same(pair_scores(users, items, rows, targets), (users @ items.T)[rows, targets])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scalars_of_the_type_of_the_scores(dtype: Any) -> None:
    positive, negative = torch.ones(2, dtype=dtype), torch.zeros(2, 3, dtype=dtype)
    for loss in PAIR_LOSSES.values():
        assert loss(positive, negative).dtype == dtype
        assert loss(positive, negative).shape == ()


class TestInfoNCE:
    def test_by_hand(self) -> None:
        """Three entities in two dimensions; lengths don't matter."""
        one = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], dtype=torch.float64)
        other = torch.tensor([[0.0, 5.0], [0.0, 1.0], [4.0, 0.0]], dtype=torch.float64)
        temperature = 0.5
        cosines = [[0, 0, 1], [1, 1, 0], [0, 0, 1]]
        terms = []
        for entity, row in enumerate(cosines):
            total = sum(math.exp(cosine / temperature) for cosine in row)
            terms.append(-math.log(math.exp(row[entity] / temperature) / total))
        expected = torch.tensor(sum(terms) / 3, dtype=torch.float64)
        assert_same(info_nce_loss(one, other, temperature), expected)

    def test_equal_views_that_point_apart(self) -> None:
        views = torch.eye(4, dtype=torch.float64)
        assert_same(info_nce_loss(views, 7 * views, 0.1), torch.tensor(math.log1p(3 * math.exp(-10))).double())


@pytest.mark.parametrize("power", [0.0, 0.75])
@pytest.mark.parametrize("n", [1, 6, 40])
def test_sampled_squared_loss_is_unbiased(n: int, power: float, make_histories: Callable[..., Histories]) -> None:
    """The mean over many samples of the catalogue is the loss over all of it."""
    generator = torch.Generator().manual_seed(0)
    lists = [[0, 3, 8], [1, 3], [2, 3, 4, 5, 6, 7, 9], [9]]
    sampler = NegativeSampler(make_histories(lists, 10), power)
    table = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    rows = torch.arange(4).repeat_interleave(torch.tensor([len(part) for part in lists]))
    targets = torch.tensor([item for part in lists for item in part])
    exact = float(squared_table_loss(table, rows, targets, 0.4))
    estimates = []
    for _ in range(2_000):
        drawn = sampler.sample_shared(n, generator)
        inclusion = sampler.log_inclusion(n)[drawn]
        estimates.append(float(sampled_squared_loss(table[rows, targets], table[:, drawn], inclusion, 0.4)))
    error = np.std(estimates) / len(estimates) ** 0.5
    assert np.std(estimates) > 0
    assert np.mean(estimates) == pytest.approx(exact, abs=4 * error)
    everything = sampled_squared_loss(table[rows, targets], table, torch.zeros(10), 0.4)
    assert float(everything) == pytest.approx(exact, abs=1e-9)
