"""`python -m rectools_neural.cli`."""

from . import app

app()
