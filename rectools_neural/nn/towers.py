"""Towers: what turns an embedded entity into its final vector."""

from __future__ import annotations

import torch
from torch import nn

from ..config import TowerConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def make_tower(config: TowerConfig, dim: int) -> nn.Module:
    """Build the tower of a config, from `dim` to `dim`."""
    if config.name == "linear":
        return nn.Identity()
    if config.name == "residual":
        return nn.Sequential(*(ResidualBlock(dim, size, config) for size in config.hidden))
    sizes = (dim, *config.hidden)
    layers = [layer for pair in zip(sizes, config.hidden, strict=False) for layer in _hidden_layer(*pair, config)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], dim))


class ResidualBlock(nn.Module):
    """``x + W2 activation(W1 x)``, the identity at the start."""

    def __init__(self, dim: int, hidden: int, config: TowerConfig) -> None:
        super().__init__()
        self.body = nn.Sequential(*_hidden_layer(dim, hidden, config))
        self.out = nn.Linear(hidden, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform vectors, shape ``(n, dim)`` to the same."""
        return x + self.out(self.body(x))


def _hidden_layer(size_in: int, size: int, config: TowerConfig) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(size_in, size)]
    if config.normalisation == "layer":
        layers.append(nn.LayerNorm(size))
    elif config.normalisation == "batch":
        layers.append(nn.BatchNorm1d(size))
    layers.append(ACTIVATIONS[config.activation]())
    if config.dropout > 0:
        layers.append(nn.Dropout(config.dropout))
    return layers
