"""Small typed configs of options that belong together. Each is also accepted as a plain name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from rectools.utils.config import BaseConfig
from typing_extensions import Self

from .errors import did_you_mean

Share = Annotated[float, Field(gt=0, lt=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class SquaredLoss(BaseConfig):
    """
    Weighted squared loss over the whole catalogue, without negatives (Hu et al. 2008).

    Parameters
    ----------
    unobserved_weight : float
        Weight of an item that the user has not interacted with, against 1 for one of the user's own.
    """

    name: Literal["squared"] = "squared"
    unobserved_weight: PositiveFloat = 0.5


class SoftmaxLoss(BaseConfig):
    """Multinomial likelihood over the whole catalogue (Liang et al. 2018)."""

    name: Literal["softmax"] = "softmax"


class SampledSoftmaxLoss(BaseConfig):
    """Softmax over the positive and sampled negatives, with the logQ correction."""

    name: Literal["sampled_softmax"] = "sampled_softmax"


class LogisticLoss(BaseConfig):
    """Binary cross entropy over the whole catalogue, without negatives."""

    name: Literal["logistic"] = "logistic"


class BPRLoss(BaseConfig):
    """Bayesian personalised ranking (Rendle et al. 2009)."""

    name: Literal["bpr"] = "bpr"


class BCELoss(BaseConfig):
    """Binary cross entropy against sampled negatives."""

    name: Literal["bce"] = "bce"


class TripletLoss(BaseConfig):
    """
    Triplet margin loss.

    Parameters
    ----------
    margin : float
        By how much a positive must win.
    mining : {"random", "semi_hard", "hard"}
        Which of the sampled negatives count.
    """

    name: Literal["triplet"] = "triplet"
    margin: PositiveFloat = 0.4
    mining: Literal["random", "semi_hard", "hard"] = "random"


class ImplicitTarget(BaseConfig):
    """Every interaction is a positive, whatever its weight; what a user has not interacted with stands against it."""

    name: Literal["implicit"] = "implicit"


class LabelTarget(BaseConfig):
    """
    The weight of an interaction says whether it is a positive; the others are negatives, and none is sampled.

    Scores are probabilities.

    Parameters
    ----------
    threshold : float
        Interactions of a larger weight are positives.
    """

    name: Literal["label"] = "label"
    threshold: float = 0.0


class RatingTarget(BaseConfig):
    """The weight of an interaction is what the score should be, in the least squares sense."""

    name: Literal["rating"] = "rating"


class NegativesConfig(BaseConfig):
    """
    Where the negatives of a sampled loss come from.

    Parameters
    ----------
    name : {"uniform", "popularity", "in_batch", "hard"}
        Drawn uniformly; by a power of the popularity; the targets of the other users of the batch; uniformly,
        keeping those that the model scores highest.
    n : int
        Negatives a pair; with `shared`, candidates a batch. Not used by "in_batch".
    shared : bool
        One draw for the whole batch: thousands of negatives for the price of a matrix product.
    power : float
        Of the popularity.
    pool : int
        Of how many draws a "hard" negative is the best.
    """

    name: Literal["uniform", "popularity", "in_batch", "hard"] = "uniform"
    n: PositiveInt = 1
    shared: bool = False
    power: NonNegativeFloat = 0.75
    pool: PositiveInt = 16


class ScheduleConfig(BaseConfig):
    """
    How the learning rate changes in training.

    Parameters
    ----------
    name : {"none", "step", "plateau", "cosine", "warmup"}
        Constant; times `factor` every `step_epochs`; times `factor` after `patience` epochs without a better
        loss; down to 0 along half a cosine; constant after a warm-up.
    warmup : float, optional
        Share of all steps in which the rate first grows linearly from 0: 0.1 for "warmup", else 0. Not with
        "step" and "plateau", which change the rate by epochs.
    step_epochs, patience : int
        As above.
    factor : float
        As above.
    """

    name: Literal["none", "step", "plateau", "cosine", "warmup"] = "none"
    warmup: Annotated[float, Field(ge=0, lt=1)] | None = None
    step_epochs: PositiveInt = 10
    patience: PositiveInt = 3
    factor: Share = 0.5

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup and self.name in ("step", "plateau"):
            raise ValueError(f"schedule `{self.name}` takes no `warmup`: use `cosine` or `warmup`")
        return self

    @property
    def warmup_share(self) -> float:
        """Share of the steps that warm up."""
        return self.warmup if self.warmup is not None else 0.1 * (self.name == "warmup")


class OptimizerConfig(BaseConfig):
    """
    How the weights are updated.

    Parameters
    ----------
    name : {"adam", "adamw", "sgd", "adagrad"}
        The algorithm.
    l1, l2 : float
        Penalties on all weights; with "adamw" `l2` is the decoupled weight decay.
    gradient_clipping : float, optional
        Largest norm of the gradient.
    schedule : str or dict or ScheduleConfig
        Of the learning rate.
    """

    name: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    l1: NonNegativeFloat = 0.0
    l2: NonNegativeFloat = 0.0
    gradient_clipping: PositiveFloat | None = None
    schedule: Schedule = Field(default_factory=lambda: ScheduleConfig(name="cosine"))


class ValidationConfig(BaseConfig):
    """
    Early stopping by a ranking metric on interactions held out from the training data.

    Parameters
    ----------
    name : {"random", "last_n", "time"}
        What is held out: a random share of the rows, the last rows of each user, the last share of the timeline.
    size : float, optional
        The share, 0.1 by default, or the number of rows a user for "last_n", 1 by default.
    metric : {"ndcg", "recall", "map", "mrr", "hit_rate"}
        What to watch, at `k`.
    k : int
        Length of the ranked list.
    patience : int
        Stop after this many validations without a better value.
    min_epochs : int
        Don't stop earlier.
    every : int
        Epochs between validations.
    refit : bool
        Train again on all rows for the best number of epochs.
    """

    name: Literal["random", "last_n", "time"] = "random"
    size: PositiveFloat | None = None
    metric: Literal["ndcg", "recall", "map", "mrr", "hit_rate"] = "ndcg"
    k: PositiveInt = 10
    patience: PositiveInt = 5
    min_epochs: PositiveInt = 1
    every: PositiveInt = 1
    refit: bool = False

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if self.size is not None and self.name != "last_n" and self.size >= 1:
            raise ValueError(f"`size` of validation `{self.name}` is a share below 1, got {self.size}")
        if self.size is not None and self.name == "last_n" and self.size != int(self.size):
            raise ValueError(f"`size` of validation `last_n` is a whole number of rows, got {self.size}")
        return self

    @property
    def held_out(self) -> float:
        """The share, or the number of rows a user."""
        return self.size if self.size is not None else (1 if self.name == "last_n" else 0.1)


class TowerConfig(BaseConfig):
    """
    What turns an embedded user or item into its vector.

    Parameters
    ----------
    name : {"linear", "mlp", "residual"}
        The sum of the embeddings as it is; a perceptron on top; residual blocks that start as the identity.
    hidden : tuple of int
        Sizes of the hidden layers; of the blocks, for "residual". Not used by "linear".
    activation : {"relu", "elu", "gelu", "leaky_relu", "silu", "tanh"}
        Of the hidden layers.
    dropout : float
        Share of hidden units dropped in training.
    normalisation : {"none", "layer", "batch"}
        Of the hidden layers.
    """

    name: Literal["linear", "mlp", "residual"] = "linear"
    hidden: tuple[PositiveInt, ...] = (128,)
    activation: Literal["relu", "elu", "gelu", "leaky_relu", "silu", "tanh"] = "relu"
    dropout: Dropout = 0.0
    normalisation: Literal["none", "layer", "batch"] = "none"


class HistoryEncoderConfig(BaseConfig):
    """
    What turns the items of a history into one vector.

    Parameters
    ----------
    name : {"mean", "attention", "gru", "transformer"}
        Their sum over a power of their number; attention pooling; the last state of a GRU or a causal Transformer
        over the items in the order of time.
    power : float
        Of "mean": 0 is the sum, 1 the mean; in between, long histories speak louder than short ones.
    n_heads : int
        Of "attention" and "transformer"; divides the number of factors.
    n_layers : int
        Of "gru" and "transformer".
    max_length : int
        Latest items that count, except for "mean".
    dropout : float
        In training, except for "mean".
    """

    name: Literal["mean", "attention", "gru", "transformer"] = "mean"
    power: Annotated[float, Field(ge=0, le=1)] = 0.5
    n_heads: PositiveInt = 2
    n_layers: PositiveInt = 1
    max_length: PositiveInt = 100
    dropout: Dropout = 0.1


class ContrastiveConfig(BaseConfig):
    """
    Contrastive loss between two noisy views of the users and items of a batch.

    Parameters
    ----------
    name : {"simgcl", "xsimgcl"}
        Two further propagations with noise of their own (Yu et al. 2022); or a single one with noise, whose result is
        compared with one of its layers (Yu et al. 2023), which is about three times as fast.
    weight : float
        Of this loss beside the one of the interactions.
    noise : float
        Length of the random vector that each layer adds to each node.
    temperature : float
        What the cosines are divided by.
    layer : int
        With which layer, counted from 1, "xsimgcl" compares.
    """

    name: Literal["simgcl", "xsimgcl"] = "xsimgcl"
    weight: PositiveFloat = 0.1
    noise: Dropout = 0.2
    temperature: PositiveFloat = 0.2
    layer: PositiveInt = 1


class NeuMFPretraining(BaseConfig):
    """
    A GMF and an MLP that are fitted first, with the options of the NeuMF that starts from them.

    Parameters
    ----------
    alpha : float
        Share of the GMF in the first scores of the NeuMF; the MLP has the rest.
    epochs : int, optional
        Of both; those of the NeuMF by default.
    """

    alpha: Share = 0.5
    epochs: PositiveInt | None = None


def _from_name(*classes: type[BaseConfig]) -> BeforeValidator:
    """Accept a plain name for any of the configs, and name the nearest valid one where it is unknown."""
    names = [name for cls in classes for name in cls.model_fields["name"].annotation.__args__]  # type: ignore[union-attr]

    def validate(value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and "name" in value and value["name"] not in names:
            raise ValueError(f"unknown name `{value['name']}`{did_you_mean(str(value['name']), names)}")
        return value

    return BeforeValidator(validate)


_LOSSES = (SquaredLoss, SoftmaxLoss, SampledSoftmaxLoss, BPRLoss, BCELoss, TripletLoss)
Loss = Annotated[
    Annotated[
        SquaredLoss | SoftmaxLoss | SampledSoftmaxLoss | BPRLoss | BCELoss | TripletLoss, Field(discriminator="name")
    ],
    _from_name(*_LOSSES),
]
CatalogueLoss = Annotated[
    Annotated[SquaredLoss | LogisticLoss | SoftmaxLoss | SampledSoftmaxLoss, Field(discriminator="name")],
    _from_name(SquaredLoss, LogisticLoss, SoftmaxLoss, SampledSoftmaxLoss),
]
PairLoss = Annotated[
    Annotated[
        SquaredLoss | LogisticLoss | SoftmaxLoss | SampledSoftmaxLoss | BPRLoss | BCELoss, Field(discriminator="name")
    ],
    _from_name(SquaredLoss, LogisticLoss, SoftmaxLoss, SampledSoftmaxLoss, BPRLoss, BCELoss),
]
Target = Annotated[
    Annotated[ImplicitTarget | LabelTarget | RatingTarget, Field(discriminator="name")],
    _from_name(ImplicitTarget, LabelTarget, RatingTarget),
]
Negatives = Annotated[NegativesConfig, _from_name(NegativesConfig)]
Schedule = Annotated[ScheduleConfig, _from_name(ScheduleConfig)]
Optimizer = Annotated[OptimizerConfig, _from_name(OptimizerConfig)]
Validation = Annotated[ValidationConfig, _from_name(ValidationConfig)]
Tower = Annotated[TowerConfig, _from_name(TowerConfig)]
HistoryEncoder = Annotated[HistoryEncoderConfig, _from_name(HistoryEncoderConfig)]
Contrastive = Annotated[ContrastiveConfig, _from_name(ContrastiveConfig)]
OptimizerConfig.model_rebuild()
