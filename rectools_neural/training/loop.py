"""The only training loop: a LightningModule and a Trainer that is quiet and writes nothing."""

from __future__ import annotations

import contextlib
import copy
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from tqdm.auto import tqdm

from ..config import OptimizerConfig, ScheduleConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_lightning import Callback, LightningModule
    from pytorch_lightning import Trainer as Trainer

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed", "float64": "64-true"}


class Batches(Protocol):
    """Source of the batches of an epoch, new ones each time it is iterated over."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


@dataclass
class Plan:
    """
    What a training run needs to know besides the module and its batches.

    Parameters
    ----------
    epochs : int
        Epochs that the learning rate schedule spans.
    stop_after : int
        Epochs to train, at most `epochs`.
    learning_rate : float
        Of the optimiser, at its peak.
    optimizer : OptimizerConfig
        The optimiser and its schedule.
    evaluate : callable, optional
        Gives the validation metric of the current weights; the larger the better.
    metric : str
        Its name.
    every, min_epochs, patience : int
        When to validate and when to stop; see `ValidationConfig`.
    verbose : int
        0 is silent.
    """

    epochs: int
    stop_after: int
    learning_rate: float
    optimizer: OptimizerConfig
    evaluate: Callable[[], float] | None = None
    metric: str = ""
    every: int = 1
    min_epochs: int = 1
    patience: int = 1
    verbose: int = 0


@dataclass
class Outcome:
    """
    What came of a training run.

    Parameters
    ----------
    history : list of dict
        Loss, learning rate, seconds and, where validated, the metric of each epoch.
    best_epoch : int
        Epoch (from 1) with the best metric; the last one without validation.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0


def train(
    module: nn.Module,
    batch_loss: Callable[[Any], torch.Tensor],
    batches: Batches,
    plan: Plan,
    make_trainer: Callable[..., Trainer],
    trainer_kwargs: dict[str, Any],
) -> Outcome:
    """
    Train a module in place; with validation it ends with its best weights.

    Parameters
    ----------
    module : nn.Module
        What to train.
    batch_loss : callable
        Gives the loss of a batch.
    batches : Batches
        The batches of an epoch.
    plan : Plan
        How long and how.
    make_trainer : callable
        Makes a Trainer from keyword arguments: the Trainer class itself or the user's own function.
    trainer_kwargs : dict
        Further arguments for it.

    Returns
    -------
    Outcome
        The history and the best epoch.
    """
    recorder = _Recorder(module, plan)
    with _quiet(), _progress(plan) as bar:
        recorder.bar = bar
        callbacks = trainer_kwargs.get("callbacks") or []
        trainer = make_trainer(
            **{
                "max_epochs": plan.stop_after,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "gradient_clip_val": plan.optimizer.gradient_clipping,
                **trainer_kwargs,
                "callbacks": [recorder, *(callbacks if isinstance(callbacks, list) else [callbacks])],
            }
        )
        with _interruptible():
            trainer.fit(_Training(module, batch_loss, plan, len(batches)), train_dataloaders=batches)
    recorder.restore_best()
    return recorder.outcome


class _Training(LightningModule):
    def __init__(
        self, module: nn.Module, batch_loss: Callable[[Any], torch.Tensor], plan: Plan, steps_per_epoch: int
    ) -> None:
        super().__init__()
        self.module = module
        self._batch_loss = batch_loss
        self._plan = plan
        self._total_steps = plan.epochs * steps_per_epoch

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self._batch_loss(batch)
        if self._plan.optimizer.l1:
            penalty = torch.stack([p.abs().sum() for p in self.module.parameters() if p.requires_grad]).sum()
            loss = loss + self._plan.optimizer.l1 * penalty
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.module, self._plan.optimizer, self._plan.learning_rate)
        schedule = make_schedule(optimizer, self._plan.optimizer.schedule, self._total_steps)
        return {"optimizer": optimizer} | ({"lr_scheduler": schedule} if schedule else {})


class _Recorder(Callback):
    """Keeps the history, prints it when asked, validates, stops early and keeps the best weights in memory."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.outcome = Outcome()
        self.bar: tqdm[Any] | None = None
        self._module = module
        self._plan = plan
        self._best = float("-inf")
        self._best_state: dict[str, Any] | None = None
        self._losses: list[torch.Tensor] = []
        self._started, self._learning_rate = 0.0, plan.learning_rate

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses, self._started = [], time.perf_counter()
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        loss = torch.stack(self._losses).mean().item()
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise FloatingPointError(
                f"The training loss is {loss} in epoch {epoch}: lower `learning_rate`, set `gradient_clipping` in "
                "`optimizer`, or use a higher `precision`"
            )
        pl_module.log("loss", loss)  # once: a call of it each step takes longer than a small step itself
        row = {
            "epoch": epoch,
            "loss": loss,
            "learning_rate": self._learning_rate,
            "seconds": time.perf_counter() - self._started,
        }
        if self._plan.evaluate is not None and (epoch % self._plan.every == 0 or epoch == self._plan.stop_after):
            row[self._plan.metric] = self._plan.evaluate()
            pl_module.log(self._plan.metric, row[self._plan.metric])
            self._judge(row[self._plan.metric], epoch, trainer)
        elif self._plan.evaluate is None:
            self.outcome.best_epoch = epoch
        self.outcome.history.append(row)
        self._report(row)

    def restore_best(self) -> None:
        if self._best_state is not None:
            self._module.load_state_dict(self._best_state)

    def _judge(self, value: float, epoch: int, trainer: Trainer) -> None:
        if value > self._best:
            self._best, self.outcome.best_epoch = value, epoch
            self._best_state = copy.deepcopy(self._module.state_dict())
        waited = (epoch - self.outcome.best_epoch) // self._plan.every
        if waited >= self._plan.patience and epoch >= self._plan.min_epochs:
            trainer.should_stop = True

    def _report(self, row: dict[str, float]) -> None:
        if self.bar is None:
            return
        shown = " ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        tqdm.write(f"epoch {int(row['epoch'])}/{self._plan.stop_after}: {shown}")
        self.bar.update()


def make_optimizer(module: nn.Module, config: OptimizerConfig, learning_rate: float) -> torch.optim.Optimizer:
    """Build the optimiser of a config over all weights of a module."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    classes = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
    }
    # One pass over the weights instead of a dozen. Lightning doesn't clip for it in mixed precision.
    fused = config.gradient_clipping is None and all(p.device.type == "cpu" for p in parameters)
    return classes[config.name](parameters, lr=learning_rate, weight_decay=config.l2, fused=fused)


def make_schedule(optimizer: torch.optim.Optimizer, config: ScheduleConfig, total_steps: int) -> dict[str, Any] | None:
    """Build the learning rate schedule of a config in Lightning's form, or None for a constant rate."""
    if config.name == "plateau":
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=config.factor, patience=config.patience
        )
        return {"scheduler": scheduler, "interval": "epoch", "monitor": "loss"}
    if config.name == "step":
        stepwise = torch.optim.lr_scheduler.StepLR(optimizer, config.step_epochs, config.factor)
        return {"scheduler": stepwise, "interval": "epoch"}
    if config.name == "none" and not config.warmup_share:
        return None
    warmup_steps = config.warmup_share * total_steps

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if config.name != "cosine":
            return 1.0
        progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return 0.5 * (1 + float(torch.cos(torch.tensor(min(progress, 1.0) * torch.pi))))

    return {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor), "interval": "step"}


@contextlib.contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Seed torch inside the block and give the caller's random state back after it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C through: Lightning turns it into an exit of the process and ignores the next one."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's banners and advice inside the block, and leave loggers and filters as found."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith(("pytorch_lightning", "lightning"))]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning")
            warnings.filterwarnings("ignore", message=r".*(isinstance\(treespec|lr_scheduler\.step|num_workers).*")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _progress(plan: Plan) -> Iterator[tqdm[Any] | None]:
    if not plan.verbose:
        yield None
        return
    with tqdm(total=plan.stop_after, desc="training", unit="epoch") as bar:
        yield bar
