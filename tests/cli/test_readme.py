from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_program import succeed

README = Path(__file__).parents[2] / "README.md"


def test_the_commands_of_the_readme_run(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pd.DataFrame
) -> None:
    monkeypatch.chdir(tmp_path)
    users = pd.factorize(log["user_id"])[0] + 1
    log.assign(user_id=users, item_id=log["item_id"] - 99).to_csv("ratings.csv", index=False)
    items = np.arange(1, 21)
    pd.DataFrame({"item_id": items, "genre": [f"g{item % 2}" for item in items]}).to_csv("films.csv", index=False)
    section = README.read_text(encoding="utf-8").partition("\n## Command line\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^rectools-neural (.*)$", section, re.MULTILINE)
    assert len(lines) >= 7
    for line in lines:
        arguments = shlex.split(line, comments=True)
        if arguments[0] != "serve":  # which does not end
            succeed(*(["--trials=2" if part == "20" else part for part in arguments if part != "--trials"]))
    made = {"report.html", "best.yaml", "model", "reco.csv"}
    assert made <= {path.name for path in tmp_path.iterdir()}
