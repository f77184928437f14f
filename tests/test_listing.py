"""Listing: what a prefix finds, in which order, at what cost, and while it changes."""

# ruff: noqa: ASYNC240  # a test has its event loop to itself, and may block it

import asyncio
import itertools
import random
import re
import sqlite3
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cat import Store, context, for_user, store
from cat.backends import sqlite
from cat.backends.sqlite import changes
from cat.entry import Meta, Range
from cat.errors import InvalidArgumentError
from cat.repository import _end_of
from cat.scope import GLOBAL, Scope
from children import beside

LAST = "\U0010ffff"
SCALARS = [*range(1, 0xD800), *range(0xE000, 0x110000)]
ASCII = [chr(n) for n in range(32, 127)]
# The ends of what UTF-8 writes in one, two, three and four bytes, and of the surrogates.
ENDS = [chr(n) for n in (0x01, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFD, 0xFFFE, 0xFFFF)]
ENDS += [chr(n) for n in (0x10000, 0xFFFFF, 0x100000, 0x10FFFE, 0x10FFFF)]
MARKS = ["%", "_", "*", "?", "[", "]", "\\", "'", '"', "\ud7ff", "\ue000", LAST]


def beginning(keys: Iterable[str], prefix: str) -> list[str]:
    """Return what should be listed."""
    return sorted(key for key in keys if key.startswith(prefix))


async def scanned(pairs: AsyncIterator[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return all that a scan yields."""
    return [pair async for pair in pairs]


def shuffled(texts: Iterable[str]) -> list[str]:
    """Return texts in an order that is not their own."""
    found = sorted(texts)
    random.Random(1).shuffle(found)  # noqa: S311  # not a secret
    return found


def put(database: Path, scope: Scope, keys: Iterable[str], expires: float | None = None) -> None:
    """Store many entries with the library's own statement."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        meta = Meta(1, 1, 1.0, 1.0, expires)
        connection.executemany(changes.PUTS[1], ((*scope, key, *meta, "1") for key in keys))
        connection.execute("COMMIT")


# --- Prefixes.


async def test_a_prefix_lists_what_startswith_says() -> None:
    """`%`, `_`, `*`, `?`, `[`, case, and any other character of a prefix mean themselves."""
    others = [chr(n) for n in SCALARS[127:] if chr(n).isprintable()]
    characters = [*ASCII, *ENDS, *others[::400]]
    keys = {form for c in characters for form in (c, c + c, f"{c}x", f"x{c}", c + LAST, f"a{c}b")}
    keys |= {f"x{LAST * n}" for n in range(5)} | {LAST * n for n in range(1, 5)}
    await store.save_many(dict.fromkeys(shuffled(keys)))
    prefixes = {form for c in characters for form in (c, c + c, f"x{c}", f"a{c}", c + LAST)}
    prefixes |= {"", LAST * 3, LAST * 9, "x" + LAST * 4, "ab" * 5000, "a\0", "\0"}
    for prefix in prefixes:
        assert await store.keys(prefix) == beginning(keys, prefix), ascii(prefix)


@pytest.mark.parametrize(
    "prefix", ["", *MARKS, "a", "A", "a_", LAST * 2, "x\ud7ff", "none"], ids=ascii
)
async def test_every_verb_takes_the_same_prefix(prefix: str) -> None:
    """`keys`, `scan`, `items`, `count` and `clear` mean the same entries, in the same order."""
    keys = [c * n for c in [*MARKS, "a", "A", "\ud7fe", "\ue001"] for n in (1, 2)]
    keys += [f"{c}{mark}z" for c in "aAx" for mark in MARKS]
    values = {key: [key] for key in shuffled(keys)}
    await store.save_many(values)
    expected = {key: values[key] for key in beginning(keys, prefix)}
    assert await store.keys(prefix) == list(expected)
    assert await scanned(store.scan(prefix)) == list(expected.items())
    assert list((await store.items(prefix)).items()) == list(expected.items())
    assert await store.count(prefix) == len(expected)
    if prefix:
        assert await store.clear(prefix) == len(expected)
        assert await store.keys() == sorted(values.keys() - expected.keys())
    else:
        assert await store.clear_all() == len(keys)
        assert await store.keys() == []


def test_a_range_ends_before_the_next_character() -> None:
    """Of all characters there are, nothing lies between what begins with one and the next one."""
    assert sorted(map(chr, SCALARS), key=str.encode) == [chr(n) for n in SCALARS]
    for number, following in itertools.pairwise(SCALARS):
        if _end_of(chr(number)) != chr(following):
            pytest.fail(f"U+{number:04X}")
    assert _end_of("") is _end_of(LAST) is _end_of(LAST * 3) is None
    assert _end_of(f"a{LAST}{LAST}") == "b"


async def test_every_printable_character(home: Path) -> None:
    """Each of Unicode's printable characters lists its own keys, among those of all others."""
    await store.save("k", 0)
    printable = [chr(n) for n in SCALARS if chr(n).isprintable()]
    assert len(printable) > 100_000
    put(home / "cat.db", GLOBAL, (key for c in printable for key in (c, c + LAST)))
    repository = context.repository()
    # The statement and its parameters are the library's; a thread for each would take a minute.
    with closing(sqlite3.connect(home / "cat.db")) as connection:
        for c in printable:
            bounds = sqlite._named_bounds(repository._range(GLOBAL, c))
            page = {**bounds, "now": 1.0, "most": -1}
            found = connection.execute(sqlite.KEYS, page).fetchall()
            if found != [(c,), (c + LAST,)]:
                pytest.fail(f"{c!a}: {found!a}")


async def test_order_is_by_code_point() -> None:
    """No language, case or UTF-16 has a say: U+FFFF is before U+10000, and `Z` before `a`."""
    keys = ["Z", "a", "\x7f", "\x80", "e\u0301", "é", "\uffff", "\U00010000", LAST, "10", "9", " "]
    await store.save_many(dict.fromkeys(keys))
    assert await store.keys() == sorted(keys)
    assert [key for key, _ in await scanned(store.scan())] == sorted(keys)


# --- Pages.


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100, 101, 244, 245, 10**30])
async def test_pages_put_together_are_everything(limit: int) -> None:
    """Going on after the last key of each page lists each key once, in order."""
    keys = [f"{c}{n}" for c in ("k", *ENDS, *MARKS[:-3]) for n in range(9)]
    keys += [f"k0{n}{LAST}" for n in range(20)]
    assert len(set(keys)) == 245
    await store.save_many(dict.fromkeys(shuffled(keys)))
    for prefix in ("", "k", "k0", "\ud7ff", LAST, "none"):
        wanted = beginning(keys, prefix)
        found: list[str] = []
        after = None
        while page := await store.keys(prefix, after=after, limit=limit):
            assert len(page) == min(limit, len(wanted) - len(found))
            found += page
            after = page[-1]
        assert found == wanted


async def test_after_need_not_be_a_key() -> None:
    """`after` is a place in the order: all that begins with the prefix and is greater is listed."""
    keys = {f"{c}{end}" for c in "abc%" for end in ("", "0", "5", "9", LAST, "\ud7ff", "\ue000")}
    await store.save_many(dict.fromkeys(keys))
    assert await store.delete("b5")
    keys.remove("b5")
    places = ["", "\x01", "b5", "b50", "a\0", "b\0z", "zz", LAST * 2, "b" * 5000, "B", "b4\uffff"]
    for prefix in ("", "b", "b5", "%", "none", LAST):
        for after in [*keys, *places]:
            wanted = [key for key in beginning(keys, prefix) if key > after]
            assert await store.keys(prefix, after=after) == wanted
            assert await store.keys(prefix, after=after, limit=2) == wanted[:2]
            assert await store.keys(prefix, after=after, limit=0) == []


# --- What is refused.

PREFIXED: dict[str, Callable[[Store, Any], Awaitable[Any]]] = {
    "keys": lambda s, prefix: s.keys(prefix),
    "scan": lambda s, prefix: scanned(s.scan(prefix)),
    "items": lambda s, prefix: s.items(prefix),
    "count": lambda s, prefix: s.count(prefix),
    "clear": lambda s, prefix: s.clear(prefix),
}
NO_TEXTS: list[Any] = [
    None,
    5,
    0,
    True,
    1.5,
    b"k",
    b"",
    ["k"],
    ("k",),
    {},
    str,
    "\ud800",
    "a\udfff",
]
SCOPES = [store, for_user("alice"), store.namespace("n"), for_user(1).namespace("n").namespace("m")]


@pytest.mark.parametrize("verb", PREFIXED.values(), ids=PREFIXED)
async def test_a_prefix_that_is_no_text(verb: Any, home: Path) -> None:
    """Every verb refuses it with a short message, before there is a database."""
    for prefix in NO_TEXTS:
        for scope in SCOPES:
            with pytest.raises(InvalidArgumentError, match=r"^prefix (is of type|holds)") as caught:
                await verb(scope, prefix)
            assert len(str(caught.value)) < 200
            assert str(caught.value).isascii()
    assert not home.exists()


@pytest.mark.parametrize("after", NO_TEXTS[1:], ids=ascii)
async def test_an_after_that_is_no_text(after: Any, home: Path) -> None:
    """It is refused by name, before there is a database."""
    with pytest.raises(InvalidArgumentError, match=r"^after (is of type|holds)"):
        await store.keys(after=after)
    assert not home.exists()


@pytest.mark.parametrize("limit", [-1, -(10**30), True, False, 1.0, "1", b"1", float("nan"), []])
async def test_a_limit_that_is_none(limit: Any, home: Path) -> None:
    """It is refused by name, before there is a database: `-1` does not mean all."""
    with pytest.raises(InvalidArgumentError, match=r"^limit is (of type|negative)"):
        await store.keys(limit=limit)
    assert not home.exists()


async def test_a_scan_is_refused_where_it_is_asked_for() -> None:
    """A wrong prefix raises where `scan` is called, not where the loop begins."""
    with pytest.raises(InvalidArgumentError):
        store.scan(5)  # type: ignore[arg-type]


async def test_clear_with_an_empty_variable(home: Path) -> None:
    """`clear("")` raises, names `clear_all`, and leaves everything as it is."""
    with pytest.raises(InvalidArgumentError, match=r"clear_all\(\)"):
        await store.clear("")
    assert not home.exists()
    for scope in SCOPES:
        await scope.save("k", 1)
        with pytest.raises(InvalidArgumentError):
            await scope.clear("")
        with pytest.raises(TypeError):
            await scope.clear()  # type: ignore[call-arg]
    assert [await scope.items() for scope in SCOPES] == [{"k": 1}] * len(SCOPES)


# --- Whose entries.


def neighbours() -> list[Store]:
    """Return scopes whose owners and namespaces look alike."""
    found = []
    for owner in (store, *map(for_user, ("a", "A", "a/b", "ab", LAST))):
        inner = owner.namespace("a")
        found += [owner, inner, inner.namespace("b"), owner.namespace("ab"), owner.namespace(LAST)]
    return found


async def test_only_this_scope_is_listed_and_cleared() -> None:
    """Other owners, namespaces and namespaces below are neither seen, counted nor cleared."""
    scopes = neighbours()
    held = [{"k": n, f"k{n}": n, f"{n}": n, LAST: n} for n in range(len(scopes))]
    for scope, items in zip(scopes, held, strict=True):
        await scope.save_many(items)
    for scope, items in zip(scopes, held, strict=True):
        assert await scope.keys() == sorted(items)
        assert await scope.items() == items
        assert await scope.count() == 4
        assert await scope.count("k") == 2
    for number, scope in enumerate(scopes):
        if number % 2:
            assert await scope.clear("k") == 2
            held[number] = {f"{number}": number, LAST: number}
        else:
            assert await scope.clear_all() == 4
            held[number] = {}
        assert [await scope.items() for scope in scopes] == held


async def test_what_expired_does_not_show(home: Path) -> None:
    """It is in no list, count or answer of a clear, and its namespace is not there."""
    for scope in (store, for_user("a").namespace("n")):
        await scope.save_many({f"live{n:03}": n for n in range(150)})
    for place in (GLOBAL, Scope("a", "n"), Scope("", "gone")):
        put(home / "cat.db", place, (f"dead{n}" for n in range(120)), expires=2.0)
    for scope in (store, for_user("a").namespace("n")):
        assert len(await scope.keys()) == len(await scanned(scope.scan())) == 150
        assert await scope.count() == 150
        assert await scope.keys("dead") == []
        assert await scanned(scope.scan("dead")) == []
        assert await scope.items("dead") == {}
        assert await scope.count("dead") == await scope.count("dead1") == 0
        assert await scope.keys(limit=1) == ["live000"]
        assert await scope.keys("dead", limit=5) == []
        assert await scope.keys(after="dead5", limit=2) == ["live000", "live001"]
    assert await store.namespaces() == []
    assert await for_user("a").namespaces() == ["n"]
    with closing(sqlite3.connect(home / "cat.db")) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM entries").fetchall()
    assert count == 660, "none is removed yet"
    assert await store.clear("dead") == 0
    assert await store.namespace("gone").clear_all() == 0
    assert await for_user("a").namespace("n").clear_all() == 150


# --- Namespaces.

NAMES = ["a", "a-", "a/b", "a0", "a!", "a.b", "a/b/c", "a/b0", "a/b-/x", "a/\ud7ff/y", "A", "%"]
NAMES += ["deep/er/est", "deep/0", "é", LAST, f"{LAST}/{LAST}", "_", "deeper", "b/a", "ab", "a /a"]


def at(owner: Store, name: str) -> Store:
    """Return a namespace by the names that lead to it."""
    for part in filter(None, name.split("/")):
        owner = owner.namespace(part)
    return owner


async def test_namespaces_of_every_level() -> None:
    """Each level lists its own names once, sorted, also where others sort around the `/`."""
    owners = {store: NAMES, for_user("a"): NAMES[::2], for_user("a/b"): NAMES[1::2]}
    for owner, held in owners.items():
        for name in shuffled(held):
            await at(owner, name).save_many({"k": 1, "a/b": 2, LAST: 3})
    levels = {"/".join(name.split("/")[:n]) for name in NAMES for n in range(4)}
    for owner, held in owners.items():
        for level in levels:
            start = f"{level}/" if level else ""
            below = [name.removeprefix(start) for name in held if name.startswith(start)]
            expected = sorted({name.split("/")[0] for name in below})
            assert await at(owner, level).namespaces() == expected, level
    assert await for_user("nobody").namespaces() == []


async def test_an_empty_namespace_is_not_listed() -> None:
    """A namespace is there while it holds a value, or one below it does."""
    plugin = store.namespace("plugin")
    await plugin.namespace("inner").save("k", 1)
    assert await store.namespaces() == ["plugin"]
    assert await plugin.count() == 0
    await plugin.save("k", 1)
    await plugin.namespace("inner").delete("k")
    assert await store.namespaces() == ["plugin"]
    assert await plugin.namespaces() == []
    await plugin.clear_all()
    assert await store.namespaces() == []


async def test_many_namespaces() -> None:
    """However many there are, they are all listed."""
    names = [f"{c}{n}" for n in range(200) for c in "aé"]
    await asyncio.gather(*(store.namespace(name).save("k", 1) for name in names))
    assert await store.namespaces() == sorted(names)


# --- Scans.


async def test_a_scan_over_a_set_that_changes() -> None:
    """It never repeats a key, never raises, and yields whatever stayed, with its value."""
    chosen = random.Random(1)  # noqa: S311  # not a secret
    for turn in range(5):
        keys = [f"k{n:04}" for n in range(450)]
        await store.save_many({key: key for key in keys})
        stayed, been, found = set(keys), set(keys), []
        async for key, value in store.scan("k"):
            assert value == key
            found.append(key)
            if not chosen.randrange(4 + turn):
                dropped = chosen.sample(sorted(been), 4)
                added = [f"k{chosen.randrange(450):04}{chosen.choice('abc')}" for _ in range(4)]
                await store.delete_many(dropped)
                await store.save_many({key: key for key in added})
                been.update(added)
                stayed.difference_update(dropped)
        assert found == sorted(set(found)), "in order, and each once"
        assert stayed <= set(found) <= been
        assert 0 < len(stayed) < 450
        assert set(found) != set(keys)
        await store.clear_all()


CHANGES = """
import asyncio, itertools, random
from cat import store

async def main():
    for turn in itertools.count():
        await store.save_many({f"k{n:04}": n for n in range(1, 600, 2)})
        if not turn:
            print("ready", flush=True)
        await store.delete_many([f"k{n:04}" for n in random.sample(range(1, 600, 2), 150)])
        await store.save_many({f"k{n:04}-": n for n in random.sample(range(600), 100)})
        await store.clear("k05")

asyncio.run(main())
"""


async def test_a_scan_while_another_process_changes_the_set() -> None:
    """Nor does it when the changes come from elsewhere, hundreds at once."""
    stayed = {f"k{n:04}stay": n for n in range(450)}
    await store.save_many(stayed)
    sizes: set[int] = set()
    turns = 0
    with beside(CHANGES) as child:
        while turns < 15 or len(sizes) < 5:
            assert child.poll() is None, "it goes on"
            found = await scanned(store.scan())
            keys = [key for key, _ in found]
            assert keys == sorted(set(keys))
            assert {pair for pair in found if pair[0].endswith("stay")} == stayed.items()
            assert all(value == int(key[1:5]) for key, value in found)
            sizes.add(len(found))
            turns += 1


async def test_a_scan_that_is_left_in_the_middle(home: Path) -> None:
    """It holds no transaction: the log can be copied back and cut, and others can write."""
    values: dict[str, Any] = {f"k{n:03}": n for n in range(300)}
    values |= {f"m{n:03}": chr(97 + n) * 300_000 for n in range(20)}  # a page ends by bytes
    await store.save_many(values)
    for begun in (150, 305):
        pairs = store.scan()
        assert [await anext(pairs) for _ in range(begun)] == list(values.items())[:begun]
        async for key, _ in store.scan("m"):
            if key == "m004":
                break
        database = sqlite3.connect(home / "cat.db", timeout=0, isolation_level=None)
        with closing(database) as connection:
            connection.execute("DELETE FROM entries WHERE key = 'm018'")
            log = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        assert log == [(0, 0, 0)]
        assert (home / "cat.db-wal").stat().st_size == 0
        await store.save("m019", begun)
        rest = await scanned(pairs)
        assert rest == [*list(values.items())[begun:-2], ("m019", begun)]
        await store.save_many(values)


async def test_a_scan_of_large_values_takes_little_memory() -> None:
    """Pages end by bytes too: of 60 MB a few are in memory at any time."""
    large = {f"k{n:02}": chr(97 + n % 26) * 1_000_000 for n in range(60)}
    await store.save_many(large)
    await store.save_many({f"s{n}": n for n in range(5)})
    found = 0
    tracemalloc.start()
    try:
        async for key, value in store.scan():
            assert value == (large[key] if key in large else int(key[1:]))
            found += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == 65
    assert peak < 12_000_000


async def test_a_scan_of_nothing() -> None:
    """It ends at once, in a database that is not there yet too."""
    assert await scanned(store.scan()) == []
    assert await store.items("k") == {}
    await store.save("a", 1)
    assert await scanned(store.scan("b")) == []


async def test_scans_of_many_tasks_at_once() -> None:
    """Each task has a scan of its own, whoever is quicker."""
    values = {f"{c}{n:03}": n for c in "ab" for n in range(250)}
    await store.save_many(values)
    prefixes = ["a", "b", "", "a1"] * 5
    found = await asyncio.gather(*(scanned(store.scan(prefix)) for prefix in prefixes))
    for prefix, pairs in zip(prefixes, found, strict=True):
        assert pairs == [(key, values[key]) for key in beginning(values, prefix)]


# --- Plans and costs.

UNIQUE = "SEARCH entries USING INDEX sqlite_autoindex_entries_1"
COVERED = "SEARCH entries USING COVERING INDEX sqlite_autoindex_entries_1"
BOTH = "(owner=? AND namespace=? AND key>? AND key<?)"
ONE = "(owner=? AND namespace=? AND key=?)"
BY_EXPIRY = "SEARCH entries USING INDEX entries_by_expiry (expires<?)"
COVERED_BY_EXPIRY = BY_EXPIRY.replace("INDEX", "COVERING INDEX")

# How each statement finds its rows; what a plan says of other tables is left out.
PLANS = {
    sqlite.GET: [f"{UNIQUE} {ONE}"],
    sqlite.PEEK: [f"{UNIQUE} {ONE}"],
    sqlite.STAT: [f"{UNIQUE} {ONE}"],
    sqlite.PICK: [f"{UNIQUE} {ONE}"],
    sqlite.KEYS: [f"{UNIQUE} {BOTH}", COVERED_BY_EXPIRY, COVERED_BY_EXPIRY],
    sqlite.SCAN: [f"{UNIQUE} {BOTH}"],
    sqlite.COUNT: [f"{COVERED} {BOTH}", BY_EXPIRY],
    sqlite.NAMESPACES: [f"{UNIQUE} (owner=?)", f"{UNIQUE} (owner=? AND namespace>?)"],
    sqlite.OWNERS: [f"{UNIQUE} (owner>?)"],
    changes.PUTS[1]: [],  # an upsert looks at its index without a plan
    changes.PUTS[64]: [],
    changes.PUT_IF_ABSENT: [],
    changes.PUT_IF_UNCHANGED: [f"{UNIQUE} {ONE}"],
    changes.DELETE: [f"{UNIQUE} {ONE}"],
    changes.DELETE_IF_UNCHANGED: [f"{UNIQUE} {ONE}"],
    changes.EXPIRE: [f"{UNIQUE} {ONE}"],
    changes.IN_RANGE: [f"{UNIQUE} {BOTH}"],
    changes.CLEAR: [f"{UNIQUE} {BOTH}"],
    changes.OF_OWNER: [f"{UNIQUE} (owner=?)"],
    changes.CLEAR_OWNER: [f"{UNIQUE} (owner=?)"],
    changes.EXPIRED: [BY_EXPIRY],
    changes.REMOVE: ["SEARCH entries USING INTEGER PRIMARY KEY (rowid=?)"],
}
NAMED = dict.fromkeys(("owner", "namespace", "start", "end", "now", "most"), 1)


@pytest.mark.parametrize("count", [10, 10_000])
@pytest.mark.parametrize("analyzed", [False, True], ids=["as it is", "analyzed"])
async def test_plans(count: int, analyzed: bool, home: Path) -> None:  # noqa: FBT001  # a parameter
    """Every statement finds its rows by an index and both ends of a range, and none sorts."""
    await store.save("k", 1)
    for scope in [GLOBAL, Scope("a", ""), Scope("a", "n"), Scope("b", "n/m")]:
        put(home / "cat.db", scope, (f"k{n}" for n in range(count // 4)))
        put(home / "cat.db", scope, (f"e{n}" for n in range(count // 8)), expires=2.0)
    if analyzed:
        with closing(sqlite3.connect(home / "cat.db", isolation_level=None)) as connection:
            connection.execute("ANALYZE")
    with closing(sqlite3.connect(home / "cat.db")) as connection:
        for statement, expected in PLANS.items():
            places = ("[]",) * statement.count("?")
            values: Any = NAMED if re.search(r":[a-z]", statement) else places
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            steps = [step for *_, step in plan]
            found = [step for step in steps if " entries" in step]
            assert found == expected, statement
            assert not [step for step in steps if "TEMP B-TREE" in step or "AUTOMATIC" in step]


def work(connection: sqlite3.Connection, statement: str, parameters: Any) -> tuple[int, int]:
    """Return how many rows a statement gives, and how many steps of SQLite's machine it takes."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.set_progress_handler(step, 1)
    try:
        found = connection.execute(statement, parameters).fetchall()
    finally:
        connection.set_progress_handler(None, 1)
    return len(found), steps


async def test_a_page_costs_the_same_among_any_number(home: Path) -> None:
    """A page of 100 takes the same work among a thousand keys and a hundred thousand."""
    await store.save("k", 1)
    few, many = Scope("few", ""), Scope("many", "n")
    put(home / "cat.db", few, (f"k{n:06}" for n in range(0, 100_000, 100)))
    put(home / "cat.db", many, (f"k{n:06}" for n in range(100_000)))
    put(home / "cat.db", Scope("many", "n/m"), (f"k{n:06}" for n in range(10_000)))
    with closing(sqlite3.connect(home / "cat.db")) as connection:
        for start, end in [("", None), ("k", "l"), ("k05", "k06"), ("k000500\0", None)]:
            ranges = [Range(scope, start, end) for scope in (few, many)]
            pages = [{**sqlite._named_bounds(r), "now": 1.0, "most": 100} for r in ranges]
            rows = [(*sqlite._bounds(r), 1.0) for r in ranges]
            wanted: list[tuple[str, list[Any]]] = [(sqlite.KEYS, pages), (sqlite.SCAN, rows)]
            for statement, both in wanted:
                found = [work(connection, statement, parameters) for parameters in both]
                [(_, cost), (_, other)] = found
                assert [count for count, _ in found] == [100, 100]
                assert 100 < max(cost, other) <= 1.05 * min(cost, other)
        owners: list[Any] = [{"owner": owner, "now": 1.0} for owner in ("few", "many")]
        found = [work(connection, sqlite.NAMESPACES, owner) for owner in owners]
        assert [count for count, _ in found] == [1, 2]
        assert found[1][1] < 3 * found[0][1], "for each namespace, not for each key"
        count, cost = work(connection, sqlite.OWNERS, {"now": 1.0})
        assert count == 2
        assert cost < 500


@pytest.mark.parametrize("expired", [0, 99, 100, 101, 30_000])
async def test_keys_among_expired_ones(expired: int, home: Path) -> None:
    """However many have expired and are still there, none is listed, and a page costs little."""
    await store.save("k", 1)
    gone = (f"k{n:06}" for n in range(1, 2 * expired, 2))
    put(home / "cat.db", GLOBAL, gone, expires=2.0)
    put(home / "cat.db", GLOBAL, (f"k{n:06}" for n in range(0, 60_000, 2)))
    put(home / "cat.db", GLOBAL, ["later"], expires=time.time() + 1000)
    live = ["k", *(f"k{n:06}" for n in range(0, 60_000, 2)), "later"]
    assert await store.keys() == live
    assert await store.keys("k", after="k000100", limit=100) == live[52:152]
    page = {**sqlite._named_bounds(Range(GLOBAL, "k")), "now": time.time(), "most": 100}
    with closing(sqlite3.connect(home / "cat.db")) as connection:
        found, cost = work(connection, sqlite.KEYS, page)
    assert found == 100
    assert cost < 20_000
