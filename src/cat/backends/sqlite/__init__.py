"""The `Backend` for one SQLite file: reads here, writes in `writer`, the file in `start`."""

import asyncio
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cat.backends.sqlite.faults import mapped
from cat.backends.sqlite.start import beside, connect
from cat.backends.sqlite.worker import Worker, drive, settle
from cat.backends.sqlite.writer import Writer
from cat.entry import UNKNOWN, Answer, Change, Meta, Range, Row
from cat.errors import DatabaseUnavailableError
from cat.scope import Scope

if TYPE_CHECKING:
    from cat.backends.sqlite.locks import Locks

# A value of more than 256 KiB would hold the event loop for longer than a hop to
# a thread costs; `size` stands before `value`, so this is decided without reading it.
PEEK = """
SELECT CASE WHEN size <= 262144 THEN value END, revision, expires
FROM entries WHERE owner = ? AND namespace = ? AND key = ?
"""

# As a BLOB, so that bytes that are not UTF-8 do not raise in the driver, whose
# message would quote them.
GET = """
SELECT CAST(value AS BLOB), revision, expires FROM entries
WHERE owner = ? AND namespace = ? AND key = ?
"""

STAT = """
SELECT size, revision, created, updated, expires FROM entries
WHERE owner = ? AND namespace = ? AND key = ?
"""

# One parameter for any number of keys.
PICK = """
SELECT key, CAST(value AS BLOB), revision, expires FROM entries
WHERE owner = ? AND namespace = ? AND key IN (SELECT value FROM json_each(?))
"""

# A range that has no end ends at a BLOB: each is greater than any text.
#
# Whether a key has expired stands in its row, and among a million keys each row
# is a page read: a page of 100 keys took 380 us, and 85 us from the index alone.
# So those are left out that have expired: up to 100 are looked up for that, in 25
# us at most, and if there are more, of whomever, the rows are read.
KEYS = """
SELECT key FROM entries
WHERE owner = :owner AND namespace = :namespace AND key >= :start AND key < :end
  AND CASE WHEN (SELECT count(*) FROM (SELECT 1 FROM entries WHERE expires <= :now LIMIT 100))
                < 100
           THEN id NOT IN (SELECT id FROM entries WHERE expires <= :now)
           ELSE expires IS NULL OR expires > :now END
ORDER BY key LIMIT :most
"""

SCAN = """
SELECT key, CAST(value AS BLOB), revision, expires FROM entries
WHERE owner = ? AND namespace = ? AND key >= ? AND key < ? AND (expires IS NULL OR expires > ?)
ORDER BY key LIMIT 100
"""
PAGE_BYTES = 1024 * 1024

# The first count needs the index alone. Few have expired and are still there:
# the second looks at those, which the unary + tells SQLite.
COUNT = """
SELECT (SELECT count(*) FROM entries
        WHERE owner = :owner AND namespace = :namespace AND key >= :start AND key < :end)
     - (SELECT count(*) FROM entries
        WHERE expires <= :now AND +owner = :owner AND +namespace = :namespace
          AND +key >= :start AND +key < :end)
"""

# From each one straight to the next, however many entries lie between.
NAMESPACES = """
WITH RECURSIVE found (name) AS (
    SELECT (SELECT namespace FROM entries
            WHERE owner = :owner AND (expires IS NULL OR expires > :now)
            ORDER BY namespace LIMIT 1)
    UNION ALL
    SELECT (SELECT namespace FROM entries
            WHERE owner = :owner AND namespace > name AND (expires IS NULL OR expires > :now)
            ORDER BY namespace LIMIT 1)
    FROM found WHERE name IS NOT NULL
)
SELECT name FROM found WHERE name IS NOT NULL
"""

OWNERS = """
WITH RECURSIVE found (name) AS (
    SELECT ''
    UNION ALL
    SELECT (SELECT owner FROM entries
            WHERE owner > name AND (expires IS NULL OR expires > :now)
            ORDER BY owner LIMIT 1)
    FROM found WHERE name IS NOT NULL
)
SELECT name FROM found WHERE name > ''
"""


T = TypeVar("T")


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
        self._in_use = threading.Lock()  # as in `Worker`, for that connection and the locks
        self._held: list[Writer | Worker] = []  # while the process forks
        # Reads what is large, and what the other may not wait for.
        self._slow: Worker | None = None
        self._locks: Locks | None = None

    async def open(self) -> None:
        await self._current().opened()

    def peek(self, scope: Scope, key: str) -> tuple[str, int, float | None] | None:
        with self._in_use:
            if self._reader is None:
                return UNKNOWN
            try:
                # The cursor is dropped at once, which ends its read transaction.
                found = self._reader.execute(PEEK, (*scope, key)).fetchone()
            except sqlite3.Error:  # what is wrong, `get` will tell
                return UNKNOWN
        if found is not None and found[0] is None:
            return UNKNOWN
        return found  # type: ignore[no-any-return]  # a row as `PEEK` says

    async def get(self, scope: Scope, key: str) -> Row | None:
        if self._reader is None:
            await self._open_reader()
        row = self.peek(scope, key)
        if row is UNKNOWN:
            rows = await self._on_thread(_fetch, GET, (*scope, key))
            return Row(_text(rows[0][0]), *rows[0][1:]) if rows else None
        return None if row is None else Row(*row)

    async def stat(self, scope: Scope, key: str) -> Meta | None:
        if self._reader is None:
            await self._open_reader()
        with self._in_use, suppress(sqlite3.Error):
            if self._reader is not None:
                return _meta(self._reader.execute(STAT, (*scope, key)).fetchall())
        return _meta(await self._on_thread(_fetch, STAT, (*scope, key)))

    async def pick(self, scope: Scope, keys: Sequence[str]) -> dict[str, Row]:
        def fetch(raw: sqlite3.Connection, sql: str, keys: Sequence[str]) -> dict[str, Row]:
            rows = raw.execute(sql, (*scope, json.dumps(keys)))
            return {key: Row(_text(value), *rest) for key, value, *rest in rows}

        return await self._on_thread(fetch, PICK, keys)

    async def keys(self, within: Range, now: float, limit: int | None) -> list[str]:
        most = -1 if limit is None else limit
        return await self._on_thread(
            _first_column, KEYS, {**_named_bounds(within), "now": now, "most": most}
        )

    async def scan(self, within: Range, now: float) -> list[tuple[str, Row]]:
        rows = await self._on_thread(_page, SCAN, (*_bounds(within), now))
        return [(key, Row(_text(value), *rest)) for key, value, *rest in rows]

    async def count(self, within: Range, now: float) -> int:
        [(count,)] = await self._on_thread(_fetch, COUNT, {**_named_bounds(within), "now": now})
        return int(count)

    async def namespaces(self, owner: str, now: float) -> list[str]:
        return await self._on_thread(_first_column, NAMESPACES, {"owner": owner, "now": now})

    async def owners(self, now: float) -> list[str]:
        return await self._on_thread(_first_column, OWNERS, {"now": now})

    def write(self, changes: Sequence[Change], now: float) -> "asyncio.Future[list[Answer]]":
        return self._current().write(changes, now)

    def barrier(self) -> "asyncio.Future[list[Answer]] | None":
        return None if self._writer is None else self._writer.barrier()

    async def lock(
        self, scope: Scope, key: str, holder: object, deadline: float | None = None
    ) -> Callable[[], None]:
        await self._current().opened()  # so that there is a directory
        if self._locks is None:
            from cat.backends.sqlite.locks import Locks  # noqa: PLC0415  # 2 ms, for those who edit

            self._locks = Locks(beside(self._real(), "-locks"), self._timeout, self._in_use)
        return await self._locks.acquire(scope, key, holder, deadline)

    async def scrub(self) -> None:
        await self._current().scrub()

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
        if self._locks is not None:
            self._locks.close_free_ones()

    def release(self) -> None:
        while self._held:
            self._held.pop().release()
        self._in_use.release()

    def forget(self) -> None:
        if self._locks is not None:
            self._locks.forget()

    def abandon(self) -> bool:
        self._close_reader()
        self._free_locks()
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
            self._writer = Writer(self._real(), self._timeout, interval=self._interval)
        return self._writer

    def _real(self) -> Path:
        """Return the path of the file itself: SQLite follows links, and puts others beside it."""
        real = Path(os.path.realpath(self._path))
        if os.path.islink(self._path) and not os.path.exists(real):  # noqa: PTH110, PTH114  # raise nothing
            raise DatabaseUnavailableError(
                self._path,
                "it is a link that leads nowhere; mount the disk it leads to, or remove it",
            )
        return real

    async def _open_reader(self) -> None:
        await self._current().opened()
        self._current()  # raises if it was closed meanwhile
        if self._inline and self._reader is None:
            with self._in_use, suppress(sqlite3.Error):  # busy: then it is opened another time
                self._reader = connect(self._path, "ro", 0)

    async def _on_thread(self, fetch: Callable[..., T], sql: str, parameters: Any) -> T:
        """Return what `fetch` reads on a thread, with a connection that waits for others."""
        if self._slow is None:
            await self._current().opened()  # a reader makes no database
        self._current()  # raises if it was closed
        if self._slow is None or self._slow.failure is not None:
            self._slow = Worker(partial(connect, self._path, "ro", self._timeout))
        slow = self._slow
        try:
            await slow.opened()
            if self._slow is not slow or self._closing is not None:
                raise self._gone()
            return await slow.run(lambda: fetch(slow.connection(), sql, parameters))
        except sqlite3.Error as error:
            raise mapped(error, self._path, self._timeout, writes=False) from error

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _free_locks(self) -> None:
        if self._locks is not None:
            self._locks.close()

    def _gone(self) -> DatabaseUnavailableError:
        return DatabaseUnavailableError(
            self._path,
            "it was closed, because its event loop is ending or its connect() was left; do not "
            "keep it beyond that",
        )

    async def _close(self) -> None:
        """Close everything; what writes goes last, as the last to close writes the log back."""
        self._close_reader()
        try:
            if self._slow is not None:
                await self._slow.close()
            if self._writer is not None:
                await self._writer.close()
        finally:
            self._writer = self._slow = None
            self._free_locks()  # not before what they protect is stored


def _bounds(within: Range) -> tuple[Any, ...]:
    return (*within.scope, within.start, b"" if within.end is None else within.end)


def _named_bounds(within: Range) -> dict[str, Any]:
    return dict(zip(("owner", "namespace", "start", "end"), _bounds(within), strict=True))


def _fetch(raw: sqlite3.Connection, sql: str, parameters: Any) -> list[Any]:
    return raw.execute(sql, parameters).fetchall()


def _first_column(raw: sqlite3.Connection, sql: str, parameters: Any) -> list[str]:
    return [value for (value,) in raw.execute(sql, parameters)]


def _page(raw: sqlite3.Connection, sql: str, parameters: Any) -> list[Any]:
    """Return the first rows, until they hold a lot: the next page begins after them."""
    rows = []
    size = 0
    # A cursor that is left in the middle keeps its read transaction.
    with closing(raw.execute(sql, parameters)) as cursor:
        for row in cursor:
            rows.append(row)
            size += len(row[1])
            if size >= PAGE_BYTES:
                break
    return rows


def _meta(rows: list[Any]) -> Meta | None:
    return Meta(*rows[0]) if rows else None


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return ""  # which is not JSON either, and refused as that
