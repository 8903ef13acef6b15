from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rectools_neural.data.histories import Histories
from rectools_neural.data.sampling import NegativeSampler, PositivePairs

MakeHistories = Callable[[Sequence[Sequence[int]], int], Histories]

# Such a distance from the expected counts a fair sampler shows once in a thousand runs; the seeds are fixed anyway.
SIGNIFICANCE = 1e-3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_histories(n_users: int, n_items: int, density: float, seed: int = 0) -> Histories:
    """Some items are far more popular than others, and each has a user."""
    rng = np.random.default_rng(seed)
    shares = density * 2 * np.linspace(1, 0, n_items) ** 3
    owned = rng.random((n_users, n_items)) < shares
    owned[rng.integers(0, n_users, n_items), np.arange(n_items)] = True
    users, items = owned.nonzero()
    return Histories.from_pairs(users, items, n_users, n_items)


def test_random_histories_are_uneven() -> None:
    popularity = random_histories(200, 50, 0.3).popularity()
    assert popularity.min() >= 1
    assert popularity.max() > 20 * popularity.min()


class TestPositivePairs:
    @given(
        st.integers(1, 7).flatmap(
            lambda n_items: st.tuples(
                st.just(n_items),
                st.lists(st.lists(st.integers(0, n_items - 1), unique=True), min_size=1, max_size=7),
            )
        )
    )
    def test_equals_a_set(self, make_histories: MakeHistories, drawn: tuple[int, list[list[int]]]) -> None:
        n_items, items = drawn
        is_positive = PositivePairs(make_histories(items, n_items))
        pairs = {(user, item) for user, own in enumerate(items) for item in own}
        users, catalogue = torch.arange(len(items)), torch.arange(n_items)
        expected = [[(user, item) in pairs for item in range(n_items)] for user in range(len(items))]
        assert is_positive(users.unsqueeze(1), catalogue).tolist() == expected
        flat_users, flat_items = users.repeat_interleave(n_items), catalogue.repeat(len(items))
        assert is_positive(flat_users, flat_items).tolist() == [hit for row in expected for hit in row]

    @given(st.integers(0, 2**32 - 1))
    def test_equals_a_set_where_the_table_is_crowded(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        n_users, n_items = int(rng.integers(1, 300)), int(rng.integers(1, 300))
        users, items = rng.integers(0, n_users, 2000), rng.integers(0, n_items, 2000)
        is_positive = PositivePairs(Histories.from_pairs(users, items, n_users, n_items))
        pairs = set(zip(users.tolist(), items.tolist(), strict=True))
        asked = [(user, item) for user in range(n_users) for item in rng.integers(0, n_items, 5).tolist()]
        asked += list(pairs)
        answers = is_positive(*torch.tensor(asked).T)
        assert answers.tolist() == [pair in pairs for pair in asked]

    def test_keys_beyond_32_bits(self) -> None:
        n_items = 10**8 + 1
        users, items = np.array([99_999, 99_998, 0]), np.array([10**8, 0, 10**8 - 1])
        is_positive = PositivePairs(Histories.from_pairs(users, items, 100_000, n_items))
        asked_users = torch.tensor([99_999, 99_999, 99_998, 0, 0])
        asked_items = torch.tensor([10**8, 10**8 - 1, 0, 10**8 - 1, 0])
        assert is_positive(asked_users, asked_items).tolist() == [True, False, True, True, False]

    def test_no_pairs(self, make_histories: MakeHistories) -> None:
        is_positive = PositivePairs(make_histories([[], []], 3))
        assert not is_positive(torch.tensor([[0], [1]]), torch.arange(3)).any()
        assert is_positive(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64)).shape == (0,)


class TestSample:
    @pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
    def test_never_a_positive(self, power: float) -> None:
        histories = random_histories(100, 60, 0.5)
        owned = histories.to_csr().toarray()
        users = torch.arange(100).repeat(10)
        negatives = NegativeSampler(histories, power).sample(users, 50, generator())
        assert negatives.shape == (1000, 50)
        assert negatives.dtype == torch.int64
        assert not owned[users.unsqueeze(1).expand(-1, 50), negatives].any()

    @pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
    def test_distribution_is_that_of_the_items_left(self, power: float) -> None:
        histories = random_histories(20, 12, 0.4)
        owned = histories.to_csr().toarray().astype(bool)
        n = 20_000
        negatives = NegativeSampler(histories, power).sample(torch.arange(20), n, generator(1))
        for user in range(20):
            left = np.flatnonzero(~owned[user])
            weights = histories.popularity()[left].astype(float) ** power
            counts = np.bincount(negatives[user].numpy(), minlength=12)
            assert counts.sum() == counts[left].sum() == n
            expected = n * weights / weights.sum()
            assert stats.chisquare(counts[left], expected).pvalue > SIGNIFICANCE / 20

    @pytest.mark.parametrize("power", [0.0, 1.0])
    def test_all_but_one_item(self, power: float, make_histories: MakeHistories) -> None:
        histories = make_histories([[1, 2, 3, 4], [4, 3, 2, 0], [0, 1, 2, 3], [4]], 5)
        negatives = NegativeSampler(histories, power).sample(torch.tensor([0, 1, 2]), 200, generator())
        assert negatives.tolist() == [[0] * 200, [1] * 200, [4] * 200]

    @pytest.mark.parametrize("power", [0.0, 1.0])
    def test_all_but_one_of_many_items(self, power: float, make_histories: MakeHistories) -> None:
        histories = make_histories([range(999), [999]], 1000)
        negatives = NegativeSampler(histories, power).sample(torch.zeros(50, dtype=torch.int64), 2, generator())
        assert negatives.tolist() == [[999, 999]] * 50

    @pytest.mark.parametrize("power", [0.0, 1.0])
    def test_all_items(self, power: float, make_histories: MakeHistories) -> None:
        histories = make_histories([[0, 1, 2], [0]], 3)
        negatives = NegativeSampler(histories, power).sample(torch.tensor([0, 1]), 30, generator())
        assert negatives.shape == (2, 30)
        assert ((negatives >= 0) & (negatives < 3)).all()
        assert set(negatives[1].tolist()) <= {1, 2}

    def test_no_users(self, make_histories: MakeHistories) -> None:
        sampler = NegativeSampler(make_histories([[0]], 3))
        assert sampler.sample(torch.tensor([], dtype=torch.int64), 4, generator()).shape == (0, 4)

    @pytest.mark.parametrize("power", [0.0, 0.75])
    def test_follows_the_generator_alone(self, power: float) -> None:
        sampler = NegativeSampler(random_histories(30, 40, 0.3), power)
        users = torch.arange(30)
        first = sampler.sample(users, 20, generator(5))
        torch.manual_seed(123)
        state = torch.random.get_rng_state()
        assert torch.equal(sampler.sample(users, 20, generator(5)), first)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not torch.equal(sampler.sample(users, 20, generator(6)), first)
        one = generator(5)
        assert torch.equal(sampler.sample(users, 20, one), first)
        assert not torch.equal(sampler.sample(users, 20, one), first)

    @pytest.mark.parametrize("power", [0.0, 0.75])
    def test_is_fast(self, power: float) -> None:
        n_users, n_items, n_pairs = 5_000, 20_000, 200_000
        rng = np.random.default_rng(0)
        # The square makes the first items the popular ones.
        items = (rng.random(n_pairs) ** 2 * n_items).astype(np.int64)
        histories = Histories.from_pairs(rng.integers(0, n_users, n_pairs), items, n_users, n_items)
        sampler = NegativeSampler(histories, power)
        users = torch.arange(n_users).repeat(20)
        seconds = []
        for seed in range(4):
            start = time.perf_counter()
            sampler.sample(users, 4, generator(seed))
            seconds.append(time.perf_counter() - start)
        assert len(users) * 4 / min(seconds) > 1e6


class TestShared:
    @pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("n", [1, 4, 60])
    def test_inclusion(self, power: float, n: int) -> None:
        histories = random_histories(50, 15, 0.4)
        sampler = NegativeSampler(histories, power)
        one = generator(2)
        n_runs, times = 4_000, np.zeros(15)
        for _ in range(n_runs):
            drawn = sampler.sample_shared(n, one)
            assert drawn.dtype == torch.int64
            assert 1 <= len(drawn) <= n
            assert (drawn.diff() > 0).all()  # in order, each once
            times[drawn.numpy()] += 1
        weights = histories.popularity().astype(float) ** power
        inclusion = 1 - (1 - weights / weights.sum()) ** n
        log_inclusion = sampler.log_inclusion(n)
        assert log_inclusion.shape == (15,)
        assert log_inclusion.dtype == torch.float32
        np.testing.assert_allclose(log_inclusion.exp().numpy(), inclusion, rtol=1e-5)
        deviation = np.sqrt(n_runs * inclusion * (1 - inclusion))
        assert (np.abs(times - n_runs * inclusion) <= 4 * deviation + 1e-3).all()

    def test_log_inclusion_by_hand(self, make_histories: MakeHistories) -> None:
        histories = make_histories([[0, 1], [0], [0, 2], [0]], 3)  # the popularities are 4, 1 and 1
        for power, n, expected in [
            (0.0, 1, [1 / 3, 1 / 3, 1 / 3]),
            (0.0, 2, [5 / 9, 5 / 9, 5 / 9]),
            (0.5, 1, [1 / 2, 1 / 4, 1 / 4]),
            (0.5, 3, [7 / 8, 37 / 64, 37 / 64]),
            (1.0, 2, [8 / 9, 11 / 36, 11 / 36]),
        ]:
            actual = NegativeSampler(histories, power).log_inclusion(n).numpy()
            np.testing.assert_allclose(actual, np.log(expected), rtol=1e-6)

    def test_rare_items_keep_their_precision(self) -> None:
        n_items = 1_000_000
        histories = Histories(np.array([0, n_items]), np.arange(n_items), n_items)
        np.testing.assert_allclose(NegativeSampler(histories).log_inclusion(1).numpy(), -np.log(n_items), rtol=1e-6)

    def test_only_item(self, make_histories: MakeHistories) -> None:
        assert NegativeSampler(make_histories([[0]], 1), 1.0).log_inclusion(3).tolist() == [0.0]

    @pytest.mark.parametrize("power", [0.0, 1.0])
    def test_follows_the_generator_alone(self, power: float) -> None:
        sampler = NegativeSampler(random_histories(50, 200, 0.4), power)
        first = sampler.sample_shared(50, generator(5))
        assert torch.equal(sampler.sample_shared(50, generator(5)), first)
        assert not torch.equal(sampler.sample_shared(50, generator(6)), first)
