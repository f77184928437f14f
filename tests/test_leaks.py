"""Values are secrets: no log line, no exception and no traceback shows one."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import dataclasses
import datetime as dt
import logging
import secrets
import sqlite3
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pydantic
import pytest
from typing_extensions import TypedDict  # pydantic wants this one on Python 3.11

from cat import as_user, connect, context, for_user, store, user
from cat.errors import (
    CatError,
    CorruptDatabaseError,
    CorruptValueError,
    DatabaseBusyError,
    DatabaseUnavailableError,
    InvalidExpiryError,
    InvalidValueError,
    NotADatabaseError,
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

    None shows a value, and none of ours shows whose it is.
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
    root.removeHandler(handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    formatter = logging.Formatter("%(message)s")
    for record in records:
        text = f"{formatter.format(record)} {record.msg!r} {record.args!r}"
        assert not shows(text), text
        if record.name.split(".")[0] == "cat":
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
            if isinstance(one, CatError):
                yield repr(vars(one))


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
            await one.delete(KEY)
            assert not shows(repr(one))
        _ = user.folder
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


async def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is too large is named by its size."""
    monkeypatch.setenv("CAT_MAX_VALUE_BYTES", "100")
    await store.save(KEY, CANARY)
    await refused(UnstorableValueError, store.save(KEY, [CANARY] * 100))


async def test_expiry() -> None:
    """An expiry that cannot be one is named by its type or its fault."""
    await store.save(KEY, CANARY)
    for expires_in in (CANARY, Odd(CANARY), -NUMBER, NUMBER, [CANARY]):
        await refused(InvalidExpiryError, store.save(KEY, CANARY, expires_in=expires_in))  # type: ignore[arg-type]


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


@pytest.mark.parametrize("wanted", [None, int, Secret])
async def test_not_json(wanted: Any, home: Path) -> None:
    """Text that is not JSON, written by another program, is not shown either."""
    await store.save(KEY, 1)
    for text in (CANARY, f'{{"text": "{CANARY}', f'["{CANARY}"] {CANARY}', "[" * 5000 + CANARY):
        connection = sqlite3.connect(home / "cat.db", isolation_level=None)
        connection.execute("UPDATE entries SET value = ?", (text,))
        connection.close()
        await refused(CorruptValueError, store.load(KEY, type=wanted))


async def test_busy(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that another connection keeps waiting shows nothing of what it waits to save."""
    monkeypatch.setenv("CAT_TIMEOUT", "0.05")
    await store.save(KEY, CANARY)
    connection = sqlite3.connect(home / "cat.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    await refused(DatabaseBusyError, store.save(KEY, [CANARY, NUMBER]))
    await refused(DatabaseBusyError, store.delete(KEY))
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
    await refused(DatabaseUnavailableError, kept.save(scope, KEY, CANARY, None))
    await refused(DatabaseUnavailableError, kept.load(scope, KEY, CANARY, None))


async def test_cancelled() -> None:
    """A save that is cancelled shows nothing either."""
    await store.save(KEY, CANARY)
    for turns in range(6):
        task = asyncio.create_task(store.save(KEY, [CANARY, turns]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        [found] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(found, BaseException):
            check(found)


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
