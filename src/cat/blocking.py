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
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Never, NoReturn, Self, TypeVar, overload

import cat.ambient as awaited
from cat import context
from cat.ambient import DictT, ListT
from cat.context import as_user, current_user
from cat.entry import Erased, Export, Info
from cat.errors import ForkedEditError, WouldBlockError, shown
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

# Seconds of one trip of a scan to the loop, of waiting for it without a look
# around, and of closing at the end of the process.
_SLICE = 0.001
_PATIENCE = 0.5
_FAREWELL = 5.0

_guard = threading.RLock()  # a signal handler may use a store too
_loop: asyncio.AbstractEventLoop | None = None
# The thread in which the process ends, once it does.
_ending: threading.Thread | None = None
# Whose blocks this process is inside, the outermost first.
_connected: "list[connect]" = []
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

    @overload
    def load(self, key: str, default: Any = None) -> Any: ...
    @overload
    def load(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload
    def load(self, key: str, default: list[Never], *, type: type[ListT]) -> ListT: ...
    @overload
    def load(self, key: str, default: dict[Never, Never], *, type: type[DictT]) -> DictT: ...
    @overload
    def load(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    @overload
    def load(self, key: str, default: Any = None, *, type: Any) -> Any: ...

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

    @overload
    def edit(self, key: str, default: Any = ...) -> AbstractContextManager[Any]: ...
    @overload
    def edit(self, key: str, *, type: type[T]) -> AbstractContextManager[T]: ...
    @overload
    def edit(
        self, key: str, default: list[Never], *, type: type[ListT]
    ) -> AbstractContextManager[ListT]: ...
    @overload
    def edit(
        self, key: str, default: dict[Never, Never], *, type: type[DictT]
    ) -> AbstractContextManager[DictT]: ...
    @overload
    def edit(self, key: str, default: D, *, type: type[T]) -> AbstractContextManager[T | D]: ...
    @overload
    def edit(self, key: str, default: Any = ..., *, type: Any) -> AbstractContextManager[Any]: ...

    def edit(
        self,
        key: str,
        default: Any = MISSING,
        *,
        type: Any = None,  # noqa: A002  # as in `cat.Store`
    ) -> AbstractContextManager[Any]:
        """See `cat.Store.edit`."""
        return _Entered(_run(_called, self._store.edit, key, default, type=type))

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
        raise AttributeError(
            f"{self!r} has no writable attributes, as all code shares it; keep a value with "
            f"'….save({shown(name)}, …)'"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self!r} has no attributes to delete; use '….delete(…)'")

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
        self._given: dict[str, Any] = {"url": url, "home": home}

    def __enter__(self) -> None:
        self.enter()
        _connected.append(self)

    def __exit__(self, *_: object) -> None:
        _connected.remove(self)
        if self._connection.is_here:
            self._connection.__exit__(None, None, None)

    def enter(self) -> None:
        """Bind the private loop there is now."""
        self._connection = _Entered(context.connect(**self._given))
        self._connection.__enter__()


class _Entered(AbstractContextManager[T], Generic[T]):
    """An asynchronous context manager that is entered and left on the private loop."""

    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._manager = manager
        self._entering: asyncio.Task[Any] | None = None
        self._inside = False
        self._on: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> T:
        _refuse_to_block()
        # The value is not kept here: nothing but an edit's block may refer to it.
        try:
            return _run(self._enter)
        except BaseException as error:
            _Call(self._undo, error).result()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        _rest_if_the_process_ends()
        if self.is_here:
            # Not cancelled if this thread is interrupted: it would stay entered.
            return _Call(self._manager.__aexit__, kind, error, traceback).result()
        if kind is None:
            raise ForkedEditError
        return None

    @property
    def is_here(self) -> bool:
        """Whether it was entered in this process, which does not end yet."""
        return self._on is _loop

    async def _enter(self) -> T:
        self._inside, self._entering = False, asyncio.current_task()
        value = await self._manager.__aenter__()
        self._on = asyncio.get_running_loop()
        self._inside, self._entering = True, None  # a task keeps its result
        return value

    async def _undo(self, error: BaseException) -> None:
        """Leave it, if the thread was interrupted just when it was entered."""
        if self._entering is not None:
            self._entering.cancel()
            await asyncio.gather(self._entering, return_exceptions=True)
        if self._inside:
            await self._manager.__aexit__(type(error), error, error.__traceback__)


async def _called(function: Callable[..., T], *given: Any, **named: Any) -> T:
    """Call a plain function where there is an event loop."""
    return function(*given, **named)


def _stepped(pairs: AsyncIterator[T]) -> Iterator[T]:
    end = None
    while end is None:
        some, end = _run(_some, pairs)
        yield from some
    if not isinstance(end, StopAsyncIteration):
        raise end


async def _some(pairs: AsyncIterator[T]) -> tuple[list[T], Exception | None]:
    """Return what comes within a moment, as each trip to the loop costs more than a pair does."""
    some: list[T] = []
    until = time.monotonic() + _SLICE
    try:
        while not some or time.monotonic() < until:
            some.append(await anext(pairs))
    except Exception as end:  # noqa: BLE001  # raised after what came before it
        return some, end
    return some, None


def _run(function: Callable[..., Coroutine[Any, Any, T]], *given: Any, **named: Any) -> T:
    """Run a coroutine function on the private loop, in the context of this thread, and wait."""
    _refuse_to_block()
    _rest_if_the_process_ends()
    call = _Call(function, *given, **named)
    try:
        return call.result()
    except BaseException:
        call.cancel()  # a KeyboardInterrupt ended the waiting
        _rest_if_the_process_ends()
        raise
    finally:
        del call  # its exception refers to this frame


def _refuse_to_block() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise WouldBlockError


def _rest_if_the_process_ends() -> None:
    """Let a daemon thread wait for the end instead of complaining that all is closed."""
    if _ending not in (None, threading.current_thread()):
        threading.Event().wait()


class _Call(Generic[T]):
    """A coroutine function that is run on the private loop, in the context of this thread.

    Its end is told by a plain lock. A signal handler may use a store in the
    middle of another wait, and there the future of a thread pool is locked, which
    the loop's thread would wait for.
    """

    def __init__(
        self, function: Callable[..., Coroutine[Any, Any, T]], *given: Any, **named: Any
    ) -> None:
        self._loop = _private_loop()
        self._going_on = threading.Lock()
        self._going_on.acquire()
        thread = threading.current_thread()

        async def run() -> T:
            caller.set(thread)
            return await function(*given, **named)

        self._loop.call_soon_threadsafe(self._start, run)

    def result(self) -> T:
        # Python notices a signal that comes right before a wait at the end of it.
        while not self._going_on.acquire(timeout=_PATIENCE):
            pass
        return self._task.result()

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _start(self, run: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._task = self._loop.create_task(run())
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # seen, should the thread have been interrupted
        self._going_on.release()


def _private_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this module, started if need be."""
    global _loop  # noqa: PLW0603
    with _guard:
        if _loop is None:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_turn, args=[loop], name="cat.blocking", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # at the end of the process
                loop.close()
                raise
            _loop = loop
            try:
                for one in _connected:  # in a child that was forked inside them
                    one.enter()
            except BaseException:
                _loop = None
                raise
        return _loop


def _turn(loop: asyncio.AbstractEventLoop) -> NoReturn:
    while True:
        # A function given to a verb may raise what ends a loop: it is its caller's.
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


def _end() -> None:
    """Close what is open, at the end of the process, or as much of it as takes seconds.

    The loop goes on: daemon threads may still use it, and its thread is one.
    """
    global _loop, _ending  # noqa: PLW0603
    _ending = threading.current_thread()
    with _guard:
        loop, _loop = _loop, None  # what still comes, from another exit handler, begins anew
    if loop is not None:
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(context.end(), loop).result(_FAREWELL)


def _forget() -> None:
    """Begin anew in a forked child, where the thread of the loop is not."""
    global _guard, _loop, _ending
    if _loop is not None:
        _inherited.append(_loop)
    _guard, _loop, _ending = threading.RLock(), None, None


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
