"""The callers who change one key together: whose turn it is, and what is on its way.

Nothing here decides what is stored: that is the revision that each change
expects. This is so that changes of one key do not wait for each other's sync,
and that those of one event loop do not get in each other's way.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, Self

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
    """Changes that build one on the other, from one reading of the entry on."""

    __slots__ = ("_broken", "_on_their_way")

    def __init__(self) -> None:
        self._broken = False
        self._on_their_way: deque[asyncio.Future[Any]] = deque()

    def add(self, written: "asyncio.Future[Any]") -> None:
        """Add a change that builds on the last one."""
        self._on_their_way.append(written)

    @property
    def broken(self) -> bool:
        """Whether one of them was not stored: then none that was built on it will be."""
        while self._on_their_way and self._on_their_way[0].done():
            written = self._on_their_way.popleft()
            if written.cancelled() or written.exception() is not None:
                self._broken = True
        return self._broken


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
        "_left",
        "_lock",
        "_passed",
        "_timeout",
        "_users",
        "_waiting",
        "editor",
        "key",
        "scope",
    )

    def __init__(
        self, scope: Scope, key: str, timeout: float, left: Callable[["Line"], None]
    ) -> None:
        self.scope = scope
        self.key = key
        self._timeout = timeout
        self._left = left
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._head: Head | None = None
        self._passed = False  # whether others wrote since whoever has the turn read the entry
        self._users = 0
        self.editor: object = None  # whose turn is an edit

    def __enter__(self) -> Self:
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._look_who_stands()

    def _look_who_stands(self) -> None:
        """Tell that nobody stands here any more, and that nothing is on its way from here."""
        if self._users:
            return
        if self.head is None:
            self._left(self)
        else:  # its caller was cancelled; the next to come builds on it
            self.head.written.add_done_callback(lambda _: self._look_who_stands())

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
        chain.add(written)
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

    def at(self, scope: Scope, key: str) -> Line:
        """Return the line at a key, to be entered at once as a context."""
        line = self._lines.get((scope, key))
        if line is None:
            line = self._lines[scope, key] = Line(scope, key, self._timeout, self._forget)
        return line

    def _forget(self, line: Line) -> None:
        if self._lines.get((line.scope, line.key)) is line:
            del self._lines[line.scope, line.key]


async def outcome(written: "asyncio.Future[Any]") -> None:
    """Wait for a change, or raise what kept it from being stored.

    It goes on if the one who waits is cancelled, as others may build on it: what
    `asyncio.shield` is for, at twice the cost.
    """
    known = written.get_loop().create_future()

    def tell(written: "asyncio.Future[Any]") -> None:
        if not written.cancelled():
            written.exception()  # seen, should nobody wait any more
        if not known.done():
            known.set_result(None)

    written.add_done_callback(tell)
    await known
    written.result()
