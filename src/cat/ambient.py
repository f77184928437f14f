"""`Store`, and the two instances `store` and `user`."""

import asyncio
import builtins
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, NoReturn, Self, TypeVar, cast, overload

from cat import context, files
from cat.entry import Erased, Export, Info
from cat.errors import shown
from cat.repository import MISSING
from cat.scope import GLOBAL, Scope, inside, nested, owner_of, scope_of

if TYPE_CHECKING:
    from uuid import UUID

T = TypeVar("T")
D = TypeVar("D")
ListT = TypeVar("ListT", bound=list[Any])
DictT = TypeVar("DictT", bound=dict[Any, Any])


class Store:
    """Key-value verbs for one scope.

    Not made by hand: there are `store`, `user`, `for_user(id)` and
    `.namespace(name)` of each. Values are whatever JSON holds, and pydantic
    models and dataclasses. A key is a non-empty `str` without NUL, of up to
    512 bytes of UTF-8.

    Every verb may raise `InvalidKeyError`, `InvalidSettingError`,
    `DatabaseUnavailableError` and its kinds, and `MigrationError`; those of
    `user` also `NoUserError`.
    """

    __slots__ = ("_namespace", "_owner", "_scope")

    _owner: str | Callable[[], str]
    _namespace: str
    _scope: Callable[[], Scope]

    def __init__(self, owner: str | Callable[[], str], namespace: str = "") -> None:
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_namespace", namespace)
        # Called by every verb.
        if isinstance(owner, str):
            always = Scope(owner, namespace)
            object.__setattr__(self, "_scope", lambda: always)
        else:
            object.__setattr__(self, "_scope", lambda: scope_of(owner(), namespace))

    async def save(self, key: str, value: T, *, expires_in: float | timedelta | None = None) -> T:
        """Store `value` under `key`, durably, and return it as it was passed.

        A full replacement, never a merge. An expiry that was there is gone,
        unless `expires_in` gives a new one: seconds above 0, or a `timedelta`.

        Raises `UnstorableValueError` for what JSON cannot hold unchanged and
        for more than `CAT_MAX_VALUE_BYTES`, and `InvalidExpiryError`; both
        before anything is written, and what was there stays.

        ```python
        from cat import store

        await store.save("theme", {"color": "dark"})
        await store.save("token", "s3cret", expires_in=3600)
        ```
        """
        await context.repository().save(self._scope(), key, value, expires_in)
        return value

    @overload
    async def load(self, key: str, default: Any = None) -> Any: ...
    @overload
    async def load(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload  # `[]` and `{}` say nothing of what they hold; the type does
    async def load(self, key: str, default: list[Never], *, type: type[ListT]) -> ListT: ...
    @overload
    async def load(self, key: str, default: dict[Never, Never], *, type: type[DictT]) -> DictT: ...
    @overload
    async def load(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    @overload
    async def load(self, key: str, default: Any = None, *, type: Any) -> Any: ...

    async def load(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002  # the word for it
        """Return the value under `key`, fresh at every call, or `default` if there is none.

        `default` is returned itself, untouched and unchecked. With `type=` (a
        model, a `TypedDict`, `list[int]` and so on) the value is checked by
        pydantic in strict JSON mode: `"9"` is not an `int`.

        Raises `InvalidValueError` for a value that is not of that type, and
        `CorruptValueError` for one that is not JSON.

        ```python
        from cat import store

        theme = await store.load("theme", {"color": "light"})
        visits = await store.load("visits", 0, type=int)
        ```
        """
        return await context.repository().load(self._scope(), key, default, type)

    async def exists(self, key: str) -> bool:
        """Say whether there is a value under `key`; a stored `None` is one.

        ```python
        from cat import store

        await store.save("nothing", None)
        assert await store.exists("nothing")
        ```
        """
        return await context.repository().exists(self._scope(), key)

    async def delete(self, key: str) -> bool:
        """Remove `key`, durably, and say whether there was a value.

        ```python
        from cat import store

        await store.save("draft", "Dear")
        assert await store.delete("draft")
        assert not await store.delete("draft")
        ```
        """
        return await context.repository().delete(self._scope(), key)

    async def pop(self, key: str, default: Any = None) -> Any:
        """Remove `key`, durably, and return its value, or `default` itself if there is none.

        Of those who ask at once, in any process, one alone gets the value: for
        what may be used once.

        Raises `CorruptValueError`, and then removes nothing, and `KeyBusyError`.

        ```python
        from cat import store

        await store.save("code", 4711)
        assert await store.pop("code") == 4711
        assert await store.pop("code", "used") == "used"
        ```
        """
        return await context.repository().pop(self._scope(), key, default)

    async def create(
        self, key: str, value: object, *, expires_in: float | timedelta | None = None
    ) -> bool:
        """Store `value` if there is none under `key`, durably, and say whether it was stored.

        Of those who create a key at once, in any process, one alone succeeds.
        `expires_in` is in seconds, or a `timedelta`.

        Raises what `save` raises.

        ```python
        from cat import store

        assert await store.create("leader", "worker 1", expires_in=60)
        assert not await store.create("leader", "worker 2", expires_in=60)
        ```
        """
        return await context.repository().create(self._scope(), key, value, expires_in)

    async def load_or_create(
        self,
        key: str,
        factory: Callable[[], Any],
        *,
        expires_in: float | timedelta | None = None,
    ) -> Any:
        """Return the value under `key`, or make it with `factory`, store it and return it.

        `factory` takes nothing and returns the value, or is a coroutine
        function. Callers who ask on one event loop while it runs wait for it,
        and what it raises, all of them get; so it runs once. Processes may each
        run it: the first to store wins, and all return what was stored.
        `expires_in`, in seconds or as a `timedelta`, counts from the storing.

        Raises what `save` and `factory` raise, `CorruptValueError`, and
        `InvalidArgumentError` for a factory that is none or asks for its own key.

        ```python
        from cat import store

        async def fetch_token():
            return "t0ken"

        token = await store.load_or_create("token", fetch_token, expires_in=3600)
        ```
        """
        repository = context.repository()
        return await repository.load_or_create(self._scope(), key, factory, expires_in)

    async def expire(self, key: str, expires_in: float | timedelta | None) -> bool:
        """Let the value under `key` expire, durably, and say whether there is one.

        `expires_in` is in seconds above 0 from now, or a `timedelta`, or
        `None` for never.

        Raises `InvalidExpiryError`.

        ```python
        from cat import store

        await store.save("session", {"step": 1})
        assert await store.expire("session", expires_in=1800)
        assert await store.expire("session", None)
        ```
        """
        return await context.repository().expire(self._scope(), key, expires_in)

    async def info(self, key: str) -> Info | None:
        """Return the size, the revision and the times of `key`, or `None` if there is no value.

        ```python
        from cat import store

        await store.save("report", "…")
        info = await store.info("report")
        print(info.size, "bytes, written at", info.updated_at)
        ```
        """
        return await context.repository().info(self._scope(), key)

    @overload
    def edit(self, key: str, default: Any = ...) -> AbstractAsyncContextManager[Any]: ...
    @overload
    def edit(self, key: str, *, type: type[T]) -> AbstractAsyncContextManager[T]: ...
    @overload  # as with `load`
    def edit(
        self, key: str, default: list[Never], *, type: type[ListT]
    ) -> AbstractAsyncContextManager[ListT]: ...
    @overload
    def edit(
        self, key: str, default: dict[Never, Never], *, type: type[DictT]
    ) -> AbstractAsyncContextManager[DictT]: ...
    @overload
    def edit(
        self, key: str, default: D, *, type: type[T]
    ) -> AbstractAsyncContextManager[T | D]: ...
    @overload
    def edit(
        self, key: str, default: Any = ..., *, type: Any
    ) -> AbstractAsyncContextManager[Any]: ...

    def edit(
        self,
        key: str,
        default: Any = MISSING,
        *,
        type: Any = None,  # noqa: A002  # the word for it
    ) -> AbstractAsyncContextManager[Any]:
        """Change a list, dict, model or dataclass in place, atomically.

        `async with store.edit(key) as value:` gives the value under `key`, or a
        copy of `default` if there is none, to be changed inside the block. It is
        stored, durably, when the block ends; an exception or a cancellation
        inside stores nothing. Edits of one key wait for each other, in every
        process, and `modify` and `increment` wait for those of their own. An
        expiry stays. With `type=` the value is checked before and after.

        Change the value; do not assign to its name: what an assignment makes
        is another object, and `ReboundError` is raised if nothing refers to
        the value any more. Keep the block short.

        Raises, before the block, `KeyNotFoundError` if there is nothing and no
        default, `NotEditableError` for any other kind of value,
        `InvalidValueError`, `CorruptValueError`, `NestedEditError` inside an
        edit of the same key, and `KeyBusyError` after `CAT_TIMEOUT`; and after
        it, with nothing stored, `UnstorableValueError`, `InvalidValueError`,
        and `ConflictError` if the key was changed meanwhile by what does not
        wait: a `save`, or another process's `modify`.

        ```python
        from cat import store

        async with store.edit("todos", default=[]) as todos:
            todos.append({"text": "buy milk"})
        numbers = store.edit("numbers", [1], type=list[int])
        async with numbers as value:
            value.append(2)
        ```
        """
        return context.repository().edit(self._scope(), key, default, type)

    async def modify(self, key: str, fn: Callable[[Any], T], default: Any = None) -> T:
        """Replace the value under `key` by `fn(value)`, atomically and durably, and return that.

        `fn` is a plain function. It gets a fresh value, or a copy of `default`
        if there is none, and returns the new one; it may run again if another
        process was quicker, so it has no side effects. An expiry stays.

        Raises what `fn` raises, `InvalidArgumentError` if it is not a plain
        function, `InvalidResultError` if it returns `None` for what was not
        (a forgotten `return`) or an awaitable, `UnstorableValueError`,
        `CorruptValueError`, `NestedEditError` inside an edit of the same key
        and `KeyBusyError`. Nothing is stored then.

        ```python
        from cat import store

        def louder(volume):
            return min(volume + 10, 100)

        await store.modify("volume", louder, default=50)
        await store.modify("volume", fn=lambda volume: volume + 1)
        ```
        """
        return cast("T", await context.repository().modify(self._scope(), key, fn, default))

    async def increment(
        self, key: str, by: int = 1, *, expires_in: float | timedelta | None = None
    ) -> int:
        """Add `by` to the integer under `key`, from 0, atomically and durably; return the sum.

        `expires_in`, in seconds or as a `timedelta`, counts from the creation
        of the counter and does nothing later: for limits per hour.

        Raises `InvalidValueError` if what is stored is not an integer (a
        `bool` or a `float` is not), `InvalidArgumentError` if `by` is not,
        `InvalidExpiryError`, `NestedEditError` inside an edit of the same key
        and `KeyBusyError`. Nothing changes then.

        ```python
        from cat import store

        await store.increment("visits")
        await store.increment("visits", by=-1)
        if await store.increment("attempts", expires_in=3600) > 5:
            print("try again later")
        ```
        """
        return await context.repository().increment(self._scope(), key, by, expires_in)

    async def load_many(self, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those of `keys` that have one, of one moment, in the order given.

        Raises `CorruptValueError`, and `InvalidArgumentError` for a text in
        place of a list.

        ```python
        from cat import store

        await store.save("city", "Oslo")
        assert await store.load_many(keys=["city", "street"]) == {"city": "Oslo"}
        ```
        """
        return await context.repository().load_many(self._scope(), keys)

    async def save_many(
        self, mapping: Mapping[str, object], *, expires_in: float | timedelta | None = None
    ) -> None:
        """Store the values of `mapping` under its keys, durably: all of them or none.

        Like `save` for each; `expires_in` is in seconds, or a `timedelta`. More
        than 1,000 values are encoded with pauses, and calls that are made in
        those come first.

        Raises what `save` raises, and `InvalidArgumentError` for what is no mapping.

        ```python
        from cat import store

        await store.save_many(mapping={"city": "Oslo", "street": "Karl Johans gate"})
        await store.save_many({"a": 1, "b": 2}, expires_in=60)
        ```
        """
        await context.repository().save_many(self._scope(), mapping, expires_in)

    async def delete_many(self, keys: Iterable[str]) -> int:
        """Remove all of `keys`, durably and together, and say how many had a value.

        Raises `InvalidArgumentError` for a text in place of a list.

        ```python
        from cat import store

        await store.save("city", "Oslo")
        assert await store.delete_many(keys=["city", "nothing"]) == 1
        ```
        """
        return await context.repository().delete_many(self._scope(), keys)

    async def keys(
        self, prefix: str = "", *, after: str | None = None, limit: int | None = None
    ) -> list[str]:
        """Return the keys that begin with `prefix`, sorted by code point.

        With `limit`, the first so many; `after` goes on behind a key, which
        need not be there. No character in a prefix has a meaning.

        Raises `InvalidArgumentError` for a prefix or an `after` that is not a
        `str`, and a limit that is not an `int` of 0 or more.

        ```python
        from cat import store

        await store.save_many({"log/1": "a", "log/2": "b", "log/3": "c"})
        page = await store.keys(prefix="log/", limit=2)
        assert await store.keys("log/", after=page[-1], limit=2) == ["log/3"]
        ```
        """
        return await context.repository().keys(self._scope(), prefix, after, limit)

    def scan(self, prefix: str = "") -> AsyncIterator[tuple[str, Any]]:
        """Yield each key that begins with `prefix` and its value, sorted by code point.

        However many there are, a page of them is in memory. What changes
        meanwhile is seen or not; nothing is locked, so take your time.

        Raises `InvalidArgumentError` for a prefix that is not a `str`, and `CorruptValueError`.

        ```python
        from cat import store

        async for key, value in store.scan(prefix="log/"):
            print(key, value)
        ```
        """
        return context.repository().scan(self._scope(), prefix)

    async def items(self, prefix: str = "") -> dict[str, Any]:
        """Return the keys that begin with `prefix` and their values, sorted by code point.

        For a small set; `scan` is for one of any size. Raises what it raises.

        ```python
        from cat import store

        await store.save("color/sky", "blue")
        assert await store.items(prefix="color/") == {"color/sky": "blue"}
        ```
        """
        return {key: value async for key, value in self.scan(prefix)}

    async def count(self, prefix: str = "") -> int:
        """Return how many keys begin with `prefix`.

        Raises `InvalidArgumentError` for a prefix that is not a `str`.

        ```python
        from cat import store

        assert await store.count(prefix="no such thing/") == 0
        ```
        """
        return await context.repository().count(self._scope(), prefix)

    async def clear(self, prefix: str) -> int:
        """Remove every key that begins with `prefix`, durably and together; return how many.

        In this scope and namespace only. Raises `InvalidArgumentError` for a
        prefix that is not a `str`, and for `""`: an empty variable must not
        empty the scope, and `clear_all` does so.

        ```python
        from cat import store

        await store.save_many({"log/1": "a", "log/2": "b"})
        assert await store.clear(prefix="log/") == 2
        ```
        """
        return await context.repository().clear(self._scope(), prefix)

    async def clear_all(self) -> int:
        """Remove every key of this scope and namespace, durably and together; return how many.

        Namespaces below it, and folders, are left.

        ```python
        from cat import store

        cache = store.namespace("cache")
        await cache.save("page", "…")
        assert await cache.clear_all() == 1
        ```
        """
        return await context.repository().clear_all(self._scope())

    async def namespaces(self) -> list[str]:
        """Return the names of the namespaces right below this one that hold a value, sorted.

        ```python
        from cat import store

        await store.namespace("weather").save("city", "Oslo")
        assert "weather" in await store.namespaces()
        ```
        """
        return await context.repository().namespaces(self._scope())

    def namespace(self, name: str) -> Self:
        """Return the same API with keys of its own, below this one.

        `name` is a non-empty `str` without `/` and control characters. For a
        plugin, its own name; `.namespace("a").namespace("b")` nests.

        Raises `InvalidNamespaceError`.

        ```python
        from cat import store

        weather = store.namespace("weather")
        await weather.save("city", "Oslo")
        assert await store.load("city") is None
        ```
        """
        return type(self)(self._owner, inside(self._namespace, name))

    @property
    def folder(self) -> Path:
        """A directory of this scope and namespace for files, absolute, made when first touched.

        No scope's folder is inside another's. It needs no database and no
        event loop. Check any name that comes from outside: a `..` in it leads
        out of the folder.

        Raises `NotWritableError`, `InvalidSettingError`, and, of `user`,
        `NoUserError`.

        ```python
        from cat import store

        log = store.folder / "log.txt"
        log.write_text("started")
        ```
        """
        return files.folder(context.home(), self._scope())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        # What one request left on it, every later one would see.
        raise AttributeError(
            f"{self!r} has no writable attributes, as every request shares it; keep a value with "
            f"'await ….save({shown(name)}, …)'"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self!r} has no attributes to delete; use 'await ….delete(…)'")

    def __repr__(self) -> str:
        namespace = f" namespace {shown(self._namespace)}" if self._namespace else ""
        return f"<cat.{builtins.type(self).__name__}{namespace}>"


class User(Store):
    """The `Store` of the current user, who is looked up at each call."""

    __slots__ = ()

    @property
    def id(self) -> str:
        """The current user's id, as text.

        Raises `NoUserError`.

        ```python
        from cat import as_user, user

        with as_user("alice"):
            assert user.id == "alice"
        ```
        """
        return self._scope().owner


store = Store(GLOBAL.owner)
user = User(context.bound_user)


def for_user(user_id: "str | int | UUID") -> Store:
    """Return the store of one user, whoever the current one is: for jobs and administrators.

    Raises `InvalidUserError`.

    ```python
    from cat import for_user

    for name in ["alice", "bob"]:
        await for_user(name).save("news", ["welcome"])
    ```
    """
    return Store(owner_of(user_id))


async def users() -> list[str]:
    """Return the ids of the users who have a value in any namespace, sorted, as text.

    ```python
    from cat import for_user, users

    await for_user("alice").save("theme", "dark")
    assert "alice" in await users()
    ```
    """
    return await context.repository().users()


async def export_user(user_id: "str | int | UUID") -> Export:
    """Return everything a user owns: entries of every namespace, and the paths of files.

    Raises `InvalidUserError` and `CorruptValueError`.

    ```python
    from cat import export_user, for_user

    await for_user("alice").save("theme", "dark")
    export = await export_user(user_id="alice")
    assert export.entries[""]["theme"] == "dark"
    ```
    """
    owner = owner_of(user_id)
    entries = await context.repository().export(owner)
    found = await asyncio.to_thread(files.owned, context.home(), owner)
    return Export(owner, entries, found)


async def erase_user(user_id: "str | int | UUID") -> Erased:
    """Remove everything a user owns, in every namespace, files too; say how much it was.

    It is overwritten in the database's files too when this returns; what a
    backup holds is not. What the user's requests store afterwards is new.

    Raises `InvalidUserError`, `NotWritableError` for files that cannot be
    removed, and `NotScrubbedError` if others read or write for `CAT_TIMEOUT`
    without a pause: then it is removed, and may still stand in the log.

    ```python
    from cat import erase_user, for_user

    await for_user("alice").save("theme", "dark")
    erased = await erase_user(user_id="alice")
    print(erased.entries, "entries and", erased.files, "files")
    ```
    """
    owner = owner_of(user_id)
    count = await asyncio.to_thread(files.erase_owner, context.home(), owner)
    return Erased(*await context.repository().erase_owner(owner), count)


async def erase_namespace(name: str) -> Erased:
    """Remove a namespace and those below it, of the shared store and every user, files too.

    For what a removed plugin left behind. `name` is as `namespace` takes it,
    or several joined by `/`. Otherwise like `erase_user`.

    Raises `InvalidNamespaceError`, `NotWritableError` and `NotScrubbedError`.

    ```python
    from cat import erase_namespace, store

    await store.namespace("weather").save("city", "Oslo")
    assert (await erase_namespace(name="weather")).entries == 1
    ```
    """
    namespace = nested(name)
    count = await asyncio.to_thread(files.erase_namespace, context.home(), namespace)
    return Erased(*await context.repository().erase_namespace(namespace), count)
