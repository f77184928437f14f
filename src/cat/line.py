"""The callers who change one key together: whose turn it is, and what is on its way.

Nothing here decides what is stored: that is the revision that each change
expects. This is so that changes of one key do not wait for each other's sync,
and that those of one event loop do not get in each other's way.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from cat.entry import Row
from cat.errors import KeyBusyError, NestedEditError
from cat.scope import Scope

# Who stands in a line, where that is not the task: a thread that has its verbs
# run by another one, in a task each.
caller: ContextVar[object] = ContextVar("cat_caller", default=None)


def current_caller() -> object:
    """Return what tells the caller of a verb from all others."""
    return caller.get() or asyncio.current_task()


class Chain:
    """Changes that build on one another: where one is not stored, those after it will not be."""

    __slots__ = ("broken",)

    def __init__(self) -> None:
        self.broken = False


class Head(NamedTuple):
    """An entry as it will be once `written` has succeeded.

    `certain` says that no caller can cancel it.
    """

    row: Row
    written: "asyncio.Future[Any]"
    certain: bool
    chain: Chain


class Line:
    """The line at one key; `timeout` is in seconds."""

    __slots__ = ("_head", "_lock", "_timeout", "_waiting", "editor", "key", "scope", "users")

    def __init__(self, scope: Scope, key: str, timeout: float) -> None:
        self.scope = scope
        self.key = key
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._head: Head | None = None
        self.users = 0
        self.editor: object = None  # whose turn is an edit

    @property
    def head(self) -> Head | None:
        """What is on its way to the database, so that the next change can build on it.

        Not if something before it was not stored: those who build on what
        cannot be stored, and try again, would find each other for ever.
        """
        head = self._head
        return None if head is None or head.written.done() or head.chain.broken else head

    @head.setter
    def head(self, head: Head) -> None:
        def settle(done: "asyncio.Future[Any]") -> None:
            if done.cancelled() or done.exception() is not None:
                head.chain.broken = True

        # Before whoever awaits it wakes and tries again.
        head.written.add_done_callback(settle)
        self._head = head

    async def enter(self, deadline: float) -> None:
        """Wait for the turn, in order; without an edit under way this does not suspend.

        `deadline` is on the monotonic clock. Raises `KeyBusyError` after it,
        and `NestedEditError` in a task that waits for itself.
        """
        if self.editor is not None and self.editor is current_caller():
            raise NestedEditError(self.scope.at(self.key))
        if not self._waiting and not self._lock.locked():
            await self._lock.acquire()
            return
        self._waiting += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._lock.acquire()
        except TimeoutError:
            raise KeyBusyError(self.scope.at(self.key), self._timeout) from None
        finally:
            self._waiting -= 1

    def leave(self) -> None:
        """Give the turn to the next."""
        self.editor = None
        self._lock.release()


class Lines:
    """The lines of the keys that are being changed; there is none for other keys."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lines: dict[tuple[Scope, str], Line] = {}

    @contextmanager
    def at(self, scope: Scope, key: str) -> Iterator[Line]:
        """Join the line at a key."""
        place = (scope, key)
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = Line(scope, key, self._timeout)
        line.users += 1
        try:
            yield line
        finally:
            line.users -= 1
            if not line.users:
                del self._lines[place]
