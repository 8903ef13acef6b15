"""How the command line ends: one readable line and an exit code, never a traceback unless asked for."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from .options import with_groups

FAILURE, BAD_INPUT, INTERRUPTED = 1, 2, 130


class InputError(Exception):
    """What the user gave can't be used; the message says what to do."""


class WorkError(Exception):
    """The work failed; the message says why."""


class Group(TyperGroup):
    """The commands, with usage errors as one line."""

    def main(self, *args: Any, **options: Any) -> NoReturn:
        """Run a command and exit."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except typer.Abort:
            code = INTERRUPTED
        except Exception as error:
            # Where the class of usage errors lives depends on the version of typer.
            if not hasattr(error, "format_message"):
                raise
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "rectools-neural"
            _complain(f"{error.format_message().rstrip('.')}; `{path} --help` tells what there is")
            code = BAD_INPUT
        sys.exit(code or 0)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """
    Give a command exit codes and messages of one line, and an option for each field of its groups of options.

    The command has the options `quiet` and `debug`, in a group or not.
    """
    function = with_groups(function)

    @functools.wraps(function)
    def run(**options: Any) -> None:
        if options["debug"]:
            function(**options)
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if not options["quiet"]:
                    warnings.simplefilter("default", UserWarning)
                    warnings.showwarning = _warn
                function(**options)
        except InputError as error:
            _complain(str(error))
            raise typer.Exit(BAD_INPUT) from None
        except WorkError as error:
            _complain(str(error))
            raise typer.Exit(FAILURE) from None
        except KeyboardInterrupt as error:
            _complain(str(error) or "interrupted, nothing was written")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, BrokenPipeError):
            raise
        except Exception as error:
            is_plain = isinstance(error, ValueError | OSError) and str(error)
            message = str(error) if is_plain else f"{type(error).__name__}: {error}"
            _complain(f"{message} (--debug shows where)")
            raise typer.Exit(FAILURE) from None

    return run


def note(message: str, quiet: bool) -> None:
    """Say how it goes, where results don't go."""
    if not quiet:
        typer.echo(message, err=True)


def _complain(message: str) -> None:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"Warning: {' '.join(str(message).split())}", err=True)
