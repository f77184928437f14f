"""For hosts that speak ASGI: bind the caller of each request, and open and close the store.

```python
from cat.asgi import UserMiddleware


def identify(scope):
    return None  # the user id of the request, as your host knows it


async def app(scope, receive, send): ...


app = UserMiddleware(app, identify=identify)
```

It is pure ASGI: Starlette's `BaseHTTPMiddleware` runs the endpoint in another
context (https://www.starlette.io/middleware/#limitations), and needs nothing
but the standard library.
"""

import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, overload

from cat import context
from cat.errors import MissingMiddlewareError
from cat.scope import owner_of

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    UserId = str | int | UUID

__all__ = ["UserMiddleware", "bind_user", "starlette_user", "unauthorized"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Identify = Callable[[Scope], "UserId | Awaitable[UserId | None] | None"]


class UserMiddleware:
    """Bind the user of every HTTP request and websocket, or nobody, while `app` serves it.

    `identify` takes the ASGI scope and returns a user id, or `None` for
    nobody; it may be a coroutine function. What it raises fails the request.
    Nobody is bound too: a server may hand the context of one request on to the
    next of the same connection. With `identify=lambda scope: None`, the
    request's code says who it is with `bind_user`.

    When the server starts, the store is opened, and the start fails if that
    does; when it stops, after the last request, the store is closed.

    ```python
    from cat.asgi import UserMiddleware

    async def app(scope, receive, send): ...

    def identify(scope):
        return {b"key-of-alice": "alice"}.get(dict(scope["headers"]).get(b"x-key"))

    served = UserMiddleware(app, identify=identify)
    ```
    """

    def __init__(self, app: App, *, identify: Identify) -> None:
        self.app = app
        self._identify = identify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await _Lifespan(receive, send).serve(self.app, scope)
            return
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        # Nobody is bound already while `identify` runs, and if it raises.
        with context.request():
            user_id = self._identify(scope)
            if inspect.isawaitable(user_id):
                user_id = await user_id
            if user_id is not None:
                context.bind(user_id)
            await self.app(scope, receive, send)


def bind_user(user_id: "UserId") -> None:
    """Say who the caller of the current request is, from any code that serves it.

    For hosts that learn it inside the application, as from a FastAPI
    dependency, plain or async. `UserMiddleware` has to be around it. Binding
    the same user again does nothing.

    Raises `InvalidUserError`, `AlreadyBoundError` if another user is bound,
    and `MissingMiddlewareError` outside a request.

    ```python
    from fastapi import Depends, FastAPI

    from cat import user
    from cat.asgi import UserMiddleware, bind_user

    def log_in(token: str = ""):
        bind_user("alice")  # whoever your login says

    app = FastAPI(dependencies=[Depends(log_in)])
    app.add_middleware(UserMiddleware, identify=lambda scope: None)
    ```
    """
    context.bind(user_id)


def starlette_user(scope: Scope) -> str | None:
    """Identify the user whom Starlette's `AuthenticationMiddleware` found, by `identity`.

    For `UserMiddleware(app, identify=starlette_user)`, inside that middleware.

    Raises `MissingMiddlewareError` if it has not run before.

    ```python
    from starlette.applications import Starlette
    from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
    from starlette.middleware import Middleware
    from starlette.middleware.authentication import AuthenticationMiddleware

    from cat.asgi import UserMiddleware, starlette_user

    class Tokens(AuthenticationBackend):
        async def authenticate(self, conn):
            return AuthCredentials(), SimpleUser("alice")

    app = Starlette(
        middleware=[
            Middleware(AuthenticationMiddleware, backend=Tokens()),
            Middleware(UserMiddleware, identify=starlette_user),
        ]
    )
    ```
    """
    if "user" not in scope:
        raise MissingMiddlewareError(
            "starlette_user() finds no user in the request: AuthenticationMiddleware has not run. "
            "List it before UserMiddleware in middleware=[...], or add it after it with "
            "app.add_middleware(), where the last to be added runs first"
        )
    found = scope["user"]
    if not found.is_authenticated:
        return None
    try:
        identity = found.identity
    except NotImplementedError:
        from starlette.authentication import SimpleUser  # noqa: PLC0415  # who calls this has it

        # Older ones of these have none; the names of other users need not be unique.
        if not isinstance(found, SimpleUser):
            raise
        identity = found.username
    return owner_of(identity)


@overload
async def unauthorized(request: "Request", error: Exception) -> "Response": ...
@overload
async def unauthorized(request: "WebSocket", error: Exception) -> None: ...


async def unauthorized(
    request: "Request | WebSocket",
    error: Exception,  # noqa: ARG001  # as a handler is called
) -> "Response | None":
    """Answer 401 where a user is needed and nobody is bound; a websocket is closed with 1008.

    An exception handler for Starlette and FastAPI; `request` and `error` are
    what they give it.

    ```python
    from fastapi import FastAPI

    from cat.asgi import unauthorized
    from cat.errors import NoUserError

    app = FastAPI(exception_handlers={NoUserError: unauthorized})
    ```
    """
    from starlette.responses import JSONResponse  # noqa: PLC0415  # those who use it have it
    from starlette.websockets import WebSocket  # noqa: PLC0415

    if isinstance(request, WebSocket):
        await request.close(1008, "Not authenticated")
        return None
    return JSONResponse(
        {"detail": "Not authenticated"}, 401, headers={"WWW-Authenticate": "Bearer"}
    )


class _Lifespan:
    """The life of a server, with the store open from its start to its end."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._heeded = False
        self._failed = False

    async def serve(self, app: App, scope: Scope) -> None:
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            if self._heeded:
                raise
        if not self._heeded:  # Django, for one, raises, and a server goes on without it
            for event in ("startup", "shutdown"):
                await self.receive()
                await self.send({"type": f"lifespan.{event}.complete"})

    async def receive(self) -> Message:
        self._heeded = True
        return await self._receive()

    async def send(self, message: Message) -> None:
        """Pass a message on, when the store is open or closed as it says."""
        self._heeded = True
        if self._failed:  # an application that hears of it says so as well
            return
        if message["type"] == "lifespan.startup.complete":
            try:
                await context.enter()
            except Exception as error:
                self._failed = True
                told = f"{type(error).__name__}: {error}"
                await self._send({"type": "lifespan.startup.failed", "message": told})
                raise
        elif message["type"].startswith("lifespan.shutdown."):
            await context.leave()
        await self._send(message)
