"""The current user, and the open repository of each event loop.

The only mutable module state there is, but for the loop of `blocking`. One
repository belongs to one event loop: it is made when the loop first needs it and
closed with the loop, with no code of the user's.
"""

import asyncio
import os
from asyncio import get_running_loop
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from pathlib import Path
from typing import TYPE_CHECKING

from cat import backends
from cat.errors import (
    AlreadyBoundError,
    AlreadyConnectedError,
    MissingMiddlewareError,
    NoUserError,
)
from cat.repository import Repository
from cat.scope import owner_of
from cat.settings import Settings, read

if TYPE_CHECKING:
    from uuid import UUID


class _Bound:
    """What an event loop uses.

    `users` counts the `connect()` blocks it is open for, and one for the loop
    itself if it was opened on demand; the last to leave closes it. That of the
    loop leaves with the last of its `servers`.
    """

    __slots__ = ("lifetime", "on_demand", "repository", "servers", "settings", "users")

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self.repository = repository
        self.settings = settings
        self.users = 0
        self.servers = 0
        self.on_demand = False
        self.lifetime = _lifetime(repository)


class _Request:
    """The user of one request, who may become known in the course of it, in any thread."""

    __slots__ = ("owner",)

    def __init__(self) -> None:
        self.owner: str | None = None


_PATIENCE = 10.0  # seconds

_user: ContextVar[str | _Request | None] = ContextVar("cat_user", default=None)
_bound: dict[asyncio.AbstractEventLoop, _Bound] = {}
# Of event loops that were closed before they could close these. Collected, they
# would complain of aiosqlite connections (to nothing) that nobody can close now.
_abandoned: list[Repository] = []
# Closed while this process forks.
_held: list[Repository] = []
# No longer bound, and on their way to be closed.
_closing: set[Repository] = set()
# Inherited with locks that SQLite takes for this process's own. They are seen to
# when the store is used: a child that does not use it may find SQLite's mutexes
# held by threads that it does not have, and would wait for ever.
_to_forget: list[Repository] = []
# What a forked child inherited. Collecting it would wake the parent's event
# loop through a pipe that both have, so a list that nobody clears keeps it.
_inherited: list[object] = []


class as_user:  # noqa: N801  # read as a phrase: with as_user("alice"):
    """Make `user_id` the current user inside a `with` block, and restore the one before at its end.

    Takes a `str`, an `int` or a `UUID`, of which the text counts, or `None`
    to bind nobody. Tasks started inside keep the user, as context variables
    do; threads started inside have none, but for `asyncio.to_thread`.

    Raises `InvalidUserError` for anything else.

    ```python
    from cat import as_user, user

    with as_user("alice"):
        await user.save("theme", "dark")
    ```
    """

    def __init__(self, user_id: "str | int | UUID | None") -> None:
        self._owner = None if user_id is None else owner_of(user_id)
        self._tokens: list[Token[str | _Request | None]] = []

    def __enter__(self) -> None:
        self._tokens.append(_user.set(self._owner))

    def __exit__(self, *_: object) -> None:
        _user.reset(self._tokens.pop())


def current_user() -> str | None:
    """Return the id of the current user as text, or `None` where nobody is bound.

    ```python
    from cat import as_user, current_user

    with as_user(42):
        assert current_user() == "42"
    with as_user(None):
        assert current_user() is None
    ```
    """
    bound = _user.get()
    return bound.owner if isinstance(bound, _Request) else bound


def bound_user() -> str:
    """Return the id of the current user, or raise `NoUserError`."""
    bound = _user.get()
    if type(bound) is str:
        return bound
    owner = current_user()
    if owner is None:
        raise NoUserError
    return owner


@contextmanager
def request() -> Iterator[None]:
    """Let a request begin, with nobody bound until `bind` says who."""
    token = _user.set(_Request())
    try:
        yield
    finally:
        _user.reset(token)


def bind(user_id: "str | int | UUID") -> None:
    """Say who the current request's user is, once, from whatever task or thread serves it.

    Raises `MissingMiddlewareError`, `InvalidUserError` and `AlreadyBoundError`.
    """
    bound = _user.get()
    if not isinstance(bound, _Request):
        raise MissingMiddlewareError(
            "bind_user() works inside a request, and there is none here: add cat.asgi."
            "UserMiddleware to the application, or use 'with cat.as_user(id):'"
        )
    owner = owner_of(user_id)
    if bound.owner not in (None, owner):
        raise AlreadyBoundError(bound.owner, owner)
    bound.owner = owner


def repository() -> Repository:
    """Return the repository of the running event loop, made from the environment if need be."""
    loop = get_running_loop()
    bound = _bound.get(loop)
    if bound is None:
        bound = _bind(loop, read())
        bound.on_demand = True
        bound.users = 1
    return bound.repository


async def enter() -> None:
    """Open the repository of the running event loop for a server, until it calls `leave`."""
    repository()
    bound = _bound[get_running_loop()]
    await bound.repository.open()
    bound.servers += 1


async def leave() -> None:
    """Close what was opened on demand, when the last server of the running event loop leaves."""
    bound = _bound.get(get_running_loop())
    if bound is not None:
        bound.servers -= 1
        if bound.servers <= 0:
            await close()


async def close() -> None:
    """Close what the running event loop opened on demand, unless a `connect()` still uses it."""
    loop = get_running_loop()
    bound = _bound.get(loop)
    if bound is not None and bound.on_demand and bound.users == 1:
        await _unbind(loop, bound)


async def end() -> None:
    """Close what the running event loop has open, whoever uses it, as its process ends."""
    bound = _bound.get(get_running_loop())
    if bound is not None:
        await bound.repository.close()


def close_idle() -> None:
    """Close what event loops opened on demand, from outside of them: all begin anew.

    Raises `RuntimeError` inside a running event loop, and if a `connect()` is open.
    """
    try:
        get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("an event loop is running here, and cannot be waited for; end it first")
    for loop in list(_bound):
        if loop.is_closed():
            continue  # seen to below
        if loop.is_running():
            _close_in_its_thread(loop)
        else:
            loop.run_until_complete(close())
        if loop in _bound and not loop.is_closed():
            raise RuntimeError("a cat.connect() is open on an event loop; leave it first")
    _close_what_was_left()


def _close_in_its_thread(loop: asyncio.AbstractEventLoop) -> None:
    """Close what a loop that another thread runs opened, as that of `cat.blocking`."""
    closing = asyncio.run_coroutine_threadsafe(close(), loop)
    try:
        closing.result(_PATIENCE)
    except TimeoutError:
        closing.cancel()
        if loop.is_running():
            raise RuntimeError(
                f"an event loop that uses the store does not answer for {_PATIENCE:g} seconds; "
                "end it first"
            ) from None


def home() -> Path:
    """Return the home directory: of the running event loop if it has one, else the environment's.

    Nothing is made or opened.
    """
    try:
        bound = _bound.get(get_running_loop())
    except RuntimeError:  # no loop is running: a plain script may use folders too
        bound = None
    return bound.settings.home if bound else read().home


class connect:  # noqa: N801  # read as a phrase: async with connect(home=...):
    """Bind `store` and `user` to one database and home, for the running event loop.

    For hosts and tests that want control; plugins need no set-up at all.
    `home` is the directory that holds `cat.db` and `files/`; `url` names
    another database, as `sqlite:///relative/path.db` or
    `sqlite:////absolute/path.db`. What is not given comes from the
    environment. The database is open when the block begins and closed when
    it ends; tasks that outlive the block find the environment's.

    Raises `AlreadyConnectedError` on a loop that uses another database or
    home, `InvalidSettingError`, and whatever opening may raise:
    `DatabaseUnavailableError` and its kinds, `MigrationError`.

    ```python
    import tempfile

    import cat
    from cat import store

    with tempfile.TemporaryDirectory() as directory:
        async with cat.connect(home=directory):
            await store.save("theme", "dark")
    ```
    """

    def __init__(self, *, url: str | None = None, home: str | Path | None = None) -> None:
        self._given = {} if url is None else {"CAT_URL": url}
        if home is not None:
            self._given["CAT_HOME"] = str(home)
        self._bound: _Bound | None = None

    async def __aenter__(self) -> None:
        loop = get_running_loop()
        settings = read(self._given)
        bound = _bound.get(loop)
        if bound is None:
            bound = _bind(loop, settings)
        elif (bound.settings.url, bound.settings.home) != (settings.url, settings.home):
            raise AlreadyConnectedError
        bound.users += 1
        self._bound = bound
        try:
            await bound.repository.open()
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        bound, self._bound = self._bound, None
        if bound is not None:
            bound.users -= 1
            if bound.users == 0:
                await _unbind(get_running_loop(), bound)


def _bind(loop: asyncio.AbstractEventLoop, settings: Settings) -> _Bound:
    while _to_forget:
        _to_forget.pop().forget()
    _close_what_was_left()
    made = Repository(
        backends.connect(settings),
        max_value_bytes=settings.max_value_bytes,
        max_key_bytes=settings.max_key_bytes,
        timeout=settings.timeout,
    )
    bound = _bound[loop] = _Bound(made, settings)
    # The first step of an asynchronous generator is what makes it known to the
    # loop, whose shutdown_asyncgens() then closes it. This one suspends at its
    # yield alone, so the step can be taken here, without an await.
    with suppress(StopIteration):
        bound.lifetime.asend(None).send(None)
    return bound


async def _lifetime(repository: Repository) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        # A loop that is shutting down keeps it, closed: what comes later raises
        # instead of opening another that nobody would close.
        await repository.close()


async def _unbind(loop: asyncio.AbstractEventLoop, bound: _Bound) -> None:
    """Close what a loop uses; it may bind another meanwhile."""
    _closing.add(bound.repository)  # first: another thread may fork
    if _bound.get(loop) is bound:
        del _bound[loop]
    try:
        await bound.lifetime.aclose()
    finally:
        _closing.discard(bound.repository)


def _close_what_was_left() -> None:
    """Close the repositories of event loops that were closed without a chance to do so."""
    for loop in list(_bound):
        if loop.is_closed():
            left = _bound.pop(loop, None)
            # If it is gone, another thread is doing the same.
            if left is not None and left.repository.abandon():
                _abandoned.append(left.repository)


def _before_fork() -> None:
    """Close every database: SQLite in the child would take the parent's locks for its own.

    Seen: the child's commits held no lock, and the parent's close deleted the
    write-ahead log under them.
    """
    bound = [bound.repository for bound in list(_bound.values())]
    for repository in {*bound, *_closing}:
        repository.hold()
        _held.append(repository)


def _after_fork() -> None:
    while _held:
        _held.pop().release()


def _after_fork_in_child() -> None:
    """Begin anew; what was inherited has threads that are not here."""
    _inherited.append((dict(_bound), list(_held)))
    _to_forget.extend(_held)
    _bound.clear()
    _held.clear()
    _closing.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork,
        after_in_child=_after_fork_in_child,
    )
