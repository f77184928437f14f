"""Bad files, full disks, held locks: each has its own error, and what was there stays."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import contextlib
import os
import pickle
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import integrity, wait_for

from cat import for_user, store
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
    shown,
)
from cat.schema import Migration, migrations
from children import python

NOBODY = 65534
KNOWN = migrations("sqlite")
NOTES = Migration(len(KNOWN) + 1, "notes", "CREATE TABLE notes (text TEXT);")
CURE = re.compile(
    r"[;:.] (copy|fix|free|give|look|move|mount|point|put|reinstall|rename|report|restore|run"
    r"|try|upgrade|use)\b",
    re.IGNORECASE,
)
BUILT_IN = {
    DatabaseBusyError: TimeoutError,
    NotWritableError: PermissionError,
    MigrationError: RuntimeError,
    NewerDatabaseError: RuntimeError,
}


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name the database with CAT_URL: what becomes of it is not for `home` to check."""
    path = tmp_path / "place" / "some.db"
    path.parent.mkdir(mode=0o700)
    monkeypatch.setenv("CAT_URL", f"sqlite:///{path}")
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system in memory, of the given options."""
    place = tmp_path / "disk"

    def mounted(options: str) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
            pytest.skip("needs the right to mount a small disk, as root has it")
        return place

    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs the right to mount a small disk, as root has it")
    yield mounted
    wait_for(lambda: not place.is_mount() or subprocess.call(["umount", str(place)]) == 0)  # noqa: S607


def check(error: BaseException, kind: type[CatError], path: Path) -> None:
    """Insist that `error` says what, where, and what to do, and that it travels."""
    assert type(error) is kind
    assert isinstance(error, BUILT_IN.get(kind, OSError))
    assert error.not_stored is True
    text = str(error)
    given, real = (shown(str(p))[1:-1].removesuffix("..") for p in (path, os.path.realpath(path)))
    assert given in text or real in text  # of a link
    assert CURE.search(text), f"no cure in: {text}"
    assert getattr(error, "location", path) in (path, Path(os.path.realpath(path)))
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # written on this line
    assert (type(copy), str(copy), vars(copy)) == (kind, text, vars(error))


def refused() -> CatError:
    """Try each verb on one event loop, insist that all are refused alike, and return the error."""

    async def errors() -> list[CatError]:
        tried = [store.save("k", "new"), store.load("k"), store.exists("k"), store.delete("k")]
        found = await asyncio.gather(*tried, return_exceptions=True)
        assert all(isinstance(error, CatError) for error in found), found
        return found  # type: ignore[return-value]

    found = asyncio.run(errors())
    assert len({type(error) for error in found}) == 1
    return found[0]


def save(key: str = "k", value: object = "old") -> None:
    """Save on an event loop of its own, so that everything is closed afterwards."""
    asyncio.run(_save(key, value))


async def _save(key: str, value: object) -> None:
    await store.save(key, value)


def load(key: str = "k") -> object:
    """Load on an event loop of its own."""

    async def loaded() -> object:
        return await store.load(key)

    return asyncio.run(loaded())


def contents(place: Path) -> dict[str, object]:
    """Return all there is below `place`: bytes of files, targets of links, kinds of the rest.

    The start lock is ours, and of a `-shm`, which SQLite rebuilds at will, the name counts.
    """
    found: dict[str, object] = {}
    for path in place.rglob("*"):
        mode = path.lstat().st_mode
        name = str(path.relative_to(place))
        if stat.S_ISLNK(mode):
            found[name] = path.readlink()
        elif not stat.S_ISREG(mode) or name.endswith("-shm"):
            found[name] = stat.S_IFMT(mode)
        elif not name.endswith(".lock"):
            found[name] = path.read_bytes()
    return found


def sql(path: Path, *statements: str) -> list[tuple[object, ...]]:
    """Run statements as another program would, and return the last one's rows."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        return rows
    finally:
        connection.close()


def killed(path: Path, *statements: str) -> None:
    """Run statements in a process that is killed with its connection open."""
    done = python(
        """
        import os, signal, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        for statement in sys.argv[2:]:
            connection.execute(statement).fetchall()
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        str(path),
        *statements,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@contextlib.contextmanager
def another_process(code: str, *arguments: str) -> Iterator[None]:
    """Run `code` beside a `with` block, from where it is ready until the block ends."""
    waits = "\nprint('ready', flush=True)\nsys.stdin.read()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys\n" + textwrap.dedent(code) + waits, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.communicate()


HOLD = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
"""

# --- Places that cannot be written.


def as_nobody(expression: str, **environment: object) -> BaseException | None:
    """Evaluate in a process without root's rights, and return the exception, sent by pickle."""
    done = python(
        """
        import asyncio, logging, os, pickle, sys, tempfile
        from cat import connect, store

        logging.disable()

        async def save():
            await store.save("k", "new")

        async def rehearse(home):  # as nobody, Python's own files may be out of reach
            async with connect(home=home, url=f"sqlite:///{home}/cat.db"):
                await store.save("k", await store.load("k", type=str))
                store.folder

        with tempfile.TemporaryDirectory() as home:
            asyncio.run(rehearse(home))
        if os.geteuid() == 0:
            os.seteuid(65534)
        try:
            eval(sys.argv[1])
        except BaseException as error:
            print(pickle.dumps(error).hex())
        """,
        expression,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return pickle.loads(bytes.fromhex(done.stdout)) if done.stdout else None  # noqa: S301


SAVE = "asyncio.run(save())"


def sealed(place: Path) -> Path:
    """Make a directory in which one who is not root can make nothing."""
    place.mkdir()
    place.chmod(0o555)
    return place


@pytest.mark.parametrize("expression", [SAVE, "store.folder"])
@pytest.mark.parametrize("below", ["", "home", "some/more/home"])
def test_home_in_a_place_that_cannot_be_written(
    expression: str, below: str, open_place: Path
) -> None:
    """A home that cannot be made or written is a `NotWritableError` that names a path in it."""
    home = sealed(open_place / "sealed") / below
    error = as_nobody(expression, CAT_HOME=home)
    assert isinstance(error, NotWritableError)
    assert error.location.is_relative_to(home) or home.is_relative_to(error.location)
    check(error, NotWritableError, error.location)
    assert contents(open_place) == {"sealed": stat.S_IFDIR}


@pytest.mark.parametrize("expression", [SAVE, "store.folder"])
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o600])
@pytest.mark.parametrize("below", ["", "home"])
def test_home_in_a_place_that_cannot_be_entered(
    expression: str, mode: int, below: str, open_place: Path
) -> None:
    """A home behind a directory without the right to enter it is a `NotWritableError` too."""
    place = open_place / "sealed"
    place.mkdir()
    if os.geteuid() == 0:
        os.chown(place, NOBODY, NOBODY)
    place.chmod(mode)
    error = as_nobody(expression, CAT_HOME=place / below)
    assert isinstance(error, NotWritableError)
    check(error, NotWritableError, error.location)
    assert error.location.is_relative_to(place)


@pytest.mark.parametrize("below", ["", "home", "some/more/home"])
def test_home_under_a_file(below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file stands in the way of the home, the error says so and the file stays."""
    obstacle = tmp_path / "obstacle"
    obstacle.write_text("mine")
    home = obstacle / below
    monkeypatch.setenv("CAT_HOME", str(home))
    error = refused()
    check(error, NotWritableError, home)
    with pytest.raises(NotWritableError):
        _ = store.folder
    assert contents(tmp_path) == {"obstacle": b"mine"}


@pytest.mark.parametrize("mode", [0o444, 0o000], ids=["read-only", "unreadable"])
def test_read_only_database(mode: int, open_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database file that may not be written is refused as it is, and works once it may be."""
    place = open_place / "place"
    path = place / "some.db"
    monkeypatch.setenv("CAT_URL", f"sqlite:///{path}")
    save()
    for ours in [place, *place.iterdir()]:
        if os.geteuid() == 0:
            os.chown(ours, NOBODY, NOBODY)
    before = contents(place)
    path.chmod(mode)
    error = as_nobody(SAVE)
    assert error is not None
    check(error, NotWritableError, path)
    path.chmod(0o600)
    assert contents(place) == before
    assert as_nobody(SAVE) is None
    assert load() == "new"


# --- Files that are something else.


def _link_to_text(path: Path) -> None:
    path.with_name("target.txt").write_text("hello")
    path.symlink_to("target.txt")


NOT_DATABASES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("hello, world\n" * 500),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 64),
    "wrong magic": lambda path: path.write_bytes(b"SQLite format 2\0" + bytes(4080)),
    "two bytes": lambda path: path.write_bytes(b"SQ"),
    "directory": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to(os.devnull),
    "link to text": _link_to_text,
}


@pytest.mark.parametrize("make", NOT_DATABASES.values(), ids=NOT_DATABASES)
def test_not_a_database(make: Callable[[Path], object], database: Path) -> None:
    """What is not an SQLite database is refused and left as it is."""
    make(database)
    before = contents(database.parent)
    check(refused(), NotADatabaseError, database)
    assert contents(database.parent) == before


@pytest.mark.parametrize("target", ["missing.db", "some.db"], ids=["dangling", "circular"])
def test_a_link_to_nothing(target: str, database: Path) -> None:
    """A link that leads nowhere is an error of this library, and nothing is made at its end."""
    database.symlink_to(target)
    error = refused()
    assert isinstance(error, DatabaseUnavailableError)
    check(error, type(error), database)
    assert contents(database.parent) == {"some.db": Path(target)}


TABLE = "CREATE TABLE theirs (n)"
ROWS = "WITH RECURSIVE c(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM c WHERE n < 999)"
INSERT = f"INSERT INTO theirs {ROWS} SELECT n FROM c"  # noqa: S608  # constants
IN_WAL = "PRAGMA journal_mode = WAL"
NO_CHECKPOINT = "PRAGMA wal_autocheckpoint = 0"


def _all_in_the_wal(path: Path) -> None:
    """Leave a main file that is empty, as after a kill before the first checkpoint."""
    killed(path, "PRAGMA application_id = 7", IN_WAL, NO_CHECKPOINT, TABLE, INSERT)


def _hot_journal(path: Path) -> None:
    sql(path, TABLE, INSERT)
    spill = ["PRAGMA cache_size = 1", "PRAGMA cache_spill = 1", "BEGIN IMMEDIATE"]
    killed(path, *spill, "UPDATE theirs SET n = -n", "UPDATE theirs SET n = n || zeroblob(999)")
    assert path.with_name("some.db-journal").stat().st_size


FOREIGN: dict[str, Callable[[Path], object]] = {
    "journal": lambda path: sql(path, TABLE, INSERT),
    "WAL, closed": lambda path: sql(path, IN_WAL, TABLE, INSERT),
    "WAL, killed": lambda path: killed(path, IN_WAL, NO_CHECKPOINT, TABLE, INSERT),
    "WAL, killed, all in it": _all_in_the_wal,
    "journal, killed": _hot_journal,
    "an id of its own": lambda path: sql(path, "PRAGMA application_id = 7", TABLE, INSERT),
    "a version of its own": lambda path: sql(path, "PRAGMA user_version = 1", TABLE, INSERT),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_foreign_database(make: Callable[[Path], object], database: Path) -> None:
    """Another program's database is refused, byte for byte as it was, hot or cold."""
    make(database)
    before = contents(database.parent)
    check(refused(), ForeignDatabaseError, database)
    assert contents(database.parent) == before
    assert sql(database, "SELECT count(*), sum(abs(n)) FROM theirs") == [(999, 499_500)]


def test_foreign_database_in_use(database: Path) -> None:
    """A foreign database whose program runs is refused, and that program goes on undisturbed."""
    sql(database, IN_WAL, TABLE, INSERT)
    with another_process(HOLD, str(database), "BEGIN IMMEDIATE"):
        check(refused(), ForeignDatabaseError, database)
    assert sql(database, "SELECT count(*) FROM theirs") == [(999,)]


# --- Databases of ours that cannot be used.


@pytest.mark.parametrize("make", [sql, killed], ids=["closed", "killed"])
def test_newer_database(make: Callable[..., object], database: Path) -> None:
    """A database of a newer release is refused, with both versions named, and left as it is."""
    save()
    make(database, NO_CHECKPOINT, "PRAGMA user_version = 99", "UPDATE entries SET value = '7'")
    before = contents(database.parent)
    error = refused()
    check(error, NewerDatabaseError, database)
    assert re.search(rf"\b99\b.*\b{len(KNOWN)}\b", str(error))
    assert contents(database.parent) == before
    assert sql(database, "SELECT value FROM entries") == [("7",)]


def test_truncated_at_every_sector(database: Path) -> None:
    """A database cut short anywhere is refused as damaged, and what is left of it stays."""
    for number in range(5):
        save(f"key {number}", "x" * 3000)
    whole = database.read_bytes()
    assert len(whole) >= 5 * 4096
    # From two bytes on: SQLite itself takes a file of one byte for an empty one.
    for size in [*range(512, len(whole), 512), len(whole) - 1, 2, 15, 16, 99, 100]:
        database.write_bytes(whole[:size])
        error = refused()
        assert isinstance(error, CorruptDatabaseError | NotADatabaseError), size
        check(error, type(error), database)
        assert contents(database.parent) == {"some.db": whole[:size]}, size


def test_damaged_pages(database: Path) -> None:
    """Damage that shows only when a page is read is told as damage too."""
    save()
    whole = database.read_bytes()
    damaged = whole[:4096] + b"\xff" * (len(whole) - 4096)
    database.write_bytes(damaged)
    check(refused(), CorruptDatabaseError, database)
    assert contents(database.parent) == {"some.db": damaged}


def test_empty_file(database: Path) -> None:
    """A file without a byte is a new database."""
    database.touch()
    save()
    assert load() == "old"
    assert integrity(database) == "ok"


# --- Disks that are full.


def test_full_disk(
    small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a full disk saves say so, reads go on, and once there is room saves work, unaided."""
    disk = small_disk("size=1m")
    monkeypatch.setenv("CAT_HOME", str(disk / "home"))
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(400_000))

    async def fill() -> None:
        await store.save("k", "old")
        saved = []
        with pytest.raises(DiskFullError) as caught:  # noqa: PT012  # one of them is the first
            for number in range(20):
                await store.save(f"big {number}", "x" * 100_000)
                saved.append(f"big {number}")
        check(caught.value, DiskFullError, disk / "home" / "cat.db")
        with pytest.raises(DiskFullError):
            await store.save("k", "y" * 100_000)
        assert await store.load("k") == "old"
        assert saved
        assert [len(await store.load(key)) for key in saved] == [100_000] * len(saved)
        assert not await store.exists(f"big {len(saved)}")
        ballast.unlink()
        assert await store.save("k", "y" * 100_000)

    asyncio.run(fill())
    assert load() == "y" * 100_000
    assert integrity(disk / "home" / "cat.db") == "ok"


def test_full_disk_at_the_first_save(
    small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new database on a full disk is a `DiskFullError`, and a good one when there is room."""
    disk = small_disk("size=64k")
    monkeypatch.setenv("CAT_HOME", str(disk / "home"))
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    check(refused(), DiskFullError, disk / "home" / "cat.db")
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)  # noqa: S607
    save()
    assert load() == "old"


@pytest.mark.parametrize("inodes", [1, 2, 3], ids=["home", "lock", "database"])
def test_full_disk_without_room_for_a_name(
    inodes: int, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory or file that is not made for want of room is no matter of permissions."""
    disk = small_disk(f"size=1m,nr_inodes={inodes}")
    monkeypatch.setenv("CAT_HOME", str(disk / "home"))
    error = refused()
    check(error, DiskFullError, error.location)  # type: ignore[attr-defined]


# --- Other processes.


def test_locked_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save waits for another process no longer than `CAT_TIMEOUT`; reads do not wait."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.2")
    save()

    async def main() -> None:
        with another_process(HOLD, str(home / "cat.db"), "BEGIN IMMEDIATE"):
            for verb in (store.save("k", "new"), store.delete("k")):
                started = time.monotonic()
                with pytest.raises(DatabaseBusyError) as caught:
                    await verb
                assert 0.15 < time.monotonic() - started < 5
                check(caught.value, DatabaseBusyError, home / "cat.db")
            assert await store.load("k") == "old"
            assert await store.exists("k")
        await store.save("k", "new")
        assert await store.load("k") == "new"

    asyncio.run(main())


@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
def test_start_lock_held(there: bool, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """A start waits for another's no longer than `CAT_TIMEOUT`, and then goes on as if new."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.2")
    if there:
        save()
    home.mkdir(mode=0o700, exist_ok=True)
    lock = home / "cat.db.lock"
    code = """
    from pathlib import Path
    from cat.backends.sqlite.mutex import Mutex
    Path(sys.argv[1]).touch(0o600)
    mutex = Mutex(Path(sys.argv[1]))
    assert mutex.acquire()
    """

    async def main() -> None:
        with another_process(code, str(lock)):
            started = time.monotonic()
            with pytest.raises(DatabaseBusyError) as caught:
                await store.save("k", "new")
            assert 0.15 < time.monotonic() - started < 5
            check(caught.value, DatabaseBusyError, lock)
        await store.save("k", "new")

    asyncio.run(main())
    assert load() == "new"


def test_engine_too_old(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SQLite that is too old is named with the one that is needed, before a file is made."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 37, 2))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.37.2")
    error = refused()
    check(error, DatabaseUnavailableError, home / "cat.db")
    assert re.search(r"3\.37\.2.*3\.38", str(error))
    assert not home.exists()


# --- Migrations.


def with_migrations(monkeypatch: pytest.MonkeyPatch, *more: Migration) -> None:
    """Let the backend know `more` migrations than there are."""
    monkeypatch.setattr("cat.backends.sqlite.start.migrations", lambda dialect: [*KNOWN, *more])


BROKEN = {
    "nonsense": "CREATE TABLE extra (n); SELECT nonsense FROM nowhere;",
    "constraint": "CREATE TABLE extra (n); CREATE UNIQUE INDEX one ON entries (owner);",
    "not null": "CREATE TABLE extra (n); UPDATE entries SET value = NULL;",
    "type": "CREATE TABLE extra (n); UPDATE entries SET size = 'large';",
    "unfinished": "CREATE TABLE extra (n); CREATE TABLE more (n",
    "trigger": """
        CREATE TABLE extra (n);
        CREATE TRIGGER no BEFORE INSERT ON extra BEGIN SELECT RAISE(ABORT, 'no'); END;
        INSERT INTO extra VALUES (1);
    """,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_migration_that_fails(broken: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that fails is named, and the database is as before and of use to the release."""
    save("a", 1)
    save("b", 2)
    database = home / "cat.db"
    before = contents(home)
    with monkeypatch.context() as patch:
        with_migrations(patch, Migration(NOTES.version, "broken", broken))
        error = refused()
        check(error, MigrationError, database)
        assert f"{NOTES.version:04}_broken" in str(error)
    assert contents(home) == before
    save("c", 3)
    assert [load(key) for key in "abc"] == [1, 2, 3]


def test_first_migration_that_fails(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new database whose first migration fails is new again for the next attempt."""
    with monkeypatch.context() as patch:
        nonsense = [Migration(1, "broken", "CREATE TABLE entries (n); nonsense;")]
        patch.setattr("cat.backends.sqlite.start.migrations", lambda dialect: nonsense)
        check(refused(), MigrationError, database)
    save()
    assert load() == "old"


@pytest.mark.parametrize("there", [True, False], ids=["existing", "new"])
def test_next_migration(there: bool, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """A further migration is applied once, and the release before refuses the result."""
    if there:
        save()
    with monkeypatch.context() as patch:
        with_migrations(patch, NOTES)
        save("k2", "new")
        save("k3", "newer")
        assert load() == ("old" if there else None)
        assert load("k2") == "new"
    assert sql(home / "cat.db", "PRAGMA user_version") == [(NOTES.version,)]
    assert sql(home / "cat.db", "SELECT * FROM notes") == []
    check(refused(), NewerDatabaseError, home / "cat.db")


def test_migration_that_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of a migration leaves the old database or the new one."""
    save()
    untouched = home.with_name("untouched")
    shutil.copytree(home, untouched)
    long = f"""
        CREATE TABLE first (n);
        INSERT INTO first {ROWS.replace("999", "200000")} SELECT n FROM c;
        CREATE TABLE last (n);
    """  # noqa: S608  # constants
    code = """
    import asyncio, sys
    import cat.backends.sqlite.start as backend
    from cat import store
    from cat.schema import Migration

    known = list(backend.migrations("sqlite"))
    known.append(Migration(len(known) + 1, "long", sys.argv[1]))
    backend.migrations = lambda dialect: known

    async def main():
        await store.load("k")
    print("ready", flush=True)
    asyncio.run(main())
    """
    found = []
    for delay in [0.005, 0.015, 0.03, 0.06, 0.1, None]:
        shutil.rmtree(home)
        shutil.copytree(untouched, home)
        command = [sys.executable, "-c", textwrap.dedent(code), long]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if delay is None:
                process.wait(60)
            else:
                time.sleep(delay)
                process.kill()
        [(version,)] = sql(home / "cat.db", "PRAGMA user_version")
        tables = sql(
            home / "cat.db", "SELECT name FROM sqlite_master WHERE name IN ('first','last')"
        )
        assert (version, len(tables)) in [(len(KNOWN), 0), (len(KNOWN) + 1, 2)]
        assert integrity(home / "cat.db") == "ok"
        found.append(version)
        with monkeypatch.context() as patch:
            with_migrations(patch, Migration(NOTES.version, "long", long))
            assert load() == "old"
    assert found[-1] == len(KNOWN) + 1


MIGRATIONS = {
    "missing": ([], "sqlite"),
    "short number": (["1_entries.sql"], "1_entries.sql"),
    "no name": (["0001.sql"], "0001.sql"),
    "empty name": (["0001_.sql"], "0001_.sql"),
    "no number": (["0001_entries.sql", "notes.sql"], "notes.sql"),
    "superscripts": (["²²²²_entries.sql"], "_entries.sql"),
    "gap": (["0001_entries.sql", "0003_notes.sql"], "0003_notes.sql"),
    "from two": (["0002_notes.sql"], "0002_notes.sql"),
    "twice": (["0001_entries.sql", "0001_other.sql"], "0001_other.sql"),
}


@pytest.mark.parametrize(("names", "named"), MIGRATIONS.values(), ids=MIGRATIONS)
def test_migrations_that_are_not_in_order(names: list[str], named: str, tmp_path: Path) -> None:
    """Migrations that are missing, misnamed or not 1, 2, 3 and so on are refused by name."""
    place = tmp_path / "m"
    (place / "sqlite").mkdir(parents=True)
    for name in names:
        (place / "sqlite" / name).write_text("CREATE TABLE t (n);")
    with pytest.raises(MigrationError) as caught:
        migrations("sqlite", places=(place,))
    check(caught.value, MigrationError, place / "sqlite")
    assert named in str(caught.value)


def test_odd_paths_in_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is escaped in a message, so that it prints on any terminal and forges no lines."""
    home = tmp_path / "h\u00e9\n\x1b[31m\udc80"
    home.parent.mkdir(exist_ok=True)
    home.write_text("in the way")
    monkeypatch.setenv("CAT_HOME", str(home))
    text = str(refused())
    assert text.isascii()
    assert text.isprintable()


def test_errors_are_not_remembered(database: Path) -> None:
    """A loop that met an unusable file uses a good one at the next verb."""
    database.write_text("hello, world\n" * 500)

    async def main() -> None:
        with pytest.raises(NotADatabaseError):
            await store.save("k", "new")
        database.unlink()
        await for_user("alice").save("k", "new")
        assert await for_user("alice").load("k") == "new"

    asyncio.run(main())
