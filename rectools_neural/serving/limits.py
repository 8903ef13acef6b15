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
            message = await receive()
            if message["type"] == "http.request":
                n_received += len(message.get("body", b""))
                if n_received > self.max_bytes:
                    raise self._too_large()
            return message

        for name, value in scope["headers"]:
            # More digits than that are too many, whatever they say; and int() need not bear them.
            if name == b"content-length" and value.isdigit() and (len(value) > 18 or int(value) > self.max_bytes):
                raise self._too_large()
        await self.app(scope, receive_within, send)

    def _too_large(self) -> RefusedError:
        return refuse(
            413, ("body",), f"The body has more than {self.max_bytes} bytes: ask for less at once", "too_large"
        )
