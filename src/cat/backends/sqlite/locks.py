"""Locks on keys that processes share: the system drops them when a process dies.

They make edits take turns; that none is lost is the doing of the revisions.
A file for each key would be as many files as keys, so keys share a number of
them. A process that holds one may use it for its other keys as well: else two
edits, one inside the other, could wait for each other.
"""

import asyncio
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cat.errors import KeyBusyError
from cat.files import make_directory, make_file, unwritable
from cat.scope import Scope

if TYPE_CHECKING:
    from filelock import FileLock

# Two keys share a file by chance: then edits in two processes wait for each other.
FILES = 1024
# Seconds for which edits of one process hand a file to each other before they
# let others have it; and how long others sleep between two looks, at most.
SHARED_FOR = 0.05
LOOK = 0.003


class _Held:
    """A file that is locked: by whom here, and since when."""

    __slots__ = ("file", "freed", "keys", "since")

    def __init__(self, file: "FileLock") -> None:
        self.file = file
        self.keys: Counter[tuple[Scope, str]] = Counter()
        self.since = time.monotonic()
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

    async def acquire(self, scope: Scope, key: str) -> Callable[[], None]:
        """Lock a key and return what frees it, once; see `Backend.lock`."""
        place = (scope, key)
        number = zlib.crc32("\0".join((*scope, key)).encode()) % FILES
        name = f"{number:04}"
        deadline = time.monotonic() + self._timeout
        while True:
            held = self._held.get(name)
            if held is None:
                held = self._take(name)
                if held is not None:
                    break
                await asyncio.sleep(random.uniform(LOOK / 3, LOOK))  # noqa: S311  # not a secret
            elif held.keys.keys() - {place} or time.monotonic() - held.since < SHARED_FOR:
                break
            else:  # only edits of this key are on their way to the disk: let others have it
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await held.freed.wait()
                except TimeoutError:
                    raise self._busy(scope, key) from None
                await asyncio.sleep(2 * LOOK)
            if time.monotonic() > deadline:
                raise self._busy(scope, key)
        held.keys[place] += 1
        return partial(self._free, name, held, place)

    def close(self) -> None:
        """Free everything; from any thread."""
        while self._held:
            _, held = self._held.popitem()
            held.file.release(force=True)

    def _take(self, name: str) -> _Held | None:
        from filelock import FileLock, Timeout  # noqa: PLC0415  # 12 ms, for those who edit

        file = self._directory / name
        if name not in self._files:
            make_directory(self._directory)
            make_file(file)
            self._files[name] = FileLock(file, mode=0o600, thread_local=False)
        lock = self._files[name]
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        except OSError as error:
            raise unwritable(file, error) from error
        held = self._held[name] = _Held(lock)
        return held

    def _free(self, name: str, held: _Held, place: tuple[Scope, str]) -> None:
        if not held.keys[place]:
            return
        held.keys[place] -= 1
        if not held.keys[place]:
            del held.keys[place]
        if not held.keys and self._held.get(name) is held:
            del self._held[name]
            held.file.release()
            held.freed.set()

    def _busy(self, scope: Scope, key: str) -> KeyBusyError:
        return KeyBusyError(scope.at(key), self._timeout)
