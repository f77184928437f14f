"""Where the time of a call goes: catstore's own layers, from the outside in."""

import asyncio
import json
from collections.abc import Callable
from time import perf_counter
from typing import Any, Self

from contenders import KEYS, WAYS, value
from measures import Case

# Of a load, each row does what the row before it does, and more.
LOAD = {
    "select": "SELECT of the row",
    "peek": "+ the backend: a lock against forks, the error handling",
    "decoded": "+ JSON",
    "repository": "+ the repository: the key is checked, expiry is looked at",
    "store": "+ the store: whose loop, whose scope (`store.load`)",
}
# Of 100 saves at once, one after the other on the clock.
SAVES = {
    "asked": "100 tasks begin: encode, and put a call in the list",
    "to the thread": "the worker's thread wakes up",
    "committed": "one transaction: statements, and the sync",
    "to the loop": "the event loop wakes up",
    "told": "100 tasks go on, and end",
}
# What cannot be spared.
ALONE = {
    "tasks": "asyncio alone: 100 tasks that do nothing",
    "encode": "`codec.encode` of the small value",
    "dumps": "`json.dumps` of the small value",
    "lock": "a lock that processes share, taken and freed, as an `edit` does",
}


class Watch:
    """Looks at the clock as one batch of the writer passes by."""

    def __init__(self, writer: Any) -> None:
        """Look at the writer's own steps."""
        self.writer = writer
        self.seen: dict[str, float] = {}
        self.next, self.commit, self.settle = writer._next, writer._thread_commit, writer._settle

    def __enter__(self) -> Self:
        """Begin to look."""
        self.writer._next = self.on_next
        self.writer._thread_commit, self.writer._settle = self.on_commit, self.on_settle
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the writer as it was."""
        del self.writer._next, self.writer._thread_commit, self.writer._settle

    def on_next(self) -> None:
        """Look when the first batch is put together."""
        self.seen.setdefault("asked", perf_counter())
        self.next()

    def on_commit(self, batch: Any) -> None:
        """Look before and after a transaction."""
        self.seen["begun"] = perf_counter()
        self.commit(batch)
        self.seen["committed"] = perf_counter()

    def on_settle(self, *arguments: Any) -> None:
        """Look when the event loop hears of it."""
        self.seen["heard"] = perf_counter()
        self.settle(*arguments)


def timed(key: str, function: Callable[[], Any], times: int) -> Case:
    """Return a case of a plain function."""

    async def work() -> None:
        """Call it so many times."""
        for _ in range(times):
            function()

    return Case(key, work, times)


async def nothing() -> None:
    """Do nothing."""


async def tasks() -> None:
    """Have 100 tasks do nothing."""
    await asyncio.gather(*[nothing() for _ in KEYS])


class Load:
    """The layers of a load, each of which does what the one before it does, and more."""

    def __init__(self, store: Any) -> None:
        """Find the layers below the store."""
        from cat import codec, context
        from cat.backends.sqlite import PEEK
        from cat.scope import GLOBAL

        self.statement, self.scope, self.decode_text = PEEK, GLOBAL, codec.decode
        self.load, self.repository = store.load, context.repository()
        self.backend: Any = self.repository._backend

    async def select(self) -> None:
        """Read what the backend reads."""
        for key in KEYS:
            self.backend._reader.execute(self.statement, (*self.scope, key)).fetchone()

    async def peek(self) -> None:
        """Ask the backend."""
        for key in KEYS:
            self.backend.peek(self.scope, key)

    async def decoded(self) -> None:
        """Ask the backend, and decode."""
        for key in KEYS:
            self.decode_text(self.backend.peek(self.scope, key)[0], self.scope.at, key)

    async def from_repository(self) -> None:
        """Ask the repository."""
        for key in KEYS:
            await self.repository.load(self.scope, key, None, None)

    async def from_store(self) -> None:
        """Ask the store."""
        for key in KEYS:
            await self.load(key)


def load_cases(store: Any) -> list[Case]:
    """Return the layers of a load."""
    load = Load(store)
    works = [load.select, load.peek, load.decoded, load.from_repository, load.from_store]
    return [Case(f"layer, load: {key}", work, WAYS) for key, work in zip(LOAD, works, strict=True)]


def alone_cases() -> list[Case]:
    """Return what cannot be spared, and what an edit adds."""
    from cat import codec, context
    from cat.scope import GLOBAL

    backend, small = context.repository()._backend, value()

    async def lock() -> None:
        """Take a lock and free it."""
        for _ in range(20):
            (await backend.lock(GLOBAL, "locked", None))()

    return [
        Case("layer, alone: tasks", tasks, WAYS),
        timed("layer, alone: encode", lambda: codec.encode(small, 1 << 24), WAYS),
        timed("layer, alone: dumps", lambda: json.dumps(small), WAYS),
        Case("layer, alone: lock", lock, 20),
    ]


async def saves(store: Any, times: int) -> dict[str, float]:
    """Return for how long each step of 100 saves at once took, a save."""
    from cat import context

    spent = dict.fromkeys(SAVES, 0.0)
    with Watch(context.repository()._backend._writer) as watch:
        for _ in range(times):
            watch.seen.clear()
            began = perf_counter()
            await asyncio.gather(*[store.save(key, value()) for key in KEYS])
            seen = watch.seen
            marks = [began, seen["asked"], seen["begun"], seen["committed"], seen["heard"]]
            marks.append(perf_counter())
            for key, start, end in zip(SAVES, marks, marks[1:], strict=False):
                spent[key] += end - start
    return {f"layer, saves: {key}": seconds / times / WAYS for key, seconds in spent.items()}
