"""Opens connections; finds, makes or refuses the file; migrates it.

Everything here blocks and runs on a worker's thread.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

from cat.backends.sqlite.faults import mapped
from cat.backends.sqlite.mutex import Mutex, faults_mapped
from cat.errors import (
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseReplacedError,
    DatabaseUnavailableError,
    ForeignDatabaseError,
    MigrationError,
    NewerDatabaseError,
    NotADatabaseError,
    NotWritableError,
    escaped,
)
from cat.files import make_directory, make_file, replace, report_wide_mode, size_of, unwritable
from cat.schema import Migration, migrations, pending

Identity = tuple[int, int]

# "CatS": says whose file it is (https://www.sqlite.org/pragma.html#pragma_application_id).
APPLICATION_ID = 0x43617453
OLDEST_ENGINE = (3, 38, 0)
# In pages; a log that grew beyond is cut to this when it begins anew, so that
# a longer file says that it has not begun anew since it passed this length.
LOG_PAGES = 1_000
SMALLEST_PAGE = 512
# SQLITE_ERROR, SQLITE_CONSTRAINT and SQLITE_MISMATCH: the statement is at fault.
FAULTS_OF_SQL = (1, 19, 20)
_EFFECTIVE = os.access in os.supports_effective_ids
LOG_BYTES = 32 + LOG_PAGES * (4096 + 24)  # its header, and a header to each page

# Durable when awaited: with FULL, a commit is synced before it returns.
# No automatic checkpoints: see `writer`. The rest is against damaged or hostile
# files, and deleted values left in pages.
PRAGMAS = f"""
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = 0;
PRAGMA journal_size_limit = {LOG_BYTES};
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

# The writer waits by itself: see `Writer`.
NO_WAITING = "PRAGMA busy_timeout = 0"


def connect(path: Path, mode: Literal["ro", "rw"], timeout: float) -> sqlite3.Connection:
    """Return a connection to an existing file that waits `timeout` seconds for others.

    It may be closed by another thread than the one that uses it.
    """
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.executescript(PRAGMAS)
    except BaseException:
        connection.close()
        raise
    return connection


def open_database(path: Path, timeout: float) -> tuple[sqlite3.Connection, Identity]:
    """Return a connection to our database at `path`, made or migrated if need be, and which it is.

    One process at a time is in here. SQLite's busy timeout does not cover the
    switch to write-ahead logging: of six processes that opened a new file at
    once, one in nine starts failed without the lock.
    """
    if sqlite3.sqlite_version_info < OLDEST_ENGINE:
        raise DatabaseUnavailableError(
            path,
            f"this Python has SQLite {sqlite3.sqlite_version}, and 3.38 or newer is needed; "
            "use a Python built with a newer one",
        )
    known = migrations("sqlite")
    try:
        if path.exists() and not path.is_file():
            raise NotADatabaseError(path)  # so that nothing is made beside it
        make_directory(path.parent)
        report_wide_mode(path.parent)
        with _start_lock(path, timeout):
            _refuse_what_cannot_be_one(path)
            if size_of(path) == 0:
                _make(path, known)
            else:
                _refuse_what_is_not_ours(path, known[-1].version, timeout)
            report_wide_mode(path)
            identity = identity_of(path)
            connection = _prepared(path, known, timeout)
            if identity is None or identity_of(path) != identity:
                connection.close()
                raise DatabaseReplacedError(path)  # on its way to the caller
            return connection, identity
    except sqlite3.Error as error:
        raise mapped(error, path, timeout, writes=False) from error
    except DatabaseUnavailableError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def _start_lock(path: Path, timeout: float) -> Iterator[None]:
    place = beside(path, ".lock")
    deadline = time.monotonic() + timeout
    with closing(Mutex(place)) as mutex:
        mutex.make()
        with faults_mapped(place, timeout):
            while not mutex.acquire():
                if time.monotonic() > deadline:
                    raise DatabaseBusyError(place, timeout)
                time.sleep(0.005)
        yield


def _refuse_what_cannot_be_one(path: Path) -> None:
    """Refuse what may not be written, and a log whose database is gone."""
    # SQLite would open it to read, and leave a log beside it that nobody may write.
    if path.exists() and not os.access(path, os.R_OK | os.W_OK, effective_ids=_EFFECTIVE):
        raise NotWritableError(path, "this process may not read and write it")
    if size_of(path) == 0 and size_of(beside(path, "-wal")) > 0:
        raise CorruptDatabaseError(
            path, "it is missing or empty, and the -wal file beside it still holds its changes"
        )


def _make(path: Path, known: Sequence[Migration]) -> None:
    """Make the database under another name, complete, and give it its own in one step.

    Killed at any point, there is no database or a whole one.
    """
    draft = beside(path, ".new")
    for name in ("", "-journal", "-wal", "-shm"):
        beside(draft, name).unlink(missing_ok=True)  # left by a process that was killed
    make_file(draft)
    _prepared(draft, known, 0).close()
    replace(draft, path)


def _prepared(path: Path, known: Sequence[Migration], timeout: float) -> sqlite3.Connection:
    """Return a connection to a database that is migrated and uses write-ahead logging."""
    connection = connect(path, "rw", timeout)
    try:
        _migrate(connection, path, known)
        [(mode,)] = connection.execute(WAL).fetchall()
        if mode != "wal":
            raise DatabaseUnavailableError(  # noqa: TRY301  # closed below
                path,
                "SQLite cannot use write-ahead logging here, as on a network file system; "
                "point CAT_HOME or CAT_URL at a local disk",
            )
        connection.execute(NO_WAITING)
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_what_is_not_ours(path: Path, newest: int, timeout: float) -> None:
    """Raise unless the file is one of ours, and leave it as it is.

    Read-only where a log or a journal lies beside it: the last connection to
    close writes a log back, and the first to open rolls a journal back, and
    this may be somebody else's file.
    """
    has_log = any(size_of(beside(path, end)) > 0 for end in ("-wal", "-journal"))
    with closing(connect(path, "ro" if has_log else "rw", timeout)) as connection:
        [(application, version, tables, page)] = connection.execute(IDENTITY).fetchall()
    if size_of(path) < SMALLEST_PAGE:
        raise NotADatabaseError(path)  # SQLite takes a single byte for an empty database
    if application == version == tables == 0 and not has_log:
        return  # an empty database is nobody's yet
    if application != APPLICATION_ID:
        raise ForeignDatabaseError(path)
    if version > newest:
        raise NewerDatabaseError(path, version, newest)
    # SQLite notices whole pages that are missing, not a part of the last.
    if not has_log and size_of(path) % page:
        raise CorruptDatabaseError(path, "its last page is cut short")


def _migrate(connection: sqlite3.Connection, path: Path, known: Sequence[Migration]) -> None:
    [(version,)] = connection.execute(VERSION).fetchall()
    for migration in pending(known, version):
        script = MIGRATE.format(
            sql=migration.sql, application_id=APPLICATION_ID, version=migration.version
        )
        try:
            connection.executescript(script)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in FAULTS_OF_SQL:
                raise
            raise MigrationError(
                f"{escaped(path)}: migration {migration.version:04}_{migration.name} failed "
                f"({error}); the database is as it was before it. Use the release that made it, "
                "and report this"
            ) from error


def identity_of(path: Path) -> Identity | None:
    """Return what tells the file from any other that may take its name; `None` if it is gone."""
    try:
        found = os.stat(path)  # noqa: PTH116  # 5 us less than Path.stat, at each commit
    except OSError:
        return None
    return found.st_dev, found.st_ino


def beside(path: Path, ending: str) -> Path:
    """Return the path of a file that goes with the database."""
    return path.with_name(path.name + ending)
