"""Options that commands share: groups of them are dataclasses, whose fields become options one by one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

_COLUMNS, _MODEL = "Columns and features", "Model"


def with_groups(function: Callable[..., None]) -> Callable[..., None]:
    """
    Give a command an option for each field of its parameters that are dataclasses.

    Parameters
    ----------
    function : callable
        A command with parameters by name. Annotations of the fields are those of options.

    Returns
    -------
    callable
        What typer reads: it takes the fields and calls the command with the dataclasses made of them.
    """
    hints = get_type_hints(function, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        parameters += _parameters(groups[name]) if name in groups else [parameter.replace(annotation=hints[name])]

    @functools.wraps(function)
    def run(**options: Any) -> None:
        values = {name: {field.name: options.pop(field.name) for field in fields(groups[name])} for name in groups}
        function(**options, **{name: group(**values[name]) for name, group in groups.items()})  # type: ignore[operator]

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


class Split(str, Enum):
    """What is held out."""

    random = "random"
    time = "time"
    last_n = "last_n"


Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="Interactions, CSV or parquet: user_id, item_id and, if known, weight, datetime."
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="What `fit` has written.")]
History = Annotated[
    Path,
    typer.Option("--interactions", help="What the users did until now: the file of the fit, or a newer one."),
]
K = Annotated[int, typer.Option("-k", "--k", min=1, help="Items for each user.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


@dataclass(frozen=True)
class ColumnOptions:
    """Columns of the files; `tables.Names` of them are for reading."""

    user_column: Annotated[
        str, typer.Option(help="Column of the user ids, in all files.", rich_help_panel=_COLUMNS)
    ] = "user_id"
    item_column: Annotated[
        str, typer.Option(help="Column of the item ids, in all files.", rich_help_panel=_COLUMNS)
    ] = "item_id"
    weight_column: Annotated[
        str | None,
        typer.Option(help="Column of the weights; by default `weight`, if there is one.", rich_help_panel=_COLUMNS),
    ] = None
    datetime_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the times, as dates or Unix seconds; by default `datetime`, if there is one.",
            rich_help_panel=_COLUMNS,
        ),
    ] = None


@dataclass(frozen=True)
class TableOptions(ColumnOptions):
    """Columns, and files of features."""

    user_features: Annotated[
        Path | None,
        typer.Option(
            help="Users and a column for each feature: numbers, or categories with | between several of them.",
            rich_help_panel=_COLUMNS,
        ),
    ] = None
    item_features: Annotated[Path | None, typer.Option(help="The same for items.", rich_help_panel=_COLUMNS)] = None


@dataclass(frozen=True)
class ModelOptions:
    """A model that is not fitted."""

    model: Annotated[
        str | None, typer.Option("--model", help="Class of the model, DSSMModel by default.", rich_help_panel=_MODEL)
    ] = None
    config: Annotated[
        Path | None, typer.Option(help="YAML file with `cls` and the options of the model.", rich_help_panel=_MODEL)
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="An option of the model, such as epochs=20 or loss.margin=0.4; may be given again and again.",
            rich_help_panel=_MODEL,
        ),
    ] = None


@dataclass(frozen=True)
class SplitOptions:
    """What is held out of the data."""

    split: Annotated[
        Split, typer.Option(help="Hold out random rows, the end of the timeline, or each user's last rows.")
    ] = Split.random
    size: Annotated[
        float | None, typer.Option(help="Share to hold out, 0.1 by default; for last_n the rows a user, 1 by default.")
    ] = None


@dataclass(frozen=True)
class RunOptions:
    """What a command says beside its results."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False
