"""The write-ahead log: how long it grows, what copying it back may disturb, what it leaves behind.

Also the locks that hold it all together (https://www.sqlite.org/howtocorrupt.html, 2.2).
"""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

import cat
from cat import as_user, connect, for_user, store, user
from cat.backends.sqlite import start, writer
from cat.backends.sqlite.start import LOG_BYTES
from cat.schema import Migration, migrations
from children import printed

MEGABYTE = 10**6

# A process looks at the log after every quarter of LOG_BYTES that it writes,
# and begins it anew with the commit after that. What comes in between: a
# quarter, one batch, and, when others were in the way, a few quarters more.
OF_ONE = 2 * LOG_BYTES
OF_THREE = 3 * LOG_BYTES
# A batch of large values is about as long as LOG_BYTES, and the pages of the
# values that it replaces are overwritten as well.
OF_LARGE_VALUES = 3 * LOG_BYTES


class Watch:
    """The longest that the log of the database in `home` has been, as far as was seen."""

    def __init__(self, home: Path) -> None:
        self.longest = 0
        self._log = home / "cat.db-wal"

    def look(self) -> int:
        """Return how long the log is now, and remember the longest."""
        size = self._log.stat().st_size
        self.longest = max(self.longest, size)
        return size

    async def each(self, calls: list[Awaitable[object]]) -> None:
        """Await each of `calls` by itself, and look after it."""
        for call in calls:
            await call
            self.look()


@pytest.fixture
def watch(home: Path) -> Watch:
    """Watch the log of the test's own database."""
    return Watch(home)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing about a checkpoint is worth a warning, unless a test says so."""
    yield
    assert caplog.records == []


# How long it grows.


async def test_the_log_stays_bounded(watch: Watch) -> None:
    """20,000 saves of changing values, alone and ten at once, leave the log short at any time."""
    await watch.each([store.save(f"k{n % 500}", f"{n} " * 50) for n in range(2_000)])
    for first in range(2_000, 20_000, 10):
        saves = [store.save(f"k{n % 1_000}", f"{n} " * 50) for n in range(first, first + 10)]
        await asyncio.gather(*saves)
        watch.look()
    assert LOG_BYTES / 2 < watch.longest < OF_ONE


SAVE_MANY = """
import asyncio, sys
from cat import store

async def main():
    for first in range(0, 5_000, 10):
        saves = [store.save(f"k{n % 1_000}", f"{n} " * 50) for n in range(first, first + 10)]
        await asyncio.gather(*saves)
        assert await store.load(f"k{first % 1_000}") is not None

asyncio.run(main())
"""


async def test_the_log_of_three_processes_stays_bounded(home: Path, watch: Watch) -> None:
    """Three processes that save and load at once leave the log short, though they collide."""
    await store.save("k", 1)
    children = [start_child(SAVE_MANY) for _ in range(3)]
    while None in [child.poll() for child in children]:
        await asyncio.sleep(0.002)
        watch.look()
    assert [child.communicate() for child in children] == [("", None)] * 3
    assert [child.returncode for child in children] == [0, 0, 0]
    assert LOG_BYTES / 2 < watch.longest < OF_THREE


@pytest.mark.parametrize("at_once", [1, 100])
async def test_the_log_of_large_values_stays_bounded(at_once: int, watch: Watch) -> None:
    """A hundred values of a megabyte, saved and saved again, leave the log short."""
    for turn in "ab":
        for first in range(0, 100, at_once):
            keys = range(first, first + at_once)
            await asyncio.gather(*(store.save(f"k{key}", turn * MEGABYTE) for key in keys))
            watch.look()
    assert watch.longest < OF_LARGE_VALUES


LARGE_THEN = {
    "deleted": store.delete,
    "replaced by a small one": lambda key: store.save(key, 1),
}


@pytest.mark.parametrize("then", LARGE_THEN.values(), ids=LARGE_THEN)
async def test_the_log_of_freed_pages_stays_bounded(
    then: Callable[[str], Awaitable[object]], watch: Watch
) -> None:
    """Large values that go leave the log short, though each page they had is overwritten."""
    await asyncio.gather(*(store.save(f"k{n}", "x" * MEGABYTE) for n in range(50)))
    await watch.each([then(f"k{n}") for n in range(50)])
    assert watch.longest < OF_LARGE_VALUES


READ_AND_READ = """
import asyncio, sys
from cat import store

async def main():
    print("ready", flush=True)
    while True:
        await asyncio.gather(store.load("k1"), store.load("large"), store.exists("k2"))

asyncio.run(main())
"""


async def test_the_log_beside_a_reading_process_stays_bounded(watch: Watch) -> None:
    """A process that does nothing but load does not keep the log from being begun anew."""
    await store.save("large", "x" * MEGABYTE)  # read on a thread
    child = start_child(READ_AND_READ)
    try:
        assert child.stdout.readline() == "ready\n"
        for first in range(0, 10_000, 10):
            await asyncio.gather(*(store.save(f"k{n}", f"{first} " * 50) for n in range(10)))
            watch.look()
    finally:
        child.kill()
        child.communicate()
    assert LOG_BYTES / 2 < watch.longest < OF_ONE


# What copying it back may disturb.


async def test_a_long_read_fails_no_write(home: Path, watch: Watch) -> None:
    """A reader that stays makes the log long and nothing else; when it goes, so does the log."""
    await store.save("k", "before")
    with closing(sqlite3.connect(f"{(home / 'cat.db').as_uri()}?mode=ro", uri=True)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchall()
        await watch.each([store.save("k", f"{n} " * 1_000) for n in range(1_500)])
        assert watch.longest > 2 * LOG_BYTES
        assert await store.load("k") == "1499 " * 1_000
    await asyncio.gather(*(store.save(f"k{n}", n) for n in range(500)))
    await store.save("k", 1)
    assert watch.look() <= LOG_BYTES


LOCK_AND_LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)
print("ready", flush=True)
while True:
    connection.execute("BEGIN IMMEDIATE")
    time.sleep(0.003)
    connection.execute("ROLLBACK")
    time.sleep(0.003)
"""


async def test_a_lock_of_another_fails_no_write(home: Path, watch: Watch) -> None:
    """A process that takes the write lock again and again delays saves, and the log a little."""
    await store.save("k", 0)
    child = start_child(LOCK_AND_LOCK, str(home / "cat.db"))
    try:
        assert child.stdout.readline() == "ready\n"
        for _ in range(400):
            await asyncio.gather(*(store.save(f"k{n}", "x" * 3_000) for n in range(25)))
            watch.look()
    finally:
        child.kill()
        child.communicate()
    assert LOG_BYTES / 2 < watch.longest < OF_THREE


async def test_a_checkpoint_that_fails_fails_no_write(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, watch: Watch
) -> None:
    """A save is acknowledged though the log cannot be copied back, and one warning says so."""

    def failing(*_: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "connect", failing)
        await asyncio.gather(*(store.save(f"k{n}", "x" * 3_000) for n in range(2_500)))
        assert await store.load("k2499") == "x" * 3_000
    assert caplog.records
    for record in caplog.records:
        assert record.getMessage() == (
            "the write-ahead log could not be copied back: disk I/O error"
        )
    caplog.clear()
    await asyncio.gather(*(store.save(f"k{n}", n) for n in range(500)))
    await store.save("k", 1)
    assert watch.look() <= LOG_BYTES


async def test_a_log_that_cannot_be_looked_at_fails_no_write(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was committed is acknowledged, whatever goes wrong when the log is tended."""

    def failing(place: Path) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writer, "size_of", failing)
    await asyncio.gather(*(store.save(f"k{n}", n) for n in range(500)))
    assert [await store.load(f"k{n}") for n in range(500)] == list(range(500))
    caplog.clear()


# The locks.


def locks(database: Path) -> set[tuple[str, int, int]]:
    """Return the locks of this process on the file and the index of its log, as Linux lists them.

    Each as 'file' or 'index', the first byte, and the last.
    """
    names = {
        str(database.stat().st_ino): "file",
        str(database.with_name(database.name + "-shm").stat().st_ino): "index",
    }
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        kind, process, inode = words[-5], words[-4], words[-3].rpartition(":")[2]
        if kind == "READ" and process == str(os.getpid()) and inode in names:
            found.add((names[inode], int(words[-2]), int(words[-1])))
    return found


# Of the file format (https://www.sqlite.org/src/file/src/os.h, SHARED_FIRST and
# SHARED_SIZE; os_unix.c, UNIX_SHM_DMS).
LOCKED = {("file", 0x40000002, 0x40000002 + 509), ("index", 128, 128)}

linux = pytest.mark.skipif(
    not Path("/proc/locks").exists(), reason="only Linux lists the locks of a process"
)


@linux
def test_a_lost_lock_would_be_seen(tmp_path: Path) -> None:
    """Opening and closing a database by other means than SQLite is what these tests find."""
    database = tmp_path / "other.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (c)")
        assert locks(database) == LOCKED
        database.open("rb").close()
        assert locks(database) < LOCKED


async def _in_a_thread(use: Callable[[], Awaitable[object]]) -> None:
    """Run `use` on an event loop of its own, in another thread, to its end and closed."""
    await asyncio.to_thread(lambda: asyncio.run(use()))


async def _use() -> None:
    await store.save("from another loop", 1)
    assert await store.load("from another loop") == 1


async def _use_by_url(path: Path) -> None:
    async with connect(url=f"sqlite:///{path}"):
        await store.save("by another name", 1)


async def _abandoned() -> None:
    """Use the store on a loop that is closed under it."""
    loop = asyncio.new_event_loop()
    await asyncio.to_thread(loop.run_until_complete, _use())
    loop.close()
    await _in_a_thread(_use)  # closes what was left


async def _refused(error: type[Exception], use: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(error):
        await use()


@contextmanager
def _migrations(*known: Migration) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "migrations", lambda dialect: list(known))
        yield


async def _refused_open(error: type[Exception], *known: Migration) -> None:
    with _migrations(*known):
        await _refused(error, lambda: _in_a_thread(_use))


async def _too_old() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "OLDEST_ENGINE", (99,))
        await _refused(cat.errors.DatabaseUnavailableError, lambda: _in_a_thread(_use))


async def _as_alice() -> None:
    with as_user("alice"):
        await user.save("k", 1)
        assert user.folder.is_dir()


async def _cancelled() -> None:
    task = asyncio.ensure_future(store.save("k", 1))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.save("k", 2)  # what was cancelled runs to its end before


async def _many() -> None:
    await asyncio.gather(*(store.save(f"k{n}", "x" * 5_000) for n in range(3_000)))


async def _folder() -> None:
    (store.folder / "a.txt").write_text("a")
    (store.namespace("a").folder / "a.txt").unlink(missing_ok=True)


async def _nested(home: Path) -> None:
    async with connect(home=home):
        await store.save("k", 1)


def _connected_to(home: Path) -> Callable[[], Awaitable[object]]:
    return lambda: _nested(home)


KNOWN = migrations("sqlite")
OLDER = Migration(KNOWN[-1].version - 1, "older", "")
BROKEN = Migration(KNOWN[-1].version + 1, "broken", "CREATE TABLE entries (c);")

# Each is given the home.
CALLS: dict[str, Callable[[Path], Awaitable[object]]] = {
    "save": lambda _: store.save("k", 1),
    "save, to expire": lambda _: store.save("k", 1, expires_in=timedelta(days=1)),
    "save, many, with checkpoints": lambda _: _many(),
    "save, refused": lambda _: _refused(
        cat.errors.UnstorableValueError, lambda: store.save("k", {1})
    ),
    "save, cancelled": lambda _: _cancelled(),
    "load": lambda _: store.load("k"),
    "load, large": lambda _: store.load("large"),
    "load, as a type": lambda _: store.load("k", type=int),
    "exists": lambda _: store.exists("k"),
    "delete": lambda _: store.delete("k"),
    "a user's": lambda _: _as_alice(),
    "another user's": lambda _: for_user("bob").save("k", 1),
    "a namespace's": lambda _: store.namespace("a").namespace("b").save("k", 1),
    "folder": lambda _: _folder(),
    "connect, inside": _nested,
    "connect, elsewhere": lambda home: _refused(
        cat.errors.AlreadyConnectedError, _connected_to(home / "other")
    ),
    "another home": lambda home: _in_a_thread(_connected_to(home / "other")),
    "another loop, and its end": lambda _: _in_a_thread(_use),
    "another loop, closed under it": lambda _: _abandoned(),
    "another name of the file": lambda home: _in_a_thread(
        lambda: _use_by_url(home / ".." / home.name / "cat.db")
    ),
    "a link to the file": lambda home: _in_a_thread(lambda: _use_by_url(home.parent / "link.db")),
    "open, newer than known": lambda _: _refused_open(cat.errors.NewerDatabaseError, OLDER),
    "open, with a migration that fails": lambda _: _refused_open(
        cat.errors.MigrationError, *KNOWN, BROKEN
    ),
    "open, with too old an engine": lambda _: _too_old(),
}


@linux
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_no_call_loses_the_locks(
    call: Callable[[Path], Awaitable[object]], home: Path
) -> None:
    """Whatever is called, this process's locks on the database are all still there after it."""
    await store.save("k", 1)
    await store.save("large", "x" * MEGABYTE)
    await store.load("large")
    (home.parent / "link.db").symlink_to(home / "cat.db")
    assert locks(home / "cat.db") == LOCKED
    await call(home)
    assert locks(home / "cat.db") == LOCKED
    assert printed(LOAD, "large") == f"{MEGABYTE}\n"  # and another may come and go
    assert locks(home / "cat.db") == LOCKED
    await store.save("k", 2)
    assert printed(LOAD, "k") == "2\n"


BEGIN = """
import contextlib, sqlite3, sys
with contextlib.closing(sqlite3.connect(sys.argv[1], timeout=1)) as connection:
    connection.execute("BEGIN IMMEDIATE")
"""


async def test_a_save_without_a_home_leaves_no_lock(home: Path) -> None:
    """When a file has taken the place of the home, a save says so and lets others write."""
    await store.save("k", 1)
    aside = home.rename(home.with_name("aside"))
    home.touch()
    with pytest.raises(cat.errors.DatabaseReplacedError):
        await store.save("k", 2)
    assert printed(BEGIN, str(aside / "cat.db")) == ""
    home.unlink()
    aside.rename(home)
    assert await store.load("k") == 1
    await store.save("k", 3)
    assert await store.load("k") == 3


LOAD = """
import asyncio, sys
from cat import store

async def main():
    value = await store.load(sys.argv[1])
    print(value if isinstance(value, int) else len(value))

asyncio.run(main())
"""


# What it leaves behind.


def in_the_file_alone(database: Path) -> int:
    """Return how many entries the file holds, whatever lies beside it."""
    uri = f"{database.as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        return connection.execute("SELECT count(*) FROM entries").fetchone()[0]


def assert_alone(home: Path, entries: int) -> None:
    """Insist that one file holds everything, and can be copied as it is."""
    assert in_the_file_alone(home / "cat.db") == entries
    assert {path.name for path in home.iterdir()} <= {"cat.db", "cat.db.lock", "files"}


@pytest.mark.parametrize("durability", ["always", "interval"])
@pytest.mark.parametrize("saves", [1, 3_000])
def test_one_file_remains(
    saves: int, durability: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the loop has ended, the main file holds everything and no log lies beside it."""
    monkeypatch.setenv("CAT_DURABILITY", durability)

    async def main() -> None:
        await asyncio.gather(*(store.save(f"k{n}", "x" * 3_000) for n in range(saves)))
        assert await store.load("k0")

    asyncio.run(main())
    assert_alone(home, saves)


def test_one_file_remains_after_the_last(home: Path) -> None:
    """The log is there for as long as any process uses it, and gone with the last."""

    async def main() -> None:
        await store.save("here", 1)
        for n in range(3):
            printed(f"import asyncio\nfrom cat import store\nasyncio.run(store.save('{n}', {n}))")
        await _in_a_thread(_use)
        assert in_the_file_alone(home / "cat.db") < 5
        assert (home / "cat.db-wal").stat().st_size > 0

    asyncio.run(main())
    assert_alone(home, 5)


def test_one_file_remains_of_what_was_killed(home: Path) -> None:
    """What a killed process left in the log is in the main file when the next one has ended."""
    code = """
    import asyncio, os, signal
    from cat import store

    async def main():
        await asyncio.gather(*(store.save(f"k{n}", n) for n in range(100)))
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(main())
    """
    child = start_child(code)
    child.communicate(timeout=60)
    assert (home / "cat.db-wal").stat().st_size > 0
    assert printed(LOAD, "k99") == "99\n"
    assert_alone(home, 100)


def start_child(code: str, *arguments: str) -> subprocess.Popen:
    """Start a Python process that runs `code` beside this one."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )
