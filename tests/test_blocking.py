"""The blocking door is the awaited one without the await, from any thread, to the end of it."""

import asyncio
import contextlib
import functools
import importlib.util
import inspect
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel
from tests.conftest import integrity

import cat
from cat import as_user, current_user
from cat.errors import (
    AlreadyConnectedError,
    CorruptValueError,
    InvalidArgumentError,
    InvalidKeyError,
    InvalidSettingError,
    InvalidUserError,
    InvalidValueError,
    KeyBusyError,
    KeyNotFoundError,
    NestedEditError,
    NotEditableError,
    NotWritableError,
    NoUserError,
    ReboundError,
    WouldBlockError,
)
from children import lock_holder, printed, python

PATIENCE = 20.0  # for what must happen; nothing waits so long unless it hangs


def stored(home: Path) -> dict[str, Any]:
    """Return what another program finds in the database."""
    with contextlib.closing(sqlite3.connect(home / "cat.db", timeout=1)) as connection:
        rows = connection.execute("SELECT key, value FROM entries").fetchall()
    return {key: json.loads(value) for key, value in rows}


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Call each in a thread of its own, all at once, and return what they return."""
    barrier = threading.Barrier(len(functions))

    def call(function: Callable[[], Any]) -> Any:
        barrier.wait(PATIENCE)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(call, functions))


# --- The same API.

TYPES = {"CatError", "Erased", "Export", "Info"}  # results, which nobody awaits


def told(member: object) -> list[str]:
    """Return the signatures of a function or class, and its overloads, as they would be awaited."""
    if isinstance(member, property):
        member = member.fget
    assert callable(member)
    signatures = [inspect.signature(f) for f in (*typing.get_overloads(member), member)]
    return [
        str(signature)
        .replace("AsyncIterator", "Iterator")
        .replace("AbstractAsyncContextManager", "AbstractContextManager")
        .replace("cat.blocking.", "cat.ambient.")
        for signature in signatures
    ]


def test_every_name_has_a_twin(door: ModuleType) -> None:
    """What `cat` offers to be awaited, `cat.blocking` offers too, and nothing else."""
    assert door.__all__ == sorted(set(cat.__all__) - TYPES)
    assert door.as_user is cat.as_user
    assert door.current_user is cat.current_user


FUNCTIONS = sorted(set(cat.__all__) - TYPES - {"Store", "User", "store", "user"})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_same_signature(name: str, door: ModuleType) -> None:
    """Each function takes what its twin takes, and returns what that is awaited for."""
    ours, theirs = getattr(door, name), getattr(cat, name)
    assert told(ours) == told(theirs)
    assert not inspect.iscoroutinefunction(ours)


@pytest.mark.parametrize("kind", ["Store", "User"])
def test_stores_have_the_same_verbs(kind: str, door: ModuleType) -> None:
    """Each verb and property is there, with its parameters, defaults, types and overloads."""
    ours, theirs = getattr(door, kind), getattr(cat, kind)
    public = [name for name in dir(theirs) if not name.startswith("_")]
    assert [name for name in dir(ours) if not name.startswith("_")] == public
    for name in public:
        our, their = inspect.getattr_static(ours, name), inspect.getattr_static(theirs, name)
        assert type(our) is type(their), name
        assert told(our) == told(their), name
        assert not inspect.iscoroutinefunction(our), name
        assert inspect.getdoc(our), name
    assert type(getattr(door, kind.lower())) is ours


def test_the_comparison_sees_overloads() -> None:
    """The overloads, which tell a type checker what `type=` returns, are compared too."""
    assert len(told(cat.Store.load)) > 5
    assert len(told(cat.Store.edit)) > 5


# --- Each verb works.


class Prefs(BaseModel):
    """A model."""

    volume: int = 1


def edited(store: Any, key: str, *default: Any, **named: Any) -> None:
    """Append to a list in an edit."""
    with store.edit(key, *default, **named) as value:
        value.append(1)


VERBS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "save": (lambda s: s.save("new", {"a": [1, 2.0]}), {"a": [1, 2.0]}),
    "save with an expiry": (lambda s: s.save("new", 1, expires_in=timedelta(hours=1)), 1),
    "load": (lambda s: s.load("list"), [0]),
    "load what is not there": (lambda s: s.load("new", "default"), "default"),
    "load by type": (lambda s: s.load("model", type=Prefs), Prefs(volume=7)),
    "exists": (lambda s: s.exists("list"), True),
    "delete": (lambda s: s.delete("list"), True),
    "pop": (lambda s: s.pop("list"), [0]),
    "pop what is not there": (lambda s: s.pop("new", 5), 5),
    "create": (lambda s: s.create("new", 1, expires_in=60), True),
    "create what is there": (lambda s: s.create("list", 1), False),
    "load_or_create": (lambda s: s.load_or_create("new", lambda: [3], expires_in=60), [3]),
    "expire": (lambda s: s.expire("list", 60), True),
    "expire never": (lambda s: s.expire("list", expires_in=None), True),
    "info": (lambda s: s.info("list").size, 3),
    "edit": (lambda s: (edited(s, "list"), s.load("list")), (None, [0, 1])),
    "edit what is not there": (lambda s: (edited(s, "new", []), s.load("new")), (None, [1])),
    "modify": (lambda s: s.modify("list", lambda v: [*v, 9]), [0, 9]),
    "modify what is not there": (lambda s: s.modify("new", lambda v: v + 1, default=1), 2),
    "increment": (lambda s: s.increment("new"), 1),
    "increment by": (lambda s: s.increment("number", by=-3, expires_in=60), 4),
    "load_many": (lambda s: s.load_many(["number", "new", "list"]), {"number": 7, "list": [0]}),
    "save_many": (lambda s: s.save_many({"a": 1, "b": 2}, expires_in=60), None),
    "delete_many": (lambda s: s.delete_many(["list", "new"]), 1),
    "keys": (lambda s: s.keys(), ["list", "model", "number"]),
    "keys in pages": (lambda s: s.keys("", after="list", limit=1), ["model"]),
    "scan": (lambda s: list(s.scan("li")), [("list", [0])]),
    "items": (lambda s: s.items("n"), {"number": 7}),
    "count": (lambda s: s.count(), 3),
    "clear": (lambda s: (s.clear("l"), s.keys()), (1, ["model", "number"])),
    "clear_all": (lambda s: (s.clear_all(), s.keys()), (3, [])),
    "namespaces": (lambda s: (s.namespace("n").save("k", 1), s.namespaces()), (1, ["n"])),
    "namespace": (lambda s: (s.namespace("n").save("list", 1), s.load("list")), (1, [0])),
    "folder": (lambda s: s.folder.is_dir(), True),
}


def test_every_verb_is_in_the_table(door: ModuleType) -> None:
    """No verb is forgotten: a new one is added above with its first commit."""
    public = {name for name in dir(door.Store) if not name.startswith("_")}
    assert {label.split()[0] for label in VERBS} == public


def scopes(door: ModuleType) -> dict[str, Any]:
    """Return a store of each kind."""
    return {
        "store": door.store,
        "user": door.user,
        "for_user": door.for_user("bob"),
        "namespace of store": door.store.namespace("x"),
        "namespace of user": door.user.namespace("x").namespace("y"),
    }


@pytest.mark.parametrize("label", VERBS)
def test_every_verb_works(label: str, door: ModuleType) -> None:
    """Each verb does what its twin does, in each kind of scope."""
    verb, expected = VERBS[label]
    for scope in scopes(door).values():
        with as_user("alice"):
            scope.save_many({"list": [0], "number": 7, "model": Prefs(volume=7)})
            assert verb(scope) == expected


def test_values_are_those_of_the_awaited_door(door: ModuleType) -> None:
    """What one door stores the other loads, with its type and in its scope; so are the folders."""
    value = {"int": 9, "float": 9.0, "text": "é", "nothing": None, "list": [True, {}]}
    with as_user("alice"):
        for name, scope in scopes(door).items():
            awaited: Any = cat.store if "store" in name else cat.user
            if name == "for_user":
                awaited = cat.for_user("bob")
            for below in name.split()[:-1] and {"store": "x", "user": "xy"}[name.split()[-1]]:
                awaited = awaited.namespace(below)
            asyncio.run(awaited.save("theirs", value))
            assert scope.load("theirs") == value
            scope.save("ours", value)
            assert asyncio.run(awaited.load("ours")) == value
            assert sorted(scope.keys()) == ["ours", "theirs"]
            assert scope.folder == awaited.folder


def test_functions_of_the_module(home: Path) -> None:
    """`users`, `export_user`, `erase_user` and `erase_namespace` do what their twins do."""
    said = printed(  # in a process of its own, as the pool of `asyncio.to_thread` stays
        """
        from cat import blocking
        from cat.blocking import for_user

        for_user("alice").save("k", 1)
        for_user(7).namespace("n").save("k", 2)
        (for_user("alice").folder / "file").write_text("x")
        print(blocking.users())
        export = blocking.export_user("alice")
        print(export.user, export.entries, [file.name for file in export.files])
        print(blocking.erase_namespace("n").entries)
        erased = blocking.erase_user("alice")
        print(erased.entries, erased.files, blocking.users())
        """
    )
    assert said.splitlines() == [
        "['7', 'alice']",
        "alice {'': {'k': 1}} ['file']",
        "1",
        "1 1 []",
    ]


ERRORS: dict[str, tuple[Callable[[ModuleType], Any], type[Exception]]] = {
    "key": (lambda b: b.store.save("", 1), InvalidKeyError),
    "type": (lambda b: (b.store.save("k", "x"), b.store.load("k", type=int)), InvalidValueError),
    "prefix": (lambda b: b.store.scan(5), InvalidArgumentError),
    "clear": (lambda b: b.store.clear(""), InvalidArgumentError),
    "nobody": (lambda b: b.user.load("k"), NoUserError),
    "nobody's id": (lambda b: b.user.id, NoUserError),
    "nobody's folder": (lambda b: b.user.namespace("n").folder, NoUserError),
    "nobody's scan": (lambda b: b.user.scan(), NoUserError),
    "nobody's edit": (lambda b: edited(b.user, "k", []), NoUserError),
    "no user": (lambda b: b.for_user(2.5), InvalidUserError),
    "edit of nothing": (lambda b: edited(b.store, "k"), KeyNotFoundError),
    "edit of a number": (lambda b: (b.store.save("k", 1), edited(b.store, "k")), NotEditableError),
    "edit by type": (
        lambda b: (b.store.save("k", [""]), edited(b.store, "k", type=list[int])),
        InvalidValueError,
    ),
}


@pytest.mark.parametrize("label", ERRORS)
def test_errors_are_those_of_the_awaited_door(label: str, door: ModuleType) -> None:
    """What a verb raises comes out of it, and the next one works, on the same key too."""
    verb, error = ERRORS[label]
    with pytest.raises(error):
        verb(door)
    assert door.store.save("k", [2]) == [2]
    edited(door.store, "k")
    assert door.store.load("k") == [2, 1]


# --- What is shared.


def test_nothing_can_be_left_on_a_store(door: ModuleType) -> None:
    """Setting or deleting an attribute raises and says what to do instead, with no `await`."""
    for scope in scopes(door).values():
        for name in ("theme", "save", "folder", "_store", "__dict__", "__class__"):
            with pytest.raises(AttributeError, match=r"save\(") as caught:
                setattr(scope, name, "left behind")
            assert "left behind" not in str(caught.value)
            assert "await" not in str(caught.value)
            with pytest.raises(AttributeError):
                delattr(scope, name)
        assert not hasattr(scope, "__dict__")
    assert door.store.save("k", 1) == 1


def test_a_repr_tells_the_doors_apart(door: ModuleType) -> None:
    """A store says which door it is of, which namespace, and no user."""
    assert repr(door.store) == "<cat.blocking.Store>"
    assert repr(door.store.namespace("a").namespace("b")) == (
        "<cat.blocking.Store namespace 'a/b'>"
    )
    with as_user("alice"):
        assert repr(door.user) == "<cat.blocking.User>"
    assert repr(door.for_user("alice")) == "<cat.blocking.Store>"


def test_a_namespace_is_of_the_same_kind(door: ModuleType) -> None:
    """A namespace of `user` is a `User` with an id; `store` and `for_user` have none."""
    with as_user("alice"):
        assert door.user.namespace("n").namespace("m").id == door.user.id == "alice"
    assert not hasattr(door.store, "id")
    assert not hasattr(door.for_user("alice"), "id")
    assert isinstance(door.store.namespace("n"), door.Store)


# --- Whose.


def test_the_user_is_that_of_the_calling_thread(door: ModuleType) -> None:
    """`as_user` around a verb counts at the moment of the verb, and ends with its block."""
    kept = door.user.namespace("n")
    with as_user("alice"):
        kept.save("k", "alice's")
        with as_user("bob"):
            assert kept.load("k") is None
            kept.save("k", "bob's")
            with as_user(None), pytest.raises(NoUserError):
                kept.load("k")
        assert kept.load("k") == "alice's"
    with pytest.raises(NoUserError):
        kept.load("k")
    assert door.for_user("bob").namespace("n").load("k") == "bob's"


def test_a_store_made_under_a_user_is_used_under_it(door: ModuleType) -> None:
    """An edit and a scan are of the user at the call, as those of the awaited door."""
    with as_user("alice"):
        door.user.save("k", [])
        edit, scan = door.user.edit("k"), door.user.scan()
    with as_user("bob"):
        with edit as value:
            value.append("alice's")
        assert list(scan) == [("k", ["alice's"])]
        assert door.user.count() == 0


def test_other_threads_have_nobody(door: ModuleType) -> None:
    """Bare threads and pools raise rather than guess; `asyncio.to_thread` keeps the user."""
    seen: list[object] = []

    def work() -> None:
        try:
            seen.append(door.user.increment("n"))
        except NoUserError as error:
            seen.append(type(error))

    with as_user("alice"):
        import contextvars

        # 3.14 may hand a thread its starter's context
        thread = threading.Thread(target=contextvars.Context().run, args=(work,))
        thread.start()
        thread.join(PATIENCE)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(contextvars.Context().run, work).result(PATIENCE)
        asyncio.run(asyncio.to_thread(work))
        assert door.user.load("n") == 1
    assert seen == [NoUserError, NoUserError, 1]


def test_threads_have_users_of_their_own(door: ModuleType) -> None:
    """Twenty threads with a user each never see another's value."""

    def live(name: str) -> None:
        source = random.Random(name)  # noqa: S311  # not a secret
        with as_user(name):
            for step in range(10):
                door.user.save("k", [name, step])
                time.sleep(source.random() / 500)
                assert door.user.load("k") == [name, step]
                assert door.user.modify("m", lambda old: [current_user(), *(old or [])])[0] == name
            with door.user.edit("e", []) as value:
                value.append(current_user())
            assert door.user.load("e") == [name]

    together(*(functools.partial(live, f"user {n}") for n in range(20)))
    assert len(door.users()) == 20


# --- Many threads at once.


def test_increments_of_many_threads_add_up(door: ModuleType) -> None:
    """Twenty threads, from the first verb on, count to a thousand with no number twice."""

    def count() -> list[int]:
        return [door.store.increment("n") for _ in range(50)]

    numbers = together(*[count] * 20)
    assert sorted(n for some in numbers for n in some) == list(range(1, 1001))
    assert all(some == sorted(some) for some in numbers)


def test_edits_and_modifies_of_many_threads_lose_nothing(door: ModuleType) -> None:
    """Threads that edit and modify one list leave every item of every one."""

    def edit(name: int) -> None:
        for number in range(15):
            with door.store.edit("list", default=[]) as value:
                value.append([name, number])

    def modify(name: int) -> None:
        for number in range(15):
            door.store.modify("list", lambda v, n=number: [*v, [name, n]], default=[])

    together(*(functools.partial(edit if n % 2 else modify, n) for n in range(8)))
    assert sorted(door.store.load("list")) == [[n, k] for n in range(8) for k in range(15)]


def test_a_factory_runs_once_for_all_threads(door: ModuleType) -> None:
    """Of the threads that ask at once, one has the value made, plain or async, and all get it."""
    for key, plain in (("plain", True), ("async", False)):
        made: list[int] = []

        async def factory(made: list[int] = made) -> str:
            made.append(1)
            await asyncio.sleep(0.1)
            return "t0ken"

        def plainly(made: list[int] = made) -> str:
            made.append(1)
            return "t0ken"

        ask = functools.partial(door.store.load_or_create, key, plainly if plain else factory)
        assert together(*[ask] * 8) == ["t0ken"] * 8
        assert made == [1]


def test_two_threads_edits_of_one_key_wait_for_each_other(door: ModuleType) -> None:
    """The second edit begins when the first has ended, with what that one left."""
    entered, order = threading.Event(), []

    def second() -> None:
        assert entered.wait(PATIENCE)
        with door.store.edit("k") as value:
            order.append("second")
            value.append(2)

    thread = threading.Thread(target=second)
    thread.start()
    with door.store.edit("k", []) as value:
        entered.set()
        thread.join(0.3)
        assert thread.is_alive()
        value.append(1)
        order.append("first")
    thread.join(PATIENCE)
    assert order == ["first", "second"]
    assert door.store.load("k") == [1, 2]


def test_edits_of_two_keys_do_not_wait(door: ModuleType) -> None:
    """While one thread is inside an edit, another uses all other keys, and reads that one."""
    door.store.save("k", [0])
    with door.store.edit("k") as value, ThreadPoolExecutor(1) as pool:
        value.append(1)
        assert pool.submit(door.store.load, "k").result(PATIENCE) == [0]
        pool.submit(edited, door.store, "other", []).result(PATIENCE)
    assert door.store.load("k") == [0, 1]
    assert door.store.load("other") == [1]


def test_waiting_for_a_key_ends(door: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for another's edit raises after `CAT_TIMEOUT`, and that one goes on."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.3")
    with door.store.edit("k", []) as value, ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyBusyError):
            pool.submit(edited, door.store, "k", []).result(PATIENCE)
        value.append("kept")
    assert door.store.load("k") == ["kept"]


# --- Edits.


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), StopIteration(3), GeneratorExit(), KeyboardInterrupt(), SystemExit(2)],
)
def test_an_exception_in_an_edit_stores_nothing(error: BaseException, door: ModuleType) -> None:
    """What leaves the block goes on as it is, the value stays, and the key is free."""
    door.store.save("k", [0])
    with pytest.raises(type(error)) as caught, door.store.edit("k") as value:  # noqa: PT012
        value.append(1)
        raise error
    assert caught.value is error
    assert door.store.load("k") == [0]
    edited(door.store, "k")
    assert door.store.load("k") == [0, 1]


def test_an_edit_whose_value_is_rebound_raises(door: ModuleType) -> None:
    """An assignment to the name of the value is found out, and a change in place is not."""
    door.store.save("k", [0])
    for _ in range(20):
        with pytest.raises(ReboundError), door.store.edit("k") as value:
            value = [1]  # noqa: PLW2901  # the mistake
        with door.store.edit("k") as value:
            value[:] = [0]
        with door.store.edit("k") as _:
            pass
    assert door.store.load("k") == [0]


def test_a_change_inside_an_edit_of_its_key_raises(door: ModuleType) -> None:
    """In one thread, what would wait for its own edit is told at once, and the edit goes on."""
    with door.store.edit("k", []) as value:
        for change in (
            lambda: edited(door.store, "k", []),
            lambda: door.store.modify("k", lambda v: v, default=[]),
            lambda: door.store.increment("k"),
        ):
            with pytest.raises(NestedEditError):
                change()
        edited(door.store, "other", [])
        value.append("kept")
    assert door.store.load("k") == ["kept"]


def test_an_edit_of_a_model(door: ModuleType) -> None:
    """With `type=` a model is given, checked and stored."""
    with door.store.edit("prefs", Prefs(), type=Prefs) as prefs:
        prefs.volume += 10
    assert door.store.load("prefs", type=Prefs) == Prefs(volume=11)


def test_what_ends_a_program_in_a_function_ends_only_its_caller(door: ModuleType) -> None:
    """`SystemExit` and the like, raised by what is given to a verb, come out of that verb alone."""
    door.store.save("k", 1)
    for error in (SystemExit(3), KeyboardInterrupt(), ValueError("x"), GeneratorExit()):

        def fail(*_: object, error: BaseException = error) -> Any:
            raise error

        for verb in (
            lambda f: door.store.modify("k", f),
            lambda f: door.store.load_or_create("n", f),
        ):
            with pytest.raises(type(error)):
                verb(fail)
        assert door.store.increment("k") > 1


# --- Scans.


def test_a_scan_of_many_pages(door: ModuleType) -> None:
    """A scan yields every pair once and in order, however many there are, to any thread."""
    expected = {f"k{n:05}": {"n": n} for n in range(2_500)}
    door.store.save_many(expected)
    assert list(door.store.scan()) == list(expected.items())
    scan = door.store.scan("k01")
    first = next(scan)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, scan).result(PATIENCE)
    assert [first, *rest] == [pair for pair in expected.items() if pair[0].startswith("k01")]


def test_a_scan_that_is_broken_off(door: ModuleType) -> None:
    """Nothing is held by a scan that is left in its middle, kept or dropped."""
    door.store.save_many({f"k{n:05}": n for n in range(500)})
    kept = door.store.scan()
    for number, pair in enumerate(kept):
        assert pair == (f"k{number:05}", number)
        if number == 250:
            break
    for _ in range(3):
        assert next(door.store.scan()) == ("k00000", 0)
    assert door.store.clear("k") == 500
    edited(door.store, "k", [])
    assert len(list(kept)) < 250


def test_a_scan_that_meets_what_is_no_json(door: ModuleType, home: Path) -> None:
    """A scan yields what comes before the damage, raises there, and has ended."""
    door.store.save_many({f"k{n}": n for n in range(6)})
    with contextlib.closing(sqlite3.connect(home / "cat.db", timeout=10)) as other:
        other.execute("UPDATE entries SET value = '{' WHERE key = 'k3'")
        other.commit()
    scan = door.store.scan()
    assert [next(scan) for _ in range(3)] == [("k0", 0), ("k1", 1), ("k2", 2)]
    with pytest.raises(CorruptValueError):
        next(scan)
    assert list(scan) == []


# --- Where it would block.

BLOCKING: dict[str, Callable[[ModuleType], Any]] = {
    **{label: lambda b, verb=verb: verb(b.store) for label, (verb, _) in VERBS.items()},
    "users": lambda b: b.users(),
    "export_user": lambda b: b.export_user("alice"),
    "erase_user": lambda b: b.erase_user("alice"),
    "erase_namespace": lambda b: b.erase_namespace("n"),
    "connect": lambda b: b.connect().__enter__(),
}


async def test_inside_a_running_loop_every_verb_raises(door: ModuleType, home: Path) -> None:
    """Where it would stop the loop, each verb raises at once, says to await, and does nothing."""
    for verb in BLOCKING.values():
        with pytest.raises(WouldBlockError, match="await") as caught:
            verb(door)
        assert isinstance(caught.value, RuntimeError)
        assert caught.value.not_stored
    assert not home.exists()  # noqa: ASYNC240  # nothing else is running
    await cat.store.save("k", 1)
    assert await asyncio.to_thread(door.store.increment, "k") == 2


@pytest.mark.parametrize("label", BLOCKING)
def test_inside_a_function_given_to_a_verb_every_verb_raises(label: str, door: ModuleType) -> None:
    """What runs on the private loop itself would wait for itself, and is told so."""

    def plain(*_: object) -> Any:
        BLOCKING[label](door)

    async def coroutine() -> Any:
        BLOCKING[label](door)

    for verb in (
        lambda: door.store.modify("k", plain),
        lambda: door.store.load_or_create("k", plain),
        lambda: door.store.load_or_create("k", coroutine),
    ):
        with pytest.raises(WouldBlockError):
            verb()
    assert door.store.increment("k") == 1


def test_an_async_factory_may_await_the_store(door: ModuleType) -> None:
    """A factory that is a coroutine function awaits `cat.store`, as the caller's user."""

    async def factory() -> str | None:
        await cat.store.save("from the factory", 1)
        return await cat.user.load("name")

    with as_user("alice"):
        door.user.save("name", "Alice")
        assert door.store.load_or_create("k", factory) == "Alice"
    assert door.store.load("from the factory") == 1


def test_a_factory_that_asks_for_its_own_key(door: ModuleType) -> None:
    """It is told, rather than left waiting for itself."""

    async def factory() -> Any:
        return await cat.store.load_or_create("k", factory)

    with pytest.raises(InvalidArgumentError, match="itself"):
        door.store.load_or_create("k", factory)


async def test_in_a_thread_beside_a_running_loop(door: ModuleType) -> None:
    """As in a notebook: the main thread's loop goes on while a worker's verbs wait."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    def work() -> list[int]:
        numbers = [door.user.increment("n") for _ in range(100)]
        edited(door.store, "list", [])
        return numbers

    ticking = asyncio.create_task(tick())
    with as_user("alice"):
        assert await asyncio.to_thread(work) == list(range(1, 101))
        assert await cat.user.load("n") == 100
    assert await cat.store.load("list") == [1]
    assert ticks > 2
    ticking.cancel()


async def test_edits_of_both_doors_wait_for_each_other(door: ModuleType) -> None:
    """An awaited edit and a blocking one of the same key, in one process, lose nothing."""

    def work() -> None:
        for _ in range(20):
            edited(door.store, "k", [])

    async def awaited() -> None:
        for _ in range(20):
            async with cat.store.edit("k", []) as value:
                value.append(2)

    await asyncio.gather(asyncio.to_thread(work), awaited(), asyncio.to_thread(work))
    assert sorted(await cat.store.load("k")) == [1] * 40 + [2] * 20


# --- Another home.


def test_connect_binds_the_stores_of_every_thread(door: ModuleType, tmp_path: Path) -> None:
    """Inside the block all threads use its home, and after it the environment's again."""
    door.store.save("k", "environment")
    asyncio.run(cat.store.save("k", "environment"))
    cat.context.close_idle()
    other = tmp_path / "other"
    with door.connect(home=other):
        assert door.store.load("k") is None
        door.store.save("k", "other")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(door.store.load, "k").result(PATIENCE) == "other"
            assert pool.submit(lambda: door.store.folder).result(PATIENCE).is_relative_to(other)
        with door.connect(home=other):
            assert door.store.load("k") == "other"
        assert door.store.load("k") == "other"
    assert stored(other) == {"k": "other"}
    assert not (other / "cat.db-wal").exists()
    assert door.store.load("k") == "environment"
    assert not door.store.folder.is_relative_to(other)


def test_connect_by_url(door: ModuleType, home: Path, tmp_path: Path) -> None:
    """A URL names the database, and the home stays that of the environment."""
    with door.connect(url=f"sqlite:///{tmp_path / 'elsewhere.db'}"):
        door.store.save("k", 1)
        assert door.store.folder.is_relative_to(home)
    assert (tmp_path / "elsewhere.db").is_file()
    assert not (home / "cat.db").exists()


def test_connect_fails_as_the_awaited_one(door: ModuleType, tmp_path: Path) -> None:
    """A bad setting, an impossible place, another home in use: each raises, and nothing sticks."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSettingError), door.connect(url="nonsense"):
        pass
    with pytest.raises(NotWritableError), door.connect(home=tmp_path / "file" / "x"):
        pass
    door.store.save("k", 1)
    with pytest.raises(AlreadyConnectedError), door.connect(home=tmp_path / "other"):
        pass
    assert door.store.load("k") == 1
    cat.context.close_idle()
    with door.connect(home=tmp_path / "other"):
        with pytest.raises(AlreadyConnectedError), door.connect(home=tmp_path / "third"):
            pass
        assert door.store.load("k") is None
    assert door.store.load("k") == 1


def test_connect_leaves_exceptions_alone(door: ModuleType, tmp_path: Path) -> None:
    """What the block raises goes on, and the database is closed."""
    with pytest.raises(ZeroDivisionError), door.connect(home=tmp_path / "other"):
        door.store.save("k", 1 // door.store.load("none", 0))
    assert not (tmp_path / "other" / "cat.db-wal").exists()


# --- A process of its own.

PROGRAM = """
import asyncio, atexit, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)

def tell(line):
    os.write(1, f"{line}\\n".encode())
"""
IMPORT = """
import cat
from cat.blocking import as_user, connect, store, user

def some():
    for n in range(20):
        store.save(f"some{n}", 1)
        tell(f"some{n}")
    store.save("large", "x" * 400_000)
    assert len(store.load("large")) == 400_000

def busy():
    n = 0
    while True:
        store.save(f"busy{threading.get_ident()}.{n}", 1)
        tell(f"busy{threading.get_ident()}.{n}")
        n += 1
"""


def test_the_import_does_nothing(home: Path) -> None:
    """To import starts no thread, makes no loop and touches no file."""
    said = printed(
        """
        import asyncio, threading
        asyncio.new_event_loop = None
        from cat.blocking import store, user, for_user, as_user, connect
        store.namespace("n"), for_user("alice"), connect(), repr(user)
        print(threading.active_count())
        """
    )
    assert said == "1\n"
    assert not home.exists()


def test_one_line_of_a_shell(home: Path) -> None:
    """`python -c` is enough, with the data where the environment says, or in `./data`."""
    line = "from cat.blocking import store; print(store.increment('n'))"
    assert [printed(line) for _ in range(3)] == ["1\n", "2\n", "3\n"]
    clean = {"PATH": os.environ["PATH"]}
    assert printed(line, cwd=home, env=clean) == "1\n"
    assert (home / "data" / "cat.db").is_file()


ENDINGS = {
    "the end of the script": ("some()", 0, ""),
    "a failure": ("some()\nraise ValueError('of its own')", 1, "ValueError: of its own"),
    "sys.exit inside connect and an edit": (
        """
some()
with connect(), store.edit("edited", []) as value:
    value.append(1)
    sys.exit(3)
""",
        3,
        "",
    ),
    "connect entered and never left": ("c = connect(); c.__enter__(); some()", 0, ""),
    "an edit entered and never left": ("e = store.edit('k', []); v = e.__enter__(); some()", 0, ""),
    "a scan in its middle": (
        "some()\nscan = store.scan(); next(scan); other = store.scan(); next(other); del other",
        0,
        "",
    ),
    "daemon threads that are busy": (
        """
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
some()
time.sleep(0.2)
""",
        0,
        "",
    ),
    "daemon threads that wait": (
        """
def wait():
    with store.edit("k", []) as value:
        time.sleep(60)
for _ in range(2):
    threading.Thread(target=wait, daemon=True).start()
async def slow():
    await asyncio.sleep(60)
threading.Thread(target=store.load_or_create, args=("slow", slow), daemon=True).start()
some()
time.sleep(0.2)
""",
        0,
        "",
    ),
    "a thread that is waited for": ("some()\nthreading.Thread(target=some).start()", 0, ""),
    "an exit handler that stores": (
        "atexit.register(lambda: (store.save('last', 1), tell('last')))\nsome()",
        0,
        "",
    ),
    "a loop beside it": (
        """
import cat
async def main():
    await cat.store.save("awaited", 1)
    await asyncio.to_thread(some)
    tell("awaited")
asyncio.run(main())
""",
        0,
        "",
    ),
    "nothing at all": ("tell('')", 0, ""),
}


@pytest.mark.parametrize("label", ENDINGS)
def test_a_process_that_never_closes(label: str, home: Path) -> None:
    """A process that just ends does so by itself, quietly, and all it was told is kept."""
    code, status, complaint = ENDINGS[label]
    started = time.monotonic()
    done = python(PROGRAM + IMPORT + code, timeout=60)
    assert time.monotonic() - started < 40
    assert done.returncode == status, done.stderr
    if complaint:
        assert done.stderr.splitlines()[-1] == complaint
        assert done.stderr.count("Traceback") == 1
    else:
        assert done.stderr == ""
    if label != "nothing at all":
        assert set(done.stdout.split()) <= set(stored(home))
        assert "some19" in done.stdout
        assert integrity(home / "cat.db") == "ok"


def test_an_exit_handler_of_before_the_import(home: Path) -> None:
    """A handler that was registered first, and so runs last, stores too, or says that it cannot."""
    handler = """
def last():
    try:
        from cat.blocking import store
        tell("last" if store.save("last", 1) else "")
    except RuntimeError as error:  # Python 3.12 and later start no thread so late
        tell("refused" if "interpreter shutdown" in str(error) else error)
atexit.register(last)
"""
    done = python(PROGRAM + handler + IMPORT + "some()", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    last = done.stdout.split()[-1]
    assert last == "refused" or last in stored(home)
    assert last == "last" or sys.version_info >= (3, 12)


def test_a_function_that_never_returns_does_not_hold_the_end(home: Path) -> None:
    """The process waits a few seconds for the private loop, and goes."""
    code = """
store.save("k", 1)
threading.Thread(
    target=store.modify, args=("k", lambda v: time.sleep(60)), daemon=True
).start()
time.sleep(0.5)
"""
    started = time.monotonic()
    done = python(PROGRAM + IMPORT + code, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 40
    assert stored(home) == {"k": 1}


STRACE = shutil.which("strace")


@pytest.mark.skipif(STRACE is None, reason="needs strace, to see syncs")
def test_what_is_not_synced_is_synced_at_the_end(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With CAT_DURABILITY=interval the end of the process syncs what was stored just before."""
    monkeypatch.setenv("CAT_DURABILITY", "interval")
    trace = tmp_path / "trace"
    options = ["-f", "-qq", "-ttt", "-o", str(trace), "-P", str(home / "cat.db-wal")]
    strace = [str(STRACE), *options, "-e", "trace=fdatasync,fsync"]
    if subprocess.run([*strace, "true"], check=False).returncode:
        pytest.skip("there is no strace here that may trace")
    code = """
store.save("warm", 1)
for n in range(3):
    store.save("k", n)
tell(time.time())
"""
    printed(PROGRAM + IMPORT + "store.save('first', 1)")
    # Somebody else has it open, so the last to close, which syncs anyway, is not the process.
    with contextlib.closing(sqlite3.connect(home / "cat.db")) as other:
        other.execute("SELECT count(*) FROM entries").fetchall()
        done = subprocess.run(
            [*strace, sys.executable, "-W", "error", "-c", PROGRAM + IMPORT + code],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    syncs = [float(line.split()[1]) for line in trace.read_text().splitlines()]
    assert [at for at in syncs if at > float(done.stdout)]


def test_on_uvloop(home: Path) -> None:
    """With uvloop's policy the private loop is one of uvloop's, and all is the same."""
    if not importlib.util.find_spec("uvloop"):
        pytest.skip("uvloop is not installed")
    printed(
        """
        import asyncio, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import uvloop
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        from cat import blocking
        from cat.blocking import store
        assert store.increment("n") == 1
        assert type(blocking._loop).__module__.startswith("uvloop")
        with store.edit("k", []) as value:
            value.append(1)
        try:
            store.modify("k", lambda v: sys.exit(3))
        except SystemExit:
            pass
        assert list(store.scan()) == [("k", [1]), ("n", 1)]
        """
    )
    assert stored(home) == {"k": [1], "n": 1}


# --- Interrupts.


class Child:
    """A process that runs code, and is talked to by lines."""

    def __init__(self, code: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM + IMPORT + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> str:
        """Return its next line."""
        assert self._process.stdout
        return self._process.stdout.readline().rstrip("\n")

    def say(self, line: str) -> None:
        """Send it a line."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Let it come to its end, and return its status and what it complained of."""
        _, complaints = self._process.communicate(timeout=60)
        return self._process.returncode, complaints

    def kill(self) -> None:
        """End it whatever it does."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def child() -> Iterator[Callable[[str], Child]]:
    """Return what starts a process, which ends with the test."""
    children: list[Child] = []

    def start(code: str) -> Child:
        children.append(Child(code))
        return children[-1]

    yield start
    for one in children:
        with contextlib.suppress(ValueError):  # it has ended
            one.kill()


WAITING = """
def wait(verb):
    tell("waiting")
    try:
        verb()
    except KeyboardInterrupt:
        tell("interrupted")
    else:
        tell("done")
"""


@pytest.mark.parametrize(
    "verb",
    [
        'store.save("k", "late")',
        'store.increment("late")',
        'store.save_many({"k": "late"})',
        'store.edit("late", []).__enter__().append(store.save("k", "late"))',
        'connect().__enter__() or store.save("k", "late")',
    ],
)
def test_an_interrupt_while_a_verb_waits(
    verb: str, home: Path, child: Callable[[str], Child]
) -> None:
    """Ctrl-C ends the waiting at once, and the next verb works; no save comes late."""
    code = f"""
store.save("k", "early")
tell("ready")
sys.stdin.readline()
wait(lambda: {verb})
sys.stdin.readline()
tell(store.load("k"))
tell(store.increment("n"))
"""
    one = child(WAITING + code)
    assert one.hear() == "ready"
    with lock_holder() as holder:
        assert holder.stdin
        assert holder.stdout
        holder.stdin.write("hold\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "done\n"
        one.say("go")
        assert one.hear() == "waiting"
        time.sleep(0.5)
        one.interrupt()
        assert one.hear() == "interrupted"
        holder.communicate("release\n", timeout=30)
    one.say("go on")
    assert one.hear() == "early"
    assert one.hear() == "1"
    assert one.end() == (0, "")
    found = stored(home)
    found.pop("late", None)  # others may build on an increment: it is made or not made
    assert found == {"k": "early", "n": 1}


def test_an_interrupt_while_an_edit_waits_for_another_process(
    home: Path, child: Callable[[str], Child]
) -> None:
    """Ctrl-C while an edit waits for its turn leaves the key free, here and in other processes."""
    edit = """
def edit():
    with store.edit("k", []) as value:
        value.append(os.getpid())
"""
    holding = child(
        edit
        + """
with store.edit("k", []) as value:
    tell("inside")
    sys.stdin.readline()
    value.append("holder")
tell("outside")
sys.stdin.readline()
edit()
"""
    )
    assert holding.hear() == "inside"
    waiting = child(
        WAITING
        + edit
        + """
wait(edit)
sys.stdin.readline()
edit()
tell("edited")
"""
    )
    assert waiting.hear() == "waiting"
    time.sleep(0.5)
    waiting.interrupt()
    assert waiting.hear() == "interrupted"
    holding.say("leave")
    assert holding.hear() == "outside"
    waiting.say("again")
    assert waiting.hear() == "edited"
    holding.say("again")
    assert waiting.end() == holding.end() == (0, "")
    assert len(stored(home)["k"]) == 3
    assert stored(home)["k"][0] == "holder"


def test_an_interrupt_in_the_moment_of_entering(home: Path) -> None:
    """What was entered although its thread was interrupted meanwhile is left again."""
    done = python(
        PROGRAM
        + IMPORT
        + """
from cat.blocking import _Entered

class Late:
    inside = 0

    async def __aenter__(self):
        self.inside += 1
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if stubborn:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass

    async def __aexit__(self, kind, error, traceback):
        assert kind is KeyboardInterrupt
        self.inside -= 1

for stubborn in (False, True):
    for n in range(50):
        late = Late()
        try:
            with _Entered(late):
                time.sleep(60)
        except KeyboardInterrupt:
            assert late.inside == 0, n
        else:
            raise AssertionError(n)
store.save("k", 1)
tell("k")
""",
        timeout=60,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "k\n")
    assert stored(home) == {"k": 1}


@pytest.mark.parametrize(
    "code", ["busy()", "with connect(): busy()", "with store.edit('e', []) as e: busy()"]
)
def test_an_interrupt_ends_a_program(code: str, home: Path, child: Callable[[str], Child]) -> None:
    """Ctrl-C in the middle of saves ends the process as it ends any, and all it told is kept."""
    one = child(code)
    told = [one.hear() for _ in range(30)]
    one.interrupt()
    status, complaints = one.end()
    assert status in (-signal.SIGINT, 130)
    assert complaints.splitlines()[-1] == "KeyboardInterrupt"
    assert complaints.count("Traceback") == 1
    assert set(told) <= set(stored(home))


def test_a_signal_handler_may_use_the_store(home: Path) -> None:
    """A handler that runs while a verb waits, in the same thread, has its own verb answered."""
    said = printed(
        PROGRAM
        + IMPORT
        + """
def handle(*_):
    store.increment("handled")
    signal.setitimer(signal.ITIMER_REAL, 0.003)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.003)
for n in range(300):
    store.increment("n")
signal.signal(signal.SIGALRM, signal.SIG_IGN)
tell(store.load("n"))
"""
    )
    assert said == "300\n"
    assert stored(home)["handled"] > 0


# --- Forks.

FORKED = """
import warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def forked(work):
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException as error:
        tell(f"failed: {error!r}")
        os._exit(1)
    sys.exit(0)

def wait(*pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0

def work():
    for _ in range(10):
        store.increment("n")
    with store.edit("list", []) as value:
        value.append(1)
"""
FORKS = {
    "before any use": "wait(*(forked(work) for _ in range(3)))\nwork()",
    "after use": "work()\nwait(*(forked(work) for _ in range(3)))\nwork()",
    "after use, and the parent goes on": (
        "store.load('n')\npids = [forked(work) for _ in range(3)]\nwork()\nwait(*pids)"
    ),
    "of a fork": """
work()
wait(forked(lambda: (work(), wait(forked(lambda: (work(), os._exit(0)))), work())))
""",
    "while other threads are busy": """
store.load("n")
stop = threading.Event()
def busily():
    while not stop.is_set():
        store.save("busy", 1)
threads = [threading.Thread(target=busily) for _ in range(3)]
for one in threads:
    one.start()
for _ in range(20):
    wait(forked(lambda: (work(), os._exit(0))))
stop.set()
for one in threads:
    one.join()
""",
    "inside connect, which the child leaves by sys.exit": """
with connect():
    work()
    wait(forked(work))
    work()
""",
    "inside connect, which both leave": """
with connect():
    child = os.fork()
    work()
work()
if child:
    wait(child)
""",
    "inside connect, which the child leaves at once": """
with connect():
    child = os.fork()
work()
if child:
    wait(child)
    work()
""",
    "inside an edit": """
with store.edit("other", []) as value:
    value.append(1)
    wait(forked(work))
work()
""",
    "inside an edit, which both leave": """
try:
    with store.edit("other", []) as value:
        value.append(1)
        child = os.fork()
        work()
except cat.errors.ForkedEditError:
    assert not child
else:
    wait(child)
""",
}
WORKS = dict(zip(FORKS, [4, 5, 4, 4, 20, 3, 4, 3, 2, 2], strict=True))


@pytest.mark.parametrize("label", FORKS)
def test_forks(label: str, home: Path) -> None:
    """Parent and child each have a store that works, and each ends quietly."""
    done = python(PROGRAM + IMPORT + FORKED + FORKS[label], timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = stored(home)
    assert (found["n"], len(found["list"])) == (10 * WORKS[label], WORKS[label])
    if "edit" in label:
        assert found["other"] == [1]
    assert integrity(home / "cat.db") == "ok"


def test_a_fork_inside_connect_stays_in_its_home(home: Path, tmp_path: Path) -> None:
    """A child of the block uses the home of the block, and after it the environment's."""
    code = """
with connect(home=sys.argv[1]):
    store.load("k")
    child = os.fork()
    store.save("child" if child == 0 else "parent", 1)
    assert str(store.folder).startswith(sys.argv[1])
store.save("child" if child == 0 else "parent", 2)
if child:
    wait(child)
"""
    done = python(PROGRAM + IMPORT + FORKED + code, str(tmp_path / "other"), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stored(tmp_path / "other") == {"child": 1, "parent": 1}
    assert stored(home) == {"child": 2, "parent": 2}


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str, home: Path, tmp_path: Path) -> None:
    """Processes made in each of multiprocessing's ways count together with their parent."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import multiprocessing, sys, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from cat.blocking import store

def count(_):
    return store.increment("n")

if __name__ == "__main__":
    store.increment("n")
    with multiprocessing.get_context(sys.argv[1]).Pool(3) as pool:
        numbers = pool.map(count, range(30), chunksize=1)
        pool.close()
        pool.join()
    assert sorted(numbers) == list(range(2, 32)), numbers
    print(store.increment("n"))
"""
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), method],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "32\n")
    assert integrity(home / "cat.db") == "ok"
