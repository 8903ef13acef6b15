"""The command `serve` as a process: it starts, answers, stops without losing a request, or says why it can't."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from models.contract import make_model
from rectools.dataset import Dataset

testing = pytest.importorskip("typer.testing", reason="pip install rectools-neural[serve]")
pytest.importorskip("uvicorn", reason="pip install rectools-neural[serve]")

from rectools_neural.cli.commands import app  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(make_dataset: Callable[..., Dataset], save: Callable[..., Path]) -> Path:
    dataset = make_dataset(n_users=20, features=None)
    model = make_model("GFCFModel")
    model.fit(dataset)
    return save(model, dataset)


@contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the service; gives the process, which listens, and its port."""
    command = [sys.executable, "-m", "rectools_neural.cli", "serve", str(folder), "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith(f"{folder} is served on http://127.0.0.1:"), line
            port = int(line.split("127.0.0.1:")[1].split(",")[0])
            # The line comes before the server listens.
            httpx.Client(transport=httpx.HTTPTransport(retries=8)).get(f"http://127.0.0.1:{port}/ready")
            yield process, port
        finally:
            process.kill()


def refused(*arguments: object) -> str:
    """Run what must fail, in this process, and return its one line."""
    threads = ["--threads", str(torch.get_num_threads())]
    result = testing.CliRunner().invoke(app, ["serve", *map(str, arguments), *threads])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


class Sender:
    """A request whose body comes later: the service has begun to answer it when the constructor returns."""

    def __init__(self, port: int, path: str, body: dict[str, Any]) -> None:
        self.body = json.dumps(body).encode()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        self.socket.sendall(f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode())
        assert b"100 Continue" in self.socket.recv(1000)

    def finish(self) -> tuple[bytes, dict[str, Any]]:
        """Send the body, and return the head and the body of the answer."""
        with closing(self.socket):
            self.socket.sendall(self.body)
            answer = b""
            while part := self.socket.recv(1 << 16):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        return head, json.loads(body)


def test_it_serves_and_stops_without_losing_a_request(folder: Path) -> None:
    with running(folder, "--max-k", "5", "--max-batch", "2", "--max-body-mb", "0.5") as (process, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client, ThreadPoolExecutor(8) as pool:
            bodies = [{"user_id": f"u{number % 20:03}", "k": 5} for number in range(100)]
            answers = list(pool.map(lambda body: items_of(client.post("/recommend", json=body)), bodies))
            assert answers[:20] * 5 == answers
            assert client.post("/recommend", json={"user_id": "u000", "k": 6}).status_code == 422
            batch = {"requests": [{"user_id": "u000"}] * 3}
            assert client.post("/recommend/batch", json=batch).status_code == 422
            before = peak_memory(process)
            headers = {"Content-Type": "application/json"}
            assert client.post("/recommend", content=b" " * (100 << 20), headers=headers).status_code == 413
            chunks = (b" " * (1 << 20) for _ in range(100))
            assert client.post("/recommend", content=chunks, headers=headers).status_code == 413
            assert peak_memory(process) - before < 30_000
        senders = [Sender(port, "/recommend", body) for body in bodies[:20]]
        process.send_signal(signal.SIGTERM)
        while socket.socket().connect_ex(("127.0.0.1", port)) == 0:  # until it takes no new ones
            pass
        for sender, answer in zip(senders, answers, strict=False):
            head, body = sender.finish()
            assert head.startswith(b"HTTP/1.1 200 ")
            assert [item["item_id"] for item in body["items"]] == answer
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def items_of(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    return [item["item_id"] for item in response.json()["items"]]


def peak_memory(process: subprocess.Popen[str]) -> int:
    """In KiB; 0 where the system does not tell."""
    status = Path(f"/proc/{process.pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def test_a_port_in_use_is_told(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} (Address already in use)" in refused(folder, "--port", port)
    assert "can't listen on nowhere.invalid" in refused(folder, "--host", "nowhere.invalid")


def test_a_broken_folder_is_told(folder: Path, tmp_path: Path) -> None:
    assert "nowhere" in refused(tmp_path / "nowhere", "--port", 0)
    (tmp_path / "config.json").write_text("{}")
    assert "config.json" in refused(tmp_path, "--port", 0)
    assert "index" in refused(folder, "--port", 0, "--ann")  # the model has no vectors


def test_what_to_install_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "`uvicorn`: pip install rectools-neural[serve]" in refused(folder)


def test_the_help_teaches() -> None:
    text = testing.CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).stdout
    for taught in ("--reload-interval", "--max-body-mb", "curl", "/recommend", "/docs", "SIGTERM"):
        assert taught in text
