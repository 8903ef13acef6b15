from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from models.contract import make_model, with_other_id_types
from rectools.dataset import Dataset

pytest.importorskip("fastapi", reason="pip install rectools-neural[serve]")
httpx = pytest.importorskip("httpx", reason="pip install httpx")

from anyio.from_thread import BlockingPortal, start_blocking_portal  # noqa: E402
from fastapi import FastAPI  # noqa: E402

from rectools_neural.serving import create_app  # noqa: E402


class Client:
    """Asks an application, which runs in a thread with its lifespan, without a network; any thread may ask."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self._exit = ExitStack()

    def __enter__(self) -> Client:
        self._portal: BlockingPortal = self._exit.enter_context(start_blocking_portal())
        lifespan = self._portal.call(self.app.router.lifespan_context, self.app)
        self._exit.enter_context(self._portal.wrap_async_context_manager(lifespan))
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def request(self, method: str, path: str, **options: Any) -> Any:
        return self._portal.call(partial(self._http.request, method, path, **options))

    def get(self, path: str) -> Any:
        return self.request("GET", path)

    def post(self, path: str, body: object) -> Any:
        return self.request("POST", path, json=body)

    def ask(self, path: str, body: object) -> Any:
        """Post what must be answered, and return the answer."""
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return response.json()


@dataclass(frozen=True)
class Served:
    """A fitted model, its data, and the service of its folder."""

    model: Any
    dataset: Dataset
    folder: Path
    client: Client


@pytest.fixture(scope="session")
def open_client() -> type[Client]:
    """Start an application: ``with open_client(app) as client``."""
    return Client


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, Dataset], Path]:
    def save(model: Any, dataset: Dataset) -> Path:
        folder = tmp_path_factory.mktemp("served") / "model"
        model.save_pretrained(folder, dataset)
        return folder

    return save


@pytest.fixture(scope="session")
def served(
    make_frames: Callable[..., Any], save: Callable[..., Path], open_client: type[Client]
) -> Iterator[dict[str, Served]]:
    """Services by the class of the model: with and without features, with vectors and without, both types of ids."""
    featured, plain = make_frames(n_users=24, n_items=16, n_per_user=6), make_frames(n_users=20, features=None)
    with ExitStack() as stack:
        found = {}
        for name, dataset in (
            ("DSSMModel", featured.dataset()),
            ("MultVAEModel", with_other_id_types(plain).dataset()),
            ("GFCFModel", plain.dataset()),
            ("DLRMModel", with_other_id_types(featured).dataset()),
        ):
            model = make_model(name)
            model.fit(dataset)
            folder = save(model, dataset)
            found[name] = Served(model, dataset, folder, stack.enter_context(open_client(create_app(folder))))
        yield found
