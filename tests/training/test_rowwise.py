"""Tables of which a batch touches few rows end up as those that AdamW updates whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning import Callback
from rectools.dataset import Dataset
from torch import nn

from rectools_neural import model_from_config
from rectools_neural.nn.bags import sum_of_rows, take_rows, watch
from rectools_neural.training import loop, rowwise
from rectools_neural.training.rowwise import RowwiseAdamW


class Both:
    """The same weights under AdamW and under ours: two tables and a layer, learning random targets."""

    def __init__(self, n_rows: int, rate: float, decay: float, seed: int) -> None:
        self.draws = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=self.draws)  # noqa: E731
        start = [normal(n_rows, 3), normal(n_rows, 1), normal(2, 3)]
        self.target, self.n_rows, self.rate, self.n_steps = normal(n_rows, 3), n_rows, rate, 0
        self.expected, self.actual = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
        whole = torch.optim.AdamW(self.expected, lr=rate, weight_decay=decay)
        self.ours = RowwiseAdamW(self.actual, self.actual[:2], lr=rate, weight_decay=decay)
        self.sides: list[tuple[list[nn.Parameter], torch.optim.Optimizer]] = [
            (self.expected, whole),
            (self.actual, self.ours),
        ]

    def step(self, rows: torch.Tensor, reads_all: bool) -> None:
        """One step of either, at a rate that changes; rows may repeat."""
        self.n_steps += 1
        lengths = torch.tensor([len(rows)])
        for (table, bias, layer), optimizer in self.sides:
            optimizer.param_groups[0]["lr"] = self.rate / self.n_steps**0.5
            optimizer.zero_grad()
            error = take_rows(table, rows) + take_rows(bias, rows) - self.target[rows]
            loss = error.square().sum() + (sum_of_rows(table, rows, lengths) @ layer.T).square().sum()
            if reads_all:
                loss = loss + take_rows(bias, None).sum()
            loss.backward()
            assert layer.grad is not None
            assert table.grad is not None
            assert table.grad.is_sparse == (optimizer is self.ours)
            optimizer.step()

    def assert_equal(self) -> None:
        for actual, expected in zip(self.actual, self.expected, strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


class TestRowwiseAdamW:
    @given(
        seed=st.integers(0, 2**31),
        rate=st.floats(1e-4, 0.1),
        decay=st.floats(0, 2),
        n_steps=st.integers(1, 40),
        window=st.integers(1, 50),
    )
    def test_equals_adamw(self, seed: int, rate: float, decay: float, n_steps: int, window: int) -> None:
        both = Both(9, rate, decay, seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rowwise, "WINDOW", window)
            for _ in range(n_steps):
                n = int(torch.randint(1, 5, (), generator=both.draws))
                both.step(torch.randint(9, (n,), generator=both.draws), both.n_steps == 20)
        both.ours.catch_up()
        both.assert_equal()

    def test_leaves_the_other_rows_alone(self) -> None:
        both = Both(5, 0.1, 0.5, 0)
        both.step(torch.tensor([0, 1]), False)
        before = both.actual[0][1].detach().clone()
        both.step(torch.tensor([0, 2]), False)
        assert torch.equal(both.actual[0][1], before)
        # A look-up is enough.
        take_rows(both.actual[0], torch.tensor([1]))
        torch.testing.assert_close(both.actual[0][1], both.expected[0][1])

    def test_goes_on_from_its_state(self) -> None:
        both, other = Both(6, 0.1, 0.5, 1), Both(6, 0.1, 0.5, 1)
        for rows in ([0, 1], [2, 1], [4, 4]):
            both.step(torch.tensor(rows), False)
        other.ours.load_state_dict(copy.deepcopy(both.ours.state_dict()))
        for mine, theirs in zip(both.actual, other.actual, strict=True):
            theirs.data.copy_(mine.data)
        other.n_steps, other.sides = both.n_steps, other.sides[1:]
        for rows in ([5, 1], [0, 2]):
            both.step(torch.tensor(rows), False)
            other.step(torch.tensor(rows), False)
        for optimizer in (both.ours, other.ours):
            optimizer.catch_up()
        for mine, theirs in zip(both.actual, other.actual, strict=True):
            assert torch.equal(mine, theirs)

    def test_watching_ends(self) -> None:
        table = nn.Parameter(torch.ones(4, 2))
        watch(table, lambda *_: pytest.fail("still watched"))
        watch(table, None)
        take_rows(table, torch.tensor([1])).sum().backward()
        assert table.grad is not None
        assert not table.grad.is_sparse


class Optimizers(Callback):
    """Notes what trained."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen += trainer.optimizers


@pytest.fixture(scope="module")
def dataset(make_frames: Any) -> Dataset:
    return make_frames().dataset()


def fit(dataset: Dataset, **options: Any) -> tuple[Any, Any]:
    callback = Optimizers()
    config = {
        "cls": "DLRMModel",
        "loss": "bce",
        "epochs": 3,
        "batch_size": 16,
        "n_factors": 4,
        "device": "cpu",
        "get_trainer_func_kwargs": {"callbacks": [callback]},
        **options,
    }
    return model_from_config(config).fit(dataset), callback.seen[0]


def test_models_of_pairs(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, optimizer = fit(dataset)
    assert isinstance(optimizer, torch.optim.AdamW)  # the tables are small
    monkeypatch.setattr(loop, "_LARGE", 0.1)
    by_rows, optimizer = fit(dataset)
    assert isinstance(optimizer, RowwiseAdamW)
    weights = whole._fitted.module.state_dict()
    for name, tensor in by_rows._fitted.module.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-3)
    assert by_rows.history["loss"].to_list() == pytest.approx(whole.history["loss"].to_list(), abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": {"name": "adam", "l2": 0.1}},
        {"optimizer": {"name": "adamw", "l1": 0.1}},
        {"optimizer": {"name": "adamw", "gradient_clipping": 1.0}},
        {"optimizer": "sgd"},
        {"loss": "sampled_softmax"},
    ],
    ids=lambda options: str(options),
)
def test_where_gradients_are_needed_whole(
    options: dict[str, Any], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_LARGE", 0.1)
    model, optimizer = fit(dataset, **options)
    assert not isinstance(optimizer, RowwiseAdamW)
    assert not any(getattr(p, "before_look_up", None) for p in model._fitted.module.parameters())
