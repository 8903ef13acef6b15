"""The only training loop: a LightningModule and a Trainer that is quiet and writes nothing."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..config import OptimizerConfig, ScheduleConfig
from ..data.sources import draw_seed
from ..nn.bags import watch
from .checkpoint import Checkpoint
from .rowwise import RowwiseAdamW

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_lightning import Callback, LightningModule
    from pytorch_lightning import Trainer as Trainer
    from pytorch_lightning.strategies import DDPStrategy as DDPStrategy
    from pytorch_lightning.utilities import rank_zero_only

#: A table is large that has this many times as many rows as a batch touches.
_LARGE = 8

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed", "float64": "64-true"}


class Batches(Protocol):
    """Source of the batches of an epoch, new ones each time it is iterated over."""

    @property
    def generator(self) -> torch.Generator:
        """Source of their randomness."""

    @property
    def n_rows(self) -> int | None:
        """How many rows of a table a batch touches, at most; None where it may be all of them."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...

    def share(self, rank: int, world_size: int) -> None:
        """Take part `rank` of `world_size` of each batch from now on; the batches grow by as much."""


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
        Gives the validation metric of the current weights for each user of part `rank` of `world_size` of the users,
        shape ``(n_users,)``; the larger the better.
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
    evaluate: Callable[[int, int], np.ndarray] | None = None
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
    checkpoint: Checkpoint | None = None,
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
    checkpoint : Checkpoint, optional
        Where the state is kept after each epoch, and what to go on from where there is one.

    Returns
    -------
    Outcome
        The history and the best epoch.
    """
    recorder = _Recorder(module, plan, batches, checkpoint)
    resumed = checkpoint.read() if checkpoint is not None and checkpoint.exists else None
    if resumed is not None and "outcome" in resumed:  # it was finished
        module.load_state_dict(resumed["weights"])
        return Outcome(**resumed["outcome"])
    with _quiet(), _own_random_state(), _progress(plan) as bar:
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
            path = None if checkpoint is None or resumed is None else str(checkpoint.path)
            training = _Training(module, batch_loss, plan, batches, recorder)
            try:
                trainer.fit(training, train_dataloaders=batches, ckpt_path=path)
            finally:
                for parameter in module.parameters():
                    watch(parameter, None)
    if checkpoint is not None:
        final = {
            "fingerprint": checkpoint.fingerprint,
            "weights": module.state_dict(),
            "outcome": dataclasses.asdict(recorder.outcome),
        }
        if trainer.is_global_zero:
            checkpoint.write(lambda path: torch.save(final, path))
        trainer.strategy.barrier()
    return recorder.outcome


class _Training(LightningModule):
    def __init__(
        self,
        module: nn.Module,
        batch_loss: Callable[[Any], torch.Tensor],
        plan: Plan,
        batches: Batches,
        recorder: _Recorder,
    ) -> None:
        super().__init__()
        self.module = module
        self._batch_loss = batch_loss
        self._plan = plan
        self._batches = batches
        self._recorder = recorder

    # What the processes that some strategies start give back are the weights and this.
    def get_extra_state(self) -> dict[str, Any]:
        return dataclasses.asdict(self._recorder.outcome)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._recorder.outcome = Outcome(**state)

    def setup(self, stage: str) -> None:
        self._batches.share(self.trainer.global_rank, self.trainer.world_size)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self._batch_loss(batch)
        if self._plan.optimizer.l1:
            penalty = torch.stack([p.abs().sum() for p in self.module.parameters() if p.requires_grad]).sum()
            loss = loss + self._plan.optimizer.l1 * penalty
        return loss

    def configure_optimizers(self) -> Any:
        config = self._plan.optimizer
        optimizer = make_optimizer(self.module, config, self._plan.learning_rate, self._large_tables())
        schedule = make_schedule(optimizer, config.schedule, self._plan.epochs * len(self._batches))
        return {"optimizer": optimizer} | ({"lr_scheduler": schedule} if schedule else {})

    def _large_tables(self) -> list[nn.Parameter]:
        """Tables of which a batch touches so few rows that it pays to leave the others alone."""
        config, trainer, n_rows = self._plan.optimizer, self.trainer, self._batches.n_rows
        is_whole = config.l1 or trainer.gradient_clip_val or trainer.world_size > 1 or self.device.type != "cpu"
        if n_rows is None or is_whole or not (config.name == "adamw" or (config.name == "adam" and not config.l2)):
            return []
        return [p for p in self.module.parameters() if p.ndim == 2 and p.requires_grad and len(p) > _LARGE * n_rows]


class _Recorder(Callback):
    """Keeps the history, prints it when asked, validates, stops early, keeps the best weights and the checkpoint."""

    def __init__(self, module: nn.Module, plan: Plan, batches: Batches, checkpoint: Checkpoint | None) -> None:
        self.outcome = Outcome()
        self.bar: tqdm[Any] | None = None
        self._module = module
        self._plan = plan
        self._batches = batches
        self._checkpoint = checkpoint
        self._best = float("-inf")
        self._best_state: dict[str, Any] | None = None
        self._losses: list[torch.Tensor] = []
        self._started, self._learning_rate = 0.0, plan.learning_rate

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not at the end of an epoch: schedules that count epochs have not made their step there.
        if self._checkpoint is not None and trainer.current_epoch > 0:
            self._checkpoint.write(trainer.save_checkpoint, trainer.is_global_zero)
        # Of what the module draws. All randomness of an epoch follows from the state of this generator at its start.
        torch.manual_seed(draw_seed(self._batches.generator) + trainer.global_rank)
        self._losses, self._started = [], time.perf_counter()
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, RowwiseAdamW):
                optimizer.catch_up()
        loss = trainer.strategy.reduce(torch.stack(self._losses).mean(), reduce_op="mean").item()
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
            row[self._plan.metric] = self._validate(trainer, pl_module)
            pl_module.log(self._plan.metric, row[self._plan.metric])
            self._judge(row[self._plan.metric], epoch, trainer)
        elif self._plan.evaluate is None:
            self.outcome.best_epoch = epoch
        self.outcome.history.append(row)
        self._report(row)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._checkpoint is None:  # one that a callback of the user keeps
            return
        checkpoint["fingerprint"] = self._checkpoint.fingerprint
        for progress in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            progress["ready"] = progress["completed"]  # the epoch that begins here has to begin anew

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": (self._best, self._best_state),
            "buffers": self._training_buffers(),
            "generator": self._batches.generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._best_state = state_dict["best"]
        for name, buffer in self._training_buffers().items():
            buffer.copy_(state_dict["buffers"][name])
        if self.bar is not None:
            self.bar.update(len(self.outcome.history))
        self._batches.generator.set_state(state_dict["generator"])

    def _training_buffers(self) -> dict[str, torch.Tensor]:
        """Collect what the weights lack since no fitted model needs it, but for indices, which follow from the data."""
        fitted = self._module.state_dict()
        buffers = self._module.named_buffers()
        return {name: buffer for name, buffer in buffers if name not in fitted and buffer.is_floating_point()}

    def _validate(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Mean over the users, each process having judged its part of them."""
        assert self._plan.evaluate is not None
        values = self._plan.evaluate(trainer.global_rank, trainer.world_size)
        if trainer.world_size == 1:
            return float(values.mean())
        total = torch.tensor([values.sum(), len(values)], dtype=torch.float32, device=pl_module.device)
        total = trainer.strategy.reduce(total, reduce_op="sum")
        return float(total[0] / total[1])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
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


def make_optimizer(
    module: nn.Module, config: OptimizerConfig, learning_rate: float, tables: Sequence[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimiser of a config over all weights of a module, of which some are large tables for Adam."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if tables:
        return RowwiseAdamW(parameters, tables, learning_rate, config.l2)
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
    with _own_random_state():
        torch.manual_seed(seed)
        yield


def _own_random_state() -> contextlib.AbstractContextManager[None]:
    return torch.random.fork_rng(list(range(torch.cuda.device_count())))


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
    if not plan.verbose or getattr(rank_zero_only, "rank", False):
        yield None
        return
    with tqdm(total=plan.stop_after, desc="training", unit="epoch") as bar:
        yield bar
