"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rectools_neural.files import replacing


@pytest.mark.parametrize("before", [None, "before"])
def test_replaces_at_the_end(before: str | None, tmp_path: Path) -> None:
    target = tmp_path / "reco.csv"
    if before is not None:
        target.write_text(before)
    with replacing(target) as temporary:
        assert temporary.suffix == ".csv"
        temporary.write_text("after")
        assert (target.read_text() if target.exists() else None) == before
    assert target.read_text() == "after"
    assert os.listdir(tmp_path) == ["reco.csv"]


@pytest.mark.parametrize("before", [None, "before"])
def test_a_failure_leaves_what_was_there(before: str | None, tmp_path: Path) -> None:
    target = tmp_path / "reco.csv"
    if before is not None:
        target.write_text(before)

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_half()
    assert (target.read_text() if target.exists() else None) == before
    assert os.listdir(tmp_path) == ([] if before is None else ["reco.csv"])
