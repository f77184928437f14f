"""Users: who is bound, for how long, for whom else, and what happens where nobody is."""

import asyncio
import contextvars
import enum
import inspect
import random
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cat import User, as_user, current_user, for_user, store, user
from cat.errors import CatError, InvalidUserError, NoUserError


class Text(str):
    """Text that says something else when asked."""

    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Role(enum.StrEnum):
    """Ids with names."""

    ADMIN = "admin"


class Number(enum.IntEnum):
    """Numbers with names."""

    SEVEN = 7


BAD_IDS: dict[str, Any] = {
    "empty": "",
    "empty subclass": Text(""),
    "True": True,
    "False": False,
    "float": 1.0,
    "NaN": float("nan"),
    "complex": 1j,
    "bytes": b"alice",
    "bytearray": bytearray(b"alice"),
    "tuple": ("alice",),
    "list": ["alice"],
    "dict": {"id": "alice"},
    "set": {"alice"},
    "object": object(),
    "class": str,
    "class of ids": UUID,
    "function": len,
    "path": Path("alice"),
    "ellipsis": ...,
    "exception": ValueError("alice"),
    "NUL": "\0",
    "NUL inside": "ali\0ce",
    "newline": "alice\n",
    "carriage return": "alice\r",
    "tab": "\talice",
    "escape": "\x1b[31malice",
    "bell": "\x07",
    "unit separator": "a\x1fb",
    "delete": "alice\x7f",
    "first C1 control": "\x80",
    "next line": "alice\x85",
    "last C1 control": "\x9f",
    "control in a subclass": Text("a\nb"),
    "lone high surrogate": "\ud800",
    "lone low surrogate": "alice\udfff",
    "pair of surrogates": "\ud83d\ude00",
    "256 bytes": "a" * 256,
    "256 bytes in 128 characters": "é" * 128,
    "256 bytes in 64 characters": "😀" * 64,
    "a million bytes": "a" * 1_000_000,
    "256 digits": 10**255,
    "255 digits and a sign": -(10**254),
    "5,000 digits": 10**5000,
    "a million bits": 1 << 1_000_000,
}


@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS)
def test_a_bad_id_is_refused_and_the_binding_stays(bad: Any, home: Path) -> None:
    """`as_user` and `for_user` refuse it, and who was bound before is still bound."""
    with pytest.raises(InvalidUserError) as caught, as_user(bad):
        pytest.fail("the block was entered")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, CatError)
    assert "give a str, an int or a UUID" in str(caught.value)
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 300
    assert current_user() is None
    with as_user("alice"):
        with pytest.raises(InvalidUserError), as_user(bad):
            pytest.fail("the block was entered")
        with pytest.raises(InvalidUserError):
            for_user(bad)
        assert current_user() == "alice"
    assert not home.exists()


def test_nobody_is_no_user_to_act_for() -> None:
    """`None` binds nobody, and is nobody's store."""
    with pytest.raises(InvalidUserError):
        for_user(None)  # type: ignore[arg-type]


GOOD_IDS: dict[str, tuple[Any, str]] = {
    "name": ("alice", "alice"),
    "one character": ("a", "a"),
    "zero": (0, "0"),
    "int": (42, "42"),
    "negative": (-1, "-1"),
    "beyond 64 bits": (2**64, "18446744073709551616"),
    "255 digits": (10**254, "1" + "0" * 254),
    "UUID": (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "IntEnum": (Number.SEVEN, "7"),
    "StrEnum": (Role.ADMIN, "admin"),
    "str subclass": (Text("bob"), "bob"),
    "255 bytes": ("a" * 255, "a" * 255),
    "254 bytes in 127 characters": ("é" * 127, "é" * 127),
    "255 bytes in 85 characters": ("€" * 85, "€" * 85),
    "address": ("alice@example.org", "alice@example.org"),
    "colon": ("a:b", "a:b"),
    "slash": ("a/b", "a/b"),
    "dots": ("..", ".."),
    "root": ("/", "/"),
    "a space": (" ", " "),
    "spaces around": (" alice ", " alice "),
    "right to left": ("\u202eecila", "\u202eecila"),
    "emoji": ("😀", "😀"),
    "capitals": ("Alice", "Alice"),
    "composed": ("\u00e9", "\u00e9"),
    "decomposed": ("e\u0301", "e\u0301"),
    "wildcards": ("%_*?", "%_*?"),
    "quotes": ("'; DROP TABLE entries; --", "'; DROP TABLE entries; --"),
    "None as text": ("None", "None"),
    "leading zero": ("042", "042"),
}


@pytest.mark.parametrize(("good", "text"), GOOD_IDS.values(), ids=GOOD_IDS)
def test_an_id_is_taken_as_its_text(good: Any, text: str) -> None:
    """A `str`, an `int` or a `UUID` binds, and reads back as exactly its text."""
    with as_user(good):
        assert current_user() == user.id == text
        assert type(user.id) is str
    assert current_user() is None


async def test_users_never_meet_and_the_same_text_is_the_same_user() -> None:
    """Each id has values of its own; `as_user`, `for_user` and the id's text all reach them."""
    for good, text in GOOD_IDS.values():
        with as_user(good):
            assert not await user.exists("k")
            await user.save("k", text)
    for good, text in GOOD_IDS.values():
        assert await for_user(good).load("k") == text
        assert await for_user(text).load("k") == text
        with as_user(text):
            assert await user.load("k") == text
    assert not await store.exists("k")


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, "1"), (-5, "-5"), (Number.SEVEN, 7), (UUID(int=7), str(UUID(int=7)))],
)
async def test_an_id_and_its_text_are_one_user(one: Any, other: Any) -> None:
    """`1` and `"1"` are the same user."""
    with as_user(one):
        await user.save("k", "mine")
    with as_user(other):
        assert await user.load("k") == "mine"
        assert await user.delete("k")
    assert not await for_user(one).exists("k")


# --- Binding


def test_blocks_nest_and_restore() -> None:
    """Each block ends with whoever was bound before it, nobody included."""
    assert current_user() is None
    with as_user("alice"):
        with as_user("bob"):
            with as_user("alice"):
                assert user.id == "alice"
            assert user.id == "bob"
            with as_user(None):
                assert current_user() is None
                with pytest.raises(NoUserError):
                    _ = user.id
                with as_user("carol"):
                    assert user.id == "carol"
                assert current_user() is None
            assert user.id == "bob"
        assert user.id == "alice"
    assert current_user() is None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_block_restores_after_an_exception(error: type[BaseException]) -> None:
    """Whatever leaves the block, the user before it is back, and the exception goes on."""
    with as_user("alice"):
        with pytest.raises(error), as_user("bob"):
            raise error
        assert current_user() == "alice"
    assert current_user() is None


async def test_a_block_restores_after_a_cancellation() -> None:
    """A cancelled task leaves its own block and nobody else's."""
    seen: list[str | None] = []
    entered = asyncio.Event()

    async def work() -> None:
        try:
            with as_user("bob"):
                entered.set()
                await asyncio.sleep(60)
        finally:
            seen.append(current_user())

    with as_user("alice"):
        task = asyncio.create_task(work())
        await entered.wait()
        assert current_user() == "alice"
        task.cancel()
        await asyncio.wait([task])
        assert current_user() == "alice"
    assert seen == ["alice"]


async def test_a_store_for_a_user_ignores_the_current_one() -> None:
    """`for_user` reaches one user from anywhere, and changes nothing of who is bound."""
    alice = for_user("alice")
    await alice.save("k", "alice's")
    with as_user("bob"):
        assert await alice.load("k") == "alice's"
        assert await user.load("k") is None
        await alice.namespace("n").save("k", "deep")
        assert user.id == "bob"
    with as_user("alice"):
        assert await user.namespace("n").load("k") == "deep"


async def test_a_verb_looks_the_user_up_when_it_is_awaited() -> None:
    """A namespace of `user` that was kept belongs to whoever is current, never to a past one."""
    with as_user("alice"):
        kept = user.namespace("n")
        await kept.save("k", "alice's")
    with as_user("bob"):
        assert await kept.load("k") is None
        await kept.save("k", "bob's")
    assert await for_user("alice").namespace("n").load("k") == "alice's"
    assert await for_user("bob").namespace("n").load("k") == "bob's"


# --- Nobody

ASYNC_VERBS: dict[str, Callable[[Any], Any]] = {
    "save": lambda s: s.save("k", 1),
    "load": lambda s: s.load("k"),
    "load with a default": lambda s: s.load("k", 7, type=int),
    "exists": lambda s: s.exists("k"),
    "delete": lambda s: s.delete("k"),
    "pop": lambda s: s.pop("k"),
    "create": lambda s: s.create("k", 1),
    "load_or_create": lambda s: s.load_or_create("k", lambda: 1),
    "expire": lambda s: s.expire("k", 60),
    "info": lambda s: s.info("k"),
    "modify": lambda s: s.modify("k", lambda _: 1),
    "increment": lambda s: s.increment("n"),
    "load_many": lambda s: s.load_many(["k"]),
    "load_many of nothing": lambda s: s.load_many([]),
    "save_many": lambda s: s.save_many({"k": 1}),
    "save_many of nothing": lambda s: s.save_many({}),
    "delete_many": lambda s: s.delete_many(["k"]),
    "delete_many of nothing": lambda s: s.delete_many([]),
    "keys": lambda s: s.keys(),
    "items": lambda s: s.items(),
    "count": lambda s: s.count(),
    "clear": lambda s: s.clear("k"),
    "clear_all": lambda s: s.clear_all(),
    "namespaces": lambda s: s.namespaces(),
}
# Their first use is at the call, before there is anything to await.
OTHER_VERBS: dict[str, Callable[[Any], Any]] = {
    "scan": lambda s: s.scan(),
    "edit": lambda s: s.edit("k", []),
}


@pytest.mark.parametrize("verb", ASYNC_VERBS.values(), ids=ASYNC_VERBS)
@pytest.mark.parametrize("below", ["", "x", "x/y"])
async def test_no_verb_of_user_works_for_nobody(verb: Any, below: str, home: Path) -> None:
    """Each verb raises, in namespaces too, with a message that says what to do."""
    whose: Any = user
    for name in filter(None, below.split("/")):
        whose = whose.namespace(name)
    with as_user("alice"), as_user(None), pytest.raises(NoUserError):
        await verb(whose)
    with pytest.raises(NoUserError, match=r"as_user.*for_user") as caught:
        await verb(whose)
    assert isinstance(caught.value, RuntimeError)
    assert "middleware" in str(caught.value)
    assert not home.exists()  # noqa: ASYNC240  # nothing else is running
    with as_user("alice"):
        await verb(whose)
    with pytest.raises(NoUserError):
        await verb(whose)


def test_every_verb_of_user_is_in_the_table() -> None:
    """No verb is forgotten above: a new one is added there with its first commit."""
    verbs = {name for name, _ in inspect.getmembers(User, inspect.iscoroutinefunction)}
    assert verbs == {label.split()[0] for label in ASYNC_VERBS}
    methods = {name for name, _ in inspect.getmembers(User, inspect.isfunction) if name[0] != "_"}
    assert methods - verbs == {*OTHER_VERBS, "namespace"}


@pytest.mark.parametrize("verb", OTHER_VERBS.values(), ids=OTHER_VERBS)
@pytest.mark.parametrize("below", ["", "x/y"])
async def test_scan_and_edit_raise_for_nobody_at_the_call(
    verb: Any, below: str, home: Path
) -> None:
    """They raise where they are called, not only where they are used."""
    whose: Any = user
    for name in filter(None, below.split("/")):
        whose = whose.namespace(name)
    with as_user("alice"), as_user(None), pytest.raises(NoUserError):
        verb(whose)
    with pytest.raises(NoUserError, match=r"as_user.*for_user"):
        verb(whose)
    assert not home.exists()  # noqa: ASYNC240  # nothing else is running
    with as_user("alice"):
        verb(whose)


async def save_for_two() -> None:
    """Store something for alice and for bob, under the same keys."""
    for name in ("alice", "bob"):
        await for_user(name).save_many({f"k{number}": name for number in range(250)})


@pytest.mark.parametrize("other", ["bob", None])
async def test_a_scan_is_of_the_user_who_called_it(other: str | None) -> None:
    """Whoever is bound where it is consumed, it gives the data of the caller alone."""
    await save_for_two()
    expected = {f"k{number}": "alice" for number in range(250)}
    with as_user("alice"):
        here, there, split = user.scan(), user.scan(), user.scan("k")
        begun = {key: value async for key, value in _first(split, 3)}

    async def consume() -> dict[str, Any]:
        with as_user(other):
            return {key: value async for key, value in there}

    with as_user(other):
        assert {key: value async for key, value in here} == expected
        begun.update({key: value async for key, value in split})
        assert current_user() == other
    assert begun == expected
    empty = contextvars.Context()
    assert await asyncio.create_task(consume(), context=empty) == expected


async def _first(pairs: AsyncIterator[Any], count: int) -> AsyncIterator[Any]:
    for _ in range(count):
        yield await anext(pairs)


@pytest.mark.parametrize("other", ["bob", None])
async def test_an_edit_is_of_the_user_who_called_it(other: str | None) -> None:
    """Entered and left with another user bound, or none, it changes the caller's value."""
    for name in ("alice", "bob"):
        await for_user(name).save("todos", [name])
    with as_user("alice"):
        here, there = user.edit("todos"), user.edit("todos")

    async def change() -> None:
        async with there as todos:
            todos.append("there")

    with as_user(other):
        async with here as todos:
            assert current_user() == other
            todos.append("here")
        await asyncio.create_task(change(), context=contextvars.Context())
    assert await for_user("alice").load("todos") == ["alice", "here", "there"]
    assert await for_user("bob").load("todos") == ["bob"]


async def test_an_edit_stays_its_users_when_another_is_bound_inside() -> None:
    """What is bound inside the block changes nothing of whose value is stored at its end."""
    with as_user("alice"):
        async with user.edit("todos", []) as todos:
            with as_user("bob"):
                todos.append(user.id)
                await user.save("todos", "bob's")
    assert await for_user("alice").load("todos") == ["bob"]
    assert await for_user("bob").load("todos") == "bob's"


async def test_functions_given_to_a_verb_run_as_its_caller() -> None:
    """`modify` and `load_or_create` run what they are given with the caller bound."""

    async def make() -> str:
        await asyncio.sleep(0)
        return user.id

    async def both(name: str) -> tuple[str, str, str]:
        with as_user(name):
            made = await user.load_or_create("made", make)
            return await user.modify("k", lambda _: user.id), await user.load("k"), made

    names = [f"user {number}" for number in range(20)]
    found = await asyncio.gather(*map(both, names))
    assert found == [(name, name, name) for name in names]


def test_nobody_has_no_id_and_no_folder(home: Path) -> None:
    """`id` and `folder` raise the same, in namespaces too, and nothing is made."""
    for whose in [user, user.namespace("x"), user.namespace("x").namespace("y")]:
        for name in ["id", "folder"]:
            with pytest.raises(NoUserError, match=r"as_user.*for_user"):
                getattr(whose, name)
    assert not home.exists()


def test_nobody_can_still_be_asked_about() -> None:
    """`current_user`, `namespace` and `repr` need nobody."""
    assert current_user() is None
    assert isinstance(user.namespace("x"), User)
    assert "User" in repr(user)


async def test_the_global_store_needs_nobody() -> None:
    """`store` is the same for all: with a user, with another, and with none."""
    await store.save("k", 1)
    with as_user("alice"):
        assert await store.load("k") == 1
        await store.save("k", 2)
    assert await store.load("k") == 2


def test_only_the_user_store_has_an_id() -> None:
    """`store` and `for_user(...)` are no `User`: an id is that of the current user."""
    assert not hasattr(store, "id")
    assert not hasattr(for_user("alice"), "id")


# --- Tasks and threads


async def test_a_task_keeps_the_user_it_was_started_with() -> None:
    """A task started inside a block has its user, also after the block has ended."""
    started = asyncio.Event()

    async def later() -> str:
        await started.wait()
        await user.save("k", user.id)
        return user.id

    with as_user("alice"):
        alice = asyncio.create_task(later())
    with as_user("bob"):
        bob = asyncio.create_task(later())
    nobody = asyncio.create_task(later())
    started.set()
    results = await asyncio.gather(alice, bob, nobody, return_exceptions=True)
    assert results[:2] == ["alice", "bob"]
    assert isinstance(results[2], NoUserError)
    assert await for_user("alice").load("k") == "alice"


async def test_what_a_task_binds_stays_in_the_task() -> None:
    """A block in a task is not seen by the one that started it."""

    async def bind() -> None:
        with as_user("bob"):
            await asyncio.sleep(0)
            assert user.id == "bob"

    with as_user("alice"):
        await asyncio.gather(bind(), bind())
        assert user.id == "alice"


async def test_to_thread_keeps_the_user() -> None:
    """`asyncio.to_thread` runs as the user that called it, for files and for a loop of its own."""

    def work() -> tuple[str, Path]:
        asyncio.run(user.save("k", "from a thread"))
        return user.id, user.folder

    with as_user("alice"):
        assert await asyncio.to_thread(work) == ("alice", user.folder)
        assert await user.load("k") == "from a thread"


async def test_other_threads_have_no_user() -> None:
    """`run_in_executor` and bare threads have no user and raise, rather than guess one."""
    seen: list[object] = []

    def work() -> None:
        try:
            seen.append(user.id)
        except NoUserError as error:
            seen.append(type(error))

    def empty() -> None:
        contextvars.Context().run(work)  # 3.14 may hand a thread its starter's context

    with as_user("alice"):
        with ThreadPoolExecutor(1) as pool:
            await asyncio.get_running_loop().run_in_executor(pool, work)
        thread = threading.Thread(target=empty)
        thread.start()
        thread.join()
        assert user.id == "alice"
    assert seen == [NoUserError, NoUserError]


async def test_fifty_users_at_once_never_see_each_other() -> None:
    """Whatever the order of 50 users' steps, each reads what it wrote and nothing else."""
    source = random.Random(7)  # noqa: S311  # not a secret

    async def live(name: str) -> None:
        with as_user(name):
            for step in range(6):
                where = user if step % 2 else user.namespace("n")
                await asyncio.sleep(source.random() / 200)
                stamp = {"name": name, "step": step}
                await where.save("k", stamp)
                await asyncio.sleep(source.random() / 200)
                assert await where.load("k") == stamp
                assert user.id == current_user() == name
            assert await user.delete("k")
            assert not await user.exists("k")

    names = [f"user {number}" for number in range(50)]
    await asyncio.gather(*map(live, names))
    assert current_user() is None
    for name in names:
        assert await for_user(name).namespace("n").load("k") == {"name": name, "step": 4}


async def test_one_user_in_two_tasks_is_one_user() -> None:
    """Two requests of one user share what is stored, whatever others do between."""

    async def write(name: str, key: str) -> None:
        with as_user(name):
            await user.save(key, f"{name} {key}")

    await asyncio.gather(write("alice", "a"), write("bob", "a"), write("alice", "b"))
    with as_user("alice"):
        assert [await user.load(key) for key in "ab"] == ["alice a", "alice b"]
    assert await for_user("bob").load("b") is None


# --- Nothing sticks

SHARED: dict[str, Any] = {
    "store": store,
    "user": user,
    "namespace of store": store.namespace("n"),
    "namespace of user": user.namespace("n"),
    "one user": for_user("alice"),
    "namespace of one user": for_user("alice").namespace("n"),
}
NAMES = ["theme", "id", "folder", "save", "load", "namespace", "_owner", "_namespace", "_x"]
NAMES += ["__dict__", "__class__", "__doc__", "__slots__"]


@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("name", NAMES)
async def test_nothing_can_be_left_on_what_is_shared(shared: Any, name: str) -> None:
    """Setting or deleting any attribute raises and says how to keep a value; nothing sticks."""
    missing = object()
    with as_user("bob"):
        before = getattr(shared, name, missing)
        with pytest.raises(AttributeError, match="save") as caught:
            setattr(shared, name, "left behind")
        assert "left behind" not in str(caught.value)
        with pytest.raises(AttributeError):
            delattr(shared, name)
        assert getattr(shared, name, missing) == before
        assert not hasattr(shared, "__dict__")
        await shared.save("k", 1)
        assert await shared.load("k") == 1
