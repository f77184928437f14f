"""What is kept for one key: the columns that a repository and a backend pass to each other."""

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from cat.scope import Scope

# What a change may expect of its key, beside a revision, which is never 0.
ABSENT = 0


class Meta(NamedTuple):
    """All columns of an entry but its value.

    `size` is in bytes; `created`, `updated` and `expires` are seconds since
    1970-01-01 UTC, and `expires` is `None` for never.
    """

    size: int
    revision: int
    created: float
    updated: float
    expires: float | None


class Row(NamedTuple):
    """What a read needs of an entry."""

    value: str
    revision: int
    expires: float | None


# What a backend answers that cannot tell without waiting.
UNKNOWN = Row("", 0, None)


class Range(NamedTuple):
    """The keys of a scope from `start` on, up to and without `end` (`None`: to the last)."""

    scope: Scope
    start: str = ""
    end: str | None = None


class Put(NamedTuple):
    """Store an entry, replacing any; the `created` of one that is live at `meta.updated` stays.

    With `expected`, only if that is the entry's revision; with `ABSENT`, only
    if there is no entry that is live at `meta.updated`.
    """

    scope: Scope
    key: str
    value: str
    meta: Meta
    expected: int | None = None


class Delete(NamedTuple):
    """Remove an entry, if it is there; with `expected`, only if that is its revision.

    Answers what it was, expired or not, or `None`.
    """

    scope: Scope
    key: str
    expected: int | None = None


class Expire(NamedTuple):
    """Give an entry that is live another expiry. Answers `True` if there was one."""

    scope: Scope
    key: str
    revision: int
    expires: float | None


class Clear(NamedTuple):
    """Remove a range of entries. Answers `Removed`, as do the next two."""

    range: Range


class ClearOwner(NamedTuple):
    """Remove all entries of an owner."""

    owner: str


class ClearNamespace(NamedTuple):
    """Remove all entries of a namespace and those below it, of every owner."""

    namespace: str


class Removed(NamedTuple):
    """How many live entries were removed, and how many bytes of values they held."""

    entries: int
    bytes: int


Change = Put | Delete | Expire | Clear | ClearOwner | ClearNamespace
Answer = Meta | Removed | bool | None


class Info(NamedTuple):
    """What `info` says of an entry.

    `size` is in bytes of JSON; `revision` differs after every write of the
    key; the times are in UTC, and `expires_at` is `None` for never.
    """

    size: int
    revision: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None


class Export(NamedTuple):
    """What `export_user` found.

    `entries` holds for each namespace, with `""` for the top, its keys and
    values; `files` the absolute paths of the files in the user's folders.
    """

    user: str
    entries: dict[str, dict[str, Any]]
    files: list[Path]


class Erased(NamedTuple):
    """What was erased: entries, the bytes of JSON in them, and files."""

    entries: int
    bytes: int
    files: int
