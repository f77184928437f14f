"""Atomic changes of one key: nothing is lost, nobody waits for long, and no copy is stored.

`edit`, `modify`, `increment`, `create`, `pop` and `load_or_create`, among the
tasks of one event loop, in several threads and in several processes.
"""

# ruff: noqa: F841, PLW2901, RUF005  # names that are rebound in an edit are what some tests are of
# ruff: noqa: PT012  # what raises at the end of an edit comes after its block
# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import contextlib
import copy
import dataclasses
import functools
import inspect
import os
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pydantic
import pytest
from tests.conftest import open_below
from typing_extensions import TypedDict  # pydantic wants this one on Python 3.11

from cat import as_user, context, for_user, store, user
from cat.entry import UNKNOWN
from cat.errors import (
    CatError,
    ConflictError,
    DatabaseUnavailableError,
    InvalidArgumentError,
    InvalidExpiryError,
    InvalidKeyError,
    InvalidResultError,
    InvalidValueError,
    KeyBusyError,
    KeyNotFoundError,
    NestedEditError,
    NotEditableError,
    NoUserError,
    ReboundError,
    UnstorableValueError,
)
from children import lock_holder, printed
from test_cancellation import CUTS, LOOPS, assert_unlocked, places
from test_group_commit import ends, kept_log, rows, together
from test_processes import Child, children, soon, tell_all

LIMIT = 30.0  # seconds; against hanging


# --- What the tests share.


async def edit(key: str) -> None:
    """Count in a dict, with `edit`."""
    async with store.edit(key, default={"n": 0}) as value:
        value["n"] += 1


async def modify(key: str) -> None:
    """Count in a dict, with `modify`."""
    await store.modify(key, lambda value: {"n": value["n"] + 1}, default={"n": 0})


async def increment(key: str) -> None:
    """Count."""
    await store.increment(key)


CHANGES: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
    "edit": edit,
    "modify": modify,
    "increment": increment,
}
# The same for processes of their own.
COUNTING = "".join(f"{inspect.getsource(change)}\n" for change in CHANGES.values())


async def counted(key: str) -> int:
    """Return how far the value of a key has counted."""
    value = await store.load(key)
    return int(value["n"] if isinstance(value, dict) else value)


async def within(awaitable: Awaitable[Any]) -> Any:
    """Return what comes of `awaitable`, which must not hang."""
    async with asyncio.timeout(LIMIT):
        return await awaitable


async def append(key: str, word: object) -> None:
    """Edit a list."""
    async with store.edit(key, default=[]) as value:
        value.append(word)


def with_(value: list[Any], word: object) -> list[Any]:
    """Return a longer list."""
    return [*value, word]


class Long:
    """An edit of a list that stays inside its block until it is told to leave."""

    def __init__(self, key: str = "k", word: object = "edited") -> None:
        self._inside = asyncio.Event()
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._edit(key, word))

    async def _edit(self, key: str, word: object) -> None:
        async with store.edit(key, default=[]) as value:
            self._inside.set()
            await self._leave.wait()
            value.append(word)

    async def inside(self) -> "Long":
        """Wait until it is inside."""
        await within(self._inside.wait())
        return self

    async def end(self) -> None:
        """Let it leave, and wait for it."""
        self._leave.set()
        await within(self.task)


async def some_commits() -> None:
    """Let others have many turns of the loop, and a few commits."""
    for number in range(3):
        await within(store.save("other", number))
        await asyncio.sleep(0.005)


async def assert_free(key: str = "k") -> None:
    """Everybody here can change the key, and edits hold no file when they are over."""
    await within(store.save(key, []))
    await within(append(key, "a"))
    await within(store.modify(key, lambda value: [*value, "b"]))
    assert await store.load(key) == ["a", "b"]
    assert locked_files() == []


def locked_files() -> list[str]:
    """Return the files that stand for keys and are locked here (Linux only, else none)."""
    table = Path("/proc/locks")
    if not table.is_file():
        return []
    held = {  # 1: POSIX  ADVISORY  WRITE <process> <device>:<inode> <start> <end>
        int(words[5].split(":")[-1])
        for words in map(str.split, table.read_text().splitlines())
        if words[3] == "WRITE" and words[4] == str(os.getpid())
    }
    places = Path(os.environ["CAT_HOME"]).glob("*-locks/*")
    return [place.name for place in places if place.stat().st_ino in held]


# Does what it is told, one thing after another.
PEER = """
async def serve(verb, key, *arguments):
    if verb == "append":
        async with store.edit(key, default=[]) as value:
            value.append(arguments[0])
    elif verb == "modify":
        return await store.modify(key, lambda value: [*value, arguments[0]], default=[])
    elif verb == "hold":
        async with store.edit(key, default=[]) as value:
            tell("inside")
            hear()
            value.append(arguments[0])
    elif verb == "crossing":
        async with store.edit(key, default=[]) as value:
            tell("inside")
            hear()
            async with store.edit(arguments[0], default=[]) as other:
                value.append("theirs")
                other.append("theirs")
    else:
        return await getattr(store, verb)(key, *arguments)

async def main():
    await store.exists("warm")
    tell("ready")
    while True:
        try:
            tell(await serve(*hear()))
        except Exception as error:
            tell(type(error).__name__)

asyncio.run(main())
"""


@pytest.fixture
def peer() -> Iterator[Child]:
    """Start another process, which does what it is told."""
    with children(PEER) as [child]:
        assert child.hear() == ["ready"]
        yield child
        child.ended()


def asked(child: Child, *words: object) -> object:
    """Tell a peer what to do, and return its answer, or the name of its error."""
    child.tell(words)
    [answer] = child.hear()
    return answer


class Clock:
    """Seconds since 1970, which pass when they are told to."""

    def __init__(self) -> None:
        self.now = 2_000_000_000.0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now


@pytest.fixture
async def clock(home: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the repository of the test's event loop a clock that the test controls."""
    made = Clock()
    monkeypatch.setattr(context.repository(), "_now", made)
    return made


async def expires_in(clock: Clock, key: str) -> float | None:
    """Return the seconds that a key has left."""
    info = await store.info(key)
    assert info is not None
    return info.expires_at.timestamp() - clock.now if info.expires_at else None


def refuse(home: Path, condition: str) -> None:
    """Let the engine refuse to store what a condition in SQL holds for."""
    for event in ("INSERT", "UPDATE"):
        rows(
            home / "cat.db",
            f"CREATE TRIGGER no_{event} BEFORE {event} ON entries WHEN {condition} "
            "BEGIN SELECT RAISE(ABORT, 'no'); END",
        )


class Prefs(pydantic.BaseModel):
    """A model."""

    volume: int = 5
    names: list[str] = []


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: int = 0
    tags: list[str] = dataclasses.field(default_factory=list)


class Typed(TypedDict):
    """A typed dict."""

    n: int


# --- Nothing is lost.


@pytest.mark.parametrize("kind", CHANGES)
async def test_fifty_of_a_kind(kind: str) -> None:
    """50 concurrent changes of one value end at 50."""
    assert await within(together(*(CHANGES[kind]("n") for _ in range(50)))) == [None] * 50
    assert await counted("n") == 50


@pytest.mark.parametrize("wait", ["none", "inside"])
async def test_fifty_of_each_kind(wait: str) -> None:
    """Changes of all kinds, mixed: 50 edits and 50 modifies of one value, and 50 increments.

    And of those of one key that are not edits, each answer is given once.
    """

    async def slow_edit(key: str) -> None:
        async with store.edit(key, default={"n": 0}) as value:
            before = value["n"]
            await asyncio.sleep(0)
            value["n"] = before + 1

    one = slow_edit if wait == "inside" else edit
    calls = [change(key) for _ in range(50) for change, key in ((one, "n"), (modify, "n"))]
    calls += [increment("i") for _ in range(50)]
    answers = [store.modify("a", lambda n: n + 1, 0) for _ in range(50)]
    answers += [store.increment("a") for _ in range(50)]
    done = await within(together(*calls, *answers))
    assert done[:150] == [None] * 150
    assert sorted(done[150:]) == list(range(1, 101))
    assert await counted("n") + await counted("i") == 150
    assert await counted("a") == 100


async def test_in_the_order_of_the_calls() -> None:
    """Edits and modifies of one key take effect in the order in which they were called."""
    calls: list[Coroutine[Any, Any, Any]] = []
    for number in range(60):
        if number % 3:
            change = functools.partial(with_, word=number)
            calls.append(store.modify("k", change, default=[]))
        else:
            calls.append(append("k", number))
    await within(asyncio.gather(*calls))
    assert await store.load("k") == list(range(60))


def test_two_threads(home: Path) -> None:
    """Event loops in two threads of one process lose nothing either."""

    async def main() -> None:
        calls = [CHANGES[kind](kind) for _ in range(25) for kind in CHANGES]
        await within(asyncio.gather(*calls))

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert [asyncio.run(counted(kind)) for kind in CHANGES] == [50] * 3


FOUR = """
async def several(count):
    for _ in range(count):
        await globals()[sys.argv[2]]("n")

async def main():
    await store.load("warm")
    tell("ready")
    start = hear()
    time.sleep(max(0, start - time.monotonic()))
    await together(*(several(200 // int(sys.argv[3])) for _ in range(int(sys.argv[3]))))
    tell("done")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("kind", "tasks"), [("edit", 10), ("modify", 1), ("modify", 10), ("increment", 200)]
)
async def test_four_processes(kind: str, tasks: int) -> None:
    """Four processes with 200 changes each end at 800, and no error reaches a caller."""
    with children(COUNTING + FOUR, 4, kind, tasks) as peers:
        assert [peer.hear() for peer in peers] == [["ready"]] * 4
        assert tell_all(peers, soon()) == [["done"]] * 4
        for peer in peers:
            peer.ended()
    assert await counted("n") == 800


RACE = """
async def one(verb, number):
    if verb == "create":
        return await store.create(f"k{number}", sys.argv[1])
    if verb == "pop":
        return await store.pop(f"k{number}")
    return await store.load_or_create(f"k{number}", lambda: sys.argv[1])

async def main():
    await store.load("warm")
    tell("ready")
    while True:
        verb, start = hear()
        time.sleep(max(0, start - time.monotonic()))
        numbers = list(range(100))
        if verb == "pop":
            random.shuffle(numbers)
        tell(dict(zip(numbers, await together(*(one(verb, n) for n in numbers)))))

asyncio.run(main())
"""


async def test_processes_that_race() -> None:
    """Of four processes, one alone creates a key, and one pops it.

    And all of them return what is stored, whoever made it.
    """
    with children(RACE, 4) as peers:
        assert [peer.hear() for peer in peers] == [["ready"]] * 4
        created = [answer for [answer] in tell_all(peers, ["create", soon()])]
        stored = await store.items()
        popped = [answer for [answer] in tell_all(peers, ["pop", soon()])]
        assert await store.keys() == []
        loaded = [answer for [answer] in tell_all(peers, ["load_or_create", soon()])]
        for peer in peers:
            peer.ended()
    for number in range(100):
        winners = [str(n) for n, answer in enumerate(created) if answer[str(number)]]
        assert winners == [stored[f"k{number}"]]
        found = [answer[str(number)] for answer in popped if answer[str(number)] is not None]
        assert found == winners
    made = {key.removeprefix("k"): value for key, value in (await store.items()).items()}
    assert len(made) == 100
    assert loaded == [made] * 4


async def test_tasks_that_create_and_pop() -> None:
    """Of many tasks, exactly one creates a key, and exactly one pops it."""
    await store.exists("warm")
    for _ in range(10):
        answers = await within(together(*(store.create("k", n) for n in range(50))))
        assert answers == [n == await store.load("k") for n in range(50)]
        assert sum(answers) == 1
        value = await store.load("k")
        popped = await within(together(*(store.pop("k", "gone") for _ in range(50))))
        assert sorted(popped, key=str) == [value] + ["gone"] * 49
        assert not await store.exists("k")


async def test_pop() -> None:
    """A default is returned itself, a stored `None` is popped, and what is new is another one."""
    default: list[int] = []
    assert await store.pop("k", default) is default
    assert await store.pop("k") is None
    await store.save("k", None)
    assert await store.pop("k", "gone") is None
    assert await store.pop("k", "gone") == "gone"
    await store.save("k", [1])
    assert await store.pop("k") == [1]
    assert await store.create("k", [2])
    with pytest.raises(InvalidKeyError):
        await store.pop("")


async def test_create() -> None:
    """What is there is left as it is, a stored `None` too, and what cannot be stored raises."""
    assert await store.create("k", None) is True
    assert await store.create("k", 1) is False
    assert await store.load("k", "absent") is None
    with pytest.raises(UnstorableValueError):
        await store.create("k", {1})
    with pytest.raises(UnstorableValueError):
        await store.create("new", {1})
    with pytest.raises(InvalidExpiryError):
        await store.create("new", 1, expires_in=0)
    assert not await store.exists("new")


# --- Who waits for an edit, and who does not.


async def test_a_long_edit_delays_nobody_else(home: Path) -> None:
    """While an edit is in its block, every other key can be changed and everything be read."""
    await store.save("k", ["old"])
    long = await Long().inside()
    assert_unlocked(home)
    for number in range(20):
        await within(store.save(f"k{number}", number))
    await within(together(*(append(f"l{n}", n) for n in range(20))))
    await within(store.modify("m", lambda n: n + 1, 1))
    assert await within(store.increment("i")) == 1
    assert await within(store.create("c", 1))
    assert await within(store.pop("c")) == 1
    assert await within(store.load_or_create("f", lambda: 1)) == 1
    assert await store.load("k") == ["old"], "and not the half of an edit"
    assert not long.task.done()
    await long.end()
    assert await store.load("k") == ["old", "edited"]


async def test_a_long_edit_in_another_process(peer: Child) -> None:
    """While another process is in an edit, everything but an edit of that key goes on."""
    await store.save("k", ["old"])
    assert asked(peer, "hold", "k", "theirs") == "inside"
    await within(store.save("other", 1))
    await within(append("another", 1))
    assert await store.load("k") == ["old"]
    waiting = asyncio.create_task(append("k", "ours"))
    await some_commits()
    assert not waiting.done()
    assert asked(peer, "leave") is None
    await within(waiting)
    assert await store.load("k") == ["old", "theirs", "ours"]


async def test_others_queue_behind_an_edit() -> None:
    """`modify`, `increment` and `edit` of a key wait for an edit of it, in order, and build on it.

    Each of them, in turn.
    """
    long = await Long().inside()
    seen: list[list[str]] = []

    def note(word: str, value: list[str]) -> list[str]:
        seen.append(list(value))
        return [*value, word]

    tasks = [
        asyncio.create_task(store.modify("k", functools.partial(note, "first"))),
        asyncio.create_task(append("k", "second")),
        asyncio.create_task(store.modify("k", functools.partial(note, "third"))),
    ]
    await some_commits()
    assert seen == []
    assert not any(task.done() for task in tasks)
    await long.end()
    await within(asyncio.gather(*tasks))
    assert seen == [["edited"], ["edited", "first", "second"]]
    assert await store.load("k") == ["edited", "first", "second", "third"]


async def test_an_increment_queues_behind_an_edit() -> None:
    """An `increment` of what is being edited waits, and then refuses what it is."""
    long = await Long().inside()
    task = asyncio.create_task(store.increment("k"))
    await some_commits()
    assert not task.done()
    await long.end()
    with pytest.raises(InvalidValueError):
        await within(task)
    assert await store.load("k") == ["edited"]


@pytest.mark.parametrize("verb", ["edit", "modify", "increment"])
async def test_waiting_for_an_edit_is_bounded(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits longer than `CAT_TIMEOUT` for an edit of his own process is told so."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.2")
    calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "edit": lambda: append("k", "late"),
        "modify": lambda: store.modify("k", lambda value: [*value, "late"]),
        "increment": lambda: store.increment("k"),
    }
    long = await Long().inside()
    for error in await within(together(*(calls[verb]() for _ in range(3)))):
        assert type(error) is KeyBusyError
        assert isinstance(error, TimeoutError)
        assert error.not_stored
        assert "key 'k' of the global store" in str(error)
        assert "0.2 seconds" in str(error)
    assert await within(store.save("other", 1)) == 1
    await long.end()
    assert await store.load("k") == ["edited"]
    await assert_free()


async def test_waiting_for_another_process_is_bounded(
    peer: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit that waits longer than `CAT_TIMEOUT` for another process is told so."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.2")
    assert asked(peer, "hold", "k", "theirs") == "inside"
    errors = await within(together(*(append("k", "late") for _ in range(3))))
    assert {type(error) for error in errors} == {KeyBusyError}
    assert asked(peer, "leave") is None
    assert await store.load("k") == ["theirs"]
    await assert_free()


async def test_who_gave_up_waiting_leaves_the_line() -> None:
    """A cancelled wait for a key leaves the others' turns as they were."""
    long = await Long().inside()
    tasks = [asyncio.create_task(append("k", n)) for n in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await long.end()
    answers = await within(asyncio.gather(*tasks, return_exceptions=True))
    assert [type(answer) for answer in answers[::2]] == [asyncio.CancelledError] * 5
    assert await store.load("k") == ["edited", 1, 3, 5, 7, 9]
    await assert_free()


# --- Edits inside edits.


async def refused(call: Awaitable[Any]) -> None:
    """Insist that a call is told that it would wait for its own task."""
    with pytest.raises(NestedEditError, match="key 'k' of the global store") as caught:
        await within(call)
    assert caught.value.not_stored


async def test_nested_changes_of_one_key() -> None:
    """Inside an edit, another of the same key in the same task raises, and does not wait."""
    async with store.edit("k", default=[]) as value:
        await refused(append("k", "nested"))
        await refused(store.modify("k", lambda old: [*(old or []), "nested"]))
        await refused(store.increment("k"))
        async with store.edit("other", default=[]) as other:
            await refused(append("k", "nested"))
            other.append(1)
        value.append("outer")
    assert await store.load("k") == ["outer"]
    assert await store.load("other") == [1]
    await assert_free()


async def test_nested_in_a_function_that_catches_nothing() -> None:
    """The error of the inner edit ends the outer one, which stores nothing."""
    with pytest.raises(NestedEditError):
        async with store.edit("k", default=[]) as value:
            value.append("outer")
            await within(append("k", "nested"))
    assert not await store.exists("k")
    await assert_free()


async def test_nested_changes_of_other_keys() -> None:
    """Edits of different keys nest, however many; other scopes' keys of that name are different."""
    async with AsyncExitStack() as stack:
        values = [
            await within(stack.enter_async_context(store.edit(f"k{n}", default=[])))
            for n in range(100)
        ]
        for number, value in enumerate(values):
            value.append(number)
        assert await within(store.increment("n")) == 1
        async with (
            store.edit("k", [0]) as a,
            store.namespace("k").edit("k", [0]) as b,
            for_user("k").edit("k", [0]) as c,
            for_user("k").namespace("k").edit("k", [0]) as d,
        ):
            for number, value in enumerate((a, b, c, d)):
                value.append(number)
        del value
    assert [await store.load(f"k{n}") for n in range(100)] == [[n] for n in range(100)]
    scopes = [store, store.namespace("k"), for_user("k"), for_user("k").namespace("k")]
    assert [await scope.load("k") for scope in scopes] == [[0, n] for n in range(4)]
    assert locked_files() == []


async def test_a_task_inside_an_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that an edit waits for, and that waits for the edit, is told after `CAT_TIMEOUT`."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.2")
    async with store.edit("k", default=[]) as value:
        with pytest.raises(KeyBusyError):
            await within(asyncio.create_task(store.modify("k", lambda _: ["inner"])))
        value.append("outer")
    assert await store.load("k") == ["outer"]


async def test_crossing_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks that each wait for the other's key end after `CAT_TIMEOUT`, and nothing is half."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.3")
    both = asyncio.Barrier(2)

    async def cross(first: str, second: str) -> None:
        async with store.edit(first, default=[]) as one:
            await both.wait()
            async with store.edit(second, default=[]) as other:
                one.append(first)
                other.append(first)

    answers = await within(together(cross("a", "b"), cross("b", "a")))
    errors = [answer for answer in answers if answer is not None]
    assert errors
    assert {type(error) for error in errors} == {KeyBusyError}
    expected = ["ab"[n] for n, answer in enumerate(answers) if answer is None] or None
    assert [await store.load("a"), await store.load("b")] == [expected] * 2
    await assert_free("a")
    await assert_free("b")


async def test_crossing_processes(peer: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that each wait for the other's key end too."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.3")
    async with store.edit("b", default=[]) as value:
        assert asked(peer, "crossing", "a", "b") == "inside"
        peer.tell("go on")
        with pytest.raises(KeyBusyError):
            await within(append("a", "ours"))
        value.append("ours")
    await asyncio.to_thread(peer.hear)
    assert "ours" in await store.load("b")
    await assert_free("a")
    await assert_free("b")


# --- What ends a block before its end.


@pytest.mark.parametrize(
    "kind",
    [
        ValueError,
        ConflictError,
        asyncio.CancelledError,
        GeneratorExit,
        KeyboardInterrupt,
        StopAsyncIteration,
        StopIteration,
        TimeoutError,
    ],
)
async def test_an_exception_in_the_block(kind: type[BaseException]) -> None:
    """What is raised inside comes out as it is; nothing is stored and the key is free."""
    await store.save("k", ["old"])
    error = ConflictError("k") if kind is ConflictError else kind("no")
    for key in ("k", "new"):
        with pytest.raises(kind) as caught:
            async with store.edit(key, default=[]) as value:
                value.append("never")
                waiting = asyncio.create_task(store.modify(key, lambda value: value))
                await asyncio.sleep(0)
                raise error
        assert caught.value is error
        assert await within(waiting) == (["old"] if key == "k" else None)
    assert await store.items() == {"k": ["old"], "new": None}
    await assert_free()


async def test_other_ways_out_of_the_block() -> None:
    """`return`, `break` and `continue` are clean ends."""

    async def returns() -> str:
        async with store.edit("k", default=[]) as value:
            value.append("return")
            return "returned"

    assert await returns() == "returned"
    for turn in range(2):
        async with store.edit("k") as value:
            value.append(turn)
            if turn:
                break
            continue
    assert await store.load("k") == ["return", 0, 1]


async def test_a_cancellation_in_the_block(peer: Child) -> None:
    """A cancelled edit stores nothing, and the key is free, for another process too."""
    await store.save("k", ["old"])
    long = await Long().inside()
    long.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(long.task)
    assert await store.load("k") == ["old"]
    assert asked(peer, "append", "k", "theirs") is None
    assert await store.load("k") == ["old", "theirs"]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), store.edit("k") as value:
            value.append("never")
            await asyncio.sleep(LIMIT)
    assert asked(peer, "append", "k", "again") is None
    assert await store.load("k") == ["old", "theirs", "again"]
    await assert_free()


async def test_an_edit_that_is_dropped(peer: Child) -> None:
    """A coroutine that is closed inside an edit, and never goes on, frees the key."""
    call = Long._edit(Long("other"), "k", "never")
    task = asyncio.current_task()
    assert task is not None
    await store.save("k", ["old"])
    step = call.send(None)
    assert locked_files() != []
    call.close()
    del step
    assert asked(peer, "append", "k", "theirs") is None
    assert await store.load("k") == ["old", "theirs"]


def test_an_edit_that_is_never_left(home: Path) -> None:
    """The end of an event loop frees what is being edited on it, and stores nothing."""
    kept: list[object] = []

    async def main() -> None:
        block = store.edit("k", default=[])
        kept.append(block)
        (await block.__aenter__()).append("never")
        kept.append(await Long("other").inside())

    for _ in range(2):
        asyncio.run(main())
        assert locked_files() == []
    assert asyncio.run(store.load("k")) is None
    assert asyncio.run(store.load("other")) is None


# --- Cancelled at every await.


async def _loads_or_creates(value: list[str]) -> object:
    async def factory() -> list[str]:
        await asyncio.sleep(0)
        return value

    return await store.load_or_create("k", factory)


VERBS: dict[str, tuple[Callable[[], Coroutine[Any, Any, Any]], object, object]] = {
    # What it does, to what, and what there may be afterwards.
    "edit": (lambda: append("k", "new"), ["old"], ["old", "new"]),
    "edit, absent": (lambda: append("k", "new"), None, ["new"]),
    "modify": (lambda: store.modify("k", lambda v: [*v, "new"]), ["old"], ["old", "new"]),
    "increment": (lambda: store.increment("k"), 41, 42),
    "create": (lambda: store.create("k", ["new"]), None, ["new"]),
    "pop": (lambda: store.pop("k"), ["old"], None),
    "load_or_create": (lambda: _loads_or_creates(["new"]), None, ["new"]),
}


async def prepared(value: object) -> None:
    """Let the key have a value, or none."""
    if value is None:
        await store.delete("k")
    else:
        await store.save("k", value)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("verb", VERBS)
def test_cancelled_anywhere(verb: str, cut: str, loop: str, home: Path) -> None:
    """Cancelled at any await, a verb leaves the old value or the new one, and the key free."""
    call, old, new = VERBS[verb]

    async def main() -> None:
        await store.save("warm", 1)
        for place in places(cut):
            await prepared(old)
            reached, outcome = await CUTS[cut](call(), place)
            found = await within(store.load("k"))
            if isinstance(outcome, asyncio.CancelledError):
                assert found in (old, new)
            else:
                assert found == new
                assert not isinstance(outcome, BaseException)
            await assert_free()
            assert_unlocked(home)
            if not reached:
                return

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("first", ["edit", "modify"])
@pytest.mark.parametrize("second", ["edit", "modify"])
async def test_the_next_after_a_cancelled_change(first: str, second: str, cut: str) -> None:
    """Who changes a key after a change that was cancelled meets no error, and builds on it or not.

    However far the cancelled one was: its caller is gone, and nobody else wrote.
    """
    calls: dict[str, Callable[[str, str], Coroutine[Any, Any, Any]]] = {
        "edit": append,
        "modify": lambda key, word: store.modify(key, lambda value: [*value, word]),
    }
    await store.save("warm", 1)
    for place in places(cut):
        await store.save("k", ["old"])
        reached, outcome = await CUTS[cut](calls[first]("k", "cancelled"), place)
        await within(calls[second]("k", "next"))
        allowed = [["old", "cancelled", "next"]]
        if isinstance(outcome, asyncio.CancelledError):
            allowed.append(["old", "next"])
        assert await store.load("k") in allowed
        if not reached:
            return


@contextlib.asynccontextmanager
async def locked_database() -> AsyncIterator[Callable[[], None]]:
    """Let another process hold the write lock, until what this gives is called."""
    await store.save("warm", 1)
    process = lock_holder()

    def tell(line: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    tell("hold")
    try:
        yield functools.partial(tell, "release")
    finally:
        process.communicate(timeout=LIMIT)


async def test_an_edit_after_one_that_was_cancelled_at_its_commit() -> None:
    """An edit that was cancelled while its commit waits is one that the next edit builds on."""
    await store.save("k", ["old"])
    async with locked_database() as release:
        cancelled = asyncio.create_task(append("k", "cancelled"))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        following = asyncio.create_task(append("k", "next"))
        await asyncio.sleep(0.05)
        release()
        await within(following)
    assert await store.load("k") in (["old", "cancelled", "next"], ["old", "next"])
    await assert_free()


async def test_an_edit_behind_two_modifies_of_which_one_is_cancelled() -> None:
    """An edit waits for what is on its way, also if what was built on it is not any more."""
    await store.save("k", ["old"])
    async with locked_database() as release:
        one = asyncio.create_task(store.modify("k", lambda value: [*value, "one"]))
        await asyncio.sleep(0.02)  # it is on its way
        two = asyncio.create_task(store.modify("k", lambda value: [*value, "two"]))
        await asyncio.sleep(0.02)
        two.cancel()
        following = asyncio.create_task(append("k", "next"))
        await asyncio.sleep(0.02)
        release()
        await within(following)
        assert await within(one) == ["old", "one"]
    assert await store.load("k") in (["old", "one", "next"], ["old", "one", "two", "next"])


async def test_changes_behind_cancelled_ones() -> None:
    """Of 60 changes of which every third is cancelled, the others are all made, in their order."""
    await store.save("k", [])
    for turns in (1, 2, 5, 20):
        await store.save("k", [])
        tasks: list[asyncio.Task[Any]] = []
        for number in range(60):
            if number % 2:
                change = functools.partial(with_, word=number)
                tasks.append(asyncio.create_task(store.modify("k", change)))
            else:
                tasks.append(asyncio.create_task(append("k", number)))
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[::3]:
            task.cancel()
        answers = await within(asyncio.gather(*tasks, return_exceptions=True))
        errors = [a for a in answers if isinstance(a, BaseException)]
        assert {type(error) for error in errors} <= {asyncio.CancelledError}
        assert errors or turns > 2
        found = await store.load("k")
        made = {n for n, answer in enumerate(answers) if not isinstance(answer, BaseException)}
        assert sorted(found) == found
        assert set(found) >= made


# --- A name that is rebound.


async def _plus() -> None:
    async with store.edit("k") as value:
        value = value + ["lost"]


async def _comprehension() -> None:
    async with store.edit("k") as value:
        value = [item for item in value if item != "old"]


async def _changed_first() -> None:
    async with store.edit("k") as value:
        value.append("lost")
        value = sorted(value)


async def _literal() -> None:
    async with store.edit("k") as value:
        value = ["lost"]


async def _deleted_name() -> None:
    async with store.edit("k") as value:
        value.append("lost")
        del value


async def _in_a_loop() -> None:
    async with store.edit("k") as value:
        for word in ("lost", "too"):
            value = [*value, word]


async def _unpacked() -> None:
    async with store.edit("k") as value:
        value, count = value[:], len(value)


async def _after_an_await() -> None:
    async with store.edit("k") as value:
        await asyncio.sleep(0)
        value = value + ["lost"]
        await asyncio.sleep(0)


async def _by_a_pure_function() -> None:
    def without(items: list[str]) -> list[str]:
        return [item for item in items if item != "old"]

    async with store.edit("k") as value:
        value = without(value)


async def _on_an_attribute() -> None:
    place = Point()
    async with store.edit("k") as place.tags:
        place.tags = place.tags + ["lost"]


async def _of_a_default() -> None:
    await store.delete("k")
    default = ["old"]
    try:
        async with store.edit("k", default=default) as value:
            value = value + ["lost"]
    finally:
        assert not await store.exists("k")
        await store.save("k", default)


async def _on_a_stack() -> None:
    async with AsyncExitStack() as stack:
        value = await stack.enter_async_context(store.edit("k"))
        value = value + ["lost"]


async def _among_others() -> None:
    async with store.edit("other", default=[]) as other, store.edit("k") as value:
        other.append("lost")
        value = value + other


async def _with_a_type() -> None:
    async with store.edit("k", type=list[str]) as value:
        value = value + ["lost"]


REBINDINGS = [
    _plus,
    _comprehension,
    _changed_first,
    _literal,
    _deleted_name,
    _in_a_loop,
    _unpacked,
    _after_an_await,
    _by_a_pure_function,
    _on_an_attribute,
    _of_a_default,
    _on_a_stack,
    _among_others,
    _with_a_type,
]


@pytest.mark.parametrize("rebind", REBINDINGS)
async def test_a_rebound_name_raises(rebind: Callable[[], Awaitable[None]]) -> None:
    """An edit that would lose what was assigned to its name says so, and stores nothing."""
    await store.save("k", ["old"])
    with pytest.raises(ReboundError, match="key 'k' of the global store") as caught:
        await within(rebind())
    assert caught.value.not_stored
    assert await store.load("k") == ["old"]
    assert not await store.exists("other")
    del caught  # it holds the frame of the block
    await assert_free()


@pytest.mark.parametrize("make", [dict, Prefs, Point], ids=["dict", "model", "dataclass"])
async def test_a_rebound_name_of_any_kind(make: Any) -> None:
    """So do edits of what is no list."""
    wanted = None if make is dict else make
    await store.save("k", make())
    with pytest.raises(ReboundError):
        async with store.edit("k", type=wanted) as value:
            value = make()
    await store.delete("k")
    with pytest.raises(ReboundError):
        async with store.edit("k", default=make(), type=wanted) as value:
            value = make()
    assert not await store.exists("k")


async def _append() -> None:
    async with store.edit("k") as value:
        value.append("new")


async def _augmented() -> None:
    async with store.edit("k") as value:
        value += ["new"]


async def _slice() -> None:
    async with store.edit("k") as value:
        value[:] = [*value, "new"]


async def _in_a_function() -> None:
    def change(items: list[str]) -> None:
        items.append("new")

    async with store.edit("k") as value:
        change(value)


async def _in_many_functions() -> None:
    def change(depth: int, items: list[str]) -> list[str]:
        if depth:
            return change(depth - 1, items)
        items.append("new")
        return items

    async with store.edit("k") as value:
        assert change(200, value) is value


async def _to_itself() -> None:
    async with store.edit("k") as value:
        value.append("new")
        value = value  # noqa: PLW0127


async def _in_a_task() -> None:
    async def change(items: list[str]) -> None:
        await asyncio.sleep(0)
        items.append("new")

    async with store.edit("k") as value:
        await asyncio.create_task(change(value))


async def _in_a_thread() -> None:
    async with store.edit("k") as value:
        await asyncio.to_thread(value.append, "new")


async def _held_by_an_attribute() -> None:
    place = Point()
    async with store.edit("k") as place.tags:
        place.tags.append("new")


async def _held_by_an_item() -> None:
    places: dict[str, Any] = {}
    async with store.edit("k") as places["value"]:
        places["value"].append("new")


async def _moved_to_a_container() -> None:
    async with store.edit("k") as value:
        kept = [value]
        del value
        kept[0].append("new")


async def _held_by_a_closure() -> None:
    async with store.edit("k") as value:

        def change() -> None:
            value.append("new")

        change()


_held: list[str]


async def _held_by_a_global() -> None:
    global _held
    async with store.edit("k") as _held:
        _held.append("new")


async def _held_by_a_stack() -> None:
    async with AsyncExitStack() as stack:
        value = await stack.enter_async_context(store.edit("k"))
        value.append("new")


async def _held_by_hand() -> None:
    block = store.edit("k")
    value = await block.__aenter__()
    value.append("new")
    await block.__aexit__(None, None, None)


async def _held_by_a_generator() -> None:
    async def given() -> AsyncIterator[list[str]]:
        async with store.edit("k") as value:
            yield value

    async for value in given():
        value.append("new")


async def _in_another_task() -> None:
    # As frameworks do with what they depend on: in one task here, out in another there.
    block = store.edit("k")
    value = await asyncio.create_task(block.__aenter__())
    value.append("new")
    await asyncio.create_task(block.__aexit__(None, None, None))


async def _beside_another_name() -> None:
    async with store.edit("k") as value:
        items = value
        items.append("new")


async def _through_locals() -> None:
    async with store.edit("k") as value:
        names = dict(locals())
        names["value"].append("new")


async def _sorted_in_place() -> None:
    async with store.edit("k") as value:
        value.insert(0, "new")
        value.sort(reverse=True)


IN_PLACE = [
    _append,
    _augmented,
    _slice,
    _in_a_function,
    _in_many_functions,
    _to_itself,
    _in_a_task,
    _in_a_thread,
    _held_by_an_attribute,
    _held_by_an_item,
    _moved_to_a_container,
    _held_by_a_closure,
    _held_by_a_global,
    _held_by_a_stack,
    _held_by_hand,
    _held_by_a_generator,
    _in_another_task,
    _beside_another_name,
    _through_locals,
    _sorted_in_place,
]


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("times", [1, 30], ids=["cold", "warm"])
async def test_no_false_alarm(change: Callable[[], Awaitable[None]], times: int) -> None:
    """A change in place is stored, however the value is held, and once the code is warm too."""
    for _ in range(times):
        await store.save("k", ["old"])
        await within(change())
        assert await store.load("k") == ["old", "new"]


async def test_no_false_alarm_for_other_kinds() -> None:
    """Nor is there one for dicts, models and dataclasses, from the start and from a default."""
    for _ in range(2):
        async with store.edit("dict", default={"a": 1}) as value:
            value |= {"b": 2}
        async with store.edit("model", default=Prefs(), type=Prefs) as prefs:
            prefs.volume += 1
            prefs.names.append("new")
        async with store.edit("dataclass", default=Point(), type=Point) as point:
            point.x += 1
            point.tags += ["new"]
    assert await store.load("dict") == {"a": 1, "b": 2}
    assert await store.load("model", type=Prefs) == Prefs(volume=7, names=["new"] * 2)
    assert await store.load("dataclass", type=Point) == Point(2, ["new"] * 2)


# --- What does not wait for an edit.


OTHERS: dict[str, Callable[[], Awaitable[Any]]] = {
    "save": lambda: store.save("k", "theirs"),
    "delete": lambda: store.delete("k"),
    "create": lambda: store.create("k", "theirs"),
    "save_many": lambda: store.save_many({"k": "theirs", "l": "theirs"}),
    "pop": lambda: store.pop("k"),
    "expire": lambda: store.expire("k", 1000),
}


@pytest.mark.parametrize(
    ("verb", "old"),
    [
        ("save", ["old"]),
        ("save", None),
        ("save_many", ["old"]),
        ("save_many", None),
        ("create", None),
        ("delete", ["old"]),
        ("pop", ["old"]),
        ("expire", ["old"]),
    ],
)
async def test_a_conflict(verb: str, old: list[str] | None) -> None:
    """What lands during an edit stays, and the edit says that nothing of it was stored."""
    await prepared(old)
    with pytest.raises(ConflictError, match="key 'k' of the global store") as caught:
        async with store.edit("k", default=["default"]) as value:
            value.append("ours")
            await within(OTHERS[verb]())
            found = await store.load("k")
    assert caught.value.not_stored
    assert isinstance(caught.value, RuntimeError)
    assert "ours" not in str(caught.value)
    assert await store.load("k") == found
    await assert_free()


@pytest.mark.parametrize(
    ("verb", "old"), [("create", ["old"]), ("delete", None), ("pop", None), ("expire", None)]
)
async def test_no_conflict(verb: str, old: list[str] | None) -> None:
    """What changes nothing disturbs no edit."""
    await prepared(old)
    async with store.edit("k", default=["default"]) as value:
        value.append("ours")
        await within(OTHERS[verb]())
    assert await store.load("k") == [*(old or ["default"]), "ours"]


async def test_a_conflict_with_the_same_text() -> None:
    """A value that was replaced by its equal was changed all the same."""
    await store.save("k", ["old"])
    with pytest.raises(ConflictError):
        async with store.edit("k") as value:
            await store.delete("k")
            await store.save("k", ["old"])
            value.append("ours")
    assert await store.load("k") == ["old"]


@pytest.mark.parametrize("verb", ["save", "modify", "delete"])
async def test_a_conflict_with_another_process(verb: str, peer: Child) -> None:
    """Another process's `save`, `modify` or `delete` does not wait, and stays too."""
    await store.save("k", ["old"])
    arguments: dict[str, list[Any]] = {"save": [["theirs"]], "modify": ["theirs"], "delete": []}
    with pytest.raises(ConflictError) as caught:
        async with store.edit("k") as value:
            value.append("ours")
            asked(peer, verb, "k", *arguments[verb])
    assert caught.value.not_stored
    expected = {"save": ["theirs"], "modify": ["old", "theirs"], "delete": None}
    assert await store.load("k") == expected[verb]
    assert asked(peer, "append", "k", "again") is None
    await assert_free()


async def test_a_save_while_edits_wait(peer: Child) -> None:
    """A save that lands while edits wait for another process is what they then change.

    It is a conflict for that process alone.
    """
    assert asked(peer, "hold", "k", "theirs") == "inside"
    tasks = [asyncio.create_task(append("k", n)) for n in range(5)]
    await some_commits()
    await within(store.save("k", ["saved"]))
    assert asked(peer, "leave") == "ConflictError"
    assert await within(asyncio.gather(*tasks, return_exceptions=True)) == [None] * 5
    assert await store.load("k") == ["saved", *range(5)]


async def test_one_save_beside_many_edits() -> None:
    """After a save that beats some edits, those that begin later go on without an error."""
    await store.save("k", {"n": 0})
    begun = ended = 0  # saves
    stopped = False

    async def edits() -> None:
        while not stopped:
            before = ended
            try:
                await edit("k")
            except ConflictError:
                assert begun > before, "nobody has saved since this edit was called"

    tasks = [asyncio.create_task(edits()) for _ in range(3)]
    for number in range(1, 6):
        await asyncio.sleep(0.02)
        begun += 1
        await store.save("k", {"n": 1_000_000 * number})
        ended += 1
    await asyncio.sleep(0.02)
    stopped = True
    assert await within(asyncio.gather(*tasks, return_exceptions=True)) == [None] * 3
    assert await counted("k") > 5_000_000


@pytest.mark.parametrize("kind", ["modify", "increment"])
@pytest.mark.parametrize("tasks", [1, 2, 3, 20])
async def test_one_save_beside_many_modifies(
    kind: str, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a save that beats them, changes that are built on each other begin anew, and go on."""
    monkeypatch.setenv("CAT_TIMEOUT", "5")
    done = 0

    async def changes() -> None:
        nonlocal done
        for _ in range(100):
            await CHANGES[kind]("k")
            done += 1

    calls = [asyncio.create_task(changes()) for _ in range(tasks)]
    for number in range(1, 6):
        before = done
        while done < before + 5 * tasks:  # until they are at it again
            assert not all(call.done() for call in calls)
            await asyncio.sleep(0)
        count = 1_000_000 * number
        await store.save("k", count if kind == "increment" else {"n": count})
    answers = await within(asyncio.gather(*calls, return_exceptions=True))
    assert answers == [None] * tasks
    assert done == 100 * tasks
    assert 5_000_000 < await counted("k") < 5_000_000 + 100 * tasks


@pytest.mark.parametrize("kind", ["modify", "increment"])
async def test_changes_beside_another_process(kind: str, peer: Child) -> None:
    """So it is with saves of another process."""
    running = [True]

    async def changes() -> None:
        while running:
            await CHANGES[kind]("k")
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(changes()) for _ in range(3)]
    for number in range(1, 11):
        await asyncio.sleep(0.01)
        count = 1_000_000 * number
        peer.tell(["save", "k", count if kind == "increment" else {"n": count}])
        await within(asyncio.to_thread(peer.hear))
    running.clear()
    assert await within(asyncio.gather(*tasks, return_exceptions=True)) == [None] * 3
    assert await counted("k") >= 10_000_000


# --- Expiry.


async def test_changes_keep_an_expiry(clock: Clock) -> None:
    """`edit`, `modify` and `increment` keep an expiry, and `save` clears it."""
    await store.save("list", [], expires_in=100)
    await store.increment("count", expires_in=timedelta(seconds=100))
    clock.now += 10
    await append("list", 1)
    assert await expires_in(clock, "list") == 90
    await store.modify("list", lambda value: [*value, 2])
    assert await expires_in(clock, "list") == 90
    await store.increment("count", expires_in=1000)
    await store.modify("count", lambda count: count + 1)
    assert await expires_in(clock, "count") == 90
    await within(asyncio.gather(*(increment("count") for _ in range(10)), append("list", 3)))
    assert await expires_in(clock, "count") == await expires_in(clock, "list") == 90
    for key in ("list", "count"):
        await store.save(key, await store.load(key))
        assert await expires_in(clock, key) is None
    await store.save("never", [])
    await append("never", 1)
    await store.save("zero", 0)
    await store.increment("zero", expires_in=10)
    assert await expires_in(clock, "never") is await expires_in(clock, "zero") is None
    clock.now += 1000
    assert await store.load("list") == [1, 2, 3]


async def test_a_rate_limit(clock: Clock) -> None:
    """`increment(expires_in=)` counts from the creation of the counter, and again when it is over.

    Also for those that are created together.
    """
    for _ in range(2):
        calls = [store.increment("hits", expires_in=60) for _ in range(5)]
        assert await within(asyncio.gather(*calls)) == [1, 2, 3, 4, 5]
        clock.now += 59
        assert await store.increment("hits", expires_in=60) == 6
        assert await expires_in(clock, "hits") == 1
        clock.now += 1
    assert not await store.exists("hits")
    assert await store.increment("hits", by=7) == 7
    assert await expires_in(clock, "hits") is None


async def test_over_what_has_expired(clock: Clock) -> None:
    """What has expired is as absent to each of the verbs."""
    keys = ["edit", "found", "modify", "increment", "create", "pop", "load_or_create"]
    for key in keys:
        await store.save(key, ["old"], expires_in=10)
    clock.now += 9.5
    assert await store.create("create", ["new"]) is False
    clock.now += 0.5
    await append("edit", "new")
    with pytest.raises(KeyNotFoundError):
        async with store.edit("found"):
            pytest.fail("there is nothing to edit")
    assert await store.modify("modify", lambda value: value) is None
    assert await store.increment("increment") == 1
    assert await store.create("create", ["new"]) is True
    assert await store.pop("pop", "default") == "default"
    assert await store.load_or_create("load_or_create", lambda: ["new"]) == ["new"]
    assert await store.items() == {
        "create": ["new"],
        "edit": ["new"],
        "increment": 1,
        "load_or_create": ["new"],
        "modify": None,
    }
    for key in await store.keys():
        info = await store.info(key)
        assert info is not None
        assert info.expires_at is None
        assert info.created_at.timestamp() == clock.now


async def test_created_with_an_expiry(clock: Clock) -> None:
    """`create` and `load_or_create` give an expiry to what they store, and to nothing else."""
    assert await store.create("k", 1, expires_in=10)
    assert not await store.create("k", 1, expires_in=1000)
    assert await store.load_or_create("k", lambda: 2, expires_in=1000) == 1
    assert await expires_in(clock, "k") == 10

    def slow() -> int:
        clock.now += 5
        return 3

    assert await store.load_or_create("made", slow, expires_in=timedelta(seconds=10)) == 3
    assert await expires_in(clock, "made") == 10, "it counts from the storing"
    clock.now += 10
    assert await store.load_or_create("made", lambda: 4, expires_in=10) == 4


async def test_expired_in_the_middle_of_an_edit(clock: Clock) -> None:
    """An edit of what expires meanwhile is told so, and brings nothing back to life."""
    await store.save("k", ["old"], expires_in=10)
    with pytest.raises(ConflictError):
        async with store.edit("k") as value:
            value.append("late")
            clock.now += 10
    assert not await store.exists("k")
    await assert_free()


@pytest.mark.parametrize("verb", ["create", "save"])
async def test_replaced_in_the_middle_of_an_edit(verb: str, clock: Clock) -> None:
    """What was stored over an entry that expired during an edit stays."""
    await store.save("k", ["old"], expires_in=10)
    with pytest.raises(ConflictError):
        async with store.edit("k") as value:
            value.append("late")
            clock.now += 10
            await getattr(store, verb)("k", ["new"])
    assert await store.load("k") == ["new"]
    await assert_free()


async def test_removed_in_the_middle_of_an_edit(clock: Clock) -> None:
    """An expired row that goes during an edit, in the course of other writes, is not made anew."""
    await store.save("k", ["old"], expires_in=10)
    with pytest.raises(ConflictError):
        async with store.edit("k") as value:
            value.append("late")
            clock.now += 10
            for number in range(3):
                await store.save(f"k{number}", number)
    assert not await store.exists("k")


@pytest.mark.parametrize("bad", [0, -1, float("nan"), True, "60", timedelta(0)])
async def test_a_wrong_expiry(bad: Any) -> None:
    """It raises also where it would do nothing, and changes nothing."""
    await store.save("n", 1)
    for key in ("n", "new"):
        for call in (
            store.increment(key, expires_in=bad),
            store.create(key, 1, expires_in=bad),
            store.load_or_create(key, lambda: pytest.fail("called"), expires_in=bad),
        ):
            with pytest.raises(InvalidExpiryError):
                await call
    assert await store.items() == {"n": 1}


# --- modify.


async def test_modify_returns_the_new_value(peer: Child) -> None:
    """Any value may be modified to any other, and the new one is returned."""
    assert await store.modify("k", lambda value: value or "first") == "first"
    assert await store.modify("k", len) == 5
    assert await store.modify("k", lambda value: {"n": value}) == {"n": 5}
    assert await store.modify("k", fn=dict, default=None) == {"n": 5}
    assert await store.load("k") == {"n": 5}
    assert asked(peer, "load", "k") == {"n": 5}


async def test_modify_gets_fresh_copies() -> None:
    """What `fn` does to what it gets reaches neither the default nor what is stored."""
    default: dict[str, list[int]] = {"a": []}
    kept = []

    def change(value: dict[str, list[int]]) -> dict[str, list[int]]:
        kept.append(value)
        value["a"].append(len(kept))
        return value

    for key in ("k", "l"):
        await store.modify(key, change, default)
        kept[-1]["a"].append("later")  # type: ignore[arg-type]
    assert default == {"a": []}
    assert await store.load("k") == {"a": [1]}
    await within(asyncio.gather(*(store.modify("k", change) for _ in range(3))))
    assert await store.load("k") == {"a": [1, 3, 4, 5]}

    def spoil(value: dict[str, list[int]]) -> NoReturn:
        value["a"].clear()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.modify("k", spoil)
    with pytest.raises(ZeroDivisionError):
        await store.modify("new", spoil, default)
    assert default == {"a": []}
    assert await store.load("k") == {"a": [1, 3, 4, 5]}
    assert not await store.exists("new")


async def test_a_forgotten_return() -> None:
    """`None` in place of something raises and stores nothing; in place of nothing it is stored."""
    await store.save("k", ["old"])
    for default in (None, ["default"]):
        with pytest.raises(InvalidResultError, match="key 'k' of the global store") as caught:
            await store.modify("k", lambda value: value.append("new"), default)
        assert caught.value.not_stored
        assert isinstance(caught.value, TypeError | ValueError)
    with pytest.raises(InvalidResultError):
        await store.modify("new", lambda value: value.append("new"), default=[])
    falsy: object
    for falsy in (0, False, "", [], {}):
        await store.save("f", falsy)
        with pytest.raises(InvalidResultError):
            await store.modify("f", lambda _: None)
        assert await store.load("f", "absent") == falsy
    assert await store.load("k") == ["old"]
    assert not await store.exists("new")
    assert await store.modify("new", lambda value: value) is None
    assert await store.exists("new")
    assert await store.modify("new", lambda value: value) is None
    assert await store.modify("new", lambda _: 1) == 1


@pytest.mark.filterwarnings("error")
async def test_modify_takes_a_plain_function() -> None:
    """A coroutine function, what returns an awaitable, and what is no function raise."""

    async def later(value: object) -> object:
        pytest.fail("called")

    class Later:
        async def __call__(self, value: object) -> object:
            pytest.fail("called")

    await store.save("k", 1)
    wrong: list[Any] = [later, functools.partial(later), 5, None, "fn", {"n": 1}]
    for bad in wrong:
        with pytest.raises(InvalidArgumentError) as caught:
            await store.modify("k", bad)
        assert caught.value.not_stored
        assert isinstance(caught.value, TypeError)
    future = asyncio.get_running_loop().create_future()
    made: list[Any] = [lambda value: later(value), lambda _: future, Later()]  # noqa: PLW0108
    for fn in made:
        with pytest.raises(InvalidResultError):
            await store.modify("k", fn)
    assert await store.load("k") == 1
    assert await store.increment("k") == 2


@pytest.mark.parametrize("kind", [ValueError, KeyError, asyncio.CancelledError, KeyboardInterrupt])
async def test_modify_hands_on_what_fn_raises(kind: type[BaseException]) -> None:
    """It comes out as it is, nothing is stored, and the key is free."""
    await store.save("k", 1)
    error = kind("no")

    def fail(value: object) -> NoReturn:
        raise error

    for key in ("k", "new"):
        with pytest.raises(kind) as caught:
            await store.modify(key, fail)
        assert caught.value is error
    assert await store.items() == {"k": 1}
    await assert_free()


async def test_modify_to_what_cannot_be_stored() -> None:
    """It raises, and the old value stays."""
    await store.save("k", [1])
    with pytest.raises(UnstorableValueError, match=r"\$\[1\]"):
        await store.modify("k", lambda value: [*value, {1}])
    assert await store.load("k") == [1]


async def test_an_exception_for_a_value_that_was_never_stored(home: Path) -> None:
    """What `fn` raises for a value on its way counts only if that value arrives."""

    def picky(value: int) -> int:
        if value >= 13:
            raise ZeroDivisionError
        return value + 1

    await store.save("k", 1)
    answers = await within(together(store.modify("k", lambda _: 13), store.modify("k", picky)))
    assert [type(answer) for answer in answers] == [int, ZeroDivisionError]
    assert await store.load("k") == 13
    await store.save("k", 1)
    refuse(home, "new.value = '13'")
    answers = await within(together(store.modify("k", lambda _: 13), store.modify("k", picky)))
    assert type(answers[0]) is DatabaseUnavailableError
    assert answers[1] == 2
    assert await store.load("k") == 2


async def test_changes_built_on_one_that_fails(home: Path) -> None:
    """When the engine refuses one of many, the others are made as if it had never been."""
    await store.save("k", [])
    refuse(home, "new.value LIKE '%13%'")
    calls = [store.modify("k", functools.partial(with_, word=n)) for n in range(30)]
    answers = await within(together(*calls))
    assert type(answers[13]) is DatabaseUnavailableError
    assert [n for n, answer in enumerate(answers) if isinstance(answer, CatError)] == [13]
    assert sorted(await store.load("k")) == [n for n in range(30) if n != 13]


async def test_an_edit_built_on_one_that_fails(home: Path) -> None:
    """An edit whose base is not stored says why, and nothing of it is."""
    await store.save("k", [])
    refuse(home, "new.value LIKE '%13%'")
    answers = await within(together(*(append("k", n) for n in range(12, 16)), append("l", 1)))
    errors = [answer for answer in answers if answer is not None]
    assert type(answers[1]) is DatabaseUnavailableError
    assert {type(error) for error in errors} <= {DatabaseUnavailableError, ConflictError}
    assert all(error.not_stored for error in errors)
    found = [n + 12 for n, answer in enumerate(answers[:4]) if answer is None]
    assert await store.load("k") == found
    assert await store.load("l") == [1]
    await assert_free()


async def test_modify_runs_again(peer: Child) -> None:
    """`fn` runs again if another process was quicker, on what that one stored."""
    await store.save("k", ["old"])
    seen = []

    def change(value: list[str]) -> list[str]:
        seen.append(list(value))
        if len(seen) == 1:
            asked(peer, "modify", "k", "theirs")
        return [*value, "ours"]

    assert await within(store.modify("k", change)) == ["old", "theirs", "ours"]
    assert seen == [["old"], ["old", "theirs"]]
    assert await store.load("k") == ["old", "theirs", "ours"]


# --- increment.


async def test_increment() -> None:
    """It counts from 0, in both directions and exactly."""
    assert await store.increment("n") == 1
    assert await store.increment("n", by=-3) == -2
    assert await store.increment("n", 10**40) == 10**40 - 2
    assert await store.increment("n", -(10**40)) == -2
    assert await store.increment("n", by=0) == -2
    assert await store.increment("zero", by=0) == 0
    assert await store.load("zero", "absent") == 0
    assert await store.increment("max", 2**63 - 1) + 1 == await store.increment("max") == 2**63


@pytest.mark.parametrize("bad", [True, False, 1.0, 0.5, "1", None, [1], 1j])
async def test_increment_by_what_is_no_integer(bad: Any) -> None:
    """It raises, and nothing changes."""
    await store.save("n", 1)
    for key in ("n", "new"):
        with pytest.raises(InvalidArgumentError, match="by") as caught:
            await store.increment(key, bad)
        assert isinstance(caught.value, TypeError)
    assert await store.items() == {"n": 1}


@pytest.mark.parametrize("bad", [True, False, 1.0, "1", None, [1], {}])
async def test_increment_of_what_is_no_integer(bad: object) -> None:
    """It raises, and nothing changes."""
    await store.save("n", bad)
    with pytest.raises(InvalidValueError, match="key 'n' of the global store") as caught:
        await store.increment("n")
    assert caught.value.problems == [("$", "int_type")]
    found = await store.load("n")
    assert (type(found), found) == (type(bad), bad)


async def test_an_increment_that_grows_too_long() -> None:
    """Beyond Python's own limit of digits it raises, and the counter stays."""
    most = 10**4300 - 1
    await store.save("n", most)
    with pytest.raises(UnstorableValueError):
        await store.increment("n")
    assert await store.load("n") == most
    assert await store.increment("n", by=-1) == most - 1


# --- edit.


async def test_edit_of_what_is_not_there() -> None:
    """Without a default it raises a `KeyError` that reads well, before the block."""
    for key in ("k", "it's"):
        with pytest.raises(KeyNotFoundError) as caught:
            async with store.edit(key):
                pytest.fail("there is nothing to edit")
        assert isinstance(caught.value, KeyError)
        assert caught.value.not_stored
        assert str(caught.value).startswith("key ")
        assert key in str(caught.value)
        assert not await store.exists(key)
    await assert_free()


async def test_edit_copies_its_default() -> None:
    """A default is neither changed nor kept, down to its depths, and whatever becomes of the edit.

    It is not looked at where there is a value.
    """
    default: dict[str, list[int]] = {"a": []}
    async with store.edit("k", default=default) as value:
        value["a"].append(1)
    with pytest.raises(ZeroDivisionError):
        async with store.edit("l", default=default) as value:
            value["a"].append(1)
            raise ZeroDivisionError
    assert default == {"a": []}
    default["a"].append(5)
    assert await store.load("k") == {"a": [1]}
    async with store.edit("k", default=default) as value:
        assert value == {"a": [1]}
    point, prefs = Point(), Prefs()
    async with store.edit("point", default=point) as copied, store.edit("prefs", prefs) as other:
        copied.tags.append("new")
        other.names.append("new")
    assert (point, prefs) == (Point(), Prefs())
    assert await store.load("point", type=Point) == Point(tags=["new"])
    assert await store.load("prefs", type=Prefs) == Prefs(names=["new"])


async def test_an_edit_that_changes_nothing() -> None:
    """It stores the default, and keeps what is there."""
    async with store.edit("k", default=["default"]) as value:
        pass
    assert await store.load("k") == ["default"]
    async with store.edit("k") as value:
        pass
    assert await store.load("k") == ["default"]


@pytest.mark.parametrize("bad", [5, 2.5, True, "text", None, (1, 2), {1}, frozenset(), b"", object])
async def test_edit_of_what_cannot_be_changed(bad: object) -> None:
    """Stored or given as a default, it raises before the block, and names `modify`."""
    await store.save("there", [])
    for key in ("new", "there"):
        with pytest.raises(NotEditableError, match=r"modify\(\)") as caught:
            async with store.edit(key, default=bad):
                pytest.fail("it cannot be edited")
        assert isinstance(caught.value, TypeError)
        assert f"key '{key}' of the global store" in str(caught.value)
        assert type(bad).__name__ in str(caught.value)
    assert await store.items() == {"there": []}
    if bad is None or isinstance(bad, str | int | float):
        await store.save("k", bad)
        with pytest.raises(NotEditableError, match=r"modify\(\)") as caught:
            async with store.edit("k", default=[]):
                pytest.fail("it cannot be edited")
        assert caught.value.not_stored
        assert await store.load("k") == bad
    await assert_free()


TYPES: dict[str, tuple[Any, object, Any, Callable[[Any], object], Callable[[Any], object]]] = {
    # A type, a value that is not of it, one that is, what spoils it, and what does not.
    "model": (
        Prefs,
        {"volume": "5"},
        Prefs(),
        lambda value: value.names.append(5),
        lambda value: value.names.append("new"),
    ),
    "dataclass": (
        Point,
        {"x": "5"},
        Point(),
        lambda value: value.tags.append(5),
        lambda value: value.tags.append("new"),
    ),
    "list": (list[int], ["5"], [], lambda value: value.append("5"), lambda value: value.append(5)),
    "typed dict": (
        Typed,
        {"n": "5"},
        {"n": 5},
        lambda value: value.update(n="5"),
        lambda value: value.update(n=6),
    ),
}


@pytest.mark.parametrize("kind", TYPES)
async def test_edit_with_a_type(kind: str) -> None:
    """The value is checked before the block and after it, and left as it is if it does not fit."""
    wanted, bad, good, spoil, change = TYPES[kind]
    await store.save("k", bad)
    with pytest.raises(InvalidValueError, match="key 'k' of the global store"):
        async with store.edit("k", type=wanted):
            pytest.fail("it is not of that type")
    assert await store.load("k") == bad
    await store.save("k", good)
    for key in ("k", "new"):
        with pytest.raises((InvalidValueError, UnstorableValueError)) as caught:
            async with store.edit(key, default=good, type=wanted) as value:
                spoil(value)
        assert caught.value.not_stored
    assert await store.load("k", type=wanted) == good
    assert not await store.exists("new")
    expected = copy.deepcopy(good)
    change(expected)
    for key in ("k", "new"):
        async with store.edit(key, default=good, type=wanted) as value:
            change(value)
        assert await store.load(key, type=wanted) == expected
    await assert_free()


async def test_edit_with_a_default_that_is_not_of_the_type() -> None:
    """A default is not checked before the block: what is made of it is, after it."""
    value: Any
    async with store.edit("k", default={}, type=Prefs) as value:
        assert value == {}
        value["volume"] = 7
    assert await store.load("k", type=Prefs) == Prefs(volume=7)
    with pytest.raises(InvalidValueError):
        async with store.edit("l", default={"volume": "7"}, type=Prefs) as value:
            pass
    assert not await store.exists("l")


async def test_edit_with_what_is_no_type() -> None:
    """It raises before the block, stored or not."""
    for key in ("k", "l"):
        with pytest.raises(pydantic.PydanticSchemaGenerationError):
            async with store.edit(key, default=[], type=Any if key == "" else _Odd):
                pytest.fail("there is no such type")
        await store.save("l", [])
    await assert_free()


class _Odd:
    """Nothing that pydantic knows."""


async def test_an_edit_to_what_cannot_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises at the end, naming the place, and the old value stays."""
    monkeypatch.setenv("CAT_MAX_VALUE_BYTES", "100")
    await store.save("k", {"a": [1]})
    with pytest.raises(UnstorableValueError, match=r"\$\.a\[1\] is a set"):
        async with store.edit("k") as value:
            value["a"].append({1})
    with pytest.raises(UnstorableValueError, match="CAT_MAX_VALUE_BYTES"):
        async with store.edit("k") as value:
            value["a"] = "x" * 100
    with pytest.raises(UnstorableValueError):
        async with store.edit("k") as value:
            value["a"] = value
    with pytest.raises(UnstorableValueError):
        async with store.edit("new", default=[{1}]) as value:
            pass
    assert await store.items() == {"k": {"a": [1]}}
    await assert_free()


async def test_edit_of_a_wrong_key() -> None:
    """It raises before the block."""
    for key in ("", "a\0b", 5):
        with pytest.raises(InvalidKeyError):
            async with store.edit(key, default=[]):  # type: ignore[arg-type]
                pytest.fail("there is no such key")


async def test_each_scope_has_its_own() -> None:
    """Users and namespaces are apart, and whose key it is is decided by the call."""
    with as_user("alice"):
        block = user.edit("k", default=[])
        await user.increment("n")
    with as_user("bob"):
        async with block as value:
            value.append("alice's")
        await user.namespace("k").increment("n", by=5)
    async with user_edit("carol") as value:
        with as_user("dave"):
            value.append("carol's")
    assert await for_user("alice").items() == {"k": ["alice's"], "n": 1}
    assert await for_user("bob").items() == {}
    assert await for_user("bob").namespace("k").items() == {"n": 5}
    assert await for_user("carol").items() == {"k": ["carol's"]}
    assert await for_user("dave").items() == {}
    assert await store.items() == {}


def user_edit(name: str) -> contextlib.AbstractAsyncContextManager[Any]:
    """Begin an edit of a user's."""
    with as_user(name):
        return user.edit("k", default=[])


async def test_nobody_is_bound() -> None:
    """Every verb of `user` raises then."""
    with pytest.raises(NoUserError):
        async with user.edit("k", default=[]):
            pytest.fail("nobody is bound")
    for call in (
        user.modify("k", lambda value: value),
        user.increment("k"),
        user.create("k", 1),
        user.pop("k"),
        user.load_or_create("k", lambda: pytest.fail("called")),
    ):
        with pytest.raises(NoUserError):
            await call


# --- load_or_create.


@pytest.mark.parametrize("kind", ["sync", "async", "partial"])
async def test_made_once(kind: str) -> None:
    """Of 50 who ask at once, one makes the value, and all have it, each a value of his own."""
    made = []

    def make() -> list[int]:
        made.append(1)
        return [len(made)]

    async def make_later() -> list[int]:
        made.append(1)
        await asyncio.sleep(0.01)
        return [len(made)]

    factory: Any = {"sync": make, "async": make_later, "partial": functools.partial(make_later)}[
        kind
    ]
    values = await within(asyncio.gather(*(store.load_or_create("k", factory) for _ in range(50))))
    assert values == [[1]] * 50
    assert len(made) == 1
    values[0].append("mine")
    values[1].append("mine too")
    assert [value for value in values if len(value) == 1] == [[1]] * 48
    assert await store.load_or_create("k", factory) == [1]
    assert await store.load("k") == [1]
    assert len(made) == 1


async def test_made_once_whenever_it_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looked before a value was made, and hears of it after, does not make another."""
    await store.exists("k")  # so that the database is open
    backend = context.repository()._backend
    made = []
    get = backend.get
    looks = iter((0.0, 0.2))  # how late each answer comes

    async def get_late(*args: Any) -> Any:
        row = await get(*args)
        await asyncio.sleep(next(looks, 0))
        return row

    def make() -> int:
        made.append(1)
        return len(made)

    monkeypatch.setattr(backend, "peek", lambda *_: UNKNOWN, raising=True)
    monkeypatch.setattr(backend, "get", get_late)
    both = (store.load_or_create("k", make) for _ in range(2))
    assert await within(asyncio.gather(*both)) == [1, 1]
    assert made == [1]


async def test_made_for_each_key() -> None:
    """Callers of other keys and scopes wait for nothing."""
    leave = asyncio.Event()

    async def make() -> str:
        await leave.wait()
        return "slow"

    slow = asyncio.create_task(store.load_or_create("k", make))
    await asyncio.sleep(0)
    assert await within(store.load_or_create("l", lambda: "quick")) == "quick"
    assert await within(store.namespace("n").load_or_create("k", lambda: "quick")) == "quick"
    assert await within(for_user("u").load_or_create("k", lambda: "quick")) == "quick"
    assert not slow.done()
    leave.set()
    assert await within(slow) == "slow"


async def test_a_stored_none_is_there() -> None:
    """It is not made again, whoever stored it."""
    await store.save("k", None)
    assert await store.load_or_create("k", lambda: pytest.fail("called")) is None
    assert await store.load_or_create("l", lambda: None) is None
    assert await store.load_or_create("l", lambda: pytest.fail("called")) is None


async def test_a_factory_that_fails() -> None:
    """Its error reaches all who wait, nothing is stored, and a later call tries again."""
    calls = []

    async def fail() -> NoReturn:
        calls.append(1)
        await asyncio.sleep(0.01)
        raise ZeroDivisionError

    answers = await within(together(*(store.load_or_create("k", fail) for _ in range(20))))
    assert {type(answer) for answer in answers} == {ZeroDivisionError}
    assert len(calls) == 1
    assert not await store.exists("k")

    def fail_at_once() -> NoReturn:
        raise KeyError

    with pytest.raises(KeyError):
        await store.load_or_create("k", fail_at_once)
    with pytest.raises(UnstorableValueError):
        await store.load_or_create("k", lambda: {1})
    assert await store.load_or_create("k", lambda: "made") == "made"


@pytest.mark.parametrize("where", ["in the factory", "at the commit"])
async def test_who_makes_it_is_cancelled(where: str) -> None:
    """If he who makes the value is cancelled, another takes over, and only he is cancelled."""
    calls = []

    async def make() -> int:
        calls.append(1)
        await asyncio.sleep(0.01 if where == "in the factory" or len(calls) > 1 else 0)
        return len(calls)

    await store.exists("warm")
    tasks = [asyncio.create_task(store.load_or_create("k", make)) for _ in range(10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[5].cancel()
    answers = await within(asyncio.gather(*tasks, return_exceptions=True))
    assert isinstance(answers[0], asyncio.CancelledError)
    assert isinstance(answers[5], asyncio.CancelledError)
    others = answers[1:5] + answers[6:]
    assert others == [await store.load("k")] * 8
    assert len(calls) <= 2


async def test_a_factory_that_asks_for_its_own_key() -> None:
    """It raises, and does not wait for itself."""

    async def ask() -> object:
        return await store.load_or_create("k", ask)

    with pytest.raises(InvalidArgumentError, match="key 'k' of the global store"):
        await within(store.load_or_create("k", ask))

    async def ask_for_another() -> object:
        return [await store.load_or_create("other", lambda: 1)]

    assert await within(store.load_or_create("k", ask_for_another)) == [1]


@pytest.mark.parametrize("how", ["in a task", "crosswise"])
async def test_factories_that_wait_for_themselves(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for a key is bounded by `CAT_TIMEOUT` here too: nobody waits for ever."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.3")
    both = asyncio.Barrier(2)

    async def ask() -> object:
        return await asyncio.create_task(store.load_or_create("k", ask))

    async def cross(other: str) -> object:
        await both.wait()
        return await store.load_or_create(other, lambda: pytest.fail("called"))

    async def main() -> list[Any]:
        if how == "in a task":
            return await together(store.load_or_create("k", ask))
        return await together(
            store.load_or_create("k", lambda: cross("l")),
            store.load_or_create("l", lambda: cross("k")),
        )

    try:
        async with asyncio.timeout(5):
            answers = await main()
    except TimeoutError:
        pytest.fail("they wait for each other")
    assert KeyBusyError in {type(answer) for answer in answers}
    assert await within(store.load_or_create("new", lambda: 1)) == 1


async def test_a_factory_that_is_none() -> None:
    """It raises, also where there is a value."""
    await store.save("k", 1)
    for bad in (None, 5, "value", [1]):
        for key in ("k", "new"):
            with pytest.raises(InvalidArgumentError, match="factory"):
                await store.load_or_create(key, bad)  # type: ignore[arg-type]
    assert await store.items() == {"k": 1}


async def test_stored_while_it_is_made(peer: Child) -> None:
    """What is stored meanwhile, here or in another process, is what all return."""

    async def make() -> str:
        assert asked(peer, "save", "k", "theirs") == "theirs"
        return "ours"

    values = await within(asyncio.gather(*(store.load_or_create("k", make) for _ in range(3))))
    assert values == ["theirs"] * 3

    async def make_and_save() -> str:
        await store.save("l", "saved")
        return "made"

    assert await store.load_or_create("l", make_and_save) == "saved"
    assert await store.load("l") == "saved"


# --- Commits that are shared, and turns that are given.


@pytest.mark.parametrize("kind", CHANGES)
async def test_changes_of_one_key_share_commits(kind: str, home: Path) -> None:
    """100 concurrent changes of one key take a few commits; and their neighbours' saves with them.

    One after another they take one each.
    """
    await CHANGES[kind]("k")
    with kept_log(home) as log:
        before = len(ends(log))
        for _ in range(5):
            await CHANGES[kind]("k")
        assert len(ends(log)) == before + 5
        calls = [CHANGES[kind]("k") for _ in range(100)]
        await within(asyncio.gather(*calls, *(store.save(f"k{n}", n) for n in range(100))))
        assert len(ends(log)) - before - 5 <= 20
    assert await counted("k") == 106


ENDLESS = """
async def edits():
    while True:
        async with store.edit("k", default={"n": 0}) as value:
            value["n"] += 1
            await asyncio.sleep(float(sys.argv[3]))
            if value["n"] == 20:
                tell("at it")

async def main():
    await together(*(edits() for _ in range(int(sys.argv[2]))))

asyncio.run(main())
"""


@pytest.mark.parametrize(("tasks", "seconds"), [(1, 0), (5, 0), (1, 0.02), (3, 0.02)])
async def test_a_process_that_edits_without_end(tasks: int, seconds: float) -> None:
    """Beside a process that edits a key again and again, an edit of it gets its turn."""
    with children(ENDLESS, 1, tasks, seconds) as [child]:
        assert child.hear() == ["at it"]
        for _ in range(5):
            await within(edit("k"))


# --- What is left behind.


async def test_edits_leave_no_file_open(home: Path) -> None:
    """While the store is open too, nothing is locked when no edit is under way."""
    await within(asyncio.gather(*(append(f"k{n % 20}", n) for n in range(100))))
    assert locked_files() == []
    async with store.edit("k", default=[]) as value:
        assert len(locked_files()) == 1
        value.append(1)
    assert locked_files() == []
    before = sorted(home.rglob("*"))
    await append("k", 2)
    assert sorted(home.rglob("*")) == before, "nor does an edit leave another file"
    for place in (home / "cat.db-locks", *(home / "cat.db-locks").iterdir()):
        assert place.stat().st_mode & 0o077 == 0


async def test_few_files_stay_open(home: Path) -> None:
    """However many keys were edited, few of the files that stand for them stay open."""
    for number in range(60):
        await append(f"k{number}", number)
    await append("k59", "again")
    assert len(open_below(home / "cat.db-locks")) <= 32
    await context.close()
    assert open_below(home) == []


async def test_files_of_locks_that_are_removed(home: Path, peer: Child) -> None:
    """Processes that find other files there go on taking turns."""
    await append("k", "first")
    assert asked(peer, "append", "k", "second") is None
    for place in (home / "cat.db-locks").iterdir():
        place.unlink()
    await context.close()  # so that this process has none of them open
    assert asked(peer, "hold", "k", "theirs") == "inside"
    ours = asyncio.create_task(append("k", "ours"))
    await some_commits()
    assert not ours.done()
    assert asked(peer, "leave") is None
    await within(ours)
    assert await store.load("k") == ["first", "second", "theirs", "ours"]


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM])
async def test_a_process_that_is_killed_inside_an_edit(signal_: signal.Signals) -> None:
    """Nothing of it is stored, and the key is free for others."""
    await store.save("k", ["old"])
    with children(PEER) as [child]:
        assert child.hear() == ["ready"]
        assert asked(child, "hold", "k", "never") == "inside"
        waiting = asyncio.create_task(append("k", "ours"))
        await some_commits()
        assert not waiting.done()
        child.signal(signal_)
        child.process.wait(LIMIT)
        await within(waiting)
    assert await store.load("k") == ["old", "ours"]
    await assert_free()


async def test_a_process_that_ends_at_the_commit_of_an_edit(home: Path) -> None:
    """The key is free only when the edit is in: nobody else meets a conflict with it."""
    ending = """
    async def main():
        async def one():
            async with store.edit("k", default=[]) as value:
                value.append("theirs")
        await store.load("warm")
        tell("ready")
        hear()
        task = asyncio.create_task(one())
        await asyncio.sleep(0.1)
        tell("ending")

    asyncio.run(main())
    """
    await store.save("k", [])
    with children(ending) as [child]:
        assert child.hear() == ["ready"]
        holder = sqlite3.connect(home / "cat.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        child.tell("go on")
        assert child.hear() == ["ending"]
        ours = asyncio.create_task(append("k", "ours"))
        await asyncio.sleep(0.2)
        holder.execute("ROLLBACK")
        holder.close()
        await within(ours)
        assert child.rest() == []
    assert await store.load("k") in (["theirs", "ours"], ["ours"])


FORKED = """
import asyncio, os, sys, time
from cat import store
from cat.errors import KeyBusyError

async def append(word):
    async with store.edit("k", default=[]) as value:
        value.append(word)

async def busy():
    try:
        await append("child")
    except KeyBusyError:
        return 7
    return 0

async def main():
    os.environ["CAT_TIMEOUT"] = "30"
    async with store.edit("k", default=[]) as value:
        os.environ["CAT_TIMEOUT"] = "0.3"
        pid = os.fork()
        if pid == 0:
            os._exit(asyncio.run(busy()))
        assert os.waitpid(pid, 0)[1] == 7 << 8, "it was not kept out"
        idle = os.fork()
        if idle == 0:
            time.sleep(30)
            os._exit(0)
        readable, writable = os.pipe()
        late = os.fork()
        if late == 0:
            os.environ["CAT_TIMEOUT"] = "10"
            os.read(readable, 1)
            os._exit(asyncio.run(busy()))
        value.append("parent")
    os.write(writable, b"x")
    assert os.waitpid(late, 0)[1] == 0, "it takes the lock for its own"
    os.environ["CAT_TIMEOUT"] = "10"
    pid = os.fork()  # while another child lives on that was made inside the edit
    if pid == 0:
        os._exit(asyncio.run(busy()))
    assert os.waitpid(pid, 0)[1] == 0, "the key is not free"
    await append("after")
    print(await store.load("k"))
    os.kill(idle, 9)
    os.waitpid(idle, 0)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
def test_a_fork_inside_an_edit() -> None:
    """A child waits for its parent's edit like anybody, and keeps the key from nobody."""
    assert printed(FORKED) == "['parent', 'child', 'child', 'after']\n"


ORPHAN = """
import asyncio, os, sys, time
from cat import store

async def main():
    async with store.edit("k", default=[]) as value:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        print(pid, flush=True)
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
async def test_a_child_that_outlives_its_parent() -> None:
    """A parent that is killed inside an edit frees the key, though a child of it lives on."""
    with children(ORPHAN) as [child]:
        pid = int(child.process.stdout.readline())  # type: ignore[union-attr]
        child.process.wait(LIMIT)
        try:
            await within(append("k", "ours"))
        finally:
            os.kill(pid, signal.SIGKILL)
    assert await store.load("k") == ["ours"]
