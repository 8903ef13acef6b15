"""Several models on one split: which to compare, their metrics over seeds, and a page of them."""

from __future__ import annotations

import html
import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rectools.dataset import Dataset
from rectools.models import PopularModel
from rectools.models.base import ModelBase

from .errors import InputError
from .evaluation import measure
from .models import build_model, fit_model, read_yaml, with_option
from .options import RunOptions
from .output import progress

_DEFAULT: list[dict[str, Any]] = [
    {"cls": "PopularModel"},
    {"name": "ItemKNN", "cls": "ImplicitItemKNNWrapperModel", "model": {"cls": "TFIDFRecommender", "K": 50}},
    {"cls": "EASEModel"},
    {"cls": "GFCFModel"},
    {"cls": "MultVAEModel"},
    {"cls": "DSSMModel"},
]


@dataclass(frozen=True)
class Candidate:
    """
    A model to compare.

    Parameters
    ----------
    name : str
        How it is called in the table.
    cls : type
        Its class.
    options : dict
        `cls` and options.
    seed_option : str or None
        What takes the seed, with a dot where it is nested; None if the model has no seed, or it is given.
    """

    name: str
    cls: type[ModelBase[Any]]
    options: dict[str, Any]
    seed_option: str | None


def read_candidates(models: str | None, config: Path | None) -> list[Candidate]:
    """
    Find out which models to compare.

    Parameters
    ----------
    models : str or None
        Classes with commas between them.
    config : Path or None
        A YAML list of options, each with `cls` and perhaps `name`.

    Returns
    -------
    list of Candidate
        Checked, with Popular among them.
    """
    if models is not None and config is not None:
        raise InputError("--models and --config both name the models: give one of them")
    if config is not None:
        source, entries = f"--config {config}", read_yaml(config, "--config")
    elif models is not None:
        source, entries = "--models", [{"cls": part.strip()} for part in models.split(",") if part.strip()]
    else:
        source, entries = "", _DEFAULT
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{source} names no models: give a list of them, each with its `cls`")
    candidates = [_read_candidate(entry, f"{source}, model {number}") for number, entry in enumerate(entries, 1)]
    if not any(candidate.cls is PopularModel for candidate in candidates):
        candidates.append(_read_candidate({"cls": "PopularModel"}, source))
    names = [candidate.name for candidate in candidates]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{source} has `{twice}` twice: give each model a `name` of its own, or leave one out")
    return candidates


def _read_candidate(entry: Any, source: str) -> Candidate:
    if not isinstance(entry, Mapping) or "cls" not in entry:
        raise InputError(f"{source} is {entry!r}: write a model as {{cls: DSSMModel, n_factors: 64}}")
    options = {key: value for key, value in entry.items() if key != "name"}
    cls = type(build_model(options, source))
    name = entry.get("name", cls.__name__)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{source} has the name {name!r}: a name is text")
    return Candidate(name, cls, options, _seed_option(cls, options))


def _seed_option(cls: type[ModelBase[Any]], options: Mapping[str, Any]) -> str | None:
    fields, inner = cls.config_class.model_fields, options.get("model")
    if "seed" in fields:
        return None if "seed" in options else "seed"
    # Models of implicit and LightFM inside RecTools' own.
    if isinstance(inner, Mapping) and "random_state" in getattr(fields["model"].annotation, "__annotations__", {}):
        return None if "random_state" in inner else "model.random_state"
    return None


def measure_all(
    candidates: list[Candidate], train: Dataset, test: pd.DataFrame, k: int, seeds: int, run: RunOptions
) -> pd.DataFrame:
    """
    Fit and measure models; one that fails leaves the others alone.

    Parameters
    ----------
    candidates : list of Candidate
        The models.
    train, test : Dataset, pd.DataFrame
        Parts of the data.
    k : int
        Items for each user.
    seeds : int
        Fits of a model that has a seed.
    run : RunOptions
        What to say beside the results.

    Returns
    -------
    pd.DataFrame
        A row a model, the best nDCG first: `model`, mean and standard deviation of each metric over the fits,
        `times_popular` (nDCG over that of Popular), `fit_seconds`, `fits` and `error`, which is empty if there is none.
    """
    jobs = [(candidate, seed) for candidate in candidates for seed in _seeds(candidate, seeds)]
    measured: dict[str, list[dict[str, float]]] = {candidate.name: [] for candidate in candidates}
    errors: dict[str, str] = {}
    with progress(len(jobs), run.quiet) as update:
        for number, (candidate, seed) in enumerate(jobs):
            update(number, candidate.name)
            if candidate.name not in errors:
                try:
                    measured[candidate.name].append(_measure(candidate, seed, train, test, k))
                except Exception as error:
                    if run.debug:
                        traceback.print_exc()
                    errors[candidate.name] = f"{type(error).__name__}: {error}"
    names = [f"{metric}@{k}" for metric in ("ndcg", "recall", "map", "coverage")]
    rows = [_row(name, [] if name in errors else fits, names, errors.get(name, "")) for name, fits in measured.items()]
    table = pd.DataFrame(rows).sort_values(names[0], ascending=False, kind="stable", ignore_index=True)
    popular = next(candidate.name for candidate in candidates if candidate.cls is PopularModel)
    line = table.loc[table["model"] == popular, names[0]].item()
    table.insert(1 + 2 * len(names), "times_popular", table[names[0]] / (line or np.nan))
    return table


def _seeds(candidate: Candidate, seeds: int) -> range:
    return range(seeds if candidate.seed_option else 1)


def _measure(candidate: Candidate, seed: int, train: Dataset, test: pd.DataFrame, k: int) -> dict[str, float]:
    path = candidate.seed_option
    model = build_model(with_option(candidate.options, path, seed) if path else candidate.options)
    seconds = fit_model(model, train, quiet=True)
    return {**measure(model, train, test, k), "fit_seconds": seconds}


def _row(name: str, fits: list[dict[str, float]], metrics: list[str], error: str) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name}
    for metric in metrics:
        values = [fit[metric] for fit in fits]
        row[metric] = float(np.mean(values)) if values else np.nan
        row[f"{metric}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    seconds = [fit["fit_seconds"] for fit in fits]
    return {
        **row,
        "fit_seconds": round(float(np.mean(seconds)), 3) if seconds else np.nan,
        "fits": len(fits),
        "error": error,
    }


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Put means and standard deviations of a leaderboard together, as text."""
    shown: dict[str, Any] = {"model": table["model"]}
    for name in table.columns:
        if f"{name}_std" in table:
            shown[name] = [_plus_minus(*pair) for pair in zip(table[name], table[f"{name}_std"], strict=True)]
    shown["times Popular"] = [_number(value, ".2f") for value in table["times_popular"]]
    shown["fit, s"] = [_number(value, ".3g") for value in table["fit_seconds"]]
    if table["error"].any():
        shown["error"] = table["error"]
    return pd.DataFrame(shown)


def _plus_minus(mean: float, std: float) -> str:
    return _number(mean, ".4f") + (f" ± {std:.4f}" if std == std else "")


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if value == value else ""


# ---------------------------------------------------------------------- the page

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ --text: #1c2430; --soft: #66707f; --line: #dfe3e9; --page: #fff; --bar: #1f6feb; --error: #b3261e; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6eaf0; --soft: #9aa5b4; --line: #323a46; --page: #14181e; --bar: #58a6ff; --error: #ff8a80; }}
}}
body {{ margin: 2rem auto; padding: 0 1rem; max-width: 76rem; color: var(--text); background: var(--page);
  font: 15px/1.5 system-ui, sans-serif; }}
p, summary {{ color: var(--soft); }}
details {{ margin-top: 1.5rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
th:first-child, td.bar, td.error {{ text-align: left; }}
thead th {{ color: var(--soft); cursor: pointer; user-select: none; }}
tbody th {{ font-weight: 600; }}
td.bar {{ min-width: 14rem; }}
td.bar div {{ height: .8rem; border-radius: 2px; background: var(--bar); }}
td.error {{ color: var(--error); white-space: normal; min-width: 20rem; }}
pre {{ white-space: pre-wrap; font-size: 12px; }}
</style>
</head>
<body>
<h1>Leaderboard</h1>
<p>{title}. Means and standard deviations over fits with different seeds; a click on a heading sorts.</p>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
<details><summary>Data, split and versions</summary><pre>{facts}</pre></details>
<script>
const table = document.querySelector("table");
[...table.tHead.rows[0].cells].forEach((heading, column) => heading.addEventListener("click", () => {{
  const key = row => column ? parseFloat(row.cells[column].dataset.value ?? "nan") : row.cells[0].textContent;
  const down = heading.dataset.down !== "yes";
  heading.dataset.down = down ? "yes" : "no";
  const order = (one, other) => {{
    const [a, b] = [key(one), key(other)];
    if (typeof a === "string") return a.localeCompare(b);
    return Number.isNaN(a) - Number.isNaN(b) || a - b;
  }};
  const rows = [...table.tBodies[0].rows].sort((one, other) => down && column ? order(other, one) : order(one, other));
  table.tBodies[0].append(...rows);
}}));
</script>
</body>
</html>
"""


def make_page(table: pd.DataFrame, title: str, facts: Mapping[str, Any]) -> str:
    """
    Make a page of a leaderboard that needs nothing else, not even the network.

    Parameters
    ----------
    table : pd.DataFrame
        What `measure_all` returned.
    title : str
        On what it was measured.
    facts : mapping
        How it came about.

    Returns
    -------
    str
        HTML.
    """
    shown, metric = readable(table), table.columns[1]
    best = table[metric].max()
    rows = [
        _page_row(row, texts, row[metric] / best if row[metric] > 0 else 0.0)
        for row, texts in zip(table.to_dict("records"), shown.to_dict("records"), strict=True)
    ]
    names = ["model", "", *shown.columns[1:]]
    return _PAGE.format(
        title=html.escape(title),
        head="".join(f"<th>{html.escape(name)}</th>" for name in names),
        rows="\n".join(rows),
        facts=html.escape(json.dumps(facts, ensure_ascii=False, indent=2)),
    )


def _page_row(row: Mapping[Any, Any], texts: Mapping[Any, str], share: float) -> str:
    cells = [
        f"<th>{html.escape(row['model'])}</th>",
        f'<td class="bar" data-value="{share:.6f}"><div style="width: {share:.1%}"></div></td>',
    ]
    sources = {"times Popular": "times_popular", "fit, s": "fit_seconds"}
    for name, text in list(texts.items())[1:]:
        if name == "error":
            cells.append(f'<td class="error">{html.escape(text)}</td>')
        else:
            cells.append(f'<td data-value="{row[sources.get(name, name)]}">{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"
