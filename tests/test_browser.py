"""The leaderboard's page and the figures, opened in a browser: what is drawn, and that nothing complains."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="plotly is not installed")

from models.contract import make_model
from rectools.dataset import Dataset

from benchmarks.leaderboard import run_leaderboard
from rectools_neural.analysis import embedding_map, save_figure, similarity_distributions, training_curves

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
    *("--virtual-time-budget=1000", "--dump-dom"),
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")

# A click on a heading and another one, each followed by a look at the first column.
SORTING = """
<script>
const order = () => [...document.querySelectorAll("#board tbody th")].map(cell => cell.textContent).join();
const heading = document.querySelectorAll("#board thead th")[1];
heading.click();
document.body.dataset.descending = order();
heading.click();
document.body.dataset.ascending = order();
</script>
</body>"""


@pytest.fixture(scope="module")
def dataset(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset()


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> Any:
    return make_model("DSSMModel", "good").fit(dataset)


@pytest.fixture
def open_page(tmp_path: Path) -> Callable[[Path], str]:
    def open_page(page: Path) -> str:
        """Return the document as it stands after its scripts have run; they must have nothing to say."""
        command = [str(BROWSER), *OPTIONS, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert re.findall(r".*CONSOLE.*", done.stderr) == []
        return done.stdout

    return open_page


def drawn(document: str, kind: str) -> int:
    """Count the elements of a class, as plotly names the groups that it draws."""
    return len(re.findall(rf'class="(?:[^"]* )?{kind}(?: [^"]*)?"', document))


def test_console_errors_are_seen(tmp_path: Path, open_page: Callable[[Path], str]) -> None:
    page = tmp_path / "page.html"
    page.write_text("<script>missing()</script>")
    with pytest.raises(AssertionError, match="missing is not defined"):
        open_page(page)


def test_leaderboard(dataset: Dataset, tmp_path: Path, open_page: Callable[[Path], str]) -> None:
    config = {
        "data": dataset,
        "split": {"name": "random", "test_fold_frac": 0.25},
        "seeds": [0],
        "k": [3],
        "metric": "ndcg@3",
        "models": {
            "Popular": {"cls": "PopularModel", "baseline": True},
            "Towers": {"cls": "DSSMModel", "epochs": 30, "n_factors": 8},
            "Random": {"cls": "RandomModel", "random_state": 1, "baseline": True},
        },
    }
    frame = run_leaderboard(config, tmp_path).sort_values("ndcg@3", ascending=False)
    page = tmp_path / "leaderboard.html"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", SORTING), encoding="utf-8")
    document = open_page(page)
    names = frame["model"].tolist()
    assert f'data-descending="{",".join(names)}"' in document
    assert f'data-ascending="{",".join(names[::-1])}"' in document
    # Of train and test two histograms each; two genres and a curve.
    assert [drawn(document, kind) for kind in ("bars", "scatter", "legend")] == [4, 3, 3]


def test_similarity_distributions(
    model: Any, dataset: Dataset, tmp_path: Path, open_page: Callable[[Path], str]
) -> None:
    page = tmp_path / "page.html"
    save_figure(similarity_distributions(model, dataset, dataset), page)
    document = open_page(page)
    assert "<title>Scores of DSSMModel</title>" in document
    assert drawn(document, "bars") == 4
    for text in ("train", "test", "score", "density", "interacted", "not interacted"):
        assert f">{text}</text>" in document


def test_embedding_map(model: Any, dataset: Dataset, tmp_path: Path, open_page: Callable[[Path], str]) -> None:
    page = tmp_path / "page.html"
    save_figure(embedding_map(model, dataset, color="genre"), page)
    document = open_page(page)
    assert drawn(document, "scatter") == 2
    assert drawn(document, "point") == 24
    for text in ("c0", "c1", "genre", "PCA 1", "PCA 2"):
        assert f">{text}</text>" in document


def test_training_curves(model: Any, tmp_path: Path, open_page: Callable[[Path], str]) -> None:
    page = tmp_path / "page.html"
    save_figure(training_curves({"one": model, "other": model}), page)
    document = open_page(page)
    assert drawn(document, "scatter") == 2
    for text in ("loss", "epoch", "one", "other"):
        assert f">{text}</text>" in document
