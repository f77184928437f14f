"""The one async repository: all semantics live here, once.

Above it scopes and keys are what a plugin wrote; below it there is only text.
Whatever can be refused is refused here before the backend is asked, so that
nothing is opened, locked or written for input that cannot be used.
"""

import itertools
import math
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from cat import codec
from cat.backends import Backend
from cat.entry import Delete, Meta, Put
from cat.errors import InvalidExpiryError, InvalidKeyError, shown
from cat.scope import Scope

_LONGEST_EXPIRY = 1_000 * 365.25 * 86_400


class Repository:
    """Key-value verbs over one backend, for every scope.

    `max_value_bytes` and `max_key_bytes` count UTF-8; `now` returns seconds
    since 1970-01-01 UTC.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        max_value_bytes: int,
        max_key_bytes: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._backend = backend
        self._max_value_bytes = max_value_bytes
        self._max_key_bytes = max_key_bytes
        self._now = now
        # A revision never repeats for a key. Counting from 62 random bits, no
        # two repositories ever meet; `random` will not do, as plugins seed it.
        self._revisions = itertools.count(int.from_bytes(os.urandom(8)) >> 2)

    async def open(self) -> None:
        """Open the backend now rather than at the first verb."""
        await self._backend.open()

    async def close(self) -> None:
        """Close the backend. Idempotent."""
        await self._backend.close()

    def hold(self) -> None:
        """Close what is open, until `release`, as the process is about to fork."""
        self._backend.hold()

    def release(self) -> None:
        """Go on after `hold`."""
        self._backend.release()

    def abandon(self) -> bool:
        """Close what is open, for an event loop that was closed, and say whether anything was."""
        return self._backend.abandon()

    async def save(
        self, scope: Scope, key: str, value: object, expires_in: float | timedelta | None
    ) -> None:
        """Store `value` under `key`, replacing any; an expiry that was there is gone."""
        key = self._checked(key)
        text, size = codec.encode(value, self._max_value_bytes)
        now = self._now()
        expires = None if expires_in is None else now + _seconds(expires_in)
        meta = Meta(size, next(self._revisions), now, now, expires)
        await self._backend.write([Put(scope, key, text, meta)])

    async def load(self, scope: Scope, key: str, default: object, wanted: Any) -> Any:
        """Return a fresh value, of type `wanted` unless that is `None`, or `default` itself."""
        key = self._checked(key)
        if wanted is not None:
            codec.adapter_of(wanted)  # raises for what is no type, stored or not
        row = await self._backend.get(scope, key)
        if row is None or not self._live(row.expires):
            return default
        where = f"key {shown(key)} of {scope}"
        if wanted is None:
            return codec.decode(row.value, where)
        return codec.decode_as(wanted, row.value, where)

    async def exists(self, scope: Scope, key: str) -> bool:
        """Say whether there is an entry; a stored `None` is one."""
        meta = await self._backend.stat(scope, self._checked(key))
        return meta is not None and self._live(meta.expires)

    async def delete(self, scope: Scope, key: str) -> bool:
        """Remove the entry, and say whether there was one."""
        [meta] = await self._backend.write([Delete(scope, self._checked(key))])
        return meta is not None and self._live(meta.expires)

    def _live(self, expires: float | None) -> bool:
        return expires is None or self._now() < expires

    def _checked(self, key: str) -> str:
        """Return `key` as a plain `str`, or raise `InvalidKeyError`."""
        if not isinstance(key, str):
            raise InvalidKeyError(f"is of type {type(key).__name__}", self._max_key_bytes)
        text = str.__str__(key)
        if text.isascii() and 0 < len(text) <= self._max_key_bytes and "\0" not in text:
            return text
        reason = self._fault(text)
        if reason:
            raise InvalidKeyError(reason, self._max_key_bytes)
        return text

    def _fault(self, key: str) -> str | None:
        if not key:
            return "is empty"
        if "\0" in key:
            return f"holds a NUL: {shown(key)}"
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            return f"holds a lone surrogate: {shown(key)}"
        if size > self._max_key_bytes:
            return f"has {size:,} bytes: {shown(key)}"
        return None


def _seconds(expires_in: float | timedelta) -> float:
    """Return a period as seconds, or raise `InvalidExpiryError`."""
    if isinstance(expires_in, timedelta):
        expires_in = expires_in.total_seconds()
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float):
        raise InvalidExpiryError(f"is of type {type(expires_in).__name__}")
    if expires_in <= 0:
        raise InvalidExpiryError("is zero or negative")
    if expires_in > _LONGEST_EXPIRY:
        raise InvalidExpiryError("is too long")
    if math.isnan(expires_in):
        raise InvalidExpiryError("is not a number")
    return float(expires_in)
