"""The same stores for code that cannot await: commands, scripts, `python -c`.

```python
from cat.blocking import store

store.save("theme", {"color": "dark"})
assert store.load("theme") == {"color": "dark"}
```

Every verb is the one of `cat.Store`, run on an event loop of its own in one
thread, and returns when it is done. Inside a running event loop, where waiting
would stop everything else, it raises and says to await instead.
"""

import asyncio
import atexit
import builtins
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import cat.ambient as awaited
from cat import context
from cat.context import as_user, current_user
from cat.entry import Erased, Export, Info
from cat.errors import WouldBlockError
from cat.line import caller
from cat.repository import MISSING

if TYPE_CHECKING:
    from uuid import UUID

__all__ = [
    "Store",
    "User",
    "as_user",
    "connect",
    "current_user",
    "erase_namespace",
    "erase_user",
    "export_user",
    "for_user",
    "store",
    "user",
    "users",
]

T = TypeVar("T")
D = TypeVar("D")

_guard = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
# Of the parent of this process. Collecting it would complain that it is open.
_inherited: list[asyncio.AbstractEventLoop] = []


class Store:
    """`cat.Store` with verbs that block: each is documented there."""

    __slots__ = ("_store",)

    _store: awaited.Store

    def __init__(self, store: awaited.Store) -> None:
        object.__setattr__(self, "_store", store)

    def save(self, key: str, value: T, *, expires_in: float | timedelta | None = None) -> T:
        """See `cat.Store.save`."""
        saved: T = _run(self._store.save, key, value, expires_in=expires_in)
        return saved

    def load(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002  # as in `cat.Store`
        """See `cat.Store.load`."""
        return _run(self._store.load, key, default, type=type)

    def exists(self, key: str) -> bool:
        """See `cat.Store.exists`."""
        return _run(self._store.exists, key)

    def delete(self, key: str) -> bool:
        """See `cat.Store.delete`."""
        return _run(self._store.delete, key)

    def pop(self, key: str, default: Any = None) -> Any:
        """See `cat.Store.pop`."""
        return _run(self._store.pop, key, default)

    def create(
        self, key: str, value: object, *, expires_in: float | timedelta | None = None
    ) -> bool:
        """See `cat.Store.create`."""
        return _run(self._store.create, key, value, expires_in=expires_in)

    def load_or_create(
        self, key: str, factory: Callable[[], Any], *, expires_in: float | timedelta | None = None
    ) -> Any:
        """See `cat.Store.load_or_create`."""
        return _run(self._store.load_or_create, key, factory, expires_in=expires_in)

    def expire(self, key: str, expires_in: float | timedelta | None) -> bool:
        """See `cat.Store.expire`."""
        return _run(self._store.expire, key, expires_in)

    def info(self, key: str) -> Info | None:
        """See `cat.Store.info`."""
        return _run(self._store.info, key)

    def modify(self, key: str, fn: Callable[[Any], T], default: Any = None) -> T:
        """See `cat.Store.modify`."""
        new: T = _run(self._store.modify, key, fn, default)
        return new

    def increment(
        self, key: str, by: int = 1, *, expires_in: float | timedelta | None = None
    ) -> int:
        """See `cat.Store.increment`."""
        return _run(self._store.increment, key, by, expires_in=expires_in)

    def load_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """See `cat.Store.load_many`."""
        return _run(self._store.load_many, keys)

    def save_many(
        self, mapping: Mapping[str, object], *, expires_in: float | timedelta | None = None
    ) -> None:
        """See `cat.Store.save_many`."""
        return _run(self._store.save_many, mapping, expires_in=expires_in)

    def delete_many(self, keys: Iterable[str]) -> int:
        """See `cat.Store.delete_many`."""
        return _run(self._store.delete_many, keys)

    def keys(
        self, prefix: str = "", *, after: str | None = None, limit: int | None = None
    ) -> list[str]:
        """See `cat.Store.keys`."""
        return _run(self._store.keys, prefix, after=after, limit=limit)

    def items(self, prefix: str = "") -> dict[str, Any]:
        """See `cat.Store.items`."""
        return _run(self._store.items, prefix)

    def count(self, prefix: str = "") -> int:
        """See `cat.Store.count`."""
        return _run(self._store.count, prefix)

    def clear(self, prefix: str) -> int:
        """See `cat.Store.clear`."""
        return _run(self._store.clear, prefix)

    def clear_all(self) -> int:
        """See `cat.Store.clear_all`."""
        return _run(self._store.clear_all)

    def namespaces(self) -> list[str]:
        """See `cat.Store.namespaces`."""
        return _run(self._store.namespaces)

    @contextmanager
    def edit(self, key: str, default: Any = MISSING, *, type: Any = None) -> Iterator[Any]:  # noqa: A002  # as in `cat.Store`
        """See `cat.Store.edit`."""
        editing = _Editing(self._store, key, default, type)
        # The value is not kept here: nothing but the block may refer to it.
        try:
            yield _run(editing.begin)
        except BaseException as error:
            if not _run(editing.end, builtins.type(error), error, error.__traceback__):
                raise
        else:
            _run(editing.end, None, None, None)

    def scan(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """See `cat.Store.scan`."""
        pairs = _run(_called, self._store.scan, prefix)
        return _stepped(pairs)

    def namespace(self, name: str) -> Self:
        """See `cat.Store.namespace`."""
        return type(self)(self._store.namespace(name))

    @property
    def folder(self) -> Path:
        """See `cat.Store.folder`."""
        place: Path = _run(_called, lambda: self._store.folder)
        return place

    def __setattr__(self, name: str, value: object) -> NoReturn:
        self._store.__setattr__(name, value)

    def __delattr__(self, name: str) -> NoReturn:
        self._store.__delattr__(name)

    def __repr__(self) -> str:
        return repr(self._store).replace("<cat.", "<cat.blocking.", 1)


class User(Store):
    """`cat.User` with verbs that block."""

    __slots__ = ()

    @property
    def id(self) -> str:
        """See `cat.User.id`."""
        return context.bound_user()


store = Store(awaited.store)
user = User(awaited.user)


def for_user(user_id: "str | int | UUID") -> Store:
    """See `cat.for_user`."""
    return Store(awaited.for_user(user_id))


def users() -> list[str]:
    """See `cat.users`."""
    return _run(awaited.users)


def export_user(user_id: "str | int | UUID") -> Export:
    """See `cat.export_user`."""
    return _run(awaited.export_user, user_id)


def erase_user(user_id: "str | int | UUID") -> Erased:
    """See `cat.erase_user`."""
    return _run(awaited.erase_user, user_id)


def erase_namespace(name: str) -> Erased:
    """See `cat.erase_namespace`."""
    return _run(awaited.erase_namespace, name)


class connect:  # noqa: N801  # read as a phrase: with connect(home=...):
    """See `cat.connect`: binds the stores of this module, in every thread.

    ```python
    import tempfile

    from cat.blocking import connect, store

    with tempfile.TemporaryDirectory() as directory, connect(home=directory):
        store.save("theme", "dark")
    ```
    """

    def __init__(self, *, url: str | None = None, home: str | Path | None = None) -> None:
        self._connection = context.connect(url=url, home=home)

    def __enter__(self) -> None:
        _run(self._connection.__aenter__)

    def __exit__(self, *_: object) -> None:
        _run(self._connection.__aexit__)


class _Editing:
    """An edit whose beginning and end are run one by one."""

    def __init__(self, *wanted: Any) -> None:
        self._wanted = wanted

    async def begin(self) -> Any:
        store, key, default, kind = self._wanted
        self._edit = store.edit(key, default, type=kind)
        return await self._edit.__aenter__()

    async def end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        ended: bool | None = await self._edit.__aexit__(kind, error, traceback)
        return ended


def _refuse_to_block() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise WouldBlockError


async def _called(function: Callable[..., T], *given: Any) -> T:
    """Call a plain function where there is an event loop."""
    return function(*given)


def _stepped(pairs: AsyncIterator[T]) -> Iterator[T]:
    end: Any = object()
    while (pair := _run(_next, pairs, end)) is not end:
        yield pair


async def _next(pairs: AsyncIterator[T], end: T) -> T:
    return await anext(pairs, end)


def _run(function: Callable[..., Coroutine[Any, Any, T]], *given: Any, **named: Any) -> T:
    """Run a coroutine function on the private loop, in the context of this thread, and wait."""
    _refuse_to_block()
    thread = threading.current_thread()

    async def run() -> T:
        caller.set(thread)
        return await function(*given, **named)

    future = asyncio.run_coroutine_threadsafe(run(), _private_loop())
    try:
        return future.result()
    finally:
        future.cancel()  # a KeyboardInterrupt ended the waiting


def _private_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this module, started if need be."""
    global _loop  # noqa: PLW0603
    with _guard:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_loop.run_forever, name="cat.blocking", daemon=True)
            thread.start()
            atexit.register(_close, _loop, thread)
        return _loop


def _close(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Close what is open, at the end of the process."""
    asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def _forget() -> None:
    """Begin anew in a forked child, where the thread of the loop is not."""
    global _loop, _guard  # noqa: PLW0603
    if _loop is not None:
        _inherited.append(_loop)
        atexit.unregister(_close)
    _loop = None
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
