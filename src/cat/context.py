"""The current user, and the open repository of each event loop.

The only mutable module state there is. One repository belongs to one event
loop: it is made when the loop first needs it and closed with the loop, with no
code of the user's.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cat import backends
from cat.errors import AlreadyConnectedError, NoUserError
from cat.repository import Repository
from cat.scope import owner_of
from cat.settings import Settings, read

if TYPE_CHECKING:
    from uuid import UUID


class _Bound(NamedTuple):
    """What an event loop uses; `lifetime` closes it when the loop ends."""

    repository: Repository
    settings: Settings
    lifetime: AsyncGenerator[None, None]


_user: ContextVar[str | None] = ContextVar("cat_user", default=None)
_bound: dict[asyncio.AbstractEventLoop, _Bound] = {}


@contextmanager
def as_user(user_id: "str | int | UUID | None") -> Iterator[None]:
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
    token = _user.set(None if user_id is None else owner_of(user_id))
    try:
        yield
    finally:
        _user.reset(token)


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
    return _user.get()


def bound_user() -> str:
    """Return the id of the current user, or raise `NoUserError`."""
    owner = _user.get()
    if owner is None:
        raise NoUserError
    return owner


def repository() -> Repository:
    """Return the repository of the running event loop, made from the environment if need be."""
    loop = asyncio.get_running_loop()
    bound = _bound.get(loop) or _bind(loop, read())
    return bound.repository


def home() -> Path:
    """Return the home directory: of the running event loop if it has one, else the environment's.

    Nothing is made or opened.
    """
    try:
        bound = _bound.get(asyncio.get_running_loop())
    except RuntimeError:  # no loop is running: a plain script may use folders too
        bound = None
    return bound.settings.home if bound else read().home


@asynccontextmanager
async def connect(*, url: str | None = None, home: str | Path | None = None) -> AsyncIterator[None]:
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
    loop = asyncio.get_running_loop()
    given = {"CAT_URL": url, "CAT_HOME": None if home is None else str(home)}
    settings = read({name: text for name, text in given.items() if text is not None})
    bound = _bound.get(loop)
    if bound is not None:
        if bound.settings != settings:
            raise AlreadyConnectedError
        await bound.repository.open()
        yield
        return
    bound = _bind(loop, settings)
    try:
        await bound.repository.open()
        yield
    finally:
        await bound.lifetime.aclose()


def _bind(loop: asyncio.AbstractEventLoop, settings: Settings) -> _Bound:
    backend = backends.connect(settings)
    made = Repository(
        backend,
        max_value_bytes=settings.max_value_bytes,
        max_key_bytes=settings.max_key_bytes,
    )
    bound = _bound[loop] = _Bound(made, settings, _lifetime(loop, made))
    # The first step of an asynchronous generator is what makes it known to the
    # loop, whose shutdown_asyncgens() then closes it. This one suspends at its
    # yield alone, so the step can be taken here, without an await.
    with suppress(StopIteration):
        bound.lifetime.asend(None).send(None)
    return bound


async def _lifetime(
    loop: asyncio.AbstractEventLoop, bound: Repository
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        del _bound[loop]
        await bound.close()
