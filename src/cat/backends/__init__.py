"""What a backend is: a table of texts, in as few methods as will do.

A backend knows no semantics. It is given a scope, a key and a finished text,
and it keeps them; what expired, what a caller sees and what an error means to
a plugin is decided above it, in `cat.repository`.
"""

from typing import Protocol

from cat.entry import Meta, Row
from cat.scope import Scope
from cat.settings import SQLITE_SCHEME, Settings


class Backend(Protocol):
    """One open database. Every method may be called by many tasks at once.

    Errors are those of `cat.errors`: a driver's own never leaves its backend.
    Each error of a write knows in `not_stored` whether nothing was stored.
    """

    async def open(self) -> None:
        """Make ready for use, once: files, locks, migrations. Every other method does so too."""

    async def get(self, scope: Scope, key: str) -> Row | None:
        """Return the entry, expired or not; it sees every write that has returned anywhere."""

    async def stat(self, scope: Scope, key: str) -> Meta | None:
        """Return what is known of the entry, expired or not, without reading its value."""

    async def put(self, scope: Scope, key: str, value: str, meta: Meta) -> None:
        """Store the entry, replacing any; durable when this returns.

        The `created` of an entry that is there and was live at `meta.updated` is kept.
        """

    async def delete(self, scope: Scope, key: str) -> Meta | None:
        """Remove the entry, durably, and return what it was, expired or not."""

    async def close(self) -> None:
        """Let go of files, locks and threads; what was stored is complete on disk. Idempotent."""


def connect(settings: Settings) -> Backend:
    """Return the backend for `settings.url`; nothing is touched before its first use."""
    from cat.backends.sqlite import SQLite  # noqa: PLC0415  # the driver of this URL alone

    return SQLite(settings.url.removeprefix(SQLITE_SCHEME), settings.timeout)
