"""The `Backend` for one SQLite file: reads here, writes in `writer`, the file in `start`."""

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cat.backends.sqlite.faults import mapped
from cat.backends.sqlite.start import connect, open_database
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
        self._worker: Worker | None = None
        self._writer: Writer | None = None
        # Answers small reads here and now, and never waits.
        self._reader: sqlite3.Connection | None = None
        # Reads what is large, and what the other may not wait for.
        self._slow: Worker | None = None

    async def open(self) -> None:
        await self._opened()

    async def get(self, scope: Scope, key: str) -> Row | None:
        rows = await self._read(GET_INLINE, scope, key)
        if rows and rows[0][0] is None:
            rows = await self._read_on_thread(GET, scope, key)
        return Row(_text(rows[0][0]), *rows[0][1:]) if rows else None

    async def stat(self, scope: Scope, key: str) -> Meta | None:
        rows = await self._read(STAT, scope, key)
        return Meta(*rows[0]) if rows else None

    async def write(self, changes: Sequence[Change]) -> list[Meta | None]:
        writer = self._writer
        if writer is None or writer.suspect:
            writer = await self._opened()
        return await writer.write(changes)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
            drive(self._close(), partial(settle, self._closing))
        await asyncio.shield(self._closing)

    def abandon(self) -> bool:
        """Close from another event loop, as far as can be, and say whether all is closed."""
        if self._reader is not None:
            self._reader.close()
        slow = self._slow is None or self._slow.abandon()
        return (self._worker is None or self._worker.abandon()) and slow

    async def _read(self, sql: str, scope: Scope, key: str) -> list[Any]:
        if self._worker is None or self._writer is None:
            await self._opened()
        if self._inline:
            try:
                if self._reader is None:
                    self._reader = connect(self._path, "ro", 0)
                return self._reader.execute(sql, (*scope, key)).fetchall()
            except sqlite3.Error:
                pass  # busy, or something that the thread will meet again, and tell
        return await self._read_on_thread(sql, scope, key)

    async def _read_on_thread(self, sql: str, scope: Scope, key: str) -> list[Any]:
        if self._slow is None:
            self._slow = Worker(partial(connect, self._path, "ro", self._timeout))
        slow = self._slow
        try:
            await slow.opened()
            return await slow.run(lambda: slow.raw.execute(sql, (*scope, key)).fetchall())
        except sqlite3.Error as error:
            if slow.failure is not None:
                self._slow = None
            raise mapped(error, self._path, self._timeout, writes=False) from error

    async def _opened(self) -> Writer:
        """Open if need be, once for all who wait, and anew after a sync that failed."""
        if self._closing is not None:
            raise DatabaseUnavailableError(
                self._path,
                "it was closed, because its event loop is ending or its connect() was left; "
                "do not keep it beyond that",
            )
        if self._writer is not None and self._writer.suspect:
            drive(self._close(), lambda _, __: None)
        if self._worker is None:
            self._worker = Worker(partial(open_database, self._path, self._timeout))
        worker = self._worker
        try:
            await worker.opened()
        finally:
            if worker.failure is not None and self._worker is worker:
                self._worker = None
        if self._writer is None:
            self._writer = Writer(worker, self._path, self._timeout, interval=self._interval)
        return self._writer

    async def _close(self) -> None:
        """Close everything; what writes goes last, as the last to close writes the log back."""
        writer, slow, reader, worker = self._writer, self._slow, self._reader, self._worker
        self._writer = self._slow = self._reader = self._worker = None
        if writer is not None:
            await writer.close()
        if slow is not None:
            await slow.close()
        if reader is not None:
            reader.close()
        if worker is not None:
            await worker.close()


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return ""  # which is not JSON either, and refused as that
