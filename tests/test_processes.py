"""Several processes share one file: nothing is lost, nobody starves, every wait is bounded."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.conftest import integrity

from cat import store
from cat.errors import (
    CatError,
    CorruptDatabaseError,
    DatabaseBusyError,
    DatabaseReplacedError,
    NotADatabaseError,
)
from children import printed, python

LIMIT = 60.0  # seconds; against hanging
LARGE = "x" * 300_000  # above what is read inline
STRACE = shutil.which("strace")

PREAMBLE = """
import asyncio, json, os, random, sys, time
from cat import store

def tell(*words):
    os.write(1, json.dumps(words).encode() + b"\\n")

def hear():
    line = sys.stdin.readline()
    if not line:
        sys.exit()
    return json.loads(line)

def together(*calls):
    return asyncio.gather(*calls)
"""


class Child:
    """A process that runs `code`, and speaks with us line by line in JSON."""

    def __init__(self, code: str, *arguments: object, before: tuple[str, ...] = ()) -> None:
        program = PREAMBLE + textwrap.dedent(code)
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._heard = b""

    def tell(self, word: object) -> None:
        """Send one line."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(word).encode() + b"\n")

    def hear(self) -> list[Any]:
        """Return the next line, and insist that it comes."""
        while b"\n" not in self._heard:
            assert self.process.stdout is not None
            found, _, _ = select.select([self.process.stdout], [], [], LIMIT)
            assert found, "a process says nothing"
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            assert more, "a process has ended"
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        answer = json.loads(line)
        assert isinstance(answer, list)
        return answer

    def rest(self) -> list[list[Any]]:
        """Return all whole lines until the process ends, killed or not."""
        assert self.process.stdout is not None
        text = self._heard + self.process.stdout.read()
        self.process.wait(LIMIT)
        return [json.loads(line) for line in text.split(b"\n")[:-1]]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; `SIGSTOP` has taken effect when this returns."""
        self.process.send_signal(number)
        if number is signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def ended(self) -> None:
        """Close its input, and insist that it ends well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(LIMIT) == 0


@contextlib.contextmanager
def children(
    code: str, count: int = 1, *arguments: object, before: tuple[str, ...] = ()
) -> Iterator[list[Child]]:
    """Run `code` in processes beside a `with` block; each has its number as first argument."""
    made = [Child(code, number, *arguments, before=before) for number in range(count)]
    try:
        yield made
    finally:
        for child in made:
            child.process.kill()
            child.process.wait()
            for pipe in (child.process.stdin, child.process.stdout):
                if pipe is not None:
                    pipe.close()


def tell_all(peers: list[Child], word: object) -> list[list[Any]]:
    """Send one line to all, and return the answer of each."""
    for peer in peers:
        peer.tell(word)
    return [peer.hear() for peer in peers]


def soon() -> float:
    """Return a time stamp at which all can begin together, on the clock that processes share."""
    return time.monotonic() + 0.2


def rows(database: Path, statement: str = "SELECT key, value FROM entries") -> list[Any]:
    """Return what another connection sees."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


async def outcome(verb: Any) -> tuple[float, object]:
    """Await a verb, and return how long that took and the answer or the error."""
    started = time.monotonic()
    try:
        answer = await verb
    except CatError as error:
        answer = error
    return time.monotonic() - started, answer


# --- Many writers.

SAVES = """
async def main():
    await store.load("warm")
    tell("ready")
    start = hear()
    time.sleep(max(0, start - time.monotonic()))
    await together(*(store.save(f"{sys.argv[1]}-{n}", n) for n in range(200)))
    tell("done")

asyncio.run(main())
"""


def test_four_processes_save(home: Path) -> None:
    """Four processes with 200 concurrent saves each: 800 rows, and no error."""
    with children(SAVES, 4) as peers:
        assert [peer.hear() for peer in peers] == [["ready"]] * 4
        assert tell_all(peers, soon()) == [["done"]] * 4
        for peer in peers:
            peer.ended()
    expected = {f"{peer}-{n}": str(n) for peer in range(4) for n in range(200)}
    assert dict(rows(home / "cat.db")) == expected


RATES = """
async def main():
    await store.load("warm")
    tell("ready")
    while True:
        start = hear()
        time.sleep(max(0, start - time.monotonic()))
        count = 0
        while time.monotonic() < start + 1.5:
            await together(*(store.save(f"{sys.argv[1]}-{n}", count) for n in range(100)))
            count += 100
        tell(count)

asyncio.run(main())
"""


def test_fairness(home: Path, record_property: Callable[[str, object], None]) -> None:
    """Of four processes that save without a pause, the slowest is half as fast as the fastest."""
    with children(RATES, 4) as peers:
        assert [peer.hear() for peer in peers] == [["ready"]] * 4
        rounds = [sorted(count for [count] in tell_all(peers, soon())) for _ in range(3)]
        for peer in peers:
            peer.ended()
    record_property("rounds", rounds)
    print("saves of each process in 1.5 s:", rounds)  # noqa: T201  # pytest shows it if this fails
    assert statistics.median(counts[0] / counts[-1] for counts in rounds) >= 0.5


LONE = """
async def main():
    await store.load("warm")
    tell("ready")
    start = hear()
    time.sleep(max(0, start - time.monotonic()))
    count = worst = 0
    while time.monotonic() < start + 3:
        if sys.argv[1] == "0":
            await together(*(store.save(f"group-{n}", count) for n in range(100)))
        else:
            before = time.monotonic()
            await store.save(f"lone-{sys.argv[1]}", count)
            worst = max(worst, time.monotonic() - before)
        count += 1
    tell(count, worst)

asyncio.run(main())
"""


def test_lone_savers_beside_a_crowd(record_property: Callable[[str, object], None]) -> None:
    """Beside a process that saves a hundred at a time, whoever saves one is never kept waiting."""
    with children(LONE, 4) as peers:
        assert [peer.hear() for peer in peers] == [["ready"]] * 4
        [crowd, *lone] = tell_all(peers, soon())
        for peer in peers:
            peer.ended()
    record_property("crowd, lone", (crowd, lone))
    print("batches of 100:", crowd, "lone saves and worst wait:", lone)  # noqa: T201
    assert crowd[0] >= 3
    for count, worst in lone:
        assert count >= 20
        assert worst < 3, "CAT_TIMEOUT is 30"


# --- Reads.

PING_PONG = """
async def main():
    while True:
        key, expected, value = hear()
        found = [await store.load(key), await store.exists(key)]
        await store.save(key, value)
        tell(found == [expected, True])

asyncio.run(main())
"""


@pytest.mark.parametrize("inline", ["on", "off"])
@pytest.mark.parametrize(("tail", "count"), [("", 500), (LARGE, 60)], ids=["small", "large"])
async def test_reads_are_fresh(
    inline: str, tail: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one process has saved is what the other reads next, there and back, at any size."""
    monkeypatch.setenv("CAT_INLINE_READS", inline)
    with children(PING_PONG) as [peer]:
        for number in range(count):
            key = f"k{number % 3}"
            await store.save(key, f"{number}{tail}")
            peer.tell([key, f"{number}{tail}", f"-{number}{tail}"])
            assert peer.hear() == [True], number
            assert await store.load(key) == f"-{number}{tail}", number
            if number % 10 == 9:
                assert await store.delete(key)
                assert not await store.exists(key)
        peer.ended()


@pytest.mark.parametrize("inline", ["on", "off"])
async def test_inline_reads_change_no_answer(inline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbs give the same answers wherever reads are done."""
    monkeypatch.setenv("CAT_INLINE_READS", inline)
    chosen = random.Random(2)  # noqa: S311  # not a secret
    model: dict[str, object] = {}
    for number in range(600):
        key = chosen.choice("abc")
        step = chosen.random()
        if step < 0.25:
            model[key] = {"n": number, "tail": LARGE if step < 0.05 else ""}
            await store.save(key, model[key])
        elif step < 0.4:
            assert await store.delete(key) == (model.pop(key, None) is not None)
        elif step < 0.7:
            assert await store.load(key) == model.get(key)
        else:
            assert await store.exists(key) == (key in model)


# A peer that takes the write lock, and gives it back when it is told.
HOLDER = """
import sqlite3
connection = sqlite3.connect(sys.argv[2], isolation_level=None)
while True:
    hear()
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE entries SET size = size")
    tell("held")
    hear()
    connection.execute("ROLLBACK")
    tell("free")
"""


@pytest.mark.parametrize("inline", ["on", "off"])
async def test_reads_never_wait_for_writers(
    inline: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads go on at once while one process is in a transaction and others wait for it."""
    monkeypatch.setenv("CAT_INLINE_READS", inline)
    await store.save("small", "s")
    await store.save("large", LARGE)
    with children(HOLDER, 1, home / "cat.db") as [holder]:
        holder.tell("hold")
        assert holder.hear() == ["held"]
        waiting = [asyncio.create_task(store.save(f"k{n}", n)) for n in range(20)]
        await asyncio.sleep(0.05)
        for _ in range(100):
            verbs = [store.load("small"), store.load("large"), store.exists("small")]
            found = await asyncio.gather(*map(outcome, verbs))
            assert [answer for _, answer in found] == ["s", LARGE, True]
            assert max(seconds for seconds, _ in found) < 5, "CAT_TIMEOUT is 30"
        assert not any(task.done() for task in waiting)
        holder.tell("free")
        assert holder.hear() == ["free"]
        assert await asyncio.gather(*waiting) == list(range(20))


# --- Processes that are killed or stopped.

UNTIL_KILLED = """
async def saver(name, tail):
    number = int(sys.argv[2])
    while True:
        number += 1
        key = f"{sys.argv[1]}-{name}-{number % 200}"
        await store.save(key, [number, tail])
        tell(key, number)

async def main():
    await together(*(saver(n, "x" * (30_000 if n == 0 else n)) for n in range(10)))

asyncio.run(main())
"""


@pytest.mark.parametrize(("durability", "cycles"), [("always", 20), ("interval", 5)])
def test_kills_lose_nothing(
    durability: str, cycles: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers are killed again and again: what was acknowledged is there, and all works."""
    monkeypatch.setenv("CAT_DURABILITY", durability)
    chosen = random.Random(3)  # noqa: S311  # not a secret
    acknowledged: dict[str, int] = {}
    for cycle in range(cycles):
        with children(UNTIL_KILLED, 2, cycle * 100_000) as peers:
            said = [peer.hear() for peer in peers]
            time.sleep(chosen.uniform(0.02, 0.2))
            for peer in chosen.sample(peers, 2):
                peer.signal(signal.SIGKILL)
            said += [line for peer in peers for line in peer.rest()]
        acknowledged.update(map(tuple, said))  # in order, for each key

        async def look() -> None:
            assert (await outcome(store.save("next", "works")))[0] < 10, "CAT_TIMEOUT is 30"
            for key, number in acknowledged.items():
                assert (await store.load(key))[0] >= number, key

        asyncio.run(look())
        assert integrity(home / "cat.db") == "ok"
    assert len(acknowledged) > 100


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["one batch", "many batches"])
async def test_a_stopped_peer(size: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a stopped process holds the lock, each save fails in time, reads go on, all recover."""
    monkeypatch.setenv("CAT_TIMEOUT", "1")
    await store.save("old", "old")
    value = "x" * size

    async def late(delay: float, key: str) -> tuple[float, object]:
        await asyncio.sleep(delay)
        return await outcome(store.save(key, value))

    with children(HOLDER, 1, home / "cat.db") as [holder]:
        holder.tell("hold")
        assert holder.hear() == ["held"]
        holder.signal(signal.SIGSTOP)
        saves = [asyncio.create_task(late(0, f"k{n}")) for n in range(50)]
        saves += [asyncio.create_task(late(n / 25, f"l{n}")) for n in range(50)]
        while not all(task.done() for task in saves):
            seconds, answer = await outcome(store.load("old"))
            assert answer == "old"
            assert seconds < 3
            await asyncio.sleep(0.01)
        for task in saves:
            seconds, answer = task.result()
            assert type(answer) is DatabaseBusyError
            assert isinstance(answer, TimeoutError)
            assert answer.not_stored
            assert seconds < 4, "waits add up"
        holder.signal(signal.SIGCONT)
        holder.tell("free")
        assert holder.hear() == ["free"]
        assert await store.save("k0", "new") == "new"
        assert not await store.exists("k1")


async def test_a_stopped_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of ours that is stopped in the middle of its saves blocks nobody for good."""
    with children(UNTIL_KILLED, 1, 0) as [peer]:
        monkeypatch.setenv("CAT_TIMEOUT", "1")  # ours: a peer that was stopped has waited long
        for turn in range(4):
            peer.hear()
            peer.signal(signal.SIGSTOP)
            tried = await asyncio.gather(*(outcome(store.save(f"k{n}", turn)) for n in range(5)))
            for seconds, answer in tried:
                assert seconds < 4
                assert answer == turn or type(answer) is DatabaseBusyError
            peer.signal(signal.SIGCONT)
            assert await store.save("k", turn) == turn


async def test_a_killed_peer_frees_the_lock(home: Path) -> None:
    """When the process that holds the lock is killed, those who waited for it go on."""
    await store.save("old", "old")
    with children(HOLDER, 1, home / "cat.db") as [holder]:
        holder.tell("hold")
        assert holder.hear() == ["held"]
        waiting = [asyncio.create_task(store.save(f"k{n}", n)) for n in range(20)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in waiting)
        killed = time.monotonic()
        holder.signal(signal.SIGKILL)
        assert await asyncio.gather(*waiting) == list(range(20))
        assert time.monotonic() - killed < 10, "CAT_TIMEOUT is 30"


# --- The file is taken away.


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name the database with CAT_URL: what becomes of it is not for `home` to check."""
    path = tmp_path / "place" / "some.db"
    path.parent.mkdir(mode=0o700)
    monkeypatch.setenv("CAT_URL", f"sqlite:///{path}")
    return path


def family(database: Path) -> list[Path]:
    """Return the files of a database that are there, but for the lock of the start."""
    files = [database.with_name(database.name + ending) for ending in ("", "-wal", "-shm")]
    return [file for file in files if file.exists()]


def _remove(database: Path) -> None:
    for file in family(database):
        file.unlink()


def _rename(database: Path) -> None:
    for file in family(database):
        file.rename(file.with_name(f"away-{file.name}"))


def _replace(database: Path) -> None:
    """Put another database of ours in its place, as one restores a backup."""
    other = database.with_name("other.db")
    environment = {**os.environ, "CAT_URL": f"sqlite:///{other}"}
    printed(LOOK, "old", "other", env=environment)
    _remove(database)
    other.rename(database)


def _rename_home(database: Path) -> None:
    database.parent.rename(database.parent.with_name("away"))


def _replace_home(database: Path) -> None:
    _rename_home(database)
    database.parent.write_text("in the way")


def _replace_by_text(database: Path) -> None:
    _remove(database)
    database.write_text("hello, world\n" * 500)


LOOK = """
import asyncio, sys
from cat import store

async def main():
    print(await store.load("old"))
    for key in sys.argv[1:2]:
        await store.save(key, sys.argv[2])
    await store.save("new", "new")
    assert await store.load("new") == "new"

asyncio.run(main())
"""

TAKEN: dict[str, tuple[Callable[[Path], None], str | type[CatError]]] = {
    "removed": (_remove, "None\n"),
    "renamed": (_rename, "None\n"),
    "replaced": (_replace, "other\n"),
    "replaced by text": (_replace_by_text, NotADatabaseError),
    "home renamed": (_rename_home, "None\n"),
    "home replaced": (_replace_home, "NotWritableError"),
}


@pytest.mark.parametrize(("take", "then"), TAKEN.values(), ids=TAKEN)
def test_file_taken_away(
    take: Callable[[Path], None], then: str | type[CatError], database: Path
) -> None:
    """When the file is removed or replaced under us, saves raise, and a later process works."""

    async def main() -> None:
        await store.save("old", "old")
        take(database)
        for verbs in ([store.save("k", 1)], [store.save(f"k{n}", n) for n in range(20)]):
            found = [answer for _, answer in await asyncio.gather(*map(outcome, verbs))]
            assert {type(answer) for answer in found} == {DatabaseReplacedError}
            assert all(answer.not_stored for answer in found)  # type: ignore[attr-defined]
        assert type((await outcome(store.delete("old")))[1]) is DatabaseReplacedError

    asyncio.run(main())
    if isinstance(then, str) and then.endswith("\n"):
        assert printed(LOOK) == then
        assert integrity(database) == "ok"
    else:
        done = python(LOOK)
        assert done.returncode
        assert (then if isinstance(then, str) else then.__name__) in done.stderr


@pytest.mark.parametrize("take", [_remove, _rename, _replace, _rename_home])
def test_file_taken_away_with_the_lock_free(take: Callable[[Path], None], database: Path) -> None:
    """A save that is refused for a file that is gone holds no lock on the file that was."""

    async def main() -> None:
        await store.save("old", "old")
        kept = sqlite3.connect(database, timeout=0.1, isolation_level=None)
        with contextlib.closing(kept):
            kept.execute("SELECT count(*) FROM entries").fetchall()
            take(database)
            assert type((await outcome(store.save("k", 1)))[1]) is DatabaseReplacedError
            kept.execute("BEGIN IMMEDIATE")
            assert kept.execute("SELECT key FROM entries").fetchall() == [("old",)]

    asyncio.run(main())


def test_file_put_back(database: Path) -> None:
    """A file that was renamed away and is put back is used again, with all that it held."""

    async def main() -> None:
        await store.save("old", "old")
        away = database.with_name("away.db")
        database.rename(away)
        assert type((await outcome(store.save("k", 1)))[1]) is DatabaseReplacedError
        away.rename(database)
        assert await store.save("k", 2) == 2

    asyncio.run(main())
    assert dict(rows(database)) == {"old": '"old"', "k": "2"}


def test_database_without_its_log(database: Path) -> None:
    """A database removed without the log that holds its changes is missed, and not begun anew."""

    async def main() -> None:
        await store.save("old", "old")
        database.unlink()
        assert type((await outcome(store.save("k", 1)))[1]) is DatabaseReplacedError

    asyncio.run(main())
    done = python(LOOK)
    assert done.returncode
    assert CorruptDatabaseError.__name__ in done.stderr
    assert not database.exists()


# --- Levels of durability, by the log of the system calls.


def syncs(trace: Path) -> list[float]:
    """Return the times at which the write-ahead log was synced, by the clock of the day."""
    found = re.findall(r"^\d+ +([\d.]+) f(?:data)?sync\(", trace.read_text(), re.MULTILINE)
    return [float(at) for at in found]


def traced(home: Path, trace: Path) -> tuple[str, ...]:
    """Return the command before a command whose syncs of the log are wanted."""
    log = str(home / "cat.db-wal")
    options = ("-f", "-qq", "-ttt", "-o", str(trace), "-P", log, "-e", "trace=fdatasync,fsync")
    return (STRACE or "", *options)


needs_strace = pytest.mark.skipif(STRACE is None, reason="needs strace, to see syncs")

EACH_SAVE = """
async def main():
    await store.load("warm")
    for number in range(30):
        before = time.time()
        await store.save("k", number)
        tell(before, time.time())

asyncio.run(main())
"""


@needs_strace
def test_every_save_is_synced(home: Path, tmp_path: Path) -> None:
    """With CAT_DURABILITY=always, the default, a lone save is synced before it returns."""
    with children(EACH_SAVE, 1, before=traced(home, tmp_path / "trace")) as [peer]:
        saves = peer.rest()
    found = syncs(tmp_path / "trace")
    assert len(saves) == 30
    for before, after in saves:
        assert [at for at in found if before <= at <= after]


BURSTS = """
async def main():
    await store.load("warm")
    await store.save("warm", 0)
    await asyncio.sleep(1.5)
    tell(time.time())
    until = time.monotonic() + 3.5
    number = 0
    while time.monotonic() < until:
        number += 1
        await together(*(store.save(f"k{n}", number) for n in range(20)))
        await asyncio.sleep(0.02)
    tell(time.time(), number)
    await asyncio.sleep(2)
    tell(time.time())
    await store.save("lone", number)
    await asyncio.sleep(2)
    await together(*(store.save(f"k{n}", number) for n in range(20)))
    await store.save("last", number)
    tell(time.time())

asyncio.run(main())
tell(time.time())
"""


@needs_strace
def test_interval_syncs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CAT_DURABILITY=interval, there is about a sync a second while there is need for one."""
    monkeypatch.setenv("CAT_DURABILITY", "interval")
    with children(BURSTS, 1, before=traced(home, tmp_path / "trace")) as [peer]:
        [begun] = peer.hear()
        # Somebody else has it open, so the last to close, which syncs anyway, is not the peer.
        with contextlib.closing(sqlite3.connect(home / "cat.db")) as other:
            other.execute("SELECT count(*) FROM entries").fetchall()
            [ended, number], [lone], [last], [closed] = peer.rest()
    found = syncs(tmp_path / "trace")
    burst = [at for at in found if begun <= at < ended]
    print("in 3.5 s:", number, "commits, syncs at", [round(at - begun, 3) for at in burst])  # noqa: T201
    assert number > 20
    # About a second: the machine may be busy.
    assert 2 <= len(burst) <= 5
    assert max(b - a for a, b in itertools.pairwise([begun, *burst])) < 2.5
    idle = [round(at - ended, 3) for at in found if ended <= at < lone]
    print("after it:", idle)  # noqa: T201
    assert len(idle) == 1
    after = [round(at - lone, 3) for at in found if lone <= at < lone + 1.9]
    print("after a lone save:", after)  # noqa: T201
    assert len(after) == 1, "a sync with nothing to sync"
    assert [at for at in found if last <= at <= closed]
    assert dict(rows(home / "cat.db"))["last"] == str(number)


ONCE = """
async def main():
    await store.load("warm")
    for number in range(3):
        await store.save("k", number)
    tell("saved")
    await asyncio.sleep(float(hear()))
    tell(time.time())
    time.sleep(60)

asyncio.run(main())
"""


@needs_strace
def test_interval_syncs_after_a_wait(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that another process was in the way of is made up for as soon as that is gone."""
    monkeypatch.setenv("CAT_DURABILITY", "interval")
    monkeypatch.setenv("CAT_TIMEOUT", "0.3")
    asyncio.run(outcome(store.save("k", "old")))
    with (
        children(ONCE, 1, before=traced(home, tmp_path / "trace")) as [peer],
        children(HOLDER, 1, home / "cat.db") as [holder],
    ):
        assert peer.hear() == ["saved"]
        holder.tell("hold")
        assert holder.hear() == ["held"]
        peer.tell(4.5)
        time.sleep(2)  # the sync was due by now, and waited as long as it may
        holder.tell("free")
        assert holder.hear() == ["free"]
        freed = time.time()
        [until] = peer.hear()
    assert until - freed > 1.5
    assert [at for at in syncs(tmp_path / "trace") if at > freed]


# --- Linearizability, after Wing and Gong (1993), for each key by itself.


class Operation(NamedTuple):
    """One call on one key, by the clock that the processes share."""

    start: float
    end: float
    verb: str
    given: object
    answer: object


def applied(state: object, operation: Operation) -> tuple[bool, object]:
    """Say whether a register in `state` gives this answer, and return its next state."""
    if operation.verb == "save":
        return True, operation.given
    if operation.verb == "delete":
        return operation.answer == (state is not None), None
    if operation.verb == "exists":
        return operation.answer == (state is not None), state
    return operation.answer == state, state


def linearizable(history: list[Operation]) -> bool:
    """Say whether there is an order of these calls, within their times, that explains them."""
    everything = (1 << len(history)) - 1
    stack: list[tuple[int, object]] = [(0, None)]
    seen = set(stack)
    while stack:
        done, state = stack.pop()
        if done == everything:
            return True
        left = [n for n in range(len(history)) if not done >> n & 1]
        first_end = min(history[n].end for n in left)
        for n in left:
            if history[n].start <= first_end:
                fits, after = applied(state, history[n])
                step = (done | 1 << n, after)
                if fits and step not in seen:
                    seen.add(step)
                    stack.append(step)
    return False


def test_the_checker_finds_a_stale_read() -> None:
    """The checker takes what may happen, and refuses a stale read, a lost delete and a ghost."""
    first = Operation(0, 1, "save", "a", None)
    second = Operation(2, 3, "save", "b", None)
    assert linearizable([])
    assert linearizable([first, second, Operation(4, 5, "load", None, "b")])
    assert linearizable([first, second, Operation(2.5, 5, "load", None, "a")])
    assert not linearizable([first, second, Operation(4, 5, "load", None, "a")])
    assert not linearizable([first, second, Operation(4, 5, "load", None, None)])
    assert not linearizable([first, Operation(2, 3, "load", None, "c")])
    gone = Operation(2, 3, "delete", None, answer=True)
    assert linearizable([first, gone, Operation(4, 5, "exists", None, answer=False)])
    assert linearizable([first, gone, Operation(2, 5, "delete", None, answer=False)])
    assert not linearizable([first, gone, Operation(4, 5, "exists", None, answer=True)])
    assert not linearizable([first, gone, Operation(2, 5, "delete", None, answer=True)])
    # Two readers that see two overlapping writes in different orders.
    both = [Operation(0, 9, "save", "a", None), Operation(0, 9, "save", "b", None)]
    reads = [Operation(n, n + 0.5, "load", None, value) for n, value in enumerate("aba", start=1)]
    assert linearizable([*both, *reads[:2]])
    assert not linearizable([*both, *reads])


HISTORY = """
async def caller(name, chosen, found):
    for number in range(5):
        key = chosen.choice("ab")
        verb = chosen.choice(["save", "save", "load", "load", "load", "delete", "exists"])
        given = f"{name}-{number}" if verb == "save" else None
        before = time.monotonic()
        if verb == "save":
            await store.namespace(found["history"]).save(key, given)
            answer = None
        else:
            answer = await getattr(store.namespace(found["history"]), verb)(key)
        found[key].append([before, time.monotonic(), verb, given, answer])
        if chosen.random() < 0.3:
            await asyncio.sleep(chosen.random() / 500)

async def main():
    await store.load("warm")
    while True:
        history, start = hear()
        found = {"history": history, "a": [], "b": []}
        chosen = random.Random(f"{history} {sys.argv[1]}")
        time.sleep(max(0, start - time.monotonic()))
        await together(*(caller(f"{sys.argv[1]}-{n}", chosen, found) for n in range(3)))
        tell(found["a"], found["b"])

asyncio.run(main())
"""


def test_linearizable(home: Path) -> None:
    """In 30 histories of three processes, each key behaves as one register would."""
    stale = overlaps = 0
    with children(HISTORY, 3) as peers:
        for number in range(30):
            found = tell_all(
                peers, [f"h{number}", time.monotonic() + (0.5 if number == 0 else 0.02)]
            )
            for key in (0, 1):
                history = [Operation(*call) for answer in found for call in answer[key]]
                assert linearizable(history), (number, history)
                overlaps += sum(a.start < b.start < a.end for a in history for b in history)
                stale += not linearizable([*history, planted(history)])
        for peer in peers:
            peer.ended()
    assert overlaps > 100, "they must run together"
    assert stale == 60, "and a stale read would be found"


def planted(history: list[Operation]) -> Operation:
    """Return a read after all others of a value that nobody saved last."""
    end = max((operation.end for operation in history), default=0.0)
    return Operation(end + 1, end + 2, "load", None, "never saved")
