"""The commands. Libraries that take seconds to load are imported where they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import Group, InputError, WorkError, command, note
from .options import (
    ColumnOptions,
    Data,
    Folder,
    History,
    K,
    ModelOptions,
    Overwrite,
    RunOptions,
    Split,
    SplitOptions,
    TableOptions,
)
from .output import check_folder, check_output, show, write_json, write_table, write_text
from .serve import EPILOG, serve

if TYPE_CHECKING:
    import numpy as np
    from rectools.dataset import Dataset

    from ..models.pack import PackModel
    from .tables import Names

app = typer.Typer(
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="From two files to recommendations:\n\n"
    "rectools-neural inspect ratings.csv\n\n"
    "rectools-neural leaderboard ratings.csv --output report.html\n\n"
    "rectools-neural tune ratings.csv --item-features films.csv --output best.yaml\n\n"
    "rectools-neural fit ratings.csv --item-features films.csv --config best.yaml --output model\n\n"
    "rectools-neural recommend model --interactions ratings.csv --item-features films.csv -k 10 --output reco.csv",
)


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
    *,
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the fitted model.")],
    choice: ModelOptions,
    tables: TableOptions,
    overwrite: Overwrite = False,
    run: RunOptions,
) -> None:
    """Fit a model and save it to a folder."""
    from .models import build_pack_model, fit_model, read_options

    check_folder(output, overwrite)
    made = build_pack_model(read_options(choice))
    dataset = _read_dataset(data, tables)
    seconds = fit_model(made, dataset, run.quiet)
    if not getattr(made, "is_main_process", True):  # one of several that trained it together
        return
    made.save_pretrained(output, dataset)
    note(f"{type(made).__name__} was fitted on {_sizes(dataset)} in {seconds:.1f} s and is in {output}", run.quiet)


@app.command(
    epilog="Examples:\n\n"
    "rectools-neural recommend model --interactions ratings.csv --users ann,bob\n\n"
    "rectools-neural recommend model --interactions ratings.csv --users users.csv -k 20 --output reco.parquet\n\n"
    "rectools-neural recommend model --interactions ratings.csv --items in_stock.csv --output reco.jsonl"
)
@command
def recommend(
    *,
    folder: Folder,
    interactions: History,
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
    tables: TableOptions,
    overwrite: Overwrite = False,
    run: RunOptions,
) -> None:
    """Recommend items to users with a fitted model; a table on a terminal, CSV in a pipe."""
    import numpy as np
    from rectools import Columns

    from .models import load_model
    from .tables import read_choice

    check_output(output, overwrite, (".csv", ".parquet", ".jsonl"))
    model = load_model(folder)
    reader = model._fitted.reader
    dataset, targets = _read_for(model, folder, interactions, tables)
    if users is not None:
        targets = read_choice(users, "user", _names(tables), _are_numbers(reader.user_ids))
        _refuse_unknown(targets, dataset.user_id_map.external_ids, "--users", "the interactions or features")
    chosen = None
    if items is not None:
        chosen = read_choice(items, "item", _names(tables), _are_numbers(reader.item_ids))
        known = np.concatenate([reader.item_ids, dataset.item_id_map.external_ids])
        _refuse_unknown(chosen, known, "--items", "the model, the interactions or features")
    reco = model.recommend(targets, dataset, k, filter_viewed=not keep_seen, items_to_recommend=chosen)
    if output is None:
        show(reco, f"{type(model).__name__}, {len(targets)} users")
        return
    write_table(output, reco)
    note(f"{len(reco)} recommendations to {reco[Columns.User].nunique()} users are in {output}", run.quiet)


@app.command(
    epilog="Examples:\n\n"
    "rectools-neural explain model --interactions ratings.csv --user ann --item 42\n\n"
    "rectools-neural explain model --interactions ratings.csv --user 7 --item 42 --output why.json"
)
@command
def explain(
    *,
    folder: Folder,
    interactions: History,
    user: Annotated[str, typer.Option(metavar="ID", help="Whose score.")],
    item: Annotated[str, typer.Option(metavar="ID", help="The score of which item.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File for the result: .csv or .json; else it is printed.")
    ] = None,
    tables: TableOptions,
    overwrite: Overwrite = False,
    run: RunOptions,
) -> None:
    """Tell what the history and the features of a user and an item contributed to the score of the pair."""
    import numpy as np

    from ..explanation import explain as explain_pair
    from .models import load_model
    from .output import records
    from .tables import as_ids

    check_output(output, overwrite, (".csv", ".json"))
    model = load_model(folder)
    reader = model._fitted.reader
    dataset, _ = _read_for(model, folder, interactions, tables)
    users = as_ids(np.array([user], dtype=object), _are_numbers(reader.user_ids), "--user")
    items = as_ids(np.array([item], dtype=object), _are_numbers(reader.item_ids), "--item")
    _refuse_unknown(users, dataset.user_id_map.external_ids, "--user", "the interactions or features")
    known = np.concatenate([reader.item_ids, dataset.item_id_map.external_ids])
    _refuse_unknown(items, known, "--item", "the model, the interactions or features")
    try:
        found = explain_pair(model, dataset, users[0], items[0])
    except ValueError as error:
        raise InputError(str(error)) from error
    note(found.sentence(), run.quiet)
    if output is None:
        show(found.contributions, f"{type(model).__name__}: the contributions add up to {found.score:.4g}")
    elif output.suffix == ".csv":
        write_table(output, found.contributions)
    else:
        facts = {"user": user, "item": item, "score": found.score, "is_exact": found.is_exact}
        write_json(output, {**facts, "sentence": found.sentence(), "contributions": records(found.contributions)})


@app.command(
    epilog="Examples:\n\n"
    "rectools-neural evaluate ratings.csv\n\n"
    "rectools-neural evaluate ratings.csv --split last_n --size 2 --model EASEModel --output metrics.json\n\n"
    "rectools-neural evaluate ratings.csv --split time --size 0.2 --set n_factors=128"
)
@command
def evaluate(
    *,
    data: Data,
    held: SplitOptions,
    k: K = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the metrics, beside the table.")
    ] = None,
    choice: ModelOptions,
    tables: TableOptions,
    overwrite: Overwrite = False,
    run: RunOptions,
) -> None:
    """Fit a model on a part of the data and measure it on the rest, beside Popular, the line to beat."""
    import pandas as pd
    from rectools.models import PopularModel

    from .evaluation import describe_split, measure, split_dataset
    from .models import build_model, fit_model, read_options

    check_output(output, overwrite, (".json",))
    made = build_model(read_options(choice))
    train, test = split_dataset(_read_dataset(data, tables, held.split), held.split.value, held.size)
    results = {}
    for candidate in (made, PopularModel()):
        seconds = fit_model(candidate, train, run.quiet)
        results[type(candidate).__name__] = {**measure(candidate, train, test, k), "fit_seconds": round(seconds, 3)}
    if output is not None:
        facts = {"metrics": results, "config": made.get_config(simple_types=True)}
        write_json(output, {**facts, **describe_split(data, held, train, test)})
    show(
        pd.DataFrame.from_dict(results, orient="index").rename_axis("model").reset_index(),
        _held_out(test, held.split),
    )


@app.command(
    epilog="Examples:\n\n"
    "rectools-neural leaderboard ratings.csv --output report.html\n\n"
    "rectools-neural leaderboard ratings.csv --models DSSMModel,MultVAEModel,EASEModel --split time --seeds 1\n\n"
    "rectools-neural leaderboard ratings.csv --config models.yaml --output report.csv\n\n"
    "models.yaml: [{cls: EASEModel}, {name: small, cls: DSSMModel, n_factors: 32}]"
)
@command
def leaderboard(
    *,
    data: Data,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS,CLASS",
            help="Which models; by default PopularModel, ItemKNN, EASEModel, GFCFModel, MultVAEModel and DSSMModel.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML list of models, each with `cls`, its options and, if you like, `name`.")
    ] = None,
    held: SplitOptions,
    k: K = 10,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Fits of each model that has a seed.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File beside the table: .html (a page by itself), .csv or .json."),
    ] = None,
    tables: TableOptions,
    overwrite: Overwrite = False,
    run: RunOptions,
) -> None:
    """Fit several models on a part of the data and compare them on the rest, and with Popular."""
    from .evaluation import describe_split, split_dataset
    from .leaderboard import make_page, measure_all, read_candidates, readable
    from .output import is_terminal, records

    check_output(output, overwrite, (".html", ".csv", ".json"))
    candidates = read_candidates(models, config)
    train, test = split_dataset(_read_dataset(data, tables, held.split), held.split.value, held.size)
    table = measure_all(candidates, train, test, k, seeds, run)
    facts, title = describe_split(data, held, train, test), _held_out(test, held.split)
    if output is not None:
        if output.suffix == ".html":
            write_text(output, make_page(table, f"{data.name}: {title}", facts))
        elif output.suffix == ".csv":
            write_table(output, table)
        else:
            options = {candidate.name: candidate.options for candidate in candidates}
            write_json(output, {"models": records(table), "options": options, "seeds": seeds, **facts})
    show(readable(table) if is_terminal() else table, title)
    failed = table[table["error"] != ""]
    if len(failed):
        reasons = "; ".join(f"{row.model}: {row.error}" for row in failed.itertuples())
        raise WorkError(f"{len(failed)} of {len(table)} models failed: {reasons}")


@app.command(
    epilog="Examples:\n\n"
    "rectools-neural tune ratings.csv --output best.yaml\n\n"
    "rectools-neural tune ratings.csv --model MultVAEModel --trials 50 --timeout 600 --metric map@20 -o best.yaml\n\n"
    "rectools-neural tune ratings.csv --search space.yaml --set epochs=20 --output best.yaml\n\n"
    "space.yaml: {n_factors: {choices: [32, 64]}, learning_rate: {low: 1e-4, high: 1e-2, log: true}}\n\n"
    "rectools-neural fit ratings.csv --config best.yaml --output model"
)
@command
def tune(
    *,
    data: Data,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="YAML file for the best options: `fit --config` takes it.")
    ],
    trials: Annotated[int, typer.Option(min=1, help="How many options to try, besides those that are given.")] = 20,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Begin no further trial after this time.")
    ] = None,
    metric: Annotated[
        str, typer.Option(metavar="NAME@K", help="What to maximise: ndcg, recall or map of the first K items.")
    ] = "ndcg@10",
    search: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of what to search: option: {choices: [...]} or {low: ..., high: ..., log: true}; by "
            "default what matters most for the model."
        ),
    ] = None,
    held: SplitOptions,
    choice: ModelOptions,
    tables: TableOptions,
    overwrite: Overwrite = False,
    run: RunOptions,
) -> None:
    """
    Search good options of a model, with Optuna.

    They are measured on rows that are cut from the data after those that `evaluate` and `leaderboard` hold out with the
    same --split and --size, so that these can judge the result. Ctrl-C keeps the best so far.
    """
    import pandas as pd

    from .evaluation import read_metric, split_dataset
    from .models import build_pack_model, read_options
    from .tuning import Tuning, check_optuna, choose_space, describe

    check_optuna()
    check_output(output, overwrite, (".yaml", ".yml"))
    name, k = read_metric(metric)
    options = read_options(choice)
    cls = type(build_pack_model(options)).__name__
    space = choose_space(cls, options, search)
    rest, _ = split_dataset(_read_dataset(data, tables, held.split), held.split.value, held.size)
    train, validation = split_dataset(rest, held.split.value, held.size)
    tuning = Tuning(options, space, train, validation, name, k)
    interrupted = False
    try:
        tuning.search(trials, timeout, run)
    except KeyboardInterrupt:
        interrupted = True
        if tuning.best is None:
            raise
    write_text(output, describe(tuning, data, held))
    if interrupted:
        raise KeyboardInterrupt(f"interrupted after {tuning.finished} trials; the best options so far are in {output}")
    rows = [("without the search", tuning.start), ("with the search", tuning.value)]
    show(pd.DataFrame(rows, columns=[cls, metric]), f"{len(validation)} validation rows, split {held.split.value}")
    if tuning.best == options:
        note(f"no trial was better than the options without the search, which are in {output}", run.quiet)
    else:
        note(f"the best options are in {output}: rectools-neural fit {data} --config {output} --output ...", run.quiet)


@app.command(
    epilog="Examples:\n\nrectools-neural inspect model\n\nrectools-neural inspect log.parquet --user-column client"
)
@command
def inspect(
    *,
    path: Annotated[Path, typer.Argument(metavar="FOLDER|DATA", help="What `fit` has written, or interactions.")],
    columns: ColumnOptions,
    run: RunOptions,
) -> None:
    """Tell what is in the folder of a model, or in a file of interactions and what is wrong with it."""
    import pandas as pd

    from .inspection import describe_data, describe_model
    from .models import load_model

    facts = describe_model(load_model(path), path) if path.is_dir() else describe_data(path, _names(columns))
    show(pd.DataFrame(facts, columns=["property", "value"]), str(path))


app.command(epilog=EPILOG)(serve)


def _names(columns: ColumnOptions) -> Names:
    from .tables import Names

    return Names(columns.user_column, columns.item_column, columns.weight_column, columns.datetime_column)


def _read_dataset(data: Path, tables: TableOptions, split: Split = Split.random) -> Dataset:
    """Read interactions and features; a split other than random needs times."""
    from rectools import Columns

    from .tables import make_dataset, read_interactions

    table = read_interactions(data, _names(tables))
    if split is not Split.random and Columns.Datetime not in table:
        raise InputError(
            f"--split {split.value} needs times, and {data} has no column `datetime`: see --datetime-column"
        )
    return make_dataset(table, _names(tables), tables.user_features, tables.item_features)


def _read_for(
    model: PackModel[Any], folder: Path, interactions: Path, tables: TableOptions
) -> tuple[Dataset, np.ndarray]:
    """Read data with ids and features like those of a fitted model, and their users."""
    import pandas as pd
    from rectools import Columns

    from .tables import as_ids, make_dataset, read_interactions

    reader, names = model._fitted.reader, _names(tables)
    for side, given, encoder in (
        ("user", tables.user_features, reader.user_encoder),
        ("item", tables.item_features, reader.item_encoder),
    ):
        if model.uses_features and (given is not None) != (encoder.kind != "none"):
            was, remedy = ("without", "leave out") if given else ("with", "give")
            raise InputError(f"the model in {folder} was fitted {was} {side} features: {remedy} --{side}-features")
    table = read_interactions(interactions, names)
    for side, column, ids in (("user", Columns.User, reader.user_ids), ("item", Columns.Item, reader.item_ids)):
        what = f"column `{names.ids_of(side)[0]}` of {interactions}, beside the ids of the model"
        table[column] = as_ids(table[column].to_numpy(), _are_numbers(ids), what)
    dataset = make_dataset(table, names, tables.user_features, tables.item_features)
    return dataset, pd.unique(table[Columns.User])


def _are_numbers(ids: np.ndarray) -> bool:
    return ids.dtype.kind in "iu"


def _held_out(test: Any, split: Split) -> str:
    from rectools import Columns

    return f"{len(test)} held-out rows of {test[Columns.User].nunique()} users, split {split.value}"


def _sizes(dataset: Dataset) -> str:
    rows = dataset.interactions.df
    return f"{dataset.n_hot_users} users, {dataset.n_hot_items} items, {len(rows)} interactions"


def _refuse_unknown(ids: np.ndarray, known: np.ndarray, option: str, where: str) -> None:
    import pandas as pd

    unknown: pd.Index = pd.Index(ids).difference(pd.Index(known), sort=False)
    if len(unknown):
        some = ", ".join(f"`{value}`" for value in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(f"{option}: not in {where}: {some}; leave them out, or add rows about them")
