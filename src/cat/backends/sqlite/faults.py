"""The one place where a driver's error is read."""

import sqlite3
from pathlib import Path

from cat.errors import (
    CatError,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    DiskFullError,
    ForeignDatabaseError,
    NotADatabaseError,
    NotWritableError,
)


def is_busy(error: sqlite3.Error) -> bool:
    """Tell whether another connection was in the way, so that a second try may succeed."""
    return _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"))


def is_unknown(error: BaseException) -> bool:
    """Tell whether a write that failed so may be stored all the same.

    Only an input or output error can strike after the commit was written: when
    the sync failed, the value may be there after a crash of the system, or not.
    """
    return not isinstance(error, sqlite3.Error) or _name(error).startswith("SQLITE_IOERR")


def mapped(  # noqa: PLR0911  # one for each kind of fault
    error: sqlite3.Error, path: Path, timeout: float, *, writes: bool
) -> CatError:
    """Return the error for a caller who read or wrote, and waited up to `timeout` seconds."""
    name = _name(error)
    if is_busy(error):
        return DatabaseBusyError(path, timeout)
    if name == "SQLITE_READONLY_ROLLBACK":
        # A transaction cut short by a crash. Ours are in the write-ahead log;
        # this is a rollback journal, and rolling it back is its owner's.
        return ForeignDatabaseError(path)
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return NotWritableError(path, str(error))
    if name.startswith("SQLITE_CORRUPT"):
        return CorruptDatabaseError(path, str(error))
    if name == "SQLITE_FULL":
        return DiskFullError(path)
    if name == "SQLITE_NOTADB":
        return NotADatabaseError(path)
    cure = "look at the disk and the system's log"
    if name.startswith("SQLITE_CANTOPEN"):
        cure = "check that this process may read and write the file and its directory"
    return DatabaseUnavailableError(
        path,
        # Without a name it is Python's own, whose text may hold a value.
        f"SQLite reports '{error if name else type(error).__name__}'; {cure}",
        not_stored=not (writes and is_unknown(error)),
    )


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "")
