"""Lists the migration files and decides what is pending; touches no database.

A migration is `NNNN_what_it_does.sql`. The list is append-only: a file that
was released never changes, and the next one has the next number. The files
are shipped inside the package as `cat/migrations`, and stand at the top level
of a checkout.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cat.errors import MigrationError, escaped

_PLACES = (
    Path(__file__).parent / "migrations",
    Path(__file__).parent.parent.parent / "migrations",
)
_CURE = "the installation is damaged: reinstall catstore"


class Migration(NamedTuple):
    """One file: `version` is its number, from 1."""

    version: int
    name: str
    sql: str


@functools.cache
def migrations(dialect: str, places: tuple[Path, ...] = _PLACES) -> tuple[Migration, ...]:
    """Return every migration of `dialect` (`"sqlite"`), oldest first.

    The files are read once: should the package be upgraded under a running
    process, the old code does not apply what only the new one knows.

    Raises `MigrationError` if there are none, if a name is not of the form
    `NNNN_name.sql`, or if the numbers are not 1, 2, 3 and so on.
    """
    for place in places:
        files = sorted((place / dialect).glob("*.sql"))
        if files:
            return tuple(_migration(file, n) for n, file in enumerate(files, start=1))
    looked = " and ".join(escaped(place / dialect) for place in places)
    raise MigrationError(f"there are no migrations in {looked}; {_CURE}")


def pending(known: Sequence[Migration], version: int) -> list[Migration]:
    """Return those of `known` that a database at `version` has not had yet."""
    return [migration for migration in known if migration.version > version]


def _migration(file: Path, expected: int) -> Migration:
    number, _, name = file.stem.partition("_")
    if not (len(number) == 4 and number.isascii() and number.isdigit() and name):
        raise MigrationError(f"{escaped(file)} is not named NNNN_what_it_does.sql; {_CURE}")
    if int(number) != expected:
        raise MigrationError(f"{escaped(file)} stands where {expected:04} belongs; {_CURE}")
    return Migration(expected, name, file.read_text(encoding="utf-8"))
