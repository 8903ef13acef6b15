"""A leaderboard for readers: screen, CSV, JSON and one HTML page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from benchmarks.charts import Bar, Point, bar_chart, scatter_chart
from benchmarks.config import ACCURACY
from benchmarks.files import write_atomically
from benchmarks.metrics import REPLAY
from benchmarks.summary import COSTS

TEMPLATE = Path(__file__).parent / "templates" / "leaderboard.html"
COMPARISON = ("difference", "p_value")
HEADERS = {
    "fit_seconds": "fit s",
    "recommend_seconds": "recommend s",
    "peak_memory_mb": "memory MB",
    "difference": "vs best baseline",
    "p_value": "p",
}
MISSING = "-"


def write_all(result: dict[str, Any], pictures: str, folder: Path, name: str) -> list[Path]:
    """
    Write the result files.

    Parameters
    ----------
    result : dict
        What `run_leaderboard` has found; ``rows`` is the summary's frame.
    pictures : str
        HTML of the page's section of pictures.
    folder : Path
        Target folder.
    name : str
        Name of the files, without suffix.

    Returns
    -------
    list of Path
        The files written.
    """
    contents = {".csv": to_csv(result), ".json": to_json(result), ".html": to_html(result, pictures)}
    texts = {folder / f"{name}{suffix}": text for suffix, text in contents.items()}
    for path, text in texts.items():
        write_atomically(path, text)
    return list(texts)


def to_json(result: dict[str, Any]) -> str:
    """
    Write everything down; values that are missing become null.

    Parameters
    ----------
    result : dict
        See `write_all`.

    Returns
    -------
    str
        Strict JSON.
    """
    complete = {**result, "rows": result["rows"].to_dict(orient="records")}
    return json.dumps(_without_nan(complete), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(result: dict[str, Any]) -> str:
    """
    Write the table, each row with its origin.

    Parameters
    ----------
    result : dict
        See `write_all`.

    Returns
    -------
    str
        Comma-separated values with a header.
    """
    origin = {name: json.dumps(value, ensure_ascii=False) for name, value in _origin(result).items()}
    table = io.StringIO()
    result["rows"].assign(**origin).to_csv(table, index=False, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    return table.getvalue()


def screen_table(result: dict[str, Any]) -> str:
    """
    Draw the table in aligned plain text: accuracy of the shortest lists, the other columns, and the failures.

    Parameters
    ----------
    result : dict
        See `write_all`.

    Returns
    -------
    str
        Several lines.
    """
    frame = result["rows"]
    accuracy, others, replay = _metric_columns(result)
    shortest = f"@{min(result['config']['k'])}"
    accuracy = [label for label in accuracy if label.endswith(shortest) or label == result["metric"]]
    replay = [label for label in replay if label.endswith(shortest)]
    tables = [[*accuracy, *COMPARISON], [*others, *COSTS], *([replay] if replay else [])]
    parts = [result["title"], *(_text_table(frame, columns, _headings(result)) for columns in tables)]
    parts.append(_significance_note(result))
    failures = frame.dropna(subset="error")
    parts += [
        f"{row.model}: {row.jobs - row.finished} of {row.jobs} jobs failed: {row.error}"
        for row in failures.itertuples()
    ]
    return "\n\n".join(["", *parts])


def to_html(result: dict[str, Any], pictures: str) -> str:
    """
    Draw one page that needs no network: sortable table, charts, pictures, origin.

    Parameters
    ----------
    result : dict
        See `write_all`.
    pictures : str
        See `write_all`.

    Returns
    -------
    str
        HTML document.
    """
    metric = result["metric"]
    data, split = result["config"]["data"], result["config"]["split"]
    about = (
        f"{data['name']}: {result['data']['users']} users, {result['data']['items']} items, "
        f"{result['data']['interactions']} interactions. {split['name']} split, {split['n_splits']} fold(s), "
        f"seeds {', '.join(map(str, result['config']['seeds']))}."
    )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(result["title"]),
        about=escape(about),
        metric=escape(metric),
        significance=escape(_significance_note(result)),
        table=_html_table(result),
        bars=bar_chart(metric, _bars(result)),
        speed=scatter_chart("fit seconds", metric, _points(result, "fit_seconds", metric), log_x=True),
        breadth=_breadth_chart(result),
        pictures=pictures,
        origin=_html_origin(result),
    )


def _metric_columns(result: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Split the measured labels into accuracy (main metric first), the rest, and what RePlay has measured."""
    labels = [label for label in result["metrics"]["flags"] if label in result["rows"]]
    replay = [label for label in labels if label.startswith(REPLAY)]
    accuracy = [label for label in labels if label.split("@")[0] in ACCURACY and label != result["metric"]]
    others = [label for label in labels if label.split("@")[0] not in ACCURACY and label not in replay]
    return [result["metric"], *accuracy], others, replay


def _headings(result: dict[str, Any]) -> dict[str, str]:
    """Name the columns; where two libraries have measured, each metric is shown with its own."""
    accuracy, others, replay = _metric_columns(result)
    return HEADERS | ({label: f"rectools {label}" for label in (*accuracy, *others)} if replay else {})


def _significance_note(result: dict[str, Any]) -> str:
    references = result["rows"]["reference"].dropna()
    if references.empty:
        return "No comparison: it takes a baseline that finished every job, and another model."
    return (
        f"Best baseline: {references.iloc[0]}. Difference of {result['metric']} per user, averaged over seeds and "
        "folds; p: Wilcoxon signed-rank test, two-sided, not corrected for the number of models."
    )


def _origin(result: dict[str, Any]) -> dict[str, Any]:
    made = result["provenance"]
    origin = {
        "machine": made["machine"],
        "threads": made["threads"],
        "versions": made["versions"],
        "git": made["git"],
        "utc": made["utc"],
        "command": made["command"],
        "data": {**result["config"]["data"], **result["data"]},
        "split": result["config"]["split"],
        "seeds": result["config"]["seeds"],
        "metric_library": result["metrics"]["library"],
        "metric_flags": result["metrics"]["flags"],
    }
    machines = {json.dumps(job.get("provenance", made)["machine"], sort_keys=True) for job in result["jobs"]}
    if len(machines) > 1:
        origin["warning"] = f"resumed: the jobs ran on {len(machines)} different machines, their seconds don't compare"
    return origin


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # numpy's numbers, which json doesn't know
    return value.item() if hasattr(value, "item") else value


def _format(column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if column == "p_value":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    if column == "difference":
        return f"{value:+.4f}"
    if column in COSTS:
        return f"{value:.2f}" if value < 10 else f"{value:.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"


def _text_table(frame: pd.DataFrame, columns: Sequence[str], headings: dict[str, str]) -> str:
    header = ["model", *(headings.get(column, column) for column in columns)]
    rows = [
        [str(record["model"]), *(_format(column, record[column]) for column in columns)]
        for record in frame.to_dict(orient="records")
    ]
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
        )
        for cells in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)


def _html_table(result: dict[str, Any]) -> str:
    frame = result["rows"]
    accuracy, others, replay = _metric_columns(result)
    columns = [*accuracy, *COMPARISON, *others, *replay, *COSTS]
    headings = _headings(result)
    header = "".join(f"<th>{escape(headings.get(column, column))}</th>" for column in ("model", *columns))
    rows = "".join(_html_row(record, columns) for record in frame.to_dict(orient="records"))
    return f"<thead><tr>{header}</tr></thead><tbody>{rows}</tbody>"


def _html_row(record: dict[str, Any], columns: Sequence[str]) -> str:
    failed = record["jobs"] - record["finished"]
    note = (
        f'<br><small class="error">{failed} of {record["jobs"]} jobs failed: {escape(record["error"])}</small>'
        if failed
        else ""
    )
    cells = []
    for column in columns:
        value, spread = record[column], record.get(f"{column} std")
        text = _format(column, value)
        exact = "" if text == MISSING else repr(float(value))
        title = f' title="± {spread:.2g} over seeds and folds"' if spread is not None and not math.isnan(spread) else ""
        cells.append(f'<td data-value="{exact}"{title}>{escape(text)}</td>')
    return f'<tr class="{_style(record)}"><th scope="row">{escape(record["model"])}{note}</th>{"".join(cells)}</tr>'


def _style(record: dict[str, Any]) -> str:
    return "baseline" if record["baseline"] else "ours"


def _finished_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    frame = result["rows"]
    rows: list[dict[str, Any]] = frame[frame["finished"] > 0].to_dict(orient="records")
    return rows


def _bars(result: dict[str, Any]) -> list[Bar]:
    metric = result["metric"]
    return [
        Bar(
            row["model"],
            row[metric],
            [job["metrics"][metric] for job in result["jobs"] if job["model"] == row["model"] and job["error"] is None],
            _style(row),
        )
        for row in _finished_rows(result)
    ]


def _points(result: dict[str, Any], x: str, y: str) -> list[Point]:
    return [Point(row["model"], row[x], row[y], _style(row)) for row in _finished_rows(result)]


def _breadth_chart(result: dict[str, Any]) -> str:
    k = min(result["config"]["k"])
    return scatter_chart(f"coverage@{k}", f"novelty@{k}", _points(result, f"coverage@{k}", f"novelty@{k}"))


def _html_origin(result: dict[str, Any]) -> str:
    origin = {**_origin(result), "models": result["config"]["models"], "tuned": result["tuned"]}
    return "".join(
        f"<dt>{escape(name)}</dt><dd><pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre></dd>"
        for name, value in origin.items()
    )
