"""What a backend is: a table of texts, in as few methods as will do.

A backend knows no semantics. It is given a scope, a key and a finished text,
and it keeps them; what expired, what a caller sees and what an error means to
a plugin is decided above it, in `cat.repository`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cat.entry import Answer, Change, Meta, Range, Row
from cat.scope import Scope
from cat.settings import SQLITE_SCHEME, Settings

if TYPE_CHECKING:
    import asyncio


class Backend(Protocol):
    """One open database. Every method may be called by many tasks at once.

    Errors are those of `cat.errors`: a driver's own never leaves its backend.
    Each error of a write knows in `not_stored` whether nothing was stored.
    """

    async def open(self) -> None:
        """Make ready for use, once: files, locks, migrations. Every other method does so too."""

    def peek(self, scope: Scope, key: str) -> tuple[str, int, float | None] | None:
        """Return what `get` would, if that takes no waiting, and else `UNKNOWN` itself.

        A plain tuple will do: the rest of a read takes little longer than to make a `Row`.
        """

    async def get(self, scope: Scope, key: str) -> Row | None:
        """Return the entry, expired or not; it sees every write that has returned anywhere."""

    async def stat(self, scope: Scope, key: str) -> Meta | None:
        """Return what is known of the entry, expired or not, without reading its value."""

    async def pick(self, scope: Scope, keys: Sequence[str]) -> dict[str, Row]:
        """Return those of `keys` that have an entry, expired or not, all of one moment."""

    async def keys(self, within: Range, now: float, limit: int | None) -> list[str]:
        """Return the first `limit` keys that are live at `now`, in order of code points."""

    async def scan(self, within: Range, now: float) -> list[tuple[str, Row]]:
        """Return the first few entries of a range that are live at `now`, in order of their keys.

        As many as make a page, and none only if there are none.
        """

    async def count(self, within: Range, now: float) -> int:
        """Return how many entries of a range are live at `now`."""

    async def namespaces(self, owner: str, now: float) -> list[str]:
        """Return the namespaces of an owner that hold an entry live at `now`, in order."""

    async def owners(self, now: float) -> list[str]:
        """Return the owners, but the global store, of an entry live at `now`, in order."""

    def write(self, changes: Sequence[Change], now: float) -> "asyncio.Future[list[Answer]]":
        """Make all changes or none, in order, durable when the future has its result: the answers.

        Writes take effect in the order of these calls. Where the `expected` of
        the first change does not hold, none is made and `ConflictError` is
        raised; only the first may have one. `now` says which entries are live,
        and a few that are not are removed on the way. A future that is
        cancelled leaves the changes made or not made.
        """

    def barrier(self) -> "asyncio.Future[list[Answer]] | None":
        """Return what is done when all writes called so far are; `None` if they are."""

    async def lock(
        self, scope: Scope, key: str, holder: object, deadline: float | None = None
    ) -> Callable[[], None]:
        """Keep every other database object, in this process or another, from locking the key.

        Returns what frees it; the end of the process does so too. A lock
        hinders nothing but locks. `holder` may hold several at once. Calls for
        the same key come one after another, the next at the earliest when the
        changes that the last was for are on their way. Raises `KeyBusyError`
        after `deadline`, on the monotonic clock, or the timeout.
        """

    async def scrub(self) -> None:
        """Leave nothing of what was removed in the files of the database."""

    async def close(self) -> None:
        """Let go of files, locks and threads; what was stored is complete on disk. Idempotent."""

    def hold(self) -> None:
        """Close what is open and let no thread open it, as the process is about to fork.

        SQLite in the child would take the parent's locks for its own.
        """

    def release(self) -> None:
        """Go on after `hold`, in the parent."""

    def forget(self) -> None:
        """Go on after `hold`, in the child: its locks are the parent's. Nothing else is called."""

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
