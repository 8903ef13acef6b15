"""The command line `rectools-neural`."""

from __future__ import annotations

import sys


def app() -> None:
    """Run the command line; the exit code is 0, 1 for a failure of the work, 2 for bad input, 130 after Ctrl-C."""
    try:
        from .commands import app as commands
    except ModuleNotFoundError as error:
        sys.exit(f"Error: there is no module `{error.name}`: pip install rectools-neural[cli] brings it")
    commands(prog_name="rectools-neural")
