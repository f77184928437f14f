"""The `Backend` for one SQLite file: reads here, writes in `writer`, the file in `start`."""

import asyncio
import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from cat.backends.sqlite.faults import mapped
from cat.backends.sqlite.start import connect
from cat.backends.sqlite.worker import Worker, drive, settle
from cat.backends.sqlite.writer import Writer
from cat.entry import Change, Meta, Row
from cat.errors import DatabaseUnavailableError
from cat.scope import Scope

# As a BLOB, so that bytes that are not UTF-8 do not raise in the driver, whose
# message would quote them.
GET = """
SELECT CAST(value AS BLOB), revision, expires FROM entries
WHERE owner = ? AND namespace = ? AND key = ?
"""

# A value of more than 256 KiB would hold the event loop for longer than a hop to
# a thread costs; `size` stands before `value`, so this is decided without reading it.
GET_INLINE = """
SELECT CASE WHEN size <= 262144 THEN CAST(value AS BLOB) END, revision, expires
FROM entries WHERE owner = ? AND namespace = ? AND key = ?
"""

STAT = """
SELECT size, revision, created, updated, expires FROM entries
WHERE owner = ? AND namespace = ? AND key = ?
"""


class SQLite:
    """A database at `path`, for one event loop; nothing is touched before the first verb.

    `timeout` is in seconds and bounds every wait for another process.
    `interval` is the durability level of that name. With `inline`, small reads
    are answered on the event loop's own thread: a point read costs 5-7 us in
    SQLite, and a hop to another thread adds 25 us or more.
    """

    def __init__(self, path: Path, timeout: float, *, interval: bool, inline: bool) -> None:
        self._path = path
        self._timeout = timeout
        self._interval = interval
        self._inline = inline
        self._closing: asyncio.Future[None] | None = None
        self._writer: Writer | None = None
        # Answers small reads here and now, and never waits.
        self._reader: sqlite3.Connection | None = None
        self._in_use = threading.Lock()  # as in `Worker`, for that connection
        self._held: list[Writer | Worker] = []  # while the process forks
        # Reads what is large, and what the other may not wait for.
        self._slow: Worker | None = None

    async def open(self) -> None:
        await self._current().opened()

    async def get(self, scope: Scope, key: str) -> Row | None:
        rows = await self._read(GET_INLINE, scope, key)
        if rows and rows[0][0] is None:
            rows = await self._read_on_thread(GET, scope, key)
        return Row(_text(rows[0][0]), *rows[0][1:]) if rows else None

    async def stat(self, scope: Scope, key: str) -> Meta | None:
        rows = await self._read(STAT, scope, key)
        return Meta(*rows[0]) if rows else None

    async def write(self, changes: Sequence[Change]) -> list[Meta | None]:
        return await self._current().write(changes)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
            drive(self._close(), partial(settle, self._closing))
        await asyncio.shield(self._closing)

    def hold(self) -> None:
        for half in self._halves():
            half.hold()
            self._held.append(half)
        self._in_use.acquire()
        self._close_reader()

    def release(self) -> None:
        while self._held:
            self._held.pop().release()
        self._in_use.release()

    def abandon(self) -> bool:
        self._close_reader()
        for half in self._halves():
            half.abandon()
        return bool(self._halves())

    def _halves(self) -> list[Writer | Worker]:
        return [half for half in (self._writer, self._slow) if half is not None]

    def _current(self) -> Writer:
        """Return the writer; another one if there is none, or it failed to open."""
        if self._closing is not None:
            raise self._gone()
        if self._writer is None or self._writer.failed:
            # SQLite follows links, and puts its other files beside the real one.
            real = Path(os.path.realpath(self._path))
            if os.path.islink(self._path) and not os.path.exists(real):  # noqa: PTH110, PTH114  # raise nothing
                raise DatabaseUnavailableError(
                    self._path,
                    "it is a link that leads nowhere; mount the disk it leads to, or remove it",
                )
            self._writer = Writer(real, self._timeout, interval=self._interval)
        return self._writer

    async def _read(self, sql: str, scope: Scope, key: str) -> list[Any]:
        if self._reader is None:
            await self._open_reader()
        with self._in_use, suppress(sqlite3.Error):  # what is wrong, the thread will tell
            if self._reader is not None:
                return self._reader.execute(sql, (*scope, key)).fetchall()
        return await self._read_on_thread(sql, scope, key)

    async def _open_reader(self) -> None:
        await self._current().opened()
        self._current()  # raises if it was closed meanwhile
        if self._inline and self._reader is None:
            with self._in_use, suppress(sqlite3.Error):  # busy: then it is opened another time
                self._reader = connect(self._path, "ro", 0)

    async def _read_on_thread(self, sql: str, scope: Scope, key: str) -> list[Any]:
        self._current()  # raises if it was closed
        if self._slow is None or self._slow.failure is not None:
            self._slow = Worker(partial(connect, self._path, "ro", self._timeout))
        slow = self._slow
        try:
            await slow.opened()
            if self._slow is not slow:
                raise self._gone()
            return await slow.run(lambda: slow.connection().execute(sql, (*scope, key)).fetchall())
        except sqlite3.Error as error:
            raise mapped(error, self._path, self._timeout, writes=False) from error

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _gone(self) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            self._path,
            "it was closed, because its event loop is ending or its connect() was left; do not "
            "keep it beyond that",
        )

    async def _close(self) -> None:
        """Close everything; what writes goes last, as the last to close writes the log back."""
        writer, slow = self._writer, self._slow
        self._writer = self._slow = None
        self._close_reader()
        if slow is not None:
            await slow.close()
        if writer is not None:
            await writer.close()


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return ""  # which is not JSON either, and refused as that
