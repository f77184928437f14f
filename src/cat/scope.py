"""Whose row: the isolation boundary.

A `Scope` is the pair of columns that every row carries and every statement
names. Nothing is joined into one text, so no separator can be forged, and
nothing is folded: `A` and `a`, composed and decomposed accents are different.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

from cat.errors import InvalidNamespaceError, InvalidUserError, shown

if TYPE_CHECKING:
    from uuid import UUID

MAX_BYTES = 255


class Scope(NamedTuple):
    """One owner's entries in one namespace.

    `owner` is `""` for the global store, else a user id; `namespace` is `""`
    at the top, else names joined by `/`.
    """

    owner: str
    namespace: str

    def __str__(self) -> str:
        """Name the scope for a message, escaped and cut: `user 'alice', namespace 'weather'`."""
        whose = f"user {shown(self.owner)}" if self.owner else "the global store"
        return f"{whose}, namespace {shown(self.namespace)}" if self.namespace else whose

    def at(self, key: str) -> str:
        """Name an entry for a message, escaped and cut: `key 'theme' of the global store`."""
        return f"key {shown(key)} of {self}"


GLOBAL = Scope("", "")
# The same few are asked for again and again, at each verb.
scope_of = functools.lru_cache(maxsize=1024)(Scope)


def owner_of(user_id: "str | int | UUID") -> str:
    """Return the owner for `user_id`: its text, checked.

    Raises `InvalidUserError` for any other type (a `bool` too), for an empty
    text, for one of more than 255 bytes of UTF-8, and for control characters
    and lone surrogates.
    """
    if isinstance(user_id, str):
        text = str.__str__(user_id)
    elif isinstance(user_id, int) and not isinstance(user_id, bool):
        # Longer than the limit in any case, and maybe too long for str().
        text = int.__repr__(user_id) if user_id.bit_length() <= 8 * MAX_BYTES else "9" * 999
    else:
        text = _uuid_text(user_id)
    reason = _fault(text)
    if reason:
        raise InvalidUserError(reason)
    return text


def inside(namespace: str, name: str) -> str:
    """Return the namespace called `name` below `namespace`.

    Raises `InvalidNamespaceError` for a name that is not a non-empty `str`
    without `/`, control characters and lone surrogates, and when the whole is
    longer than 255 bytes of UTF-8.
    """
    if not isinstance(name, str):
        raise InvalidNamespaceError(f"is of type {type(name).__name__}")
    if "/" in name:
        raise InvalidNamespaceError(f"has a '/' in it: {shown(name)}")
    text = f"{namespace}/{str.__str__(name)}" if namespace else str.__str__(name)
    reason = "is empty" if not name else _fault(text)
    if reason:
        raise InvalidNamespaceError(reason)
    return text


def nested(names: str) -> str:
    """Return the namespace of that name, or of several names joined by `/`.

    Raises `InvalidNamespaceError`, as `inside` does.
    """
    if not isinstance(names, str):
        return inside("", names)  # which raises
    namespace = ""
    for name in names.split("/"):
        namespace = inside(namespace, name)
    return namespace


def _uuid_text(user_id: object) -> str:
    from uuid import UUID  # noqa: PLC0415  # 1 ms that most processes never need

    if not isinstance(user_id, UUID):
        raise InvalidUserError(f"is of type {type(user_id).__name__}")
    return str(user_id)


def _fault(text: str) -> str | None:
    """Say what is wrong with the text of a user id or a namespace, or return `None`."""
    if not text:
        return "is empty"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return f"holds a lone surrogate: {shown(text)}"
    if size > MAX_BYTES:
        return f"has more than {MAX_BYTES} bytes of UTF-8"
    if any(character < " " or "\x7f" <= character <= "\x9f" for character in text):
        return f"holds a control character: {shown(text)}"
    return None
