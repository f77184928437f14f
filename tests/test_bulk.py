"""Many keys in one call: all of one moment, all or nothing, at any size, in nobody's way."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import collections
import random
import sqlite3
import subprocess
import sys
import time
import types
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import integrity

from cat import Store, for_user, store
from cat.backends.sqlite.writer import BATCH_BYTES, BATCH_CHANGES
from cat.errors import (
    CorruptValueError,
    DatabaseUnavailableError,
    InvalidArgumentError,
    InvalidExpiryError,
    InvalidKeyError,
    UnstorableValueError,
)
from children import beside

LIMIT = 60.0  # seconds; against hanging
TEXTS = ["é", "e\u0301", "😀", "\U0010ffff", "\uffff", "\ud7ff", "\x01", "\x7f", "\x1f", "\u2028"]
TEXTS += ["'", '"', "\\", "\\u0041", "A", "[", "%", "null", "1", "1.0", " ", "\n", "k" * 512]


def rows(database: Path, statement: str = "SELECT key, value FROM entries") -> list[Any]:
    """Return what another connection sees."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


class Once(Mapping[str, object]):
    """A mapping of another kind, that counts how often it is read."""

    def __init__(self, items: dict[str, object]) -> None:
        self.items_ = items
        self.reads = 0

    def __getitem__(self, key: str) -> object:
        self.reads += 1
        return self.items_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


# --- load_many.


async def test_load_many_gives_what_is_there_in_the_order_given() -> None:
    """A key that is given twice is there once, at its first place; one that is missing is not."""
    await store.save_many({"a": 1, "b": None, "c": [3]})
    found = await store.load_many(["c", "none", "b", "c", "a", "", "b"][:5])
    assert list(found.items()) == [("c", [3]), ("b", None), ("a", 1)]
    assert await store.load_many([]) == {}
    assert await store.load_many(["none"]) == {}
    assert await store.load_many(["A", "a "]) == {}


async def test_load_many_gives_fresh_values() -> None:
    """No two loads share anything."""
    await store.save("k", [])
    (await store.load_many(["k"]))["k"].append(1)
    assert await store.load_many(["k"]) == {"k": []}


@pytest.mark.parametrize(
    "kind",
    [
        list,
        tuple,
        iter,
        dict.fromkeys,
        lambda keys: dict.fromkeys(keys).keys(),
        lambda keys: (key for key in keys),
        collections.deque,
    ],
)
async def test_keys_of_any_kind_of_iterable(kind: Any) -> None:
    """A generator will do, and whatever else gives keys one by one."""
    await store.save_many({"a": 1, "b": 2, "c": 3})
    assert list(await store.load_many(kind(["c", "none", "a"]))) == ["c", "a"]
    assert await store.delete_many(kind(["c", "none", "a"])) == 2
    assert await store.items() == {"b": 2}


async def test_any_text_in_bulk() -> None:
    """No character of a key means anything on its way to many rows at once."""
    values = {f"{a}{b}"[:512]: f"{a}{b}" for a in TEXTS[:-1] for b in ("", *TEXTS[:-1])}
    values[TEXTS[-1]] = "long"
    await store.save_many(values)
    assert await store.items() == values
    assert await store.load_many(values) == values
    assert await store.load_many([key + "-" for key in values if len(key) < 512]) == {}
    assert await store.delete_many(list(values)[1::2]) == len(values) // 2
    assert await store.items() == dict(list(values.items())[::2])


@pytest.mark.parametrize("verb", [Store.load_many, Store.delete_many])
@pytest.mark.parametrize("keys", ["key", "", b"key", b"", None, 5, 1.5, object()], ids=ascii)
async def test_what_is_no_list_of_keys(verb: Any, keys: Any, home: Path) -> None:
    """A text is no list of one-letter keys: it is refused before there is a database."""
    for scope in (store, for_user("a").namespace("n")):
        with pytest.raises(InvalidArgumentError, match=r"^keys is of type .*give a list of keys"):
            await verb(scope, keys)
    assert not home.exists()


@pytest.mark.parametrize("verb", [Store.load_many, Store.delete_many])
@pytest.mark.parametrize("bad", ["", "a\0", "\ud800", "k" * 513, 5, None, b"k", ["k"]], ids=ascii)
async def test_one_bad_key_among_many(verb: Any, bad: Any, home: Path) -> None:
    """It is refused, and nothing is removed."""
    keys = [f"k{n}" for n in range(1000)]
    with pytest.raises(InvalidKeyError):
        await verb(store, [*keys[:500], bad, *keys[500:]])
    assert not home.exists()
    await store.save_many(dict.fromkeys(keys))
    with pytest.raises(InvalidKeyError):
        await verb(store, iter([*keys, bad]))
    assert await store.count() == 1000


async def test_load_many_of_what_is_not_json(home: Path) -> None:
    """It says which key holds it."""
    await store.save_many({"a": 1, "bad": 2, "c": 3})
    rows(home / "cat.db", "UPDATE entries SET value = '{' WHERE key = 'bad'")
    with pytest.raises(CorruptValueError, match="key 'bad'"):
        await store.load_many(["a", "bad", "c"])
    assert await store.load_many(["a", "c"]) == {"a": 1, "c": 3}


PAIRS = """
import asyncio, itertools
from cat import store

async def main():
    keys = [f"k{n:03}" for n in range(300)]
    for turn in itertools.count():
        await store.save_many(dict.fromkeys(keys, turn))
        if not turn:
            print("ready", flush=True)
        if turn % 10 == 9:
            assert await store.delete_many(keys) == 300

asyncio.run(main())
"""


async def test_load_many_is_of_one_moment() -> None:
    """While another process saves and deletes 300 keys together, all are seen of one turn."""
    keys = [f"k{n:03}" for n in range(300)]
    seen = collections.Counter[Any]()
    with beside(PAIRS) as child:
        while len(seen) < 15 or seen.total() < 100:
            assert child.poll() is None, "it goes on"
            found = await store.load_many(reversed(keys))
            assert len(found) in (0, 300)
            assert len(set(found.values())) <= 1
            seen[next(iter(found.values()), None)] += 1


# --- save_many.


async def test_save_many_replaces_and_adds() -> None:
    """What is not named stays; what is is replaced whole."""
    await store.save_many({"a": {"x": 1}, "b": 2})
    given = {"a": {"y": 1}, "c": 3}
    await store.save_many(given)
    assert await store.items() == {"a": {"y": 1}, "b": 2, "c": 3}
    assert given == {"a": {"y": 1}, "c": 3}


async def test_save_many_of_nothing(home: Path) -> None:
    """It does nothing; a wrong expiry is told all the same."""
    await store.save_many({})
    with pytest.raises(InvalidExpiryError):
        await store.save_many({}, expires_in=0)
    assert not home.exists()


@pytest.mark.parametrize("kind", [dict, Once, types.MappingProxyType, collections.UserDict])
async def test_mappings_of_any_kind(kind: Any) -> None:
    """Whatever is a mapping will do, and each value is read once."""
    given = kind({"b": 1, "a": [2]})
    await store.save_many(given)
    assert await store.items() == {"a": [2], "b": 1}
    assert getattr(given, "reads", 2) == 2


@pytest.mark.parametrize("mapping", [None, "ab", ["ab"], [("a", 1)], {"a"}, 5, dict], ids=ascii)
async def test_what_is_no_mapping(mapping: Any, home: Path) -> None:
    """A list of pairs is none either; it is refused before there is a database."""
    with pytest.raises(InvalidArgumentError, match=r"^mapping is of type"):
        await store.save_many(mapping)
    assert not home.exists()


@pytest.mark.parametrize("old", [False, True], ids=["new", "stored"])
async def test_one_bad_value_among_many(old: bool, home: Path) -> None:  # noqa: FBT001  # a parameter
    """Nothing is stored, and the message says in which value, and where in it."""
    values: dict[str, Any] = {f"k{n}": n for n in range(1000)}
    if old:
        await store.save_many(dict.fromkeys(values, "old"))
    moment = datetime.now(UTC)
    for key, bad, path in [
        ("k998", {"stops": [1, 2, {"at": moment}]}, "$['k998'].stops[2].at"),
        ("k0", moment, "$['k0']"),
        ("k500", [float("nan")], "$['k500'][0]"),
        ("k999", {1: 1, "1": 2}, "$['k999']"),
    ]:
        with pytest.raises(UnstorableValueError) as caught:
            await store.save_many(values | {key: bad})
        assert caught.value.path == path
        assert str(caught.value).startswith(f"{path} ")
        assert caught.value.not_stored
        assert home.exists() == old
    with pytest.raises(UnstorableValueError, match=r"^\$\['it\\'s \\xe9'\]|^\$\[\"it's \\xe9\"\]"):
        await store.save_many({"it's é": {1, 2}})
    for bad in ("", "a\0", "k" * 513, 5, None):
        with pytest.raises(InvalidKeyError):
            await store.save_many({**values, bad: 1})  # type: ignore[dict-item]
    assert await store.items() == (dict.fromkeys(values, "old") if old else {})


async def test_one_value_too_large_among_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is on each value, not on all of them, and nothing is stored beyond it."""
    monkeypatch.setenv("CAT_MAX_VALUE_BYTES", "1000")
    values = {f"k{n}": "x" * 998 for n in range(100)}
    with pytest.raises(UnstorableValueError, match=r"^\$\['k70'\] has 1,001 bytes"):
        await store.save_many(values | {"k70": "x" * 999})
    assert await store.count() == 0
    await store.save_many(values)
    assert await store.items() == values


async def test_a_mapping_that_changes_meanwhile() -> None:
    """What is stored is what was there when it was called, however long that takes."""
    values: dict[str, Any] = {f"k{n:05}": n for n in range(30_000)}
    before = dict(values)
    turns = 0

    async def change() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1
            values[f"new{turns}"] = turns
            del values[next(iter(values))]
            values[next(reversed(before))] = "changed"

    task = asyncio.create_task(store.save_many(values))
    await asyncio.sleep(0)
    changing = asyncio.create_task(change())
    await task
    changing.cancel()
    assert turns > 5
    assert await store.items() == before


async def test_an_engine_error_in_the_middle(home: Path) -> None:
    """Nothing of the call is stored, and those in flight beside it are."""
    await store.save_many({f"k{n}": "old" for n in range(0, 2000, 3)})
    before = await store.items()
    rows(
        home / "cat.db",
        "CREATE TRIGGER no BEFORE INSERT ON entries WHEN new.key = 'k1500' "
        "BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    others = {f"good{n}": n for n in range(2000)}
    answers = await asyncio.gather(
        store.save("before", 1),
        store.save_many({f"k{n}": n for n in range(2000)}),
        store.save_many(others),
        store.delete_many(["k0", "none"]),
        store.save("after", 1),
        return_exceptions=True,
    )
    assert isinstance(answers[1], DatabaseUnavailableError)
    assert answers[1].not_stored
    assert [answers[0], *answers[2:]] == [1, None, 1, 1]
    assert before.pop("k0") == "old"
    assert await store.items() == before | others | {"before": 1, "after": 1}


SAVES = """
import asyncio
from cat import store

async def main():
    values = {f"k{n:05}": VALUE for n in range(100_000)}
    await store.load("warm")
    print("ready", flush=True)
    await store.save_many(values)
    print("saved", flush=True)

asyncio.run(main())
"""


def length(log: Path) -> int:
    """Return the size of a file, and 0 if there is none."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_process_killed_in_the_middle(home: Path) -> None:
    """Of 100,000 keys all are stored or none, wherever in the writing the process is killed."""
    chosen = random.Random()  # noqa: S311  # other moments at each run
    held: list[Any] = []
    outcomes = set()
    # How much of the log, of about 7 MB, is written then; the third is killed after its end.
    lengths: list[float] = [500_000, 0, 1e9, chosen.uniform(0, 7e6), chosen.uniform(0, 7e6)]
    for number, enough in enumerate(lengths):
        with beside(SAVES.replace("VALUE", str(number))) as child:
            deadline = time.monotonic() + LIMIT
            if enough == 1e9:
                assert child.stdout is not None
                assert child.stdout.readline() == "saved\n"
            else:
                while child.poll() is None and length(home / "cat.db-wal") < enough:
                    assert time.monotonic() < deadline
            child.kill()
            ended = child.wait(LIMIT) == 0
        assert integrity(home / "cat.db") == "ok"
        found = rows(home / "cat.db", "SELECT value, count(*) FROM entries GROUP BY value")
        new = [(str(number), 100_000)]
        assert found == new if ended or enough == 1e9 else found in (held, new), enough
        outcomes.add(found == new)
        held = found
    assert outcomes == {True, False}


async def test_the_loop_goes_on_meanwhile() -> None:
    """While 100,000 keys are saved, loaded and deleted, other tasks have their turns."""
    values = {f"k{n:05}": n for n in range(100_000)}
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    await store.save("other", 1)
    ticker = asyncio.create_task(tick())
    with pytest.raises(UnstorableValueError):
        await store.save_many(values | {"last": {1}})
    counts = [turns]  # while all were encoded
    for call in (
        store.save_many(values),
        store.load_many(values),
        store.items("k"),
        store.keys("k"),
        store.delete_many(values),
    ):
        turns = 0
        answer = await call
        counts.append(turns)
        assert answer in (None, values, list(values), len(values))
    ticker.cancel()
    assert min(counts) > 5, counts
    assert await store.items() == {"other": 1}


async def test_a_call_that_is_cancelled() -> None:
    """It leaves all of its keys or none, and the next goes on."""
    chosen = random.Random(1)  # noqa: S311  # not a secret
    outcomes = set()
    for turn in range(25):
        values = {f"k{n:04}": turn for n in range(1500)}
        task = asyncio.create_task(store.save_many(values))
        for _ in range(chosen.choice((1, 2, 30, 100, 300))):
            await asyncio.sleep(0)
        outcomes.add(task.cancel())
        await asyncio.wait([task])
        await store.save("next", "k")  # behind what is on its way all the same
        assert await store.items() in ({"next": "k"}, values | {"next": "k"})
        await store.clear_all()
    assert True in outcomes


@pytest.mark.parametrize("count", [BATCH_CHANGES - 1, BATCH_CHANGES, BATCH_CHANGES + 1, 2345])
async def test_around_the_bound_of_a_batch(count: int, home: Path) -> None:
    """More changes than a batch holds are one transaction all the same."""
    values = {f"k{n:05}": n for n in range(count)}
    others = dict.fromkeys(values, "x")
    await asyncio.gather(store.save_many(values), store.save_many(others))
    assert await store.items() in (values, others)
    assert await store.delete_many(values) == count
    assert rows(home / "cat.db") == []


async def test_more_bytes_than_a_batch_holds() -> None:
    """More bytes than a batch holds are one transaction all the same."""
    values = {f"k{n}": chr(97 + n) * (BATCH_BYTES // 3) for n in range(7)}
    await asyncio.gather(store.save("a", 1), store.save_many(values), store.save("b", 2))
    assert await store.items() == {"a": 1, "b": 2} | values


async def test_save_many_with_an_expiry() -> None:
    """All of them have the same; and a later one without has none."""
    await store.save_many({"a": 1, "b": 2, "c": 3}, expires_in=timedelta(hours=1))
    found = [await store.info(key) for key in "abc"]
    assert len({info and info.expires_at for info in found}) == 1
    for info in found:
        assert info is not None
        assert info.expires_at is not None
        assert info.expires_at - info.updated_at == timedelta(hours=1)
    await store.save_many({"b": 4})
    info = await store.info("b")
    assert info is not None
    assert info.expires_at is None
    for wrong in (0, -1, float("nan"), True, "60"):
        with pytest.raises(InvalidExpiryError):
            await store.save_many({"a": 9, "d": 9}, expires_in=wrong)  # type: ignore[arg-type]
    assert await store.items() == {"a": 1, "b": 4, "c": 3}


# --- delete_many.


async def test_delete_many_counts_what_was_there() -> None:
    """Missing ones, and what is given twice, do not count; a stored `None` does."""
    await store.save_many({"a": None, "b": 2, "c": 3})
    await for_user("u").save("a", 1)
    assert await store.delete_many(["a", "none", "a", "c", "a"]) == 2
    assert await store.delete_many(["a", "c"]) == 0
    assert await store.delete_many([]) == 0
    assert await store.items() == {"b": 2}
    assert await for_user("u").load("a") == 1


async def test_delete_many_of_nothing_opens_nothing(home: Path) -> None:
    """Neither an empty list of keys to delete nor one to load needs a database."""
    assert await store.delete_many([]) == 0
    assert await store.load_many(iter([])) == {}
    assert not home.exists()


# --- Beside others.


async def test_mixes_of_single_and_bulk_calls() -> None:
    """In 150 mixes issued together, each caller has the answer of its turn."""
    chosen = random.Random(1)  # noqa: S311  # not a secret
    model: dict[str, int] = {}
    for turn in range(150):
        calls: list[Any] = []
        answers: list[Any] = []
        for number in range(chosen.randint(2, 30)):
            keys = chosen.sample("abcdef", chosen.randint(1, 5))
            kind = chosen.randrange(6)
            if kind == 0:
                calls.append(store.save(keys[0], number))
                answers.append(number)
                model[keys[0]] = number
            elif kind <= 2:
                calls.append(store.save_many(dict.fromkeys(keys, number)))
                answers.append(None)
                model.update(dict.fromkeys(keys, number))
            elif kind == 3:
                calls.append(store.delete(keys[0]))
                answers.append(model.pop(keys[0], None) is not None)
            elif kind == 4:
                calls.append(store.delete_many(keys))
                answers.append(sum(model.pop(key, None) is not None for key in keys))
            else:
                calls.append(store.create(keys[0], number))
                answers.append(keys[0] not in model)
                model.setdefault(keys[0], number)
        assert await asyncio.gather(*calls) == answers, turn
        assert await store.items() == dict(sorted(model.items())), turn


def test_processes_that_save_the_same_keys(home: Path) -> None:
    """Of three processes that save the same keys together, each time one has them all."""
    code = """
import asyncio, sys
from cat import store

async def main():
    for turn in range(20):
        await store.save_many({f"k{n:03}": sys.argv[1] for n in range(200)})
        found = await store.load_many([f"k{n:03}" for n in range(200)])
        assert len(found) == 200 and len(set(found.values())) == 1

asyncio.run(main())
"""
    made = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(3)]
    assert [child.wait(LIMIT) for child in made] == [0, 0, 0]
    held = rows(home / "cat.db", "SELECT count(*), count(DISTINCT value) FROM entries")
    assert held == [(200, 1)]
