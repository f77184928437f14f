"""Values are secrets: no log line, no exception and no traceback shows one."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import dataclasses
import datetime as dt
import gc
import logging
import secrets
import sqlite3
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pydantic
import pytest
from typing_extensions import TypedDict  # pydantic wants this one on Python 3.11

from cat import (
    as_user,
    connect,
    context,
    erase_namespace,
    erase_user,
    export_user,
    for_user,
    store,
    user,
    users,
)
from cat.errors import (
    CatError,
    ConflictError,
    CorruptDatabaseError,
    CorruptValueError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    InvalidArgumentError,
    InvalidExpiryError,
    InvalidResultError,
    InvalidValueError,
    KeyBusyError,
    KeyNotFoundError,
    NestedEditError,
    NotADatabaseError,
    NotEditableError,
    NotScrubbedError,
    ReboundError,
    UnstorableValueError,
)

# Made anew in each run, so that no source line in a traceback holds them.
CANARY = f"canary{secrets.token_hex(8)}"
NUMBER = int.from_bytes(secrets.token_bytes(8)) | 1 << 63
KEY = f"key{secrets.token_hex(8)}"
USER = f"user{secrets.token_hex(8)}"
NAMESPACE = f"namespace{secrets.token_hex(8)}"


class Secret(pydantic.BaseModel):
    """A model whose field is told from others by its own rule."""

    text: str
    number: int = 0

    @pydantic.field_validator("number")
    @classmethod
    def _refuse(cls, number: int) -> int:
        if number < 0:
            raise ValueError(f"{CANARY} {number} is negative")
        return number


class Broken(pydantic.BaseModel):
    """A model that cannot be written."""

    text: str

    @pydantic.field_serializer("text")
    def _write(self, text: str) -> str:
        raise RuntimeError(text)


class Typed(TypedDict):
    """A typed dict."""

    text: int


@dataclasses.dataclass
class Plain:
    """A dataclass that shows its field."""

    text: Any


class Odd:
    """Something that JSON cannot hold, and that shows what it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[logging.LogRecord]]:
    """Capture every record of every logger at DEBUG, and look through them at the end.

    None shows a value, and none shows whose it is or under which key.
    """
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = records.append  # type: ignore[method-assign]
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield records
    gc.collect()  # an error that nobody asked for is logged when it is collected
    root.removeHandler(handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    formatter = logging.Formatter("%(message)s")
    for record in records:
        text = f"{formatter.format(record)} {record.msg!r} {record.args!r}"
        assert not shows(text), text
        assert not [name for name in (USER, KEY, NAMESPACE) if name in text], text


def shows(text: str) -> bool:
    """Say whether a text shows the canary, in any of the forms that it was saved in."""
    return CANARY in text or str(NUMBER) in text or f"{NUMBER:x}" in text


def texts(error: BaseException) -> Iterator[str]:
    """Return all that may be printed of an exception, its causes and its contexts."""
    yield "".join(traceback.format_exception(error))
    seen: list[BaseException | None] = [None]
    found: list[BaseException | None] = [error]
    while found:
        one = found.pop()
        if one is not None and one not in seen:
            seen.append(one)
            found += [one.__cause__, one.__context__]
            yield from (str(one), repr(one), repr(one.args), repr(getattr(one, "__notes__", "")))
            yield repr(vars(one)) if isinstance(one, CatError) else repr(getattr(one, "doc", ""))


def check(error: BaseException) -> None:
    """Insist that nothing about `error` shows the value."""
    for text in texts(error):
        assert not shows(text), text


async def refused(kind: type[CatError], verb: Awaitable[object]) -> None:
    """Insist that `verb` raises `kind`, and that nothing about it shows the value."""
    with pytest.raises(kind) as caught:
        await verb
    check(caught.value)


VALUES = {
    "text": lambda: CANARY,
    "number": lambda: NUMBER,
    "list": lambda: [[CANARY, NUMBER]],
    "nested": lambda: {"a": [{"b": (CANARY,)}]},
    "dict key": lambda: {CANARY: 1, NUMBER: 2},
    "model": lambda: Secret(text=CANARY, number=NUMBER),
    "nested model": lambda: [{"m": Secret(text=CANARY)}],
    "dataclass": lambda: Plain(CANARY),
    "accents": lambda: f"{CANARY}\u00e9",
    "long": lambda: CANARY * 10_000,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_values_in_every_verb(
    value: Callable[[], object], lines: list[logging.LogRecord]
) -> None:
    """Every verb, in every scope, keeps a value to itself."""
    with as_user(USER):
        for one in (store, user, for_user(USER), user.namespace(NAMESPACE)):
            await one.save(KEY, value())
            await one.save(KEY, value(), expires_in=3600)
            await one.load(KEY)
            await one.load(KEY, value(), type=object)
            await one.load("nothing", value())
            await one.exists(KEY)
            await one.expire(KEY, 3600)
            assert not shows(repr(await one.info(KEY)))
            await one.pop(KEY)
            await one.pop(KEY, value())
            assert await one.create(KEY, value(), expires_in=3600)
            assert not await one.create(KEY, value())
            await one.modify(KEY, lambda _: value())
            await asyncio.gather(*(one.modify(KEY, lambda _: value()) for _ in range(5)))
            await one.modify("new", lambda old: old, value())
            await one.load_or_create(KEY, value)
            await one.load_or_create("newer", value)
            async with one.edit("list", []) as items:
                items.append(value())
            async with one.edit("list", type=list[Any]) as items:
                items.append(value())
            await one.save_many({KEY: value(), "many": [value()]})
            await one.load_many([KEY, "nothing"])
            await one.increment("count", NUMBER)
            async for _ in one.scan():
                pass
            await one.items()
            await one.keys(KEY[:3])
            await one.count()
            await one.namespaces()
            await one.delete_many([KEY, "nothing"])
            await one.delete("many")
            await one.clear("ne")
            await one.clear_all()
            assert not shows(repr(one))
        await user.save(KEY, value())
        _ = user.folder
    assert await users() == [USER]
    await export_user(USER)
    await erase_user(USER)
    await erase_namespace(NAMESPACE)
    assert [one for one in lines if one.name == "aiosqlite"], "the handler must have worked"


CYCLE: list[Any] = [CANARY]
CYCLE.append(CYCLE)

UNSTORABLE = {
    "odd": partial(Odd, CANARY),
    "odd, nested": lambda: {"a": [CANARY, Odd(CANARY)]},
    "odd dict key": lambda: {Odd(CANARY): CANARY},
    "tuple dict key": lambda: {"a": {(CANARY, NUMBER): 1}},
    "set": lambda: {CANARY},
    "bytes": CANARY.encode,
    "datetime": lambda: {"b": CANARY, "at": dt.datetime.now(dt.UTC)},
    "nan": lambda: [CANARY, float("nan")],
    "cycle": lambda: CYCLE,
    "surrogates": lambda: f"{CANARY}\ud83d\ude00",
    "digits": lambda: NUMBER**300,
    "broken model": lambda: Broken(text=CANARY),
    "unchecked model": lambda: Secret.model_construct(text=CANARY, number=Odd(CANARY)),
    "dataclass": lambda: Plain(Odd(CANARY)),
    "exception": lambda: ValueError(CANARY),
    "function": lambda: [CANARY, lambda: CANARY],
}


@pytest.mark.parametrize("value", UNSTORABLE.values(), ids=UNSTORABLE)
async def test_unstorable(value: Callable[[], object]) -> None:
    """A value that is refused is named by its path and type alone."""
    await store.save(KEY, CANARY)
    await refused(UnstorableValueError, store.save(KEY, value()))
    assert await store.load(KEY) == CANARY


async def edited(key: str, change: Callable[[Any], object], *given: Any, **named: Any) -> None:
    """Edit a value by `change`."""
    async with store.edit(key, *given, **named) as value:
        change(value)


@pytest.mark.parametrize("value", UNSTORABLE.values(), ids=UNSTORABLE)
async def test_unstorable_in_every_verb(value: Callable[[], object]) -> None:
    """The same by every other way to store it; nothing changes."""
    await store.save(KEY, [CANARY])
    for verb in (
        lambda: store.create(KEY, value()),
        lambda: store.create("new", value()),
        lambda: store.load_or_create("new", value),
        lambda: store.modify(KEY, lambda _: value()),
        lambda: store.modify("new", lambda old: [old], value()),
        lambda: store.save_many({"new": CANARY, KEY: value()}),
        lambda: edited(KEY, lambda items: items.append(value())),
        lambda: edited("new", lambda items: items.append(value()), [CANARY]),
        lambda: edited(KEY, lambda items: items.append(value()), type=list[Any]),
    ):
        await refused(UnstorableValueError, verb())
    assert await store.items() == {KEY: [CANARY]}


async def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is too large is named by its size."""
    monkeypatch.setenv("CAT_MAX_VALUE_BYTES", "100")
    await store.save(KEY, CANARY)
    await refused(UnstorableValueError, store.save(KEY, [CANARY] * 100))


async def test_expiry() -> None:
    """An expiry that cannot be one is named by its type or its fault."""
    await store.save(KEY, CANARY)
    for expires_in in (CANARY, Odd(CANARY), -NUMBER, NUMBER, [CANARY]):
        bad: Any = expires_in
        for verb in (
            store.save(KEY, CANARY, expires_in=bad),
            store.save_many({KEY: CANARY}, expires_in=bad),
            store.create(KEY, CANARY, expires_in=bad),
            store.load_or_create("new", lambda: CANARY, expires_in=bad),
            store.increment("count", expires_in=bad),
            store.expire(KEY, bad),
        ):
            await refused(InvalidExpiryError, verb)


async def test_arguments() -> None:
    """An argument that cannot be one, and may be somebody's secret, is named by its type."""
    await store.save(KEY, CANARY)
    odd: Any
    for odd in (Odd(CANARY), NUMBER * 1.5, [CANARY], {CANARY: NUMBER}):
        for verb in (
            store.increment(KEY, odd),
            store.load_or_create("new", odd),
            store.modify(KEY, odd),
            store.save_many([odd]),  # type: ignore[arg-type]
            store.keys(odd),
            store.keys(after=odd),
            store.keys(limit=odd),
            store.items(odd),
            store.count(odd),
            store.clear(odd),
        ):
            await refused(InvalidArgumentError, verb)
    await refused(InvalidArgumentError, store.load_many(CANARY))
    await refused(InvalidArgumentError, store.delete_many(CANARY))
    await refused(InvalidArgumentError, store.save_many(CANARY))  # type: ignore[arg-type]
    await refused(InvalidArgumentError, store.keys(limit=-NUMBER))


async def test_results() -> None:
    """What a function must not return is not shown, and neither is what it was given."""

    async def late(old: Any) -> Any:
        return old

    await store.save(KEY, CANARY)
    await refused(InvalidResultError, store.modify(KEY, lambda _: None))
    await refused(InvalidResultError, store.modify("new", lambda _: None, CANARY))
    await refused(InvalidResultError, store.modify(KEY, lambda old: late(old)))  # noqa: PLW0108
    await refused(InvalidArgumentError, store.modify(KEY, late))
    assert await store.load(KEY) == CANARY


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_no_counter(value: Callable[[], object]) -> None:
    """What is no integer cannot be counted up, and is not shown."""
    await store.save(KEY, [value()])
    await refused(InvalidValueError, store.increment(KEY))
    await store.save(KEY, NUMBER + 0.5)
    await refused(InvalidValueError, store.increment(KEY, NUMBER))
    await store.save(KEY, 10**4300 - NUMBER)
    await refused(UnstorableValueError, store.increment(KEY, NUMBER))


async def test_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stops an edit, it shows nothing of the value that is edited."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.1")
    await store.save(KEY, [CANARY])
    await store.save("text", CANARY)
    await refused(NotEditableError, edited("text", repr))
    await refused(NotEditableError, edited("new", repr, CANARY))
    await refused(NotEditableError, edited(KEY, repr, (CANARY, NUMBER)))
    await refused(KeyNotFoundError, edited("new", repr))

    async def rebound() -> None:
        async with store.edit(KEY) as items:
            items = [CANARY, NUMBER]  # noqa: PLW2901  # the mistake that is tried here
        assert items

    async def nested(inner: Callable[[], Any]) -> None:
        async with store.edit(KEY) as items:
            items.append(NUMBER)
            await inner()

    async def elsewhere(inner: Callable[[], Any]) -> None:
        async with store.edit(KEY) as items:
            items.append(NUMBER)
            await asyncio.create_task(inner())

    await refused(ReboundError, rebound())
    for inner in (
        lambda: edited(KEY, repr),
        lambda: store.modify(KEY, lambda _: [CANARY]),
        lambda: store.increment(KEY, NUMBER),
    ):
        await refused(NestedEditError, nested(inner))
        await refused(KeyBusyError, elsewhere(inner))


async def test_conflicts() -> None:
    """A write that lands during an edit fails it, and neither value is shown."""
    for write in (
        lambda: store.save(KEY, [CANARY, NUMBER]),
        lambda: store.save_many({KEY: [CANARY]}),
        lambda: store.pop(KEY),
    ):
        await store.save(KEY, [CANARY])

        async def conflicting(write: Callable[[], Any] = write) -> None:
            async with store.edit(KEY) as items:
                items.append(NUMBER)
                await write()

        await refused(ConflictError, conflicting())


async def test_what_the_caller_raises() -> None:
    """An error of a function or a block passes as it is, with nothing of ours hung on it."""
    mine = KeyError("mine")

    def fail(*_: object) -> NoReturn:
        raise mine

    await store.save(KEY, [CANARY])
    for verb in (
        store.modify(KEY, fail),
        store.modify("new", fail, [CANARY]),
        store.load_or_create("new", fail),
        edited(KEY, fail),
        edited("new", fail, [CANARY]),
    ):
        with pytest.raises(KeyError) as caught:
            await verb
        assert caught.value is mine
        check(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None


TYPES = {
    "int": (lambda: CANARY, int),
    "list": (lambda: [1, CANARY, {"a": NUMBER}], list[int]),
    "dict": (lambda: {"a": CANARY}, dict[str, int]),
    "typed dict": (lambda: {"text": CANARY}, Typed),
    "model": (lambda: {"text": NUMBER, "other": CANARY}, Secret),
    "own rule": (lambda: {"text": CANARY, "number": -NUMBER}, Secret),
    "union": (lambda: [CANARY], int | bool | Secret),
    "date": (lambda: CANARY, dt.datetime),
}


@pytest.mark.parametrize(("value", "wanted"), TYPES.values(), ids=TYPES)
async def test_another_type(value: Callable[[], object], wanted: Any) -> None:
    """A value of another type than was asked for is named by the paths of what differs."""
    await store.save(KEY, value())
    await refused(InvalidValueError, store.load(KEY, type=wanted))
    await refused(InvalidValueError, store.load(KEY, CANARY, type=wanted))
    await refused(InvalidValueError, edited(KEY, repr, type=wanted))


SPOILED = {
    "list": (list[int], lambda: [1], lambda items: items.append(CANARY)),
    "dict": (dict[str, int], lambda: {"a": 1}, lambda items: items.update(b=CANARY)),
    "typed dict": (Typed, lambda: {"text": 1}, lambda items: items.update(text=CANARY)),
    "model": (Secret, lambda: Secret(text=CANARY), lambda one: setattr(one, "text", NUMBER)),
    "own rule": (Secret, lambda: Secret(text=CANARY), lambda one: setattr(one, "number", -NUMBER)),
    "dataclass": (Plain, lambda: Plain(CANARY), lambda one: setattr(one, "text", Odd(CANARY))),
    "its default": (list[int], lambda: [CANARY, NUMBER], repr),
}


@pytest.mark.parametrize(("wanted", "value", "spoil"), SPOILED.values(), ids=SPOILED)
async def test_spoiled_by_an_edit(wanted: Any, value: Callable[[], Any], spoil: Any) -> None:
    """What is of another type at the end of an edit is named by its path or its type."""
    with pytest.raises((InvalidValueError, UnstorableValueError)) as caught:
        await edited("new", spoil, value(), type=wanted)
    check(caught.value)
    assert not await store.exists("new")


@pytest.mark.parametrize("wanted", [None, int, Secret])
async def test_not_json(wanted: Any, home: Path) -> None:
    """Text that is not JSON, written by another program, is not shown either."""
    await store.save(KEY, 1)
    for text in (CANARY, f'{{"text": "{CANARY}', f'["{CANARY}"] {CANARY}', "[" * 5000 + CANARY):
        connection = sqlite3.connect(home / "cat.db", isolation_level=None)
        connection.execute("UPDATE entries SET value = ?", (text,))
        connection.close()
        await refused(CorruptValueError, store.load(KEY, type=wanted))
        await refused(CorruptValueError, edited(KEY, repr, type=wanted))


async def _scanned() -> None:
    async for _ in store.scan():
        pass


READERS: dict[str, Callable[[], Any]] = {
    "load": lambda: store.load(KEY, CANARY),
    "pop": lambda: store.pop(KEY, CANARY),
    "load_or_create": lambda: store.load_or_create(KEY, lambda: CANARY),
    "modify": lambda: store.modify(KEY, lambda _: CANARY),
    "increment": lambda: store.increment(KEY, NUMBER),
    "load_many": lambda: store.load_many(["other", KEY]),
    "items": store.items,
    "scan": _scanned,
    "export_user": lambda: export_user(USER),
}


@pytest.mark.parametrize("verb", READERS.values(), ids=READERS)
async def test_not_json_in_every_verb(verb: Callable[[], Any], home: Path) -> None:
    """The same for every other verb that reads a value."""
    for scope in (store, for_user(USER)):
        await scope.save_many({KEY: 1, "other": 2})
    for text in (CANARY, f'["{CANARY}"] {CANARY}', f'{{"{CANARY}": NaN}}'):
        connection = sqlite3.connect(home / "cat.db", isolation_level=None)
        connection.execute("UPDATE entries SET value = ? WHERE key = ?", (text, KEY))
        connection.close()
        await refused(CorruptValueError, verb())


async def test_busy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that another connection keeps waiting shows nothing of what it waits to save."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.05")
    await store.save(KEY, CANARY)
    connection = sqlite3.connect(home / "cat.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    await refused(DatabaseBusyError, store.save(KEY, [CANARY, NUMBER]))
    await refused(DatabaseBusyError, store.delete(KEY))
    for verb in (
        store.pop(KEY),
        store.create("new", CANARY),
        store.load_or_create("new", lambda: CANARY),
        store.expire(KEY, 60),
        store.modify(KEY, lambda _: [CANARY]),
        store.increment("count", NUMBER),
        store.save_many({KEY: CANARY, CANARY[:3]: NUMBER}),
        store.delete_many([KEY]),
        store.clear(KEY),
        store.clear_all(),
        edited("new", lambda items: items.append(NUMBER), [CANARY]),
        erase_user(USER),
        erase_namespace(NAMESPACE),
    ):
        await refused(DatabaseBusyError, verb)
    connection.close()


async def test_busy_with_a_reader(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An erasure that a reader keeps waiting shows nothing, in logs neither."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.05")
    await for_user(USER).save(KEY, CANARY * 10_000)
    connection = sqlite3.connect(home / "cat.db", isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM entries").fetchall()
    await refused(NotScrubbedError, erase_user(USER))
    connection.close()


async def test_not_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that holds secrets and is no database is named by its path."""
    path = tmp_path / "notes.txt"
    path.write_text(CANARY * 100)
    monkeypatch.setenv("CAT_URL", f"sqlite:///{path}")
    await refused(NotADatabaseError, store.save(KEY, CANARY))


async def test_damaged(tmp_path: Path) -> None:
    """A database whose pages are damaged is named by its path."""
    place = tmp_path / "place"
    async with connect(home=place):
        await store.save(KEY, CANARY)
    path = place / "cat.db"
    whole = path.read_bytes()
    assert CANARY.encode() in whole, "a value is plain text in the file"
    path.write_bytes(whole[:4096] + CANARY.encode() * 10_000)
    with pytest.raises(CorruptDatabaseError) as caught:
        async with connect(home=place):
            await store.save(KEY, CANARY)
    check(caught.value)


async def test_closed(home: Path) -> None:
    """A repository that is used after its end shows nothing of what it was to save."""
    async with connect(home=home):
        await store.save(KEY, CANARY)
        kept = context.repository()
    scope = store._scope()
    for verb in (
        lambda: kept.save(scope, KEY, CANARY, None),
        lambda: kept.load(scope, KEY, CANARY, None),
        lambda: kept.pop(scope, KEY, CANARY),
        lambda: kept.create(scope, KEY, CANARY, None),
        lambda: kept.load_or_create(scope, KEY, lambda: CANARY, None),
        lambda: kept.modify(scope, KEY, lambda _: CANARY, CANARY),
        lambda: kept.increment(scope, KEY, NUMBER, None),
        lambda: kept.save_many(scope, {KEY: CANARY}, None),
        lambda: kept.load_many(scope, [KEY]),
        lambda: kept.count(scope, ""),
        lambda: kept.erase_owner(USER),
        lambda: kept.export(USER),
    ):
        await refused(DatabaseUnavailableError, verb())
    with pytest.raises(DatabaseUnavailableError) as caught:
        async with kept.edit(scope, KEY, [CANARY], None):
            pytest.fail("the block was entered")
    check(caught.value)


CANCELLED: dict[str, Callable[[], Any]] = {
    "save": lambda: store.save(KEY, [CANARY, NUMBER]),
    "create": lambda: store.create("new", CANARY),
    "pop": lambda: store.pop(KEY),
    "modify": lambda: store.modify(KEY, lambda old: [old, NUMBER]),
    "increment": lambda: store.increment("count", NUMBER),
    "load_or_create": lambda: store.load_or_create("newer", lambda: CANARY),
    "save_many": lambda: store.save_many({KEY: [CANARY], "other": NUMBER}),
    "edit": lambda: edited("list", lambda items: items.append(NUMBER), [CANARY]),
    "items": store.items,
    "erase_user": lambda: erase_user(USER),
}


@pytest.mark.parametrize("verb", CANCELLED.values(), ids=CANCELLED)
async def test_cancelled(verb: Callable[[], Any]) -> None:
    """A verb that is cancelled shows nothing either, nor do those beside it."""
    await store.save(KEY, CANARY)
    for turns in range(8):
        others = [asyncio.create_task(one()) for one in CANCELLED.values()]
        task = asyncio.create_task(verb())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        [found] = await asyncio.gather(task, return_exceptions=True)
        for one in [found, *await asyncio.gather(*others, return_exceptions=True)]:
            if isinstance(one, BaseException):
                check(one)


async def test_wide_modes_name_no_one(home: Path, lines: list[logging.LogRecord]) -> None:
    """What the library itself logs names paths of the home, and neither users nor keys."""
    home.mkdir(mode=0o700)
    home.chmod(0o755)
    with as_user(USER):
        await user.namespace(NAMESPACE).save(KEY, CANARY)
        _ = user.namespace(NAMESPACE).folder
    assert [record.name for record in lines if record.name.startswith("cat")] == ["cat"]


def test_no_loop_of_its_own(lines: list[logging.LogRecord]) -> None:
    """A verb that is never awaited, and one in a thread of its own, show nothing."""
    with pytest.warns(RuntimeWarning, match="never awaited") as warned:
        store.save(KEY, CANARY)  # the mistake that is tried here
    thread = threading.Thread(target=lambda: asyncio.run(_save()))
    thread.start()
    thread.join()
    assert not any(shows(str(one.message)) for one in warned)
    assert not any(shows(record.getMessage()) for record in lines)


async def _save() -> None:
    await store.save(KEY, CANARY)
