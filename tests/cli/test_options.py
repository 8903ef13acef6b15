from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import pytest

testing = pytest.importorskip("typer.testing", reason="pip install rectools-neural[cli]")

import typer  # noqa: E402

from rectools_neural.cli.commands import app  # noqa: E402
from rectools_neural.cli.options import with_groups  # noqa: E402


@dataclass(frozen=True)
class Paper:
    """A group with a required option."""

    size: Annotated[str, typer.Option("--paper", help="A4 or A5.", rich_help_panel="Paper")]
    copies: Annotated[int, typer.Option(min=1, rich_help_panel="Paper")] = 1


@dataclass(frozen=True)
class FinePaper(Paper):
    """A group that has another one's options, too."""

    weight: float = 80.0


def print_text(*, text: str, paper: FinePaper, loud: bool = False) -> None:
    """Print a text."""
    typer.echo(f"{text} {paper} {loud}")


def test_fields_of_a_group_are_options_one_by_one() -> None:
    made = with_groups(print_text)
    assert list(inspect.signature(made).parameters) == ["text", "size", "copies", "weight", "loud"]
    assert set(get_type_hints(made)) == {"text", "size", "copies", "weight", "loud"}
    program = typer.Typer()
    program.command()(made)
    runner = testing.CliRunner()
    result = runner.invoke(program, ["Hi", "--paper", "A5", "--weight", "90"])
    assert result.stdout == f"Hi {FinePaper('A5', 1, 90.0)} False\n"
    assert runner.invoke(program, ["Hi"]).exit_code == 2
    assert runner.invoke(program, ["Hi", "--paper", "A5", "--copies", "0"]).exit_code == 2
    shown = runner.invoke(program, ["--help"]).stdout
    assert [part in shown for part in ("Print a text.", "A4 or A5.", "─ Paper ─")] == [True] * 3


COMMANDS: list[Any] = [None, *(command.callback.__name__ for command in app.registered_commands)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str | None) -> None:
    result = testing.CliRunner().invoke(app, [*([command] if command else []), "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"rectools-neural {command or 'fit'} " in result.stdout.partition("Options")[2]
    assert "Columns and features" in result.stdout or command in (None, "serve")  # which read no tables
