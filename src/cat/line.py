"""The callers who change one key together: whose turn it is, and what is on its way.

Nothing here decides what is stored: that is the revision that each change
expects. This is so that changes of one key do not wait for each other's sync,
and that those of one event loop do not get in each other's way.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from cat.entry import Change, Delete, Expire, Put, Row
from cat.errors import KeyBusyError, NestedEditError
from cat.scope import Scope

# Who stands in a line, where that is not the task: a thread that has its verbs
# run by another one, in a task each.
caller: ContextVar[object] = ContextVar("cat_caller", default=None)


def current_caller() -> object:
    """Return what tells the caller of a verb from all others."""
    return caller.get() or asyncio.current_task()


class Chain:
    """Changes that build one on the other, from one reading of the entry on.

    If one of them is not stored, none that was built on it will be.
    """

    __slots__ = ("broken",)

    def __init__(self) -> None:
        self.broken = False

    def look(self, written: "asyncio.Future[Any]") -> None:
        """Note what became of one of them."""
        if written.cancelled() or written.exception() is not None:
            self.broken = True


class Head(NamedTuple):
    """What is on its way to the database: the entry as it will be once `written` has succeeded.

    `row` is `None` after a write that stood in no line: what it leaves is not known here.
    """

    row: Row | None
    written: "asyncio.Future[Any]"
    chain: Chain


class Line:
    """The line at one key; `timeout` is in seconds."""

    __slots__ = (
        "_head",
        "_lock",
        "_passed",
        "_timeout",
        "_waiting",
        "editor",
        "key",
        "scope",
        "users",
    )

    def __init__(self, scope: Scope, key: str, timeout: float) -> None:
        self.scope = scope
        self.key = key
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._head: Head | None = None
        self._passed = False  # whether others wrote since whoever has the turn read the entry
        self.users = 0
        self.editor: object = None  # whose turn is an edit

    @property
    def head(self) -> Head | None:
        """What the next change may build on."""
        head = self._head
        return None if head is None or head.written.done() or head.chain.broken else head

    def begin(self) -> None:
        """Note that whoever has the turn reads the entry now."""
        self._passed = False

    def follow(self, row: Row, written: "asyncio.Future[Any]", base: Head | None) -> None:
        """Note that whoever has the turn has put a change on its way, built on `base`."""
        chain = Chain() if base is None else base.chain
        # Before those who wait for it: futures call back in the order of asking.
        written.add_done_callback(chain.look)
        # After a write that passed by, it is not stored, or that one was not.
        self._head = Head(None if self._passed else row, written, chain)

    def pass_by(self, written: "asyncio.Future[Any]") -> None:
        """Note that somebody writes the key who does not stand in the line."""
        self._head = Head(None, written, Chain())
        self._passed = True

    async def enter(self, deadline: float) -> None:
        """Wait for the turn, in order; without an edit under way this does not suspend.

        `deadline` is on the monotonic clock. Raises `KeyBusyError` after it,
        and `NestedEditError` in a task that waits for itself.
        """
        if self.editor is not None and self.editor is current_caller():
            raise NestedEditError(self.scope.at(self.key))
        if not self._waiting and not self._lock.locked():
            await self._lock.acquire()
        else:
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

    def __len__(self) -> int:
        return len(self._lines)

    def pass_by(self, changes: Sequence[Change], written: "asyncio.Future[Any]") -> None:
        """Note that somebody makes changes who does not stand in a line."""
        for change in changes:
            if isinstance(change, Put | Delete | Expire):
                line = self._lines.get((change.scope, change.key))
                lines = [] if line is None else [line]
            else:
                lines = list(self._lines.values())
            for line in lines:
                line.pass_by(written)

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
            self._leave(place, line)

    def _leave(self, place: tuple[Scope, str], line: Line) -> None:
        """Forget a line where nobody stands any more, and from which nothing is on its way."""
        if line.users or self._lines.get(place) is not line:
            return
        if line.head is None:
            del self._lines[place]
        else:  # its caller was cancelled; the next to come builds on it
            line.head.written.add_done_callback(lambda _: self._leave(place, line))
