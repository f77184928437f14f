"""However an event loop, a thread or a process ends, what was acknowledged is kept.

And nothing of ours hangs, complains, or stays behind: no thread, no file, no lock.
"""

import asyncio
import importlib.util
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import integrity, open_below

import cat
from cat import context, store
from cat.errors import CatError
from children import lock_holder, python

LARGE = "x" * 400_000  # more than is read on the loop's own thread


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS = {"asyncio": asyncio.SelectorEventLoop}
if importlib.util.find_spec("uvloop"):
    LOOPS["uvloop"] = _uvloop


@pytest.fixture(params=LOOPS)
def loops(request: pytest.FixtureRequest) -> str:
    """Name each kind of event loop that is installed."""
    return request.param


@pytest.fixture
def run(loops: str) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Return `asyncio.run`, on each kind of loop."""

    def run_one(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=LOOPS[loops]) as runner:
            return runner.run(main)

    return run_one


# --- What is looked at afterwards, with plain SQLite.


def stored(home: Path) -> dict[str, Any]:
    """Return what another program finds in the database, with no time to wait."""
    connection = sqlite3.connect(home / "cat.db", timeout=1)
    try:
        rows = connection.execute("SELECT key, value FROM entries").fetchall()
        return {key: json.loads(value) for key, value in rows}
    finally:
        connection.close()


def assert_unlocked(home: Path) -> None:
    """Another connection can write at once."""
    connection = sqlite3.connect(home / "cat.db", timeout=1, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def assert_nothing_left(home: Path, before: set[threading.Thread], seconds: float = 3) -> None:
    """Threads and files of ours are gone, within a moment."""
    deadline = time.monotonic() + seconds
    while True:
        threads = [thread for thread in threading.enumerate() if thread not in before]
        files = open_below(home)
        if not threads and not files:
            return
        assert time.monotonic() < deadline, (threads, files)
        time.sleep(0.002)


@pytest.fixture
def holder(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Return another process, which holds the write lock between two lines: `hold`, `release`."""
    process = lock_holder()
    yield process
    process.communicate(timeout=10)


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Tell `holder` to hold or to release, and wait until it has done so."""
    process.stdin.write(line + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


# --- A process that never closes.

PROGRAM = """
import asyncio, os, signal, sqlite3, sys, threading, time, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from cat import store

# A shell that runs this in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

def new_loop():
    if sys.argv[1] == "uvloop":
        import uvloop
        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()

def run(main):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)

def tell(line):
    os.write(1, (line + "\\n").encode())

async def save(key):
    await store.save(key, 1)
    tell(key)

async def some():
    await asyncio.gather(*(save(f"some{n}") for n in range(20)))
    await store.save("large", "x" * 400_000)
    assert len(await store.load("large")) == 400_000

async def busy():
    n = 0
    while True:
        await asyncio.gather(*(save(f"busy{n}.{i}") for i in range(5)))
        n += 1
"""

ENDINGS = {
    "asyncio.run": ("run(some())", 0, ""),
    "nothing after run_until_complete": ("new_loop().run_until_complete(some())", 0, ""),
    "the loop kept and left open": ("loop = new_loop(); loop.run_until_complete(some())", 0, ""),
    "close without a shutdown": (
        "loop = new_loop(); loop.run_until_complete(some()); loop.close()",
        0,
        "",
    ),
    "sys.exit in a coroutine": (
        """
async def main():
    await some()
    sys.exit(3)
run(main())
""",
        3,
        "",
    ),
    "sys.exit while others save": (
        """
async def main():
    task = asyncio.create_task(busy())
    await some()
    sys.exit(3)
run(main())
""",
        3,
        "",
    ),
    "sys.exit out of a loop that is left open": (
        """
async def main():
    await some()
    asyncio.get_running_loop().call_later(0.05, sys.exit, 3)
    await busy()
loop = new_loop()
task = loop.create_task(main())
loop._log_destroyed_pending = False
task._log_destroy_pending = False  # asyncio's own complaint about the task
loop.run_until_complete(task)
""",
        3,
        "",
    ),
    "an unhandled exception": (
        """
async def main():
    task = asyncio.create_task(busy())
    await some()
    raise ValueError("of the program's own")
run(main())
""",
        1,
        "ValueError: of the program's own",
    ),
    "a thread's loop, not waited for": (
        """
thread = threading.Thread(target=lambda: run(busy()), daemon=True)
thread.start()
time.sleep(0.3)
""",
        0,
        "",
    ),
}


@pytest.mark.parametrize(("code", "status", "complaint"), ENDINGS.values(), ids=ENDINGS)
def test_a_process_that_never_closes(
    code: str, status: int, complaint: str, loops: str, home: Path
) -> None:
    """A process that just ends does so by itself, quietly, and all it was told is kept."""
    started = time.monotonic()
    done = python(PROGRAM + code, loops, timeout=20)
    assert done.returncode == status, done.stderr
    assert time.monotonic() - started < 8
    if complaint:
        assert done.stderr.splitlines()[-1] == complaint
        assert done.stderr.count("Traceback") == 1
    else:
        assert done.stderr == ""
    acknowledged = done.stdout.split()
    assert acknowledged
    assert set(acknowledged) <= set(stored(home))
    assert_unlocked(home)


SIGNALS = {
    "KeyboardInterrupt": (signal.SIGINT, "run(busy())", (-signal.SIGINT, 130)),
    "KeyboardInterrupt, and the loop is left open": (
        signal.SIGINT,
        "loop = new_loop(); loop.run_until_complete(busy())",
        (-signal.SIGINT, 130),
    ),
    "SIGTERM with a handler of the loop": (
        signal.SIGTERM,
        """
async def main():
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    task = asyncio.create_task(busy())
    await stopped.wait()
run(main())
""",
        (0,),
    ),
    "SIGTERM": (signal.SIGTERM, "run(busy())", (-signal.SIGTERM,)),
}


def ended(process: subprocess.Popen[str], number: int) -> tuple[str, str, int]:
    """Return what a process that was signalled printed to its end, and how many signals it took.

    Python drops a KeyboardInterrupt that strikes in a weak reference's callback
    (seen: in the set of asyncio's tasks), and whoever waits presses Ctrl-C again.
    """
    for sent in range(1, 4):
        try:
            rest, complaints = process.communicate(timeout=4)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        else:
            return rest, complaints, sent
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize(("number", "code", "statuses"), SIGNALS.values(), ids=SIGNALS)
def test_a_process_that_is_signalled_during_a_save(
    number: int, code: str, statuses: tuple[int, ...], loops: str, home: Path
) -> None:
    """A signal ends a process in the middle of its saves within seconds, without a complaint."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM + code, loops],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines = [process.stdout.readline() for _ in range(30)]
        started = time.monotonic()
        process.send_signal(number)
        rest, complaints, sent = ended(process, number)
    assert time.monotonic() - started < 5 * sent
    # Only an interrupt that Python itself dropped may be needed twice.
    assert sent == 1 or "Exception ignored in" in complaints
    assert process.returncode in statuses
    assert "Exception in thread" not in complaints
    if number == signal.SIGTERM:
        assert complaints == ""
    acknowledged = ("".join(lines) + rest).split()
    assert set(acknowledged) <= set(stored(home))
    assert_unlocked(home)
    assert integrity(home / "cat.db") == "ok"


# --- Loops in a row, in threads, and per test.


def test_many_loops_in_a_row(run: Callable[..., Any], home: Path) -> None:
    """Fifty `asyncio.run` in a row each go on where the last ended, and leave nothing."""
    before = set(threading.enumerate())
    kept = len(context._abandoned)

    async def count() -> int:
        await store.save("n", await store.load("n", 0) + 1)
        return await store.load("n")

    for number in range(50):
        assert run(count()) == number + 1
        assert_nothing_left(home, before)
    assert len(context._bound) == 1
    assert len(context._abandoned) == kept


def test_one_loop_run_several_times(loops: str, home: Path) -> None:
    """A loop that is run, left and run again keeps its store open in between."""
    before = set(threading.enumerate())
    loop = LOOPS[loops]()
    for number in range(5):
        loop.run_until_complete(store.save("n", number))
        time.sleep(0.01)
        assert loop.run_until_complete(store.load("n")) == number
    assert len(threading.enumerate()) == len(before) + 1
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert_nothing_left(home, before)


def test_two_threads_with_loops_of_their_own(run: Callable[..., Any], home: Path) -> None:
    """Two loops in two threads share one file, and each sees what the other has saved."""
    before = set(threading.enumerate())
    barrier = threading.Barrier(2)
    failures: list[BaseException] = []

    async def use(name: str) -> None:
        await asyncio.gather(*(store.save(f"{name}{n}", n) for n in range(100)))
        for n in range(30):
            await store.save("shared", f"{name}{n}")
            await store.save(f"{name}large", LARGE)
            assert await store.load(f"{name}large") == LARGE
        barrier.wait(10)
        for other in ("a", "b"):
            assert [await store.load(f"{other}{n}") for n in range(100)] == list(range(100))

    def thread(name: str) -> None:
        try:
            for _ in range(3):
                barrier.wait(10)
                run(use(name))
        except BaseException as error:  # noqa: BLE001  # told below
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=thread, args=(name,)) for name in ("a", "b")]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert failures == []
    assert_nothing_left(home, before)


def test_two_threads_that_find_what_a_third_left(loops: str, home: Path) -> None:
    """Several loops that begin at once may all meet what a rudely closed loop left open."""
    before = set(threading.enumerate())
    failures: list[BaseException] = []

    def rudely() -> None:
        loop = LOOPS[loops]()
        loop.run_until_complete(store.save("k", 1))
        loop.close()

    for _ in range(20):
        for _ in range(3):
            rudely()
        barrier = threading.Barrier(4)

        def use(barrier: threading.Barrier = barrier) -> None:
            loop = LOOPS[loops]()
            try:
                barrier.wait(10)
                assert loop.run_until_complete(store.load("k")) == 1
            except BaseException as error:  # noqa: BLE001  # told below
                failures.append(error)
            finally:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

        threads = [threading.Thread(target=use) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(20)
        assert failures == []
    assert_nothing_left(home, before)


PER_TEST = """
import pytest
from cat import store
{mark}

@pytest.mark.parametrize("number", range(15))
async def test_one(number):
    assert await store.load("n", 0) == number
    await store.save("n", number + 1)
    await store.save("large", "x" * 400_000)
    assert len(await store.load("large")) == 400_000
"""


@pytest.mark.parametrize(
    ("plugin", "mark", "options"),
    [
        ("pytest_asyncio", "", ["-p", "no:anyio"]),
        (
            "anyio",
            """
pytestmark = pytest.mark.anyio
anyio_backend = pytest.fixture(lambda: "asyncio", name="anyio_backend")
""",
            ["-p", "no:asyncio"],
        ),
    ],
)
def test_a_loop_per_test(
    plugin: str, mark: str, options: list[str], home: Path, tmp_path: Path
) -> None:
    """In a suite that gives each test a loop of its own, the store is a plain fixture's worth."""
    pytest.importorskip(plugin)
    suite = tmp_path / "test_suite.py"
    suite.write_text(PER_TEST.format(mark=mark))
    settings = "asyncio_mode=auto\nasyncio_default_fixture_loop_scope=function\n"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{settings if plugin != 'anyio' else ''}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *options, str(suite)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "15 passed" in done.stdout


# --- A loop that is closed with no chance to close anything.


def turns(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Let a loop turn `count` times and stop."""
    for _ in range(count):
        loop.call_soon(loop.stop)
        loop.run_forever()


def silent(loop: asyncio.AbstractEventLoop, verb: Coroutine[Any, Any, Any]) -> None:
    """Start a task of which asyncio does not complain when it is destroyed."""
    loop.create_task(verb)._log_destroy_pending = False


def rude(
    loops: str,
    verbs: Callable[[], list[Coroutine[Any, Any, Any]]],
    *,
    first: Callable[[], Awaitable[Any]] | None = None,
    count: int,
) -> None:
    """Close a loop `count` turns after `verbs` were begun on it, with nothing shut down."""
    loop = LOOPS[loops]()
    if first is not None:
        loop.run_until_complete(first())
    for verb in verbs():
        silent(loop, verb)
    turns(loop, count)
    loop.close()


async def opened() -> None:
    """Save what is acknowledged, and have all connections open."""
    await store.save("k", "old")
    await store.save("large", LARGE)
    assert await store.load("k") == "old"
    assert await store.load("large") == LARGE


async def grown() -> None:
    """Write enough for the log to be copied back, which has a connection of its own."""
    await opened()
    for _ in range(24):
        await store.save("big", LARGE)


def saves() -> list[Coroutine[Any, Any, Any]]:
    """Return saves that are under way and that wait."""
    return [store.save("k", "new"), store.save("other", "new"), store.save("k", "new")]


def slow_reads() -> list[Coroutine[Any, Any, Any]]:
    """Return reads that go through a thread."""
    return [store.load("large") for _ in range(5)]


# aiosqlite's thread ends with this when its loop was closed during its work.
UNDELIVERED = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
MOMENTS = {
    "idle": (opened, list),
    "idle, with a log that was copied back": (grown, list),
    "saving": (opened, saves),
    "reading slowly": (opened, slow_reads),
    "opening": (None, saves),
    "opening to read": (None, slow_reads),
}


@UNDELIVERED
@pytest.mark.parametrize(("first", "verbs"), MOMENTS.values(), ids=MOMENTS)
def test_a_loop_closed_rudely(
    first: Callable[[], Awaitable[Any]] | None,
    verbs: Callable[[], list[Coroutine[Any, Any, Any]]],
    loops: str,
    run: Callable[..., Any],
    home: Path,
) -> None:
    """A loop closed at any moment harms no later one, and soon nothing of it is left."""
    before = set(threading.enumerate())
    run(opened())  # what is acknowledged, to be kept

    async def anew() -> None:
        assert await store.load("k") in ("old", "new")
        assert await store.load("large") == LARGE
        await store.save("k", "old")

    for count in (1, 2, 3, 5, 8, 20, 60) if verbs is not list else (0,):
        rude(loops, verbs, first=first, count=count)
        started = time.monotonic()
        run(anew())
        assert time.monotonic() - started < 2
        assert_unlocked(home)
    assert_nothing_left(home, before)


@UNDELIVERED
@pytest.mark.parametrize("delay", [0, 0.05])
def test_a_loop_closed_rudely_while_its_writer_waits(
    delay: float,
    loops: str,
    run: Callable[..., Any],
    home: Path,
    holder: subprocess.Popen[str],
) -> None:
    """What waits for another process when its loop is closed is made or not, and holds no one."""
    before = set(threading.enumerate())
    run(opened())
    tell(holder, "hold")
    rude(loops, saves, first=lambda: store.load("k"), count=3)
    time.sleep(delay)
    assert run(store.load("k")) == "old"
    tell(holder, "release")

    async def anew() -> None:
        await store.save("mine", 1)
        assert await store.load("k") in ("old", "new")

    started = time.monotonic()
    run(anew())
    assert time.monotonic() - started < 3
    assert_nothing_left(home, before)
    assert_unlocked(home)
    assert stored(home)["k"] in ("old", "new")
    assert stored(home)["mine"] == 1


@pytest.mark.parametrize("moment", ["waiting to write", "opening"])
def test_nothing_is_left_even_without_another_loop(
    moment: str, loops: str, run: Callable[..., Any], home: Path, holder: subprocess.Popen[str]
) -> None:
    """A loop closed in the middle of its work leaves nothing, if no other ever comes."""
    run(opened())
    code = """
loop = new_loop()
if sys.argv[2] == "opening":
    task = loop.create_task(store.save("k", "new"))
else:
    loop.run_until_complete(store.load("k"))
    task = loop.create_task(store.save("k", "new"))
task._log_destroy_pending = False
for _ in range(3):
    loop.call_soon(loop.stop)
    loop.run_forever()
loop.close()
tell("closed")
sys.stdin.readline()
time.sleep(0.3)
"""
    tell(holder, "hold")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM + code, loops, moment],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "closed\n"
        tell(holder, "release")
        _, complaints = process.communicate("\n", timeout=10)
    assert process.returncode == 0
    # aiosqlite's thread says that it cannot deliver, and nobody else complains.
    assert complaints == "" or "RuntimeError: Event loop is closed\n" in complaints
    assert_unlocked(home)
    assert stored(home)["k"] in ("old", "new")


# --- The end of the main coroutine.


@pytest.mark.parametrize("turns_before", [0, 1, 3, 10])
@pytest.mark.parametrize("is_open", [True, False])
def test_saves_in_flight_when_main_returns(
    is_open: bool,  # noqa: FBT001  # a parameter of a test
    turns_before: int,
    run: Callable[..., Any],
    home: Path,
) -> None:
    """`asyncio.run` cancels what is under way: each is done or not done, and all is closed."""
    before = set(threading.enumerate())
    finished: list[int] = []

    async def one(number: int) -> None:
        await store.save(f"k{number}", number)
        finished.append(number)

    async def main() -> None:
        if is_open:
            await store.save("first", 1)
        tasks = {asyncio.create_task(one(number)) for number in range(50)}
        for _ in range(turns_before):
            await asyncio.sleep(0)
        assert len(tasks) == 50

    started = time.monotonic()
    run(main())
    assert time.monotonic() - started < 3
    assert_nothing_left(home, before)
    if (home / "cat.db").exists():
        found = stored(home)
        assert_unlocked(home)
        assert {f"k{number}" for number in finished} <= set(found)
        for number in range(50):
            assert found.get(f"k{number}", number) == number


def test_generators_that_save_at_the_end(run: Callable[..., Any], home: Path) -> None:
    """A generator that saves when its loop shuts down succeeds, or is told why not."""
    before = set(threading.enumerate())
    done: list[str] = []
    refused: list[BaseException] = []

    async def generator(name: str) -> Any:
        try:
            yield
        finally:
            for number in range(4):
                try:
                    await store.save(f"{name}{number}", number)
                    done.append(f"{name}{number}")
                except Exception as error:  # noqa: BLE001  # looked at below
                    refused.append(error)

    async def main(kept: list[Any]) -> None:
        for name in "ab":  # begun before the store is, and after it
            kept.append(generator(name))
            await anext(kept[-1])
        await store.save("k", 1)
        for name in "cd":
            kept.append(generator(name))
            await anext(kept[-1])

    for _ in range(5):  # in which order they are closed is left to chance
        done.clear()
        refused.clear()
        kept: list[Any] = []
        run(main(kept))
        assert len(done) + len(refused) == 4 * len(kept)
        assert [error for error in refused if not isinstance(error, CatError)] == []
        assert_nothing_left(home, before)
        assert set(done) <= set(stored(home))


# --- Blocks of connect.


def test_connect_nests(run: Callable[..., Any], home: Path, tmp_path: Path) -> None:
    """Blocks for one home may nest: the inner end closes nothing, the outer one all."""
    before = set(threading.enumerate())
    other = tmp_path / "other"

    async def main() -> None:
        async with cat.connect(home=other):
            await store.save("k", 1)
            async with cat.connect(home=other):
                await store.save("k", 2)
            assert await store.load("k") == 2
            await store.save("large", LARGE)
            assert await store.load("large") == LARGE
        assert_nothing_left(other, before)
        assert await store.load("k") is None
        async with cat.connect(home=home):  # the environment's own, already open
            assert await store.load("k") is None
        await store.save("k", 3)

    run(main())
    assert stored(other) == {"k": 2, "large": LARGE}
    assert stored(home) == {"k": 3}


@pytest.mark.parametrize("first_out", ["first in", "last in"])
def test_connect_overlaps(first_out: str, run: Callable[..., Any], home: Path) -> None:
    """Tasks whose blocks overlap may leave in any order; the last to leave closes."""
    before = set(threading.enumerate())

    async def main() -> None:
        entered = [asyncio.Event(), asyncio.Event()]
        leave = [asyncio.Event(), asyncio.Event()]

        async def use(number: int) -> None:
            async with cat.connect(home=home):
                entered[number].set()
                await store.save(f"entered{number}", 1)
                await leave[number].wait()
                await store.save(f"leaving{number}", 1)

        tasks = []
        for number in (0, 1):
            tasks.append(asyncio.create_task(use(number)))
            await entered[number].wait()
        order = (0, 1) if first_out == "first in" else (1, 0)
        for number in order:
            leave[number].set()
            await tasks[number]
            if number == order[0]:
                assert len(open_below(home)) > 0
        assert_nothing_left(home, before)

    run(main())
    assert set(stored(home)) == {"entered0", "entered1", "leaving0", "leaving1"}


def test_connect_cancelled_while_opening(run: Callable[..., Any], home: Path) -> None:
    """A block that is cancelled before it begins leaves the loop free for another home."""
    before = set(threading.enumerate())

    async def enter(place: Path) -> None:
        async with cat.connect(home=place):
            await store.save("k", 1)

    async def main() -> None:
        for turn in range(30):
            task = asyncio.create_task(enter(home / f"first{turn}"))
            for _ in range(turn):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert_nothing_left(home, before)
            await enter(home / "second")
            assert_nothing_left(home, before)

    run(main())


def test_leaving_connect_while_saves_are_in_flight(run: Callable[..., Any], home: Path) -> None:
    """The end of a block waits for what is under way, whoever issued it."""
    before = set(threading.enumerate())

    async def main() -> None:
        async with cat.connect(home=home):
            tasks = [asyncio.create_task(store.save(f"k{n}", n)) for n in range(200)]
            await asyncio.sleep(0)
        assert_nothing_left(home, before)
        assert stored(home) == {f"k{n}": n for n in range(200)}
        assert await asyncio.gather(*tasks) == list(range(200))

    run(main())


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, SystemExit])
def test_the_body_of_connect_raises(
    error: type[BaseException], run: Callable[..., Any], home: Path
) -> None:
    """What the body raises comes out as it is, and everything is closed."""
    before = set(threading.enumerate())
    raised = error("of the body's own")

    async def main() -> None:
        async with cat.connect(home=home):
            await store.save("k", 1)
            raise raised

    with pytest.raises(error) as caught:
        run(main())
    if error is not asyncio.CancelledError:  # of which a task makes a new one
        assert caught.value is raised
    assert_nothing_left(home, before)
    assert stored(home) == {"k": 1}


# --- How many threads.


def test_three_threads_at_most(run: Callable[..., Any], home: Path) -> None:
    """A thousand saves and loads at once, small and large, need the loop's thread and two more."""
    before = len(threading.enumerate())
    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(threading.enumerate()) - 1)  # but for this one
            time.sleep(0.0005)

    async def one(number: int) -> None:
        value = LARGE if number % 25 == 0 else number
        await store.save(f"k{number}", value)
        assert await store.load(f"k{number}") == value

    async def main() -> None:
        await asyncio.gather(*(one(number) for number in range(1_000)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run(main())
    finally:
        done.set()
        watcher.join()
    assert before < most <= before + 2
    assert len(stored(home)) == 1_000


# --- Forks.

FORK = """
def child_of(body):
    pid = os.fork()
    if pid:
        return pid
    try:
        status = body() or 0
    except BaseException as error:
        os.write(2, repr(error).encode())
        status = 1
    os._exit(status)

def wait(pid):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0, status
            return
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    sys.exit("a child hung")

def database(suffix=""):
    return os.path.join(os.environ["CAT_HOME"], "cat.db" + suffix)

def our_locks():
    # What the kernel knows of the locks of this process on our files.
    files = {str(os.stat(database(end)).st_ino): end for end in ("", "-shm")}
    with open("/proc/locks") as table:
        rows = [line.split() for line in table]
    return sorted(
        (*row[1:4], *row[6:], files[row[5].split(":")[-1]])
        for row in rows
        if row[4] == str(os.getpid()) and row[5].split(":")[-1] in files
    )

def locked_files():
    return {lock[-1] for lock in our_locks()}

async def ready():
    await save("ready")
    assert await store.load("ready") == 1
    await store.save("large", "x" * 400_000)
    assert len(await store.load("large")) == 400_000
"""

FORKS = {
    "before use": """
pid = child_of(lambda: run(some()))
run(save("parent"))
wait(pid)
run(save("parent again"))
""",
    "between two loops": """
run(ready())
pid = child_of(lambda: run(some()))
run(save("parent"))
wait(pid)
run(save("parent again"))
""",
    "a loop that is left open, in the child too": """
loop = new_loop()
loop.run_until_complete(ready())
pid = child_of(lambda: new_loop().run_until_complete(some()))
loop.run_until_complete(save("parent"))
wait(pid)
loop.run_until_complete(save("parent again"))
""",
    "within a running loop": """
async def main():
    await ready()
    pid = child_of(lambda: run(some()))
    for n in range(30):
        await save(f"parent{n}")
    wait(pid)
    await save("parent again")
    await ready()
run(main())
""",
    "the parent closes before the child": """
there, here = os.pipe()
async def child():
    await save("child")
    os.read(there, 1)
    for n in range(30):
        await save(f"child{n}")
        assert await store.load(f"child{n}") == 1
async def main():
    await ready()
    pid = child_of(lambda: run(child()))
    await save("parent")
    time.sleep(0.2)
    return pid
pid = run(main())
os.write(here, b"x")
wait(pid)
run(save("parent again"))
""",
    "a child of a child": """
async def grandchild():
    await save("grandchild")
async def child():
    await save("child")
    wait(child_of(lambda: run(grandchild())))
    await save("child again")
async def main():
    await ready()
    wait(child_of(lambda: run(child())))
    await save("parent")
run(main())
""",
    "several children at once": """
async def child(name):
    for n in range(20):
        await save(f"{name}.{n}")
async def main():
    await ready()
    pids = [child_of(lambda: run(child(f"child{n}"))) for n in range(4)]
    await child("parent")
    for pid in pids:
        await asyncio.to_thread(wait, pid)
        await ready()
run(main())
""",
    "in a thread": """
async def main():
    await ready()
    pid = await asyncio.to_thread(child_of, lambda: run(some()))
    await save("parent")
    await asyncio.to_thread(wait, pid)
    await ready()
run(main())
""",
}


@pytest.mark.parametrize("code", FORKS.values(), ids=FORKS)
def test_fork(code: str, loops: str, home: Path) -> None:
    """Parent and child both go on saving, and nothing that either was told is lost."""
    done = python(PROGRAM + FORK + code, loops, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    acknowledged = set(done.stdout.split("\n")) - {""}
    assert acknowledged <= set(stored(home))
    assert_unlocked(home)
    assert integrity(home / "cat.db") == "ok"


CHILDREN = {
    "os._exit, unused": "os._exit(0)",
    "sys.exit, unused": "sys.exit(0)",
    "sys.exit after use": "run(some()); sys.exit(0)",
    "os._exit after use": "run(some()); os._exit(0)",
    "collected": "import gc; gc.collect(); run(save('child')); gc.collect(); sys.exit(0)",
}


@pytest.mark.parametrize("leave", CHILDREN.values(), ids=CHILDREN)
def test_a_child_leaves_its_parent_alone(leave: str, loops: str, home: Path) -> None:
    """However a child leaves, its parent holds its locks again, and its connections work."""
    if not Path("/proc/locks").exists():
        pytest.skip("the locks of a process are seen on Linux only")
    code = f"""
pid = 0
loop = new_loop()
loop.run_until_complete(ready())
assert locked_files() == {{"", "-shm"}}, our_locks()
pid = os.fork()
if pid == 0:
    {leave}
wait(pid)
loop.run_until_complete(ready())
assert locked_files() == {{"", "-shm"}}, our_locks()
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
"""
    done = python(PROGRAM + FORK + code, loops, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) <= set(stored(home))
    assert integrity(home / "cat.db") == "ok"


@pytest.mark.parametrize("leave", ["sys.exit(0)", "import gc; gc.collect(); sys.exit(0)"])
def test_a_child_touches_no_lock_of_its_parent(
    leave: str, loops: str, home: Path, tmp_path: Path
) -> None:
    """A child that ends makes no call about locks on the descriptors it inherited."""
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=fcntl", "-o", str(trace)]
    if not shutil.which("strace") or subprocess.run([*strace, "true"], check=False).returncode:
        pytest.skip("there is no strace here that may trace")
    code = f"""
loop = new_loop()
loop.run_until_complete(ready())
inherited = [
    int(name) for name in os.listdir("/proc/self/fd")
    if os.path.exists(f"/proc/self/fd/{{name}}")
    and os.readlink(f"/proc/self/fd/{{name}}").startswith(database())
]
pid = os.fork()
if pid == 0:
    {leave}
wait(pid)
tell(f"{{pid}} {{inherited}}")
os._exit(0)
"""
    done = subprocess.run(
        [*strace, sys.executable, "-c", PROGRAM + FORK + code, loops],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pid, inherited = done.stdout.splitlines()[-1].split(" ", 1)
    calls = [line.split(maxsplit=1) for line in trace.read_text().splitlines() if "SETLK" in line]
    assert [process for process, _ in calls if process != pid], "the parent takes locks"
    touched = [
        call
        for process, call in calls
        if process == pid and int(call.split("(")[1].split(",")[0]) in json.loads(inherited)
    ]
    assert touched == []


def test_fork_in_the_middle_of_saves(home: Path) -> None:
    """A child made while its parent's thread is at work never hangs, and has a store of its own."""
    code = """
async def child(n):
    await save(f"child{n}")

async def main():
    stop = asyncio.Event()
    async def busy(k):
        while not stop.is_set():
            await store.save(f"busy{k}", "x" * 2_000)
    tasks = [asyncio.create_task(busy(k)) for k in range(4)]
    await ready()
    for n in range(150):
        await asyncio.sleep(0.002)
        wait(child_of(lambda: run(child(n))))
    stop.set()
    await asyncio.gather(*tasks)
run(main())
"""
    done = python(PROGRAM + FORK + code, "asyncio", timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) <= set(stored(home))
    assert integrity(home / "cat.db") == "ok"


MULTIPROCESSING = """
import multiprocessing

def child(name):
    warnings.simplefilter("ignore")
    run(save(name))

async def main(method):
    context = multiprocessing.get_context(method)
    await save("parent")
    children = [context.Process(target=child, args=(f"child{n}",)) for n in range(3)]
    for one in children:
        one.start()
    for n in range(20):
        await save(f"parent{n}")
    for one in children:
        await asyncio.to_thread(one.join, 20)
        assert one.exitcode == 0, one.exitcode
    await save("parent again")

if __name__ == "__main__":
    run(main(sys.argv[2]))
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str, loops: str, home: Path, tmp_path: Path) -> None:
    """Processes made in each of multiprocessing's ways share the store with their parent."""
    script = tmp_path / "script.py"
    script.write_text(PROGRAM + MULTIPROCESSING)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), loops, method],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    acknowledged = set(done.stdout.split("\n")) - {""}
    assert len(acknowledged) >= 24
    assert acknowledged <= set(stored(home))
    assert integrity(home / "cat.db") == "ok"
