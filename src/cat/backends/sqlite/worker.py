"""One SQLite connection, used by functions that run on aiosqlite's thread.

A transaction of several statements that awaits between them can be left open
by a cancellation. Here a whole transaction is one function, which aiosqlite
runs in one hop: its public API executes SQL, and SQL can call a function.

The statement that calls runs on a connection to nothing, ":memory:", so that
the connection to the file can be closed and opened anew between two functions:
before a fork, and after a sync that failed.
"""

import asyncio
import itertools
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import aiosqlite

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]

CALL = "SELECT cat_call(?)"


class _Call(NamedTuple):
    function: Callable[[], Any]
    outcome: list[Any]  # the result and the exception, once it has run


class Worker:
    """A connection and its thread, for the running event loop; it begins to connect when made.

    `connect` returns a connection; it runs on the thread, like every function
    that is submitted, and may block. `failure` is what it raised the first time.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self.failure: BaseException | None = None
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._numbers = itertools.count()
        self._calls: dict[int, _Call] = {}
        # Held while a function runs, so that it is known when SQLite is not used.
        self._in_use = threading.Lock()
        self._raw: sqlite3.Connection | None = None
        self._abandoned = False
        self._carrier = _daemon(self._connect_to_nothing)
        drive(self._begin(), lambda _, error: self._begun(error))

    @property
    def left(self) -> bool:
        """Whether the event loop was closed, so that nobody waits for anything here."""
        return self._abandoned or self._loop.is_closed()

    async def opened(self) -> None:
        """Wait until the connection is there, or raise what went wrong."""
        await self.settled()
        if self.failure is not None:
            raise self.failure

    async def settled(self) -> None:
        """Wait until the connection is there, or has failed."""
        await asyncio.shield(self._opened)

    def when_open(self, then: Callable[[], None]) -> None:
        """Call `then` on the event loop once the connection is there, or has failed."""
        self._opened.add_done_callback(lambda _: then())

    def submit(self, function: Callable[[], Any], done: Done) -> None:
        """Run `function` after those before it, and call `done(result, exception)` on the loop.

        Nothing can cancel it: it is run to its end, and never half.
        """
        number = next(self._numbers)
        call = self._calls[number] = _Call(function, [])

        def ran(_: object, error: BaseException | None) -> None:
            del self._calls[number]
            done(*call.outcome or (None, error or RuntimeError("it was not called")))

        drive(self._carrier.execute_fetchall(CALL, (number,)), ran)

    async def run(self, function: Callable[[], T]) -> T:
        """Run `function` and return its result; a cancelled caller leaves it to run to its end."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.submit(function, lambda result, error: settle(future, result, error))
        return await future

    def connection(self) -> sqlite3.Connection:
        """Return the connection, opened anew if need be; to functions on the thread."""
        if self._raw is None:
            self._raw = self._connect()
        return self._raw

    def disconnect(self) -> None:
        """Close the connection; to functions on the thread, and while it is held."""
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()

    def rest(self, seconds: float) -> None:
        """Wait, in the middle of a function that uses no SQLite meanwhile."""
        self._in_use.release()
        try:
            time.sleep(seconds)
        finally:
            self._in_use.acquire()

    def hold(self) -> None:
        """Wait until no function runs, let none begin, and close the connection."""
        self._in_use.acquire()
        self.disconnect()

    def release(self) -> None:
        """Let functions run again after `hold`."""
        self._in_use.release()

    async def close(self) -> None:
        """Close the connection after all that was submitted, and end the thread."""
        await self.settled()
        if self.failure is None:
            await self.run(self.disconnect)
            await self._carrier.close()

    def abandon(self) -> None:
        """Close the connection of an event loop that was closed; from any thread.

        A function that runs closes it at its end; and aiosqlite's thread ends
        then too, as it cannot deliver to a closed loop.
        """
        self._abandoned = True
        if self._in_use.acquire(blocking=False):
            self.disconnect()
            self._in_use.release()
        self._carrier.stop()

    async def _begin(self) -> None:
        await self._carrier
        try:
            await self.run(self.connection)
        except Exception:
            await self._carrier.close()
            raise

    def _connect_to_nothing(self) -> sqlite3.Connection:
        carrier = sqlite3.connect(":memory:")
        carrier.create_function("cat_call", 1, self._run)
        self._kept = carrier  # or else it is collected unclosed, should aiosqlite not get it
        return carrier

    def _begun(self, error: BaseException | None) -> None:
        self.failure = error
        settle(self._opened, None, None)

    def _run(self, number: int) -> None:
        call = self._calls[number]
        with self._in_use:
            if self.left:
                self.disconnect()
                return
            try:
                call.outcome[:] = (call.function(), None)
            except BaseException as error:  # noqa: BLE001  # given to the caller by submit()
                call.outcome[:] = (None, error)
            if self.left:
                self.disconnect()


def drive(awaitable: Awaitable[Any], done: Done) -> None:
    """Run an awaitable to its end without a task, and call `done(result, exception)`.

    A task could be cancelled, and `asyncio.run` cancels every one; what is on
    its way to the database must go on and be waited for.
    """
    _Drive(awaitable, done).step()


class _Drive:
    """The state of `drive`: a closure would refer to itself, and keep what it holds for the gc."""

    __slots__ = ("_done", "_steps")

    def __init__(self, awaitable: Awaitable[Any], done: Done) -> None:
        self._steps = awaitable.__await__()
        self._done = done

    def step(self, _: object = None) -> None:
        try:
            waited_for = next(self._steps)
        except StopIteration as end:
            self._done(end.value, None)
        except (KeyboardInterrupt, SystemExit) as error:
            self._done(None, error)
            raise
        except BaseException as error:  # noqa: BLE001  # given to the caller
            self._done(None, error)
        else:
            waited_for.add_done_callback(self.step)


def settle(future: "asyncio.Future[T]", result: T, error: BaseException | None) -> None:
    """Give a waiting caller its answer, unless it was cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _daemon(connector: Callable[[], sqlite3.Connection]) -> aiosqlite.Connection:
    """Return a connection, not yet open, whose thread does not hold the process.

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
