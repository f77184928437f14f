"""What a backend is: a table of texts, in as few methods as will do.

A backend knows no semantics. It is given a scope, a key and a finished text,
and it keeps them; what expired, what a caller sees and what an error means to
a plugin is decided above it, in `cat.repository`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cat.entry import Change, Meta, Row
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

    async def write(self, changes: Sequence[Change]) -> list[Meta | None]:
        """Make all changes or none, durable when this returns; they take effect in the order given.

        Calls take effect in the order in which they were made. The answer has
        for each `Delete` what it removed, expired or not, and else `None`. A
        caller that is cancelled leaves the changes made or not made.
        """

    async def close(self) -> None:
        """Let go of files, locks and threads; what was stored is complete on disk. Idempotent."""

    def hold(self) -> None:
        """Close what is open and let no thread open it, as the process is about to fork.

        SQLite in the child would take the parent's locks for its own.
        """

    def release(self) -> None:
        """Go on after `hold`, in the parent."""

    def abandon(self) -> bool:
        """Close what is open, for an event loop that was closed, and say whether anything was.

        From any thread.
        """


def connect(settings: Settings) -> Backend:
    """Return the backend for `settings.url`; nothing is touched before its first use."""
    from cat.backends.sqlite import SQLite  # noqa: PLC0415  # the driver of this URL alone

    return SQLite(
        Path(settings.url.removeprefix(SQLITE_SCHEME)),
        settings.timeout,
        interval=settings.durability == "interval",
        inline=settings.inline_reads,
    )
