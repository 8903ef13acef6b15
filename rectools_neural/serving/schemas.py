"""What the service is asked and what it answers, as JSON. The descriptions are those of the page /docs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, ValidationError, create_model, model_validator
from pydantic.json_schema import models_json_schema
from typing_extensions import Self

M = TypeVar("M", bound=BaseModel)
_INT64 = {"ge": -(2**63), "le": 2**63 - 1}
_MAX_TEXT, _MAX_FEATURES, _MAX_VALUES = 256, 1000, 1000
_MAX_HISTORY, _MAX_WHITELIST, _MAX_PAIRS = 10_000, 100_000, 10_000
_SHOWN, _SHOWN_LOC = 20, 100  # problems in an answer, and characters of a name that the client made up


def _or_say(message: str, kind: str) -> GetPydanticSchema:
    """Make a union complain once, instead of once for each of its types."""
    told = {"mode": "left_to_right", "custom_error_type": kind, "custom_error_message": message}
    return GetPydanticSchema(lambda source, handler: cast(Any, {**handler(source), **told}))


_Whole = Annotated[int, Field(strict=True, **_INT64)]
_Text = Annotated[str, Field(strict=True, max_length=_MAX_TEXT)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Scalar = Annotated[bool, Field(strict=True)] | _Whole | _Number | _Text
Id = Annotated[
    _Whole | _Text,
    _or_say(f"An id is a whole number of 64 bits or a text of at most {_MAX_TEXT} characters", "id_type"),
]
_Feature = Annotated[
    _Scalar | Annotated[list[_Scalar], Field(min_length=1, max_length=_MAX_VALUES)],
    _or_say(f"A feature is a number, a text, true or false, or a list of 1 to {_MAX_VALUES} of them", "feature_type"),
]
_Flag = Annotated[bool, Field(strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ---------------------------------------------------------------------- requests


class WeightedItem(_Strict):
    """An item of a history with the strength of the interaction."""

    item_id: Id
    weight: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0


_Entry = Annotated[
    Id | WeightedItem,
    _or_say(
        'An entry is the id of an item, or {"item_id": ID, "weight": W} with a finite weight above 0', "history_entry"
    ),
]
_Whitelist = Annotated[
    list[Id] | None,
    Field(min_length=1, max_length=_MAX_WHITELIST, description="Answer with nothing but these items."),
]


def _count(maximum: int) -> Any:
    about = "How many items; fewer come only if there are no more."
    return Annotated[int, Field(strict=True, ge=1, le=maximum, description=about)]


# What null says, too: a field that is null is a field that is not given.
_ONE_OF_THREE: dict[str, Any] = {
    "anyOf": [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
        for name in ("user_id", "history", "features")
    ]
}


class Subject(_Strict):
    """Whom a question is about: at least one of the three fields."""

    user_id: Annotated[
        Id | None, Field(description="A user whom the model knows; the stored history and features are used.")
    ] = None
    history: Annotated[
        list[_Entry] | None,
        Field(
            min_length=1,
            max_length=_MAX_HISTORY,
            description="What the user had, oldest first; takes the place of the stored history. Items that the model "
            "does not know are left out and come back as `ignored`.",
        ),
    ] = None
    features: Annotated[
        dict[_Text, _Feature] | None,
        Field(
            min_length=1,
            max_length=_MAX_FEATURES,
            description="Value, or list of values, of each feature by its name; they replace the stored ones.",
        ),
    ] = None

    @model_validator(mode="after")
    def _check_given(self) -> Self:
        if self.user_id is None and self.history is None and self.features is None:
            raise ValueError("give at least one of `user_id`, `history`, `features`")
        return self


class RecommendRequest(Subject):
    """Ask for the best items."""

    model_config = ConfigDict(
        json_schema_extra={
            **_ONE_OF_THREE,
            "examples": [
                {"user_id": 1, "k": 10},
                {"history": [10, 20, {"item_id": 30, "weight": 4.5}], "k": 5, "items": [40, 50, 60]},
                {"features": {"age": 25, "genres": ["drama", "comedy"]}, "filter_seen": False},
            ],
        }
    )

    k: int = 10
    items: _Whitelist = None
    filter_seen: Annotated[_Flag, Field(description="Leave out the items of the history.")] = True


class BatchRequest(_Strict):
    """Many questions at once. All answers are of one model; if one can't be answered, none is."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests": [{"user_id": 1}, {"history": [10], "k": 3}]}]}
    )

    requests: list[RecommendRequest]


class SimilarRequest(_Strict):
    """Ask for the items that are most like an item."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"item_id": 10, "k": 5}]})

    item_id: Id
    k: int = 10
    items: _Whitelist = None


class Pair(_Strict):
    """A user and an item that the model knows."""

    user_id: Id
    item_id: Id


class ScoreRequest(_Strict):
    """Ask for the scores of given pairs."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"pairs": [{"user_id": 1, "item_id": 10}]}]})

    pairs: Annotated[list[Pair], Field(min_length=1, max_length=_MAX_PAIRS)]


class ExplainRequest(Subject):
    """Ask what a score is due to."""

    model_config = ConfigDict(
        json_schema_extra={
            **_ONE_OF_THREE,
            "examples": [{"user_id": 1, "item_id": 10}, {"history": [20], "item_id": 10}],
        }
    )

    item_id: Id


@dataclass(frozen=True)
class Requests:
    """The requests that a service takes, within its limits."""

    recommend: type[RecommendRequest]
    batch: type[BatchRequest]
    similar: type[SimilarRequest]
    score: type[ScoreRequest]
    explain: type[ExplainRequest]

    @classmethod
    def within(cls, max_k: int, max_batch: int) -> Self:
        """
        Make the requests.

        Parameters
        ----------
        max_k : int
            Items that one may ask for.
        max_batch : int
            Requests in a batch.
        """

        def bounded(base: type[M], **fields: Any) -> type[M]:
            return create_model(base.__name__, __base__=base, __doc__=base.__doc__, **fields)

        recommend = bounded(RecommendRequest, k=(_count(max_k), 10))
        several: Any = Annotated[list[recommend], Field(min_length=1, max_length=max_batch)]  # type: ignore[valid-type]
        batch = bounded(BatchRequest, requests=(several, ...))
        similar = bounded(SimilarRequest, k=(_count(max_k), 10))
        return cls(recommend, batch, similar, ScoreRequest, ExplainRequest)

    def json_schemas(self) -> dict[str, Any]:
        """Schemas of the requests and of what is in them, by name, as components of OpenAPI."""
        models = [(getattr(self, name), "validation") for name in self.__dataclass_fields__]
        _, schemas = models_json_schema(cast(Any, models), ref_template="#/components/schemas/{model}")
        return cast(dict[str, Any], schemas["$defs"])


# ---------------------------------------------------------------------- answers

_Model = Annotated[str, Field(description="Version of the model that gave the whole answer; /ready names the newest.")]


class ScoredItem(BaseModel):
    """An item and its score; scores of different models, or of different users, don't compare."""

    item_id: int | str
    score: float


class Recommendation(BaseModel):
    """Items, best first."""

    items: list[ScoredItem]
    ignored: Annotated[list[int | str], Field(description="Items of the given history that the model does not know.")]


class RecommendAnswer(Recommendation):
    """Items, best first, and the version of the model."""

    model: _Model


class BatchAnswer(BaseModel):
    """An answer to each request of a batch, in its order."""

    model: _Model
    answers: list[Recommendation]


class SimilarAnswer(BaseModel):
    """Items, most similar first."""

    model: _Model
    items: list[ScoredItem]


class ScoreAnswer(BaseModel):
    """A score for each pair, in their order."""

    model: _Model
    scores: list[float]


class Contribution(BaseModel):
    """What a part of the history, or a feature, contributed to a score."""

    kind: str
    name: int | str | float | bool | None
    value: int | str | float | bool | None
    contribution: float


class ExplainAnswer(BaseModel):
    """What a score is due to."""

    model: _Model
    score: float
    is_exact: Annotated[bool, Field(description="Whether the score is the sum of the contributions by nature.")]
    sentence: str
    contributions: Annotated[list[Contribution], Field(description="The largest first.")]


class Health(BaseModel):
    """The process is alive."""

    status: str


class Ready(BaseModel):
    """The model that answers now."""

    model: Annotated[str, Field(description="Its version: the start of a checksum of its folder.")]
    model_class: Annotated[str, Field(alias="class", examples=["DSSMModel"])]
    n_users: int
    n_items: int
    loaded_at: Annotated[str, Field(description="When it was loaded, in UTC.", examples=["2026-01-31T12:00:00Z"])]
    last_swap_error: Annotated[
        str | None, Field(description="Why the folder, as it is now, could not take the place of the model, or null.")
    ]


class Problem(BaseModel):
    """What is wrong with a request, and where."""

    loc: Annotated[list[str | int], Field(examples=[["body", "k"]])]
    msg: Annotated[str, Field(examples=["Input should be greater than or equal to 1"])]
    type: Annotated[str, Field(examples=["greater_than_equal"])]


class Problems(BaseModel):
    """The body of every answer that is an error."""

    detail: list[Problem]


class RefusedError(Exception):
    """
    A request that is answered with an error.

    Parameters
    ----------
    status : int
        Of the answer.
    detail : list of dict
        As in `Problems`.
    headers : mapping, optional
        Of the answer.
    """

    def __init__(self, status: int, detail: list[dict[str, Any]], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.headers = status, detail, headers


def refuse(
    status: int, loc: tuple[str | int, ...], msg: str, kind: str, headers: Mapping[str, str] | None = None
) -> RefusedError:
    """Make the refusal of a request for one reason."""
    return RefusedError(status, [_problem(loc, msg, kind)], headers)


def refuse_invalid(error: ValidationError) -> RefusedError:
    """Make the refusal of a body that does not fit its schema; nothing of its values comes back."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return RefusedError(
        422, [_problem(("body", *fault["loc"]), fault["msg"], fault["type"]) for fault in found[:_SHOWN]]
    )


def _problem(loc: tuple[str | int, ...], msg: str, kind: str) -> dict[str, Any]:
    short = [part[:_SHOWN_LOC] if isinstance(part, str) else part for part in loc]
    return {"loc": short, "msg": msg.removeprefix("Value error, "), "type": kind}
