"""Uses of catstore that want a process of their own, which answers commands.

Growth needs several databases, and an event loop has only one; memory, threads and lateness are
those of a process that does nothing else. Started by `groups.py`, with a `CAT_HOME`.
"""

import asyncio
import json
import os
import random
import sqlite3
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from cat import Store, for_user, store
from contenders import GET, PRAGMAS, PUT, TABLE, WAYS, counter, value
from lines import answer

HOME = Path(os.environ["CAT_HOME"])


# --- Growth.


def scattered(number: int) -> str:
    """Return the key of a number: keys in no order, as an odd factor mixes 32 bits."""
    return f"{number * 2_654_435_761 % 2**32:08x}"


class Grown:
    """What was built: where a random key of it is."""

    keys = 0
    users = 0

    def pick(self) -> tuple[Store, str]:
        """Return a random scope, and a random key in it."""
        key = scattered(random.randrange(self.keys))
        return (for_user(random.randrange(self.users)) if self.users else store), key


grown = Grown()


async def build_keys(number: int) -> None:
    """Save so many keys in the shared scope."""
    for start in range(0, number, 5000):
        keys = map(scattered, range(start, min(start + 5000, number)))
        await store.save_many({key: value() for key in keys})
    grown.keys = number


async def build_users(number: int) -> None:
    """Save ten keys for each of so many users."""
    keys = [scattered(key) for key in range(10)]
    for start in range(0, number, WAYS):
        users = map(for_user, range(start, min(start + WAYS, number)))
        await asyncio.gather(*[user.save_many({key: value() for key in keys}) for user in users])
    grown.keys, grown.users = len(keys), number


async def grown_load(times: int) -> float:
    """Load random keys, and return the seconds."""
    chosen = [grown.pick() for _ in range(times)]
    started = perf_counter()
    for scope, key in chosen:
        await scope.load(key)
    return perf_counter() - started


async def grown_save(times: int) -> float:
    """Save to random keys that are there, and return the seconds."""
    chosen = [grown.pick() for _ in range(times)]
    started = perf_counter()
    for scope, key in chosen:
        await scope.save(key, value())
    return perf_counter() - started


async def grown_page(times: int) -> float:
    """List pages of up to 100 keys, each after a random one, and return the seconds."""
    chosen = [grown.pick() for _ in range(times)]
    started = perf_counter()
    for scope, key in chosen:
        await scope.keys(limit=100, after=key if not grown.users else None)
    return perf_counter() - started


# --- A value of 1 MB.


def large(form: str) -> Any:
    """Return a new value of about 1 MB of JSON."""
    if form == "text":
        return f"{next(counter):08}" + "catstore " * 116_000
    item = {"name": "a thing", "price": 12.5, "sold": False, "tags": ["a", "b", "c"]}
    first = next(counter)
    return [{"number": number, **item} for number in range(first, first + 11_800)]


class Plain:
    """Plain sqlite3 with JSON, in the same place."""

    def __init__(self) -> None:
        """Open a database that syncs each commit."""
        self.connection = sqlite3.connect(HOME / "plain.db", isolation_level=None)
        self.connection.executescript(PRAGMAS + TABLE)

    async def save(self, key: str, value: Any) -> None:
        """Commit an upsert."""
        self.connection.execute(PUT, (key, json.dumps(value)))

    async def load(self, key: str) -> Any:
        """Select and decode."""
        return json.loads(self.connection.execute(GET, (key,)).fetchone()[0])


plain: list[Plain] = []  # made when first used


def saver(name: str) -> Any:
    """Return catstore or plain sqlite3."""
    if name == "catstore":
        return store
    if not plain:
        plain.append(Plain())
    return plain[0]


async def large_save(name: str, form: str, times: int) -> float:
    """Save new large values, and return the seconds."""
    values = [large(form) for _ in range(times)]
    started = perf_counter()
    for one in values:
        await saver(name).save(form, one)
    return perf_counter() - started


async def large_load(name: str, form: str, times: int) -> float:
    """Load the large value, and return the seconds."""
    started = perf_counter()
    for _ in range(times):
        await saver(name).load(form)
    return perf_counter() - started


# --- How long the event loop is held.


@asynccontextmanager
async def ticking(late: list[float]) -> AsyncIterator[None]:
    """Wake up each millisecond in the block, and note by how many seconds too late."""

    async def tick() -> None:
        """Sleep, and compare."""
        while True:
            started = perf_counter()
            await asyncio.sleep(0.001)
            late.append(perf_counter() - started - 0.001)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    try:
        yield
    finally:
        await asyncio.sleep(0.01)
        ticker.cancel()


def clock(work: Callable[[], object]) -> float:
    """Return the seconds of a piece of work."""
    started = perf_counter()
    work()
    return perf_counter() - started


async def held(form: str, times: int) -> dict[str, float]:
    """Return for how many milliseconds beyond coding the loop was held, at worst and mostly.

    A machine is now slow and now fast: coding is what it took just before or just after.
    """
    beyond: dict[str, list[float]] = {"save": [], "load": []}
    for _ in range(times):
        value = large(form)
        text = json.dumps(value)
        steps: dict[str, tuple[Callable[[], object], Callable[[], Any]]] = {
            "save": (partial(json.dumps, value), partial(store.save, form, value)),
            "load": (partial(json.loads, text), partial(store.load, form)),
        }
        for verb, (code, work) in steps.items():
            late: list[float] = []
            before = clock(code)
            async with ticking(late):
                await work()
            beyond[verb].append(max(late) - max(before, clock(code)))
    mostly = (statistics.median(seen) for seen in beyond.values())
    return {"worst": 1000 * max(map(max, beyond.values())), "mostly": 1000 * max(mostly)}


async def traffic_store(number: int, until: float) -> None:
    """Save and load without a break."""
    key = f"key-{number}"
    while perf_counter() < until:
        await store.save(key, value())
        await store.load(key)


async def traffic_sleep(number: int, until: float) -> None:
    """Do nothing but take turns."""
    while perf_counter() < until:  # noqa: ASYNC110  # it is the traffic
        await asyncio.sleep(0)


async def traffic_none(number: int, until: float) -> None:
    """Sleep."""
    await asyncio.sleep(until - perf_counter())


TRAFFIC = {"store": traffic_store, "sleep": traffic_sleep, "none": traffic_none}


async def lag(traffic: str, seconds: float) -> dict[str, float]:
    """Return by how many milliseconds the loop was late beside 100 tasks of a kind."""
    late: list[float] = []
    async with ticking(late):
        until = perf_counter() + seconds
        await asyncio.gather(*[TRAFFIC[traffic](number, until) for number in range(WAYS)])
    late.sort()
    shares = {"50 %": 0.5, "99 %": 0.99, "99.9 %": 0.999, "worst": 1.0}
    return {
        name: 1000 * late[min(int(share * len(late)), len(late) - 1)]
        for name, share in shares.items()
    }


# --- Several processes.


async def burst(seconds: float) -> dict[str, float]:
    """Save 100 keys at once, again and again, and return how many, how long, and what failed."""
    saved = failed = 0
    started = perf_counter()
    while perf_counter() < started + seconds:
        saves = [store.save(f"{os.getpid()}-{number}", value()) for number in range(WAYS)]
        done = await asyncio.gather(*saves, return_exceptions=True)
        failed += sum(isinstance(outcome, Exception) for outcome in done)
        saved += WAYS
    return {"saved": saved - failed, "failed": failed, "seconds": perf_counter() - started}


# --- Memory and threads.


def status(field: str) -> int:
    """Return a number that the kernel tells of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


async def counted(number: int) -> int:
    """Save, and return how many threads there are when it is done."""
    await store.save(f"key-{number}", value())
    return status("Threads")


async def memory(saves: int) -> dict[str, float] | None:
    """Return by how much so many saves at once raise the peak, and the most threads there were."""
    peak = Path("/proc/self/clear_refs")
    if not peak.exists():
        return None
    await store.save("first", value())
    idle = status("VmRSS")
    peak.write_text("5")  # it begins anew
    threads = max(await asyncio.gather(*map(counted, range(saves))))
    return {"megabytes": (status("VmHWM") - idle) / 1024, "threads": threads}


VERBS = [
    build_keys,
    build_users,
    grown_load,
    grown_save,
    grown_page,
    large_save,
    large_load,
    held,
    lag,
    burst,
    memory,
]

if __name__ == "__main__":
    asyncio.run(answer({verb.__name__: verb for verb in VERBS}))
