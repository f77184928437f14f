"""What each verb promises, once, on every backend: the whole API through the `backend` fixture.

There are no branches: a backend passes all of it. What a verb does under
concurrency, faults and load is in the files of its own.
"""

import asyncio
import dataclasses
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from cat import (
    Store,
    as_user,
    context,
    current_user,
    erase_namespace,
    erase_user,
    export_user,
    for_user,
    store,
    user,
    users,
)
from cat.backends import Backend
from cat.errors import (
    ConflictError,
    InvalidArgumentError,
    InvalidExpiryError,
    InvalidKeyError,
    InvalidNamespaceError,
    InvalidResultError,
    InvalidUserError,
    InvalidValueError,
    KeyBusyError,
    KeyNotFoundError,
    NestedEditError,
    NotEditableError,
    NoUserError,
    ReboundError,
    UnstorableValueError,
)
from cat.repository import Repository
from cat.scope import GLOBAL
from equality import same

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.25

    def __call__(self) -> float:
        """Return seconds since 1970-01-01 UTC."""
        return self.now


@dataclasses.dataclass
class Prefs:
    """What a plugin would keep."""

    volume: int
    tags: list[str] = dataclasses.field(default_factory=list)


def repository_of(backend: Backend, **given: Any) -> Repository:
    """Return a repository on a backend, with limits that a test can reach."""
    limits = {"max_value_bytes": 10_000, "max_key_bytes": 20, "timeout": 20.0}
    return Repository(backend, **(limits | given))


@pytest.fixture(autouse=True)
def clock(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let `store` and all others use the backend, with a clock that the test moves."""
    made = Clock()
    repository = repository_of(backend, now=made)
    monkeypatch.setattr(context, "repository", lambda: repository)
    return made


async def revision(key: str) -> int | None:
    """Return the revision of a key of the shared store."""
    info = await store.info(key)
    return info and info.revision


# --- save and load.


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -(10**40), 9, 9.0, -0.0, 1e-320, "", "é\0😀", "\ud800", [], {}),
        {"b": [1, {"": None}], "a": "'; --"},
    ],
    ids=ascii,
)
async def test_load_gives_what_was_saved(value: Any) -> None:
    """Value, type and order are those that were saved, and `save` returns what it was given."""
    assert await store.save("k", value) is value
    assert same(await store.load("k"), value)


async def test_save_replaces() -> None:
    """A value is replaced whole, and never merged."""
    await store.save("k", {"a": 1})
    await store.save("k", {"b": 2})
    assert await store.load("k") == {"b": 2}


async def test_save_takes_tuples_and_dataclasses() -> None:
    """They are stored as JSON has them."""
    await store.save("k", {1: ("a", Prefs(9))})
    assert same(await store.load("k"), {"1": ["a", {"volume": 9, "tags": []}]})


async def test_save_refuses_what_json_cannot_hold() -> None:
    """Nothing is written, and what was there stays."""
    await store.save("k", 1)
    for bad in ({1}, b"", math.nan, object(), [datetime.now(UTC)], "x" * 10_001):
        with pytest.raises(UnstorableValueError):
            await store.save("k", bad)
    assert await store.load("k") == 1


async def test_load_of_nothing() -> None:
    """It is the default itself, unchecked."""
    default = object()
    assert await store.load("k") is None
    assert await store.load("k", default) is default
    assert await store.load("k", default, type=int) is default


async def test_load_gives_a_fresh_value() -> None:
    """What one caller does to it, no other sees."""
    await store.save("k", [1])
    (await store.load("k")).append(2)
    assert await store.load("k") == [1]


async def test_load_with_a_type() -> None:
    """The value is of that type, or it raises."""
    await store.save("k", {"volume": 9})
    assert await store.load("k", type=Prefs) == Prefs(9)
    assert await store.load("k", type=dict[str, int]) == {"volume": 9}
    with pytest.raises(InvalidValueError) as caught:
        await store.load("k", [], type=list[int])
    assert caught.value.problems == [("$", "list_type")]


async def test_load_converts_nothing() -> None:
    """A text of digits is no number, with `type=` either."""
    await store.save("k", "9")
    with pytest.raises(InvalidValueError, match="'k' of the global store"):
        await store.load("k", type=int)


@pytest.mark.parametrize("key", ["", "a\0", "\ud800", "k" * 21, "é" * 11, b"a", 9, None], ids=ascii)
async def test_what_is_no_key(key: Any) -> None:
    """Each verb for one key refuses it."""

    async def edited() -> None:
        async with store.edit(key, []):
            pass

    calls: list[Callable[[], Any]] = [
        *[lambda: store.save(key, 1), lambda: store.load(key), lambda: store.exists(key)],
        *[lambda: store.delete(key), lambda: store.pop(key), lambda: store.create(key, 1)],
        *[lambda: store.load_or_create(key, dict), lambda: store.expire(key, 1)],
        *[lambda: store.info(key), lambda: store.increment(key), lambda: store.modify(key, repr)],
        *[lambda: store.load_many([key]), lambda: store.delete_many([key]), edited],
        lambda: store.save_many({key: 1}),
    ]
    for call in calls:
        with pytest.raises(InvalidKeyError):
            await call()
    assert await store.count() == 0


async def test_keys_are_not_folded() -> None:
    """Case, accents, spaces and signs all tell keys apart."""
    keys = ["a", "A", "a ", " a", "é", "e\u0301", "a%", "a_", "a*", "a\x01", "😀", "\uffff"]
    await store.save_many({key: key for key in keys})
    assert [await store.load(key) for key in keys] == keys


async def test_calls_at_once_take_effect_in_their_order() -> None:
    """So it is for those of one key that do not read first."""
    answers = await asyncio.gather(
        *[store.save("k", 1), store.save("k", 2), store.delete("k"), store.create("k", 3)],
        *[store.create("k", 4), store.save("k", 5), store.save("other", 6), store.delete("other")],
    )
    assert answers == [1, 2, True, True, False, 5, 6, True]
    await asyncio.gather(*(store.save("k", number) for number in range(20)))
    assert await store.items() == {"k": 19}


# --- exists, delete and pop.


async def test_exists() -> None:
    """A stored `None` exists."""
    assert not await store.exists("k")
    await store.save("k", None)
    assert await store.exists("k")


async def test_delete() -> None:
    """It says whether something was removed."""
    await store.save("k", None)
    assert await store.delete("k") is True
    assert await store.delete("k") is False
    assert not await store.exists("k")


async def test_pop() -> None:
    """It removes and returns in one step."""
    await store.save("k", [1])
    assert await store.pop("k", 5) == [1]
    assert await store.pop("k", 5) == 5
    assert await store.pop("k") is None


async def test_pop_by_many() -> None:
    """One alone gets the value."""
    await store.save("k", "code")
    popped = await asyncio.gather(*(store.pop("k") for _ in range(10)))
    assert sorted(map(str, popped)) == ["None"] * 9 + ["code"]


# --- edit.


async def test_edit() -> None:
    """A value is changed in place, and stored at the end."""
    await store.save("k", [1])
    async with store.edit("k") as value:
        value.append(2)
        assert await store.load("k") == [1]
    assert await store.load("k") == [1, 2]


async def test_edit_of_nothing() -> None:
    """It begins with a copy of the default; without one it raises."""
    default: dict[str, int] = {}
    with pytest.raises(KeyNotFoundError):
        async with store.edit("k"):
            pass
    async with store.edit("k", default) as value:
        value["a"] = 1
    assert default == {}
    assert await store.load("k") == {"a": 1}


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_edit_that_raises(error: type[BaseException]) -> None:
    """Nothing is stored, and the key is free."""
    await store.save("k", [1])
    with pytest.raises(error):  # noqa: PT012  # the change before it is what is lost
        async with store.edit("k") as value:
            value.append(2)
            raise error
    async with store.edit("k") as value:
        assert value == [1]


async def test_edit_of_a_scalar() -> None:
    """What cannot be changed in place raises before the block."""
    for value in (1, "a", None, True, 1.5):
        await store.save("k", value)
        with pytest.raises(NotEditableError, match="modify"):
            async with store.edit("k", []):
                pytest.fail("the block ran")
    with pytest.raises(NotEditableError):
        async with store.edit("absent", 5):
            pytest.fail("the block ran")


async def test_edit_with_a_type() -> None:
    """The value is of that type in the block, and stored as JSON."""
    async with store.edit("k", Prefs(1), type=Prefs) as prefs:
        prefs.volume = 2
    async with store.edit("k", type=Prefs) as prefs:
        assert prefs == Prefs(2)
        prefs.tags.append("a")
    assert await store.load("k") == {"volume": 2, "tags": ["a"]}


async def test_edit_with_a_type_that_does_not_fit() -> None:
    """It raises before the block for an old value that does not fit, after it for a new one."""
    await store.save("k", ["a"])
    with pytest.raises(InvalidValueError):
        async with store.edit("k", type=list[int]):
            pytest.fail("the block ran")
    numbers: Any = store.edit("k", type=list[str])
    with pytest.raises(InvalidValueError):
        async with numbers as value:
            value.append(1)
    assert await store.load("k") == ["a"]


async def test_edit_to_what_json_cannot_hold() -> None:
    """It raises at the end, and nothing is stored."""
    await store.save("k", [1])
    with pytest.raises(UnstorableValueError):
        async with store.edit("k") as value:
            value.append({1})
    assert await store.load("k") == [1]


async def test_edit_of_another_object() -> None:
    """An assignment to the name raises, as it would be lost."""
    await store.save("k", [1])
    with pytest.raises(ReboundError):
        async with store.edit("k") as value:
            value = [*value, 2]  # noqa: PLW2901  # the mistake
    assert await store.load("k") == [1]


async def test_edit_inside_an_edit() -> None:
    """The same key raises in the same task, by any verb that waits; another key does not."""
    await store.save("k", [1])
    async with store.edit("k") as value, store.edit("other", []) as other:
        for change in (store.modify("k", repr), store.increment("k")):
            with pytest.raises(NestedEditError):
                await change
        with pytest.raises(NestedEditError):
            async with store.edit("k"):
                pass
        value.append(2)
        other.append(3)
    assert await store.load_many(["k", "other"]) == {"k": [1, 2], "other": [3]}


async def test_edit_overtaken_by_a_save() -> None:
    """What was saved meanwhile stays, and the edit raises."""
    await store.save("k", [1])
    with pytest.raises(ConflictError):  # noqa: PT012  # the save is what it is about
        async with store.edit("k") as value:
            value.append(2)
            await store.save("k", ["saved"])
    assert await store.load("k") == ["saved"]


async def test_edits_at_once() -> None:
    """Not one is lost."""

    async def one(number: int) -> None:
        async with store.edit("k", []) as value:
            await asyncio.sleep(0)
            value.append(number)

    await asyncio.gather(*map(one, range(10)))
    assert sorted(await store.load("k")) == list(range(10))


async def test_waiting_for_an_edit_is_bounded(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for longer than the timeout gets an error."""
    impatient = repository_of(backend, timeout=0.01)
    monkeypatch.setattr(context, "repository", lambda: impatient)
    async with store.edit("k", []) as value:
        task = asyncio.create_task(store.modify("k", lambda old: old))
        with pytest.raises(KeyBusyError):
            await task
        value.append(1)
    assert await store.load("k") == [1]


# --- modify and increment.


async def test_modify() -> None:
    """The new value is stored and returned; the default is a copy."""
    default = [1]
    assert await store.modify("k", lambda old: [*old, 2], default) == [1, 2]
    assert await store.modify("k", len, default) == 2
    assert await store.modify("new", lambda old: old) is None
    assert await store.load_many(["k", "new"]) == {"k": 2, "new": None}
    await store.modify("other", lambda old: [*old, old.append(3)], default)
    assert default == [1]


async def test_modify_that_raises() -> None:
    """What `fn` raises reaches the caller, and nothing is stored."""
    await store.save("k", [1])
    with pytest.raises(ZeroDivisionError):
        await store.modify("k", lambda old: old.append(1) or 1 / 0)
    assert await store.load("k") == [1]


async def test_modify_that_forgets_to_return() -> None:
    """`None` for what was not `None` raises; over `None` it is a value."""
    await store.save("k", [1])
    with pytest.raises(InvalidResultError):
        await store.modify("k", lambda old: old.append(2))
    assert await store.load("k") == [1]
    await store.save("k", None)
    assert await store.modify("k", lambda old: old) is None


async def test_modify_with_what_is_no_plain_function() -> None:
    """A coroutine function, one that returns an awaitable, and no function at all raise."""

    async def later(old: Any) -> Any:
        return old

    def not_awaited(old: Any) -> Any:
        return later(old)

    no_functions: list[Any] = [later, 5]
    for bad in no_functions:
        with pytest.raises(InvalidArgumentError):
            await store.modify("k", bad)
    with pytest.raises(InvalidResultError, match="awaitable"):
        await store.modify("k", not_awaited)
    assert not await store.exists("k")


async def test_modify_to_what_json_cannot_hold() -> None:
    """It raises, and nothing is stored."""
    with pytest.raises(UnstorableValueError):
        await store.modify("k", lambda _: {1})
    assert not await store.exists("k")


async def test_modifies_at_once() -> None:
    """Not one is lost."""
    await asyncio.gather(
        *(store.modify("k", lambda old, n=n: [*old, n], []) for n in range(20))  # type: ignore[misc]
    )
    assert sorted(await store.load("k")) == list(range(20))


async def test_increment() -> None:
    """A counter begins at 0, goes up and down, and is exact at any size."""
    assert await store.increment("k") == 1
    assert await store.increment("k", by=-3) == -2
    assert await store.increment("k", 10**30) == 10**30 - 2
    assert same(await store.load("k"), 10**30 - 2)


@pytest.mark.parametrize("value", [1.0, True, "1", None, [1]], ids=ascii)
async def test_increment_of_what_is_no_integer(value: Any) -> None:
    """It raises, and nothing changes; so it does for such a step."""
    await store.save("k", value)
    with pytest.raises(InvalidValueError):
        await store.increment("k")
    with pytest.raises(InvalidArgumentError):
        await store.increment("new", value)
    assert same(await store.items(), {"k": value})


async def test_increments_at_once() -> None:
    """They add up, and each caller gets its own sum."""
    sums = await asyncio.gather(*(store.increment("k") for _ in range(50)))
    assert sorted(sums) == list(range(1, 51))


# --- create and load_or_create.


async def test_create() -> None:
    """It stores what was absent, and touches nothing else."""
    assert await store.create("k", None) is True
    before = await store.info("k")
    assert await store.create("k", 2, expires_in=1) is False
    assert await store.info("k") == before
    with pytest.raises(UnstorableValueError):
        await store.create("k", {1})


async def test_create_by_many() -> None:
    """One alone succeeds, and its value is stored."""
    created = await asyncio.gather(*(store.create("k", n) for n in range(10)))
    assert created.count(True) == 1
    assert await store.load("k") == created.index(True)


async def test_load_or_create() -> None:
    """A value is made once, by a function of either kind."""

    async def made() -> list[int]:
        return [1]

    def never() -> None:
        pytest.fail("asked for what is there")

    assert await store.load_or_create("k", made) == [1]
    assert await store.load_or_create("k", never) == [1]
    assert await store.load_or_create("none", lambda: None) is None
    assert await store.load_or_create("none", never) is None


async def test_load_or_create_that_fails() -> None:
    """What the factory raises reaches the caller, and nothing is stored."""
    with pytest.raises(ZeroDivisionError):
        await store.load_or_create("k", lambda: 1 // 0)
    with pytest.raises(UnstorableValueError):
        await store.load_or_create("k", set)
    with pytest.raises(InvalidArgumentError):
        await store.load_or_create("k", 5)  # type: ignore[arg-type]
    assert not await store.exists("k")


async def test_load_or_create_by_many() -> None:
    """The factory runs once, and all get its value."""
    calls = []

    async def made() -> str:
        calls.append(1)
        await asyncio.sleep(0.01)
        return "token"

    found = await asyncio.gather(*(store.load_or_create("k", made) for _ in range(10)))
    assert found == ["token"] * 10
    assert len(calls) == 1


async def test_load_or_create_that_asks_for_itself() -> None:
    """It raises instead of waiting for itself."""

    async def made() -> Any:
        return await store.load_or_create("k", dict)

    with pytest.raises(InvalidArgumentError, match="itself"):
        await store.load_or_create("k", made)


# --- Expiry.


@pytest.mark.parametrize("period", [2, 2.0, timedelta(seconds=2)], ids=ascii)
async def test_an_entry_that_expires(period: Any, clock: Clock) -> None:
    """From that moment on, every verb says that it is not there."""
    await store.save("k", 1, expires_in=period)
    clock.now += 1.999
    assert await store.load("k") == 1
    clock.now += 0.001
    assert await store.load("k", "gone") == "gone"
    assert not await store.exists("k")
    assert await store.info("k") is None
    assert await store.load_many(["k"]) == {}
    assert await store.keys() == []
    assert await store.items() == {}
    assert await store.count() == 0
    assert await store.expire("k", None) is False
    assert await store.pop("k", "gone") == "gone"
    assert await store.delete("k") is False


@pytest.mark.parametrize(
    "bad",
    [0, -1, 0.0, math.nan, math.inf, 1e11, True, "1", timedelta(0), timedelta(seconds=-1)],
    ids=ascii,
)
async def test_what_is_no_period(bad: Any) -> None:
    """Every verb that takes one refuses it, and changes nothing."""
    await store.save("k", 1)
    calls: list[Callable[[], Any]] = [
        *[lambda: store.save("k", 2, expires_in=bad), lambda: store.create("a", 2, expires_in=bad)],
        *[lambda: store.increment("k", expires_in=bad), lambda: store.expire("k", bad)],
        *[lambda: store.load_or_create("k", dict, expires_in=bad)],
        lambda: store.save_many({"k": 2}, expires_in=bad),
    ]
    for call in calls:
        with pytest.raises(InvalidExpiryError):
            await call()
    assert await store.items() == {"k": 1}


async def test_save_clears_an_expiry(clock: Clock) -> None:
    """It does so unless it gives another."""
    await store.save("k", 1, expires_in=5)
    await store.save("k", 2)
    clock.now += 100
    assert await store.load("k") == 2


async def test_changes_keep_an_expiry(clock: Clock) -> None:
    """`edit`, `modify` and `increment` leave it as it is."""
    await store.save_many({"edit": [], "modify": 1, "increment": 1}, expires_in=5)
    async with store.edit("edit") as value:
        value.append(1)
    await store.modify("modify", lambda old: old + 1)
    await store.increment("increment", expires_in=100)
    clock.now += 4.75
    assert await store.items() == {"edit": [1], "increment": 2, "modify": 2}
    clock.now += 0.25
    assert await store.items() == {}


async def test_an_increment_that_expires(clock: Clock) -> None:
    """The period counts from the creation of the counter; then it begins anew."""
    for expected in (1, 2, 3):
        assert await store.increment("k", expires_in=60) == expected
        clock.now += 20
    assert await store.increment("k", expires_in=60) == 1


async def test_a_made_value_that_expires(clock: Clock) -> None:
    """It is made anew then."""
    assert await store.load_or_create("k", lambda: 1, expires_in=60) == 1
    clock.now += 60
    assert await store.load_or_create("k", lambda: 2, expires_in=60) == 2


async def test_expire(clock: Clock) -> None:
    """An entry gets another expiry, or none."""
    assert await store.expire("k", 5) is False
    await store.save("k", 1)
    assert await store.expire("k", 5) is True
    assert await store.expire("k", timedelta(seconds=10)) is True
    clock.now += 9
    assert await store.expire("k", None) is True
    clock.now += 1e6
    assert await store.load("k") == 1


async def test_changes_of_an_expired_entry(clock: Clock) -> None:
    """Its row is still there, and every verb takes it for nothing."""
    calls: dict[str, tuple[Callable[[str], Any], Any]] = {
        "delete": (store.delete, False),
        "delete_many": (lambda key: store.delete_many([key]), 0),
        "pop": (store.pop, None),
        "clear": (store.clear, 0),
        "expire": (lambda key: store.expire(key, 5), False),
        "modify": (lambda key: store.modify(key, lambda old: [old]), [None]),
        "increment": (store.increment, 1),
        "load_or_create": (lambda key: store.load_or_create(key, lambda: 2), 2),
    }
    for key, (call, expected) in calls.items():
        await store.save(key, 7, expires_in=1)
        clock.now += 1
        assert same(await call(key), expected), key
        info = await store.info(key)
        assert info is None or info.expires_at is None, key


async def test_create_over_an_expired_entry(clock: Clock) -> None:
    """It succeeds, and nothing of the old one is left."""
    await store.save("k", "old", expires_in=5)
    clock.now += 5
    assert await store.create("k", "new") is True
    info = await store.info("k")
    assert info is not None
    assert info.created_at.timestamp() == clock.now
    assert info.expires_at is None
    assert await store.load("k") == "new"


async def test_the_row_of_an_expired_entry_goes(backend: Backend, clock: Clock) -> None:
    """A later write of another key removes it, and none that is still live."""
    await store.save("k", 1, expires_in=5)
    await store.save("live", 1, expires_in=5.125)
    clock.now += 5
    assert await backend.get(GLOBAL, "k") is not None
    await store.save("other", 1)
    assert await backend.get(GLOBAL, "k") is None
    assert await store.load("live") == 1


# --- Many keys.


async def test_load_many() -> None:
    """What is found comes in the order given, once each."""
    await store.save_many({"a": 1, "b": None})
    assert list((await store.load_many(["b", "x", "a", "b"])).items()) == [("b", None), ("a", 1)]
    assert await store.load_many([]) == {}
    assert await store.load_many(iter(["a"])) == {"a": 1}


async def test_save_many() -> None:
    """All are stored."""
    await store.save("a", "old")
    await store.save_many({"a": 1, "b": [2]})
    await store.save_many({})
    assert await store.items() == {"a": 1, "b": [2]}


async def test_save_many_stores_all_or_none() -> None:
    """One value that cannot be stored keeps all others out."""
    with pytest.raises(UnstorableValueError) as caught:
        await store.save_many({"a": 1, "b": [{1}]})
    assert caught.value.path == "$['b'][0]"
    with pytest.raises(InvalidKeyError):
        await store.save_many({"a": 1, "": 2})
    assert await store.count() == 0


async def test_many_thousand_keys() -> None:
    """More than fit into one statement are stored, read and removed as one."""
    many = {f"{n:06}": n for n in range(5_000)}
    await store.save_many(many)
    assert await store.load_many(many) == many
    assert await store.items() == many
    assert await store.delete_many(many) == 5_000


async def test_delete_many() -> None:
    """It says how many had a value, each once."""
    await store.save_many({"a": 1, "b": None, "c": 3})
    assert await store.delete_many(["a", "b", "a", "x"]) == 2
    assert await store.delete_many([]) == 0
    assert await store.keys() == ["c"]


async def test_what_is_no_list() -> None:
    """A text in place of a list, and a list in place of a dict, raise."""
    for bad in ("abc", b"abc", None):
        with pytest.raises(InvalidArgumentError):
            await store.load_many(bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            await store.delete_many(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        await store.save_many(["a"])  # type: ignore[arg-type]


# --- Listing.

SORTED = ["A", "Z", "a", "a%", "a/1", "a_", "ab", "é", "\ud7ff", "\ue000", "😀", "\U0010ffff"]


async def test_keys_are_sorted_by_code_point() -> None:
    """And no language has a say in it."""
    await store.save_many(dict.fromkeys(reversed(SORTED), 1))
    assert await store.keys() == SORTED


@pytest.mark.parametrize(
    "prefix", ["", *SORTED, "%", "_", "a*", "?", "[a]", "\\", "'", "\U0010fffe"]
)
async def test_a_prefix_is_plain_text(prefix: str) -> None:
    """Every verb that takes one means those that `str.startswith` does."""
    await store.save_many({key: [key] for key in SORTED})
    expected = [key for key in SORTED if key.startswith(prefix)]
    assert await store.keys(prefix) == expected
    assert await store.items(prefix) == {key: [key] for key in expected}
    assert [pair async for pair in store.scan(prefix)] == [(key, [key]) for key in expected]
    assert await store.count(prefix) == len(expected)
    if prefix:
        assert await store.clear(prefix) == len(expected)
        assert await store.keys() == [key for key in SORTED if key not in expected]


async def test_keys_by_the_page() -> None:
    """`after` goes on behind a key, which need not be there."""
    await store.save_many(dict.fromkeys(SORTED, 1))
    assert await store.keys(limit=2) == ["A", "Z"]
    assert await store.keys(after="Z", limit=3) == ["a", "a%", "a/1"]
    assert await store.keys("a", after="a0", limit=10**30) == ["a_", "ab"]
    assert await store.keys(after="\U0010ffff") == []
    assert await store.keys(limit=0) == []


async def test_a_scan_of_many_pages() -> None:
    """Everything comes, in order, whatever is written meanwhile."""
    many = {f"{n:04}": n for n in range(350)}
    await store.save_many(many)
    seen = {}
    async for key, value in store.scan():
        seen[key] = value
        await store.delete(key)
    assert same(seen, many)


async def test_what_is_no_prefix() -> None:
    """Anything but text raises, and so does a limit that is no number of keys."""
    no_texts: list[Any] = [None, 1, b"a", "\ud800"]
    for bad in no_texts:
        for verb in (store.keys, store.items, store.count, store.clear):
            with pytest.raises(InvalidArgumentError):
                await verb(bad)
        with pytest.raises(InvalidArgumentError):
            store.scan(bad)
    for limit in (-1, 1.0, True, "1"):
        with pytest.raises(InvalidArgumentError):
            await store.keys(limit=limit)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        await store.keys(after=1)  # type: ignore[arg-type]


async def test_clear_of_everything_has_a_name_of_its_own() -> None:
    """`clear("")` raises; `clear_all` empties this scope and namespace alone."""
    await store.save_many({"a": 1, "b": 2})
    await store.namespace("n").save("a", 1)
    await for_user("alice").save("a", 1)
    with pytest.raises(InvalidArgumentError, match="clear_all"):
        await store.clear("")
    assert await store.clear_all() == 2
    assert await store.clear_all() == 0
    assert await store.namespace("n").count() == 1
    assert await for_user("alice").count() == 1


# --- info.


async def test_info(clock: Clock) -> None:
    """It tells the size in bytes, and the times in UTC."""
    await store.save("k", "é", expires_in=60)
    clock.now += 1
    await store.increment("other")
    await store.modify("k", lambda _: "éé")
    info = await store.info("k")
    assert info is not None
    assert info.size == 6
    assert info.created_at == datetime.fromtimestamp(clock.now - 1, UTC)
    assert info.updated_at == datetime.fromtimestamp(clock.now, UTC)
    assert info.expires_at == datetime.fromtimestamp(clock.now + 59, UTC)
    assert await store.info("nothing") is None


async def test_every_write_has_another_revision() -> None:
    """A read and a write that failed have not, and none comes back after a deletion."""
    seen = []
    for write in (
        *[lambda: store.save("k", 1), lambda: store.save("k", 1), lambda: store.increment("k", 0)],
        *[lambda: store.modify("k", lambda old: old), lambda: store.expire("k", 5)],
        *[lambda: store.save_many({"k": 1}), lambda: store.load_or_create("other", dict)],
    ):
        await write()  # type: ignore[no-untyped-call]
        seen.append(await revision("k"))
    assert seen[-1] == seen[-2]  # of another key
    for _ in range(2):
        await store.delete("k")
        assert await store.create("k", 1)
        seen.append(await revision("k"))
    with pytest.raises(InvalidArgumentError):
        await store.increment("k", 1.0)  # type: ignore[arg-type]
    assert not await store.create("k", 2)
    await store.load("k")
    assert await revision("k") == seen[-1]
    assert len(set(seen)) == len(seen) - 1


async def test_the_time_of_creation_stays(clock: Clock) -> None:
    """Writes move the other time alone, until the entry is gone or has expired."""
    begin = clock.now
    await store.save("k", 1, expires_in=60)
    for write in (
        *[lambda: store.save("k", 2, expires_in=60), lambda: store.increment("k")],
        *[lambda: store.save_many({"k": 3}, expires_in=60), lambda: store.expire("k", 60)],
    ):
        clock.now += 1
        await write()  # type: ignore[no-untyped-call]
        info = await store.info("k")
        assert info is not None
        assert (info.created_at.timestamp(), info.updated_at.timestamp()) == (begin, clock.now)
    clock.now += 60
    await store.save("k", 1)
    info = await store.info("k")
    assert info is not None
    assert info.created_at.timestamp() == clock.now


# --- Scopes.


async def test_scopes_are_apart() -> None:
    """No verb of one store sees or touches another's, however alike the names."""
    others: list[Store] = [
        *[store, store.namespace("a"), store.namespace("A"), store.namespace("a").namespace("b")],
        *[for_user("a"), for_user("A"), for_user("a").namespace("b"), for_user("a/b")],
    ]
    for number, place in enumerate(others):
        await place.save_many({"k": number, f"only{number}": number})
    for number, place in enumerate(others):
        assert await place.items() == {"k": number, f"only{number}": number}
    assert await others[1].clear_all() == 2
    assert [await place.count() for place in others] == [2, 0, 2, 2, 2, 2, 2, 2]


async def test_user_is_the_current_one() -> None:
    """`user` is looked up at each call, and `for_user` leads to the same entries."""
    with as_user("alice"):
        await user.save("k", 1)
        assert (user.id, current_user()) == ("alice", "alice")
        with as_user(42):
            assert await user.load("k") is None
            assert current_user() == "42"
    assert await for_user("alice").load("k") == 1


async def test_user_where_nobody_is_bound() -> None:
    """It raises, and `store` does not."""
    with as_user(None):
        with pytest.raises(NoUserError):
            await user.load("k")
        with pytest.raises(NoUserError):
            await user.namespace("n").keys()
        assert await store.load("k") is None
    assert current_user() is None


async def test_what_is_no_user() -> None:
    """Neither a user nor a namespace can be named by it."""
    no_users: list[Any] = ["", "a\n", True, None, 1.5, "\ud800", "x" * 256]
    for bad in no_users:
        with pytest.raises(InvalidUserError):
            for_user(bad)
        for verb in (export_user, erase_user):
            with pytest.raises(InvalidUserError):
                await verb(bad)
    for bad in ("", "a/b", "\x7f", None, 1):
        with pytest.raises(InvalidNamespaceError):
            store.namespace(bad)  # type: ignore[arg-type]


async def test_namespaces(clock: Clock) -> None:
    """Those right below that hold something live, at any depth."""
    assert await store.namespaces() == []
    await store.namespace("b").namespace("c").namespace("d").save("k", 1)
    await store.namespace("a").save("k", 1, expires_in=5)
    await store.namespace("bb").save("k", 1)
    await for_user("alice").namespace("z").save("k", 1)
    assert await store.namespaces() == ["a", "b", "bb"]
    assert await store.namespace("b").namespaces() == ["c"]
    clock.now += 5
    assert await store.namespaces() == ["b", "bb"]


async def test_users(clock: Clock) -> None:
    """Those who have something live in any namespace, sorted."""
    assert await users() == []
    await store.save("k", 1)
    await for_user("bob").namespace("n").save("k", 1)
    await for_user("Bob").save("k", 1)
    await for_user(42).save("k", 1, expires_in=5)
    assert await users() == ["42", "Bob", "bob"]
    clock.now += 5
    assert await users() == ["Bob", "bob"]


async def test_export_user() -> None:
    """Everything of one user, by namespace, with the paths of the files."""
    alice = for_user("alice")
    await alice.save_many({"b": [1], "a": None})
    await alice.namespace("n").namespace("m").save("k", 1)
    await for_user("alice2").save("k", "another's")
    (alice.folder / "photo.jpg").write_text("…")
    export = await export_user("alice")
    assert export.user == "alice"
    assert export.entries == {"": {"a": None, "b": [1]}, "n/m": {"k": 1}}
    assert export.files == [alice.folder / "photo.jpg"]
    assert (await export_user("nobody")).entries == {}


async def test_erase_user() -> None:
    """Everything of one user is gone, and nothing of anybody else's; it says how much it was."""
    for name in ("alice", "alice2"):
        await for_user(name).save("k", "é")
        await for_user(name).namespace("n").save("k", 1234)
        (for_user(name).namespace("n").folder / "f").write_text("…")
    await store.save("k", 1)
    assert await erase_user("alice") == (2, 8, 1)
    assert await erase_user("alice") == (0, 0, 0)
    assert await users() == ["alice2"]
    assert (await export_user("alice")).files == []
    assert len((await export_user("alice2")).files) == 1
    assert await store.load("k") == 1


async def test_erase_namespace() -> None:
    """It goes with all below it, of everyone, and names that are alike stay."""
    roots = [store, for_user("alice"), for_user("bob")]
    for root in roots:
        for name in ("n", "nn", "n0", "N"):
            await root.namespace(name).namespace("m").namespace("m").save("k", 1)
            await root.namespace(name).namespace("x").save("k", 1)
            await root.namespace(name).save("k", 22)
        await root.save("n", 1)
    (store.namespace("n").folder / "f").write_text("…")
    assert await erase_namespace("n/m") == (3, 3, 0)
    assert await erase_namespace("n") == (6, 9, 1)
    for root in roots:
        assert await root.namespaces() == ["N", "n0", "nn"]
        assert await root.namespace("n0").namespaces() == ["m", "x"]
        assert await root.load("n") == 1
    for bad in ("", "a//b", "a\0"):
        with pytest.raises(InvalidNamespaceError):
            await erase_namespace(bad)


async def test_expired_entries_are_erased_and_not_counted(backend: Backend, clock: Clock) -> None:
    """A caller is told of nothing that was not there any more."""
    await for_user("alice").namespace("n").save("k", 1, expires_in=5)
    clock.now += 5
    assert await erase_user("alice") == (0, 0, 0)
    assert await backend.owners(0.0) == []
