"""Locks that processes share: they hold, whatever threads and forks there are, and leave nothing.

That edits take turns by them is in `test_edits.py`, and that every backend has
them in `test_backend.py`.
"""

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import open_below

from cat import connect, context, files, store
from cat.backends.sqlite.mutex import Mutex
from cat.scope import GLOBAL
from children import printed
from test_edits import append
from test_processes import children

NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")


@pytest.fixture
def place() -> Iterator[Path]:
    """Return an empty file that anybody may find."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        file = Path(directory) / "lock"
        file.touch(0o600)
        yield file


ANOTHER = """
import sys
from pathlib import Path
from cat.backends.sqlite.mutex import Mutex

mutex = Mutex(Path(sys.argv[1]))
print(mutex.acquire())
mutex.close()
"""


def free_for_another(place: Path) -> bool:
    """Say whether another process can take a lock, which it frees by its end."""
    return printed(ANOTHER, str(place)) == "True\n"


def test_one_holder(place: Path) -> None:
    """Whoever has it keeps all others out, here and in other processes, until it is freed."""
    one, two = Mutex(place), Mutex(place)
    assert free_for_another(place)
    assert one.acquire()
    assert not two.acquire()
    assert not free_for_another(place)
    one.release()
    assert two.acquire()
    assert not one.acquire()
    two.close()
    assert free_for_another(place)
    assert one.acquire()
    one.close()
    assert place.read_bytes() == b"", "nothing is ever written"
    assert [file.name for file in place.parent.iterdir()] == ["lock"]


def test_another_file_of_that_name(place: Path) -> None:
    """A lock on a file that was removed is worth nothing: the one there now is taken."""
    one, two = Mutex(place), Mutex(place)
    assert one.acquire()
    one.release()
    place.unlink()
    with pytest.raises(FileNotFoundError):
        one.acquire()
    two.make()
    assert two.acquire()
    assert not one.acquire()
    two.release()
    assert one.acquire()
    one.close()
    two.close()


def test_a_lock_that_cannot_be_freed_is_closed(place: Path) -> None:
    """If SQLite will not end the transaction, the lock is free all the same, and works again."""
    mutex = Mutex(place)
    assert mutex.acquire()
    assert mutex._connection is not None
    mutex._connection.execute("ROLLBACK")  # so that the next one fails
    mutex.release()
    assert mutex._connection is None
    assert free_for_another(place)
    assert mutex.acquire()
    mutex.close()


READ_ONLY = """
import os, sqlite3, sys
from pathlib import Path
from cat.backends.sqlite.mutex import Mutex

Path(sys.argv[1]).as_uri()  # as nobody, Python's own files may be out of reach
if os.geteuid() == 0:  # who may write everything
    os.seteuid(65534)
try:
    print(Mutex(Path(sys.argv[1])).acquire())
except sqlite3.Error as error:
    print(error.sqlite_errorname)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_file_that_may_only_be_read(place: Path) -> None:
    """It is refused: SQLite would lock it for reading, which keeps nobody out."""
    place.chmod(0o444)
    assert printed(READ_ONLY, str(place)) == "SQLITE_READONLY\n"


def test_a_file_that_is_being_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that makes the file does not drop the lock of one that finds it there."""
    place.unlink()
    hand_over = files._hand_over
    found = threading.Event()

    def slowly(*arguments: Any) -> None:
        found.wait(0.5)  # while the file is there and open
        hand_over(*arguments)

    def lock() -> None:
        while not place.exists():
            time.sleep(0.001)
        assert other.acquire()
        found.set()

    monkeypatch.setattr(files, "_hand_over", slowly)
    other = Mutex(place)
    thread = threading.Thread(target=lock)
    thread.start()
    Mutex(place).make()
    thread.join(30)
    assert not free_for_another(place)
    other.close()


HOLDER = """
import asyncio, cat
from cat import store

async def main():
    async with store.edit("k", default=[]) as value:
        tell("inside")
        hear()

asyncio.run(main())
"""


async def test_an_edit_that_waits_while_its_connect_is_left(home: Path) -> None:
    """It is refused or not, and what it opened does not stay open."""
    with children(HOLDER) as [holder]:
        assert holder.hear() == ["inside"]
        async with connect(home=home):
            await store.save("other", 1)
            waiting = asyncio.create_task(append("k", "late"))
            await asyncio.sleep(0.05)
        assert not waiting.done()
        holder.tell("leave")
        await asyncio.wait([waiting], timeout=30)
        assert waiting.done()
        waiting.exception()
    assert open_below(home) == []


BUSY = """
import asyncio, os, sqlite3, threading
from cat import store

def churn():
    while True:
        connection = sqlite3.connect(":memory:")
        connection.execute("CREATE TABLE t (n)")
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(50)])
        connection.close()

async def main():
    for _ in range(2):
        threading.Thread(target=churn, daemon=True).start()
    async with store.edit("k", default=[]) as value:
        for _ in range(100):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        value.append("stored")
    print(await store.load("k"))

asyncio.run(main())
"""


@NEEDS_FORK
def test_children_that_do_not_use_the_store() -> None:
    """A child made inside an edit lives, whatever other threads did in SQLite at that moment."""
    assert printed(BUSY, timeout=60) == "['stored']\n"


LEAVING = """
import asyncio, os
from cat import connect, store
from cat.backends.sqlite.writer import Writer

async def append(word, seconds=0):
    async with store.edit("k", default=[]) as value:
        await asyncio.sleep(seconds)
        value.append(word)

async def child():
    await append("child")
    return await store.load("k")

def fork():
    pid = os.fork()
    if pid == 0:
        asyncio._set_running_loop(None)
        Writer.close = close
        if os.fork() == 0:  # a child's child, too
            os._exit(0)
        os.wait()
        os.read(readable, 1)
        print(asyncio.run(child()), flush=True)
        os._exit(0)
    pids.append(pid)

async def slowly(writer):
    await asyncio.sleep(0.2)
    await close(writer)

async def main():
    async with connect():
        await store.save("other", 1)
        edit = asyncio.create_task(append("parent", 0.6))
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(0.1, fork)
    await asyncio.gather(edit, return_exceptions=True)

close, Writer.close = Writer.close, slowly
readable, writable = os.pipe()
pids = []
asyncio.run(main())
os.write(writable, b"x")
os.waitpid(pids[0], 0)
"""


@NEEDS_FORK
def test_a_fork_while_connect_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child of that moment takes no lock of its parent's for its own, and can fork itself."""
    monkeypatch.setenv("CAT_TIMEOUT", "5")
    assert printed(LEAVING) == "['child']\n"


async def test_no_lock_is_taken_while_the_process_forks(home: Path) -> None:
    """Nor is SQLite used for the first one: it waits until the fork is over."""
    await store.exists("k")
    backend = context.repository()._backend
    backend.hold()
    over: list[bool] = []

    def release() -> None:
        over.append(True)
        backend.release()

    threading.Timer(0.2, release).start()
    free = await backend.lock(GLOBAL, "k", None)
    assert over == [True]
    free()


MAKING = """
import os, sys, threading
from pathlib import Path
from cat.backends.sqlite import mutex

held, over = threading.Event(), threading.Event()

def hold():
    with mutex._making:
        held.set()
        over.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
if os.fork() == 0:
    one = mutex.Mutex(Path(sys.argv[1]))
    one.make()
    print(one.acquire(), flush=True)
    os._exit(0)
os.wait()
over.set()
thread.join()
"""


@NEEDS_FORK
def test_a_fork_while_a_file_is_made(place: Path) -> None:
    """A child does not wait for a thread of its parent's that was making one."""
    place.unlink()
    assert printed(MAKING, str(place)) == "True\n"
