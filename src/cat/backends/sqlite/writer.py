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
import copy
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from cat.backends.sqlite.changes import Answers, make, remove_expired
from cat.backends.sqlite.faults import is_busy, is_unknown, mapped
from cat.backends.sqlite.start import (
    APPLICATION_ID,
    LOG_BYTES,
    Identity,
    beside,
    connect,
    identity_of,
    open_database,
)
from cat.backends.sqlite.worker import Worker, settle
from cat.entry import Change, Put, Removed
from cat.errors import CatError, DatabaseBusyError, DatabaseReplacedError, NotScrubbedError
from cat.files import size_of

LOG = logging.getLogger("cat")

# What one transaction takes at most, so that none is long: bytes of values,
# and changes. A single larger call is a batch of its own.
BATCH_BYTES = 4 * 1024 * 1024
BATCH_CHANGES = 1_000
# Callers of a batch that go on in one turn of the event loop.
TOLD_AT_ONCE = 32
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

FREE_PAGES = "PRAGMA freelist_count"

CUT_LOG = "PRAGMA journal_size_limit = 0"
KEEP_LOG = f"PRAGMA journal_size_limit = {LOG_BYTES}"


class _Call:
    """What one caller wants written, and what became of it: an answer, an error, or neither yet."""

    __slots__ = ("answers", "bytes", "changes", "deadline", "error", "future", "now")

    def __init__(self, changes: Sequence[Change], now: float, timeout: float) -> None:
        self.changes = changes
        self.now = now
        self.bytes = 0
        for change in changes:
            if isinstance(change, Put):
                self.bytes += change.meta.size
        self.deadline = time.monotonic() + timeout
        self.future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        self.answers: Answers | None = None
        self.error: BaseException | None = None


class Writer:
    """The writing half of a database, for the running event loop; it begins to open when made.

    `path` is that of the real file, not of a link to it. Methods that begin
    with `_thread_` run on the worker's thread.
    """

    def __init__(self, path: Path, timeout: float, *, interval: bool) -> None:
        self._path = path
        self._timeout = timeout
        self._interval = interval
        self._waiting: list[_Call] = []
        self._made: deque[_Call] = deque()  # or failed, and the caller does not know yet
        self._running = True  # until it is open, calls wait, in their order
        self._crowded = False  # the last batch held several calls, so the next will
        self._submitted = 0  # batches
        self._timer: asyncio.TimerHandle | None = None
        # Written on the worker's thread alone from here on.
        self._identity: Identity | None = None  # of the file, once it was opened
        self._unsynced = False
        self._synced = time.monotonic()
        self._free = 0  # pages of the file that hold nothing
        self._pages = 0  # written since the last look at the log, at most
        self._worker = Worker(self._thread_connect)
        self._worker.when_open(self._begin)

    @property
    def failed(self) -> bool:
        """Whether it could not be opened."""
        return self._worker.failure is not None

    async def opened(self) -> None:
        """Wait until the database is open, or raise what went wrong."""
        await self._worker.opened()

    def write(self, changes: Sequence[Change], now: float) -> "asyncio.Future[Answers]":
        """Write all of `changes` or none; the future is the caller's to await or to cancel."""
        call = _Call(changes, now, self._timeout)
        self._waiting.append(call)
        if not self._running:
            self._running = True
            if self._crowded:  # those who come in this turn of the loop join
                call.future.get_loop().call_soon(self._next)
            else:
                self._next()
        return call.future

    def barrier(self) -> "asyncio.Future[Answers] | None":
        """Return what is done when all writes called so far are; `None` if they are."""
        return self.write((), 0.0) if self._running else None

    async def scrub(self) -> None:
        """Leave nothing of what was removed in the log; writes go on between the attempts."""
        await self.opened()
        deadline = time.monotonic() + self._timeout
        while not await self._worker.run(self._thread_scrub):
            if time.monotonic() > deadline:
                raise NotScrubbedError(self._path, self._timeout)
            await asyncio.sleep(_some(0.002, 0.02))

    async def close(self) -> None:
        """Wait for what is in flight, sync it, and close everything."""
        await self._worker.settled()
        while self._running:
            submitted = self._submitted
            await self._worker.run(_nothing)  # after the batch under way
            if self._submitted == submitted:
                self._next()  # a KeyboardInterrupt may have kept its end from doing so
        while self._made:
            self._tell()
        if self._timer is not None:
            self._timer.cancel()
        if self._unsynced:
            await self._worker.run(self._thread_sync)
        await self._worker.close()

    def hold(self) -> None:
        """Keep the thread out of SQLite, and close what is open, until `release`."""
        self._worker.hold()

    def release(self) -> None:
        """Let the thread go on after `hold`."""
        self._worker.release()

    def abandon(self) -> None:
        """Close what a closed event loop left open."""
        self._made.clear()  # nobody is there to be told
        self._worker.abandon()

    def _begin(self) -> None:
        """Go on with the calls that came while the database was being opened."""
        failure = self._worker.failure
        if failure is None:
            self._next()
            return
        self._running = False
        calls, self._waiting = self._waiting, []
        for call in calls:
            settle(call.future, [], copy.copy(failure))

    def _next(self) -> None:
        """Begin the next batch, or be idle."""
        batch = self._take()
        if batch:
            self._crowded = len(batch) > 1
            self._submitted += 1
            self._worker.submit(partial(self._thread_commit, batch), partial(self._settle, batch))
        else:
            self._running = False

    def _take(self) -> list[_Call]:
        """Take the calls of the next batch, in order, without those that were cancelled."""
        calls = [call for call in self._waiting if not call.future.done()]
        taken = size = count = 0
        for call in calls:
            size += call.bytes
            count += len(call.changes)
            if taken and (size > BATCH_BYTES or count > BATCH_CHANGES):
                break
            taken += 1
        self._waiting = calls[taken:]
        return calls[:taken]

    def _settle(self, batch: list[_Call], _: object, error: BaseException | None) -> None:
        """Take note of what became of a batch; those whose turn never came are in the next."""
        again = []
        for call in batch:
            call.error = call.error or error
            if call.answers is None and call.error is None:
                again.append(call)
            else:
                self._made.append(call)
        self._waiting[:0] = again
        self._set_timer()
        self._next()
        self._tell()

    def _tell(self) -> None:
        """Give callers their answers, a few in each turn of the event loop.

        Each goes on in the next turn, and a thousand of them at once would hold it.
        """
        if len(self._made) > TOLD_AT_ONCE:  # first, as a KeyboardInterrupt may come
            asyncio.get_running_loop().call_soon(self._tell)
        for _ in range(min(TOLD_AT_ONCE, len(self._made))):
            call = self._made[0]
            if call.answers is not None:
                settle(call.future, call.answers, None)
            else:
                settle(call.future, [], call.error)
            self._made.popleft()  # last, as a KeyboardInterrupt may come

    def _set_timer(self) -> None:
        if self._unsynced and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._sync)

    def _sync(self) -> None:
        self._timer = None
        if self._unsynced:
            self._worker.submit(self._thread_sync, lambda _, __: self._set_timer())

    def _thread_connect(self) -> sqlite3.Connection:
        if self._identity is not None:
            return connect(self._path, "rw", 0)
        connection, self._identity = open_database(self._path, self._timeout)
        return connection

    def _thread_commit(self, batch: list[_Call]) -> None:
        """Commit a batch, or, if it fails with nothing stored, each call by itself."""
        error = self._thread_attempt(batch)
        if error and error.not_stored and len(batch) > 1 and not _waits(error):
            for call in batch:
                self._thread_fail([call], self._thread_attempt([call]))
        else:
            self._thread_fail(batch, error)
        if self._pages >= PAGES_BETWEEN_LOOKS:
            self._pages = 0
            self._thread_tend_log()

    def _thread_fail(self, batch: list[_Call], error: CatError | None) -> None:
        """Note the error of a batch, but for calls that may still wait for another process."""
        if error is None:
            return
        now = time.monotonic()
        for call in batch:
            if not (_waits(error) and call.deadline > now):
                call.error = copy.copy(error)  # each caller's traceback is its own

    def _thread_attempt(self, batch: list[_Call]) -> CatError | None:
        """Run one transaction, and return why it failed or `None`."""
        commits = False
        try:
            syncs = not self._interval or time.monotonic() - self._synced >= INTERVAL
            raw = self._thread_begin(
                SYNC_EACH if syncs else SYNC_NONE,
                min(call.deadline for call in batch),
                lambda: all(call.future.done() for call in batch),
            )
            with _rolled_back(raw):
                # Whoever was cancelled meanwhile is left out: no write comes late.
                calls = [call for call in batch if not call.future.done()]
                outcomes = make(raw, [(call.changes, call.now) for call in calls])
                changed = sum(len(call.changes) for call in calls)
                size = sum(call.bytes for call in calls)
                now = max((call.now for call in calls), default=0.0)
                # As many as come go, or they would pile up; and never very many at once.
                removed = remove_expired(raw, now, max(200, 2 * changed), max(2**20, 2 * size))
                [(free,)] = raw.execute(FREE_PAGES).fetchall()
                if identity_of(self._path) != self._identity:
                    return DatabaseReplacedError(self._path)
                commits = True
                raw.execute(COMMIT)
        except sqlite3.Error as error:
            if is_unknown(error):
                # A second sync may succeed without having written anything
                # (https://lwn.net/Articles/752063/): another connection reads
                # what is there, and writes it anew.
                self._worker.disconnect()
            return mapped(error, self._path, self._timeout, writes=commits)
        for call, outcome in zip(calls, outcomes, strict=True):
            if isinstance(outcome, CatError):
                call.error = outcome
            else:
                call.answers = outcome
                for answer in outcome:
                    if isinstance(answer, Removed):
                        removed += answer.entries
        # What is deleted is overwritten, as secure_delete is on, and logged too.
        freed = max(0, free - self._free)
        self._pages += 1 + removed + 2 * changed + size // PAGE + freed
        self._free = free
        self._unsynced = not syncs
        if syncs:
            self._synced = time.monotonic()
        return None

    def _thread_begin(
        self, sync: str, deadline: float, is_pointless: Callable[[], bool]
    ) -> sqlite3.Connection:
        """Take the write lock, and wait for it until the deadline, or until that is pointless.

        SQLite's own waiting doubles its pauses up to 100 ms, so that whoever
        came last wins again and again. Short pauses give each the same chance.
        """
        while True:
            raw = self._worker.connection()  # another one, if the process forked meanwhile
            try:
                if self._interval:
                    raw.execute(sync)
                raw.execute(BEGIN)
            except sqlite3.OperationalError as error:
                gone = self._worker.left or is_pointless()
                if not is_busy(error) or gone or time.monotonic() >= deadline:
                    raise
                self._worker.rest(_some(0.0002, 0.001))
            else:
                return raw

    def _thread_tend_log(self) -> None:
        """Copy the log back into the database if it has grown long.

        The writes before it are stored: nothing here may fail them, and there
        will be another look.
        """
        try:
            if size_of(beside(self._path, "-wal")) > LOG_BYTES:
                self._thread_copy_back()
        except (sqlite3.Error, OSError) as error:
            if not (isinstance(error, sqlite3.Error) and is_busy(error)):  # by another process
                LOG.warning("the write-ahead log could not be copied back: %s", error)

    def _thread_copy_back(self) -> tuple[int, int]:
        """Copy the log back as far as readers let it; return its pages, and how many were moved."""
        raw = self._worker.connection()
        with _rolled_back(raw), closing(connect(self._path, "rw", 0)) as other:
            raw.execute(BEGIN)
            [(_, pages, moved)] = other.execute(CHECKPOINT).fetchall()
        return pages, moved

    def _thread_scrub(self) -> bool:
        """Copy the log back and cut it, as removed values stand in it; say whether that was done.

        It begins anew at the first commit that finds all of it copied back and
        nobody reading it, and is cut if that is one of ours.
        """
        raw = self._worker.connection()
        try:
            raw.execute(CUT_LOG)
            before, moved = self._thread_copy_back()
            if moved < before:
                return False
            self._thread_touch()
            after, _ = self._thread_copy_back()
            is_new = after <= before  # or else it would be longer by a page
            return is_new and size_of(beside(self._path, "-wal")) <= 32 + after * (PAGE + 24)
        except sqlite3.Error as error:
            if is_busy(error):
                return False
            raise mapped(error, self._path, self._timeout, writes=False) from error
        finally:
            raw.execute(KEEP_LOG)

    def _thread_touch(self) -> None:
        """Make a commit that changes nothing, and is synced."""
        raw = self._worker.connection()
        raw.execute(SYNC_EACH)
        with _rolled_back(raw):
            raw.execute(BEGIN)
            raw.execute(TOUCH)
            raw.execute(COMMIT)

    def _thread_sync(self) -> None:
        """Sync what was committed since the last sync, with a commit that changes nothing."""
        try:
            self._thread_touch()
            self._synced = time.monotonic()
            self._unsynced = False
        except sqlite3.Error as error:
            if is_unknown(error):
                self._worker.disconnect()
            LOG.warning("what was written is not synced yet: %s; it is tried again", error)


@contextmanager
def _rolled_back(raw: sqlite3.Connection) -> Iterator[None]:
    """Roll back at the end whatever was not committed, for any reason."""
    try:
        yield
    finally:
        if raw.in_transaction:
            raw.execute(ROLLBACK)


def _some(least: float, most: float) -> float:
    """Return a number of seconds between two, at random."""
    import random  # noqa: PLC0415  # 1 ms, for those who wait

    return random.uniform(least, most)  # noqa: S311  # not a secret


def _nothing() -> None:
    """Wait, on the worker's thread, for what was submitted before."""


def _waits(error: CatError) -> bool:
    return isinstance(error, DatabaseBusyError)
