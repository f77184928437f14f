"""Every exception a caller can meet, grouped by when it happens.

All of them are `CatError`, and each is a built-in as well, so that code which
never heard of this library catches what it expects. A message says what was
wrong, where, why, and what to do. It may name a user id, a key or a path,
escaped and cut; it never holds a value.
"""

import errno
from pathlib import Path
from typing import Any, Self


def shown(text: object) -> str:
    """Return `text` as ASCII of at most 80 characters, fit for a message on any terminal."""
    quoted = ascii(text)
    return quoted if len(quoted) <= 80 else quoted[:77] + "..."


def escaped(location: Path) -> str:
    """Return a path as ASCII, whole: whoever mends it has to find it."""
    return ascii(str(location))[1:-1]


class CatError(Exception):
    """The base of every exception of this library.

    `not_stored` is `True` when it is certain that the call changed nothing,
    and `False` when the outcome of a write is unknown: the value may or may
    not be there, so look before you try again.
    """

    not_stored: bool = True

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args`, the finished message, which
        # the constructors here do not take: a pool could not send the error.
        return _restore, (type(self), self.args, self.__dict__)

    @classmethod
    def _restored(cls, args: tuple[Any, ...], state: dict[str, Any]) -> Self:
        error = cls.__new__(cls)
        error.args = args
        error.__dict__.update(state)
        return error


def _restore(kind: type[CatError], args: tuple[Any, ...], state: dict[str, Any]) -> CatError:
    return kind._restored(args, state)  # noqa: SLF001  # its own module


# --- Raised before the database is touched: something given cannot be used.


class NoUserError(CatError, RuntimeError):
    """`user` was used where nobody is bound."""

    def __init__(self) -> None:
        super().__init__(
            "no user is bound here, so 'user' has nobody to store for. Inside a request, bind the "
            "caller with a middleware; in a job or a script, use 'with cat.as_user(id):' or "
            "'cat.for_user(id)'; for what everyone shares, use 'store'"
        )


class AlreadyBoundError(CatError, RuntimeError):
    """A request has a user already, and another one was to be bound."""

    def __init__(self, bound: object, other: object) -> None:
        super().__init__(
            f"this request is already that of user {shown(bound)} and cannot become that of "
            f"{shown(other)}; bind the user in one place"
        )


class MissingMiddlewareError(CatError, RuntimeError):
    """Something that a middleware provides is not there."""


class WouldBlockError(CatError, RuntimeError):
    """A verb of `cat.blocking` was called inside a running event loop."""

    def __init__(self) -> None:
        super().__init__(
            "an event loop is running here, and a verb of cat.blocking would stop it while it "
            "waits; use 'from cat import store, user' and await the verb"
        )


class InvalidUserError(CatError, ValueError):
    """A user id is not a `str`, `int` or `UUID` of 1 to 255 bytes without control characters."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"this user id {reason}; give a str, an int or a UUID whose text has 1 to 255 bytes "
            "of UTF-8 and no control characters"
        )


class InvalidKeyError(CatError, ValueError):
    """A key is not a non-empty `str` without NUL within the limit of bytes."""

    def __init__(self, reason: str, limit: int) -> None:
        super().__init__(
            f"this key {reason}; give a non-empty str without NUL of at most {limit} bytes of "
            "UTF-8 (CAT_MAX_KEY_BYTES)"
        )


class InvalidNamespaceError(CatError, ValueError):
    """A namespace's name is not a non-empty `str` without `/` and control characters."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"this namespace's name {reason}; give a non-empty str without '/' and control "
            "characters, and nest with .namespace('a').namespace('b'), to at most 255 bytes of "
            "UTF-8 in all"
        )


class InvalidExpiryError(CatError, ValueError):
    """An `expires_in` is not a positive, finite number of seconds or a `timedelta`."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"expires_in {reason}; give seconds above 0 as an int or a float, or a timedelta, "
            "within the next 1,000 years, or None for never"
        )


class InvalidSettingError(CatError, ValueError):
    """A setting holds something it does not allow.

    The message names the setting, what it was, and what is allowed.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name} is {shown(value)}; allowed: {allowed}")


class UnstorableValueError(CatError, TypeError, ValueError):
    """A value cannot be kept as JSON without changing it, or is too large.

    It is a `TypeError` and a `ValueError`, as `json.dumps` raises for these.
    `path` says where in the value: `$.stops[2].at`.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path
        self.reason = reason


class InvalidArgumentError(CatError, TypeError, ValueError):
    """An argument of a verb is of the wrong type, or would do what nobody means."""

    def __init__(self, name: str, reason: str, cure: str) -> None:
        super().__init__(f"{name} {reason}; {cure}")


class InvalidResultError(CatError, TypeError, ValueError):
    """The function given to `modify` returned what cannot be meant."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(
            f"{where} was left as it is: the function given to modify() returned {reason}"
        )


class NestedEditError(CatError, RuntimeError):
    """A task that edits a key changed it in a way that would wait for its own edit."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} is being edited by this very task, which would wait for itself; change the "
            "value that the edit gave, or leave the edit first"
        )


class ForkedEditError(CatError, RuntimeError):
    """An edit of `cat.blocking` was begun before this process was forked, by its parent."""

    def __init__(self) -> None:
        super().__init__(
            "nothing was stored: the process was forked inside this edit, which stays its "
            "parent's; begin one in the child"
        )


class ReboundError(CatError, RuntimeError):
    """The value of an edit was rebound to another object instead of being changed."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} was left as it is: at the end of the edit nothing refers to its value any "
            "more, so what was assigned to the name would be lost. Give the value a name with "
            "'as', and change it in place, as with todos.append(...) or todos[:] = ...; or use "
            "modify()"
        )


class AlreadyConnectedError(CatError, RuntimeError):
    """`connect` was called on an event loop that is bound to another database or home."""

    def __init__(self) -> None:
        super().__init__(
            "this event loop already uses another database or home. Call cat.connect() before the "
            "first use of 'store' or 'user' on the loop, and leave one connect() before you enter "
            "another"
        )


# --- Raised by a read: what is stored is not what was asked for.


class InvalidValueError(CatError, ValueError):
    """The stored value does not match the `type=` that was asked for.

    `problems` lists what pydantic found, as `(path, kind)` pairs such as
    `("$.volume", "int_type")`; no values.
    """

    def __init__(self, where: str, wanted: str, problems: list[tuple[str, str]]) -> None:
        found = ", ".join(f"{path} ({kind})" for path, kind in problems[:5])
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        super().__init__(
            f"{where} does not match {wanted} at {found}{more}; it was left as it is. Load it "
            "without type=, mend it and save it, or delete it"
        )
        self.problems = problems


class KeyNotFoundError(CatError, KeyError):
    """There is nothing to edit under the key, and no default was given."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where} is not there to be edited; give edit() a default, or save it")

    __str__ = Exception.__str__  # a KeyError would quote its text


class NotEditableError(CatError, TypeError):
    """The value is none that `edit` can change in place: no list, dict, model or dataclass."""

    def __init__(self, where: str, kind: str) -> None:
        super().__init__(
            f"{where} is of type {kind}, which cannot be changed in place; use modify(), or "
            "increment() for a counter"
        )


class CorruptValueError(CatError, ValueError):
    """What is stored is not readable JSON: something else wrote into the database."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} holds text that is not JSON; it was left as it is. Another program wrote "
            "it, or the file is damaged: restore a backup, or save or delete the key"
        )


# --- Raised by a change that met another one.


class ConflictError(CatError, RuntimeError):
    """The key was changed by somebody else, or expired, during an edit of it."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} was changed by somebody else or has expired during the edit; what they "
            "did was kept, and this change dropped. Edit it again, and use edit() instead of "
            "save() wherever the key is changed"
        )


class KeyBusyError(CatError, TimeoutError):
    """A key did not come free within `CAT_TIMEOUT`."""

    def __init__(self, where: str, timeout: float) -> None:
        super().__init__(
            f"{where} did not come free within {timeout:g} seconds (CAT_TIMEOUT); look for an "
            "edit of it that takes long, or that waits for a task which changes the same key; do "
            "slow work before the edit, not inside it"
        )


# --- Raised when the database is opened or used.


class DatabaseUnavailableError(CatError, OSError):
    """The database cannot be used now. The base of all that the file or the disk can do.

    `location` is the path of the database, its directory, or its lock file.
    """

    def __init__(
        self, location: Path, reason: str, *, not_stored: bool = True, outcome: str = ""
    ) -> None:
        known = "nothing was stored" if not_stored else "it may or may not be stored"
        super().__init__(f"{escaped(location)}: {reason} ({outcome or known})")
        self.location = location
        self.not_stored = not_stored


class DatabaseReplacedError(DatabaseUnavailableError):
    """The file was removed, or replaced by another, while it was in use."""

    def __init__(self, location: Path) -> None:
        super().__init__(
            location,
            "the file was removed or replaced while it was in use, and what is written now would "
            "be lost with it; put the right file in place and restart this process",
        )


class DatabaseBusyError(DatabaseUnavailableError, TimeoutError):
    """Another process held the database for longer than `CAT_TIMEOUT`."""

    errno = errno.ETIMEDOUT

    def __init__(self, location: Path, timeout: float) -> None:
        super().__init__(
            location,
            f"another process held it for {timeout:g} seconds (CAT_TIMEOUT); look for one that is "
            "stopped, or that holds a transaction open, and try again",
        )


class NotScrubbedError(DatabaseUnavailableError, TimeoutError):
    """What was erased is gone, and may still stand in the files of the database."""

    errno = errno.ETIMEDOUT

    def __init__(self, location: Path, timeout: float) -> None:
        super().__init__(
            location,
            f"others read or wrote for {timeout:g} seconds without a pause (CAT_TIMEOUT), so what "
            "was erased may still stand in the log; look for a process that holds a transaction "
            "open, end it, and erase again",
            not_stored=False,
            outcome="the entries and files were removed",
        )


class NotWritableError(DatabaseUnavailableError, PermissionError):
    """A directory or a file cannot be made or written."""

    errno = errno.EACCES

    def __init__(self, location: Path, reason: str, *, not_stored: bool = True) -> None:
        super().__init__(
            location,
            f"cannot be written: {reason}; give this process the right to write there, or point "
            "CAT_HOME or CAT_URL elsewhere",
            not_stored=not_stored,
            outcome="" if not_stored else "some of what was to be removed is gone",
        )


class DiskFullError(DatabaseUnavailableError):
    """The disk, or a quota on it, is full."""

    errno = errno.ENOSPC

    def __init__(self, location: Path) -> None:
        super().__init__(
            location, "the disk is full; free some space and try again, without a restart"
        )


class CorruptDatabaseError(DatabaseUnavailableError):
    """The database file is damaged or cut short."""

    def __init__(self, location: Path, reason: str) -> None:
        super().__init__(
            location,
            f"the database is damaged: {reason}; it was left as it is. Copy it with its -wal file "
            "to a safe place, then restore a backup, or save what can be read with sqlite3's "
            ".recover",
        )


class NotADatabaseError(DatabaseUnavailableError):
    """The file is not an SQLite database at all."""

    def __init__(self, location: Path) -> None:
        super().__init__(
            location,
            "this file is not an SQLite database; it was left as it is. Move it away, or point "
            "CAT_HOME or CAT_URL elsewhere",
        )


class ForeignDatabaseError(DatabaseUnavailableError):
    """The file is an SQLite database of another program."""

    def __init__(self, location: Path) -> None:
        super().__init__(
            location,
            "this SQLite file belongs to another program; it was left as it is. Point CAT_HOME or "
            "CAT_URL at a file of its own",
        )


# --- Raised by migrations.


class MigrationError(CatError, RuntimeError):
    """The migrations cannot be found, are out of order, or failed; the database is as it was."""


class NewerDatabaseError(MigrationError):
    """The database was written by a newer release than this one."""

    def __init__(self, location: Path, found: int, known: int) -> None:
        super().__init__(
            f"{escaped(location)}: this database is at version {found} and this release of "
            f"catstore knows up to {known}; it was left as it is. Upgrade catstore, or restore a "
            "backup made before the upgrade"
        )
