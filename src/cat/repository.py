"""The one async repository: all semantics live here, once.

Above it scopes and keys are what a plugin wrote; below it there is only text.
Whatever can be refused is refused here before the backend is asked, so that
nothing is opened, locked or written for input that cannot be used.
"""

import asyncio
import copy
import inspect
import itertools
import math
import os
import sys
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from cat import codec
from cat.backends import Backend
from cat.entry import (
    ABSENT,
    UNKNOWN,
    Answer,
    Change,
    Clear,
    ClearNamespace,
    ClearOwner,
    Delete,
    Expire,
    Info,
    Meta,
    Put,
    Range,
    Removed,
    Row,
)
from cat.errors import (
    ConflictError,
    InvalidArgumentError,
    InvalidExpiryError,
    InvalidKeyError,
    InvalidResultError,
    InvalidValueError,
    KeyBusyError,
    KeyNotFoundError,
    NotEditableError,
    ReboundError,
    UnstorableValueError,
    shown,
)
from cat.line import Head, Line, Lines, current_caller, outcome
from cat.scope import Scope

_LONGEST_EXPIRY = 1_000 * 365.25 * 86_400
# Seconds for which encoding or decoding many values may hold the event loop.
_SLICE = 0.005
# Values that are encoded without a pause, as calls made in a pause come first.
_AT_ONCE = 1_000

MISSING: Any = object()


class _Draft(NamedTuple):
    """What a change makes of an entry; `result` is for its caller."""

    text: str
    size: int
    expires: float | None = None
    result: Any = None


class Repository:
    """Key-value verbs over one backend, for every scope.

    `max_value_bytes` and `max_key_bytes` count UTF-8; `timeout` is in seconds
    and bounds every wait for a key; `now` returns seconds since 1970-01-01 UTC.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_value_bytes: int,
        max_key_bytes: int,
        timeout: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._backend = backend
        self._max_value_bytes = max_value_bytes
        self._max_key_bytes = max_key_bytes
        self._timeout = timeout
        self._now = now
        # A revision never repeats for a key. Counting from 62 random bits, no
        # two repositories ever meet; `random` will not do, as plugins seed it.
        self._revisions = itertools.count((int.from_bytes(os.urandom(8)) >> 2) + 1)
        self._lines = Lines(timeout)
        self._making: dict[tuple[Scope, str], tuple[object, asyncio.Future[str]]] = {}

    async def open(self) -> None:
        """Open the backend now rather than at the first verb."""
        await self._backend.open()

    async def close(self) -> None:
        """Close the backend. Idempotent."""
        await self._backend.close()

    def hold(self) -> None:
        """Close what is open, until `release`, as the process is about to fork."""
        self._backend.hold()

    def release(self) -> None:
        """Go on after `hold`."""
        self._backend.release()

    def forget(self) -> None:
        """Leave everything to the parent, after `hold`, in the child of a fork."""
        self._backend.forget()

    def abandon(self) -> bool:
        """Close what is open, for an event loop that was closed, and say whether anything was."""
        return self._backend.abandon()

    # --- One key.

    async def save(
        self, scope: Scope, key: str, value: object, expires_in: float | timedelta | None
    ) -> None:
        """Store `value` under `key`, replacing any; an expiry that was there is gone."""
        key = self._checked(key)
        text, size = self._encoded(value)
        now = self._now()
        meta = self._meta(size, _expiry(now, expires_in), now)
        await self._write([Put(scope, key, text, meta)], now)

    async def load(self, scope: Scope, key: str, default: object, wanted: Any) -> Any:
        """Return a fresh value, of type `wanted` unless that is `None`, or `default` itself."""
        key = self._checked(key)
        if wanted is not None:
            codec.adapter_of(wanted)  # raises for what is no type, stored or not
        row = self._backend.peek(scope, key)
        if row is UNKNOWN:
            row = await self._backend.get(scope, key)
        if row is None:
            return default
        text, _, expires = row
        if expires is not None and not self._live(expires):
            return default
        if wanted is None:
            return codec.decode(text, scope.at, key)
        return codec.decode_as(wanted, text, scope.at, key)

    async def exists(self, scope: Scope, key: str) -> bool:
        """Say whether there is an entry; a stored `None` is one."""
        meta = await self._backend.stat(scope, self._checked(key))
        return meta is not None and self._live(meta.expires)

    async def info(self, scope: Scope, key: str) -> Info | None:
        """Return what is known of an entry without reading its value."""
        meta = await self._backend.stat(scope, self._checked(key))
        if meta is None or not self._live(meta.expires):
            return None
        expires = None if meta.expires is None else _moment(meta.expires)
        return Info(meta.size, meta.revision, _moment(meta.created), _moment(meta.updated), expires)

    async def delete(self, scope: Scope, key: str) -> bool:
        """Remove the entry, and say whether there was one."""
        return await self.delete_many(scope, [key]) > 0

    async def pop(self, scope: Scope, key: str, default: object) -> Any:
        """Remove the entry and return its value, to one caller alone, or `default` itself."""
        key = self._checked(key)
        deadline = time.monotonic() + self._timeout
        while True:
            row = await self._read(scope, key)
            if row is None:
                return default
            value = self._value(scope, key, row.value, None)
            try:
                await self._write([Delete(scope, key, row.revision)], self._now())
            except ConflictError:
                self._check_time(scope, key, deadline)
            else:
                return value

    async def create(
        self, scope: Scope, key: str, value: object, expires_in: float | timedelta | None
    ) -> bool:
        """Store `value` if there is no entry, and say whether it was stored."""
        key = self._checked(key)
        text, size = self._encoded(value)
        now = self._now()
        meta = self._meta(size, _expiry(now, expires_in), now)
        try:
            await self._write([Put(scope, key, text, meta, ABSENT)], now)
        except ConflictError:
            return False
        return True

    async def expire(self, scope: Scope, key: str, expires_in: float | timedelta | None) -> bool:
        """Give the entry another expiry, and say whether there is one."""
        key = self._checked(key)
        now = self._now()
        change = Expire(scope, key, next(self._revisions), _expiry(now, expires_in))
        [found] = await self._write([change], now)
        return bool(found)

    async def load_or_create(
        self,
        scope: Scope,
        key: str,
        factory: Callable[[], Any],
        expires_in: float | timedelta | None,
    ) -> Any:
        """Return the value, or make one with `factory`, once for all who ask meanwhile."""
        key = self._checked(key)
        if not callable(factory):
            raise _not_callable("factory", factory, "one that returns the value to store")
        _expiry(0, expires_in)
        place = (scope, key)
        deadline = time.monotonic() + self._timeout
        while True:
            row = await self._read(scope, key)
            if row is not None:
                return self._value(scope, key, row.value, None)
            if place not in self._making:
                return await self._make(scope, key, factory, expires_in)
            maker, made = self._making[place]
            if maker is current_caller():
                raise InvalidArgumentError(
                    "factory", f"asked for {scope.at(key)} itself", "compute the value in it"
                )
            await asyncio.wait([made], timeout=deadline - time.monotonic())
            if not made.done():
                raise KeyBusyError(scope.at(key), self._timeout)
            if not made.cancelled():  # else the one who made it was: the next one tries
                error = made.exception()
                if error is not None:
                    raise copy.copy(error)  # each caller's traceback is its own
                return self._value(scope, key, made.result(), None)

    # --- Atomic changes of one key.

    async def modify(self, scope: Scope, key: str, fn: Any, default: object) -> Any:
        """Replace the value by what `fn` returns for it, atomically, and return that."""
        key = self._checked(key)
        if not callable(fn) or inspect.iscoroutinefunction(fn):
            raise _not_callable(
                "fn", fn, "a plain one, which gets the old value and returns the new"
            )

        def compute(row: Row | None) -> _Draft:
            old = self._value(scope, key, row.value, None) if row else copy.deepcopy(default)
            was_none = old is None
            new = fn(old)
            if inspect.isawaitable(new):
                if inspect.iscoroutine(new):
                    new.close()
                raise InvalidResultError(
                    scope.at(key), "an awaitable; await before it, or use edit()"
                )
            if new is None and not was_none:
                raise InvalidResultError(
                    scope.at(key),
                    "None; return the new value, also if it is the old one changed in place",
                )
            return _Draft(*self._encoded(new), row.expires if row else None, new)

        return await self._change(scope, key, compute)

    async def increment(
        self, scope: Scope, key: str, by: int, expires_in: float | timedelta | None
    ) -> int:
        """Add to an integer, atomically; `expires_in` counts from its creation."""
        key = self._checked(key)
        if isinstance(by, bool) or not isinstance(by, int):
            raise InvalidArgumentError("by", f"is of type {type(by).__name__}", "give an int")
        _expiry(0, expires_in)

        def compute(row: Row | None) -> _Draft:
            count = self._value(scope, key, row.value, None) if row else 0
            if type(count) is not int:
                raise InvalidValueError(scope.at(key), "int", [("$", "int_type")])
            expires = row.expires if row else _expiry(self._now(), expires_in)
            return _Draft(*self._encoded(count + by), expires, count + by)

        return int(await self._change(scope, key, compute))

    @asynccontextmanager
    async def edit(
        self, scope: Scope, key: str, default: Any, wanted: Any
    ) -> AsyncGenerator[Any, None]:
        """Yield the value to be changed in place, and store it when the block ends well."""
        key = self._checked(key)
        name = scope.at(key)
        if wanted is not None:
            codec.adapter_of(wanted)
        if default is not MISSING:
            _check_editable(default, f"the default for {name}")
        with self._lines.at(scope, key) as line:
            deadline = time.monotonic() + self._timeout
            await line.enter(deadline)
            try:
                line.editor = current_caller()
                if line.head is None and (barrier := self._backend.barrier()):
                    await barrier  # a save that was called before is not one during the edit
                free = await self._backend.lock(scope, key, line.editor, deadline)
                try:
                    row, base = await self._base(line)
                    value = self._editable(line, row, default, wanted)
                    unknown = object()  # to anybody but this function
                    yield value
                    # If nothing in the block refers to it any more, the name
                    # there stands for something else, which would be lost.
                    if sys.getrefcount(value) <= sys.getrefcount(unknown):
                        raise ReboundError(name)  # noqa: TRY301  # freed below
                    text, size = self._encoded(value)
                    if wanted is not None:
                        codec.decode_as(wanted, text, scope.at, key)
                    if row is not None and not self._live(row.expires):
                        raise ConflictError(name)  # noqa: TRY301  # freed below
                    draft = _Draft(text, size, row.expires if row else None)
                    written = self._submit(line, row, draft, base)
                except BaseException:
                    free()
                    raise
            finally:
                line.leave()
            written.add_done_callback(lambda _: free())
            try:
                await outcome(written)
            except ConflictError:
                reason = base.written.exception() if base and base.written.done() else None
                if reason is not None and not isinstance(reason, ConflictError):
                    raise copy.copy(reason) from None  # why there is not what this one changed
                raise
            finally:
                del written  # its exception's traceback would lead back to it

    def _editable(self, line: Line, row: Row | None, default: Any, wanted: Any) -> Any:
        """Return what an edit changes, fresh, or raise."""
        if row is not None:
            value = self._value(line.scope, line.key, row.value, wanted)
            _check_editable(value, line.scope.at(line.key))
            return value
        if default is MISSING:
            raise KeyNotFoundError(line.scope.at(line.key))
        return copy.deepcopy(default)

    async def _change(self, scope: Scope, key: str, compute: Callable[[Row | None], _Draft]) -> Any:
        """Store what `compute` makes of the entry, and again if somebody else was quicker."""
        deadline = time.monotonic() + self._timeout
        with self._lines.at(scope, key) as line:
            while True:
                await line.enter(deadline)
                try:
                    row, base = await self._base(line)
                    try:
                        draft = compute(row)
                    except Exception:
                        # It refuses a value that may never be stored: see if it is.
                        if base is None or await _succeeds(base.written):
                            raise
                        continue
                    written = self._submit(line, row, draft, base)
                finally:
                    line.leave()
                try:
                    await outcome(written)
                except ConflictError:
                    pass
                else:
                    return draft.result
                self._check_time(scope, key, deadline)

    def _submit(
        self, line: Line, row: Row | None, draft: _Draft, base: Head | None
    ) -> "asyncio.Future[Any]":
        """Put a change on its way, which holds if the entry is `row` when it arrives.

        It goes on if its caller is cancelled, as others may build on it.
        """
        expected = ABSENT if row is None else row.revision
        now = self._now()
        meta = self._meta(draft.size, draft.expires, now)
        put = Put(line.scope, line.key, draft.text, meta, expected)
        written = self._backend.write([put], now)
        line.follow(Row(draft.text, meta.revision, draft.expires), written, base)
        return written

    async def _base(self, line: Line) -> tuple[Row | None, Head | None]:
        """Return the live entry that a change builds on, and its head if it is not stored yet."""
        while (head := line.head) is not None and head.row is None:
            await asyncio.wait([head.written])
        line.begin()
        if head is not None and head.row is not None and self._live(head.row.expires):
            return head.row, head
        return await self._read(line.scope, line.key), None

    def _check_time(self, scope: Scope, key: str, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise KeyBusyError(scope.at(key), self._timeout)

    async def _make(
        self,
        scope: Scope,
        key: str,
        factory: Callable[[], Any],
        expires_in: float | timedelta | None,
    ) -> Any:
        place = (scope, key)
        made: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._making[place] = (current_caller(), made)
        try:
            # Again: what was read before may be older than what another one made meanwhile.
            row = await self._read(scope, key)
            if row is None:
                text = await self._made(scope, key, factory, expires_in)
            else:
                text = row.value
        except Exception as error:
            made.set_exception(error)
            raise
        else:
            made.set_result(text)
        finally:
            if not made.cancel():
                made.exception()  # seen, should nobody else wait
            del self._making[place], made
        return self._value(scope, key, text, None)

    async def _made(
        self,
        scope: Scope,
        key: str,
        factory: Callable[[], Any],
        expires_in: float | timedelta | None,
    ) -> str:
        """Store what `factory` makes, and return its text, or that of another process."""
        value = factory()
        if inspect.isawaitable(value):
            value = await value
        text, size = self._encoded(value)
        while True:
            now = self._now()
            meta = self._meta(size, _expiry(now, expires_in), now)
            try:
                await self._write([Put(scope, key, text, meta, ABSENT)], now)
            except ConflictError:  # another process was quicker
                row = await self._read(scope, key)
                if row is not None:
                    return row.value
            else:
                return text

    # --- Many keys.

    async def load_many(self, scope: Scope, keys: Iterable[str]) -> dict[str, Any]:
        """Return the values of those keys that have one, all of one moment, in the order given."""
        wanted = self._all_checked("keys", keys)
        if not wanted:
            return {}
        rows = await self._backend.pick(scope, wanted)
        now = self._now()
        found = ((key, rows[key]) for key in wanted if key in rows)
        live = [(key, row) for key, row in found if row.expires is None or now < row.expires]
        pause = _Pause()
        values = {}
        for key, row in live:
            values[key] = self._value(scope, key, row.value, None)
            await pause.if_due()
        return values

    async def save_many(
        self, scope: Scope, mapping: Mapping[str, object], expires_in: float | timedelta | None
    ) -> None:
        """Store all values or none."""
        if not isinstance(mapping, Mapping):
            raise InvalidArgumentError(
                "mapping", f"is of type {type(mapping).__name__}", "give a dict of keys and values"
            )
        now = self._now()
        expires = _expiry(now, expires_in)
        puts = []
        pause = _Pause()
        for key, value in list(mapping.items()):
            name = self._checked(key)
            try:
                text, size = self._encoded(value)
            except UnstorableValueError as error:
                path = f"$[{shown(name)}]{error.path.removeprefix('$')}"
                raise UnstorableValueError(path, error.reason) from None
            puts.append(Put(scope, name, text, self._meta(size, expires, now)))
            if len(puts) > _AT_ONCE:
                await pause.if_due()
        if puts:
            await self._write(puts, now)

    async def delete_many(self, scope: Scope, keys: Iterable[str]) -> int:
        """Remove all of the entries, and say how many there were."""
        changes = [Delete(scope, key) for key in self._all_checked("keys", keys)]
        if not changes:
            return 0
        answers = await self._write(changes, self._now())
        return sum(isinstance(found, Meta) and self._live(found.expires) for found in answers)

    async def keys(
        self, scope: Scope, prefix: str, after: str | None, limit: int | None
    ) -> list[str]:
        """Return the keys that begin with `prefix` and come after `after`, in order."""
        within = self._range(scope, prefix)
        if after is not None:
            # Nothing is between a text and that text with a NUL, which no key holds.
            following = _checked_text("after", after) + "\0"
            within = within._replace(start=max(within.start, following))
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise InvalidArgumentError("limit", f"is of type {type(limit).__name__}", "give an int")
        if limit is not None and limit < 0:
            raise InvalidArgumentError("limit", "is negative", "give 0 or more, or None for all")
        most = None if limit is None else min(limit, 2**62)
        return await self._backend.keys(within, self._now(), most)

    def scan(self, scope: Scope, prefix: str) -> AsyncIterator[tuple[str, Any]]:
        """Yield keys and values in order, a page at a time."""
        return self._scan(self._range(scope, prefix))

    async def _scan(self, within: Range) -> AsyncIterator[tuple[str, Any]]:
        pause = _Pause()
        while page := await self._backend.scan(within, self._now()):
            for key, row in page:
                yield key, self._value(within.scope, key, row.value, None)
                await pause.if_due()
            within = within._replace(start=page[-1][0] + "\0")

    async def count(self, scope: Scope, prefix: str) -> int:
        """Return how many keys begin with `prefix`."""
        return await self._backend.count(self._range(scope, prefix), self._now())

    async def clear(self, scope: Scope, prefix: str) -> int:
        """Remove every entry whose key begins with `prefix`, which is not empty."""
        within = self._range(scope, prefix)
        if not prefix:
            raise InvalidArgumentError(
                "prefix", "is empty, which would remove everything", "use clear_all() to do so"
            )
        return (await self._clear(Clear(within))).entries

    async def clear_all(self, scope: Scope) -> int:
        """Remove every entry of the scope."""
        return (await self._clear(Clear(Range(scope)))).entries

    async def namespaces(self, scope: Scope) -> list[str]:
        """Return the names of the namespaces right below this one that hold something."""
        found = await self._backend.namespaces(scope.owner, self._now())
        above = f"{scope.namespace}/" if scope.namespace else ""
        below = (name.removeprefix(above) for name in found if name.startswith(above))
        return sorted({name.split("/")[0] for name in below} - {""})

    # --- Owners.

    async def users(self) -> list[str]:
        """Return the ids of the users who have an entry."""
        return await self._backend.owners(self._now())

    async def export(self, owner: str) -> dict[str, dict[str, Any]]:
        """Return everything an owner has, by namespace and key."""
        return {
            name: {key: value async for key, value in self.scan(Scope(owner, name), "")}
            for name in await self._backend.namespaces(owner, self._now())
        }

    async def erase_owner(self, owner: str) -> Removed:
        """Remove everything an owner has, from the files of the database too."""
        removed = await self._clear(ClearOwner(owner))
        await self._backend.scrub()
        return removed

    async def erase_namespace(self, namespace: str) -> Removed:
        """Remove everything in a namespace and below it, whoever owns it."""
        removed = await self._clear(ClearNamespace(namespace))
        await self._backend.scrub()
        return removed

    async def _clear(self, change: Clear | ClearOwner | ClearNamespace) -> Removed:
        [removed] = await self._write([change], self._now())
        assert isinstance(removed, Removed)  # noqa: S101  # for the type checker
        return removed

    # --- What the verbs share.

    def _write(self, changes: Sequence[Change], now: float) -> "asyncio.Future[list[Answer]]":
        """Make changes that wait for no line, and tell the lines of their keys."""
        written = self._backend.write(changes, now)
        if self._lines:
            self._lines.pass_by(changes, written)
        return written

    def _meta(self, size: int, expires: float | None, now: float) -> Meta:
        return Meta(size, next(self._revisions), now, now, expires)

    async def _read(self, scope: Scope, key: str) -> Row | None:
        """Return the entry if it is live."""
        found = self._backend.peek(scope, key)
        if found is UNKNOWN:
            found = await self._backend.get(scope, key)
        return Row(*found) if found is not None and self._live(found[2]) else None

    def _value(self, scope: Scope, key: str, text: str, wanted: Any) -> Any:
        if wanted is None:
            return codec.decode(text, scope.at, key)
        return codec.decode_as(wanted, text, scope.at, key)

    def _encoded(self, value: object) -> tuple[str, int]:
        return codec.encode(value, self._max_value_bytes)

    def _live(self, expires: float | None) -> bool:
        return expires is None or self._now() < expires

    def _range(self, scope: Scope, prefix: str) -> Range:
        prefix = _checked_text("prefix", prefix)
        return Range(scope, prefix, _end_of(prefix))

    def _all_checked(self, name: str, keys: Iterable[str]) -> list[str]:
        """Return keys once each, in order, or raise for the first that cannot be one."""
        if isinstance(keys, str | bytes) or not isinstance(keys, Iterable):
            raise InvalidArgumentError(
                name, f"is of type {type(keys).__name__}", "give a list of keys"
            )
        return list(dict.fromkeys(self._checked(key) for key in keys))

    def _checked(self, key: str) -> str:
        """Return `key` as a plain `str`, or raise `InvalidKeyError`."""
        if type(key) is str:
            text = key
        elif isinstance(key, str):
            text = str.__str__(key)
        else:
            raise InvalidKeyError(f"is of type {type(key).__name__}", self._max_key_bytes)
        if text.isascii() and 0 < len(text) <= self._max_key_bytes and "\0" not in text:
            return text
        reason = self._fault(text)
        if reason:
            raise InvalidKeyError(reason, self._max_key_bytes)
        return text

    def _fault(self, key: str) -> str | None:
        if not key:
            return "is empty"
        if "\0" in key:
            return f"holds a NUL: {shown(key)}"
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            return f"holds a lone surrogate: {shown(key)}"
        if size > self._max_key_bytes:
            return f"has {size:,} bytes: {shown(key)}"
        return None


class _Pause:
    """Lets others have the event loop now and then, in the middle of much work."""

    def __init__(self) -> None:
        self._until = time.monotonic() + _SLICE

    async def if_due(self) -> None:
        if time.monotonic() > self._until:
            await asyncio.sleep(0)
            self._until = time.monotonic() + _SLICE


async def _succeeds(written: "asyncio.Future[Any]") -> bool:
    await asyncio.wait([written])
    return not written.cancelled() and written.exception() is None


def _checked_text(name: str, text: str) -> str:
    """Return a prefix or a bound as a plain `str`, or raise."""
    if not isinstance(text, str):
        raise InvalidArgumentError(name, f"is of type {type(text).__name__}", "give a str")
    text = str.__str__(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            name, "holds a lone surrogate, which no key does", "give a str without"
        ) from None
    return text


def _end_of(prefix: str) -> str | None:
    """Return the first text after all that begin with `prefix`; `None` if there is none.

    The next character of the last one: after U+D7FF come the surrogates, which
    no key holds, and after U+10FFFF comes nothing.
    """
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    following = "\ue000" if kept[-1] == "\ud7ff" else chr(ord(kept[-1]) + 1)
    return kept[:-1] + following


def _check_editable(value: object, name: str) -> None:
    if not (isinstance(value, list | dict) or codec.is_model(value)):
        raise NotEditableError(name, type(value).__name__)


def _not_callable(name: str, given: object, wanted: str) -> InvalidArgumentError:
    kind = "a coroutine function" if callable(given) else f"of type {type(given).__name__}"
    return InvalidArgumentError(name, f"is {kind}", f"give a function: {wanted}")


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _expiry(now: float, expires_in: float | timedelta | None) -> float | None:
    return None if expires_in is None else now + _seconds(expires_in)


def _seconds(expires_in: float | timedelta) -> float:
    """Return a period as seconds, or raise `InvalidExpiryError`."""
    if isinstance(expires_in, timedelta):
        expires_in = expires_in.total_seconds()
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float):
        raise InvalidExpiryError(f"is of type {type(expires_in).__name__}")
    if expires_in <= 0:
        raise InvalidExpiryError("is zero or negative")
    if expires_in > _LONGEST_EXPIRY:
        raise InvalidExpiryError("is too long")
    if math.isnan(expires_in):
        raise InvalidExpiryError("is not a number")
    return float(expires_in)
