"""Base of the models that score a pair by a network over both."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from pydantic import Field, PositiveFloat, model_validator
from rectools import Columns
from rectools.dataset import Dataset
from scipy import sparse
from torch import nn
from typing_extensions import Self

from ..config import (
    BCELoss,
    Dropout,
    HistoryEncoderConfig,
    ImplicitTarget,
    Negatives,
    NegativesConfig,
    Optimizer,
    OptimizerConfig,
    PairLoss,
    SampledSoftmaxLoss,
    SquaredLoss,
    Target,
)
from ..data.batches import FeatureBatch, ItemBatch, TrainingBatch, UserBatch
from ..data.features import EncodedFeatures
from ..data.reader import AlignedDataset, Items, Reading, Users, match
from ..data.sources import PairBatches, UserBatches
from ..nn.pairs import PairNetwork, Side
from ..ranking import Ranking, rank, rank_vectors
from ..training import losses
from ..training.loop import Batches
from .base import DataSchema, NeuralModelBase, NeuralModelConfig
from .two_sided import check_table, in_chunks, loss_of_scores

# Losses over all items, or over candidates that a batch shares: its examples are users.
_TABLE_LOSSES = ("squared", "logistic", "softmax", "sampled_softmax")
# Steps of the optimiser for the square root of the interactions.
_STEPS = {"users": 2.0, "pairs": 6.0}
_MAX_SCORES = 1 << 26  # held at once in ranking, 256 MB: the more users share the work on an item, the better
_PAIRS_AT_ONCE = 1 << 16
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PairModelConfig(NeuralModelConfig):
    """Options of all models of pairs; see `NCFModel`."""

    target: Target = Field(default_factory=ImplicitTarget)
    loss: PairLoss | None = None
    negatives: Negatives | None = None
    activation: Literal["relu", "elu", "gelu", "leaky_relu", "silu", "tanh"] = "relu"
    dropout: Dropout = 0.0
    entity_dropout: Dropout | None = None
    learning_rate: PositiveFloat = 3e-3
    optimizer: Optimizer = Field(default_factory=lambda: OptimizerConfig(name="adamw", l2=1.0))
    ranking_precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        if self.target.name != "implicit" and (self.loss is not None or self.negatives is not None):
            raise ValueError(
                f"target `{self.target.name}` says what is to be learnt from each interaction, with a loss of its own: "
                "leave `loss` and `negatives` out, or use target `implicit`"
            )
        if self.loss is not None and self.negatives is not None:
            is_shared = _is_shared(self.negatives)
            if self.loss.name in ("logistic", "softmax"):
                raise ValueError(f"loss `{self.loss.name}` is over the whole catalogue and takes no `negatives`")
            if self.loss.name in ("squared", "sampled_softmax") and not is_shared:
                raise ValueError(f"`negatives` of `{self.loss.name}` are for the whole batch: set `shared`")
            if self.loss.name in ("bpr", "bce") and is_shared:
                raise ValueError(f"`negatives` of `{self.loss.name}` are drawn for each pair: leave `shared` out")
        return self

    @property
    def reading(self) -> Reading:
        """What the model reads of a dataset."""
        is_labelled = self.target.name != "implicit"
        return Reading(weights=is_labelled, pairs=is_labelled)


PairConfig = TypeVar("PairConfig", bound=PairModelConfig)


class PairModule(nn.Module):
    """
    Base of the networks over pairs.

    Parameters
    ----------
    network : PairNetwork
        What scores pairs from their sides.
    """

    base: torch.Tensor

    def __init__(self, network: PairNetwork) -> None:
        super().__init__()
        self.network = network
        # Weight decay draws scores to the base, which is that of the data: none of it is to be learnt again.
        self.register_buffer("base", torch.zeros(()))
        self.shift = nn.Parameter(torch.zeros(()))

    @property
    def offset(self) -> torch.Tensor:
        """What is added to all scores."""
        return self.base + self.shift

    def user_side(
        self, users: UserBatch, rows: torch.Tensor | None = None, context: FeatureBatch | None = None
    ) -> Side:
        """
        Compute what users contribute to their scores.

        Parameters
        ----------
        users : UserBatch
            The users.
        rows : torch.Tensor, optional
            Which of them are meant, shape ``(n,)``; each once by default.
        context : FeatureBatch, optional
            In which situation each of those is.

        Returns
        -------
        Side
            Of length ``n``.
        """
        raise NotImplementedError

    def item_side(self, items: ItemBatch) -> Side:
        """Compute what items contribute to their scores."""
        raise NotImplementedError


class PairModel(NeuralModelBase[PairConfig], Generic[PairConfig]):
    """
    A model that scores a pair by a network over both.

    A family says what its module is: what users and items contribute to the first layer of the network.
    """

    recommends_for_warm: ClassVar[bool] = True
    uses_features: ClassVar[bool] = True

    # ------------------------------------------------------------------ fit

    def _reading(self, config: PairConfig) -> Reading:
        return config.reading

    def _adapt(self, config: PairConfig, schema: DataSchema) -> PairConfig:
        loss: Any = config.loss
        if loss is None and config.target.name == "implicit":
            needs_pairs = config.reading.pairs or (config.negatives is not None and not _is_shared(config.negatives))
            usual = SquaredLoss() if schema.is_dense else SampledSoftmaxLoss()
            loss = BCELoss() if needs_pairs else usual
        negatives = config.negatives
        if negatives is None and loss is not None:
            negatives = self._usual_negatives(loss.name, self._width(config))
        is_table = loss is not None and loss.name in _TABLE_LOSSES
        if is_table and config.reading.pairs:
            raise ValueError(f"loss `{loss.name}` is over users, not over interactions with a context: use bce or bpr")
        over_users = is_table or _history_encoder(config) is not None
        n_examples = schema.n_users if over_users else schema.n_interactions
        if over_users:
            batch_size = config.batch_size or min(max(2 ** round(math.log2(4 * n_examples**0.5)), 64), 512)
        else:
            batch_size = config.batch_size or min(max(2 ** round(math.log2(n_examples / 50)), 256), 8192)
        if is_table:
            n_candidates = schema.n_items if negatives is None else min(negatives.n, schema.n_items)
            check_table(loss.name, min(batch_size, n_examples), n_candidates, self._width(config))
        steps = _STEPS["users" if over_users else "pairs"] * schema.n_interactions**0.5
        chosen = {
            "loss": loss,
            "negatives": negatives,
            "batch_size": batch_size,
            "epochs": config.epochs or max(round(steps / math.ceil(n_examples / batch_size)), 3),
            "entity_dropout": 0.02 if config.entity_dropout is None else config.entity_dropout,
        }
        return type(config)(**{**dict(config), **chosen})

    def _usual_negatives(self, loss: str, width: int) -> NegativesConfig | None:
        if loss in ("bce", "bpr"):
            return NegativesConfig(n=4)
        is_whole = loss in ("logistic", "softmax") or (loss == "squared" and width == 1)
        return None if is_whole else NegativesConfig(n=2048, shared=True)

    def _width(self, config: PairConfig) -> int:
        """Units that scoring a pair takes at once."""
        raise NotImplementedError

    def _read_training_data(self, module: Any, users: Users) -> None:
        target, pairs = self.target, users.pairs
        if target.name == "implicit" or pairs is None or module.base != 0:  # a further fit keeps the base
            return
        values = cast(np.ndarray, pairs.weights)
        if target.name == "label":
            share = float((values > target.threshold).mean())
            if share in (0.0, 1.0):
                raise ValueError(
                    f"All interactions have weights {'above' if share else 'up to'} the `threshold` {target.threshold} "
                    f"of the target (they are {values.min():g} to {values.max():g}): there are labels of one class "
                    "only. Change `threshold`"
                )
            start = math.log(share / (1 - share))
        else:
            start = float(values.mean(dtype=np.float64))
        with torch.no_grad():
            module.base.fill_(start)

    def _make_batches(self, config: PairConfig, users: Users, items: Items, generator: torch.Generator) -> Batches:
        assert config.batch_size is not None
        loss, dropout = config.loss, config.entity_dropout or 0.0
        history = _history_encoder(config)
        batches: Any
        if loss is not None and (loss.name in _TABLE_LOSSES or history is not None):
            batches = UserBatches(
                users,
                items,
                config.batch_size,
                generator,
                entity_dropout=dropout,
                hidden=0.5 if history is not None else 0.0,
                predict_visible=loss.name in _TABLE_LOSSES,
            )
        else:
            batches = PairBatches(users, items, config.batch_size, generator, entity_dropout=dropout)
        return cast(Batches, batches if config.negatives is None else batches.with_negatives(config.negatives))

    def _batch_loss(self, config: PairConfig, module: PairModule, batch: TrainingBatch) -> torch.Tensor:
        loss, target, network = config.loss, config.target, module.network
        items = module.item_side(batch.items)
        if loss is not None and batch.negatives is None:
            table = network.table(module.user_side(batch.users), items) + module.offset
            if loss.name == "squared":
                return losses.squared_table_loss(table, batch.rows, batch.targets, loss.unobserved_weight)
            over_logits = losses.logistic_loss if loss.name == "logistic" else losses.softmax_loss
            return over_logits(table, batch.rows, batch.targets)
        if batch.context is None:
            users = module.user_side(batch.users)
            pair_rows = batch.rows
        else:
            users = module.user_side(batch.users, batch.rows, batch.context)
            pair_rows = torch.arange(len(users), device=batch.rows.device)
        drawn, targets, n_pairs = batch.negatives, batch.targets, len(pair_rows)
        is_shared = drawn is not None and drawn.is_positive is not None
        if drawn is not None and not is_shared:
            # Pairs and negatives at once: many small operations cost more than a few larger ones.
            pair_rows = torch.cat([pair_rows, pair_rows.repeat_interleave(drawn.items.shape[1])])
            targets = torch.cat([targets, drawn.items.flatten()])
        scores = network.pairs(users.take(pair_rows), items.take(targets)) + module.offset
        scores, negative = scores[:n_pairs], scores[n_pairs:]
        if loss is None:
            assert batch.weights is not None
            if target.name == "rating":
                return (scores - batch.weights).square().mean()
            labels = (batch.weights > target.threshold).to(scores.dtype)
            return nn.functional.binary_cross_entropy_with_logits(scores, labels)
        assert drawn is not None
        assert config.negatives is not None
        if not is_shared:
            return loss_of_scores(loss, config.negatives, scores, negative.view(n_pairs, -1), batch)
        table = network.table(users, items.take(drawn.items)) + module.offset
        if loss.name == "squared":
            return losses.sampled_squared_loss(scores, table, drawn.log_inclusion, loss.unobserved_weight)
        return loss_of_scores(loss, config.negatives, scores, table, batch)

    def _evaluation(self, *args: Any) -> Callable[[int, int], np.ndarray]:
        if self.require_recommend_context:
            raise ValueError(
                "Validation ranks all items for a user, which needs a context that interactions held out don't tell: "
                "leave `validation` and `dataset_valid` out, or fit without context"
            )
        return super()._evaluation(*args)

    # ------------------------------------------------------------------ recommend

    @property
    def require_recommend_context(self) -> bool:
        """Whether `recommend` needs the argument `context`."""
        return self._get_config().reading.context

    def _custom_transform_dataset_u2i(
        self, dataset: Dataset, users: Any, on_unsupported_targets: str, context: pd.DataFrame | None = None
    ) -> AlignedDataset:
        if context is None:
            return super()._custom_transform_dataset_u2i(dataset, users, on_unsupported_targets)
        return self._fitted.reader.align(dataset, context=_by_user(context, np.asarray(users)))

    @property
    def _uses_histories(self) -> bool:
        return _history_encoder(self._get_config()) is not None

    def _prepare(self, module: PairModule, items: Items) -> Side:
        return _sides(module, module.item_side, items).to(_DTYPES[self.ranking_precision])

    def _rank_for_users(
        self, module: PairModule, users: Users, prepared: Side, k: int, seen: sparse.csr_matrix | None
    ) -> Ranking:
        dtype = _DTYPES[self.ranking_precision]
        network = module.network if dtype == torch.float32 else copy.deepcopy(module.network).to(dtype)

        def score(rows: slice) -> torch.Tensor:
            some = users.take(np.arange(rows.start, rows.stop))
            return network.table_in_chunks(self._user_sides(module, some).to(dtype), prepared).float()

        subjects, ranked, scores = rank(score, len(users), len(prepared), k, seen, _MAX_SCORES)
        return subjects, ranked, self._link(torch.from_numpy(scores) + module.offset.cpu())

    def _rank_for_items(self, module: PairModule, targets: Items, items: Items, k: int) -> Ranking:
        subjects, candidates = (
            _similarity_vectors(_sides(module, module.item_side, side)) for side in (targets, items)
        )
        return rank_vectors(subjects, candidates, k)

    def _score_pairs(
        self, users: Users, items: Items, rows: np.ndarray, columns: np.ndarray, context: EncodedFeatures | None
    ) -> np.ndarray:
        def infer(module: PairModule) -> torch.Tensor:
            item_sides = _sides(module, module.item_side, items)
            user_sides = None if context is not None else self._user_sides(module, users)
            device, parts = module.offset.device, []
            for start in range(0, len(rows), _PAIRS_AT_ONCE):
                part = slice(start, start + _PAIRS_AT_ONCE)
                if user_sides is None:
                    assert context is not None
                    some, place = np.unique(rows[part], return_inverse=True)
                    situation = context.take(np.arange(len(rows))[part]).batch().to(device)
                    batch = users.take(some).batch().to(device)
                    owners = module.user_side(batch, torch.from_numpy(place).to(device), situation)
                else:
                    owners = user_sides.take(torch.from_numpy(rows[part]).to(device))
                others = item_sides.take(torch.from_numpy(columns[part]).to(device))
                parts.append((module.network.pairs(owners, others) + module.offset).cpu())
            return torch.cat(parts) if parts else torch.zeros(0)

        return self._link(self._on_device(infer))

    def _user_sides(self, module: PairModule, users: Users) -> Side:
        def encode(batch: UserBatch) -> Side:
            if batch.context is None:
                return module.user_side(batch)
            return module.user_side(batch, torch.arange(len(batch), device=batch.rows.device), batch.context)

        return _sides(module, encode, users)

    def _link(self, scores: torch.Tensor) -> np.ndarray:
        """Turn outputs of the network into what the user gets."""
        return (scores.sigmoid() if self.target.name == "label" else scores).numpy()


def _is_shared(negatives: NegativesConfig) -> bool:
    return negatives.shared or negatives.name == "in_batch"


def _history_encoder(config: PairModelConfig) -> HistoryEncoderConfig | None:
    return getattr(config, "history_encoder", None)


def _sides(module: PairModule, encode: Any, entities: Users | Items) -> Side:
    parts: list[Side] = [encode(batch) for batch in in_chunks(module, entities)]
    return Side(*(torch.cat([getattr(part, name) for part in parts]) for name in ("bias", "direct", "first", "fields")))


def _similarity_vectors(side: Side) -> torch.Tensor:
    products = torch.cat([side.direct, side.fields.flatten(1)], dim=1)
    return nn.functional.normalize(products if products.shape[1] else side.first, dim=1)


def _by_user(context: pd.DataFrame, users: np.ndarray) -> pd.DataFrame:
    """Index a table of contexts by user, or raise where it does not have exactly one row for each."""
    if Columns.User not in context.columns:
        raise ValueError(f"The `context` lacks the column `{Columns.User}`: it tells whose each row is")
    repeated = context[Columns.User].duplicated()
    if repeated.any():
        user = context.loc[repeated, Columns.User].iloc[0]
        raise ValueError(
            f"The `context` has more than one row for the user {user}: leave one, or call `recommend` again"
        )
    absent = users[match(users, context[Columns.User].to_numpy()) < 0]
    if len(absent):
        raise ValueError(f"The `context` has no row for {len(absent)} of the users, such as {list(absent[:5])}")
    return context.set_index(Columns.User)
