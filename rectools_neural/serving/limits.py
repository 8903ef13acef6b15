"""A limit for the size of requests."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .schemas import RefusedError, refuse


class BodyLimit:
    """
    Refuses bodies that are too large: by what they announce, else as soon as too much has come.

    Parameters
    ----------
    app : ASGI application
        It must answer `RefusedError`.
    max_bytes : int
        Size of the largest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        n_received = 0

        async def receive_within() -> Message:
            nonlocal n_received
            if not n_received and _announced(scope) > self.max_bytes:
                raise self._too_large()
            message = await receive()
            if message["type"] == "http.request":
                n_received += len(message.get("body", b""))
                if n_received > self.max_bytes:
                    raise self._too_large()
            return message

        await self.app(scope, receive_within, send)

    def _too_large(self) -> RefusedError:
        return refuse(
            413, ("body",), f"The body has more than {self.max_bytes} bytes: ask for less at once", "too_large"
        )


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:18])  # more digits are too many in any case, and more than int() need bear
    return 0
