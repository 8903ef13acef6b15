"""The command `serve`."""

from __future__ import annotations

import contextlib
import gc
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import InputError, command, note

_GRACE = 30  # seconds for the requests in flight once the service was told to stop
_KEEP_ALIVE = 75  # seconds; longer than proxies keep a connection, which else meet one that has just been closed
_BACKLOG = 2048
_SWITCH_INTERVAL = 5e-4  # seconds; a tenth of Python's
_POST = "curl -H 'Content-Type: application/json' localhost:8000"
EPILOG = (
    "Examples:\n\n"
    "rectools-neural serve model\n\n"
    "rectools-neural serve model --host 0.0.0.0 --port 80 --reload-interval 60\n\n"
    "Then, from another terminal:\n\n"
    f'{_POST}/recommend -d \'{{"user_id": 1, "k": 5}}\'\n\n'
    f"{_POST}/recommend -d '{{\"history\": [10, 20]}}'\n\n"
    f"{_POST}/similar -d '{{\"item_id\": 10}}'\n\n"
    "curl localhost:8000/ready\n\n"
    "The page http://localhost:8000/docs tells all questions. Write a new model to FOLDER, and it answers within "
    "--reload-interval seconds, without a pause. SIGTERM and Ctrl-C stop the service once the requests in flight "
    "are answered."
)


@command
def serve(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `save_pretrained`, or `fit`, has written.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")] = 8000,
    ann: Annotated[
        bool, typer.Option("--ann", help="Search with an index of the items, for very large catalogues.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch; for more requests start more processes.")] = 1,
    reload_interval: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How often to look for a new model in FOLDER; 0 for never.")
    ] = 5,
    max_k: Annotated[int, typer.Option(min=1, help="Items that a request may ask for.")] = 1000,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests in a call of /recommend/batch.")] = 100,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Size of the largest body, in megabytes.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No line that tells where it listens.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Answer over HTTP: recommendations, similar items, scores and explanations of a saved model."""
    try:
        import uvicorn

        from ..serving.app import create_app
    except ModuleNotFoundError as error:
        raise InputError(f"there is no module `{error.name}`: pip install rectools-neural[serve] brings it") from error
    import torch

    with contextlib.closing(_bind(host, port)) as listener:
        torch.set_num_threads(threads)
        # The network must not wait long for the thread that ranks: this halves the slowest answers under load.
        sys.setswitchinterval(_SWITCH_INTERVAL)
        # What the libraries keep for good need not be gone through each time that garbage is collected.
        gc.collect()
        gc.freeze()
        try:
            app = create_app(
                folder,
                ann=ann,
                reload_interval=reload_interval,
                max_k=max_k,
                max_batch=max_batch,
                max_body_mb=max_body_mb,
            )
        except (OSError, ValueError, TypeError) as error:
            raise InputError(str(error)) from error
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_GRACE,
            timeout_keep_alive=_KEEP_ALIVE,
            backlog=_BACKLOG,
        )
        # Once it has stopped as it should, uvicorn sends itself the signal again, as if it had been killed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        note(f"{folder} is served on http://{_address(listener)}, see /docs", quiet)
        with contextlib.suppress(KeyboardInterrupt):  # how one stops it
            uvicorn.Server(config).run(sockets=[listener])


def _bind(host: str, port: int) -> socket.socket:
    """Take the port, without listening yet: who connects before the model is loaded shall not wait."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if sys.platform != "win32":
            # Else the port of a service that has just stopped would be taken for minutes.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise InputError(
            f"can't listen on {host}, port {port} ({error.strerror}): name others with --host, --port"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
