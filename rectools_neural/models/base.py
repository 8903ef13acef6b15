"""What all neural models share: training, validation, state."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PositiveFloat, PositiveInt
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import MAP, MRR, NDCG, HitRate, Recall
from rectools.utils.misc import get_class_or_function_full_path
from scipy import sparse
from torch import nn
from typing_extensions import Self

from ..config import Optimizer, OptimizerConfig, Validation, ValidationConfig
from ..data.batches import FeatureSchema
from ..data.reader import DatasetReader, Items, Reading, Users, match
from ..pretrained import StoredArrays
from ..ranking import Ranker, Ranking
from ..training.checkpoint import Checkpoints
from ..training.loop import (
    PRECISIONS,
    Batches,
    DDPStrategy,
    Outcome,
    Plan,
    Trainer,
    isolated_random_state,
    train,
)
from .pack import PackModel, PackModelConfig, check_not_empty, import_if_str, is_dense

METRICS = {
    "ndcg": lambda k: NDCG(k, divide_by_achievable=True),
    "recall": Recall,
    "map": MAP,
    "mrr": MRR,
    "hit_rate": HitRate,
}


TrainerFunction = Annotated[
    Callable[..., Any],
    BeforeValidator(import_if_str),
    PlainSerializer(get_class_or_function_full_path, return_type=str, when_used="json"),
]


Result = TypeVar("Result")


class NeuralModelConfig(PackModelConfig):
    """
    Options of every neural model.

    Parameters
    ----------
    epochs, batch_size : int, optional
        Passes over the training data, and users a batch. By default they follow from the size of the data.
    learning_rate : float
        Of the optimiser.
    optimizer : str or dict or OptimizerConfig
        Optimiser, schedule, clipping, penalties.
    validation : str or dict or ValidationConfig, optional
        Early stopping on held-out interactions; none by default.
    seed : int
        Of everything random; the same seed, data and machine give the same model, bit for bit on a CPU.
    device : str
        "auto", "cpu", "cuda", "cuda:1", "mps".
    devices : int
        How many of them train together, each in a process of its own; `batch_size` counts for each.
    strategy : str
        How the processes are started: "ddp" for scripts, also under torchrun, "ddp_notebook" for notebooks; "auto" is
        "ddp" where there are several devices.
    precision : {"float32", "bfloat16", "float16", "float64"}
        Of training; the 16-bit ones are mixed precision.
    get_trainer_func : callable or dotted path, optional
        Makes the Lightning Trainer from the keyword arguments that the pack would use, for your own callbacks
        (append to ``callbacks``) and loggers.
    get_trainer_func_kwargs : dict, optional
        Arguments of the Trainer that override those of the pack.
    """

    epochs: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    learning_rate: PositiveFloat = 1e-3
    optimizer: Optimizer = Field(default_factory=OptimizerConfig)
    validation: Validation | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"
    devices: PositiveInt = 1
    strategy: Literal["auto", "ddp", "ddp_notebook"] = "auto"
    precision: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    get_trainer_func: TrainerFunction | None = None
    get_trainer_func_kwargs: Annotated[dict[str, Any] | None, AfterValidator(lambda value: value or None)] = None


@dataclass(frozen=True)
class DataSchema:
    """
    What a module is built for.

    Parameters
    ----------
    n_users, n_items, n_interactions : int
        Users and items with interactions, and how many.
    user_features, item_features : FeatureSchema
        Their features.
    context : FeatureSchema
        What is known of the situation of an interaction.
    """

    n_users: int
    n_items: int
    n_interactions: int
    user_features: FeatureSchema
    item_features: FeatureSchema
    context: FeatureSchema = field(default_factory=FeatureSchema)

    @classmethod
    def of(cls, reader: DatasetReader, n_interactions: int) -> DataSchema:
        """Make the schema of the data that a reader was fitted on."""
        return cls(
            len(reader.user_ids),
            len(reader.item_ids),
            n_interactions,
            reader.user_encoder.schema,
            reader.item_encoder.schema,
            reader.context_encoder.encoder.schema if reader.context_encoder else FeatureSchema(),
        )

    @property
    def is_dense(self) -> bool:
        """Whether so many of the user-item pairs are there that a loss over all of them beats a sampled one."""
        return is_dense(self.n_users, self.n_items, self.n_interactions)


NeuralConfig = TypeVar("NeuralConfig", bound=NeuralModelConfig)


@dataclass
class FittedState(Generic[NeuralConfig]):
    """
    What `fit` makes.

    Parameters
    ----------
    config : NeuralModelConfig
        The options with all that followed from the data filled in.
    schema : DataSchema
        What the module was built for.
    reader : DatasetReader
        How to read a dataset.
    module : nn.Module
        The trained module, on the CPU.
    """

    config: NeuralConfig
    schema: DataSchema
    reader: DatasetReader
    module: nn.Module


class NeuralModelBase(PackModel[NeuralConfig], Generic[NeuralConfig]):
    """
    Base of all neural models.

    A family says how to build its module (`_build_module`), which batches it eats (`_make_batches`), the loss of a
    batch (`_batch_loss`), what ranking needs of the items (`_prepare`), and how to rank them for users and for items
    (`_rank_for_users`, `_rank_for_items`); and what the options left open become on given data (`_adapt`). Ids,
    features, training, validation and state are handled here.

    Attributes
    ----------
    history : pd.DataFrame
        Loss, learning rate, seconds and, with validation, the metric of each epoch of the last fit.
    """

    recommends_for_cold: ClassVar[bool] = True
    #: Whether some steps of training leave out a part of the weights.
    trains_in_turns: ClassVar[bool] = False

    _fitted: FittedState[NeuralConfig]
    history: pd.DataFrame

    # ------------------------------------------------------------------ hooks of a family

    def _reading(self, config: NeuralConfig) -> Reading:
        """Say what the model reads of a dataset."""
        return Reading(features=self.uses_features)

    def _adapt(self, config: NeuralConfig, schema: DataSchema) -> NeuralConfig:
        """Fill in the options that the user left open."""
        raise NotImplementedError

    def _build_module(self, config: NeuralConfig, schema: DataSchema) -> nn.Module:
        raise NotImplementedError

    def _read_training_data(self, module: Any, users: Users) -> None:
        """Give the module what it must know of the training data besides the schema; nothing by default."""

    def _forget_training_data(self, module: Any) -> None:
        """Take from the trained module, in evaluation mode, what only training needs; nothing by default."""

    def _make_batches(self, config: NeuralConfig, users: Users, items: Items, generator: torch.Generator) -> Batches:
        raise NotImplementedError

    def _batch_loss(self, config: NeuralConfig, module: Any, batch: Any) -> torch.Tensor:
        raise NotImplementedError

    def _prepare(self, module: Any, items: Items) -> Any:
        raise NotImplementedError

    def _rank_for_users(
        self, module: Any, users: Users, prepared: Any, k: int, seen: sparse.csr_matrix | None
    ) -> Ranking:
        raise NotImplementedError

    def _rank_for_items(self, module: Any, targets: Items, items: Items, k: int) -> Ranking:
        raise NotImplementedError

    # ------------------------------------------------------------------ fit

    def fit(  # type: ignore[override]
        self,
        dataset: Dataset,
        dataset_valid: Dataset | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """
        Fit the model anew.

        Parameters
        ----------
        dataset : Dataset
            Interactions, and features of users and items where there are any.
        dataset_valid : Dataset, optional
            Interactions to validate on, instead of a part of `dataset`.
        checkpoint_dir : path, optional
            Folder that keeps the state of the training after each epoch, and is removed at the end. Where a fit that
            was killed has left it, the same fit goes on from the last finished epoch and ends as if nothing happened.

        Returns
        -------
        Self
            The fitted model.

        Raises
        ------
        ValueError
            If the data don't fit the model: no interactions, NaN in features, nothing left by the validation split;
            or if the checkpoint belongs to another fit.
        """
        checkpoints = None if checkpoint_dir is None else Checkpoints(Path(checkpoint_dir))
        self._train(dataset, dataset_valid, self._get_config(), earlier=None, checkpoints=checkpoints)
        self.is_fitted = True
        return self

    def fit_partial(  # type: ignore[override]
        self, dataset: Dataset, epochs: int | None = None, dataset_valid: Dataset | None = None
    ) -> Self:
        """
        Go on training from the current weights; the first call is a `fit`.

        New users and items get new rows; features keep the fitted encoding.

        Parameters
        ----------
        dataset : Dataset
            Interactions and features to train on, old and new ones as you like.
        epochs : int, optional
            Epochs to train; those of the config by default.
        dataset_valid : Dataset, optional
            As for `fit`.

        Returns
        -------
        Self
            The fitted model.
        """
        if epochs is not None and epochs < 1:
            raise ValueError(f"`epochs` must be at least 1, got {epochs}")
        earlier = self._fitted if self.is_fitted else None
        config = earlier.config if earlier else self._get_config()
        self._train(dataset, dataset_valid, config, earlier, epochs)
        self.is_fitted = True
        return self

    def _train(
        self,
        dataset: Dataset,
        dataset_valid: Dataset | None,
        config: NeuralConfig,
        earlier: FittedState[NeuralConfig] | None,
        epochs: int | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        check_not_empty(dataset, "dataset")
        self._check_device()
        validation, held_out, train_set = self.validation, None, dataset
        if dataset_valid is not None:
            check_not_empty(dataset_valid, "dataset_valid")
            validation = validation or ValidationConfig()
            held_out = dataset_valid.get_raw_interactions()
        elif validation is not None:
            train_set, held_out = hold_out(dataset, validation, self.seed)
        once = functools.partial(self._train_once, earlier=earlier, epochs=epochs, checkpoints=checkpoints)
        fitted, outcome = once(train_set, held_out, validation, config)
        if validation is not None and validation.refit and train_set is not dataset:
            best = outcome.best_epoch
            fitted, refit = once(dataset, None, None, fitted.config, stop_after=best)
            outcome.history += [{**row, "refit": True} for row in refit.history]
        # Only now: a fit that fails leaves the model as it was.
        self._fitted = fitted
        self.history = pd.DataFrame(outcome.history)
        if checkpoints is not None:
            checkpoints.remove()

    def _train_once(
        self,
        dataset: Dataset,
        held_out: pd.DataFrame | None,
        validation: ValidationConfig | None,
        config: NeuralConfig,
        earlier: FittedState[NeuralConfig] | None,
        epochs: int | None,
        stop_after: int | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> tuple[FittedState[NeuralConfig], Outcome]:
        reader = DatasetReader.fit(dataset, earlier.reader if earlier else None, self._reading(config))
        users = reader.training_users(dataset)
        items = Items(np.arange(len(reader.item_ids)), reader.item_features)
        schema = DataSchema.of(reader, len(users.histories.items if users.pairs is None else users.pairs))
        config = self._adapt(config, schema)
        epochs = epochs or config.epochs or 1
        checkpoint = None if checkpoints is None else checkpoints.next_run(_fingerprint(config, reader, users))
        plan = Plan(epochs, stop_after or epochs, config.learning_rate, config.optimizer, verbose=self.verbose)
        with isolated_random_state(self.seed):
            module = self._build_module(config, schema)
            if earlier is not None:
                _load_grown(module, earlier.module.state_dict())
            self._read_training_data(module, users)
            if validation is not None and held_out is not None:
                plan.metric = f"{validation.metric}@{validation.k}"
                plan.every, plan.patience = validation.every, validation.patience
                plan.min_epochs = validation.min_epochs
                plan.evaluate = self._evaluation(module, reader, users, items, held_out, validation)
            outcome = train(
                module.train(),
                lambda batch: self._batch_loss(config, module, batch),
                self._make_batches(config, users, items, torch.Generator().manual_seed(self.seed)),
                plan,
                self.get_trainer_func or Trainer,
                self._trainer_kwargs(),
                checkpoint,
            )
        module.cpu().float().eval()
        self._forget_training_data(module)
        return FittedState(config, schema, reader, module), outcome

    def _evaluation(
        self,
        module: nn.Module,
        reader: DatasetReader,
        users: Users,
        items: Items,
        held_out: pd.DataFrame,
        validation: ValidationConfig,
    ) -> Callable[[int, int], np.ndarray]:
        row_of_user = pd.Series(np.arange(len(users)), index=reader.user_ids[users.rows])
        truth = pd.DataFrame(
            {
                Columns.User: row_of_user.reindex(held_out[Columns.User]).to_numpy(),
                Columns.Item: match(held_out[Columns.Item].to_numpy(), reader.item_ids),
            }
        )
        truth = truth[truth[Columns.User].notna() & (truth[Columns.Item] >= 0)].astype(np.int64).drop_duplicates()
        if truth.empty:
            raise ValueError(
                "No user and item of the validation part occurs in the training part: give `validation` another "
                "`name` or `size`, or another `dataset_valid`"
            )
        positions = np.unique(truth[Columns.User])
        metric = METRICS[validation.metric](k=validation.k)

        def evaluate(rank: int, world_size: int) -> np.ndarray:
            part = positions[rank::world_size]
            if not len(part):  # fewer users than processes
                return np.zeros(0)
            judged = users.take(part)
            module.eval()
            with torch.inference_mode():
                prepared = self._prepare(module, items)
                ranking = self._rank_for_users(module, judged, prepared, validation.k, judged.histories.to_csr())
            module.train()
            reco = pd.DataFrame({Columns.User: part[ranking[0]], Columns.Item: ranking[1]})
            reco[Columns.Rank] = reco.groupby(Columns.User, sort=False).cumcount() + 1
            return metric.calc_per_user(reco, truth[truth[Columns.User].isin(part)]).to_numpy()

        return evaluate

    def _check_device(self) -> None:
        try:
            torch.empty(0, device=self._inference_device())
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"`device` `{self.device}` can't be used here: {error}") from error

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first, or the only one, of the processes that trained: the one to write files."""
        return not (
            torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank()
        )

    def _strategy(self) -> Any:
        if self.devices == 1 and self.strategy == "auto":
            return "auto"
        # All processes compute the same buffers.
        return DDPStrategy(
            start_method="fork" if self.strategy == "ddp_notebook" else "popen",
            broadcast_buffers=False,
            find_unused_parameters=self.trains_in_turns,
        )

    def _trainer_kwargs(self) -> dict[str, Any]:
        device = torch.device("cpu" if self.device == "auto" else self.device)
        accelerator = {"cuda": "gpu"}.get(device.type, device.type) if self.device != "auto" else "auto"
        devices: Any = [device.index] if device.index is not None else self.devices
        return {
            "accelerator": accelerator,
            "devices": devices,
            "strategy": self._strategy(),
            "precision": PRECISIONS[self.precision],
            **(self.get_trainer_func_kwargs or {}),
        }

    # ------------------------------------------------------------------ recommend

    def _ranker(self, items: Items) -> Ranker:
        prepared = self._on_device(lambda module: self._prepare(module, items))

        def rank_for(users: Users, k: int, seen: sparse.csr_matrix | None) -> Ranking:
            return self._on_device(lambda module: self._rank_for_users(module, users, prepared, k, seen))

        return rank_for

    def _rank_items(self, targets: Items, items: Items, k: int) -> Ranking:
        return self._on_device(lambda module: self._rank_for_items(module, targets, items, k))

    def _on_device(self, infer: Callable[[Any], Result]) -> Result:
        """Run an inference on the module where it is fastest; the fitted module itself stays on the CPU."""
        module = self._fitted.module.to(self._inference_device())
        try:
            with torch.inference_mode():
                return infer(module)
        finally:
            module.cpu()

    def _inference_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    # ------------------------------------------------------------------ state

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if "_fitted" in state:
            fitted = state.pop("_fitted")
            state["_saved"] = (fitted.config, fitted.schema, fitted.reader, self._weights())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("_saved", None)
        self.__dict__.update(state)
        if saved is not None:
            self._load(*saved)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in self._fitted.module.state_dict().items()}

    def _load(
        self, config: NeuralConfig, schema: DataSchema, reader: DatasetReader, weights: dict[str, torch.Tensor]
    ) -> None:
        with isolated_random_state(0):
            module = self._build_module(config, schema)
        module.load_state_dict(weights)
        self._fitted = FittedState(config, schema, reader, module.eval())

    def _arrays(self) -> dict[str, Any]:
        weights = {f"module.{name}": tensor.numpy() for name, tensor in self._weights().items()}
        return {**weights, "n_interactions": np.int64(self._fitted.schema.n_interactions)}

    def _restore(self, config: NeuralConfig, reader: DatasetReader, arrays: StoredArrays) -> None:
        schema = DataSchema.of(reader, int(arrays.take("n_interactions", np.int64)))
        if schema.n_interactions < 1 or self._adapt(config, schema) != config:
            raise ValueError("`fitted_config` of config.json leaves options open")
        self._inference_device()
        # On this device nothing is held: sizes in the config that the weights don't have cost nothing.
        with torch.device("meta"):
            expected = self._build_module(config, schema).state_dict()
        weights = {
            name: torch.from_numpy(arrays.take(f"module.{name}", _numpy_dtype(tensor), *tensor.shape))
            for name, tensor in expected.items()
        }
        self._load(config, schema, reader, weights)


def hold_out(dataset: Dataset, validation: ValidationConfig, seed: int) -> tuple[Dataset, pd.DataFrame]:
    """
    Split a dataset into a training part and held-out interactions.

    Parameters
    ----------
    dataset : Dataset
        What to split.
    validation : ValidationConfig
        The rule.
    seed : int
        For a random split.

    Returns
    -------
    Dataset, pd.DataFrame
        The training part with all features, and the held-out interactions with external ids.

    Raises
    ------
    ValueError
        If nothing is left on one side.
    """
    frame = dataset.interactions.df
    times = frame[Columns.Datetime]
    raw = dataset.get_raw_interactions(include_weight=False, include_extra_cols=False)
    # In the order of time, user and item: the order of rows must not change the split.
    order = np.lexsort((raw[Columns.Item].astype(str), raw[Columns.User].astype(str), times))
    held = np.zeros(len(frame), bool)
    if validation.name == "random":
        held[order] = np.random.default_rng(seed).random(len(frame)) < validation.held_out
    elif validation.name == "time":
        held = (times >= times.quantile(1 - validation.held_out)).to_numpy()
    else:
        latest_first = frame[Columns.User].iloc[order[::-1]]
        held[order[::-1]] = latest_first.groupby(latest_first).cumcount().to_numpy() < validation.held_out
    if held.all() or not held.any():
        raise ValueError(
            f"The validation split `{validation.name}` with size {validation.held_out} leaves {(~held).sum()} of "
            f"{len(frame)} interactions for training and {held.sum()} for validation: change `size` or `name`"
        )
    part = dataset.filter_interactions(np.flatnonzero(~held))
    return part, dataset.get_raw_interactions().iloc[np.flatnonzero(held)]


def _fingerprint(config: NeuralModelConfig, reader: DatasetReader, users: Users) -> str:
    """Tell apart the training runs of other options, versions and data."""
    histories, features = users.histories, (users.features, reader.item_features)
    arrays = [users.rows, histories.items, histories.lengths, reader.popularity]
    arrays += [pd.util.hash_array(np.asarray(ids, dtype=object)) for ids in (reader.user_ids, reader.item_ids)]
    arrays += [side.numeric for side in features]
    arrays += [part for side in features for part in (side.categories.indices, side.categories.data)]
    if users.pairs is not None:
        arrays += [users.pairs.users, users.pairs.items]
    arrays += [of.weights for of in (histories, users.pairs) if of is not None and of.weights is not None]
    # How it is watched may be changed on the way.
    options = config.model_dump_json(exclude={"verbose", "get_trainer_func", "get_trainer_func_kwargs"})
    digest = hashlib.sha256(repr((version("rectools-neural"), torch.__version__, options)).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _load_grown(module: nn.Module, earlier: dict[str, torch.Tensor]) -> None:
    """Load weights; rows of users and items that are new keep their initial values."""
    for name, tensor in module.state_dict().items():
        known = tensor[: len(earlier[name])] if tensor.ndim else tensor
        known.copy_(earlier[name])


def _numpy_dtype(tensor: torch.Tensor) -> np.dtype:
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype
