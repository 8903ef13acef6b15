"""The commands. Libraries that take seconds to load are imported where they are needed."""

from __future__ import annotations

import contextlib
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import Group, InputError, command, note
from .output import check_folder, check_output, show, write_json, write_table
from .serve import EPILOG, serve

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from rectools.dataset import Dataset
    from rectools.models.base import ModelBase

    from ..models.pack import PackModel

app = typer.Typer(
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="From two files to recommendations:\n\n"
    "rectools-neural inspect ratings.csv\n\n"
    "rectools-neural evaluate ratings.csv --item-features films.csv\n\n"
    "rectools-neural fit ratings.csv --item-features films.csv --output model\n\n"
    "rectools-neural recommend model --interactions ratings.csv --item-features films.csv -k 10 --output reco.csv",
)


class Split(str, Enum):
    """What is held out."""

    random = "random"
    time = "time"
    last_n = "last_n"


_COLUMNS, _MODEL = "Columns and features", "Model"
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="Interactions, CSV or parquet: user_id, item_id and, if known, weight, datetime."
    ),
]
UserColumn = Annotated[str, typer.Option(help="Column of the user ids, in all files.", rich_help_panel=_COLUMNS)]
ItemColumn = Annotated[str, typer.Option(help="Column of the item ids, in all files.", rich_help_panel=_COLUMNS)]
WeightColumn = Annotated[
    str | None,
    typer.Option(help="Column of the weights; by default `weight`, if there is one.", rich_help_panel=_COLUMNS),
]
DatetimeColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the times, as dates or Unix seconds; by default `datetime`, if there is one.",
        rich_help_panel=_COLUMNS,
    ),
]
UserFeatures = Annotated[
    Path | None,
    typer.Option(
        help="Users and a column for each feature: numbers, or categories with | between several of them.",
        rich_help_panel=_COLUMNS,
    ),
]
ItemFeatures = Annotated[Path | None, typer.Option(help="The same for items.", rich_help_panel=_COLUMNS)]
ModelName = Annotated[
    str | None, typer.Option("--model", help="Class of the model, DSSMModel by default.", rich_help_panel=_MODEL)
]
Config = Annotated[
    Path | None, typer.Option(help="YAML file with `cls` and the options of the model.", rich_help_panel=_MODEL)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="An option of the model, such as epochs=20 or loss.margin=0.4; may be given again and again.",
        rich_help_panel=_MODEL,
    ),
]
K = Annotated[int, typer.Option("-k", "--k", min=1, help="Items for each user.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"rectools-neural {version('rectools-neural')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """
    Neural recommenders from tables in files.

    Exit codes: 0 done, 1 the work failed, 2 the input can't be used, 130 interrupted.
    """


@app.command(
    epilog="Examples:\n\n"
    "rectools-neural fit ratings.csv --output model\n\n"
    "rectools-neural fit log.parquet --user-column client --model MultVAEModel --set epochs=20 --output model\n\n"
    "rectools-neural fit ratings.csv --config dssm.yaml --set validation=random --output model --overwrite"
)
@command
def fit(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the fitted model.")],
    model: ModelName = None,
    config: Config = None,
    overrides: Overrides = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    weight_column: WeightColumn = None,
    datetime_column: DatetimeColumn = None,
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit a model and save it to a folder."""
    from .models import make_pack_model
    from .tables import Names, make_dataset, read_interactions

    check_folder(output, overwrite)
    made = make_pack_model(model, config, overrides or ())
    names = Names(user_column, item_column, weight_column, datetime_column)
    dataset = make_dataset(read_interactions(data, names), names, user_features, item_features)
    seconds = _fit(made, dataset, quiet)
    if not getattr(made, "is_main_process", True):  # one of several that trained it together
        return
    made.save_pretrained(output, dataset)
    note(f"{type(made).__name__} was fitted on {_sizes(dataset)} in {seconds:.1f} s and is in {output}", quiet)


@app.command(
    epilog="Examples:\n\n"
    "rectools-neural recommend model --interactions ratings.csv --users ann,bob\n\n"
    "rectools-neural recommend model --interactions ratings.csv --users users.csv -k 20 --output reco.parquet\n\n"
    "rectools-neural recommend model --interactions ratings.csv --items in_stock.csv --output reco.jsonl"
)
@command
def recommend(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `fit` has written.")],
    interactions: Annotated[
        Path, typer.Option(help="What the users did until now: the file of the fit, or a newer one.")
    ],
    users: Annotated[
        str | None, typer.Option(metavar="FILE|ID,ID", help="To whom; by default all users of the interactions.")
    ] = None,
    k: K = 10,
    items: Annotated[str | None, typer.Option(metavar="FILE|ID,ID", help="Recommend nothing but these.")] = None,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Recommend also what users know already.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for the result: .csv, .parquet or .jsonl; else it is printed."),
    ] = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    weight_column: WeightColumn = None,
    datetime_column: DatetimeColumn = None,
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Recommend items to users with a fitted model; a table on a terminal, CSV in a pipe."""
    import numpy as np
    import pandas as pd
    from rectools import Columns

    from .tables import Names, as_ids, make_dataset, read_choice, read_interactions

    check_output(output, overwrite, (".csv", ".parquet", ".jsonl"))
    model = _load(folder)
    reader = model._fitted.reader
    for side, given, encoder in (
        ("user", user_features, reader.user_encoder),
        ("item", item_features, reader.item_encoder),
    ):
        if model.uses_features and (given is not None) != (encoder.kind != "none"):
            was, remedy = ("without", "leave out") if given else ("with", "give")
            raise InputError(f"the model in {folder} was fitted {was} {side} features: {remedy} --{side}-features")
    numbers = {"user": reader.user_ids.dtype.kind in "iu", "item": reader.item_ids.dtype.kind in "iu"}
    names = Names(user_column, item_column, weight_column, datetime_column)
    table = read_interactions(interactions, names)
    for side, column in (("user", Columns.User), ("item", Columns.Item)):
        what = f"column `{names.ids_of(side)[0]}` of {interactions}, beside the ids of the model"
        table[column] = as_ids(table[column].to_numpy(), numbers[side], what)
    dataset = make_dataset(table, names, user_features, item_features)
    targets = pd.unique(table[Columns.User])
    if users is not None:
        targets = read_choice(users, "user", names, numbers["user"])
        _refuse_unknown(targets, dataset.user_id_map.external_ids, "--users", "the interactions or features")
    chosen = None
    if items is not None:
        chosen = read_choice(items, "item", names, numbers["item"])
        known = np.concatenate([reader.item_ids, dataset.item_id_map.external_ids])
        _refuse_unknown(chosen, known, "--items", "the model, the interactions or features")
    reco = model.recommend(targets, dataset, k, filter_viewed=not keep_seen, items_to_recommend=chosen)
    if output is None:
        show(reco, f"{type(model).__name__}, {len(targets)} users")
        return
    write_table(output, reco)
    note(f"{len(reco)} recommendations to {reco[Columns.User].nunique()} users are in {output}", quiet)


@app.command(
    epilog="Examples:\n\n"
    "rectools-neural evaluate ratings.csv\n\n"
    "rectools-neural evaluate ratings.csv --split last_n --size 2 --model EASEModel --output metrics.json\n\n"
    "rectools-neural evaluate ratings.csv --split time --size 0.2 --set n_factors=128"
)
@command
def evaluate(
    data: Data,
    split: Annotated[
        Split, typer.Option(help="Hold out random rows, the end of the timeline, or each user's last rows.")
    ] = Split.random,
    size: Annotated[
        float | None, typer.Option(help="Share to hold out, 0.1 by default; for last_n the rows a user, 1 by default.")
    ] = None,
    k: K = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the metrics, beside the table.")
    ] = None,
    model: ModelName = None,
    config: Config = None,
    overrides: Overrides = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    weight_column: WeightColumn = None,
    datetime_column: DatetimeColumn = None,
    user_features: UserFeatures = None,
    item_features: ItemFeatures = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit a model on a part of the data and measure it on the rest, beside Popular, the line to beat."""
    from importlib.metadata import version

    import pandas as pd
    from rectools import Columns
    from rectools.models import PopularModel

    from .evaluation import measure, split_dataset
    from .models import make_model
    from .tables import Names, make_dataset, read_interactions

    check_output(output, overwrite, (".json",))
    made = make_model(model, config, overrides or ())
    names = Names(user_column, item_column, weight_column, datetime_column)
    table = read_interactions(data, names)
    if split is not Split.random and Columns.Datetime not in table:
        raise InputError(
            f"--split {split.value} needs times, and {data} has no column `datetime`: see --datetime-column"
        )
    dataset = make_dataset(table, names, user_features, item_features)
    train, test = split_dataset(dataset, split.value, size)
    results = {}
    for candidate in (made, PopularModel()):
        seconds = _fit(candidate, train, quiet)
        results[type(candidate).__name__] = {**measure(candidate, train, test, k), "fit_seconds": round(seconds, 3)}
    if output is not None:
        facts = {
            "metrics": results,
            "config": made.get_config(simple_types=True),
            "split": {"name": split.value, "size": size, "seed": 0},
            "data": {"file": data.name, "train_rows": len(train.interactions.df), "test_rows": len(test)},
            "versions": {name: version(name) for name in ("rectools-neural", "rectools", "torch")},
        }
        write_json(output, facts)
    show(
        pd.DataFrame.from_dict(results, orient="index").rename_axis("model").reset_index(),
        f"{len(test)} held-out rows of {test[Columns.User].nunique()} users, split {split.value}",
    )


@app.command(
    epilog="Examples:\n\nrectools-neural inspect model\n\nrectools-neural inspect log.parquet --user-column client"
)
@command
def inspect(
    path: Annotated[Path, typer.Argument(metavar="FOLDER|DATA", help="What `fit` has written, or interactions.")],
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    weight_column: WeightColumn = None,
    datetime_column: DatetimeColumn = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Tell what is in the folder of a model, or in a file of interactions and what is wrong with it."""
    import pandas as pd

    from .inspection import describe_data, describe_model
    from .tables import Names

    if path.is_dir():
        facts = describe_model(_load(path), path)
    else:
        facts = describe_data(path, Names(user_column, item_column, weight_column, datetime_column))
    show(pd.DataFrame(facts, columns=["property", "value"]), str(path))


app.command(epilog=EPILOG)(serve)


def _load(folder: Path) -> PackModel[Any]:
    from ..pretrained import from_pretrained

    try:
        return from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error


def _fit(model: ModelBase[Any], dataset: Dataset, quiet: bool) -> float:
    """Fit, with progress on a terminal, and return the seconds."""
    verbose, started = model.verbose, time.perf_counter()
    model.verbose = 0 if quiet else max(verbose, int(sys.stderr.isatty()))
    try:
        # Results go to the standard output, and nothing else.
        with contextlib.redirect_stdout(sys.stderr):
            model.fit(dataset)
    finally:
        model.verbose = verbose
    return time.perf_counter() - started


def _sizes(dataset: Dataset) -> str:
    rows = dataset.interactions.df
    return f"{dataset.n_hot_users} users, {dataset.n_hot_items} items, {len(rows)} interactions"


def _refuse_unknown(ids: np.ndarray, known: np.ndarray, option: str, where: str) -> None:
    import pandas as pd

    unknown: pd.Index = pd.Index(ids).difference(pd.Index(known), sort=False)
    if len(unknown):
        some = ", ".join(f"`{value}`" for value in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(f"{option}: not in {where}: {some}; leave them out, or add rows about them")
