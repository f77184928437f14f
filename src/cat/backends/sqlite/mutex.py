"""A lock that processes share: an empty file, which SQLite locks.

The system drops it when its holder dies, and a child does not inherit it, though
it inherits SQLite's memory of it: see `Locks.forget`. It needs nothing that is
not here anyway: filelock did the same, took 17 ms to import at every first verb,
and 130 us of an edit, where this takes 35.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cat.backends.sqlite.faults import mapped
from cat.errors import CatError
from cat.files import make_file, unwritable

# Nothing is ever written; without it SQLite would make a file for the rollback.
NO_JOURNAL = "PRAGMA journal_mode = MEMORY"
BEGIN = "BEGIN EXCLUSIVE"
# SQLite opens what it may not write to read it, and then excludes nobody. This
# raises there, and is rolled back where it does not.
WRITE = "PRAGMA user_version = 1"
ROLLBACK = "ROLLBACK"

# To close a file drops all locks that the process has on it. So no other thread
# may find it there, and lock it, before `make_file` has closed what it made.
_making = threading.Lock()


def _after_fork_in_child() -> None:
    global _making  # noqa: PLW0603  # a thread that held it is not here, and never releases it
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@contextmanager
def faults_mapped(place: Path, timeout: float) -> Iterator[None]:
    """Raise what is met at a mutex as an error of `cat.errors`; `timeout` is in seconds."""
    try:
        yield
    except sqlite3.Error as error:
        raise mapped(error, place, timeout, writes=False) from error
    except OSError as error:
        if isinstance(error, CatError):
            raise
        raise unwritable(place, error) from error


class Mutex:
    """The lock that is the file at `path`, for one holder at a time, from any thread.

    Two of one path keep each other out, in one process too.
    """

    __slots__ = ("_connection", "_identity", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._identity = (0, 0)

    def make(self) -> None:
        """Make the file if it is not there; raises `NotWritableError`."""
        with _making:
            make_file(self._path)

    def acquire(self) -> bool:
        """Take it, and say whether that was done: it is not if somebody has it.

        Raises `FileNotFoundError` if there is no file, `OSError`, and `sqlite3.Error`.
        """
        found = os.stat(self._path)  # noqa: PTH116  # a third of the time of Path's
        identity = (found.st_dev, found.st_ino)
        try:
            if self._connection is None or self._identity != identity:
                self.close()  # of a file that was removed, where nobody else looks
                with _making:
                    self._connection = self._connect()
                self._identity = identity
            self._connection.execute(BEGIN)
            self._connection.execute(WRITE)
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                return False
            self.close()
            raise
        return True

    def release(self) -> None:
        """Let go of it."""
        if self._connection is not None:
            try:
                self._connection.execute(ROLLBACK)
            except sqlite3.Error:
                self.close()  # which lets go of it too

    def close(self) -> None:
        """Let go of it and of the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw",
            uri=True,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute(NO_JOURNAL)  # reads the file, and so may find it locked
        except BaseException:
            connection.close()
            raise
        return connection
