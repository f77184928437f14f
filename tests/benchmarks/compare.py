"""What the verbs cost beside plain sqlite3, aiosqlite and diskcache, in one interleaved run.

    python tests/benchmarks/compare.py [rounds] [directory]

Every save stores a different value, as re-saving the same one syncs nothing.
Each round measures every contender once, in another order each time, and a
ratio is the median of the ratios of the rounds, as machines drift.

How durable a save is: catstore, sqlite3 and aiosqlite sync each commit (WAL,
FULL); diskcache runs with its own defaults (WAL, NORMAL) and syncs none.
"""

import asyncio
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiosqlite
import diskcache

import cat
from cat import store

ONE_AT_A_TIME = 200
WAYS = 100
KEYS = [f"key-{number}" for number in range(WAYS)]
TABLE = "CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
GET = "SELECT value FROM entries WHERE key = ?"
PUT = "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
PRAGMAS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"

Measure = Callable[[], Awaitable[None]]
counter = iter(range(1_000_000_000))


def value() -> dict[str, object]:
    """Return a small value that was never saved before."""
    return {"color": "dark", "size": next(counter), "tags": ["a", "b"]}


class Contender:
    """The same four measures of each store."""

    name: str

    async def save(self, key: str) -> None:
        """Save a new value."""
        raise NotImplementedError

    async def load(self, key: str) -> None:
        """Load a value."""
        raise NotImplementedError

    async def save_one_at_a_time(self) -> int:
        """Save, one after the other."""
        for number in range(ONE_AT_A_TIME):
            await self.save(KEYS[number % WAYS])
        return ONE_AT_A_TIME

    async def load_one_at_a_time(self) -> int:
        """Load, one after the other."""
        for number in range(ONE_AT_A_TIME):
            await self.load(KEYS[number % WAYS])
        return ONE_AT_A_TIME

    async def save_100_way(self) -> int:
        """Save 100 keys at once."""
        await asyncio.gather(*map(self.save, KEYS))
        return WAYS

    async def load_100_way(self) -> int:
        """Load 100 keys at once."""
        await asyncio.gather(*map(self.load, KEYS))
        return WAYS


class CatStore(Contender):
    """The library of this repository."""

    name = "catstore"

    async def save(self, key: str) -> None:
        """Save a new value."""
        await store.save(key, value())

    async def load(self, key: str) -> None:
        """Load a value."""
        await store.load(key)


class AioSQLite(Contender):
    """One aiosqlite connection."""

    name = "aiosqlite"

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection

    async def save(self, key: str) -> None:
        """Save a new value."""
        await self.connection.execute_fetchall(PUT, (key, json.dumps(value())))

    async def load(self, key: str) -> None:
        """Load a value."""
        rows = list(await self.connection.execute_fetchall(GET, (key,)))
        json.loads(rows[0][0])


class SQLite3(Contender):
    """Plain sqlite3, which blocks: the limit. Its 100 saves at once are one transaction."""

    name = "sqlite3"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    async def save(self, key: str) -> None:
        """Save a new value."""
        self.connection.execute(PUT, (key, json.dumps(value())))

    async def load(self, key: str) -> None:
        """Load a value."""
        json.loads(self.connection.execute(GET, (key,)).fetchone()[0])

    async def save_100_way(self) -> int:
        """Save 100 keys in one transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        for key in KEYS:
            await self.save(key)
        self.connection.execute("COMMIT")
        return WAYS

    async def load_100_way(self) -> int:
        """Load 100 keys, one after the other."""
        for key in KEYS:
            await self.load(key)
        return WAYS


class DiskCache(Contender):
    """diskcache, called on the event loop's thread, as it has no asynchronous API."""

    name = "diskcache"

    def __init__(self, cache: "diskcache.Cache") -> None:
        self.cache = cache

    async def save(self, key: str) -> None:
        """Save a new value."""
        self.cache.set(key, value())

    async def load(self, key: str) -> None:
        """Load a value."""
        self.cache.get(key)


MEASURES = ["load_one_at_a_time", "save_one_at_a_time", "load_100_way", "save_100_way"]
# In a round, so that each measure takes a while.
REPEATS = {"load_100_way": 5, "save_100_way": 5}


async def main(rounds: int, directory: str) -> None:
    """Measure everything in turn, and print a table."""
    place = Path(directory)
    async with (
        cat.connect(home=place / "cat"),
        aiosqlite.connect(place / "aiosqlite.db", isolation_level=None) as aio,
    ):
        plain = sqlite3.connect(place / "sqlite3.db", isolation_level=None)
        for script in (PRAGMAS, TABLE):
            await aio.executescript(script)
            plain.executescript(script)
        cache = diskcache.Cache(str(place / "diskcache"))
        contenders = [CatStore(), AioSQLite(aio), SQLite3(plain), DiskCache(cache)]
        for contender in contenders:
            await contender.save_100_way()
        times: dict[tuple[str, str], list[float]] = {}
        for round_number in range(rounds + 1):  # the first is a warm-up
            for measure in MEASURES:
                for contender in random.sample(contenders, len(contenders)):
                    spent = await timed(contender, measure)
                    if round_number:
                        times.setdefault((measure, contender.name), []).append(spent)
            print(f"\rround {round_number} of {rounds}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        cache.close()
        plain.close()
    report(times)


async def timed(contender: Contender, measure: str) -> float:
    """Return the microseconds of one operation."""
    count = 0
    started = time.perf_counter()
    for _ in range(REPEATS.get(measure, 1)):
        count += await getattr(contender, measure)()
    return (time.perf_counter() - started) / count * 1e6


def report(times: dict[tuple[str, str], list[float]]) -> None:
    """Print each measure: the median time of each, and catstore's ratio to it."""
    print(f"{'measure':<20}{'contender':<12}{'us each':>9}{'catstore is':>14}  (quartiles)")
    for (measure, name), spent in times.items():
        ours = times[measure, "catstore"]
        ratios = [mine / other for mine, other in zip(ours, spent, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        line = f"{measure:<20}{name:<12}{statistics.median(spent):>9.1f}"
        if name != "catstore":
            line += f"{middle:>12.2f} x  ({low:.2f} to {high:.2f})"
        print(line)


if __name__ == "__main__":
    chosen_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else ".") as scratch:
        asyncio.run(main(chosen_rounds, scratch))
