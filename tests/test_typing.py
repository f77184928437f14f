"""What a type checker says of the public API: checked by mypy, and run by nobody."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_type

from pydantic import BaseModel

from cat import CatError, Store, User, as_user, connect, current_user, for_user, store, user

if TYPE_CHECKING:
    from pathlib import Path
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
