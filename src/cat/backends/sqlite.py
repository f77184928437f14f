"""SQLite through aiosqlite: files, pragmas, SQL, and driver errors mapped once."""

import asyncio
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import aiosqlite

from cat.entry import Meta, Row
from cat.errors import (
    CatError,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    DiskFullError,
    ForeignDatabaseError,
    MigrationError,
    NewerDatabaseError,
    NotADatabaseError,
    NotWritableError,
)
from cat.files import make_directory, make_file, report_wide_mode
from cat.schema import Migration, migrations, pending
from cat.scope import Scope

# "CatS": says whose file it is (https://www.sqlite.org/pragma.html#pragma_application_id).
APPLICATION_ID = 0x43617453
OLDEST_ENGINE = (3, 38, 0)

# Durable when awaited: with FULL, a commit is synced before it returns.
# No automatic checkpoints: SQLite 3.7.0 to 3.51.2 can lose acknowledged commits
# when several processes checkpoint (https://www.sqlite.org/wal.html#walresetbug);
# the one at the last close runs under an exclusive lock and is safe.
# The rest is against damaged or hostile files, and deleted values left in pages.
PRAGMAS = """
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = 0;
PRAGMA mmap_size = 0;
PRAGMA cell_size_check = ON;
PRAGMA trusted_schema = OFF;
PRAGMA secure_delete = ON;
"""

IDENTITY = """
SELECT (SELECT application_id FROM pragma_application_id),
       (SELECT user_version FROM pragma_user_version),
       (SELECT count(*) FROM sqlite_master),
       (SELECT page_size FROM pragma_page_size)
"""

VERSION = "PRAGMA user_version"

# The migration and its record are one transaction.
MIGRATE = """
BEGIN IMMEDIATE;
{sql}
PRAGMA application_id = {application_id};
PRAGMA user_version = {version};
COMMIT;
"""

WAL = "PRAGMA journal_mode = WAL"

GET = """
SELECT value, revision, expires FROM entries WHERE owner = ? AND namespace = ? AND key = ?
"""

STAT = """
SELECT size, revision, created, updated, expires FROM entries
WHERE owner = ? AND namespace = ? AND key = ?
"""

PUT = """
INSERT INTO entries (owner, namespace, key, size, revision, created, updated, expires, value)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (owner, namespace, key) DO UPDATE SET
    size = excluded.size,
    revision = excluded.revision,
    created = CASE WHEN expires <= excluded.updated THEN excluded.created ELSE created END,
    updated = excluded.updated,
    expires = excluded.expires,
    value = excluded.value
"""

DELETE = """
DELETE FROM entries WHERE owner = ? AND namespace = ? AND key = ?
RETURNING size, revision, created, updated, expires
"""


class SQLite:
    """The `Backend` for one SQLite file.

    `path` is absolute; `timeout` is in seconds and bounds every wait for
    another process. Nothing is touched before the first verb.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = Path(path)
        self._timeout = timeout
        self._connection: aiosqlite.Connection | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def open(self) -> None:
        await self._opened()

    async def get(self, scope: Scope, key: str) -> Row | None:
        rows = await self._execute(GET, (*scope, key))
        return Row(*rows[0]) if rows else None

    async def stat(self, scope: Scope, key: str) -> Meta | None:
        rows = await self._execute(STAT, (*scope, key))
        return Meta(*rows[0]) if rows else None

    async def put(self, scope: Scope, key: str, value: str, meta: Meta) -> None:
        await self._execute(PUT, (*scope, key, *meta, value), writes=True)

    async def delete(self, scope: Scope, key: str) -> Meta | None:
        rows = await self._execute(DELETE, (*scope, key), writes=True)
        return Meta(*rows[0]) if rows else None

    async def close(self) -> None:
        self._closed = True
        async with self._opening:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()

    async def _execute(
        self, sql: str, parameters: Iterable[Any], *, writes: bool = False
    ) -> list[Any]:
        """Run one statement, its own transaction, in one hop to the connection's thread.

        A cancelled caller leaves the statement to run to its end there: it is
        done or not done, and never half.
        """
        connection = self._connection or await self._opened()
        try:
            return list(await connection.execute_fetchall(sql, _Parameters(parameters)))
        except sqlite3.Error as error:
            raise self._mapped(error, writes=writes) from error

    async def _opened(self) -> aiosqlite.Connection:
        async with self._opening:
            if self._closed:
                raise DatabaseUnavailableError(
                    self._path,
                    "it was closed, because its event loop is ending or its connect() was left; "
                    "do not keep it beyond that",
                )
            if self._connection is None:
                self._connection = await self._open()
            return self._connection

    async def _open(self) -> aiosqlite.Connection:
        if sqlite3.sqlite_version_info < OLDEST_ENGINE:
            raise DatabaseUnavailableError(
                self._path,
                f"this Python has SQLite {sqlite3.sqlite_version}, and 3.38 or newer is needed; "
                "use a Python built with a newer one",
            )
        known = migrations("sqlite")
        make_directory(self._path.parent)
        report_wide_mode(self._path.parent)
        async with self._start_lock():
            make_file(self._path)
            report_wide_mode(self._path)
            try:
                await self._refuse_what_is_not_ours(known[-1].version)
                return await self._prepared(known)
            except sqlite3.Error as error:
                raise self._mapped(error, writes=False) from error

    @asynccontextmanager
    async def _start_lock(self) -> AsyncIterator[None]:
        """Let one process at a time create, migrate and switch to WAL.

        SQLite's busy timeout does not cover these: of six processes that open
        a new file at once, one in nine starts failed without this lock.
        """
        from filelock import FileLock, Timeout  # noqa: PLC0415  # 12 ms, needed here alone

        place = self._path.with_name(f"{self._path.name}.lock")
        make_file(place)
        lock = FileLock(place, thread_local=False)
        deadline = monotonic() + self._timeout
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if monotonic() > deadline:
                    raise DatabaseBusyError(place, self._timeout) from None
                await asyncio.sleep(0.005)
            except OSError as error:
                raise NotWritableError(place, error.strerror or str(error)) from error
        try:
            yield
        finally:
            lock.release()

    async def _refuse_what_is_not_ours(self, newest: int) -> None:
        """Raise unless the file is new or one of ours, and leave it as it is.

        Read-only where a WAL lies beside it: the last connection to close
        writes the WAL back, and this may be somebody else's file.
        """
        if not stat.S_ISREG(self._path.stat().st_mode):
            raise NotADatabaseError(self._path)
        has_wal = self._wal_size() > 0
        connection = await self._connect("ro" if has_wal else "rw")
        try:
            [(application, version, tables, page)] = await connection.execute_fetchall(IDENTITY)
        finally:
            await connection.close()
        if application == version == tables == 0:
            return
        if application != APPLICATION_ID:
            raise ForeignDatabaseError(self._path)
        if version > newest:
            raise NewerDatabaseError(self._path, version, newest)
        # SQLite notices whole pages that are missing, not a part of the last.
        if not has_wal and self._path.stat().st_size % page:
            raise CorruptDatabaseError(self._path, "its last page is cut short")

    async def _prepared(self, known: list[Migration]) -> aiosqlite.Connection:
        """Return the connection to work with: migrated, in WAL mode."""
        connection = await self._connect("rw")
        try:
            # Before the switch to WAL, so that a new file holds its tables
            # itself and is still ours should its first WAL be lost.
            await self._migrate(connection, known)
            await self._switch_to_wal(connection)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _switch_to_wal(self, connection: aiosqlite.Connection) -> None:
        [(mode,)] = await connection.execute_fetchall(WAL)
        if mode != "wal":
            raise DatabaseUnavailableError(
                self._path,
                "SQLite cannot use write-ahead logging here, as on a network file system; "
                "point CAT_HOME or CAT_URL at a local disk",
            )

    async def _migrate(self, connection: aiosqlite.Connection, known: list[Migration]) -> None:
        [(version,)] = await connection.execute_fetchall(VERSION)
        for migration in pending(known, version):
            script = MIGRATE.format(
                sql=migration.sql, application_id=APPLICATION_ID, version=migration.version
            )
            try:
                await connection.executescript(script)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorname != "SQLITE_ERROR":
                    raise
                raise MigrationError(
                    f"{self._path}: migration {migration.version:04}_{migration.name} failed "
                    f"({error}); the database is as it was before it"
                ) from error

    async def _connect(self, mode: str) -> aiosqlite.Connection:
        """Return a new connection, `mode` being `"ro"` or `"rw"`."""
        connection = await _daemon(f"{self._path.as_uri()}?mode={mode}", self._timeout)
        try:
            await connection.executescript(PRAGMAS)
        except BaseException:
            await connection.close()
            raise
        return connection

    def _wal_size(self) -> int:
        with suppress(FileNotFoundError):
            return self._path.with_name(f"{self._path.name}-wal").stat().st_size
        return 0

    def _mapped(self, error: sqlite3.Error, *, writes: bool) -> CatError:
        """Return the error for a caller; the only place where a driver's error is read."""
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return DatabaseBusyError(self._path, self._timeout)
        if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
            return NotWritableError(self._path, str(error))
        if name.startswith("SQLITE_CORRUPT"):
            return CorruptDatabaseError(self._path, str(error))
        if name == "SQLITE_FULL":
            return DiskFullError(self._path)
        if name == "SQLITE_NOTADB":
            return NotADatabaseError(self._path)
        # Only an input or output error can strike after the commit was written:
        # when the sync failed, the value may be there after a crash, or not.
        return DatabaseUnavailableError(
            self._path,
            f"SQLite reports '{error}'; look at the disk and the system's log",
            not_stored=not (writes and name.startswith("SQLITE_IOERR")),
        )


class _Parameters(tuple[Any, ...]):
    """What a statement is given, and never shown: aiosqlite logs parameters at DEBUG."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<parameters>"


def _daemon(uri: str, timeout: float) -> aiosqlite.Connection:
    """Return a connection, not yet open, whose thread does not keep the process alive.

    aiosqlite's thread is not a daemon, so a process that never closes would
    never exit. A thread takes this flag from the one that makes it.
    """
    made: list[aiosqlite.Connection] = []

    def make() -> None:
        made.append(aiosqlite.connect(uri, uri=True, isolation_level=None, timeout=timeout))

    maker = threading.Thread(target=make, daemon=True)
    maker.start()
    maker.join()
    return made[0]
