"""The command line in this process."""

from __future__ import annotations

from typing import Any

import pytest

testing = pytest.importorskip("typer.testing", reason="pip install rectools-neural[cli]")

from rectools_neural.cli.commands import app  # noqa: E402

OPTIONS = {"epochs": 3, "n_factors": 8}
SETTINGS = [part for name, value in OPTIONS.items() for part in ("--set", f"{name}={value}")]


def run(*arguments: object) -> Any:
    return testing.CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(*arguments: object, code: int = 2) -> str:
    """Run what must fail, and return the one line that says why."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)
