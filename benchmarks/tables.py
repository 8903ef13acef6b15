"""Write the tables of the README files from the result files.

From the repository root: ``python -m benchmarks.tables``. A table stands between ``<!-- table: NAME -->`` and
``<!-- end -->``; nothing in it is typed by hand. A table whose result file is missing stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, pstdev
from typing import Any

from benchmarks.files import write_atomically
from benchmarks.provenance import REPOSITORY
from benchmarks.published import load_config

RESULTS = REPOSITORY / "benchmarks" / "results"
PAGES = (REPOSITORY / "README.md", REPOSITORY / "benchmarks" / "README.md")
#: Protocols in the order of the table, with the metrics to show.
PUBLISHED = {
    "P1N": ("NDCG@10", "MAP@10", "Recall@10"),
    "P1": ("NDCG@10", "MAP@10", "Recall@10"),
    "P2": ("NDCG@10", "MAP@10", "HitRate@10"),
    "P3": ("NDCG@10", "Recall@10", "MRR@10"),
    "P4": ("HitRate@10", "NDCG@10"),
    "P5": ("NDCG@100", "Recall@100", "Recall@20"),
    "P6": ("Recall@20", "NDCG@20"),
    "P6Y": ("Recall@20", "NDCG@20"),
}

Result = dict[str, Any]


def main() -> None:
    """Fill in the tables of all pages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        write_atomically(page, re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", _filled, text, flags=re.DOTALL))


def _filled(match: re.Match[str]) -> str:
    name = match.group(1)
    table = TABLES[name]()
    return match.group(0) if table is None else f"<!-- table: {name} -->\n{table}\n<!-- end -->"


def _read(name: str) -> Result | None:
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def board(name: str, metrics: Sequence[str] = ("ndcg@10", "recall@20", "map@10", "coverage@10")) -> str | None:
    """Render a leaderboard: mean and deviation over the seeds, times, the difference to the best baseline."""
    result = _read(f"{name}.json")
    if result is None:
        return None
    lines = []
    for row in result["rows"]:
        jobs = [job for job in result["jobs"] if job["model"] == row["model"] and not job["error"]]
        cells = [_spread([job["metrics"][metric] for job in jobs]) for metric in metrics]
        seconds = [_seconds([job[part] for job in jobs]) for part in ("fit_seconds", "recommend_seconds")]
        lines.append([row["model"], *cells, *seconds, _difference(result["comparisons"].get(row["model"]))])
    header = ["model", *metrics, "fit, s", "recommend, s", f"{result['metric']} against the best baseline"]
    seeds = ", ".join(map(str, result["config"]["seeds"]))
    metric = f"{result['metrics']['library']}, {result['metrics']['flags'][result['metric']]}"
    about = f"{result['title']}; {metric}; seeds {seeds}"
    return f"{_table(header, lines)}\n\n{_source(about, [result['provenance']], f'{name}.json')}"


def published() -> str | None:
    """Render all published protocols: our rows, then the published ones."""
    config = load_config(REPOSITORY / "benchmarks" / "configs" / "published.yaml")
    parts = []
    for protocol, metrics in PUBLISHED.items():
        result = _read(f"published/{protocol}.json")
        if result is None:
            continue
        models = dict.fromkeys(row["model"] for row in result["rows"])
        lines = []
        for model in models:
            rows = [row for row in result["rows"] if row["model"] == model]
            cells = [_spread([row["metrics"][metric] for row in rows]) for metric in metrics]
            lines.append([f"**{model}**" if _is_ours(rows[0]) else model, *cells, f"measured, {len(rows)} seeds"])
        for source in config[protocol].published:
            for model, values in source.rows.items():
                cells = [f"{values[metric]:.4f}" if metric in values else "" for metric in metrics]
                lines.append([model, *cells, f"published: {source.source}"])
        lines.sort(key=lambda line: line[1], reverse=True)
        about = _source(f"{result['definitions']}", result["runs"].values(), f"published/{protocol}.json")
        parts.append(f"**{protocol}: {result['title']}**\n\n{_table(['model', *metrics, 'source'], lines)}\n\n{about}")
    return "\n\n".join(parts) or None


def summary() -> str | None:
    """Render the published protocols in a line each: the best of ours, of the published, of the classics beside it."""
    config = load_config(REPOSITORY / "benchmarks" / "configs" / "published.yaml")
    lines = []
    for protocol, (metric, *_) in PUBLISHED.items():
        result = _read(f"published/{protocol}.json")
        if result is None:
            continue
        values: dict[str, list[float]] = {}
        ours = {row["model"] for row in result["rows"] if _is_ours(row)}
        for row in result["rows"]:
            values.setdefault(row["model"], []).append(row["metrics"][metric])
        if not ours:
            continue
        rows = [(v[metric], m) for source in config[protocol].published for m, v in source.rows.items() if metric in v]
        towers = [(mean(v), model) for model, v in values.items() if model in ours and "DSSM" in model]
        others = [(mean(v), model) for model, v in values.items() if model in ours and "DSSM" not in model]
        classics = [(mean(v), model) for model, v in values.items() if model not in ours]
        best = [f"{max(group)[0]:.4f} {max(group)[1]}" if group else "" for group in (towers, others, rows, classics)]
        lines.append([f"{protocol}: {result['title']}", metric, *best])
    header = ["protocol", "metric", "two towers", "other models of ours", "best published", "best classic, same run"]
    return _table(header, lines) if lines else None


def _is_ours(row: Result) -> bool:
    return str(row["config"].get("cls")).startswith("rectools_neural.")


def cold_start() -> str | None:
    """Render the cold-start comparison."""
    result = _read("cold_start.json")
    if result is None:
        return None
    lines = []
    for row in result["rows"]:
        (means,) = (value for key, value in row.items() if key.startswith("ndcg"))
        values = [f"{means[model]:.4f}" for model in ("DSSMModel", "PopularModel")]
        lines.append([str(row["seed"]), *values, _difference(row["comparison"]), str(row["comparison"]["users"])])
    header = ["seed", "DSSMModel", "popularity", "difference", "users"]
    about = f"{result['data']}; {result['metric']}"
    return f"{_table(header, lines)}\n\n{_source(about, [result['provenance']], 'cold_start.json')}"


def recbole() -> str | None:
    """Render the comparison with RecBole: seconds and quality of both sides."""
    result = _read("recbole.json")
    if result is None:
        return None
    lines = []
    for line in result["comparison"]:
        cells = [line["model"]]
        for name in ("epoch_seconds", "recommend_seconds"):
            sides = line[name]
            cells += [f"{sides[side]:.3g}" for side in ("ours", "RecBole")] + [f"{sides['times_as_fast']:.1f}"]
        (ndcg,) = (value for key, value in line.items() if key.startswith("ndcg"))
        lines.append([*cells, *(f"{ndcg[side]:.4f}" for side in ("ours", "RecBole"))])
    kinds = [f"{what}, {side}" for what in ("epoch", "ranking") for side in ("s", "RecBole, s", "times as fast")]
    header = ["model", *kinds, "nDCG@10", "nDCG@10, RecBole"]
    about = f"{result['data']}; {result['metric']}; RecBole {result['recbole']['recbole']}"
    source = _source(about, [result["provenance"]], "recbole.json")
    return f"{_table(header, lines)}\n\n{source}"


def ratings() -> str | None:
    """Render the predicted ratings."""
    return _tasks("ratings")


def clicks() -> str | None:
    """Render the predicted clicks."""
    return _tasks("clicks")


def _tasks(folder: str) -> str | None:
    """Render tasks of predicted values: mean and deviation over the seeds, the best first."""
    parts = []
    for file in sorted((RESULTS / folder).glob("*.json")):
        result = _read(f"{folder}/{file.name}")
        if result is None or result["part"] != "test":
            continue
        rows: dict[str, list[Result]] = {}
        for row in result["rows"]:
            rows.setdefault(row["model"], []).append(row)
        metrics = list(result["rows"][0]["metrics"])
        values = {model: [[row["metrics"][metric] for row in own] for metric in metrics] for model, own in rows.items()}
        order = sorted(values, key=lambda model: mean(values[model][0]), reverse=result["largest_first"])
        lines = [
            [f"**{model}**" if _is_ours(rows[model][0]) else model, *map(_spread, values[model]), str(len(rows[model]))]
            for model in order
        ]
        source = _source(result["definitions"], result["runs"].values(), f"{folder}/{file.name}")
        parts.append(f"**{result['title']}**\n\n{_table(['model', *metrics, 'splits'], lines)}\n\n{source}")
    return "\n\n".join(parts) or None


def replay_experiment() -> str | None:
    """Render the experiment with RePlay's parts: ours, RePlay's and what the course notebook reached."""
    result = _read(file := "replay-experiment.json")
    if result is None:
        return None
    course = result["course"]
    rows: dict[str, list[Result]] = {}
    for row in result["rows"]:
        rows.setdefault(row["model"], []).append(row)
    lines = [
        ["two towers of the course notebook", *(f"{value:.4f}" for value in course.values()), "", "", "its figures"]
    ]
    for model, own in rows.items():
        cells = [_spread([row["metrics"][metric] for row in own]) for metric in course]
        seconds = [_seconds([row[part] for row in own]) for part in ("fit_seconds", "recommend_seconds")]
        name, library = (f"**{model}**", "ours") if _is_ours(own[0]) else (model, "RePlay on Spark")
        lines.append([name, *cells, *seconds, f"{library}, {len(own)} seeds"])
    lines.sort(key=lambda line: line[1], reverse=True)
    about = _source(f"{result['title']}; {result['split']}; {result['definitions']}", result["runs"].values(), file)
    return f"{_table(['model', *course, 'fit, s', 'recommend, s', 'source'], lines)}\n\n{about}"


def speed() -> str | None:
    """Render the speed measurements."""
    return _measurements("speed.json", "Data of the size of KION (231 872 users, 12 029 items, 4 M rows), generated")


def scale() -> str | None:
    """Render the measurements of scale."""
    return _measurements("scale.json", "Generated data; an epoch of what is trained, the whole fit of what is not")


def notebook() -> str | None:
    """Render the measurements beside the loops of a notebook."""
    return _measurements("notebook.json", "The sizes of a course notebook; both sides rank with the same weights")


def serving() -> str | None:
    """Render the service under load."""
    result = _read("serving.json")
    return None if result is None else serving_tables(result)


def serving_tables(result: Result) -> str:
    """
    Render what `benchmarks.serving` has measured: a column for each case, then the swaps.

    Parameters
    ----------
    result : dict
        What is in its result file.

    Returns
    -------
    str
        Two tables and their source.
    """
    cases, swaps, settings = result["cases"], result["swaps"], result["settings"]
    names = list(dict.fromkeys(name for case in cases.values() for name in case["figures"]))
    lines = [[name, *(_number(case["figures"][name]) for case in cases.values())] for name in names]
    with_swaps = [[name, _number(value)] for name, value in swaps["figures"].items()]
    asked = ", ".join(f"{share:.0%} {kind}" for kind, share in settings["queries"].items())
    about = (
        f"{settings['seconds']:g} s of requests, timed from when each was due ({asked}); "
        f"load of the machine before {result['load before']}"
    )
    source = _source(about, [result["provenance"]], "serving.json")
    header = [f"{swaps['case']}, {settings['swap_seconds']:g} s with models replaced", ""]
    return f"{_table(['', *cases], lines)}\n\n{_table(header, with_swaps)}\n\n{source}"


def _number(value: float) -> str:
    return f"{value:,d}" if isinstance(value, int) else f"{value:,.4g}"


def _measurements(file: str, about: str) -> str | None:
    result = _read(file)
    if result is None:
        return None
    lines = []
    for measure in (measure for part in result["parts"].values() for measure in part):
        low, high = min(measure["values"]), max(measure["values"])
        lines.append([measure["name"], f"{measure['median']:,.4g}", f"{low:,.4g} to {high:,.4g}", measure["unit"]])
    header = ["", "median", "range", "unit"]
    return f"{_table(header, lines)}\n\n{_source(about, [result['provenance']], file)}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.4f} ± {pstdev(values):.4f}" if len(values) > 1 else f"{mean(values):.4f}"


def _seconds(values: Sequence[float]) -> str:
    return f"{mean(values):.3g}"


def _difference(comparison: Result | None) -> str:
    if comparison is None:
        return ""
    low, high = comparison["ci_low"], comparison["ci_high"]
    return f"{comparison['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p {comparison['p_value']:.1g}"


def _source(about: str, runs: Iterable[Result], file: str) -> str:
    runs = list(runs)
    commits = sorted({str(run["git"]["commit"])[:10] for run in runs})
    machine, threads = runs[-1]["machine"], runs[-1]["threads"].get("OMP_NUM_THREADS", "all")
    return (
        f"<sub>{about}. {machine['cpu']}, {machine['cores']} cores, {threads} threads; torch "
        f"{runs[-1]['versions']['torch']}, commit {', '.join(commits)}; `benchmarks/results/{file}`.</sub>"
    )


TABLES: dict[str, Callable[[], str | None]] = {
    "leaderboard": lambda: board("leaderboard"),
    "pairs-ml-100k": lambda: board("pairs-ml-100k"),
    "losses-ml-100k": lambda: board("losses-ml-100k"),
    "losses-ml-1m": lambda: board("losses-ml-1m"),
    "gowalla": lambda: board("gowalla"),
    "yelp2018": lambda: board("yelp2018"),
    "book-crossing": lambda: board("book-crossing"),
    "ml-1m": lambda: board("ml-1m"),
    "published": published,
    "summary": summary,
    "cold_start": cold_start,
    "recbole": recbole,
    "ratings": ratings,
    "clicks": clicks,
    "notebook": notebook,
    "replay_experiment": replay_experiment,
    "scale": scale,
    "serving": serving,
    "speed": speed,
}


if __name__ == "__main__":
    main()
