"""The leaderboard's configuration: everything is checked here, before any work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from rectools import Columns
from rectools.dataset import Dataset
from rectools.model_selection import LastNSplitter, RandomSplitter, Splitter, TimeRangeSplitter

from benchmarks.replay_splitter import ReplaySplitter

# Metrics that compare lists with held-out interactions, measured at every k; one of them is the main metric.
ACCURACY = ("ndcg", "map", "recall", "hit_rate", "mrr")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)


class MinCountFilterConfig(_Strict):
    """RePlay's ``MinCountFilter``: keeps users, or items, with so many rows."""

    name: Literal["min_count"]
    num_entries: PositiveInt
    groupby_column: Literal["user_id", "item_id"] = "user_id"

    def build(self) -> Any:
        """Make the filter."""
        from replay.preprocessing.filters import MinCountFilter

        return MinCountFilter(self.num_entries, groupby_column=self.groupby_column)


class LowRatingFilterConfig(_Strict):
    """RePlay's ``LowRatingFilter``: drops interactions whose weight is below a value."""

    name: Literal["low_rating"]
    value: float

    def build(self) -> Any:
        """Make the filter."""
        from replay.preprocessing.filters import LowRatingFilter

        return LowRatingFilter(self.value, rating_column=Columns.Weight)


FilterConfig = Annotated[MinCountFilterConfig | LowRatingFilterConfig, Field(discriminator="name")]


class DataConfig(_Strict):
    """Which dataset to load and which of its rows to keep."""

    name: str
    binary: bool = Field(False, description="Give every kept interaction the weight 1.")
    min_rating: float | None = Field(None, description="Drop interactions with a smaller weight.")
    k_core: PositiveInt | None = Field(None, description="Keep users and items with at least so many rows.")
    filters: list[FilterConfig] = Field([], description="RePlay's filters, applied after those above, in order.")

    @model_serializer(mode="wrap")
    def _leave_out_no_filters(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keep the description of data without filters what it was before there were any: tuned files have it."""
        described: dict[str, Any] = dump(self)
        return {name: value for name, value in described.items() if name != "filters" or value}


class _Split(_Strict):
    n_splits: PositiveInt = 1
    filter_cold_users: bool = True
    filter_cold_items: bool = True
    filter_already_seen: bool = True

    def _arguments(self) -> dict[str, Any]:
        return self.model_dump(exclude={"name"})


class RandomSplit(_Split):
    """RecTools' ``RandomSplitter``; every seed gives another split."""

    name: Literal["random"]
    test_fold_frac: float = Field(gt=0, lt=1)

    def build(self, seed: int) -> Splitter:
        """Make the splitter of a seed."""
        return RandomSplitter(random_state=seed, **self._arguments())


class TimeSplit(_Split):
    """RecTools' ``TimeRangeSplitter``; all seeds share the same folds."""

    name: Literal["time"]
    test_size: str = Field(pattern=r"^[1-9]\d*[DH]$", description="Length of a fold, for example 7D or 12H.")

    def build(self, seed: int) -> Splitter:
        """Make the splitter; time leaves nothing to chance."""
        return TimeRangeSplitter(**self._arguments())


class LastNSplit(_Split):
    """RecTools' ``LastNSplitter``; all seeds share the same folds."""

    name: Literal["last_n"]
    n: PositiveInt

    def build(self, seed: int) -> Splitter:
        """Make the splitter; time leaves nothing to chance."""
        return LastNSplitter(**self._arguments())


class _ReplaySplit(_Strict):
    """A splitter of RePlay, whose parameters have the names that RePlay gives them; it cuts once."""

    n_splits: Literal[1] = 1
    drop_cold_items: bool = True

    def _arguments(self) -> dict[str, Any]:
        columns = {"query_column": Columns.User, "item_column": Columns.Item}
        return {**self.model_dump(exclude={"name", "n_splits"}), **columns}


class _ReplayTimedSplit(_ReplaySplit):
    drop_cold_users: bool = True

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "timestamp_column": Columns.Datetime}


class ReplayTimeSplit(_ReplayTimedSplit):
    """RePlay's ``TimeSplitter``: the last share of the timeline; all seeds share the fold."""

    name: Literal["replay_time"]
    time_threshold: float = Field(gt=0, lt=1, description="Share of the rows to hold out.")

    def build(self, seed: int) -> Splitter:
        """Make the splitter; time leaves nothing to chance."""
        from replay.splitters import TimeSplitter

        return ReplaySplitter(TimeSplitter(**self._arguments()))


class ReplayLastNSplit(_ReplayTimedSplit):
    """RePlay's ``LastNSplitter``: the last rows of each user; all seeds share the fold."""

    name: Literal["replay_last_n"]
    N: PositiveInt

    def build(self, seed: int) -> Splitter:
        """Make the splitter; time leaves nothing to chance."""
        from replay.splitters import LastNSplitter

        return ReplaySplitter(LastNSplitter(divide_column=Columns.User, **self._arguments()))


class ReplayRatioSplit(_ReplayTimedSplit):
    """RePlay's ``RatioSplitter``: the last share of the rows of each user; all seeds share the fold."""

    name: Literal["replay_ratio"]
    test_size: float = Field(gt=0, lt=1)

    def build(self, seed: int) -> Splitter:
        """Make the splitter; time leaves nothing to chance."""
        from replay.splitters import RatioSplitter

        return ReplaySplitter(RatioSplitter(divide_column=Columns.User, **self._arguments()))


class ReplayColdUserSplit(_ReplaySplit):
    """RePlay's ``ColdUserRandomSplitter``: holds out whole users; every seed holds out others."""

    name: Literal["replay_cold_user"]
    test_size: float = Field(gt=0, lt=1)

    def build(self, seed: int) -> Splitter:
        """Make the splitter of a seed."""
        from replay.splitters import ColdUserRandomSplitter

        return ReplaySplitter(ColdUserRandomSplitter(seed=seed, **self._arguments()))


SplitConfig = Annotated[
    RandomSplit | TimeSplit | LastNSplit | ReplayTimeSplit | ReplayLastNSplit | ReplayRatioSplit | ReplayColdUserSplit,
    Field(discriminator="name"),
]


class NumberSearch(_Strict):
    """A range of numbers that tuning may draw from, ends included."""

    type: Literal["float", "int"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check_range(self) -> NumberSearch:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} must be below high {self.high}, and above 0 when log is true")
        return self


class ChoiceSearch(_Strict):
    """Values that tuning may choose from."""

    type: Literal["categorical"]
    choices: list[Any] = Field(min_length=2)


Search = Annotated[NumberSearch | ChoiceSearch, Field(discriminator="type")]


class ModelSpec(_Strict):
    """
    One row of the leaderboard.

    In YAML the parameters of the model stand beside the fields below, as `model_from_config` takes them.
    """

    cls: str | None = Field(
        None, description="A model class: a public name of rectools_neural, of RecTools, or a path."
    )
    factory: str | None = Field(
        None, pattern=r"\w\.\w", description="Dotted path of a function that makes a model which no config describes."
    )
    baseline: bool = False
    seed_param: str | None = Field(None, description="Parameter that takes the seed; dots lead into nested ones.")
    search: dict[str, Search] = Field(default_factory=dict, description="Parameter (dotted when nested) -> range.")
    params: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather_params(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            raise ValueError("a model is a mapping with `cls` and its parameters")
        own = {name: value for name, value in raw.items() if name in cls.model_fields and name != "params"}
        return {**own, "params": {name: value for name, value in raw.items() if name not in own}}

    @model_validator(mode="after")
    def _check_source(self) -> ModelSpec:
        if (self.cls is None) == (self.factory is None):
            raise ValueError("give either `cls` (a model class) or `factory` (a function that makes the model)")
        return self

    def with_params(self, values: dict[str, Any]) -> dict[str, Any]:
        """
        Lay values over the model's own parameters.

        Parameters
        ----------
        values : dict
            Parameter (dotted when nested) -> value.

        Returns
        -------
        dict
            Nested parameters, a new dictionary.
        """
        merged = _copy_nested(self.params)
        for path, value in values.items():
            *parents, name = path.split(".")
            target = merged
            for parent in parents:
                target = target.setdefault(parent, {})
            target[name] = value
        return merged


def _copy_nested(params: dict[str, Any]) -> dict[str, Any]:
    return {name: _copy_nested(value) if isinstance(value, dict) else value for name, value in params.items()}


class LeaderboardConfig(_Strict):
    """Everything that a leaderboard run is told."""

    title: str = "Leaderboard"
    data: Dataset | DataConfig
    split: SplitConfig
    seeds: list[int] = Field([0], min_length=1)
    k: list[PositiveInt] = Field([10], min_length=1)
    metric: str = Field("ndcg@10", description="Main metric: tuning maximises it, significance compares it.")
    replay_metrics: bool = Field(False, description="Measure RePlay's metrics beside RecTools' ones.")
    time_limit: float = Field(600.0, gt=0, description="Seconds that one job may take before it counts as failed.")
    trials: int = Field(0, ge=0, description="Tuning trials for each model with a search space.")
    tuned: Path | None = Field(None, description="YAML of tuned parameters, relative to the configuration's folder.")
    models: dict[str, ModelSpec] = Field(min_length=1)

    @field_validator("seeds", "k")
    @classmethod
    def _sort_unique(cls, values: list[int]) -> list[int]:
        if len(set(values)) != len(values):
            raise ValueError(f"values must differ, got {values}")
        return sorted(values)

    @model_validator(mode="after")
    def _check_metric(self) -> LeaderboardConfig:
        known = [f"{name}@{k}" for k in self.k for name in ACCURACY]
        if self.metric not in known:
            raise ValueError(f"unknown metric {self.metric!r}; with k {self.k} choose one of {', '.join(known)}")
        return self


def load_config(source: dict[str, Any] | str | Path, **overrides: Any) -> LeaderboardConfig:
    """
    Read and check a configuration.

    Parameters
    ----------
    source : dict, str or Path
        A configuration, or the YAML file that holds one.
    **overrides
        Top-level fields that replace the source's; None leaves a field as it is.

    Returns
    -------
    LeaderboardConfig
        The checked configuration, its `tuned` path made absolute.

    Raises
    ------
    ValueError
        If anything is missing, unknown or out of range; the message names the field.
    FileNotFoundError
        If the file does not exist.
    """
    folder = Path.cwd()
    if isinstance(source, dict):
        raw: Any = source
    else:
        folder = Path(source).resolve().parent
        raw = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise ValueError(f"the configuration must be a mapping with `data`, `split` and `models`, got {raw!r}")
    config = LeaderboardConfig.model_validate({**raw, **{k: v for k, v in overrides.items() if v is not None}})
    return config if config.tuned is None else config.model_copy(update={"tuned": folder / config.tuned})


def select_models(config: LeaderboardConfig, names: list[str]) -> LeaderboardConfig:
    """
    Keep some of the models.

    Parameters
    ----------
    config : LeaderboardConfig
        Configuration with all models.
    names : list of str
        Names to keep.

    Returns
    -------
    LeaderboardConfig
        Configuration with these models, in the configuration's order.

    Raises
    ------
    ValueError
        If a name is not one of the configuration's models.
    """
    unknown = [name for name in names if name not in config.models]
    if unknown:
        raise ValueError(f"unknown models {unknown}; the configuration has {list(config.models)}")
    return config.model_copy(update={"models": {name: spec for name, spec in config.models.items() if name in names}})
