from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn

from rectools_neural.config import OptimizerConfig, ScheduleConfig
from rectools_neural.training.loop import (
    PRECISIONS,
    Outcome,
    Plan,
    isolated_random_state,
    make_optimizer,
    make_schedule,
    train,
)

CPU = {"accelerator": "cpu", "devices": 1}
Loss = Callable[[Any], torch.Tensor]


class Weights(nn.Module):
    """Some weights, one that is not trained, and a buffer."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values or (0.0,)))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.zeros(()))


class Numbered:
    """An epoch is the numbers 0, 1, ...; counts the batches that were made."""

    n_rows = None

    def __init__(self, n: int) -> None:
        self.n = n
        self.made = 0
        self.generator = torch.Generator()

    def share(self, rank: int, world_size: int) -> None:
        assert (rank, world_size) == (0, 1)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[torch.Tensor]:
        for number in range(self.n):
            self.made += 1
            yield torch.tensor(float(number))


def plan(epochs: int = 1, learning_rate: float = 1.0, name: Any = "sgd", **options: Any) -> Plan:
    """SGD with a constant rate by default: a gradient of 1 takes the rate off the weight in each step."""
    parts = {key: options.pop(key) for key in ("l1", "l2", "gradient_clipping", "schedule") if key in options}
    parts.setdefault("schedule", "none")
    return Plan(
        epochs, options.pop("stop_after", epochs), learning_rate, OptimizerConfig(name=name, **parts), **options
    )


def run(module: Weights, loss: Loss, batches: Any, chosen: Plan, make: Any = Trainer, **options: Any) -> Outcome:
    return train(module, loss, batches, chosen, make, {**CPU, **options})


def rates(chosen: Plan, steps_per_epoch: int, losses: list[float] | None = None) -> tuple[list[float], Outcome]:
    """The learning rate of each step, read off a weight whose gradient is 1."""
    module = Weights(0.0).double()
    path: list[float] = []
    remaining = iter([] if losses is None else [loss for loss in losses for _ in range(steps_per_epoch)])

    def loss(_: torch.Tensor) -> torch.Tensor:
        path.append(module.w.item())
        value = module.w.sum()
        return value if losses is None else value - value.detach() + next(remaining)

    outcome = run(module, loss, Numbered(steps_per_epoch), chosen, precision="64-true")
    path.append(module.w.item())
    return (-np.diff(path)).tolist(), outcome


class TestLearningRate:
    def test_constant(self) -> None:
        assert rates(plan(3, 0.25), 2)[0] == [0.25] * 6

    def test_warmup(self) -> None:
        schedule = {"name": "warmup", "warmup": 0.5}
        assert rates(plan(4, schedule=schedule), 2)[0] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])

    def test_cosine(self) -> None:
        expected = [0.1 * (1 + math.cos(math.pi * t / 10)) / 2 for t in range(10)]
        assert rates(plan(5, 0.1, schedule="cosine"), 2)[0] == pytest.approx(expected, rel=1e-6)

    def test_cosine_after_a_warmup(self) -> None:
        schedule = {"name": "cosine", "warmup": 0.2}
        expected = [1 / 3, 2 / 3, *((1 + math.cos(math.pi * t / 8)) / 2 for t in range(8))]
        assert rates(plan(5, schedule=schedule), 2)[0] == pytest.approx(expected, rel=1e-6)

    def test_cosine_spans_the_epochs_and_not_those_trained(self) -> None:
        expected = [(1 + math.cos(math.pi * t / 20)) / 2 for t in range(6)]
        assert rates(plan(10, schedule="cosine", stop_after=3), 2)[0] == pytest.approx(expected, rel=1e-6)

    def test_step(self) -> None:
        schedule = {"name": "step", "step_epochs": 2, "factor": 0.5}
        actual, outcome = rates(plan(5, schedule=schedule), 2)
        assert actual == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25])
        # The history tells the rate that the epoch was trained with.
        assert [row["learning_rate"] for row in outcome.history] == pytest.approx([1, 1, 0.5, 0.5, 0.25])

    def test_plateau(self) -> None:
        schedule = {"name": "plateau", "patience": 1, "factor": 0.1}
        actual, outcome = rates(plan(7, schedule=schedule), 2, losses=[5, 4, 4, 4, 3, 3, 3])
        # Epochs 3 and 4 are no better than 2; 6 and 7 no better than 5.
        assert actual == pytest.approx([1, 1, 1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
        assert [row["learning_rate"] for row in outcome.history] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1])

    @pytest.mark.parametrize("name", ["step", "plateau"])
    def test_warmup_of_the_other_schedules(self, name: str) -> None:
        # It is done or refused, but not passed over in silence.
        schedule: dict[str, Any] = {"name": name, "warmup": 0.5}
        try:
            ScheduleConfig(**schedule)
        except ValueError:
            return
        assert rates(plan(4, schedule=schedule), 2)[0][:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])

    def test_cosine_stays_at_zero_after_its_end(self) -> None:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = make_schedule(optimizer, ScheduleConfig(name="cosine"), 2)
        assert schedule is not None
        seen = []
        for _ in range(5):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule["scheduler"].step()
        assert seen == pytest.approx([1, 0.5, 0, 0, 0], abs=1e-7)

    def test_none_has_no_schedule(self) -> None:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        assert make_schedule(optimizer, ScheduleConfig(), 10) is None


class TestOptimizer:
    @pytest.mark.parametrize(
        ("name", "l2", "expected"),
        [
            # One step with the rate 0.1 from the weights 2 and -4 with the gradients 1 and 3.
            ("sgd", 0.0, [2 - 0.1, -4 - 0.3]),
            ("sgd", 0.5, [2 - 0.1 * (1 + 1), -4 - 0.1 * (3 - 2)]),
            ("adam", 0.0, [2 - 0.1, -4 - 0.1]),
            ("adam", 1.0, [2 - 0.1, -4 + 0.1]),  # the penalty turns the sign of the second gradient
            ("adamw", 0.0, [2 - 0.1, -4 - 0.1]),
            ("adamw", 0.5, [2 * 0.95 - 0.1, -4 * 0.95 - 0.1]),
            ("adagrad", 0.0, [2 - 0.1, -4 - 0.1]),
            ("adagrad", 1.0, [2 - 0.1, -4 + 0.1]),
        ],
    )
    def test_one_step_by_hand(self, name: str, l2: float, expected: list[float]) -> None:
        module = Weights(2.0, -4.0)
        run(module, lambda _: (module.w * torch.tensor([1.0, 3.0])).sum(), Numbered(1), plan(1, 0.1, name, l2=l2))
        assert module.w.tolist() == pytest.approx(expected, rel=1e-5)
        assert module.frozen.item() == 5.0

    def test_only_trained_weights(self) -> None:
        module = Weights(1.0)
        (group,) = make_optimizer(module, OptimizerConfig(), 0.1).param_groups
        assert [id(p) for p in group["params"]] == [id(module.w)]

    def test_l1(self) -> None:
        module = Weights(2.0, -4.0)
        outcome = run(module, lambda _: module.w.sum(), Numbered(1), plan(1, 0.1, l1=0.5))
        assert module.w.tolist() == pytest.approx([2 - 0.1 * 1.5, -4 - 0.1 * 0.5])
        # What is not trained has no penalty.
        assert outcome.history[0]["loss"] == pytest.approx(2 - 4 + 0.5 * 6)

    def test_gradient_clipping(self) -> None:
        module = Weights(0.0, 0.0)
        loss = lambda _: (module.w * torch.tensor([3.0, 4.0])).sum()  # noqa: E731
        run(module, loss, Numbered(1), plan(gradient_clipping=0.5))
        assert module.w.tolist() == pytest.approx([-0.3, -0.4])
        run(module, loss, Numbered(1), plan(gradient_clipping=10.0))
        assert module.w.tolist() == pytest.approx([-3.3, -4.4])

    def test_gradients_do_not_add_up_over_the_steps(self) -> None:
        module = Weights(0.0)
        run(module, lambda _: module.w.sum(), Numbered(4), plan(2))
        assert module.w.item() == -8.0


class TestHistory:
    def test_rows(self) -> None:
        module, batches = Weights(0.0), Numbered(4)
        outcome = run(module, lambda x: x + module.w.sum(), batches, plan(3, 0.25))
        # The batches are worth 0 to 3, and each step takes 0.25 off.
        assert [row["loss"] for row in outcome.history] == pytest.approx([1.5 - 0.375, 1.5 - 1.375, 1.5 - 2.375])
        assert [row["epoch"] for row in outcome.history] == [1, 2, 3]
        assert [row["learning_rate"] for row in outcome.history] == [0.25] * 3
        assert all(0 <= row["seconds"] < 60 for row in outcome.history)
        assert all(set(row) == {"epoch", "loss", "learning_rate", "seconds"} for row in outcome.history)
        assert outcome.best_epoch == 3
        assert batches.made == 12

    def test_all_batches_in_their_order(self) -> None:
        module, seen = Weights(0.0), []

        def loss(x: torch.Tensor) -> torch.Tensor:
            seen.append(x.item())
            return module.w.sum()

        run(module, loss, Numbered(3), plan(2))
        assert seen == [0, 1, 2, 0, 1, 2]

    def test_stop_after(self) -> None:
        module = Weights(0.0)
        outcome = run(module, lambda _: module.w.sum(), Numbered(2), plan(9, stop_after=2))
        assert len(outcome.history) == outcome.best_epoch == 2
        assert module.w.item() == -4.0


class TestEarlyStopping:
    @staticmethod
    def fit(values: list[float], epochs: int, **options: Any) -> tuple[Weights, Outcome, list[float]]:
        """Two steps an epoch, so that the weight after epoch e is -2 e; gives the weights at each validation too."""
        module = Weights(0.0)
        script, judged = iter(values), []

        def evaluate(rank: int, world_size: int) -> np.ndarray:
            judged.append(module.w.item())
            return np.array([next(script)])

        def loss(_: torch.Tensor) -> torch.Tensor:
            module.steps += 1
            return module.w.sum()

        outcome = run(module, loss, Numbered(2), plan(epochs, evaluate=evaluate, metric="m@1", **options))
        return module, outcome, judged

    def test_restores_the_best_weights(self) -> None:
        module, outcome, judged = self.fit([0.1, 0.3, 0.2, 0.25, 0.9], 10, patience=2)
        assert judged == [-2, -4, -6, -8]
        assert outcome.best_epoch == 2
        assert module.w.item() == -4
        assert module.steps.item() == 4
        assert [row["m@1"] for row in outcome.history] == [0.1, 0.3, 0.2, 0.25]

    def test_restores_the_best_weights_of_a_run_to_the_end(self) -> None:
        module, outcome, _ = self.fit([0.3, 0.2, 0.1], 3, patience=5)
        assert (outcome.best_epoch, module.w.item(), len(outcome.history)) == (1, -2, 3)

    def test_last_epoch_may_be_the_best(self) -> None:
        module, outcome, _ = self.fit([0.1, 0.2, 0.3], 3, patience=1)
        assert (outcome.best_epoch, module.w.item()) == (3, -6)

    def test_equal_is_not_better(self) -> None:
        module, outcome, _ = self.fit([0.3, 0.3, 0.3, 0.4], 9, patience=2)
        assert (outcome.best_epoch, module.w.item(), len(outcome.history)) == (1, -2, 3)

    def test_patience_starts_anew_with_each_best(self) -> None:
        module, outcome, _ = self.fit([0.1, 0.0, 0.2, 0.0, 0.3, 0.0, 0.0], 9, patience=2)
        assert (outcome.best_epoch, module.w.item(), len(outcome.history)) == (5, -10, 7)

    def test_min_epochs(self) -> None:
        module, outcome, judged = self.fit([0.5, 0.1, 0.1, 0.1, 0.6, 0.2], 9, patience=1, min_epochs=4)
        assert (outcome.best_epoch, module.w.item(), len(judged)) == (1, -2, 4)
        module, outcome, judged = self.fit([0.5, 0.1, 0.1, 0.1, 0.6, 0.2], 9, patience=1, min_epochs=5)
        assert (outcome.best_epoch, module.w.item(), len(judged)) == (5, -10, 6)

    def test_every(self) -> None:
        module, outcome, judged = self.fit([0.1, 0.3, 0.2, 0.2, 0.9], 20, every=3, patience=2)
        assert judged == [-6, -12, -18, -24]
        assert (outcome.best_epoch, module.w.item()) == (6, -12)
        assert ["m@1" in row for row in outcome.history] == [epoch % 3 == 0 for epoch in range(1, 13)]

    def test_last_epoch_is_always_validated(self) -> None:
        module, outcome, judged = self.fit([0.1, 0.3], 4, every=3, patience=9)
        assert judged == [-6, -8]
        assert (outcome.best_epoch, module.w.item()) == (4, -8)

    def test_patience_counts_validations(self) -> None:
        # Epochs 4 and 5 come after the best one, but only one of the two is a validation.
        _, outcome, judged = self.fit([0.3, 0.2, 0.4], 5, every=2, patience=2)
        assert len(judged) == 3
        assert outcome.best_epoch == 5

    def test_the_best_weights_are_a_copy(self) -> None:
        module, _, _ = self.fit([0.3, 0.2, 0.1], 3, patience=9)
        run(module, lambda _: module.w.sum(), Numbered(1), plan(1))
        assert module.w.item() == -3


class TestFailures:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_loss_that_is_no_number(self, bad: float) -> None:
        module = Weights(0.0)
        with pytest.raises(FloatingPointError, match=r"in epoch 2: lower `learning_rate`"):
            run(module, lambda x: module.w.sum() + (bad if module.w <= -4 else 0), Numbered(3), plan(5))

    def test_error_of_the_loss_comes_through(self) -> None:
        module = Weights(0.0)

        def loss(_: torch.Tensor) -> torch.Tensor:
            raise KeyError("my own")

        with pytest.raises(KeyError, match="my own"):
            run(module, loss, Numbered(1), plan())

    def test_interrupt_comes_through(self) -> None:
        """Ctrl-C stops the training, not the session around it, which keeps its own reaction to the next one."""
        module = Weights(0.0)
        handler = signal.getsignal(signal.SIGINT)

        def loss(_: torch.Tensor) -> torch.Tensor:
            raise KeyboardInterrupt

        try:
            with pytest.raises(KeyboardInterrupt):
                run(module, loss, Numbered(1), plan())
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, handler)


class TestTrainer:
    def test_own_function_and_arguments(self) -> None:
        module, given = Weights(0.0), []

        class Count(Callback):
            epochs = 0

            def on_train_epoch_end(self, *_: Any) -> None:
                self.epochs += 1

        count = Count()

        def make(**options: Any) -> Trainer:
            given.append(options)
            return Trainer(**{**options, "callbacks": [*options["callbacks"], count]})

        outcome = run(module, lambda _: module.w.sum(), Numbered(2), plan(4), make, max_steps=3)
        assert given[0]["max_epochs"] == 4
        assert given[0]["max_steps"] == 3
        assert module.w.item() == -3.0
        assert count.epochs == len(outcome.history)

    def test_callbacks_in_the_arguments_come_on_top(self) -> None:
        module = Weights(0.0)
        outcome = run(module, lambda _: module.w.sum(), Numbered(2), plan(3), callbacks=[Callback()])
        assert len(outcome.history) == outcome.best_epoch == 3

    def test_callbacks_see_the_loss_of_the_epoch(self) -> None:
        class Watch(Callback):
            def __init__(self) -> None:
                self.seen: list[float] = []

            def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
                self.seen.append(float(trainer.callback_metrics["loss"]))

        module, watch = Weights(4.0), Watch()
        outcome = run(module, lambda _: module.w.square().sum(), Numbered(2), plan(3, 0.25), callbacks=[watch])
        assert watch.seen == [row["loss"] for row in outcome.history]
        assert len(set(watch.seen)) == 3

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_precisions(self, precision: str) -> None:
        module = Weights(1.0)
        outcome = run(
            module, lambda _: module.w.square().sum(), Numbered(2), plan(2, 0.25), precision=PRECISIONS[precision]
        )
        # Each step halves the weight, which is exact in any precision.
        assert module.w.item() == 1 / 16
        assert outcome.history[-1]["loss"] == (1 / 16 + 1 / 64) / 2
        assert torch.get_default_dtype() == torch.float32


def global_state() -> dict[str, Any]:
    loggers = {name: logging.getLogger(name) for name in list(logging.root.manager.loggerDict)}
    return {
        "torch": torch.random.get_rng_state().tolist(),
        "numpy": [value if isinstance(value, (str, int, float)) else list(value) for value in np.random.get_state()],
        "python": random.getstate(),
        "levels": {name: (logger.level, logger.disabled, list(logger.filters)) for name, logger in loggers.items()},
        "root": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "warnings": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "folder": os.getcwd(),
    }


class TestSideEffects:
    @pytest.mark.parametrize("verbose", [0, 1])
    @pytest.mark.parametrize("fails", [False, True])
    def test_global_state_stays(
        self, verbose: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        module = Weights(0.0)
        # Once before, so that what the first use of Lightning imports is there.
        run(module, lambda _: module.w.sum(), Numbered(1), plan())
        monkeypatch.setattr(logging.getLogger("pytorch_lightning"), "level", 17)
        before = global_state()
        chosen = plan(2, evaluate=lambda *_: np.array([0.25, 0.75]), metric="m", verbose=verbose)
        if fails:
            with pytest.raises(FloatingPointError):
                run(module, lambda _: module.w.sum() * math.nan, Numbered(2), chosen)
        else:
            run(module, lambda _: module.w.sum(), Numbered(2), chosen)
        after = global_state()
        for name, value in before.items():
            assert after[name] == value, name
        assert os.listdir(tmp_path) == []

    def test_silent_by_default(self, capfd: pytest.CaptureFixture[str]) -> None:
        module = Weights(0.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for schedule in ("cosine", "step", "plateau", "none"):
                run(module, lambda _: module.w.sum(), Numbered(1), plan(3, schedule=schedule))
        assert capfd.readouterr() == ("", "")
        assert [str(warning.message) for warning in caught] == []

    def test_a_line_an_epoch(self, capfd: pytest.CaptureFixture[str]) -> None:
        module = Weights(0.0)
        values = iter([0.25, 0.5])
        chosen = plan(4, 0.5, evaluate=lambda *_: np.array([next(values)]), metric="ndcg@10", every=2, verbose=1)
        run(module, lambda _: module.w.sum(), Numbered(1), chosen)
        lines = [line for line in capfd.readouterr().out.splitlines() if line.strip()]
        assert len(lines) == 4
        for epoch, (line, loss) in enumerate(zip(lines, [0.0, -0.5, -1.0, -1.5], strict=True), start=1):
            words = line.split()
            assert words[:2] == ["epoch", f"{epoch}/4:"]
            assert float(words[words.index("loss") + 1]) == loss
            assert ("ndcg@10" in words) == (epoch % 2 == 0)
        assert lines[3].endswith("ndcg@10 0.5")

    def test_silent_at_first_use(self, tmp_path: Path) -> None:
        code = (
            "import torch\n"
            "from rectools_neural.config import OptimizerConfig\n"
            "from rectools_neural.training.loop import Plan, Trainer, train\n"
            "module = torch.nn.Linear(1, 1)\n"
            "class Batches:\n"
            "    generator = torch.Generator()\n"
            "    n_rows = None\n"
            "    share = lambda self, rank, world_size: None\n"
            "    __len__ = lambda self: 2\n"
            "    __iter__ = lambda self: iter(torch.ones(2, 1))\n"
            "train(module, lambda x: module(x).sum(), Batches(), Plan(2, 2, 0.1, OptimizerConfig()), Trainer, {})\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert os.listdir(tmp_path) == []


class TestIsolatedRandomState:
    def test_seeds_inside_and_restores_outside(self) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(9)
        state = torch.random.get_rng_state()
        with isolated_random_state(5):
            assert torch.equal(torch.rand(3), expected)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_restores_after_an_error(self) -> None:
        state = torch.random.get_rng_state()
        with contextlib.suppress(KeyError), isolated_random_state(5):
            torch.rand(3)
            raise KeyError
        assert torch.equal(torch.random.get_rng_state(), state)
