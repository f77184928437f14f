"""What a user could pick: each library at its documented best use, behind the same few methods.

How many syncs a save makes was counted with `strace -f -c -e trace=fsync,fdatasync,msync`, as the
difference between 100 saves and 200 of them; each class says what was seen.
"""

import asyncio
import importlib.metadata
import json
import shutil
import socket
import sqlite3
import subprocess
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from lines import Child

WAYS = 100
KEYS = [f"key-{number}" for number in range(WAYS)]
TABLE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
GET = "SELECT value FROM entries WHERE key = ?"
PUT = "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
PRAGMAS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"

counter = count()


def value() -> dict[str, Any]:
    """Return a small value that was never saved before: an identical one would sync nothing."""
    return {"color": "dark", "size": next(counter), "tags": ["a", "b"]}


class AbsentError(Exception):
    """A peer cannot take part; the message says why."""


class Contender:
    """A store, and how it saves and loads one at a time and 100 at once."""

    name: ClassVar[str]
    package: ClassVar[str]
    durable: ClassVar[str]  # in words, for the table
    syncs: ClassVar[bool] = True  # whether a save that has returned is on the disk
    blocks: ClassVar[bool] = False  # whether a save holds the event loop until it is done
    at_once: ClassVar[str] = "100 tasks"  # what 100 at once is for it
    every: ClassVar[int] = 1  # takes part in one of so many slices, as it is slow

    def __init__(self) -> None:
        self.opened = AsyncExitStack()

    async def open(self, place: Path) -> None:
        """Open a new store in an empty directory, and push onto `opened` how to close it."""

    async def close(self) -> None:
        """Close what was opened."""
        await self.opened.aclose()

    def version(self) -> str:
        """Return the release that is installed."""
        return importlib.metadata.version(self.package)

    def remarks(self) -> list[str]:
        """Return what went wrong while it was measured."""
        return []

    async def save(self, keys: list[str]) -> None:
        """Save a new value to each key, one after the other."""
        raise NotImplementedError

    async def load(self, keys: list[str]) -> Any:
        """Load each key, one after the other, and return the last value."""
        raise NotImplementedError

    async def save_at_once(self) -> None:
        """Save a new value to each of 100 keys at once."""
        raise NotImplementedError

    async def load_at_once(self) -> None:
        """Load 100 keys at once."""
        raise NotImplementedError


class CatStore(Contender):
    """The library of this repository. One sync a save, and one for 100 at once."""

    name = "catstore"
    package = "catstore"
    durable = "on the disk when it returns; saves in flight share a sync"

    async def open(self, place: Path) -> None:
        """Bind `store` and `user` of this event loop."""
        import cat

        await self.opened.enter_async_context(cat.connect(home=place))
        self.store, self.user = cat.store, cat.user

    async def save(self, keys: list[str]) -> None:
        """Await `store.save`."""
        store = self.store
        for key in keys:
            await store.save(key, value())

    async def load(self, keys: list[str]) -> Any:
        """Await `store.load`."""
        store = self.store
        for key in keys:
            loaded = await store.load(key)
        return loaded

    async def save_at_once(self) -> None:
        """Gather saves."""
        await asyncio.gather(*[self.store.save(key, value()) for key in KEYS])

    async def load_at_once(self) -> None:
        """Gather loads."""
        await asyncio.gather(*map(self.store.load, KEYS))


class SQLite3(Contender):
    """Plain sqlite3, which blocks the event loop: the limit. One fdatasync a commit."""

    name = "sqlite3"
    package = "sqlite3"
    durable = "on the disk when it returns (WAL, FULL)"
    blocks = True
    at_once = "one transaction"

    async def open(self, place: Path) -> None:
        """Open a database that syncs each commit."""
        self.connection = sqlite3.connect(place / "plain.db", isolation_level=None)
        self.opened.callback(self.connection.close)
        self.connection.executescript(PRAGMAS + TABLE)

    def version(self) -> str:
        """Return that of SQLite."""
        return sqlite3.sqlite_version

    async def save(self, keys: list[str]) -> None:
        """Commit an upsert for each."""
        execute = self.connection.execute
        for key in keys:
            execute(PUT, (key, json.dumps(value())))

    async def load(self, keys: list[str]) -> Any:
        """Select, and decode JSON."""
        execute = self.connection.execute
        for key in keys:
            loaded = json.loads(execute(GET, (key,)).fetchone()[0])
        return loaded

    async def save_at_once(self) -> None:
        """Upsert in one transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        await self.save(KEYS)
        self.connection.execute("COMMIT")

    async def load_at_once(self) -> None:
        """Load one after the other: nothing is faster."""
        await self.load(KEYS)


class AioSQLite(Contender):
    """One aiosqlite connection in autocommit. One fdatasync a save."""

    name = "aiosqlite"
    package = "aiosqlite"
    durable = "on the disk when it returns (WAL, FULL)"

    async def open(self, place: Path) -> None:
        """Open a database that syncs each commit."""
        import aiosqlite

        connection = aiosqlite.connect(place / "aio.db", isolation_level=None)
        self.connection = await self.opened.enter_async_context(connection)
        await self.connection.executescript(PRAGMAS + TABLE)

    async def save_one(self, key: str) -> None:
        """Commit an upsert."""
        await self.connection.execute_fetchall(PUT, (key, json.dumps(value())))

    async def load_one(self, key: str) -> Any:
        """Select, and decode JSON."""
        [(text,)] = await self.connection.execute_fetchall(GET, (key,))
        return json.loads(text)

    async def save(self, keys: list[str]) -> None:
        """Await one after the other."""
        for key in keys:
            await self.save_one(key)

    async def load(self, keys: list[str]) -> Any:
        """Await one after the other."""
        for key in keys:
            loaded = await self.load_one(key)
        return loaded

    async def save_at_once(self) -> None:
        """Gather saves: a commit each, as the tasks know nothing of each other."""
        await asyncio.gather(*map(self.save_one, KEYS))

    async def load_at_once(self) -> None:
        """Gather loads."""
        await asyncio.gather(*map(self.load_one, KEYS))


class DiskCache(Contender):
    """diskcache as it comes: it pickles, evicts above 1 GiB, and blocks the event loop.

    100 more saves made three fdatasync, those of a checkpoint, or none.
    """

    name = "diskcache"
    package = "diskcache"
    durable = "not synced (WAL, NORMAL): a power cut takes what the last checkpoint has not"
    syncs = False
    blocks = True
    at_once = "one transaction"

    async def open(self, place: Path) -> None:
        """Open a cache with the default settings."""
        import diskcache

        self.cache = self.opened.enter_context(diskcache.Cache(str(place)))

    async def save(self, keys: list[str]) -> None:
        """Set each."""
        for key in keys:
            self.cache.set(key, value())

    async def load(self, keys: list[str]) -> Any:
        """Get each."""
        for key in keys:
            loaded = self.cache.get(key)
        return loaded

    async def save_at_once(self) -> None:
        """Set in a transaction, as its docs advise for many."""
        with self.cache.transact():
            await self.save(KEYS)

    async def load_at_once(self) -> None:
        """Get in a transaction."""
        with self.cache.transact():
            await self.load(KEYS)


class KeyValue(Contender):
    """The disk store of py-key-value-aio, which rests on diskcache.

    100 more saves synced nothing.
    """

    name = "py-key-value-aio"
    package = "py-key-value-aio"
    durable = "as diskcache, on which it rests"
    syncs = False
    blocks = True
    at_once = "`put_many`, `get_many`"

    async def open(self, place: Path) -> None:
        """Open a disk store with the default settings."""
        from key_value.aio.stores.disk import DiskStore

        self.store = DiskStore(directory=place)
        self.opened.push_async_callback(self.store.close)
        await self.store.setup()

    async def save(self, keys: list[str]) -> None:
        """Put each."""
        for key in keys:
            await self.store.put(key, value())

    async def load(self, keys: list[str]) -> Any:
        """Get each."""
        for key in keys:
            loaded = await self.store.get(key)
        return loaded

    async def save_at_once(self) -> None:
        """Put many."""
        await self.store.put_many(KEYS, [value() for _ in KEYS])

    async def load_at_once(self) -> None:
        """Get many."""
        await self.store.get_many(KEYS)


class LangGraph(Contender):
    """LangGraph's AsyncSqliteStore, which puts what waits into one batch.

    Four fdatasync a save, and four for 100 at once: it keeps SQLite's own journal mode.
    """

    name = "LangGraph store"
    package = "langgraph-checkpoint-sqlite"
    durable = "on the disk when it returns (rollback journal, FULL)"
    every = 4

    async def open(self, place: Path) -> None:
        """Open a store as its docs do."""
        from langgraph.store.sqlite.aio import AsyncSqliteStore

        store = AsyncSqliteStore.from_conn_string(str(place / "store.db"))
        self.store = await self.opened.enter_async_context(store)
        await self.store.setup()

    async def save(self, keys: list[str]) -> None:
        """Put each."""
        for key in keys:
            await self.store.aput(("bench",), key, value())

    async def load(self, keys: list[str]) -> Any:
        """Get each."""
        for key in keys:
            item = await self.store.aget(("bench",), key)
        return item.value

    async def save_at_once(self) -> None:
        """Gather puts."""
        await asyncio.gather(*[self.store.aput(("bench",), key, value()) for key in KEYS])

    async def load_at_once(self) -> None:
        """Gather gets."""
        await asyncio.gather(*[self.store.aget(("bench",), key) for key in KEYS])


class LMDB(Contender):
    """lmdb, with JSON; it blocks the event loop.

    One fdatasync a commit, and one write of a page to a file opened with O_DSYNC.
    """

    name = "lmdb"
    package = "lmdb"
    durable = "on the disk when it returns"
    blocks = True
    at_once = "one transaction"

    async def open(self, place: Path) -> None:
        """Open an environment with the default flags, which sync."""
        import lmdb

        self.environment = lmdb.open(str(place), map_size=1 << 28)
        self.opened.callback(self.environment.close)

    async def save(self, keys: list[str]) -> None:
        """Commit a transaction for each."""
        for key in keys:
            with self.environment.begin(write=True) as transaction:
                transaction.put(key.encode(), json.dumps(value()).encode())

    async def load(self, keys: list[str]) -> Any:
        """Begin a transaction for each."""
        for key in keys:
            with self.environment.begin() as transaction:
                loaded = json.loads(transaction.get(key.encode()))
        return loaded

    async def save_at_once(self) -> None:
        """Put in one transaction."""
        with self.environment.begin(write=True) as transaction:
            for key in KEYS:
                transaction.put(key.encode(), json.dumps(value()).encode())

    async def load_at_once(self) -> None:
        """Get in one transaction."""
        with self.environment.begin() as transaction:
            for key in KEYS:
                json.loads(transaction.get(key.encode()))


class Redis(Contender):
    """A Redis server of its own over loopback, with an append-only file.

    100 more saves made one fdatasync or none: it syncs once a second, as its docs advise.
    """

    name = "Redis"
    package = "redis"
    durable = "synced once a second: a power cut takes the last one"
    syncs = False
    at_once = "one pipeline"

    async def open(self, place: Path) -> None:
        """Start a server on a free port, and connect."""
        program = shutil.which("redis-server")
        if program is None:
            raise AbsentError("there is no redis-server on the PATH")
        import redis.asyncio

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = start_redis(program, place, port)
        self.opened.callback(server.wait)
        self.opened.callback(server.terminate)
        self.client = redis.asyncio.Redis(port=port)
        self.opened.push_async_callback(self.client.aclose)
        await self.wait()

    async def wait(self) -> None:
        """Wait until the server answers."""
        from redis.exceptions import RedisError

        for _ in range(100):
            try:
                self.release = (await self.client.info("server"))["redis_version"]
            except RedisError:
                await asyncio.sleep(0.05)
            else:
                return
        raise AbsentError("redis-server does not answer")

    def version(self) -> str:
        """Return that of the server and that of the client."""
        return f"{self.release} (client {importlib.metadata.version('redis')})"

    async def save(self, keys: list[str]) -> None:
        """Set each."""
        for key in keys:
            await self.client.set(key, json.dumps(value()))

    async def load(self, keys: list[str]) -> Any:
        """Get each."""
        for key in keys:
            loaded = json.loads(await self.client.get(key))
        return loaded

    async def save_at_once(self) -> None:
        """Set in one pipeline."""
        async with self.client.pipeline(transaction=False) as pipeline:
            for key in KEYS:
                pipeline.set(key, json.dumps(value()))
            await pipeline.execute()

    async def load_at_once(self) -> None:
        """Get in one pipeline."""
        async with self.client.pipeline(transaction=False) as pipeline:
            for key in KEYS:
                pipeline.get(key)
            for text in await pipeline.execute():
                json.loads(text)


def start_redis(program: str, place: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a server with the persistence that the docs of Redis advise."""
    options = {"bind": "127.0.0.1", "port": port, "dir": place, "save": "", "appendonly": "yes"}
    command = [program, "--appendfsync", "everysec"]
    for name, setting in options.items():
        command += [f"--{name}", str(setting)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


class CheshireCat(Contender):
    """The store of the real Cheshire Cat AI, in a process with a virtual environment of its own.

    Four fdatasync a save, also of those made at once: SQLite's own journal mode.
    """

    name = "Cheshire Cat"
    package = "cheshire-cat-ai"
    durable = "on the disk when it returns (rollback journal, FULL)"
    every = 20
    python: ClassVar[str | None] = None  # that of its environment
    why_not: ClassVar[str] = "it was not asked for"

    async def open(self, place: Path) -> None:
        """Start the process, and try it."""
        if self.python is None:
            raise AbsentError(self.why_not)
        self.tried = self.failed = 0
        program = Path(__file__).with_name("cheshire_cat.py")
        self.child = Child(self.python, program, home=place)
        self.opened.callback(self.child.close)
        try:
            self.release = self.child.ask("version")
        except EOFError as ended:
            raise AbsentError(f"it does not run: {ended}") from None

    def version(self) -> str:
        """Return what its environment has."""
        return self.release

    def remarks(self) -> list[str]:
        """Say how many of its saves failed."""
        if not self.failed:
            return []
        return [f"Cheshire Cat: {self.failed} of {self.tried} saves made at once failed."]

    async def save(self, keys: list[str]) -> None:
        """Have it save each."""
        self.child.ask("save", keys=keys)

    async def load(self, keys: list[str]) -> Any:
        """Have it load each."""
        return self.child.ask("load", keys=keys)

    async def save_at_once(self) -> None:
        """Have it gather saves, of which some fail."""
        self.tried += WAYS
        self.failed += self.child.ask("save_at_once", keys=KEYS)

    async def load_at_once(self) -> None:
        """Have it gather loads."""
        self.child.ask("load_at_once", keys=KEYS)


CONTENDERS = [
    CatStore,
    SQLite3,
    AioSQLite,
    DiskCache,
    KeyValue,
    LangGraph,
    LMDB,
    Redis,
    CheshireCat,
]
