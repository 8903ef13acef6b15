"""Help inside error messages."""

from __future__ import annotations

import difflib


def did_you_mean(name: str, valid: list[str]) -> str:
    """Return ``"; did you mean ...?"`` with the nearest valid name, or the list of the valid ones."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean `{near[0]}`?" if near else f"; valid names: {', '.join(sorted(valid))}"
