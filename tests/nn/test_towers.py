from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rectools_neural.config import TowerConfig
from rectools_neural.nn.towers import ACTIVATIONS, make_tower

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def test_linear_is_the_identity(x: torch.Tensor) -> None:
    tower = make_tower(TowerConfig(name="linear", hidden=(3,)), 6)
    assert list(tower.parameters()) == []
    assert torch.equal(tower(x), x)


def test_all_activations_are_tested() -> None:
    assert set(ACTIVATIONS) == set(FUNCTIONS)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_mlp(activation: Any, x: torch.Tensor) -> None:
    tower = make_tower(TowerConfig(name="mlp", hidden=(4, 7), activation=activation), 6)
    first, second, last = linears(tower)
    f = FUNCTIONS[activation]
    torch.testing.assert_close(tower(x), last(f(second(f(first(x))))))
    assert [tuple(layer.weight.shape) for layer in (first, second, last)] == [(4, 6), (7, 4), (6, 7)]


def test_mlp_without_hidden_layers(x: torch.Tensor) -> None:
    tower = make_tower(TowerConfig(name="mlp", hidden=()), 6)
    (only,) = linears(tower)
    torch.testing.assert_close(tower(x), only(x))


def test_residual_starts_as_the_identity(x: torch.Tensor) -> None:
    tower = make_tower(TowerConfig(name="residual", hidden=(4, 7)), 6)
    assert torch.equal(tower(x), x)


def test_residual(x: torch.Tensor) -> None:
    tower = make_tower(TowerConfig(name="residual", hidden=(4, 7), activation="tanh"), 6)
    in_1, out_1, in_2, out_2 = linears(tower)
    for layer in (out_1, out_2):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    middle = x + out_1(torch.tanh(in_1(x)))
    expected = middle + out_2(torch.tanh(in_2(middle)))
    torch.testing.assert_close(tower(x), expected)
    assert not torch.allclose(expected, x)


def test_residual_learns_from_the_start(x: torch.Tensor) -> None:
    tower = make_tower(TowerConfig(name="residual", hidden=(4,)), 6)
    tower(x).square().sum().backward()
    _, out = linears(tower)
    assert out.weight.grad is not None
    assert out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["mlp", "residual"])
@pytest.mark.parametrize(("normalisation", "axis"), [("layer", 1), ("batch", 0)])
def test_normalisation_of_the_hidden_layer(name: Any, normalisation: Any, axis: int, x: torch.Tensor) -> None:
    tower = make_tower(TowerConfig(name=name, hidden=(8,), normalisation=normalisation), 6).train()
    seen: list[torch.Tensor] = []
    (activation,) = [layer for layer in tower.modules() if isinstance(layer, nn.ReLU)]
    activation.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    tower(x)
    # Before the activation; over the units of each row, or over the rows of each unit.
    mean, deviation = seen[0].mean(dim=axis), seen[0].std(dim=axis, unbiased=False)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
    torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=1e-2, rtol=0)


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_dropout_is_of_training_alone(name: Any) -> None:
    tower = make_tower(TowerConfig(name=name, hidden=(2000,), dropout=0.3), 6)
    seen: list[torch.Tensor] = []
    (dropout,) = [layer for layer in tower.modules() if isinstance(layer, nn.Dropout)]
    dropout.register_forward_hook(lambda _, inputs, output: seen.extend([inputs[0], output]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower.train()(torch.randn(20, 6))
    before, after = seen
    dropped = (after == 0) & (before > 0)
    # 40 000 units, about half of them positive before.
    assert float(dropped.sum() / (before > 0).sum()) == pytest.approx(0.3, abs=0.015)
    seen.clear()
    tower.eval()(torch.randn(20, 6))
    assert torch.equal(seen[0], seen[1])


def test_no_dropout_layer_by_default() -> None:
    tower = make_tower(TowerConfig(name="mlp", hidden=(3,)), 6)
    assert not [layer for layer in tower.modules() if isinstance(layer, nn.Dropout)]
