"""Locks on keys that processes share: the system drops them when a process dies.

They make edits take turns; that none is lost is the doing of the revisions.
A file for each key would be as many files as keys, so keys share a number of
them. Whoever holds one may use it for other keys as well: else an edit inside
an edit could wait for itself.
"""

import asyncio
import random
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cat.errors import CatError, KeyBusyError
from cat.files import make_directory, make_file, unwritable
from cat.scope import Scope

if TYPE_CHECKING:
    from filelock import FileLock

# Two keys share a file by chance: then edits in two processes wait for each other.
FILES = 1024
# Seconds for which the edits of one process may hand a file to each other. Then
# it lies free for longer than others sleep between two looks, at most.
SHARED_FOR = 0.05
LOOK = 0.003


class _Held:
    """A file that is locked here: by whom, since when, and what frees it for all others."""

    __slots__ = ("file", "freed", "holders", "since")

    def __init__(self, file: "FileLock", since: float) -> None:
        self.file = file
        self.holders: list[object] = []
        self.since = since
        self.freed = asyncio.Event()


class Locks:
    """The locks of one database object; its files are made in `directory` when first needed.

    `timeout` is in seconds.
    """

    def __init__(self, directory: Path, timeout: float) -> None:
        self._directory = directory
        self._timeout = timeout
        self._held: dict[str, _Held] = {}
        self._files: dict[str, FileLock] = {}  # to make one costs as much as to use it
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
        while self._held:
            _, held = self._held.popitem()
            held.file.release(force=True)

    def _take(self, name: str, since: float) -> _Held | None:
        """Lock a file unless another process has it."""
        from filelock import FileLock, Timeout  # noqa: PLC0415  # 12 ms, for those who edit

        file = self._directory / name
        try:
            if name not in self._files:
                if not self._directory.is_dir():
                    self._directory.parent.stat()  # a home that was removed is not made again
                    make_directory(self._directory)
                make_file(file)
                self._files[name] = FileLock(file, mode=0o600, thread_local=False)
            lock = self._files[name]
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as error:
            if isinstance(error, CatError):
                raise
            raise unwritable(file, error) from error
        held = self._held[name] = _Held(lock, since)
        return held

    def _free(self, name: str, held: _Held, holder: object) -> None:
        held.holders.remove(holder)
        if not held.holders and self._held.get(name) is held:
            del self._held[name]
            self._before[name] = (held.since, time.monotonic())
            held.file.release()
        if not held.holders:
            held.freed.set()
