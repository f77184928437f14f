"""What every test stands on: a home of its own, and a check of what it leaves behind."""

import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from cat import backends, context, settings
from cat.backends import Backend

DEADLINE = 10.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give each test a fresh `CAT_HOME`, and look at what it leaves behind.

    The database is sound, and no thread and no file of ours is open.
    """
    place = tmp_path / "home"
    for name in list(os.environ):
        if name.startswith("CAT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CAT_HOME", str(place))
    threads = set(threading.enumerate())
    yield place
    wait_for(lambda: not [t for t in set(threading.enumerate()) - threads if t.is_alive()])
    wait_for(lambda: not open_below(tmp_path))
    database = place / "cat.db"
    # A test that made something else of it says so by leaving no such file.
    if database.is_file():
        assert integrity(database) == "ok"


@pytest.fixture(params=["sqlite"])
def url(request: pytest.FixtureRequest, home: Path) -> str:
    """Name a database of each backend in turn, with nothing but an empty home."""
    return {"sqlite": f"sqlite:///{home / 'cat.db'}"}[request.param]


@pytest.fixture
async def backend(url: str) -> AsyncIterator[Backend]:
    """Each backend in turn."""
    made = backends.connect(settings.read({"CAT_URL": url}))
    yield made
    await made.close()


@pytest.fixture
async def other(url: str) -> AsyncIterator[Backend]:
    """Another object for the database of `backend`, as another process has one."""
    made = backends.connect(settings.read({"CAT_URL": url}))
    yield made
    await made.close()


@pytest.fixture(scope="session")
def private_loop() -> None:
    """Start the thread of `cat.blocking`, which stays, before a test counts its threads."""
    from cat import blocking

    blocking._private_loop()


@pytest.fixture
def door(private_loop: None, home: Path) -> Iterator[ModuleType]:
    """Give `cat.blocking`, and close what it opened."""
    from cat import blocking

    yield blocking
    context.close_idle()


@pytest.fixture
def open_place() -> Iterator[Path]:
    """Make a directory that other users can reach, unlike pytest's own."""
    place = Path(tempfile.mkdtemp(prefix="cat-test-"))
    place.chmod(0o755)
    yield place
    for directory in [place, *place.rglob("*")]:
        if directory.is_dir():
            directory.chmod(0o755)
    shutil.rmtree(place)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds: a closed connection's thread ends a moment later."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "still not so after 10 seconds"
        time.sleep(0.001)


def open_below(place: Path) -> list[str]:
    """Return the files below `place` that this process holds open (Linux only, else none)."""
    table = Path("/proc/self/fd")
    if not table.is_dir():
        return []
    found = []
    for descriptor in table.iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # the listing's own descriptor
            continue
        if target.startswith(str(place)):
            found.append(target)
    return found


def integrity(database: Path) -> str:
    """Return what SQLite says of the file, with every reader and writer of this process gone."""
    connection = sqlite3.connect(database)
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()
