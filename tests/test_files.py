"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rectools_neural.files import find_folder, replacing, replacing_folder


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


NAMES = ("a", "b")


@pytest.mark.parametrize("before", [None, "before"])
def test_a_folder_is_replaced_at_the_end(before: str | None, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    if before is not None:
        target.mkdir(parents=True)
        (target / "b").write_text(before)
    with replacing_folder(target, NAMES) as temporary:
        (temporary / "a").write_text("after")
        assert ((target / "b").read_text() if target.exists() else None) == before
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "after"}
    assert os.listdir(target.parent) == ["model"]


@pytest.mark.parametrize("before", [[], ["model"]])
def test_a_failure_leaves_the_folder_that_was_there(before: list[str], tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in before:
        (tmp_path / name).mkdir()
        (tmp_path / name / "b").write_text("before")

    def write_half() -> None:
        with replacing_folder(target, NAMES) as temporary:
            (temporary / "a").write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_half()
    assert os.listdir(tmp_path) == before
    for name in before:
        assert {path.name: path.read_text() for path in (tmp_path / name).iterdir()} == {"b": "before"}


def test_files_of_others_are_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".model.old" / "mine").write_text("precious")

    def write() -> None:
        with replacing_folder(tmp_path / "model", NAMES) as temporary:
            (temporary / "a").write_text("after")

    with pytest.raises(OSError, match="not empty"):
        write()
    assert (tmp_path / ".model.old" / "mine").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == [".model.old", "model"]


def test_find_folder(tmp_path: Path) -> None:
    assert find_folder(tmp_path / "model") == tmp_path / "model"
    (tmp_path / ".model.old").mkdir()
    assert find_folder(tmp_path / "model") == tmp_path / ".model.old"
    (tmp_path / "model").mkdir()
    assert find_folder(tmp_path / "model") == tmp_path / "model"
