"""`Store`, and the two instances `store` and `user`."""

import builtins
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, NoReturn, Self, TypeVar, overload

from cat import context, files
from cat.errors import shown
from cat.scope import GLOBAL, Scope, inside, owner_of

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

    __slots__ = ("_namespace", "_owner")

    _owner: Callable[[], str]
    _namespace: str

    def __init__(self, owner: Callable[[], str], namespace: str = "") -> None:
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_namespace", namespace)

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

    def _scope(self) -> Scope:
        return Scope(self._owner(), self._namespace)

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
        return self._owner()


store = Store(lambda: GLOBAL.owner)
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
    owner = owner_of(user_id)
    return Store(lambda: owner)
