"""What all models of the pack share: config, constructor, ids, state, training and validation."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PositiveFloat, PositiveInt
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.metrics import MAP, MRR, NDCG, HitRate, Recall
from rectools.models.base import ModelBase, ModelConfig
from rectools.utils.misc import get_class_or_function_full_path, import_object
from scipy import sparse
from torch import nn
from typing_extensions import Self

from ..config import Optimizer, OptimizerConfig, Validation, ValidationConfig
from ..data.batches import FeatureSchema
from ..data.reader import AlignedDataset, DatasetReader, Items, Users, match, seen_matrix
from ..errors import did_you_mean
from ..ranking import Ranking
from ..registry import MODELS
from ..training.loop import PRECISIONS, Batches, Outcome, Plan, Trainer, isolated_random_state, train

METRICS = {
    "ndcg": lambda k: NDCG(k, divide_by_achievable=True),
    "recall": Recall,
    "map": MAP,
    "mrr": MRR,
    "hit_rate": HitRate,
}


def _public_name(cls: type[ModelBase[Any]]) -> str:
    """Name under which a class can be imported for good: a moved file must not break saved configs."""
    name = cls.__name__
    if MODELS.get(name) == cls.__module__:
        return f"rectools_neural.{name}"
    return str(get_class_or_function_full_path(cls))


def _import_if_str(value: Any) -> Any:
    try:
        return import_object(value) if isinstance(value, str) else value
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`{value}` can't be imported: {error}") from error


PublicModelClass = Annotated[
    type[ModelBase],
    BeforeValidator(_import_if_str),
    PlainSerializer(_public_name, return_type=str, when_used="json"),
]
TrainerFunction = Annotated[
    Callable[..., Any],
    BeforeValidator(_import_if_str),
    PlainSerializer(get_class_or_function_full_path, return_type=str, when_used="json"),
]


class PackModelConfig(ModelConfig):
    """Base of all configs of the pack: serialises the public name of the model class."""

    cls: PublicModelClass | None = None


Config = TypeVar("Config", bound=PackModelConfig)
Result = TypeVar("Result")


class PackModel(ModelBase[Config], Generic[Config]):
    """
    Base of all models of the pack: the constructor takes the fields of the config, by name.

    Names, types, defaults and checks stand in the config class alone; here they become the constructor's signature
    and the attributes of the model.
    """

    config_class: type[Config]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        fields = getattr(cls, "config_class", PackModelConfig).model_fields
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=f.get_default(call_default_factory=True))
            for name, f in fields.items()
            if name != "cls"
        ]
        cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    def __init__(self, **params: Any) -> None:
        valid = [name for name in self.config_class.model_fields if name != "cls"]
        for name in params:
            if name not in valid:
                raise TypeError(f"{type(self).__name__} has no parameter `{name}`{did_you_mean(name, valid)}")
        config = self.config_class(**params)
        super().__init__(verbose=config.verbose)
        for name in valid:
            setattr(self, name, getattr(config, name))

    def _get_config(self) -> Config:
        fields = {name: getattr(self, name) for name in self.config_class.model_fields if name != "cls"}
        return self.config_class(cls=type(self), **fields)

    @classmethod
    def _from_config(cls, config: Config) -> Self:
        return cls(**{name: getattr(config, name) for name in type(config).model_fields if name != "cls"})

    def __repr__(self) -> str:
        config = self._get_config()
        values = config.model_dump(mode="json", exclude={"cls"})
        shown = {name: values[name] for name in config.model_dump(exclude={"cls"}, exclude_defaults=True)}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


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
    """

    n_users: int
    n_items: int
    n_interactions: int
    user_features: FeatureSchema
    item_features: FeatureSchema


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
    batch (`_batch_loss`) and how to rank items for users and for items (`_rank_for_users`, `_rank_for_items`); and
    what the options left open become on given data (`_adapt`). Ids, features, training, validation and state are
    handled here.

    Internal ids of a dataset shift when rows are added or reordered. A fitted model therefore keeps the external ids
    of its users and items and reads any later dataset through them.

    Attributes
    ----------
    history : pd.DataFrame
        Loss, learning rate, seconds and, with validation, the metric of each epoch of the last fit.
    """

    recommends_for_warm: ClassVar[bool] = True
    recommends_for_cold: ClassVar[bool] = True

    _fitted: FittedState[NeuralConfig]
    history: pd.DataFrame

    # ------------------------------------------------------------------ hooks of a family

    def _adapt(self, config: NeuralConfig, schema: DataSchema) -> NeuralConfig:
        """Fill in the options that the user left open."""
        raise NotImplementedError

    def _build_module(self, config: NeuralConfig, schema: DataSchema) -> nn.Module:
        raise NotImplementedError

    def _make_batches(self, config: NeuralConfig, users: Users, items: Items, generator: torch.Generator) -> Batches:
        raise NotImplementedError

    def _batch_loss(self, config: NeuralConfig, module: Any, batch: Any) -> torch.Tensor:
        raise NotImplementedError

    def _rank_for_users(
        self, module: Any, users: Users, items: Items, k: int, seen: sparse.csr_matrix | None
    ) -> Ranking:
        raise NotImplementedError

    def _rank_for_items(self, module: Any, targets: Items, items: Items, k: int) -> Ranking:
        raise NotImplementedError

    # ------------------------------------------------------------------ fit

    def fit(self, dataset: Dataset, dataset_valid: Dataset | None = None) -> Self:  # type: ignore[override]
        """
        Fit the model anew.

        Parameters
        ----------
        dataset : Dataset
            Interactions, and features of users and items where there are any.
        dataset_valid : Dataset, optional
            Interactions to validate on, instead of a part of `dataset`.

        Returns
        -------
        Self
            The fitted model.

        Raises
        ------
        ValueError
            If the data don't fit the model: no interactions, NaN in features, nothing left by the validation split.
        """
        self._train(dataset, dataset_valid, self._get_config(), earlier=None)
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

    @property
    def fitted_config(self) -> NeuralConfig:
        """The options that the model was fitted with: those that were left open have the values chosen for the data."""
        if not self.is_fitted:
            raise NotFittedError(type(self).__name__)
        return self._fitted.config

    def _train(
        self,
        dataset: Dataset,
        dataset_valid: Dataset | None,
        config: NeuralConfig,
        earlier: FittedState[NeuralConfig] | None,
        epochs: int | None = None,
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
        fitted, outcome = self._train_once(train_set, held_out, validation, config, earlier, epochs)
        if validation is not None and validation.refit and train_set is not dataset:
            best = outcome.best_epoch
            fitted, refit = self._train_once(dataset, None, None, fitted.config, earlier, epochs, stop_after=best)
            outcome.history += [{**row, "refit": True} for row in refit.history]
        # Only now: a fit that fails leaves the model as it was.
        self._fitted = fitted
        self.history = pd.DataFrame(outcome.history)

    def _train_once(
        self,
        dataset: Dataset,
        held_out: pd.DataFrame | None,
        validation: ValidationConfig | None,
        config: NeuralConfig,
        earlier: FittedState[NeuralConfig] | None,
        epochs: int | None,
        stop_after: int | None = None,
    ) -> tuple[FittedState[NeuralConfig], Outcome]:
        reader = DatasetReader.fit(dataset, earlier.reader if earlier else None)
        users = reader.training_users(dataset)
        items = Items(np.arange(len(reader.item_ids)), reader.item_features)
        schema = DataSchema(
            len(reader.user_ids),
            len(reader.item_ids),
            len(users.histories.items),
            reader.user_encoder.schema,
            reader.item_encoder.schema,
        )
        config = self._adapt(config, schema)
        epochs = epochs or config.epochs or 1
        plan = Plan(epochs, stop_after or epochs, config.learning_rate, config.optimizer, verbose=self.verbose)
        with isolated_random_state(self.seed):
            module = self._build_module(config, schema)
            if earlier is not None:
                _load_grown(module, earlier.module.state_dict())
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
            )
        return FittedState(config, schema, reader, module.cpu().float().eval()), outcome

    def _evaluation(
        self,
        module: nn.Module,
        reader: DatasetReader,
        users: Users,
        items: Items,
        held_out: pd.DataFrame,
        validation: ValidationConfig,
    ) -> Callable[[], float]:
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
        judged = users.take(positions)
        seen = judged.histories.to_csr()
        metric = METRICS[validation.metric](k=validation.k)

        def evaluate() -> float:
            module.eval()
            with torch.inference_mode():
                subjects, ranked, _ = self._rank_for_users(module, judged, items, validation.k, seen)
            module.train()
            reco = pd.DataFrame({Columns.User: positions[subjects], Columns.Item: ranked})
            reco[Columns.Rank] = reco.groupby(Columns.User, sort=False).cumcount() + 1
            return float(metric.calc(reco, truth))

        return evaluate

    def _check_device(self) -> None:
        try:
            torch.empty(0, device=self._inference_device())
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"`device` `{self.device}` can't be used here: {error}") from error

    def _trainer_kwargs(self) -> dict[str, Any]:
        device = torch.device("cpu" if self.device == "auto" else self.device)
        accelerator = {"cuda": "gpu"}.get(device.type, device.type) if self.device != "auto" else "auto"
        devices: Any = [device.index] if device.index is not None else 1
        return {
            "accelerator": accelerator,
            "devices": devices,
            "precision": PRECISIONS[self.precision],
            **(self.get_trainer_func_kwargs or {}),
        }

    # ------------------------------------------------------------------ recommend

    def _custom_transform_dataset_u2i(
        self, dataset: Dataset, users: Any, on_unsupported_targets: str, context: Any = None
    ) -> AlignedDataset:
        return self._fitted.reader.align(dataset)

    def _custom_transform_dataset_i2i(
        self, dataset: Dataset, target_items: Any, on_unsupported_targets: str
    ) -> AlignedDataset:
        return self._fitted.reader.align(dataset, on_unsupported_targets)

    def _recommend_u2i(
        self,
        user_ids: np.ndarray,
        dataset: AlignedDataset,
        k: int,
        filter_viewed: bool,
        sorted_item_ids_to_recommend: np.ndarray | None,
    ) -> Ranking:
        candidates = self._candidates(sorted_item_ids_to_recommend)
        seen = seen_matrix(dataset, user_ids, candidates) if filter_viewed else None
        users, items = self._fitted.reader.users(dataset, user_ids), dataset.items.take(candidates)
        ranking = self._on_device(lambda m: self._rank_for_users(m, users, items, k, seen))
        return user_ids[ranking[0]], candidates[ranking[1]], ranking[2]

    def _recommend_u2i_warm(
        self, user_ids: np.ndarray, dataset: AlignedDataset, k: int, sorted_item_ids_to_recommend: np.ndarray | None
    ) -> Ranking:
        return self._recommend_u2i(user_ids, dataset, k, False, sorted_item_ids_to_recommend)

    def _recommend_cold(
        self, target_ids: np.ndarray, dataset: AlignedDataset, k: int, sorted_item_ids_to_recommend: np.ndarray | None
    ) -> Ranking:
        if dataset.on_cold_items is not None:
            return self._refuse_cold_items(target_ids, dataset.on_cold_items)
        # Nothing is known of a cold user: one ranking serves all of them.
        candidates = self._candidates(sorted_item_ids_to_recommend)
        nobody, items = self._fitted.reader.unknown_user(), dataset.items.take(candidates)
        _, ranked, scores = self._on_device(lambda m: self._rank_for_users(m, nobody, items, k, None))
        n = len(target_ids)
        return np.repeat(target_ids, len(ranked)), np.tile(candidates[ranked], n), np.tile(scores, n)

    @staticmethod
    def _refuse_cold_items(target_ids: np.ndarray, on_cold_items: str) -> Ranking:
        explanation = (
            f"Items {list(target_ids[:5])} are cold: they are not in the dataset, and nothing is known of them. Add "
            "their features to the dataset, or leave them out of `target_items`"
        )
        if on_cold_items == "raise":
            raise ValueError(explanation)
        if on_cold_items == "warn":
            warnings.warn(explanation, stacklevel=4)
        return target_ids[:0], np.empty(0, np.int64), np.empty(0, np.float32)

    def _recommend_i2i(
        self, target_ids: np.ndarray, dataset: AlignedDataset, k: int, sorted_item_ids_to_recommend: np.ndarray | None
    ) -> Ranking:
        candidates = self._candidates(sorted_item_ids_to_recommend)
        targets, items = dataset.items.take(target_ids), dataset.items.take(candidates)
        ranking = self._on_device(lambda m: self._rank_for_items(m, targets, items, k))
        return target_ids[ranking[0]], candidates[ranking[1]], ranking[2]

    _recommend_i2i_warm = _recommend_i2i

    def _candidates(self, whitelist: np.ndarray | None) -> np.ndarray:
        """Items to rank: the whitelist, or those that the model was fitted on, which the aligned dataset puts first."""
        return np.arange(len(self._fitted.reader.item_ids)) if whitelist is None else whitelist

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
            weights = {name: tensor.detach().cpu() for name, tensor in fitted.module.state_dict().items()}
            state["_saved"] = (fitted.config, fitted.schema, fitted.reader, weights)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("_saved", None)
        self.__dict__.update(state)
        if saved is not None:
            config, schema, reader, weights = saved
            with isolated_random_state(0):
                module = self._build_module(config, schema)
            module.load_state_dict(weights)
            self._fitted = FittedState(config, schema, reader, module.eval())


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


def check_not_empty(dataset: Dataset, name: str) -> None:
    """Raise where an argument is no dataset or has no interactions."""
    if not isinstance(dataset, Dataset):
        raise TypeError(f"`{name}` must be a rectools.dataset.Dataset, got {type(dataset).__name__}")
    if dataset.interactions.df.empty:
        raise ValueError(f"`{name}` has no interactions: there is nothing to learn from")


def _load_grown(module: nn.Module, earlier: dict[str, torch.Tensor]) -> None:
    """Load weights; rows of users and items that are new keep their initial values."""
    for name, tensor in module.state_dict().items():
        known = tensor[: len(earlier[name])] if tensor.ndim else tensor
        known.copy_(earlier[name])
