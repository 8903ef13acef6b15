from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from rectools_neural.config import NegativesConfig
from rectools_neural.data.batches import FeatureBatch, FeatureSchema, ItemBatch, NegativeBatch, TrainingBatch
from rectools_neural.data.features import EncodedFeatures
from rectools_neural.data.histories import Histories
from rectools_neural.data.reader import Items, Pairs, Users
from rectools_neural.data.sampling import NegativeSampler
from rectools_neural.data.sources import PairBatches, UserBatches

SIGNIFICANCE = 1e-3
# A number that tells entities apart (1, 2, ...; 0 is missing), and a category that all entities have.
SCHEMA = FeatureSchema(fields=("kind",), values=(("kind", "any"),), numeric=("name",))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def named_features(n: int) -> EncodedFeatures:
    categories = sparse.csr_matrix(np.tile(np.array([[1, 0]], np.float32), (n, 1)))
    return EncodedFeatures(SCHEMA, categories, np.arange(1, n + 1, dtype=np.float32).reshape(n, 1))


def entity_of(features: FeatureBatch) -> list[int]:
    """Which entities the features belong to, -1 where they are missing."""
    is_known = features.categories == 0
    assert len(features.categories) == len(features.offsets) == len(features.numeric)
    assert torch.equal(is_known, features.numeric[:, 0] > 0)
    return (features.numeric[:, 0].long() - 1).tolist()


def make_source(
    lengths: list[int], n_items: int, batch_size: int = 7, hidden: float = 0.5, seed: int = 0, **options: Any
) -> UserBatches:
    """Users 0, 1, ... with random histories of the given lengths."""
    rng = np.random.default_rng(11)
    items = np.concatenate([rng.permutation(n_items)[:length] for length in lengths])
    histories = Histories(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items.astype(np.int64), n_items)
    return UserBatches(
        Users(np.arange(len(lengths)), histories, named_features(len(lengths))),
        Items(np.arange(n_items), named_features(n_items)),
        batch_size,
        generator(seed),
        hidden=hidden,
        **options,
    )


def sampled(source: UserBatches, power: float = 0.0, **options: Any) -> UserBatches:
    """With negatives, and with targets that are all hidden unless told otherwise."""
    return replace(
        source, **{"predict_visible": False, "sampler": NegativeSampler(source.users.histories, power), **options}
    )


def negatives_of(batch: TrainingBatch) -> NegativeBatch:
    assert batch.negatives is not None
    assert batch.negatives.log_inclusion.shape == batch.negatives.items.shape
    return batch.negatives


def pairs_of(source: UserBatches, batch_size: int = 7, seed: int = 0, **options: Any) -> PairBatches:
    """Batches of the interactions of a source."""
    return PairBatches(source.users, source.items, batch_size, generator(seed), **options)


def owned(source: UserBatches | PairBatches) -> list[list[int]]:
    histories = source.users.histories
    return [histories.items[a:b].tolist() for a, b in zip(histories.indptr[:-1], histories.indptr[1:], strict=True)]


def split(batch: TrainingBatch) -> list[tuple[list[int], list[int]]]:
    """Visible items and positions to predict of each user of a batch."""
    history = batch.users.history
    visible = history.items.split(history.lengths.tolist())
    return [
        (seen.tolist(), batch.targets[batch.rows == row].tolist())
        for row, seen in zip(range(len(visible)), visible, strict=True)
    ]


def item_rows(items: ItemBatch) -> list[int]:
    return list(range(len(items.is_unknown))) if items.rows is None else items.rows.tolist()


def check_marks(source: UserBatches | PairBatches, batch: TrainingBatch, negatives: list[int]) -> None:
    is_positive = negatives_of(batch).is_positive
    assert is_positive is not None
    assert len(set(negatives)) == len(negatives)
    # Own items count whether they are hidden or visible.
    expected = [[item in owned(source)[user] for item in negatives] for user in batch.users.rows.tolist()]
    assert is_positive.tolist() == expected


LENGTHS = [1, 2, 3, 9, 30, 5, 1, 12, 4, 8, 2, 6, 7, 20, 1, 3, 10, 2, 25, 4]
NEGATIVES: dict[str, dict[str, Any]] = {
    "own": {"n_negatives": 3},
    "shared": {"n_negatives": 8, "shared": True},
    "in_batch": {"in_batch": True},
}


class TestEpoch:
    @pytest.mark.parametrize("batch_size", [1, 7, 10, 20, 50])
    def test_each_user_once(self, batch_size: int) -> None:
        source = make_source(LENGTHS, 40, batch_size)
        batches = list(source)
        assert len(batches) == len(source) == -(-20 // batch_size)
        assert all(len(batch.users) == batch_size for batch in batches[:-1])
        users = torch.cat([batch.users.rows for batch in batches]).tolist()
        assert sorted(users) == list(range(20))
        # In a new order each time.
        assert torch.cat([batch.users.rows for batch in source]).tolist() != users

    @pytest.mark.parametrize("options", NEGATIVES.values(), ids=NEGATIVES)
    def test_features_and_histories_are_those_of_the_users(self, options: dict[str, Any]) -> None:
        source = make_source(LENGTHS, 40)
        for kind in (source, sampled(source, **options)):
            for batch in kind:
                assert entity_of(batch.users.features) == batch.users.rows.tolist()
                assert entity_of(batch.items.features) == item_rows(batch.items)
                for user, (visible, _) in zip(batch.users.rows.tolist(), split(batch), strict=True):
                    everything = owned(source)[user]
                    # In the order of time.
                    assert visible == [item for item in everything if item in visible]

    @pytest.mark.parametrize("options", [None, *NEGATIVES.values()], ids=["none", *NEGATIVES])
    def test_same_seed_same_batches(self, options: dict[str, Any] | None) -> None:
        def batches(seed: int) -> list[torch.Tensor]:
            source = make_source(LENGTHS, 40, seed=seed, entity_dropout=0.3, positives_per_user=2)
            if options is not None:
                source = sampled(source, 0.5, **options)
            return [tensor for _ in range(2) for batch in source for tensor in tensors(batch)]

        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        first, second, third = batches(0), batches(0), batches(1)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, third, strict=False))

    def test_batch_moves_as_a_whole(self) -> None:
        batch = next(iter(sampled(make_source(LENGTHS, 40), n_negatives=2, shared=True)))
        moved = batch.to(torch.device("meta"))
        assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
        assert len(tensors(moved)) == len(tensors(batch))


def tensors(value: object) -> list[torch.Tensor]:
    """All tensors of a batch."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in vars(value).values() if part is not None for tensor in tensors(part)]


class TestPredictingAll:
    def test_predicts_all_items(self) -> None:
        source = make_source(LENGTHS, 40)
        for batch in source:
            assert batch.negatives is None
            assert item_rows(batch.items) == list(range(40))
            assert (batch.rows.diff() >= 0).all()
            for user, (_, targets) in zip(batch.users.rows.tolist(), split(batch), strict=True):
                assert targets == owned(source)[user]

    @pytest.mark.parametrize("hidden", [0.0, 0.2, 0.9])
    def test_hides_a_share_of_the_history(self, hidden: float) -> None:
        source = make_source([40] * 300, 60, 64, hidden)
        n_visible = sum(len(batch.users.history.items) for batch in source)
        deviation = (12_000 * hidden * (1 - hidden)) ** 0.5
        assert abs(n_visible - 12_000 * (1 - hidden)) <= 4 * deviation

    def test_positives_per_user(self) -> None:
        source = make_source(LENGTHS, 40, positives_per_user=3)
        for batch in source:
            for user, (_, targets) in zip(batch.users.rows.tolist(), split(batch), strict=True):
                everything = owned(source)[user]
                assert len(set(targets)) == len(targets) == min(3, len(everything))
                assert set(targets) <= set(everything)

    def test_positives_are_drawn_anew_and_evenly(self) -> None:
        source = make_source([6, 3, 9], 9, positives_per_user=2)
        times = np.zeros((3, 9))
        n_epochs = 1_000
        for _ in range(n_epochs):
            for batch in source:
                times[batch.users.rows[batch.rows].numpy(), batch.targets.numpy()] += 1
        for user, items in enumerate(owned(source)):
            counts = times[user, items]
            assert counts.sum() == times[user].sum() == 2 * n_epochs
            # Two of n without replacement: less spread than independent draws, so the test is on the safe side.
            assert stats.chisquare(counts).pvalue > SIGNIFICANCE
            assert (counts != counts[0]).any()


class TestWhatIsPredicted:
    @pytest.mark.parametrize("options", [None, *NEGATIVES.values()], ids=["none", *NEGATIVES])
    @pytest.mark.parametrize("predict_visible", [True, False])
    def test_all_items_or_the_hidden_ones(self, options: dict[str, Any] | None, predict_visible: bool) -> None:
        source = make_source(LENGTHS, 40, predict_visible=predict_visible)
        if options is not None:
            source = sampled(source, predict_visible=predict_visible, **options)
        n_visible = 0
        for batch in source:
            rows = np.array(item_rows(batch.items))
            for user, (visible, places) in zip(batch.users.rows.tolist(), split(batch), strict=True):
                everything = owned(source)[user]
                hidden = [item for item in everything if item not in visible]
                assert rows[places].tolist() == (everything if predict_visible else hidden)
                n_visible += len(visible)
        assert n_visible > 0


class TestHiddenTargets:
    @pytest.mark.parametrize("options", NEGATIVES.values(), ids=NEGATIVES)
    @pytest.mark.parametrize("hidden", [0.0, 0.5, 0.95])
    @pytest.mark.parametrize("positives", [None, 2])
    def test_target_is_never_visible(self, options: dict[str, Any], hidden: float, positives: int | None) -> None:
        source = make_source(LENGTHS, 40, hidden=hidden, positives_per_user=positives)
        for batch in sampled(source, **options):
            rows = np.array(item_rows(batch.items))
            for user, (visible, places) in zip(batch.users.rows.tolist(), split(batch), strict=True):
                targets = rows[places].tolist()
                assert not set(visible) & set(targets)
                assert 1 <= len(targets) == len(set(targets))
                if positives is None:
                    assert sorted(visible + targets) == sorted(owned(source)[user])
                else:
                    assert len(targets) <= positives
                    assert set(targets) <= set(owned(source)[user])

    def test_hides_the_share_and_at_least_one(self) -> None:
        source = sampled(make_source([1] * 50 + [40] * 300, 60, 64, 0.2))
        n_targets = np.zeros(350)
        for batch in source:
            n_targets[batch.users.rows.numpy()] = np.bincount(batch.rows.numpy(), minlength=len(batch.users))
        assert (n_targets[:50] == 1).all()
        assert (n_targets >= 1).all()
        # With 40 items all of them stay visible about once in ten thousand times.
        assert abs(n_targets[50:].sum() - 12_000 * 0.2) <= 4 * (12_000 * 0.2 * 0.8) ** 0.5

    def test_the_one_hidden_item_is_any_of_them(self) -> None:
        source = sampled(make_source([5], 50, hidden=0.0), n_negatives=1)
        times = np.zeros(50)
        for _ in range(500):
            (batch,) = source
            times[np.array(item_rows(batch.items))[batch.targets]] += 1
        assert times[owned(source)[0]].sum() == times.sum() == 500
        assert stats.chisquare(times[owned(source)[0]]).pvalue > SIGNIFICANCE

    def test_own_negatives(self) -> None:
        source = sampled(make_source(LENGTHS, 200), n_negatives=4)
        n_compact = 0
        for batch in source:
            rows = np.array(item_rows(batch.items))
            n_compact += batch.items.rows is not None
            own = negatives_of(batch)
            assert own.is_positive is None
            assert own.items.shape == (len(batch.targets), 4)
            for row, negatives in zip(batch.rows.tolist(), own.items, strict=True):
                user = int(batch.users.rows[row])
                assert not set(rows[negatives].tolist()) & set(owned(source)[user])
        assert n_compact > 0

    def test_shared_candidates(self) -> None:
        source = sampled(make_source(LENGTHS, 40), n_negatives=8, shared=True)
        for batch in source:
            rows = np.array(item_rows(batch.items))
            candidates = negatives_of(batch).items
            assert candidates.ndim == 1
            assert 1 <= len(candidates) <= 8
            check_marks(source, batch, rows[candidates].tolist())

    def test_candidates_of_the_batch(self) -> None:
        source = sampled(make_source(LENGTHS, 40), 1.0, in_batch=True)
        for batch in source:
            rows = np.array(item_rows(batch.items))
            negatives = rows[negatives_of(batch).items].tolist()
            assert sorted(negatives) == sorted(set(rows[batch.targets].tolist()))
            check_marks(source, batch, negatives)

    @pytest.mark.parametrize("options", NEGATIVES.values(), ids=NEGATIVES)
    def test_only_items_that_occur_get_a_vector(self, options: dict[str, Any]) -> None:
        source = sampled(make_source(LENGTHS, 500), **options)
        for batch in source:
            assert batch.items.rows is not None
            used = torch.cat([batch.targets, negatives_of(batch).items.flatten()]).unique()
            assert used.tolist() == list(range(len(batch.items.rows)))
            assert len(batch.items.rows.unique()) == len(batch.items.rows)

    def test_whole_catalogue_where_most_of_it_occurs(self) -> None:
        for batch in sampled(make_source(LENGTHS, 40), n_negatives=20):
            assert batch.items.rows is None
            assert entity_of(batch.items.features) == list(range(40))


class TestLogInclusion:
    """The weights of the negatives make the sum over the sample an unbiased estimate of the sum over the catalogue."""

    @pytest.mark.parametrize("power", [0.0, 1.0])
    @pytest.mark.parametrize("n", [2, 10, 25])
    @pytest.mark.parametrize("shared", [True, False])
    def test_estimates_the_sum_over_the_catalogue(self, power: float, n: int, shared: bool) -> None:
        source = make_source([6, 4, 7, 2, 3, 8, 5, 4, 6], 12, 10)
        assert source.users.histories.popularity().min() > 0
        source = sampled(source, power, n_negatives=n, shared=shared)
        values = torch.linspace(0.5, 3, 12)
        estimates: list[list[float]] = [[] for _ in owned(source)]
        for _ in range(150):
            (batch,) = source
            drawn = negatives_of(batch)
            terms = values[torch.tensor(item_rows(batch.items))[drawn.items]] * torch.exp(-drawn.log_inclusion)
            for row, user in enumerate(batch.users.rows.tolist()):
                if drawn.is_positive is not None:
                    estimates[user].append(float(terms[~drawn.is_positive[row]].sum()))
                else:
                    estimates[user].append(float(terms[batch.rows == row].sum(dim=1).mean()))
        for user, own in enumerate(owned(source)):
            others = np.setdiff1d(np.arange(12), own)
            error = np.std(estimates[user]) / len(estimates[user]) ** 0.5
            assert np.mean(estimates[user]) == pytest.approx(float(values[others].sum()), abs=4.5 * error + 1e-4)

    def test_candidates_of_the_batch_count_its_targets(self) -> None:
        source = sampled(make_source(LENGTHS, 40), 1.0, in_batch=True)
        sampler = source.sampler
        assert sampler is not None
        for batch in source:
            candidates = negatives_of(batch)
            rows = torch.tensor(item_rows(batch.items))[candidates.items]
            assert torch.equal(candidates.log_inclusion, sampler.log_inclusion(len(batch.targets))[rows])


class TestEntityDropout:
    def test_shares(self) -> None:
        n_users, n_items, share = 3_000, 500, 0.3
        source = make_source([4] * n_users, n_items, 500, entity_dropout=share)
        dropped = {"user": 0, "user features": 0, "item": 0, "item features": 0, "user both": 0, "item both": 0}
        for batch in source:
            is_new = (batch.users.rows < 0).numpy()
            no_features = np.array(entity_of(batch.users.features)) < 0
            unknown = batch.items.is_unknown[:, 0].numpy()
            no_item_features = np.array(entity_of(batch.items.features)) < 0
            dropped["user"] += is_new.sum()
            dropped["user features"] += no_features.sum()
            dropped["user both"] += (is_new & no_features).sum()
            dropped["item"] += unknown.sum()
            dropped["item features"] += no_item_features.sum()
            dropped["item both"] += (unknown & no_item_features).sum()
            # Who loses the id loses the history, and is still predicted.
            assert (batch.users.history.lengths.numpy()[is_new] == 0).all()
            assert set(batch.rows.tolist()) == set(range(len(batch.users)))
        for name, count in dropped.items():
            p = share**2 if name.endswith("both") else share
            # Six batches, each with the whole catalogue.
            n = 6 * n_items if name.startswith("item") else n_users
            assert abs(count - n * p) <= 4 * (n * p * (1 - p)) ** 0.5, name

    @pytest.mark.parametrize("options", NEGATIVES.values(), ids=NEGATIVES)
    def test_what_is_left_belongs_to_the_right_entities(self, options: dict[str, Any]) -> None:
        source = sampled(make_source(LENGTHS, 500, entity_dropout=0.4), **options)
        n_unknown = 0
        for batch in source:
            for known, name in zip(batch.users.rows.tolist(), entity_of(batch.users.features), strict=True):
                assert name == -1 or known == -1 or name == known
            for row, name in zip(item_rows(batch.items), entity_of(batch.items.features), strict=True):
                assert name in (-1, row)
            n_unknown += int(batch.items.is_unknown.sum())
        assert n_unknown > 0

    def test_nothing_is_dropped_by_default(self) -> None:
        for batch in make_source(LENGTHS, 40):
            assert (batch.users.rows >= 0).all()
            assert not batch.items.is_unknown.any()


class TestPairs:
    """Interactions instead of users; what negatives there are is as for users."""

    PAIR_NEGATIVES: dict[str, dict[str, Any]] = {  # noqa: RUF012
        "own": {"name": "uniform", "n": 3},
        "popular": {"name": "popularity", "n": 3, "power": 0.5},
        "shared": {"name": "uniform", "n": 8, "shared": True},
        "in_batch": {"name": "in_batch"},
        "hard": {"name": "hard", "n": 2, "pool": 4},
    }

    @pytest.fixture(params=PAIR_NEGATIVES)
    def source(self, request: pytest.FixtureRequest) -> PairBatches:
        negatives = NegativesConfig(**self.PAIR_NEGATIVES[request.param])
        return pairs_of(make_source(LENGTHS, 60), 10).with_negatives(negatives)

    @staticmethod
    def epoch(source: PairBatches) -> list[tuple[int, int]]:
        pairs = []
        for batch in source:
            users, items = batch.users.rows[batch.rows], torch.tensor(item_rows(batch.items))[batch.targets]
            pairs += list(zip(users.tolist(), items.tolist(), strict=True))
        return pairs

    @pytest.mark.parametrize("batch_size", [1, 10, sum(LENGTHS), 1000])
    def test_each_pair_once(self, batch_size: int) -> None:
        source = pairs_of(make_source(LENGTHS, 40), batch_size)
        assert len(source) == len(list(source)) == -(-sum(LENGTHS) // batch_size)
        sizes = [len(batch.rows) for batch in source]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        first, second = self.epoch(source), self.epoch(source)
        assert first != second
        expected = [(user, item) for user, items in enumerate(owned(source)) for item in items]
        assert sorted(first) == sorted(second) == sorted(expected)

    def test_users_are_there_once_and_without_histories(self, source: PairBatches) -> None:
        for batch in source:
            assert batch.users.rows.tolist() == sorted(set(batch.users.rows.tolist()))
            assert set(batch.rows.tolist()) == set(range(len(batch.users)))
            assert batch.users.history.lengths.tolist() == [0] * len(batch.users)
            assert len(batch.users.history.items) == 0
            assert entity_of(batch.users.features) == batch.users.rows.tolist()
            assert entity_of(batch.items.features) == item_rows(batch.items)

    def test_negatives_are_not_positives(self, source: PairBatches) -> None:
        for batch in source:
            rows, drawn = np.array(item_rows(batch.items)), negatives_of(batch)
            if drawn.is_positive is not None:
                check_marks(source, batch, rows[drawn.items].tolist())
                continue
            assert drawn.items.shape == (len(batch.targets), source.n_negatives)
            for row, negatives in zip(batch.rows.tolist(), drawn.items, strict=True):
                assert not set(rows[negatives].tolist()) & set(owned(source)[int(batch.users.rows[row])])

    def test_rows_of_a_part_of_the_users(self) -> None:
        """Rows are those of the fitted model, whatever the positions."""
        source = make_source(LENGTHS, 40)
        part = pairs_of(replace(source, users=source.users.take(np.array([3, 8, 9]))))
        part = part.with_negatives(NegativesConfig(n=4))
        expected = [(user, item) for user in (3, 8, 9) for item in owned(source)[user]]
        assert sorted(self.epoch(part)) == sorted(expected)

    @pytest.mark.parametrize("batch_size", [7, 60])
    def test_without_negatives_only_the_targets_get_a_vector(self, batch_size: int) -> None:
        for batch in pairs_of(make_source(LENGTHS, 40), batch_size):
            assert batch.negatives is None
            if len(batch.targets) >= 40:  # most of the catalogue anyway
                assert item_rows(batch.items) == list(range(40))
            else:
                assert batch.targets.unique().tolist() == list(range(len(item_rows(batch.items))))

    def test_weights_go_with_their_pairs(self) -> None:
        source = make_source(LENGTHS, 40)
        histories = source.users.histories
        weights = 100.0 * histories.rows() + histories.items
        source = replace(source, users=replace(source.users, histories=replace(histories, weights=weights)))
        for batch in pairs_of(source):
            assert batch.weights is not None
            targets = torch.tensor(item_rows(batch.items))[batch.targets]
            assert torch.equal(batch.weights, (100.0 * batch.users.rows[batch.rows] + targets).float())

    def test_same_seed_same_batches(self, source: PairBatches) -> None:
        one, other, third = (replace(source, generator=generator(seed)) for seed in (0, 0, 1))
        first = [tensor for batch in one for tensor in tensors(batch)]
        assert all(torch.equal(a, b) for a, b in zip(first, [t for b in other for t in tensors(b)], strict=True))
        assert self.epoch(replace(one, generator=generator(0))) != self.epoch(third)

    def test_entity_dropout(self) -> None:
        source = pairs_of(make_source([4] * 500, 60), 100, entity_dropout=0.3)
        dropped = torch.cat([batch.users.rows < 0 for batch in source]).float()
        assert abs(dropped.mean() - 0.3) <= 4 * (0.3 * 0.7 / len(dropped)) ** 0.5


class TestGivenPairs:
    """Interactions one by one instead of those of the histories: repeated, with weights and context."""

    @pytest.fixture
    def source(self) -> PairBatches:
        source = make_source(LENGTHS, 40)
        rng = np.random.default_rng(5)
        n = 200
        users = rng.integers(0, len(LENGTHS), n)
        items = np.array([rng.choice(owned(source)[user]) for user in users])
        assert len(set(zip(users, items, strict=True))) < n
        pairs = Pairs(users, items, np.arange(n, dtype=np.float32), named_features(n))
        return pairs_of(replace(source, users=replace(source.users, pairs=pairs)), 30)

    @pytest.mark.parametrize("negatives", [None, NegativesConfig(n=3)], ids=["none", "own"])
    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_each_with_its_own(self, source: PairBatches, negatives: NegativesConfig | None, dropout: float) -> None:
        pairs = source.users.pairs
        assert pairs is not None
        source = replace(source, entity_dropout=dropout)
        seen: list[int] = []
        for batch in source if negatives is None else source.with_negatives(negatives):
            assert (batch.negatives is None) == (negatives is None)
            assert batch.weights is not None
            assert batch.context is not None
            which = batch.weights.long()
            # Nothing of the context is dropped: it is never unknown by itself.
            assert entity_of(batch.context) == which.tolist()
            rows = torch.tensor(item_rows(batch.items))[batch.targets]
            assert rows.tolist() == pairs.items[which].tolist()
            users = batch.users.rows[batch.rows]
            assert set(zip(users.tolist(), pairs.users[which].tolist(), strict=True)) <= {
                (user, own) for own in range(len(LENGTHS)) for user in ((-1, own) if dropout else (own,))
            }
            assert torch.equal(batch.rows.unique(), torch.arange(len(batch.users)))
            seen += which.tolist()
        assert sorted(seen) == list(range(200))
        assert seen != sorted(seen)

    def test_negatives_are_not_in_the_history(self, source: PairBatches) -> None:
        for batch in source.with_negatives(NegativesConfig(n=4)):
            rows, drawn = np.array(item_rows(batch.items)), negatives_of(batch)
            for row, negatives in zip(batch.rows.tolist(), drawn.items, strict=True):
                assert not set(rows[negatives].tolist()) & set(owned(source)[int(batch.users.rows[row])])

    def test_without_weights_and_context(self, source: PairBatches) -> None:
        pairs = source.users.pairs
        assert pairs is not None
        bare = replace(source.users, pairs=Pairs(pairs.users, pairs.items, None))
        batches = list(replace(source, users=bare))
        assert sum(len(batch.rows) for batch in batches) == 200
        assert all(batch.weights is None and batch.context is None for batch in batches)
