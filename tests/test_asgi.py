"""In real web hosts, each request is its caller's or nobody's, whatever went before it.

Servers are real ones on loopback sockets; all but those of which the exit code
matters run in a thread, where `home` sees what they leave behind.
"""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import contextlib
import importlib.util
import inspect
import itertools
import json
import logging
import random
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from uuid import UUID

import pytest
from tests.conftest import open_below, wait_for

import cat
from cat import as_user, current_user, for_user, store, user
from cat.asgi import UserMiddleware, bind_user, starlette_user, unauthorized
from cat.errors import (
    AlreadyBoundError,
    InvalidUserError,
    MissingMiddlewareError,
    NotWritableError,
    NoUserError,
)

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets")

import anyio.from_thread
import uvicorn
from fastapi import Depends, FastAPI, Header, WebSocket
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

HANG = 30.0  # seconds; against hanging
LARGE = b"x" * 1_000_000
READ_IN_PARTS = b"x" * 80_000  # more than uvicorn takes before the application reads
USERS = [f"user{n}" for n in range(50)]
SOME = ["alice", "bob", None, "carol", None, "dave", "alice", None]


# --- Servers.

INSTALLED = {"asyncio", "h11"} | {
    name for name in ("uvloop", "httptools") if importlib.util.find_spec(name)
}
KINDS = [
    pytest.param(
        {"loop": loop, "http": http},
        id=f"{loop}-{http}",
        marks=pytest.mark.skipif(not {loop, http} <= INSTALLED, reason="is not installed"),
    )
    for loop in ("asyncio", "uvloop")
    for http in ("h11", "httptools")
]
Address = tuple[str, int]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, str]:
    """Each event loop and each HTTP parser that uvicorn can have."""
    return request.param


@contextlib.contextmanager
def started(app: Any, **options: Any) -> Iterator[tuple[uvicorn.Server, Address]]:
    """Run a server of `app` in a thread during the block, if it starts at all."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, **options))

        def run() -> None:
            with contextlib.suppress(SystemExit):  # a process would end by it
                server.run(sockets=[listener])

        thread = threading.Thread(target=run)
        thread.start()
        try:
            wait_for(lambda: server.started or not thread.is_alive())
            yield server, listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(HANG)
            assert not thread.is_alive()


@contextlib.contextmanager
def served(app: Any, **options: Any) -> Iterator[Address]:
    """Serve `app` in a thread during the block; the block gets the address."""
    with started(app, **options) as (server, address):
        assert server.started
        yield address


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], str]]:
    """Wait for a text in the log and return all of it, once: what no test asks for fails it."""
    caplog.set_level(logging.INFO)

    def told(awaited: str) -> str:
        wait_for(lambda: awaited in caplog.text)
        text = caplog.text
        caplog.clear()
        return text

    yield told
    warned = [record for record in caplog.get_records("call") if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in warned] == []


# --- Clients.


def claimed(scope: Any) -> str | None:
    """Return whose request it is, as its header says."""
    name = dict(scope["headers"]).get(b"x-user")
    return None if name is None else name.decode()


def request_of(who: str | None, path: str = "/", body: bytes = b"") -> bytes:
    """Return a request as it is on the wire."""
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: test\r\n"
    head += f"Content-Length: {len(body)}\r\n" if body else ""
    head += f"X-User: {who}\r\n" if who else ""
    return f"{head}\r\n".encode() + body


UPGRADE = (
    b"GET /socket HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Answer(NamedTuple):
    """What came back."""

    status: int
    head: str
    text: str


class Connection:
    """A connection that is kept alive, of which the test decides on every byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, address: Address) -> AsyncIterator["Connection"]:
        """Connect for the time of a block."""
        async with asyncio.timeout(HANG):
            reader, writer = await asyncio.open_connection(*address)
            try:
                yield cls(reader, writer)
            finally:
                writer.transport.abort()

    async def send(self, data: bytes) -> None:
        """Send bytes, all at once."""
        self._writer.write(data)
        await self._writer.drain()

    async def head(self) -> tuple[int, str]:
        """Read the status and the headers of an answer."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        return int(head.split()[1]), re.sub(r"(?m)^[\w-]+:", lambda name: name[0].lower(), head)

    async def chunk(self) -> bytes:
        """Read a part of a body that is streamed."""
        size = int(await self._reader.readline(), 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def answer(self) -> Answer:
        """Read a whole answer."""
        status, head = await self.head()
        if "transfer-encoding: chunked" in head:
            body = b""
            while part := await self.chunk():
                body += part
        else:
            size = int(head.partition("content-length:")[2].split()[0])
            body = await self._reader.readexactly(size)
        return Answer(status, head, body.decode())

    async def frame(self) -> str:
        """Read a short message of a websocket."""
        _, size = await self._reader.readexactly(2)
        return (await self._reader.readexactly(size)).decode()


async def asked(address: Address, who: str | None = None, path: str = "/") -> Answer:
    """Ask once, on a connection of its own."""
    async with Connection.to(address) as connection:
        await connection.send(request_of(who, path))
        return await connection.answer()


async def asked_by(
    address: Address, whom: list[str | None], path: str = "/"
) -> list[tuple[int, str]]:
    """Ask on behalf of several at once, and return what each was told."""
    answers = await asyncio.gather(*(asked(address, who, path) for who in whom))
    return [(answer.status, answer.text) for answer in answers]


def opened(address: Address, who: str | None = None, path: str = "/socket") -> connect_websocket:
    """Open a websocket."""
    host, port = address
    headers = {"X-User": who} if who else {}
    return connect_websocket(f"ws://{host}:{port}{path}", additional_headers=headers, proxy=None)


# --- What is to be true of every request.


async def seen() -> str:
    """Return whose values are seen here, in the store as well as in the context."""
    try:
        await user.save("stamp", user.id)
        await asyncio.sleep(0)
        stamp = await user.load("stamp")
    except NoUserError:
        assert current_user() is None
        return "nobody"
    assert stamp == current_user()
    return str(stamp)


async def who(request: Request) -> PlainTextResponse:
    """Answer whose request this is."""
    await request.body()
    return PlainTextResponse(await seen())


async def who_by_socket(websocket: WebSocket) -> None:
    """Answer the same by websocket."""
    await websocket.accept()
    await websocket.send_text(await seen())
    await websocket.close()


WHO = [
    Route("/", who, methods=["GET", "POST"]),
    WebSocketRoute("/socket", who_by_socket),
]


class Forgetful(UserMiddleware):
    """The middleware, but that it leaves alone whoever is nobody."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan" or claimed(scope):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)


async def after_a_large_body(address: Address) -> dict[str, str]:
    """Return who anonymous was, each time, on connections that others used."""
    async with Connection.to(address) as connection:
        told = []
        for name in ("alice", "bob"):
            await connection.send(request_of(name, body=LARGE))
            assert (await connection.answer()).text == name
            for body in (b"", b"small", LARGE):
                await connection.send(request_of(None, body=body))
                told.append((await connection.answer()).text)
        await connection.send(request_of("alice", body=LARGE))
        assert (await connection.answer()).text == "alice"
        await connection.send(UPGRADE)
        assert (await connection.head())[0] == 101
        return {"keep-alive": " ".join(told), "websocket": await connection.frame()}


async def in_a_pipeline(address: Address) -> dict[str, str]:
    """Return who anonymous was, each time, behind the requests of others."""
    async with Connection.to(address) as connection:
        whom = ["alice", None, "bob", None, None, "alice", "bob", None] * 3
        await connection.send(b"".join(map(request_of, whom)))
        told = [(await connection.answer()).text for _ in whom]
    assert [name for name in whom if name] == [
        text for name, text in zip(whom, told, strict=True) if name
    ]
    return {
        "pipeline": " ".join(text for name, text in zip(whom, told, strict=True) if not name),
    }


async def anonymous_as_seen(address: Address) -> dict[str, str]:
    """Return who anonymous was in all situations, where it was not nobody."""
    found = await after_a_large_body(address) | await in_a_pipeline(address)
    return {place: told for place, told in found.items() if set(told.split()) != {"nobody"}}


async def test_anonymous_is_nobody(kind: dict[str, str]) -> None:
    """Anonymous never is a user: behind large bodies, in pipelines, by websocket after HTTP."""
    app = UserMiddleware(Starlette(routes=WHO), identify=claimed)
    with served(app, **kind) as address:
        assert await anonymous_as_seen(address) == {}
        async with opened(address, "alice") as one, opened(address) as other:
            assert (await one.recv(), await other.recv()) == ("alice", "nobody")


async def test_anonymous_is_somebody_if_nobody_is_not_bound(kind: dict[str, str]) -> None:
    """The same check finds uvicorn's leaks, of asyncio's loop and of pipelines, once they count."""
    app = Forgetful(Starlette(routes=WHO), identify=claimed)
    with served(app, **kind) as address:
        found = await anonymous_as_seen(address)
    assert found["pipeline"].split() == ["alice", "bob", "bob", "bob"] * 3
    # https://github.com/python/cpython/issues/140947, which uvloop does not have.
    if kind["loop"] == "uvloop":
        assert set(found) == {"pipeline"}
    elif sys.version_info < (3, 14):
        assert found["keep-alive"] == "alice alice alice bob bob bob"
        assert found["websocket"] == "alice"


# --- A crowd.


class Crowd:
    """An application that lets so many requests begin together, and looks at each."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.arrived = 0
        self.together = asyncio.Event()
        self.numbers = itertools.count()
        self.random = random.Random(size)  # noqa: S311  # chance, and no secret
        self.saved: list[tuple[str, str]] = []
        self.wrong: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.app = Starlette(
            routes=[
                Route("/upload", self.upload, methods=["GET", "POST"]),
                Route("/plain", self.plain),
                Route("/stream", self.stream),
                Route("/background", self.background),
                Route("/task", self.task),
            ]
        )

    async def look(self, owner: str | None) -> None:
        """Save a value with the stamp of `owner`, and see only such."""
        await asyncio.sleep(self.random.random() / 50)
        number = next(self.numbers)
        try:
            await user.save(str(number), owner)
            self.saved.append((str(owner), str(number)))
            await asyncio.sleep(self.random.random() / 50)
            # Its own, one that is of somebody else most of the time, and who it is.
            other = str(self.random.randrange(number + 1))
            found = {await user.load(str(number)), await user.load(other, owner), current_user()}
        except NoUserError:
            found = {None}
        self.judge(owner, found)

    async def look_at_all(self, owner: str | None) -> None:
        """See only values with the stamp of `owner`."""
        try:
            found = set((await user.items()).values())
        except NoUserError:
            found = {None}
        self.judge(owner, found)

    def judge(self, owner: str | None, found: set[str | None]) -> None:
        """Note what is not the owner's."""
        if found != {owner}:
            self.wrong.append(f"{owner} saw {found}")

    async def meet(self, request: Request) -> str | None:
        """Wait for all the others, and return whose request it is."""
        self.arrived += 1
        if self.arrived == self.size:
            self.together.set()
        await self.together.wait()
        return claimed(request.scope)

    async def upload(self, request: Request) -> PlainTextResponse:
        """Read a body."""
        await request.body()
        await self.look(claimed(request.scope))
        return PlainTextResponse("read")

    async def plain(self, request: Request) -> PlainTextResponse:
        """Look twice."""
        owner = await self.meet(request)
        await self.look(owner)
        await self.look_at_all(owner)
        return PlainTextResponse(str(owner))

    async def stream(self, request: Request) -> StreamingResponse:
        """Look between the parts of the answer."""
        return StreamingResponse(self.parts(await self.meet(request)))

    async def parts(self, owner: str | None) -> AsyncIterator[str]:
        """Look, and say so."""
        for part in ("", str(owner), ""):
            yield part or "-"
            await self.look(owner)

    async def background(self, request: Request) -> PlainTextResponse:
        """Look after the answer."""
        owner = await self.meet(request)
        return PlainTextResponse(str(owner), background=BackgroundTask(self.look, owner))

    async def task(self, request: Request) -> PlainTextResponse:
        """Look while the request is served, and later."""
        owner = await self.meet(request)
        self.tasks.append(asyncio.create_task(self.look(owner)))
        return PlainTextResponse(str(owner))


async def visit(address: Address, number: int, gate: asyncio.Semaphore) -> None:
    """Be one of the crowd, on a connection that another user may have used before."""
    chance = random.Random(number)  # noqa: S311
    # Independent of each other: the way here, who comes, what for, and how it ends.
    way = number % 3
    name = None if number % 10 == 9 else USERS[number % len(USERS)]
    path = chance.choice(["/plain", "/stream", "/background", "/task"])
    leaves = chance.random() < 0.2
    before = chance.choice(USERS)
    async with contextlib.AsyncExitStack() as stack:
        async with gate:
            connection = await stack.enter_async_context(Connection.to(address))
            if way == 0:
                await connection.send(request_of(before, "/upload", READ_IN_PARTS))
                assert (await connection.answer()).text == "read"
        first = request_of(before, "/upload") if way == 1 else b""
        await connection.send(first + request_of(name, path))
        if way == 1:
            assert (await connection.answer()).text == "read"
        if leaves and path != "/stream":
            return
        status, head = await connection.head()
        assert status == 200
        if path == "/stream":
            assert "chunked" in head
            told = [await connection.chunk()]
            if leaves:
                return
            while part := await connection.chunk():
                told.append(part)
            assert told == [b"-", str(name).encode(), b"-"]


async def crowd_of(size: int, middleware: type[UserMiddleware], kind: dict[str, str]) -> Crowd:
    """Let a crowd visit, and return what it met."""
    crowd = Crowd(size)
    gate = asyncio.Semaphore(100)
    with served(middleware(crowd.app, identify=claimed), **kind) as address:
        async with asyncio.timeout(HANG):
            await asyncio.gather(*(visit(address, number, gate) for number in range(size)))
        wait_for(lambda: all(task.done() for task in crowd.tasks))
    assert crowd.arrived == size
    return crowd


def rows(home: Path) -> list[tuple[str, str, Any]]:
    """Return owner, key and value of each row, as another program finds them."""
    with contextlib.closing(sqlite3.connect(home / "cat.db")) as connection:
        found = connection.execute("SELECT owner, key, value FROM entries").fetchall()
    return [(owner, key, json.loads(value)) for owner, key, value in found]


async def test_a_thousand_requests_of_fifty_users(kind: dict[str, str], home: Path) -> None:
    """A thousand requests at once, some streamed, some left: each saw and stored its own alone."""
    crowd = await crowd_of(1000, UserMiddleware, kind)
    assert crowd.wrong == []
    kept = rows(home)
    assert [row for row in kept if row[0] != row[2]] == []
    assert set(crowd.saved) <= {(owner, key) for owner, key, _ in kept}
    assert {owner for owner, _, _ in kept} == set(USERS)
    assert len(kept) > 1000


async def test_a_crowd_sees_others_if_nobody_is_not_bound(kind: dict[str, str], home: Path) -> None:
    """The same crowd finds values of others, in what it reads and in what is stored."""
    crowd = await crowd_of(120, Forgetful, kind)
    assert {line.split()[0] for line in crowd.wrong} >= {"None"}
    assert [row for row in rows(home) if row[0] != row[2]]


# --- Where the user of a request is known, and where not.


class Places:
    """A FastAPI application that tells in many places whose request it is."""

    def __init__(self) -> None:
        self.heard: list[str | None] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.app = FastAPI()
        for name, function in inspect.getmembers(type(self), inspect.isfunction):
            if not name.startswith("_"):
                bound = types.MethodType(function, self)
                self.app.get(f"/{name}", response_class=PlainTextResponse)(bound)

    # Those that answer.

    async def awaited(self) -> str:
        """Answer, awaiting."""
        return await seen()

    def sync(self) -> str:
        """Answer in a thread, by way of the event loop."""
        assert current_user() == anyio.from_thread.run_sync(current_user)
        return anyio.from_thread.run(seen)

    def by_sync_dependency(
        self, found: Annotated[str, Depends(lambda: str(current_user()))]
    ) -> str:
        """Answer behind a dependency that ran in a thread."""
        assert found == str(current_user())
        return anyio.from_thread.run(seen)

    async def by_dependency(self, found: Annotated[str, Depends(seen)]) -> str:
        """Answer what a dependency found."""
        return found

    async def by_task(self) -> str:
        """Answer what a task found."""
        return await asyncio.create_task(seen())

    async def by_thread(self) -> str:
        """Answer what a thread found."""
        found = await asyncio.to_thread(current_user)
        return found or "nobody"

    async def streamed(self) -> StreamingResponse:
        """Answer in parts."""

        async def parts() -> AsyncIterator[str]:
            first = await seen()
            yield first[:2]
            await asyncio.sleep(0.001)
            assert await seen() == first
            yield first[2:]

        return StreamingResponse(parts())

    async def streamed_by_sync(self) -> StreamingResponse:
        """Answer in parts that are made in threads."""

        def parts() -> Iterator[str]:
            yield (current_user() or "nobody")[:2]
            yield (current_user() or "nobody")[2:]

        return StreamingResponse(parts())

    # Those that go on after the answer.

    async def background(self) -> PlainTextResponse:
        """Answer, and look again in background tasks."""
        tasks = BackgroundTasks()
        tasks.add_task(self._hear)
        tasks.add_task(self._hear_in_thread)
        return PlainTextResponse(await seen(), background=tasks)

    async def background_task(self) -> str:
        """Answer, and look again in tasks of asyncio."""
        self.tasks.add(asyncio.create_task(self._hear()))
        self.tasks.add(asyncio.create_task(asyncio.to_thread(self._hear_in_thread)))
        return await seen()

    async def _hear(self) -> None:
        await asyncio.sleep(0.001)
        self.heard.append(await seen())

    def _hear_in_thread(self) -> None:
        self.heard.append(current_user() or "nobody")


async def test_places_that_know_the_user(kind: dict[str, str]) -> None:
    """Endpoints, dependencies, streams, background work, tasks and to_thread have the caller."""
    places = Places()
    names = [name for name in vars(Places) if not name.startswith("_")]
    assert len(names) == 10
    expected = [(200, name or "nobody") for name in SOME]
    with served(UserMiddleware(places.app, identify=claimed), **kind) as address:
        found = await asyncio.gather(*(asked_by(address, SOME, f"/{name}") for name in names))
        assert dict(zip(names, found, strict=True)) == dict.fromkeys(names, expected)
        wait_for(lambda: len(places.heard) == 4 * len(SOME))
    assert sorted(map(str, places.heard)) == sorted([name or "nobody" for name in SOME] * 4)


async def test_threads_that_know_nobody(kind: dict[str, str]) -> None:
    """`run_in_executor` and a bare thread have no user: `user` raises there."""
    app = FastAPI()

    def used() -> str:
        try:
            return user.id
        except NoUserError:
            return "NoUserError"

    @app.get("/executor", response_class=PlainTextResponse)
    async def executor() -> str:
        return await asyncio.get_running_loop().run_in_executor(None, used)

    @app.get("/thread", response_class=PlainTextResponse)
    def thread() -> str:
        told: list[str] = []
        bare = threading.Thread(target=lambda: told.append(used()))
        bare.start()
        bare.join()
        return told[0]

    with served(UserMiddleware(app, identify=claimed), **kind) as address:
        for path in ("/executor", "/thread"):
            assert await asked_by(address, SOME, path) == [(200, "NoUserError")] * len(SOME)


# --- Who it is: `identify`.


async def identified(scope: Any) -> int:
    """Know everyone, after a while."""
    await asyncio.sleep(0.001)
    return 42


IDENTIFIERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "plain": (lambda scope: "alice", "alice"),
    "plain, nobody": (lambda scope: None, "nobody"),
    "async": (identified, "42"),
    "async, nobody": (lambda scope: asyncio.sleep(0.001), "nobody"),
    "UUID": (lambda scope: UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "zero": (lambda scope: 0, "0"),
    "by path": (lambda scope: scope["path"].strip("/") or "root", "root"),
}


@pytest.mark.parametrize(("identify", "expected"), IDENTIFIERS.values(), ids=IDENTIFIERS)
async def test_identify(identify: Callable[[Any], Any], expected: str) -> None:
    """`identify` is plain or async, for HTTP and websockets, and returns any id or None."""
    with served(UserMiddleware(Starlette(routes=WHO), identify=identify)) as address:
        assert (await asked(address)).text == expected
        async with opened(address) as websocket:
            assert await websocket.recv() == expected.replace("root", "socket")


def test_identify_is_required() -> None:
    """A host cannot forget to say who calls."""
    with pytest.raises(TypeError, match="identify"):
        UserMiddleware(Starlette())  # type: ignore[call-arg]


async def failing(scope: Any) -> str:
    """Fail after a while."""
    await asyncio.sleep(0.001)
    raise LookupError("the sessions are not there")


FAILURES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "raises": (lambda scope: scope["no such thing"], "KeyError: 'no such thing'"),
    "raises later": (failing, "LookupError: the sessions are not there"),
    "raises NoUserError": (lambda scope: user.id, "NoUserError"),
    "empty": (lambda scope: "", "InvalidUserError"),
    "bytes": (lambda scope: b"alice", "InvalidUserError"),
    "False": (lambda scope: False, "InvalidUserError"),
    "a dict": (lambda scope: {"id": "alice"}, "InvalidUserError"),
    "a line break": (lambda scope: "alice\n", "InvalidUserError"),
}


@pytest.mark.parametrize("place", ["around the app", "inside the app"])
@pytest.mark.parametrize(("identify", "error"), FAILURES.values(), ids=FAILURES)
async def test_identify_that_fails(
    identify: Callable[[Any], Any], error: str, place: str, log: Callable[[str], str]
) -> None:
    """The request fails, and nothing of it is served, not even as nobody's."""
    reached: list[str] = []

    async def reach(request: Request) -> PlainTextResponse:
        reached.append("http")
        return PlainTextResponse(await seen())

    async def reach_by_socket(websocket: WebSocket) -> None:
        reached.append("websocket")
        await websocket.accept()

    app: Any = Starlette(
        routes=[Route("/", reach), WebSocketRoute("/socket", reach_by_socket)],
        exception_handlers={NoUserError: unauthorized},
    )
    if place == "inside the app":
        app.add_middleware(UserMiddleware, identify=identify)
    else:
        app = UserMiddleware(app, identify=identify)
    with served(app) as address:
        for _ in range(2):
            assert (await asked(address)).status == 500
            log(error)
            with pytest.raises(InvalidStatus) as refused:
                await opened(address)
            assert refused.value.response.status_code == 500
            log(error)
    assert reached == []


# --- Who it is: `bind_user`.


def caller_by_header(x_user: Annotated[str | None, Header()] = None) -> str | None:
    """Bind the caller, as a sync dependency; FastAPI runs it in a thread."""
    if x_user:
        bind_user(x_user)
    return x_user


async def caller_by_header_async(x_user: Annotated[str | None, Header()] = None) -> str | None:
    """Bind the caller, as an async dependency."""
    await asyncio.sleep(0.001)
    return caller_by_header(x_user)


def caller_during(x_user: Annotated[str | None, Header()] = None) -> Iterator[str | None]:
    """Bind the caller, as a sync dependency that has an end."""
    yield caller_by_header(x_user)
    assert current_user() == x_user


async def caller_during_async(
    x_user: Annotated[str | None, Header()] = None,
) -> AsyncIterator[str | None]:
    """Bind the caller, as an async dependency that has an end."""
    yield await caller_by_header_async(x_user)
    assert await seen() == x_user or x_user is None


DEPENDENCIES = [caller_by_header, caller_by_header_async, caller_during, caller_during_async]


def unidentified(app: Any) -> UserMiddleware:
    """Wrap an application that finds out by itself who calls."""
    return UserMiddleware(app, identify=lambda scope: None)


@pytest.mark.parametrize("place", ["endpoint", "app"])
@pytest.mark.parametrize("dependency", DEPENDENCIES)
async def test_bind_user_in_a_dependency(dependency: Callable[..., Any], place: str) -> None:
    """A dependency of any kind, of an endpoint or of the app, says once who calls."""
    app = FastAPI(dependencies=[Depends(dependency)] if place == "app" else [])
    depends = [] if place == "app" else [Depends(dependency)]
    heard: list[str] = []

    async def hear() -> None:
        heard.append(await seen())

    @app.get("/", response_class=PlainTextResponse, dependencies=depends)
    async def endpoint(background: BackgroundTasks) -> str:
        background.add_task(hear)
        return await seen()

    @app.get("/sync", response_class=PlainTextResponse, dependencies=depends)
    def sync() -> str:
        return anyio.from_thread.run(seen)

    @app.get("/stream", dependencies=depends)
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield await seen()

        return StreamingResponse(parts())

    @app.websocket("/socket", dependencies=depends)
    async def websocket(websocket: WebSocket) -> None:
        await who_by_socket(websocket)

    expected = [(200, name or "nobody") for name in SOME]
    with served(unidentified(app)) as address:
        for path in ("/", "/sync", "/stream"):
            assert await asked_by(address, SOME, path) == expected
        async with opened(address, "alice") as one, opened(address) as other:
            assert (await one.recv(), await other.recv()) == ("alice", "nobody")
        wait_for(lambda: len(heard) == len(SOME))
    assert sorted(heard) == sorted(name or "nobody" for name in SOME)


async def test_bind_user_in_other_places() -> None:
    """An endpoint, Starlette's kind of middleware and a task of the request may say it too."""

    async def dispatch(request: Request, call_next: Any) -> Any:
        if request.url.path == "/middleware":
            bind_user(request.headers["x-user"])
        response = await call_next(request)
        assert current_user() == request.headers["x-user"]  # known outside, though set inside
        return response

    async def middleware(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await seen())

    async def endpoint(request: Request) -> PlainTextResponse:
        bind_user(request.headers["x-user"])
        return PlainTextResponse(await seen())

    async def task(request: Request) -> PlainTextResponse:
        await asyncio.create_task(asyncio.to_thread(bind_user, request.headers["x-user"]))
        return PlainTextResponse(await seen())

    app = Starlette(
        routes=[Route(f"/{one.__name__}", one) for one in (middleware, endpoint, task)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)],
    )
    names = ["alice", "bob", "carol"]
    with served(unidentified(app)) as address:
        for path in ("/middleware", "/endpoint", "/task"):
            assert await asked_by(address, names, path) == [(200, name) for name in names]


async def test_bind_user_twice() -> None:
    """The same user again is fine, in any type; another one raises, and the first stays."""

    async def again(request: Request) -> PlainTextResponse:
        for same in (7, "7", 7):
            bind_user(same)
        with pytest.raises(AlreadyBoundError, match="'7' and cannot become that of '8'"):
            bind_user(8)
        with pytest.raises(AlreadyBoundError):
            await asyncio.to_thread(bind_user, 8)
        return PlainTextResponse(await seen())

    with served(unidentified(Starlette(routes=[Route("/", again)]))) as address:
        assert await asked(address) == await asked(address)
        assert (await asked(address)).text == "7"
    app = UserMiddleware(Starlette(routes=[Route("/", again)]), identify=lambda scope: 7)
    with served(app) as address:
        assert (await asked(address)).text == "7"


async def test_bind_user_unlike_the_middleware(log: Callable[[str], str]) -> None:
    """A request that two places say is of different users fails."""
    app = FastAPI(dependencies=[Depends(lambda: bind_user("bob"))])
    app.get("/", response_class=PlainTextResponse)(seen)
    with served(UserMiddleware(app, identify=claimed)) as address:
        assert await asked_by(address, ["bob", None]) == [(200, "bob"), (200, "bob")]
        assert (await asked(address, "alice")).status == 500
        log("this request is already that of user 'alice'")


async def test_bind_user_that_is_no_id() -> None:
    """What cannot be a user is refused, and nobody is bound by it."""

    async def refused(request: Request) -> PlainTextResponse:
        for bad in ("", None, True, b"alice", 1.0, "a\n"):
            with pytest.raises(InvalidUserError):
                bind_user(bad)  # type: ignore[arg-type]
        return PlainTextResponse(await seen())

    with served(unidentified(Starlette(routes=[Route("/", refused)]))) as address:
        assert (await asked(address)).text == "nobody"


async def test_bind_user_outside_of_a_request(log: Callable[[str], str]) -> None:
    """Where there is no middleware there is no request, and that is said, with the cure."""
    for place in (contextlib.nullcontext(), as_user("alice")):
        with place, pytest.raises(MissingMiddlewareError, match=r"add cat\.asgi\.UserMiddleware"):
            bind_user("alice")
    app = FastAPI(dependencies=[Depends(lambda: bind_user("alice"))])
    app.get("/")(seen)
    with served(app) as address:
        assert (await asked(address)).status == 500
        log("MissingMiddlewareError")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with pytest.raises(MissingMiddlewareError):
            bind_user("alice")
        yield

    app = FastAPI(lifespan=lifespan)
    app.get("/", response_class=PlainTextResponse)(seen)
    with served(unidentified(app)) as address:
        assert (await asked(address)).text == "nobody"


# --- Who it is: Starlette's authentication.


class Account(BaseUser):
    """A user as an application has them, of whose names there may be two."""

    is_authenticated = True
    display_name = "John Smith"

    def __init__(self, identity: Any) -> None:
        self._identity = identity

    @property
    def identity(self) -> Any:
        """The account's number."""
        return self._identity


class Nameless(BaseUser):
    """A user whose class has a name to show and no identity."""

    is_authenticated = True
    display_name = "John Smith"


class OldSimpleUser(SimpleUser):
    """Starlette's, as it was before it had an identity."""

    @property
    def identity(self) -> str:
        """Not there yet."""
        raise NotImplementedError


PEOPLE: dict[str, Any] = {
    "alice": SimpleUser("alice"),
    "old": OldSimpleUser("olive"),
    "text": Account("a-1"),
    "number": Account(17),
    "none": Account(None),
    "bytes": Account(b"a-1"),
    "empty": Account(""),
    "nameless": Nameless(),
}


class Tokens(AuthenticationBackend):
    """Logs in whom the header names."""

    async def authenticate(self, conn: HTTPConnection) -> Any:
        """Return who it is."""
        name = claimed(conn.scope)
        return (AuthCredentials(), PEOPLE[name]) if name else None


AUTHENTICATION = Middleware(AuthenticationMiddleware, backend=Tokens())
BINDING = Middleware(UserMiddleware, identify=starlette_user)


async def test_starlette_user() -> None:
    """Whom the authentication found is the user, by identity; who is not logged in is nobody."""
    app = Starlette(routes=WHO, middleware=[AUTHENTICATION, BINDING])
    known = {"alice": "alice", "old": "olive", "text": "a-1", "number": "17", None: "nobody"}
    with served(app) as address:
        expected = [(200, name) for name in known.values()]
        assert await asked_by(address, list(known)) == expected
        for one, expects in known.items():
            async with opened(address, one) as websocket:
                assert await websocket.recv() == expects


async def test_starlette_user_added_one_by_one() -> None:
    """`add_middleware` wraps what is there: what is added last runs first."""
    app = FastAPI(routes=WHO)
    app.add_middleware(UserMiddleware, identify=starlette_user)
    app.add_middleware(AuthenticationMiddleware, backend=Tokens())
    with served(app) as address:
        assert await asked_by(address, ["alice", None]) == [(200, "alice"), (200, "nobody")]


@pytest.mark.parametrize("name", ["none", "bytes", "empty", "nameless"])
async def test_starlette_user_without_an_id(name: str, log: Callable[[str], str]) -> None:
    """Whoever is logged in and has no usable identity is an error, and never shares a name."""
    app = Starlette(routes=WHO, middleware=[AUTHENTICATION, BINDING])
    with served(app) as address:
        assert (await asked(address, name)).status == 500
        log("NotImplementedError" if name == "nameless" else "InvalidUserError")


@pytest.mark.parametrize(
    "middleware", [[BINDING, AUTHENTICATION], [BINDING]], ids=["wrong order", "not there"]
)
async def test_starlette_user_without_authentication(
    middleware: list[Middleware], log: Callable[[str], str]
) -> None:
    """If the authentication has not run, every request fails, with the order in the message."""
    with served(Starlette(routes=WHO, middleware=middleware)) as address:
        for name in ("alice", None):
            assert (await asked(address, name)).status == 500
            log("List it before UserMiddleware")
        with pytest.raises(InvalidStatus) as refused:
            await opened(address)
        assert refused.value.response.status_code == 500
        log("List it before UserMiddleware")


# --- Nobody where a user is needed: `unauthorized`.


async def needs(request: Request) -> PlainTextResponse:
    """Answer a user of theirs."""
    return PlainTextResponse(await user.save("name", user.id))


async def needs_by_socket(websocket: WebSocket) -> None:
    """Answer a user of theirs by websocket, at the second word."""
    if websocket.url.path == "/accepted":
        await websocket.accept()
        await websocket.send_text("welcome")
    name = user.id
    if websocket.url.path == "/socket":
        await websocket.accept()
    await websocket.send_text(name)


def needs_in_thread() -> str:
    """Answer as a sync endpoint of FastAPI does."""
    return user.id


def fastapi_host() -> FastAPI:
    """Make the FastAPI application."""
    app = FastAPI(exception_handlers={NoUserError: unauthorized})
    app.get("/", response_class=PlainTextResponse)(needs)
    app.get("/sync", response_class=PlainTextResponse)(needs_in_thread)
    app.get(
        "/dependency", response_class=PlainTextResponse, dependencies=[Depends(needs_in_thread)]
    )(needs_in_thread)
    app.websocket("/socket")(needs_by_socket)
    app.websocket("/accepted")(needs_by_socket)
    return app


def starlette_host() -> Starlette:
    """Make the Starlette application."""
    return Starlette(
        routes=[
            Route("/", needs),
            Route("/sync", needs),
            Route("/dependency", needs),
            WebSocketRoute("/socket", needs_by_socket),
            WebSocketRoute("/accepted", needs_by_socket),
        ],
        exception_handlers={NoUserError: unauthorized},
    )


@pytest.mark.parametrize("make", [fastapi_host, starlette_host])
async def test_unauthorized(make: Callable[[], Any]) -> None:
    """Without a user HTTP gets a 401, and a websocket a 403 or, once accepted, the code 1008."""
    with served(UserMiddleware(make(), identify=claimed)) as address:
        for path in ("/", "/sync", "/dependency"):
            refused = await asked(address, None, path)
            assert (refused.status, json.loads(refused.text)) == (
                401,
                {"detail": "Not authenticated"},
            )
            assert "\r\nwww-authenticate: Bearer\r\n" in refused.head
            assert await asked_by(address, ["alice"], path) == [(200, "alice")]
        with pytest.raises(InvalidStatus) as closed:
            await opened(address)
        assert closed.value.response.status_code == 403
        async with opened(address, None, "/accepted") as websocket:
            assert await websocket.recv() == "welcome"
            with pytest.raises(ConnectionClosed) as ended:
                await websocket.recv()
            assert ended.value.rcvd
            assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1008, "Not authenticated")
        async with opened(address, "alice", "/accepted") as websocket:
            assert [await websocket.recv(), await websocket.recv()] == ["welcome", "alice"]


# --- The life of a server.


async def raising(scope: Any, receive: Any, send: Any) -> None:
    """Raise for a lifespan, as Django does; answer what was asked with whose it is."""
    if scope["type"] != "http":
        raise ValueError(f"knows no {scope['type']}")
    body = (await seen()).encode()
    length = str(len(body)).encode()
    headers = [(b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def ignoring(scope: Any, receive: Any, send: Any) -> None:
    """Say nothing to a lifespan."""
    if scope["type"] == "http":
        await raising(scope, receive, send)


async def heeding(scope: Any, receive: Any, send: Any) -> None:
    """Take part in a lifespan, by hand."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{event}"
            await send({"type": f"lifespan.{event}.complete"})
    else:
        await raising(scope, receive, send)


def starlette_app() -> Starlette:
    """Return one with the middleware inside, as applications add it."""
    app = Starlette(routes=WHO)
    app.add_middleware(UserMiddleware, identify=claimed)
    return app


APPS: dict[str, Callable[[], Any]] = {
    "raises for a lifespan": lambda: UserMiddleware(raising, identify=claimed),
    "ignores a lifespan": lambda: UserMiddleware(ignoring, identify=claimed),
    "heeds a lifespan": lambda: UserMiddleware(heeding, identify=claimed),
    "Starlette inside": lambda: UserMiddleware(Starlette(routes=WHO), identify=claimed),
    "Starlette outside": starlette_app,
    "FastAPI inside": lambda: UserMiddleware(FastAPI(routes=WHO), identify=claimed),
    "two of them": lambda: UserMiddleware(starlette_app(), identify=claimed),
}
every_app = pytest.mark.parametrize("make", APPS.values(), ids=APPS)


@every_app
async def test_open_while_it_serves(make: Callable[[], Any], home: Path) -> None:
    """The store is open before the first request, and closed when the server has ended."""
    with served(make(), lifespan="on") as address:
        assert str(home / "cat.db") in open_below(home)
        assert (await asked(address, "alice")).text == "alice"
    assert open_below(home) == []
    assert await for_user("alice").load("stamp") == "alice"


@every_app
async def test_closed_in_a_loop_that_goes_on(make: Callable[[], Any], home: Path) -> None:
    """It is the server's end that closes it, and whoever needs it later has it again."""
    before = set(threading.enumerate())
    for number in (1, 2):
        async with running(make()) as address:
            assert (await asked(address, "alice")).text == "alice"
            assert open_below(home)
            assert await store.increment("n") == number
        assert open_below(home) == []
        assert {thread for thread in threading.enumerate() if "aiosqlite" in repr(thread)} <= before
    assert await store.load("n") == 2


@contextlib.asynccontextmanager
async def running(app: Any) -> AsyncIterator[Address]:
    """Serve on the test's own event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(HANG):
            while not server.started:  # noqa: ASYNC110  # it tells in no other way
                await asyncio.sleep(0.01)
        yield listener.getsockname()
        server.should_exit = True
        await asyncio.wait_for(serving, HANG)


async def test_the_last_request_is_served(kind: dict[str, str], home: Path) -> None:
    """A request that is under way when the server is told to end stores its value."""
    begun = threading.Event()
    go_on = threading.Event()

    async def slow(request: Request) -> PlainTextResponse:
        begun.set()
        await asyncio.to_thread(go_on.wait, HANG)
        return PlainTextResponse(await user.save("last", "kept"))

    app = UserMiddleware(Starlette(routes=[Route("/", slow)]), identify=claimed)
    with started(app, **kind) as (server, address):
        asking = asyncio.create_task(asked(address, "alice"))
        assert await asyncio.to_thread(begun.wait, HANG)
        server.should_exit = True
        await asyncio.sleep(0.2)  # the server looks for that every 0.1 seconds
        assert open_below(home)
        go_on.set()
        assert (await asking).text == "kept"
    assert open_below(home) == []
    assert await for_user("alice").load("last") == "kept"


async def test_two_servers_in_one_loop() -> None:
    """When one of them ends, an edit that the other has under way goes on."""
    begun = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(request: Request) -> PlainTextResponse:
        async with user.edit("todos", []) as todos:
            begun.set()
            await go_on.wait()
            todos.append("feed the cat")
        return PlainTextResponse("done")

    async with running(
        UserMiddleware(Starlette(routes=[Route("/", slow)]), identify=claimed)
    ) as address:
        async with running(UserMiddleware(heeding, identify=claimed)) as other:
            assert (await asked(other, "bob")).text == "bob"
            asking = asyncio.create_task(asked(address, "alice"))
            await begun.wait()
        go_on.set()
        assert (await asking).text == "done"
    assert await for_user("alice").load("todos") == ["feed the cat"]


async def test_without_a_lifespan(home: Path) -> None:
    """A server that is told to do without opens the store on demand, and leaves nothing."""
    with served(UserMiddleware(heeding, identify=claimed), lifespan="off") as address:
        assert not home.exists()
        assert await asked_by(address, ["alice", None]) == [(200, "alice"), (200, "nobody")]
    assert open_below(home) == []


@every_app
async def test_a_start_without_a_database(
    make: Callable[[], Any], home: Path, log: Callable[[str], str]
) -> None:
    """The server does not start, and its log says once what to do."""
    home.mkdir(0o700)
    (home / "cat.db").write_bytes(b"no database" * 1000)
    with started(make()) as (server, _):
        assert not server.started
    text = log("Application startup failed. Exiting.")
    assert f"NotADatabaseError: {home}/cat.db: this file is not an SQLite database" in text
    assert "Move it away" in text
    assert "Traceback" not in text
    (home / "cat.db").unlink()
    with served(make()) as address:
        assert (await asked(address, "alice")).text == "alice"


@every_app
async def test_a_failed_start_is_told_once(make: Callable[[], Any], home: Path) -> None:
    """Whatever the application makes of it, a server hears one answer to its start."""
    home.write_text("no directory")
    told = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        told.append(message["type"])

    with pytest.raises(NotWritableError):
        await make()({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert told == ["lifespan.startup.failed"]


@pytest.mark.parametrize("framework", ["none", "Starlette"])
def test_exit_of_a_server_without_a_database(framework: str, home: Path, tmp_path: Path) -> None:
    """`uvicorn app:app` ends at once with an exit code that says that it failed."""
    home.mkdir(0o700)
    (home / "cat.db").write_bytes(b"no database" * 1000)
    inner = {
        "none": "async def inner(scope, receive, send): raise ValueError(scope['type'])",
        "Starlette": "from starlette.applications import Starlette; inner = Starlette()",
    }
    (tmp_path / "app.py").write_text(
        f"from cat.asgi import UserMiddleware\n{inner[framework]}\n"
        "app = UserMiddleware(inner, identify=lambda scope: None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    (home / "cat.db").unlink()  # it is not for `home` to check
    assert done.returncode == 3, done.stderr
    assert "NotADatabaseError" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_start_that_fails_for_another_reason(home: Path, log: Callable[[str], str]) -> None:
    """What an application says of its own start is passed on."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await store.save("begun", 1)
        raise LookupError("no such model")
        yield

    app = UserMiddleware(Starlette(routes=WHO, lifespan=lifespan), identify=claimed)
    with started(app) as (server, _):
        assert not server.started
    assert "LookupError: no such model" in log("Application startup failed")
    assert open_below(home) == []


async def test_a_lifespan_that_connects(tmp_path: Path, home: Path) -> None:
    """An application that connects to a home of its own in its lifespan is served from that."""
    own = tmp_path / "own"
    told: list[Any] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with cat.connect(home=own):
            await store.save("begun", 1)
            yield
            told.append(await store.load("begun"))

    app = Starlette(routes=WHO, lifespan=lifespan)
    app.add_middleware(UserMiddleware, identify=claimed)
    with served(app) as address:
        assert await asked_by(address, ["alice", None]) == [(200, "alice"), (200, "nobody")]
    assert told == [1]
    assert open_below(own) == []
    assert ("alice", "stamp", "alice") in rows(own)
    assert not home.exists()


async def test_a_lifespan_that_uses_the_store(home: Path) -> None:
    """The application's own start and end may use the store, and are nobody's."""
    told: list[Any] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        told.append(await store.increment("starts"))
        told.append(await seen())
        yield
        told.append(await store.load("starts"))

    for number in (1, 2):
        app = Starlette(routes=WHO, lifespan=lifespan)
        with served(UserMiddleware(app, identify=claimed)) as address:
            assert (await asked(address, "alice")).text == "alice"
        assert told == [number, "nobody", number]
        told.clear()
    assert open_below(home) == []


async def test_a_server_inside_a_connect(tmp_path: Path, home: Path) -> None:
    """A `connect()` around a server is still open when the server has ended."""
    own = tmp_path / "own"
    async with cat.connect(home=own):
        async with running(UserMiddleware(heeding, identify=claimed)) as address:
            assert (await asked(address, "alice")).text == "alice"
        assert open_below(own)
        assert await for_user("alice").load("stamp") == "alice"
    assert open_below(own) == []
    assert not home.exists()


# --- One inside the other.


async def test_an_app_mounted_in_an_app() -> None:
    """An inner middleware decides inside, be it for nobody, and the outer one outside again."""

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            before = current_user()
            await mounting(scope, receive, send)
            assert current_user() == before == claimed(scope)
        else:
            await mounting(scope, receive, send)

    inner = {
        "nobody": UserMiddleware(Starlette(routes=WHO), identify=lambda scope: None),
        "guest": UserMiddleware(Starlette(routes=WHO), identify=lambda scope: "guest"),
        "same": Starlette(routes=WHO),
    }
    mounting = Starlette(routes=[*(Mount(f"/{name}", app) for name, app in inner.items()), *WHO])
    with served(UserMiddleware(outside, identify=claimed)) as address:
        for path, expected in {
            "/nobody/": ["nobody"] * 3,
            "/guest/": ["guest"] * 3,
            "/same/": ["alice", "bob", "nobody"],
            "/": ["alice", "bob", "nobody"],
        }.items():
            found = await asked_by(address, ["alice", "bob", None], path)
            assert found == [(200, name) for name in expected]
        async with opened(address, "alice", "/guest/socket") as websocket:
            assert await websocket.recv() == "guest"


# --- Litestar.


def litestar_handlers() -> list[Any]:
    """Return handlers of all kinds."""
    from litestar import Response, WebSocket, get, websocket
    from litestar.background_tasks import BackgroundTask as Later
    from litestar.response import Stream

    heard: list[str] = []

    async def hear() -> None:
        heard.append(await seen())

    async def parts() -> AsyncIterator[str]:
        yield await seen()

    @get("/")
    async def plain() -> str:
        return await seen()

    @get("/sync", sync_to_thread=True)
    def sync() -> str:
        return current_user() or "nobody"

    @get("/stream")
    async def stream() -> Stream:
        return Stream(parts())

    @get("/background")
    async def background() -> Response[str]:
        return Response(await seen(), background=Later(hear))

    @get("/heard")
    async def told() -> list[str]:
        return sorted(heard)

    @get("/needs")
    async def needing() -> str:
        return user.id

    @websocket("/socket")
    async def by_socket(socket: WebSocket[Any, Any, Any]) -> None:
        await socket.accept()
        await socket.send_text(await seen())
        await socket.close()

    return [plain, sync, stream, background, told, needing, by_socket]


def litestar_app(**options: Any) -> Any:
    """Return an application that answers 401 where a user is needed."""
    pytest.importorskip("litestar")
    from litestar import Litestar, Response

    def refuse(request: Any, error: Exception) -> Response[str]:
        return Response("Not authenticated", status_code=401)

    return Litestar(
        litestar_handlers(),
        exception_handlers={NoUserError: refuse},
        openapi_config=None,
        logging_config=None,
        **options,
    )


def litestar_inside() -> Any:
    """Return it with the middleware around it."""
    return UserMiddleware(litestar_app(), identify=claimed)


def litestar_outside() -> Any:
    """Return it with the middleware among its own, where Litestar shows it no lifespan."""
    pytest.importorskip("litestar")
    from litestar.middleware import DefineMiddleware

    return litestar_app(middleware=[DefineMiddleware(UserMiddleware, identify=claimed)])


def litestar_binding() -> Any:
    """Return it with a guard that says who calls."""

    def guard(connection: Any, handler: Any) -> None:
        if name := connection.headers.get("x-user"):
            bind_user(name)

    return unidentified(litestar_app(guards=[guard]))


@pytest.mark.parametrize("make", [litestar_inside, litestar_outside, litestar_binding])
async def test_litestar(make: Callable[[], Any], home: Path) -> None:
    """Litestar's handlers, threads, streams, background tasks and websockets have the caller."""
    names = [name or "nobody" for name in SOME]
    with served(make()) as address:
        assert bool(open_below(home)) == (make is not litestar_outside)
        for path in ("/", "/sync", "/stream", "/background"):
            assert await asked_by(address, SOME, path) == [(200, name) for name in names]
        refused = (401, "Not authenticated")
        assert await asked_by(address, ["alice", None], "/needs") == [(200, "alice"), refused]
        async with opened(address, "alice") as one, opened(address) as other:
            assert (await one.recv(), await other.recv()) == ("alice", "nobody")
        async with asyncio.timeout(HANG):
            heard: list[str] = []
            while len(heard) < len(names):
                heard = json.loads((await asked(address, None, "/heard")).text)
        assert heard == sorted(names)
    assert open_below(home) == []


# --- Django.


class Visitor:
    """A user as Django's authentication has them, for whom no database is needed."""

    def __init__(self, number: int) -> None:
        self.pk = self.id = number
        self.is_active = self.is_authenticated = True


class Doorman:
    """A backend of Django's authentication that knows everyone by number."""

    def get_user(self, number: int) -> Visitor:
        """Return the user of a session."""
        return Visitor(number)

    async def aget_user(self, number: int) -> Visitor:
        """Return it, asynchronously."""
        return Visitor(number)


def django_urls() -> types.ModuleType:
    """Return what a Django project has in its urls.py."""
    from asgiref.sync import async_to_sync
    from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    async def plain(request: Any) -> HttpResponse:
        return HttpResponse(await seen())

    def sync(request: Any) -> HttpResponse:
        assert async_to_sync(seen)() == (current_user() or "nobody")
        return HttpResponse(async_to_sync(seen)())

    async def stream(request: Any) -> StreamingHttpResponse:
        async def parts() -> AsyncIterator[str]:
            yield await seen()

        return StreamingHttpResponse(parts())

    def log_in(request: Any, number: int) -> HttpResponse:
        request.session[SESSION_KEY] = str(number)
        request.session[BACKEND_SESSION_KEY] = f"{__name__}.Doorman"
        return HttpResponse("welcome")

    urls = types.ModuleType("urls")
    urls.urlpatterns = [  # type: ignore[attr-defined]
        path("", plain),
        path("sync", sync),
        path("stream", stream),
        path("login/<int:number>", log_in),
    ]
    return urls


def bind_in_thread(get_response: Any) -> Any:
    """Bind in sync code, for which Django takes a thread, whom its authentication found."""

    def middleware(request: Any) -> Any:
        if request.user.is_authenticated:
            bind_user(request.user.pk)
        return get_response(request)

    return middleware


@contextlib.contextmanager
def django_project(binding: str) -> Iterator[Any]:
    """Return the application of a Django project, with no database but the store."""
    django = pytest.importorskip("django")
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.test.utils import override_settings

    if not settings.configured:
        settings.configure(
            SECRET_KEY="of a test",  # noqa: S106  # it signs the cookies of this test
            ALLOWED_HOSTS=["*"],
            INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
            AUTHENTICATION_BACKENDS=[f"{__name__}.Doorman"],
            SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
            LOGGING_CONFIG=None,
        )
        django.setup()
    middleware = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        binding,
    ]
    with override_settings(ROOT_URLCONF=django_urls(), MIDDLEWARE=middleware):
        yield get_asgi_application()


async def logged_in(address: Address, number: int) -> str:
    """Log in, and return the cookie."""
    answer = await asked(address, None, f"/login/{number}")
    return answer.head.partition("set-cookie: sessionid=")[2].partition(";")[0]


@pytest.mark.parametrize("binding", ["howto.bind_current_user", f"{__name__}.bind_in_thread"])
async def test_django(binding: str, howto: dict[str, Any], home: Path) -> None:
    """Django's async and sync views and streams have whom its authentication found."""
    with (
        django_project(binding) as app,
        served(unidentified(app), lifespan="on") as address,
    ):
        assert open_below(home)

        async def ask(number: int | None, path: str) -> str:
            async with Connection.to(address) as connection:
                request = request_of(None, path)
                if number is not None:
                    cookie = f"Cookie: sessionid={cookies[number]}\r\n\r\n"
                    request = request[:-2] + cookie.encode()
                await connection.send(request)
                return (await connection.answer()).text

        cookies = {number: await logged_in(address, number) for number in (1, 2, 3)}
        whom = [1, 2, None, 3, None, 1, 2, None]
        for path in ("/", "/sync", "/stream"):
            found = await asyncio.gather(*(ask(number, path) for number in whom))
            assert found == [str(number or "nobody") for number in whom]
    assert open_below(home) == []


# --- The page that tells how.

PAGE = Path(__file__).parent.parent / "docs" / "howto-hosts.md"
SECTION = re.compile(r"^## (.+)\n((?:(?!## ).*\n)*)", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def howto(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the application of each section of the how-to page, which is a module now."""
    pytest.importorskip("django")
    pytest.importorskip("litestar")
    module = types.ModuleType("howto")
    monkeypatch.setitem(sys.modules, "howto", module)
    apps = {}
    for title, text in SECTION.findall(PAGE.read_text(encoding="utf-8")):
        for code in BLOCK.findall(text):
            if not re.search(r"^(    )?await", code, re.MULTILINE):
                exec(code, vars(module))  # noqa: S102  # the docs are this project's own
        apps[title] = vars(module)["app"]
    return apps


@pytest.mark.parametrize(
    ("section", "refused", "told"),
    [
        ("FastAPI, by a token", {401}, "[]"),
        ("FastAPI, by a dependency", {401, 403}, "[]"),
        ("Starlette, by its authentication", {401}, "[]"),
        ("Litestar", {401}, "[]"),
        ("Plain ASGI", {500}, "visit 1"),
    ],
)
async def test_what_the_page_shows(
    section: str, refused: set[int], told: str, howto: dict[str, Any], log: Callable[[str], str]
) -> None:
    """The applications of the how-to page serve those who have the token, and nobody else."""
    with served(howto[section]) as address:
        assert (await asked(address, None, "/todos")).status in refused
        async with Connection.to(address) as connection:
            token = b"Authorization: Bearer t0ken\r\n\r\n"
            await connection.send(request_of(None, "/todos")[:-2] + token)
            assert (await connection.answer()).text == told
        if 500 in refused:
            log("NoUserError")
