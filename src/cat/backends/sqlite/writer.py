"""Group commit: the writes that are in flight together share one transaction and one sync.

Each caller still gets its own answer or its own error. A batch is one function
on the worker's thread, so a cancelled caller leaves no transaction behind.

Checkpoints are guarded. SQLite 3.7.0 to 3.51.2 can lose acknowledged commits
when one process begins the log anew while another copies it back
(https://www.sqlite.org/wal.html#walresetbug). So automatic ones are off, and
here the log is copied back by one connection while another holds the write
lock, so that nobody can begin it anew.
"""

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cat.backends.sqlite.faults import is_busy, is_unknown, mapped
from cat.backends.sqlite.start import APPLICATION_ID, LOG_BYTES, beside, connect
from cat.backends.sqlite.worker import Worker, settle
from cat.entry import Change, Delete, Meta
from cat.errors import (
    CatError,
    DatabaseBusyError,
    DatabaseReplacedError,
    DatabaseUnavailableError,
)
from cat.files import size_of

LOG = logging.getLogger("cat")

# What one transaction takes at most, so that none is long: bytes of values,
# and changes. A single larger call is a batch of its own.
BATCH_BYTES = 4 * 1024 * 1024
BATCH_CHANGES = 1_000
# Pages written between two looks at the length of the log. A look at it makes
# the next commit 70-85 us slower, so there is none at every commit.
PAGES_BETWEEN_LOOKS = 250
PAGE = 4096
# Seconds that may be lost in a power cut with CAT_DURABILITY=interval.
INTERVAL = 1.0

BEGIN = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"
CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"
SYNC_EACH = "PRAGMA synchronous = FULL"
SYNC_NONE = "PRAGMA synchronous = NORMAL"
# A commit must change a page to be synced, and this one changes nothing.
TOUCH = f"PRAGMA application_id = {APPLICATION_ID}"

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

Answer = list[Meta | None]


class _Call:
    """What one caller wants written, and what became of it: an answer, an error, or neither yet."""

    __slots__ = ("answer", "bytes", "changes", "deadline", "error", "future")

    def __init__(self, changes: Sequence[Change], timeout: float) -> None:
        self.changes = changes
        self.bytes = sum(0 if isinstance(c, Delete) else c.meta.size for c in changes)
        self.deadline = time.monotonic() + timeout
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.answer: Answer | None = None
        self.error: CatError | None = None


class Writer:
    """The writing half of an open database, for one event loop.

    `suspect` tells that a sync failed: what the connection says can no longer
    be trusted, and it is to be opened anew. Methods that begin with `_thread_`
    run on the worker's thread.
    """

    def __init__(self, worker: Worker, path: Path, timeout: float, *, interval: bool) -> None:
        self.suspect = False
        self._worker = worker
        self._path = path
        self._timeout = timeout
        self._interval = interval
        self._waiting: list[_Call] = []
        self._running = False
        self._crowded = False  # the last batch held several calls, so the next will
        self._idle: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        # Used on the worker's thread alone from here on.
        self._identity = _identity(path)
        self._checkpointer: sqlite3.Connection | None = None
        self._pages = 0  # written since the last look at the log, at most
        self._synced = time.monotonic()

    def write(self, changes: Sequence[Change]) -> "asyncio.Future[Answer]":
        """Write all of `changes` or none; the future is the caller's to await or to cancel."""
        call = _Call(changes, self._timeout)
        self._waiting.append(call)
        if not self._running:
            self._running = True
            if self._crowded:  # those who come in this turn of the loop join
                call.future.get_loop().call_soon(self._next)
            else:
                self._next()
        return call.future

    async def close(self) -> None:
        """Wait for what is in flight, sync it, and close what was opened here."""
        if self._running:
            self._idle.append(asyncio.get_running_loop().create_future())
            await self._idle[-1]
        if self._timer is not None:
            self._timer.cancel()
            await self._worker.run(self._thread_sync)
        if self._checkpointer is not None:
            await self._worker.run(self._checkpointer.close)

    def _next(self) -> None:
        """Begin the next batch, or be idle."""
        batch = self._take()
        if batch:
            self._crowded = len(batch) > 1
            self._worker.submit(partial(self._thread_commit, batch), partial(self._settle, batch))
            return
        self._running = False
        for waiter in self._idle:
            settle(waiter, None, None)
        self._idle.clear()

    def _take(self) -> list[_Call]:
        """Take the calls of the next batch, in order, without those that were cancelled."""
        calls = [call for call in self._waiting if not call.future.done()]
        if self.suspect:
            self._turn_away(calls)
            calls = []
        taken = size = count = 0
        for call in calls:
            size += call.bytes
            count += len(call.changes)
            if taken and (size > BATCH_BYTES or count > BATCH_CHANGES):
                break
            taken += 1
        self._waiting = calls[taken:]
        return calls[:taken]

    def _turn_away(self, calls: list[_Call]) -> None:
        """Refuse what was waiting when a sync failed: this connection acknowledges nothing more."""
        reason = "a write before this one could not be synced; try again"
        for call in calls:
            settle(call.future, [], DatabaseUnavailableError(self._path, reason))

    def _settle(self, batch: list[_Call], _: object, error: BaseException | None) -> None:
        """Give each caller its answer; those whose turn never came are in the next batch."""
        again = []
        for call in batch:
            if error or call.error:
                settle(call.future, [], error or call.error)
            elif call.answer is None:
                again.append(call)
            else:
                settle(call.future, call.answer, None)
        self._waiting[:0] = again
        if self._interval and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._sync)
        self._next()

    def _sync(self) -> None:
        self._timer = None
        self._worker.submit(self._thread_sync, lambda _, __: None)

    def _thread_commit(self, batch: list[_Call]) -> None:
        """Commit a batch, or, if it fails with nothing stored, each call by itself."""
        error = self._thread_attempt(batch)
        if error and error.not_stored and len(batch) > 1 and not (_waits(error) or self.suspect):
            for call in batch:
                self._fail([call], self._thread_attempt([call]))
        else:
            self._fail(batch, error)
        if self._pages >= PAGES_BETWEEN_LOOKS:
            self._pages = 0
            self._thread_tend_log()

    def _fail(self, batch: list[_Call], error: CatError | None) -> None:
        """Note the error of a batch, but for calls that may still wait for another process."""
        if error is None:
            return
        now = time.monotonic()
        for call in batch:
            if not (_waits(error) and call.deadline > now):
                call.error = error

    def _thread_attempt(self, batch: list[_Call]) -> CatError | None:
        """Run one transaction, and return why it failed or `None`."""
        raw = self._worker.raw
        writes = False
        try:
            if self._interval:
                due = time.monotonic() - self._synced >= INTERVAL
                raw.execute(SYNC_EACH if due else SYNC_NONE)
            self._thread_begin(min(call.deadline for call in batch))
            answers = [self._thread_apply(call) for call in batch]
            if _identity(self._path) != self._identity:
                raise DatabaseReplacedError(self._path)  # rolled back below
            writes = True
            raw.execute(COMMIT)
        except (sqlite3.Error, CatError) as error:
            if raw.in_transaction:
                raw.execute(ROLLBACK)
            if isinstance(error, CatError):
                return error
            fault = mapped(error, self._path, self._timeout, writes=writes)
            self.suspect = self.suspect or is_unknown(error)
            return fault
        for call, answer in zip(batch, answers, strict=True):
            call.answer = answer
            self._pages += 2 * len(call.changes) + call.bytes // PAGE
        self._pages += 1
        if self._interval and due:
            self._synced = time.monotonic()
        return None

    def _thread_begin(self, deadline: float) -> None:
        """Take the write lock, and wait for it until `deadline`.

        SQLite's own waiting doubles its pauses up to 100 ms, so that whoever
        came last wins again and again. Short pauses give each the same chance.
        """
        while True:
            try:
                self._worker.raw.execute(BEGIN)
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() >= deadline:
                    raise
                time.sleep(random.uniform(0.0002, 0.001))  # noqa: S311  # not a secret
            else:
                return

    def _thread_apply(self, call: _Call) -> Answer:
        answer: Answer = []
        for change in call.changes:
            if isinstance(change, Delete):
                rows = self._worker.raw.execute(DELETE, (*change.scope, change.key)).fetchall()
                answer.append(Meta(*rows[0]) if rows else None)
            else:
                row = (*change.scope, change.key, *change.meta, change.value)
                self._worker.raw.execute(PUT, row)
                answer.append(None)
        return answer

    def _thread_tend_log(self) -> None:
        """Copy the log back into the database if it has grown long."""
        if size_of(beside(self._path, "-wal")) <= LOG_BYTES:
            return
        raw = self._worker.raw
        try:
            raw.execute(BEGIN)
            if self._checkpointer is None:
                self._checkpointer = connect(self._path, "rw", 0)
            self._checkpointer.execute(CHECKPOINT).fetchall()
        except sqlite3.Error as error:
            if not is_busy(error):  # then another process is at it, or writes
                LOG.warning("the write-ahead log could not be copied back: %s", error)
        finally:
            if raw.in_transaction:
                raw.execute(ROLLBACK)

    def _thread_sync(self) -> None:
        """Sync what was committed since the last sync, with a commit that changes nothing."""
        raw = self._worker.raw
        try:
            raw.execute(SYNC_EACH)
            self._thread_begin(time.monotonic() + self._timeout)
            raw.execute(TOUCH)
            raw.execute(COMMIT)
            self._synced = time.monotonic()
        except sqlite3.Error as error:
            self.suspect = self.suspect or is_unknown(error)
            LOG.warning("what was written in the last second could not be synced: %s", error)
        finally:
            if raw.in_transaction:
                raw.execute(ROLLBACK)


def _waits(error: CatError) -> bool:
    return isinstance(error, DatabaseBusyError)


def _identity(path: Path) -> tuple[int, int]:
    """Return what tells the file from any other that may take its name."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)
