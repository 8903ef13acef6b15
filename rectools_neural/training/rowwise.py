"""AdamW for large tables of which a batch touches few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.adamw import adamw

from ..nn.bags import watch

#: Steps after which all rows catch up, at the latest: the factors of every number of missed steps are kept till then.
WINDOW = 1024
_NOTHING_MISSED = torch.tensor([[1.0], [0.0], [1.0], [1.0]], dtype=torch.float64)


@dataclass
class _Part:
    """Weights, their gradient and its moments; which rows of a parameter they are copies of, None for itself."""

    rows: torch.Tensor | None
    gradient: torch.Tensor
    weight: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor


class RowwiseAdamW(torch.optim.Optimizer):
    """
    AdamW that leaves rows alone while their gradient is 0, and makes up for the steps that they missed at the next one.

    A gradient of 0 changes weights too: it shrinks both moments and the weight, and the momentum still carries it on.
    Many such steps are one as long as ``eps`` is negligible: up to that the weights are those of `torch.optim.AdamW`
    whenever `take_rows` or `sum_of_rows` looks them up. Whoever reads a table otherwise calls `catch_up` before.

    Parameters
    ----------
    params : iterable of torch.Tensor
        What to train, on the CPU.
    tables : iterable of torch.Tensor
        Those of them that are treated so, until one has a dense gradient, which needs all its rows.
    lr : float
        Learning rate; a schedule may change it.
    weight_decay : float
        Decoupled weight decay.
    betas : tuple of float
        Decay of the first and second moment.
    eps : float
        Added to the root of the second moment.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        tables: Iterable[torch.Tensor],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "step": 0})
        # For rows that last caught up after so many steps of the window: what their weights, the ratio of their
        # moments, and each moment have to be multiplied by.
        self._missed = _NOTHING_MISSED.repeat(1, WINDOW + 1)
        self._position = 0
        # At which step of the window each row of a table caught up.
        self._current = {table: torch.zeros(len(table), dtype=torch.int64) for table in tables}
        for table in self._current:
            watch(table, self._before_look_up)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._position == WINDOW:
            self.catch_up()
        (group,) = self.param_groups
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        parts = [self._part(parameter) for parameter in trained]
        adamw(
            [part.weight for part in parts],
            [part.gradient for part in parts],
            [part.first for part in parts],
            [part.second for part in parts],
            [],
            list(torch.full((len(parts),), float(group["step"])).unbind()),
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        group["step"] += 1
        self._count_as_missed(group)
        for parameter, part in zip(trained, parts, strict=True):
            if part.rows is not None:
                self._put(parameter, part.rows, part.weight, part.first, part.second)
        return loss

    @torch.no_grad()
    def catch_up(self) -> None:
        """Make all rows what they are after the steps so far: to be called before anything but a step reads them."""
        for table, current in self._current.items():
            self._catch_up(table)
            current.zero_()
        self._missed[:, : self._position] = _NOTHING_MISSED
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with all rows up to date."""
        self.catch_up()
        return super().state_dict()

    def _part(self, parameter: torch.Tensor) -> _Part:
        """Return what a step is for."""
        gradient = parameter.grad
        assert gradient is not None
        if not gradient.is_sparse:
            if parameter in self._current:  # it is one whose rows are all needed
                self._catch_up(parameter)
                del self._current[parameter]
                watch(parameter, None)
            return _Part(None, gradient, *self._tensors(parameter))
        gradient = gradient.coalesce()
        rows = gradient.indices()[0]
        return _Part(rows, gradient.values(), *self._take(parameter, rows))

    def _take(self, table: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weight, first, second = self._tensors(table)
        return weight.index_select(0, rows), first.index_select(0, rows), second.index_select(0, rows)

    def _put(self, table: torch.Tensor, rows: torch.Tensor, *parts: torch.Tensor) -> None:
        for whole, part in zip(self._tensors(table), parts, strict=True):
            whole.index_copy_(0, rows, part)
        self._current[table].index_fill_(0, rows, self._position)

    def _tensors(self, parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return parameter, state["exp_avg"], state["exp_avg_sq"]

    @torch.no_grad()
    def _before_look_up(self, table: torch.Tensor, rows: torch.Tensor | None) -> None:
        if rows is None:
            self._catch_up(table)
        if rows is None or not self._position:
            return
        parts = self._take(table, rows)
        self._make_up(*parts, self._current[table].index_select(0, rows))
        self._put(table, rows, *parts)

    def _catch_up(self, table: torch.Tensor) -> None:
        self._make_up(*self._tensors(table), self._current[table])
        self._current[table].fill_(self._position)

    def _make_up(self, weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor, current: torch.Tensor) -> None:
        """Make the steps that rows have missed."""
        factors = self._missed.index_select(1, current).to(weight.dtype)
        shrink, drift, *moments = factors.view(4, len(current), *[1] * (weight.ndim - 1))
        root = second.sqrt().add_(self.param_groups[0]["eps"])
        weight.mul_(shrink).addcdiv_(first * drift, root, value=-1)
        for moment, factor in zip((first, second), moments, strict=True):
            moment.mul_(factor)

    def _count_as_missed(self, group: dict[str, Any]) -> None:
        """Let those that were up to date before this step, and all that had missed others, miss it."""
        (beta1, beta2), step = group["betas"], group["step"]
        shrink, drift, first, second = self._missed[:, : self._position + 1]
        first *= beta1
        second *= beta2
        keep = 1 - group["lr"] * group["weight_decay"]
        shrink *= keep
        rate = group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        drift.mul_(keep).addcdiv_(first, second.sqrt(), value=rate)
        self._position += 1
