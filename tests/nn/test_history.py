from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rectools_neural.config import HistoryEncoderConfig
from rectools_neural.data.batches import HistoryBatch
from rectools_neural.nn.history import make_history_encoder

DIM, N_ITEMS = 8, 20
SEQUENTIAL = ["gru", "transformer"]
LIMITED = ["attention", *SEQUENTIAL]
ALL = ["mean", *LIMITED]

Encode = Callable[..., torch.Tensor]


def batch(*histories: list[int]) -> HistoryBatch:
    items = [item for history in histories for item in history]
    lengths = [len(history) for history in histories]
    return HistoryBatch(torch.tensor(items, dtype=torch.int64), torch.tensor(lengths, dtype=torch.int64))


def make(name: Any, **options: Any) -> tuple[nn.Module, torch.Tensor]:
    """An encoder with weights large enough for all of them to matter, in float64, and the item embedding."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = make_history_encoder(HistoryEncoderConfig(name=name, **options), DIM).double().eval()
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=0.5)
        return encoder, torch.randn(N_ITEMS, DIM, dtype=torch.float64)


def encode(name: str, *histories: list[int], **options: Any) -> torch.Tensor:
    encoder, embedding = make(name, **options)
    with torch.no_grad():
        result = encoder(batch(*histories), embedding)
    assert result.shape == (len(histories), DIM)
    return torch.as_tensor(result)


class TestBatch:
    @given(st.lists(st.lists(st.integers(0, 19), max_size=7), min_size=1, max_size=6), st.integers(1, 8))
    def test_padded(self, histories: list[list[int]], max_length: int) -> None:
        items, mask = batch(*histories).padded(max_length)
        latest = [history[-max_length:] for history in histories]
        longest = max(1, *(len(history) for history in latest))
        assert items.shape == mask.shape == (len(histories), longest)
        for row, history in enumerate(latest):
            assert items[row][mask[row]].tolist() == history
            assert mask[row].tolist() == [True] * len(history) + [False] * (longest - len(history))

    def test_no_users(self) -> None:
        items, mask = batch().padded(3)
        assert items.shape == mask.shape == (0, 1)

    @given(st.lists(st.lists(st.tuples(st.integers(0, 19), st.booleans()), max_size=7), min_size=1, max_size=6))
    def test_keep(self, histories: list[list[tuple[int, bool]]]) -> None:
        whole = batch(*([item for item, _ in history] for history in histories))
        mask = torch.tensor([kept for history in histories for _, kept in history], dtype=torch.bool)
        expected = batch(*([item for item, kept in history if kept] for history in histories))
        actual = whole.keep(mask)
        assert actual.items.tolist() == expected.items.tolist()
        assert actual.lengths.tolist() == expected.lengths.tolist()

    def test_rows_and_offsets(self) -> None:
        histories = batch([4, 5], [], [6])
        assert histories.rows().tolist() == [0, 0, 2]
        assert histories.offsets().tolist() == [0, 2, 2]


class TestAllEncoders:
    @pytest.mark.parametrize("name", ALL)
    def test_padding_does_not_matter(self, name: str) -> None:
        histories = [[3, 1, 7], [], [5], list(range(15)), [9, 9, 2, 4]]
        together = encode(name, *histories)
        for row, history in enumerate(histories):
            alone = encode(name, history)
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("name", ALL)
    def test_empty_history_gives_zeros(self, name: str) -> None:
        assert encode(name, [], [1, 2])[0].tolist() == [0.0] * DIM
        assert encode(name, [], []).abs().sum() == 0
        assert encode(name).shape == (0, DIM)

    @pytest.mark.parametrize("name", ALL)
    def test_every_item_counts(self, name: str) -> None:
        base = encode(name, [1, 2, 3, 4])[0]
        for place in range(4):
            changed = [1, 2, 3, 4]
            changed[place] = 15
            assert (encode(name, changed)[0] - base).abs().max() > 1e-4

    @pytest.mark.parametrize("name", ALL)
    def test_gradients_are_finite_and_reach_the_items(self, name: str) -> None:
        encoder, embedding = make(name)
        embedding.requires_grad_()
        encoder.train()(batch([1, 2], [], [3]), embedding).square().sum().backward()
        assert embedding.grad is not None
        assert embedding.grad.isfinite().all()
        assert (embedding.grad[[1, 2, 3]].abs().sum(dim=1) > 0).all()
        # The padding is item 0 and must not be trained.
        assert embedding.grad[0].abs().sum() == 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())

    @pytest.mark.parametrize("name", LIMITED)
    def test_max_length_keeps_the_latest(self, name: str) -> None:
        kept = encode(name, [7, 8, 9], max_length=3)
        torch.testing.assert_close(encode(name, [1, 2, 7, 8, 9], [4], max_length=3)[:1], kept, rtol=0, atol=1e-12)
        assert (encode(name, [1, 2, 7, 8, 9], max_length=5)[0] - kept[0]).abs().max() > 1e-4

    def test_max_length_is_not_for_the_mean(self) -> None:
        assert torch.equal(encode("mean", [1, 2, 3], max_length=1), encode("mean", [1, 2, 3], max_length=9))

    @pytest.mark.parametrize("name", SEQUENTIAL)
    def test_order_matters(self, name: str) -> None:
        base = encode(name, [1, 2, 3, 4])[0]
        for history in ([2, 1, 3, 4], [1, 2, 4, 3], [4, 3, 2, 1]):
            assert (encode(name, history)[0] - base).abs().max() > 1e-3

    @pytest.mark.parametrize("name", ["mean", "attention"])
    def test_order_does_not_matter(self, name: str) -> None:
        torch.testing.assert_close(encode(name, [1, 2, 3, 4]), encode(name, [4, 2, 1, 3]), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("name", LIMITED)
    def test_dropout_is_of_training_alone(self, name: str) -> None:
        encoder, embedding = make(name, dropout=0.5, n_layers=2)
        history = batch([1, 2, 3, 4])
        assert torch.equal(encoder(history, embedding), encoder(history, embedding))
        encoder.train()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert not torch.equal(encoder(history, embedding), encoder(history, embedding))

    @pytest.mark.parametrize("name", LIMITED)
    def test_works_in_float32(self, name: str) -> None:
        encoder, embedding = make(name)
        low = encoder.float()(batch([1, 2, 3], [4]), embedding.float())
        assert low.dtype == torch.float32
        torch.testing.assert_close(low.double(), encode(name, [1, 2, 3], [4]), rtol=1e-4, atol=1e-4)


class TestMean:
    @pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
    def test_by_hand(self, power: float) -> None:
        _, embedding = make("mean")
        actual = encode("mean", [1, 2, 3, 4], [5], power=power)
        torch.testing.assert_close(actual[0], embedding[1:5].sum(dim=0) / 4**power)
        torch.testing.assert_close(actual[1], embedding[5])


class TestAttention:
    def test_starts_as_the_mean_of_power_one_half(self) -> None:
        _, embedding = make("mean")
        encoder = make_history_encoder(HistoryEncoderConfig(name="attention"), DIM).double().eval()
        histories = batch([1, 2, 3, 4], [], [5])
        expected = make_history_encoder(HistoryEncoderConfig(name="mean", power=0.5), DIM)(histories, embedding)
        torch.testing.assert_close(encoder(histories, embedding), expected)

    def test_by_hand(self) -> None:
        encoder, embedding = make("attention", n_heads=2)
        values = embedding[[3, 5, 8]]
        keys = encoder.get_submodule("key")(values)
        query = encoder.get_parameter("query")
        heads = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            weights = (keys[:, part] @ query[head]).softmax(dim=0)
            heads.append(weights @ values[:, part])
        torch.testing.assert_close(encode("attention", [3, 5, 8])[0], torch.cat(heads).detach() * 3**0.5)


class TestGRU:
    def test_is_the_state_after_the_last_item(self) -> None:
        encoder, embedding = make("gru", n_layers=2)
        _, last = encoder.get_submodule("gru")(embedding[[3, 5, 8]].unsqueeze(0))
        torch.testing.assert_close(encode("gru", [3, 5, 8], [1], n_layers=2)[0], last[-1, 0].detach())


class TestTransformer:
    @pytest.mark.parametrize("n_layers", [1, 3])
    def test_is_causal(self, n_layers: int) -> None:
        encoder, embedding = make("transformer", n_layers=n_layers)
        states: list[torch.Tensor] = []
        encoder.get_submodule("blocks").register_forward_hook(lambda _, __, output: states.append(output))
        with torch.no_grad():
            encoder(batch([1, 2, 3, 4]), embedding)
            encoder(batch([1, 2, 9, 4]), embedding)
        torch.testing.assert_close(states[0][:, :2], states[1][:, :2], rtol=0, atol=1e-12)
        assert ((states[0] - states[1])[:, 2:].abs().amax(dim=2) > 1e-4).all()

    def test_positions_count_back_from_the_latest_item(self) -> None:
        # With blocks that do nothing the position of the latest item is all that is added to it.
        encoder, embedding = make("transformer", max_length=5)
        for block in encoder.get_submodule("blocks").get_submodule("layers").children():
            for name in ("self_attn.out_proj", "linear2"):
                layer = block.get_submodule(name)
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)
        position = encoder.get_parameter("position").detach()
        with torch.no_grad():
            actual = encoder(batch([3], [1, 2, 3], [9, 9, 9, 9, 9, 9, 3]), embedding)
        torch.testing.assert_close(actual, (embedding[3] + position[0]).expand(3, DIM))
