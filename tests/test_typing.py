"""What a type checker says of the public API: checked by mypy, and run by nobody."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

from pydantic import BaseModel
from typing_extensions import TypedDict

import cat.blocking
from cat import (
    CatError,
    Erased,
    Export,
    Info,
    Store,
    User,
    as_user,
    connect,
    current_user,
    erase_namespace,
    erase_user,
    export_user,
    for_user,
    store,
    user,
    users,
)

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID


class Prefs(BaseModel):
    """A model."""

    volume: int


@dataclass
class Point:
    """A dataclass."""

    x: int


async def verbs(numbers: list[int]) -> None:
    """Check that what goes in comes out, and that what is asked for by type has it."""
    assert_type(await store.save("k", 9), int)
    assert_type(await store.save("k", Prefs(volume=1), expires_in=2.5), Prefs)
    assert_type(await store.load("k"), Any)
    assert_type(await store.load("k", 0), Any)
    assert_type(await store.load("k", type=Prefs), Prefs | None)
    assert_type(await store.load("k", None, type=Prefs), Prefs | None)
    assert_type(await store.load("k", "none", type=Prefs), Prefs | str)
    assert_type(await store.load("k", Point(1), type=Point), Point)
    assert_type(await store.load("k", [], type=list[int]), list[int])
    assert_type(await store.load("k", {}, type=dict[str, int]), dict[str, int])
    assert_type(await store.load("k", numbers, type=list[int]), list[int])
    assert_type(await store.exists("k"), bool)
    assert_type(await store.delete("k"), bool)


class Todo(TypedDict):
    """A typed dict."""

    text: str


async def edits(todos: list[Todo]) -> None:
    """Check that what an edit gives is of the type that was asked for."""
    async with store.edit("k") as anything:
        assert_type(anything, Any)
    async with store.edit("k", []) as anything:
        assert_type(anything, Any)
    async with store.edit("k", default={"a": 1}) as anything:
        assert_type(anything, Any)
    async with store.edit("k", type=Prefs) as prefs:
        assert_type(prefs, Prefs)
        prefs.volume = "loud"  # type: ignore[assignment]
    async with store.edit("k", Prefs(volume=1), type=Prefs) as prefs:
        assert_type(prefs, Prefs)
    async with store.edit("k", default=Prefs(volume=1), type=Prefs) as prefs:
        assert_type(prefs, Prefs)
    async with store.edit("k", Point(1), type=Prefs) as either:
        assert_type(either, Prefs | Point)
    async with user.edit("k", Point(1), type=Point) as point:
        assert_type(point, Point)
    async with store.edit("k", type=list[int]) as numbers:
        assert_type(numbers, list[int])
        numbers.append("one")  # type: ignore[arg-type]
    async with store.edit("k", [], type=list[int]) as numbers:
        assert_type(numbers, list[int])
    async with store.edit("k", default=[], type=list[Todo]) as found:
        assert_type(found, list[Todo])
    async with store.edit("k", todos, type=list[Todo]) as found:
        assert_type(found, list[Todo])
    async with store.edit("k", {}, type=dict[str, Prefs]) as named:
        assert_type(named, dict[str, Prefs])
    async with store.edit("k", type=Todo) as todo:
        assert_type(todo, Todo)
        todo["txt"] = "milk"  # type: ignore[typeddict-unknown-key]
    async with store.edit("k", todos[0], type=Todo) as todo:
        assert_type(todo, Todo)
    async with store.edit(5) as anything:  # type: ignore[call-overload]
        pass
    with store.edit("k") as anything:  # type: ignore[attr-defined]
        pass


def one_more(number: int) -> int:
    """Return the next number."""
    return number + 1


def with_milk(todos: list[Todo]) -> list[Todo]:
    """Return a longer list."""
    return [*todos, {"text": "milk"}]


async def fetched() -> str:
    """Return what takes a while."""
    return "token"


async def changes(hour: "timedelta") -> None:
    """Check what the verbs return that change a value."""
    assert_type(await store.modify("k", one_more, 0), int)
    assert_type(await store.modify("k", fn=one_more, default=0), int)
    assert_type(await user.modify("k", with_milk, []), list[Todo])
    assert_type(await store.modify("k", lambda old: f"{old}!"), str)
    await store.modify("k", 5)  # type: ignore[arg-type]
    await store.modify("k")  # type: ignore[call-arg]
    assert_type(await store.increment("k"), int)
    assert_type(await store.increment("k", -1, expires_in=hour), int)
    assert_type(await store.increment("k", by=2, expires_in=2.5), int)
    await store.increment("k", 0.5)  # type: ignore[arg-type]
    assert_type(await store.create("k", Prefs(volume=1)), bool)
    assert_type(await store.create("k", None, expires_in=3600), bool)
    assert_type(await store.pop("k"), Any)
    assert_type(await store.pop("k", 0), Any)
    assert_type(await store.load_or_create("k", fetched, expires_in=hour), Any)
    assert_type(await store.load_or_create("k", lambda: 5), Any)
    await store.load_or_create("k", "token")  # type: ignore[arg-type]
    await store.load_or_create("k", one_more)  # type: ignore[arg-type]
    assert_type(await store.expire("k", hour), bool)
    assert_type(await store.expire("k", expires_in=None), bool)
    await store.expire("k")  # type: ignore[call-arg]
    await store.expire("k", "soon")  # type: ignore[arg-type]
    await store.save("k", 1, expires_in="soon")  # type: ignore[arg-type]


async def many(prefs: dict[str, Prefs], names: set[str]) -> None:
    """Check the verbs for many keys."""
    assert_type(await store.load_many(["a", "b"]), dict[str, Any])
    assert_type(await store.load_many(names), dict[str, Any])
    assert_type(await store.load_many(name for name in names), dict[str, Any])
    await store.load_many([1])  # type: ignore[list-item]
    await store.save_many({"a": 1, "b": Prefs(volume=1)})
    await store.save_many(prefs, expires_in=2.5)
    await store.save_many([("a", 1)])  # type: ignore[arg-type]
    await store.save_many({1: "a"})  # type: ignore[dict-item]
    assert_type(await store.delete_many(prefs), int)
    assert_type(await store.delete_many(keys=["a"]), int)
    assert_type(await store.keys(), list[str])
    assert_type(await store.keys("a", after="ab", limit=10), list[str])
    await store.keys("a", "ab")  # type: ignore[call-arg]
    assert_type(store.scan(), AsyncIterator[tuple[str, Any]])
    async for key, value in user.scan(prefix="a"):
        assert_type(key, str)
        assert_type(value, Any)
    assert_type(await store.items("a"), dict[str, Any])
    assert_type(await store.count(prefix="a"), int)
    assert_type(await store.clear("a"), int)
    await store.clear()  # type: ignore[call-arg]
    assert_type(await store.clear_all(), int)
    await store.clear_all("a")  # type: ignore[call-arg]
    assert_type(await store.namespaces(), list[str])


async def information() -> None:
    """Check that what is known of an entry has a type in each of its parts."""
    info = await store.info("k")
    assert_type(info, Info | None)
    if info is not None:
        assert_type(info.size, int)
        assert_type(info.revision, int)
        assert_type(info.created_at, datetime)
        assert_type(info.updated_at, datetime)
        assert_type(info.expires_at, datetime | None)


async def everything_of(identity: "UUID") -> None:
    """Check the functions of the module, which no store has."""
    assert_type(await users(), list[str])
    export = await export_user(identity)
    assert_type(export, Export)
    assert_type(export.user, str)
    assert_type(export.entries, dict[str, dict[str, Any]])
    assert_type(export.files, list[Path])
    erased = await erase_user(7)
    assert_type(erased, Erased)
    assert_type((erased.entries, erased.bytes, erased.files), tuple[int, int, int])
    assert_type(await erase_namespace("weather"), Erased)
    await erase_user(None)  # type: ignore[arg-type]
    await export_user(2.5)  # type: ignore[arg-type]
    await erase_namespace(5)  # type: ignore[arg-type]
    _ = store.erase_user  # type: ignore[attr-defined]
    _ = for_user("alice").users  # type: ignore[attr-defined]


def blocking_verbs(numbers: list[int]) -> None:
    """Check that the blocking door says the same of its verbs, without an `await`."""
    blocking = cat.blocking.store
    assert_type(blocking, cat.blocking.Store)
    assert_type(blocking.save("k", 9), int)
    assert_type(blocking.load("k"), Any)
    assert_type(blocking.load("k", type=Prefs), Prefs | None)
    assert_type(blocking.load("k", "none", type=Prefs), Prefs | str)
    assert_type(blocking.load("k", [], type=list[int]), list[int])
    assert_type(blocking.load("k", numbers, type=list[int]), list[int])
    assert_type(blocking.increment("k"), int)
    assert_type(blocking.modify("k", str, default=""), str)
    assert_type(blocking.items(), dict[str, Any])
    with blocking.edit("k", Prefs(volume=1), type=Prefs) as prefs:
        assert_type(prefs, Prefs)
    with blocking.edit("k", [], type=list[int]) as value:
        assert_type(value, list[int])
    for key, found in blocking.scan():
        assert_type((key, found), tuple[str, Any])
    assert_type(cat.blocking.user.namespace("n"), cat.blocking.User)
    assert_type(cat.blocking.for_user(7), cat.blocking.Store)
    blocking.save(5, "v")  # type: ignore[arg-type]
    with cat.blocking.connect(home="x"), cat.blocking.as_user("alice"):
        assert_type(cat.blocking.user.id, str)


async def scopes(identity: "UUID") -> None:
    """Check that each scope has the same API, and only `user` an id."""
    assert_type(store, Store)
    assert_type(user, User)
    assert_type(user.id, str)
    assert_type(user.namespace("n"), User)
    assert_type(store.namespace("n"), Store)
    assert_type(for_user(identity).namespace("n").namespace("m"), Store)
    path: Path = store.folder
    _ = store.id  # type: ignore[attr-defined]
    store.folder = path  # type: ignore[misc]
    with as_user("alice"), as_user(7), as_user(None):
        assert_type(current_user(), str | None)
    as_user(2.5)  # type: ignore[arg-type]
    async with connect(home=path, url="sqlite:///x.db"):
        await store.save(5, "v")  # type: ignore[arg-type]


def error(caught: CatError) -> bool:
    """Tell whether it is safe to try again."""
    return assert_type(caught.not_stored, bool)
