from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import environment
from benchmarks.environment import Environment, ask_worker

ENVIRONMENT = Environment("other==1.0", ("numpy<2",))


class TestEnvironment:
    def test_foreign_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "pyvenv.cfg").write_text("mine")
        with pytest.raises(ValueError, match="is not empty and no environment of this benchmark"):
            ENVIRONMENT.make(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["pyvenv.cfg"]

    def test_python_without_older_numpy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "LAST_PYTHON", (3, 9))
        with pytest.raises(ValueError, match=r"needs numpy below 2, and so a Python up to 3\.9"):
            ENVIRONMENT.make(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_unfinished_one_is_taken_up_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environment, "LAST_PYTHON", sys.version_info[:2])
        broken = Environment("other==1.0", ("this is no requirement",))
        (tmp_path / broken.stamp).write_text("unfinished\n")
        with pytest.raises(ValueError, match=r"pip install(.|\n)*failed:(.|\n)*Invalid requirement"):
            broken.make(tmp_path)
        assert (tmp_path / "pyvenv.cfg").exists()
        assert (tmp_path / broken.stamp).read_text() == "unfinished\n"

    def test_finished_one_is_used_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / ENVIRONMENT.stamp).write_text("other==1.0\nnumpy<2\n")
        assert ENVIRONMENT.make(tmp_path).is_relative_to(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [ENVIRONMENT.stamp]


WORKER = """
import json, os, sys
with open(sys.argv[1]) as file:
    request = json.load(file)
with open(sys.argv[2], "w") as file:
    json.dump({"asked": request, "threads": os.environ["OMP_NUM_THREADS"], "path": sys.path}, file)
"""


def test_worker_answers(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    worker = tmp_path / "scripts" / "worker.py"
    worker.write_text(WORKER)
    answer = ask_worker(Path(sys.executable), worker, {"x": [1, "ä"]}, tmp_path, 3)
    assert (answer["asked"], answer["threads"]) == ({"x": [1, "ä"]}, "3")
    assert str(worker.parent) not in answer["path"]
    assert json.loads((tmp_path / "result.json").read_text()) == answer


def test_worker_fails(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("raise SystemExit('no luck')")
    with pytest.raises(RuntimeError, match=r"worker failed:\nno luck"):
        ask_worker(Path(sys.executable), worker, {}, tmp_path, 1)
