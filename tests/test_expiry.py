"""Expiry: until when an entry is there, under a clock that the test holds, and how its row goes."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import DEADLINE

from cat import (
    Store,
    backends,
    context,
    erase_namespace,
    erase_user,
    export_user,
    for_user,
    settings,
    store,
    users,
)
from cat.errors import ConflictError, InvalidExpiryError, KeyNotFoundError
from cat.repository import Repository
from children import printed

YEARS = 1000 * 365.25 * 86400  # as many as are allowed


class Clock:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.25

    def __call__(self) -> float:
        """Return seconds since 1970-01-01 UTC."""
        return self.now


@pytest.fixture
async def clock(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Clock]:
    """Let `store` and all others use a repository with a clock that the test moves."""
    made = Clock()
    given = settings.read()
    repository = Repository(
        backends.connect(given),
        max_value_bytes=given.max_value_bytes,
        max_key_bytes=given.max_key_bytes,
        timeout=given.timeout,
        now=made,
    )
    monkeypatch.setattr(context, "repository", lambda: repository)
    yield made
    await repository.close()


def count(home: Path, where: str = "true") -> int:
    """Return how many rows another connection sees, live or not."""
    with closing(sqlite3.connect(home / "cat.db")) as connection:
        [(found,)] = connection.execute(f"SELECT count(*) FROM entries WHERE {where}").fetchall()  # noqa: S608
        return int(found)


async def expires_at(scope: Store, key: str = "k") -> float | None:
    """Return when an entry that is there expires."""
    info = await scope.info(key)
    assert info is not None
    return None if info.expires_at is None else info.expires_at.timestamp()


# --- What a period may be.

SETTERS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "save": lambda period: store.save("k", 7, expires_in=period),
    "create": lambda period: store.create("k", 7, expires_in=period),
    "save_many": lambda period: store.save_many({"k": 7}, expires_in=period),
    "increment": lambda period: store.increment("k", 7, expires_in=period),
    "load_or_create": lambda period: store.load_or_create("k", lambda: 7, expires_in=period),
    "expire": lambda period: store.expire("k", period),
}
PERIODS: list[tuple[Any, float]] = [
    (1, 1.0),
    (3600, 3600.0),
    (0.5, 0.5),
    (1e-3, 1e-3),
    (timedelta(days=30, milliseconds=250), 2592000.25),
    (timedelta(seconds=1), 1.0),
    (10**10, 1e10),
    (YEARS, YEARS),
]
NO_PERIODS: list[Any] = [
    *(0, 0.0, -0.0, -1, -0.5, -(10**400), timedelta(0), timedelta(days=-1), -math.inf),
    *(math.nan, math.inf, 10**400, 1e300, YEARS * 1.001, timedelta.max),
    *(True, False, "60", "", b"60", [60], (60,), {}, 1j, Decimal(60), Fraction(60), object()),
    *(datetime.now(UTC), timedelta, math.sin),
]


@pytest.mark.parametrize("verb", SETTERS.values(), ids=SETTERS)
@pytest.mark.parametrize(("period", "seconds"), PERIODS, ids=str)
async def test_until_when_an_entry_is_there(
    verb: Any, period: Any, seconds: float, clock: Clock
) -> None:
    """It is there until the period is over, and not at that moment any more."""
    if verb is SETTERS["expire"]:
        await store.save("k", 7)
    await verb(period)
    end = clock.now + seconds
    found = await store.info("k")
    assert found is not None
    assert found.expires_at == datetime.fromtimestamp(end, UTC)
    clock.now = math.nextafter(end, 0)
    assert await store.load("k") == 7
    assert await store.exists("k")
    clock.now = end
    assert await store.load("k") is None
    assert not await store.exists("k")
    clock.now = end * 1000
    assert await store.load("k") is None


@pytest.mark.parametrize("verb", SETTERS.values(), ids=SETTERS)
async def test_what_is_no_period(verb: Any, home: Path) -> None:
    """It is refused before there is a database, and what was there stays, as does its expiry."""
    for period in NO_PERIODS:
        with pytest.raises(InvalidExpiryError, match=r"^expires_in is .*; give seconds") as caught:
            await verb(period)
        assert caught.value.not_stored
        assert len(str(caught.value)) < 200
    assert not home.exists()
    await store.save("k", 5, expires_in=1000)
    before = await store.info("k")
    for period in NO_PERIODS:
        with pytest.raises(InvalidExpiryError):
            await verb(period)
    assert await store.info("k") == before
    assert await store.items() == {"k": 5}


async def test_a_factory_is_not_called_in_vain() -> None:
    """A wrong period is told before the value is made."""
    with pytest.raises(InvalidExpiryError):
        await store.load_or_create("k", lambda: pytest.fail("called"), expires_in=0)


# --- What becomes of an expiry.


async def test_save_clears_an_expiry(clock: Clock) -> None:
    """A full replacement has the expiry that it is given, and else none."""
    await store.save("k", 1, expires_in=10)
    await store.save("k", 2, expires_in=20)
    assert await expires_at(store) == clock.now + 20
    await store.save("k", 3)
    assert await expires_at(store) is None
    clock.now += 1e9
    assert await store.load("k") == 3


async def test_changes_keep_an_expiry(clock: Clock) -> None:
    """`edit`, `modify` and `increment` neither clear nor prolong it; a late change of it wins."""
    end = clock.now + 100
    await store.save_many({"list": [], "number": 1}, expires_in=100)
    for number in range(3):
        clock.now += 20
        async with store.edit("list") as value:
            value.append(number)
        assert await store.modify("list", lambda old: [*old, "m"]) == [*value, "m"]
        assert await store.increment("number", expires_in=5000) == number + 2
        assert await expires_at(store, "list") == await expires_at(store, "number") == end
    clock.now = end
    assert await store.items() == {}


async def test_changes_together_keep_an_expiry(clock: Clock) -> None:
    """Those that are combined do so too."""
    await asyncio.gather(*(store.increment("k", expires_in=10) for _ in range(20)))
    assert await expires_at(store) == clock.now + 10
    clock.now += 5
    await asyncio.gather(*(store.increment("k", expires_in=10) for _ in range(20)))
    assert await store.load("k") == 40
    assert await expires_at(store) == clock.now + 5


async def test_a_limit_per_hour(clock: Clock) -> None:
    """A counter counts from its creation, and begins again from 0 when it has expired."""
    for _ in range(3):
        start = clock.now
        for number in range(1, 6):
            assert await store.increment("attempts", expires_in=3600) == number
            clock.now += 600
        assert await expires_at(store, "attempts") == start + 3600
        clock.now = start + 3600


async def test_expire(clock: Clock) -> None:
    """`expire` sets, moves and takes away an expiry, and touches nothing else but the revision."""
    await store.save("k", {"v": 1})
    before = await store.info("k")
    clock.now += 1
    assert await store.expire("k", 10) is True
    after = await store.info("k")
    assert before is not None
    assert after is not None
    assert (after.size, after.created_at) == (before.size, before.created_at)
    assert after.revision != before.revision
    assert await store.load("k") == {"v": 1}
    assert await store.expire("k", timedelta(seconds=5))
    assert await expires_at(store) == clock.now + 5
    assert await store.expire("k", 50)
    assert await expires_at(store) == clock.now + 50
    assert await store.expire("k", None)
    assert await expires_at(store) is None
    clock.now += 1e9
    assert await store.load("k") == {"v": 1}


async def test_expire_of_what_is_not_there(clock: Clock, home: Path) -> None:
    """It says so, makes nothing, and brings back nothing that has expired."""
    assert await store.expire("k", 10) is False
    assert await store.expire("k", None) is False
    assert count(home) == 0
    await store.save("k", 1, expires_in=10)
    clock.now += 10
    assert await store.expire("k", None) is False
    assert await store.expire("k", 10) is False
    assert await store.load("k") is None


async def test_over_an_expired_entry(clock: Clock) -> None:
    """Whatever is stored over one is new: the expiry and the time of creation too."""
    writes: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.save("k", 9),
        lambda: store.create("k", 9),
        lambda: store.save_many({"k": 9}),
        lambda: store.increment("k", 9),
        lambda: store.modify("k", lambda old: old + 8, 1),
        lambda: store.load_or_create("k", lambda: 9),
    ]
    for number, write in enumerate(writes):
        await store.clear_all()
        await store.save("k", "old", expires_in=10)
        before = await store.info("k")
        clock.now += 10
        await write()
        found = await store.info("k")
        assert before is not None
        assert found is not None
        assert found.created_at == found.updated_at == datetime.fromtimestamp(clock.now, UTC)
        assert found.revision != before.revision
        assert found.expires_at is None
        assert await store.load("k") == 9, number


async def test_one_of_many_creates_over_an_expired_entry(clock: Clock) -> None:
    """Of those who create it at once, one alone succeeds."""
    for turn in range(10):
        assert sum(
            await asyncio.gather(*(store.create("k", n, expires_in=10) for n in range(20)))
        ) == (1), turn
        clock.now += 10


async def test_an_edit_that_outlasts_its_entry(clock: Clock) -> None:
    """What expires while it is edited is gone all the same, and the edit says so."""
    await store.save("k", [1], expires_in=10)
    with pytest.raises(ConflictError):  # noqa: PT012  # it is the end of the edit that raises
        async with store.edit("k") as value:
            value.append(2)
            clock.now += 10
    assert await store.load("k") is None
    assert await store.create("k", "new")


# --- What has expired is nowhere.


async def listed(scope: Store) -> list[Any]:
    """Return what a scan yields."""
    return [pair async for pair in scope.scan()]


async def edited(scope: Store) -> Any:
    """Return what an edit begins with."""
    async with scope.edit("k", default=["default"]) as value:
        return list(value)


async def exported(_: Store) -> Any:
    """Return what is exported of the user."""
    return (await export_user("alice")).entries


VERBS: dict[str, tuple[Callable[[Store], Awaitable[Any]], Any]] = {
    "load": (lambda s: s.load("k", "default"), "default"),
    "load a type": (lambda s: s.load("k", "default", type=int), "default"),
    "exists": (lambda s: s.exists("k"), False),
    "info": (lambda s: s.info("k"), None),
    "delete": (lambda s: s.delete("k"), False),
    "pop": (lambda s: s.pop("k", "default"), "default"),
    "create": (lambda s: s.create("k", 1), True),
    "load_or_create": (lambda s: s.load_or_create("k", lambda: "made"), "made"),
    "expire": (lambda s: s.expire("k", None), False),
    "edit": (edited, ["default"]),
    "modify": (lambda s: s.modify("k", lambda old: old, "default"), "default"),
    "increment": (lambda s: s.increment("k"), 1),
    "load_many": (lambda s: s.load_many(["k", "k2", "none"]), {}),
    "delete_many": (lambda s: s.delete_many(["k", "k2", "none"]), 0),
    "keys": (lambda s: s.keys(), []),
    "a page of keys": (lambda s: s.keys("k", after="j", limit=5), []),
    "scan": (listed, []),
    "items": (lambda s: s.items("k"), {}),
    "count": (lambda s: s.count(), 0),
    "count of a prefix": (lambda s: s.count("k"), 0),
    "clear": (lambda s: s.clear("k"), 0),
    "clear_all": (lambda s: s.clear_all(), 0),
    "namespaces": (lambda _: for_user("alice").namespaces(), []),
    "users": (lambda _: users(), []),
    "export_user": (exported, {}),
    "erase_user": (lambda _: erase_user("alice"), (0, 0, 0)),
    "erase_namespace": (lambda _: erase_namespace("n"), (0, 0, 0)),
}


@pytest.mark.parametrize(("verb", "expected"), VERBS.values(), ids=VERBS)
async def test_what_has_expired_is_nowhere(
    verb: Any, expected: Any, clock: Clock, home: Path
) -> None:
    """No verb loads it, lists it, counts it or builds on it, though its row is still there."""
    scope = for_user("alice").namespace("n")
    await scope.save_many({"k": [1], "k2": 2}, expires_in=10)
    clock.now += 9
    assert await scope.count() == 2
    assert await users() == ["alice"]
    clock.now += 1
    assert count(home) == 2
    assert await verb(scope) == expected


async def test_an_edit_of_what_has_expired(clock: Clock) -> None:
    """Without a default there is nothing to edit."""
    await store.save("k", [1], expires_in=10)
    clock.now += 10
    with pytest.raises(KeyNotFoundError):
        async with store.edit("k"):
            pytest.fail("nothing to edit")


async def test_among_live_ones(clock: Clock) -> None:
    """Pages, counts and scans leave out what has expired, and nothing else."""
    for number in range(350):
        clock.now += 1e-4
        period = None if number % 7 == 0 else 1 + number
        await store.save(f"k{number:03}", number, expires_in=period)
    for moment in (0, 10.5, 100.5, 349.9, 1000):
        clock.now += moment
        live = [key for key in await store.keys() if await store.exists(key)]
        assert await store.keys() == live == [key for key, _ in await listed(store)]
        assert await store.count() == len(live)
        assert list(await store.load_many(f"k{n:03}" for n in range(350))) == live
        pages = [await store.keys(limit=10)]
        while pages[-1]:
            pages.append(await store.keys(after=pages[-1][-1], limit=10))
        assert [key for page in pages for key in page] == live
    assert live == [f"k{n:03}" for n in range(0, 350, 7)]


# --- The rows.

WRITES: dict[str, Callable[[int], Awaitable[Any]]] = {
    "save": lambda n: store.save("live", n),
    "another user's save": lambda n: for_user("other").namespace("n").save(f"live{n}", n),
    "create": lambda n: store.create("live", n),
    "increment": lambda _: store.increment("live"),
    "save_many": lambda n: store.save_many({"live": n, "live2": n}),
    "delete of nothing": lambda _: store.delete("nothing"),
    "expire of nothing": lambda _: store.expire("nothing", 5),
    "clear of nothing": lambda _: store.clear("nothing"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_rows_go_in_the_course_of_later_writes(write: Any, clock: Clock, home: Path) -> None:
    """Each write, of any key, takes a few with it, whoever owns them; all 1,000 go so."""
    for owner in "abcd":
        scope = for_user(owner).namespace("n")
        await scope.save_many({f"k{n}": n for n in range(250)}, expires_in=10)
        await scope.save_many({f"later{n}": n for n in range(10)}, expires_in=10_000)
        await scope.save("kept", 1)
    clock.now += 5
    await write(0)
    assert count(home, "key LIKE 'k%'") == 1004, "none goes too early"
    clock.now += 5
    left = [1000]
    for number in range(1, 101):
        await write(number)
        left.append(count(home, "key LIKE 'k%' AND key <> 'kept'"))
        assert min(10, left[-2]) <= left[-2] - left[-1] <= 300, left
        if not left[-1]:
            break
    assert left[-1] == 0
    assert [await for_user(owner).namespace("n").count() for owner in "abcd"] == [11] * 4


async def single(turn: int) -> None:
    """Store an entry."""
    await store.save(f"k{turn}", turn, expires_in=1)


async def together(turn: int) -> None:
    """Store 400 entries by calls that are in flight together."""
    await asyncio.gather(*(store.save(f"k{turn}-{n}", n, expires_in=1) for n in range(400)))


async def many(turn: int) -> None:
    """Store 900 entries in one call."""
    await store.save_many({f"k{turn}-{n}": n for n in range(900)}, expires_in=1)


@pytest.mark.parametrize(("write", "most"), [(single, 2), (together, 900), (many, 1900)])
async def test_as_many_rows_go_as_come(write: Any, most: int, clock: Clock, home: Path) -> None:
    """A table of entries that expire does not grow, with no sweeper to start."""
    for turn in range(30):
        clock.now += 1
        await write(turn)
        assert count(home) <= most


async def test_large_rows_go_a_few_at_a_time(clock: Clock, home: Path) -> None:
    """No write removes many megabytes on the way."""
    for number in range(5):
        values = {f"k{number}-{n}": "x" * 1_000_000 for n in range(4)}
        await store.save_many(values, expires_in=10)
    await store.save_many({f"s{n}": n for n in range(30)}, expires_in=10.5)
    clock.now += 11
    left = [20]
    while left[-1]:
        await store.save("live", len(left))
        left.append(count(home, "key LIKE 'k%'"))
        assert 1 <= left[-2] - left[-1] <= 3
    await store.save("live", 0)
    assert count(home) == 1


async def test_a_write_that_fails_takes_nothing_with_it(clock: Clock, home: Path) -> None:
    """What the engine refuses leaves the expired rows to the next write."""
    await store.save_many({f"k{n}": n for n in range(20)}, expires_in=10)
    with closing(sqlite3.connect(home / "cat.db")) as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE INSERT ON entries WHEN new.key = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    clock.now += 10
    with pytest.raises(OSError, match="nothing was stored"):
        await store.save("bad", 1)
    assert count(home) == 20
    await store.save("good", 1)
    assert count(home) == 1


async def test_a_key_that_is_stored_anew_stays(clock: Clock, home: Path) -> None:
    """What was stored over an expired entry is not taken for it, whatever goes with it."""
    await store.save_many({f"k{n}": "old" for n in range(200)}, expires_in=10)
    clock.now += 10
    writes: list[Callable[..., Awaitable[Any]]] = [store.save, store.create]
    await asyncio.gather(*(writes[n % 2](f"k{n}", "new") for n in range(0, 200, 4)))
    await asyncio.gather(*(store.save("other", n) for n in range(10)))
    for number in range(10):
        await store.save("other", number)
    assert await store.items("k") == dict.fromkeys((f"k{n}" for n in range(0, 200, 4)), "new")
    assert count(home) == 51


# --- Clocks.


async def test_a_clock_that_goes_back(clock: Clock) -> None:
    """Nothing is lost or refused: an entry is there for longer, and what is stored is stored."""
    noon = clock.now
    await store.save("k", [1], expires_in=60)
    await store.save("n", 1, expires_in=60)
    await store.save("stays", 1)
    clock.now = noon - 5000
    assert await store.items() == {"k": [1], "n": 1, "stays": 1}
    assert await store.count() == 3
    async with store.edit("k") as value:
        value.append(2)
    assert await store.increment("n") == 2
    assert await store.create("n", 9) is False
    assert await store.create("new", 9, expires_in=10) is True
    assert await store.save("stays", 2) == 2
    assert await store.expire("stays", 10)
    info = await store.info("k")
    assert info is not None
    assert info.expires_at == datetime.fromtimestamp(noon + 60, UTC)
    clock.now = noon - 4990
    assert await store.items() == {"k": [1, 2], "n": 2}
    clock.now = noon + 59
    assert await store.items() == {"k": [1, 2], "n": 2}
    clock.now = noon + 60
    assert await store.items() == {}


async def test_a_clock_that_jumps_about(clock: Clock) -> None:
    """Whatever it says, what never expires stays, and the last save is what is loaded."""
    noon = clock.now
    await store.save("never", 1)
    for number, moment in enumerate([0, 1e6, -1e6, 5, 1e9, -1e9, 0, 1e-6, 0]):
        clock.now = noon + moment
        await store.save("k", number, expires_in=1)
        assert await store.load("k") == number
        assert await store.increment("count") == number + 1
        assert await store.keys() == ["count", "k", "never"]


async def test_a_clock_before_1970(clock: Clock) -> None:
    """A machine that lost the time stores and expires all the same."""
    clock.now = -1000.0
    await store.save("k", 1, expires_in=10)
    await store.save("never", 1)
    assert await store.items() == {"k": 1, "never": 1}
    clock.now += 10
    assert await store.items() == {"never": 1}


async def test_the_clock_of_the_system(home: Path) -> None:
    """Without any help it expires, for every process, and its row goes with another's write."""
    await store.save("k", 1, expires_in=0.2)
    async with asyncio.timeout(DEADLINE):
        while await store.exists("k"):  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)
    assert count(home) == 1
    code = """
    import asyncio
    from cat import for_user, store

    async def main():
        print(await store.load("k"), await store.keys())
        await for_user("alice").save("a", 1)

    asyncio.run(main())
    """
    assert printed(code) == "None []\n"
    assert count(home) == 1
    assert await store.items() == {}
    assert await for_user("alice").items() == {"a": 1}
