"""Locks on keys that processes share: the system drops them when a process dies.

They make edits take turns; that none is lost is the doing of the revisions.
A file for each key would be as many files as keys, so keys share a number of
them. Whoever holds one may use it for other keys as well: else an edit inside
an edit could wait for itself.
"""

import asyncio
import random
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from cat.backends.sqlite.mutex import Mutex, faults_mapped
from cat.errors import KeyBusyError
from cat.files import make_directory
from cat.scope import Scope

# Two keys share a file by chance: then edits in two processes wait for each other.
FILES = 1024
# Seconds for which the edits of one process may hand a file to each other. Then
# it lies free for longer than others sleep between two looks, at most.
SHARED_FOR = 0.05
LOOK = 0.003
# Files that stay open when they are free: to open one costs five times what it
# costs to lock it, and it takes 100 KB.
KEPT = 32


class _Held:
    """A file that is locked here: by whom, since when, and what frees it for all others."""

    __slots__ = ("freed", "holders", "mutex", "since")

    def __init__(self, mutex: Mutex, since: float) -> None:
        self.mutex = mutex
        self.holders: list[object] = []
        self.since = since
        self.freed = asyncio.Event()


class Locks:
    """The locks of one database object; its files are made in `directory` when first needed.

    `timeout` is in seconds. `in_use` is held while SQLite is used here, and by
    whoever is about to fork.
    """

    def __init__(self, directory: Path, timeout: float, in_use: threading.Lock) -> None:
        self._directory = directory
        self._timeout = timeout
        self._held: dict[str, _Held] = {}
        self._kept: dict[str, Mutex] = {}  # the one used last comes last
        self._closed = False
        self._in_use = in_use
        # Of files that were held here: since when, and until when.
        self._before: dict[str, tuple[float, float]] = {}

    async def acquire(
        self, scope: Scope, key: str, holder: object, deadline: float | None = None
    ) -> Callable[[], None]:
        """Lock a key and return what frees it, to be called once; see `Backend.lock`."""
        deadline = deadline or time.monotonic() + self._timeout
        name = f"{zlib.crc32(chr(0).join((*scope, key)).encode()) % FILES:04}"
        while True:
            held = self._held.get(name)
            now = time.monotonic()
            if held is None:
                since, until = self._before.get(name, (now, 0.0))
                if until < now - LOOK:
                    since = now
                if now - since < SHARED_FOR:
                    held = self._take(name, since)
            elif holder not in held.holders and now - held.since >= SHARED_FOR:
                with suppress(TimeoutError):
                    async with asyncio.timeout(deadline - now):
                        await held.freed.wait()
                held = None
            if held is not None:
                held.holders.append(holder)
                return partial(self._free, name, held, holder)
            if now > deadline:
                raise KeyBusyError(scope.at(key), self._timeout)
            await asyncio.sleep(random.uniform(LOOK / 3, LOOK))  # noqa: S311  # not a secret

    def close(self) -> None:
        """Free everything; from any thread."""
        with self._in_use:
            self._closed = True
            self.close_free_ones()
            self.forget()

    def close_free_ones(self) -> None:
        """Close what is open and not locked, as the process is about to fork."""
        while self._kept:
            _, mutex = self._kept.popitem()
            mutex.close()

    def forget(self) -> None:
        """Close what is locked.

        Also in a child, whose SQLite takes what its parent had locked for locked by itself.
        """
        while self._held:
            _, held = self._held.popitem()
            held.mutex.close()

    def _take(self, name: str, since: float) -> _Held | None:
        """Lock a file unless somebody else has it."""
        file = self._directory / name
        with faults_mapped(file, self._timeout), self._in_use:
            mutex = self._kept.pop(name, None) or Mutex(file)
            try:
                taken = self._acquired(mutex)
            except BaseException:
                mutex.close()
                raise
            if not taken:
                self._keep(name, mutex)
                return None
            held = self._held[name] = _Held(mutex, since)
            return held

    def _acquired(self, mutex: Mutex) -> bool:
        try:
            return mutex.acquire()
        except FileNotFoundError:
            if not self._directory.is_dir():
                self._directory.parent.stat()  # a home that was removed is not made again
                make_directory(self._directory)
            mutex.make()
        return mutex.acquire()

    def _free(self, name: str, held: _Held, holder: object) -> None:
        held.holders.remove(holder)
        if not held.holders and self._held.get(name) is held:
            with self._in_use:
                del self._held[name]
                self._before[name] = (held.since, time.monotonic())
                held.mutex.release()
                self._keep(name, held.mutex)
        if not held.holders:
            held.freed.set()

    def _keep(self, name: str, mutex: Mutex) -> None:
        if self._closed:  # while the edit was under way
            mutex.close()
            return
        self._kept[name] = mutex
        if len(self._kept) > KEPT:
            self._kept.pop(next(iter(self._kept))).close()
