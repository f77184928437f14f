"""What is kept for one key: the columns that a repository and a backend pass to each other."""

from typing import NamedTuple

from cat.scope import Scope


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


class Put(NamedTuple):
    """Store an entry, replacing any; the `created` of one that is live at `meta.updated` stays."""

    scope: Scope
    key: str
    value: str
    meta: Meta


class Delete(NamedTuple):
    """Remove an entry, if it is there."""

    scope: Scope
    key: str


Change = Put | Delete
