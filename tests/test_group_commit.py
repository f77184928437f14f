"""Writes in flight together share one transaction and one sync, and never one another's fate."""

import asyncio
import itertools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import integrity, wait_for

from cat import context, for_user, store
from cat.backends.sqlite.writer import BATCH_BYTES, BATCH_CHANGES
from cat.errors import (
    DatabaseUnavailableError,
    DiskFullError,
    InvalidKeyError,
    UnstorableValueError,
)
from children import printed

PAGE = 4096
HEADER, FRAME = (
    32,
    24 + PAGE,
)  # of a write-ahead log, https://www.sqlite.org/fileformat.html#walformat
STRACE = shutil.which("strace")


def rows(database: Path, statement: str = "SELECT key, value FROM entries") -> list[Any]:
    """Return what another connection sees."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


@contextmanager
def kept_log(home: Path) -> Iterator[Path]:
    """Keep the write-ahead log from beginning anew, so that every commit can be seen in it."""
    with closing(sqlite3.connect(home / "cat.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchall()
        yield home / "cat.db-wal"


def ends(log: Path) -> list[int]:
    """Return where in a write-ahead log each transaction ends: nobody locks that file."""
    data = log.read_bytes()
    salts = data[16:24]
    return [
        at + FRAME
        for at in range(HEADER, len(data) - FRAME + 1, FRAME)
        if data[at + 8 : at + 16] == salts and data[at + 4 : at + 8] != bytes(4)
    ]


def pages(log: Path, since: int) -> list[int]:
    """Return how many pages each transaction has that ends after the offset `since`."""
    found = [since, *(end for end in ends(log) if end > since)]
    return [(end - start) // FRAME for start, end in itertools.pairwise(found)]


async def together(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    """Await calls that are made in one turn of the loop, in this order; errors are answers."""
    return await asyncio.gather(*calls, return_exceptions=True)


# --- Each caller has the answer of its turn.


async def test_one_new_key(home: Path) -> None:
    """100 concurrent saves of one new key all succeed; one row is left, of the last call."""
    assert await together(*(store.save("k", n) for n in range(100))) == list(range(100))
    assert await store.load("k") == 99
    assert rows(home / "cat.db") == [("k", "99")]


def calls_and_answers(
    seed: int, model: dict[str, int]
) -> tuple[list[Coroutine[Any, Any, Any]], list[object]]:
    """Make a random mix of calls, and run it on `model` in that order for their answers."""
    chosen = random.Random(seed)  # noqa: S311  # not a secret
    calls: list[Coroutine[Any, Any, Any]] = []
    answers: list[object] = []
    for number in range(chosen.randint(2, 60)):
        key = chosen.choice("abc")
        if chosen.random() < 0.5:
            calls.append(store.save(key, number))
            answers.append(number)
            model[key] = number
        else:
            calls.append(store.delete(key))
            answers.append(model.pop(key, None) is not None)
    return calls, answers


async def test_mixes_issued_together() -> None:
    """In 200 mixes of saves and deletes of three keys, each caller has the answer of its turn."""
    model: dict[str, int] = {}
    for seed in range(200):
        calls, answers = calls_and_answers(seed, model)
        assert await together(*calls) == answers, seed
        assert [await store.load(key) for key in "abc"] == [model.get(key) for key in "abc"], seed


async def test_mixes_issued_over_time() -> None:
    """Order holds too for calls that come one by one while batches are on their way."""
    model: dict[str, int] = {}
    chosen = random.Random(1)  # noqa: S311  # not a secret
    for seed in range(60):
        calls, answers = calls_and_answers(1000 + seed, model)
        tasks = []
        for call in calls:
            tasks.append(asyncio.create_task(call))
            for _ in range(chosen.choice((0, 0, 1, 5, 40))):
                await asyncio.sleep(0)
        assert await asyncio.gather(*tasks) == answers, seed


def test_order_while_opening(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order holds for calls that come while the database is being opened."""

    async def main() -> list[bool]:
        tasks = []
        for number in range(1500):
            call = store.delete("k") if number % 2 else store.save("k", number)
            tasks.append(asyncio.create_task(call))
            await asyncio.sleep(0)
        return (await asyncio.gather(*tasks))[1::2]

    for turn in range(30):
        monkeypatch.setenv("CAT_HOME", str(home / str(turn)))
        assert asyncio.run(main()) == [True] * 750, turn


async def test_a_thousand_saves(home: Path) -> None:
    """1,000 concurrent saves all succeed, with at most three threads at any time."""
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(threading.enumerate()))
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    calls = [for_user(n % 7).save(f"key {n}", {"n": n}) for n in range(1000)]
    assert await together(*calls) == [{"n": n} for n in range(1000)]
    read = [for_user(n % 7).load(f"key {n}") for n in range(1000)]
    assert await together(*read) == [{"n": n} for n in range(1000)]
    watcher.cancel()
    assert rows(home / "cat.db", "SELECT count(*) FROM entries") == [(1000,)]
    assert 1 < most <= 3


async def test_bad_values_fail_alone() -> None:
    """Of 100 concurrent saves, 10 that cannot be stored fail, each with its own error."""
    bad = {n: {f"part{n}": {n}} if n % 20 else f"a\0{n}" for n in range(0, 100, 10)}
    calls = [
        store.save(bad[n], n) if n % 20 == 0 else store.save(f"k{n}", bad.get(n, n))
        for n in range(100)
    ]
    answers = await together(*calls)
    for number, answer in enumerate(answers):
        if number not in bad:
            assert answer == number
            assert await store.load(f"k{number}") == number
            continue
        assert not await store.exists(f"k{number}")
        assert answer.not_stored
        if number % 20:
            assert type(answer) is UnstorableValueError
            assert answer.path == f"$.part{number}"
        else:
            assert type(answer) is InvalidKeyError
            assert f"a\\x00{number}" in str(answer)


# --- Transactions are shared, and bounded.


async def test_concurrent_saves_share_transactions(home: Path) -> None:
    """Saves one at a time take a commit each, and 100 together take a few."""
    await store.save("first", 0)
    with kept_log(home) as log:
        before = len(ends(log))
        for number in range(20):
            await store.save("alone", number)
        assert len(ends(log)) == before + 20
        for number in range(10):
            await together(*(store.save(f"k{n}", number) for n in range(100)))
        assert 10 <= len(ends(log)) - before - 20 <= 30
    assert await together(*(store.load(f"k{n}") for n in range(100))) == [9] * 100


async def test_a_batch_is_bounded_in_bytes(home: Path) -> None:
    """No transaction grows beyond the bound, but for a value that is larger by itself."""
    most = BATCH_BYTES // PAGE * 1.02 + 20  # the pages of the tree, and the ends of values
    value = "x" * (BATCH_BYTES // 10)
    large = "y" * (BATCH_BYTES * 3 // 2)
    await store.save("first", 0)
    with kept_log(home) as log:
        [*_, before] = ends(log)
        assert await together(*(store.save(f"k{n}", value) for n in range(45))) == [value] * 45
        found = pages(log, before)
        assert max(found) <= most
        assert 5 <= len(found) <= 9, "and they are shared all the same"
        [*_, before] = ends(log)
        values = [value] * 5 + [large] + [value] * 5
        calls = [store.save(f"l{n}", value) for n, value in enumerate(values)]
        assert await together(*calls) == values
        found = pages(log, before)
        assert [count > most for count in found].count(True) == 1
        assert max(found) <= len(large) // PAGE * 1.02 + 20, "alone in its transaction"
        assert len(found) <= 5
    assert await store.load("l5") == large


def test_a_batch_is_bounded_in_changes(home: Path, tmp_path: Path) -> None:
    """No transaction has more changes than the bound, and the commits are few all the same."""
    count = BATCH_CHANGES * 5 // 2

    async def main() -> int:
        await store.save("first", 0)
        copy, original = sqlite3.connect(tmp_path / "copy"), sqlite3.connect(home / "cat.db")
        with closing(copy), closing(original):
            original.backup(copy)
        with kept_log(home) as log:
            before = len(ends(log))
            await together(*(store.save(f"k{n}", n) for n in range(count)))
            (tmp_path / "log").write_bytes(log.read_bytes())
            return before

    before = asyncio.run(main())
    whole = (tmp_path / "log").read_bytes()
    after = [1]
    for number, end in enumerate(ends(tmp_path / "log")[before:]):
        # The database as it was after this commit.
        place = tmp_path / f"{number}.db"
        shutil.copy(tmp_path / "copy", place)
        place.with_name(f"{number}.db-wal").write_bytes(whole[:end])
        after += rows(place, "SELECT count(*) FROM entries")[0]
    steps = [b - a for a, b in itertools.pairwise(after)]
    assert sum(steps) == count
    assert max(steps) <= BATCH_CHANGES
    assert len(steps) <= 8


# --- What the engine refuses.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 2 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not root or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a small disk, as root has it")
    yield place
    wait_for(lambda: not place.is_mount() or subprocess.call(["umount", str(place)]) == 0)  # noqa: S607


def test_disk_that_fills_in_a_group(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a group that a disk has no room for, those that fit are stored and the others told so."""
    home = small_disk / "home"
    monkeypatch.setenv("CAT_HOME", str(home))
    ballast = small_disk / "ballast"
    sizes = {f"k{n}": 60_000 if n % 3 else 100 for n in range(99)}

    async def main() -> None:
        await store.save("old", "old")
        with ballast.open("wb", buffering=0) as file:
            file.write(bytes(1_000_000))
        answers = await together(*(store.save(key, "x" * size) for key, size in sizes.items()))
        stored = [key for key, answer in zip(sizes, answers, strict=True) if key_of(answer)]
        failed = [answer for answer in answers if not key_of(answer)]
        assert {type(error) for error in failed} == {DiskFullError}
        assert all(error.not_stored for error in failed)
        assert [key for key in sizes if await store.exists(key)] == stored
        assert any(sizes[key] > 100 for key in stored), "some large ones fit"
        first = answers.index(failed[0])
        assert [key for key in stored if int(key[1:]) > first], "and small ones after it"
        assert await store.load("old") == "old"
        ballast.unlink()
        again = [key for key in sizes if key not in stored][:50]
        calls = [store.save(key, "y" * 10_000) for key in again]
        assert set(await together(*calls)) == {"y" * 10_000}

    asyncio.run(main())
    assert integrity(home / "cat.db") == "ok"


def key_of(answer: object) -> bool:
    """Tell an answer from an error."""
    return not isinstance(answer, BaseException)


@pytest.mark.parametrize("kind", ["ABORT", "FAIL", "ROLLBACK"])
async def test_an_engine_error_fails_its_caller_alone(kind: str, home: Path) -> None:
    """Where the engine refuses one of a group, its caller fails alone, the rest in their turns."""
    await store.save("k", "old")
    raised = f"SELECT RAISE({kind}, 'no')"
    rows(
        home / "cat.db",
        "CREATE TRIGGER no BEFORE INSERT ON entries "
        f"WHEN new.key LIKE 'bad%' OR new.value = '13' BEGIN {raised}; END",
    )
    calls = [store.save(f"bad{n}" if n in (7, 40) else f"k{n}", n) for n in range(60) if n != 13]
    turns = [store.save("turn", n) for n in range(20)]
    answers = await together(*calls, *turns, store.delete("k"), store.delete("k"))
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    assert [type(error) for error in errors] == [DatabaseUnavailableError] * 3
    assert all(error.not_stored for error in errors)
    assert [answers.index(error) for error in errors] == [7, 39, 59 + 13]
    assert answers[-2:] == [True, False]
    assert await store.load("turn") == 19
    expected = {f"k{n}": str(n) for n in range(60) if n not in (7, 13, 40)} | {"turn": "19"}
    assert dict(rows(home / "cat.db")) == expected
    assert await store.save("k", "new") == "new"


# --- Errors whose outcome is unknown.

LIMITED = """
import asyncio, json, os, pathlib, resource, sys, threading, time
from cat import store
from cat.errors import CatError

home = pathlib.Path(os.environ["CAT_HOME"])
stored, failed = {}, {}

async def save(key, value):
    try:
        await store.save(key, value)
    except CatError as error:
        failed.setdefault(key, []).append((type(error).__name__, error.not_stored))
    else:
        stored[key] = value

def limit(size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size if size else hard, hard))

async def main():
    await asyncio.gather(*(save(f"before{n}", n) for n in range(10)))
    for turn in range(5):
        limit((home / "cat.db-wal").stat().st_size + 50_000)
        await asyncio.gather(*(save(f"{turn}-{n}", "x" * 10_000) for n in range(40)))
        await save(f"{turn}-alone", "x" * 60_000)
        assert await store.load("before1") == 1
        limit(None)
        await asyncio.gather(*(save(f"{turn}-after{n}", n) for n in range(10)))
    await save("last", "last")

asyncio.run(main())
until = time.monotonic() + 10
while len(threading.enumerate()) > 1 and time.monotonic() < until:
    time.sleep(0.001)  # a closed connection's thread ends a moment later
left = [p for p in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{p}")
        and os.readlink(f"/proc/self/fd/{p}").startswith(str(home))]
print(json.dumps([stored, failed, left, len(threading.enumerate())]))
"""


def test_a_log_that_cannot_be_written(home: Path) -> None:
    """What an I/O error leaves unknown is told as unknown, and later saves work, unaided."""
    pytest.importorskip("resource", reason="needs a limit to the size of files")
    stored, failed, left, threads = json.loads(printed(LIMITED))
    outcomes = {outcome for answers in failed.values() for _, outcome in answers}
    assert False in outcomes, "an error at the commit leaves it unknown"
    assert {kind for answers in failed.values() for kind, _ in answers} == {
        "DatabaseUnavailableError"
    }
    there = {key: json.loads(value) for key, value in rows(home / "cat.db")}
    assert there.items() >= stored.items()
    assert set(there) - set(stored) <= {key for key, found in failed.items() if not found[0][1]}
    for turn in range(5):
        assert {f"{turn}-after{n}" for n in range(10)} <= set(stored)
    assert stored["last"] == "last"
    assert (left, threads) == ([], 1)


SYNC_FAILS = """
import asyncio, json, sys, threading, time
from cat import store
from cat.errors import CatError

stored, failed = {}, {}

async def save(key, value):
    try:
        await store.save(key, value)
    except CatError as error:
        failed[key] = error.not_stored
    else:
        stored[key] = value

def turn():
    print(json.dumps(list(failed.values())), flush=True)
    sys.stdin.readline()

async def main():
    for _ in range(2):  # the second is one batch
        await asyncio.gather(*(save(f"before{n}", n) for n in range(10)))
    turn()
    await asyncio.gather(*(save("bad" if n == 9 else f"k{n}", n) for n in range(10)))
    turn()
    assert await store.load("before9") == 9
    await asyncio.gather(*(save(f"after{n}", n) for n in range(10)))

asyncio.run(main())
until = time.monotonic() + 10
while len(threading.enumerate()) > 1 and time.monotonic() < until:
    time.sleep(0.001)  # a closed connection's thread ends a moment later
print(json.dumps([stored, failed, len(threading.enumerate())]))
"""


@pytest.mark.skipif(STRACE is None, reason="needs strace, to let a sync fail")
@pytest.mark.parametrize("which", ["the group's", "the first of one by one", "the fourth"])
def test_a_sync_that_fails(which: str, home: Path, tmp_path: Path) -> None:
    """After a sync that failed nothing is acknowledged before the log is opened anew."""
    asyncio.run(together(store.save("k3", "old")))
    if which != "the group's":  # the engine refuses the group, and its members are tried alone
        rows(
            home / "cat.db",
            "CREATE TRIGGER no BEFORE INSERT ON entries WHEN new.key = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
    trace = tmp_path / "trace"
    nth = 4 if which == "the fourth" else 1
    child = subprocess.Popen(
        [sys.executable, "-c", SYNC_FAILS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    fault = ["-e", "trace=fdatasync,openat", "-e", f"inject=fdatasync:error=EIO:when={nth}"]
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "[]\n"
        strace = subprocess.Popen(
            [STRACE or "", "-f", "-o", str(trace), *fault, "-p", str(child.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        with strace:
            assert strace.stderr is not None
            if "attached" not in strace.stderr.readline():
                child.kill()
                pytest.skip("needs the right to trace a process")
            child.stdin.write("\n")
            child.stdin.flush()
            outcomes = json.loads(child.stdout.readline())
            strace.terminate()
        text, error = child.communicate("\n", timeout=60)
    assert child.returncode == 0, error
    stored, failed, threads = json.loads(text)
    before, found, after = trace.read_text().partition("(INJECTED)")
    assert found
    assert before.count("fdatasync(") == nth
    if set(stored) & {f"k{n}" for n in range(nth, 10)}:  # closing the old one may sync it too
        assert 'cat.db-wal"' in after, "a commit on the connection that failed"
    assert False in outcomes
    there = {key: json.loads(value) for key, value in rows(home / "cat.db")}
    assert there.items() >= (stored | {f"after{n}": n for n in range(10)}).items()
    assert there["k3"] in ("old", 3)
    assert all(not failed[key] for key in set(there) - set(stored) - {"k3"})
    assert threads == 1


async def test_a_few_go_on_in_a_turn_of_the_event_loop() -> None:
    """Of 200 callers whose writes were one batch, no more than 32 go on in one turn."""
    await asyncio.gather(*(store.save(f"k{n}", 0) for n in range(200)))
    turn = 0
    woken: list[int] = []
    loop = asyncio.get_running_loop()

    def count() -> None:
        nonlocal turn
        turn += 1
        if len(woken) < 200:
            loop.call_soon(count)

    async def save(number: int) -> None:
        await store.save(f"k{number}", 1)
        woken.append(turn)

    count()
    await asyncio.gather(*(save(number) for number in range(200)))
    assert sorted(woken) == woken
    assert 1 < max(Counter(woken).values()) <= 32


class Interrupted(deque[Any]):
    """A queue in which Ctrl-C strikes once, in the middle of its use."""

    struck = False

    def popleft(self) -> Any:
        """Take the first one out, and be struck."""
        first = super().popleft()
        if not self.struck:
            self.struck = True
            raise KeyboardInterrupt
        return first


def test_a_keyboard_interrupt_while_callers_are_told(home: Path) -> None:
    """Everybody hears of his write, if the event loop goes on."""
    loop = asyncio.new_event_loop()
    saves: list[asyncio.Task[Any]] = []

    async def begin() -> None:
        await store.save("k", 0)
        context.repository()._backend._writer._made = Interrupted()
        saves.extend(asyncio.create_task(store.save(f"k{n}", n)) for n in range(100))
        await asyncio.sleep(60)

    async def go_on() -> int:
        await asyncio.wait_for(asyncio.gather(*saves), 60)
        found = await store.count()
        await context.close()
        return found

    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(begin())
        assert loop.run_until_complete(go_on()) == 101
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
