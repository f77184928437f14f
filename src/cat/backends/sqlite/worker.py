"""One SQLite connection, used by functions that run on aiosqlite's thread.

A transaction of several statements that awaits between them can be left open
by a cancellation. Here a whole transaction is one function, which aiosqlite
runs in one hop, through a function of SQL that calls it: its public API.
"""

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import aiosqlite

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]

CALL = "SELECT cat_call()"


class _Call(NamedTuple):
    function: Callable[[], Any]
    outcome: list[Any]  # the result and the exception, once it has run


class Worker:
    """A connection and its thread, for the running event loop; it begins to connect when made.

    `connect` returns the connection, `raw`; it runs on the thread, like every
    function that is submitted, and may block. `failure` is what it raised.
    """

    raw: sqlite3.Connection

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self.failure: BaseException | None = None
        self._connect = connect
        self._calls: deque[_Call] = deque()
        self._thread: threading.Thread | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._aio = _daemon(self._connected)
        drive(self._aio, self._begun)

    async def opened(self) -> None:
        """Wait until the connection is there, or raise what went wrong."""
        await asyncio.shield(self._opened)
        if self.failure is not None:
            raise self.failure

    def submit(self, function: Callable[[], Any], done: Done) -> None:
        """Run `function` after those before it, and call `done(result, exception)` on the loop.

        Nothing can cancel it: it is run to its end, and never half.
        """
        call = _Call(function, [])
        self._calls.append(call)

        def ran(_: object, error: BaseException | None) -> None:
            done(*call.outcome) if call.outcome else done(None, error)

        drive(self._aio.execute_fetchall(CALL), ran)

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` and return its result; a cancelled caller leaves it to run to its end."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.submit(function, lambda result, error: settle(future, result, error))
        return await future

    async def close(self) -> None:
        """Close the connection after all that was submitted, and end the thread."""
        await self._opened
        if self.failure is None:
            await self._aio.close()

    def abandon(self) -> bool:
        """Close from another event loop, for one that was closed under it; say whether it is done.

        A function that was running then ends first, and the thread with it, as
        aiosqlite cannot deliver to a closed loop; the connection is left to us.
        """
        self._aio.stop()
        if self._thread is not None:
            self._thread.join(0.5)
            if self._thread.is_alive():
                return False
            self.raw.close()
        return True

    def _begun(self, _: object, error: BaseException | None) -> None:
        self.failure = self.failure or error
        if self.failure is None:
            settle(self._opened, None, None)
        else:  # nothing of value is open; wait for the thread to end all the same
            drive(self._aio.close(), lambda _, __: settle(self._opened, None, None))

    def _connected(self) -> sqlite3.Connection:
        self._thread = threading.current_thread()
        try:
            self.raw = self._connect()
        except BaseException as error:  # noqa: BLE001  # raised to the caller by opened()
            # aiosqlite leaves its thread to itself when this raises, with
            # nobody to wait for its end; so it gets something to close.
            self.failure = error
            self.raw = sqlite3.connect(":memory:", check_same_thread=False)
        self.raw.create_function("cat_call", 0, self._run_next)
        return self.raw

    def _run_next(self) -> None:
        call = self._calls.popleft()
        try:
            call.outcome[:] = (call.function(), None)
        except BaseException as error:  # noqa: BLE001  # given to the caller by submit()
            call.outcome[:] = (None, error)


def drive(awaitable: Awaitable[Any], done: Done) -> None:
    """Run an awaitable to its end without a task, and call `done(result, exception)`.

    A task could be cancelled, and `asyncio.run` cancels every one; what is on
    its way to the database must go on and be waited for.
    """
    steps = awaitable.__await__()

    def step(_: object = None) -> None:
        try:
            waited_for = next(steps)
        except StopIteration as end:
            done(end.value, None)
        except BaseException as error:  # noqa: BLE001  # given to the caller
            done(None, error)
        else:
            waited_for.add_done_callback(step)

    step()


def settle(future: "asyncio.Future[T]", result: T, error: BaseException | None) -> None:
    """Give a waiting caller its answer, unless it was cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _daemon(connector: Callable[[], sqlite3.Connection]) -> aiosqlite.Connection:
    """Return a connection, not yet open, whose thread does not keep the process alive.

    aiosqlite's thread is not a daemon, so a process that never closes would
    never exit. A thread takes this flag from the one that makes it.
    """
    made: list[aiosqlite.Connection] = []
    maker = threading.Thread(
        target=lambda: made.append(aiosqlite.Connection(connector, iter_chunk_size=64)),
        daemon=True,
    )
    maker.start()
    maker.join()
    return made[0]
