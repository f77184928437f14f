"""What the library makes on disk: directories and files for their owner alone.

Also where the folder of a scope lies. Nothing here reads or opens the
database: opening and closing it with anything but SQLite drops the locks that
this process holds on it (https://www.sqlite.org/howtocorrupt.html, 2.2).
"""

import contextlib
import errno
import functools
import logging
import os
import re
import stat
from pathlib import Path
from typing import NoReturn

from cat.errors import DatabaseUnavailableError, DiskFullError, NotWritableError, escaped
from cat.scope import Scope

LOG = logging.getLogger("cat")

# Scopes' folders are leaves of this name, beside the directories of the
# namespaces below, so that none is ever inside another.
_LEAF = "folder"

# How often to remove a directory in which others make files.
ATTEMPTS = 1_000


def owned(home: Path, owner: str) -> list[Path]:
    """Return every file in the folders of a user, in order."""
    return sorted(_files(_of_owner(home, owner)))


def erase_owner(home: Path, owner: str) -> int:
    """Remove the folders of a user, and say how many files were in them.

    Raises `NotWritableError`.
    """
    return _erase(_of_owner(home, owner))


def erase_namespace(home: Path, namespace: str) -> int:
    """Remove the folders of a namespace and those below it, of everyone, and count the files.

    Raises `NotWritableError`.
    """
    roots = [home / "files" / "store", *(home / "files" / "users").glob("*")]
    return sum(_erase(root.joinpath(*_slugs(namespace))) for root in roots)


def folder(home: Path, scope: Scope) -> Path:
    """Return the directory of `scope` under `home`, made if it is not there.

    Raises `NotWritableError`.
    """
    root = _of_owner(home, scope.owner) if scope.owner else home / "files" / "store"
    place = root.joinpath(*_slugs(scope.namespace), _LEAF)
    make_directory(place)
    return place


def make_directory(place: Path) -> None:
    """Make `place` and the parents it lacks, mode 0700 whatever the umask.

    A directory that is there is left as it is. What is made here survives a
    power cut: each parent is synced. Raises `NotWritableError`.
    """
    try:
        _make_directory(place)
    except OSError as error:
        raise unwritable(place, error) from error


def make_file(place: Path) -> None:
    """Make the empty file `place`, mode 0600 whatever the umask, unless it is there.

    A file made by root takes the owner of the directory, so that a root shell
    beside the host does not lock it out. Raises `NotWritableError`.
    """
    try:
        # O_EXCL: what is closed here is new, so nobody holds a lock on it yet.
        descriptor = os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        _hand_over(descriptor, 0o600, place.parent)
    except FileExistsError:
        return
    except OSError as error:
        raise unwritable(place, error) from error


def unwritable(place: Path, error: OSError, *, not_stored: bool = True) -> DatabaseUnavailableError:
    """Return the error for a caller, for one of the system's at `place`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(place)
    return NotWritableError(place, error.strerror or str(error), not_stored=not_stored)


def replace(place: Path, name: Path) -> None:
    """Give the file at `place` another name in its directory, in one step that lasts."""
    place.replace(name)
    _sync(name.parent)


def size_of(place: Path) -> int:
    """Return the size of a file in bytes, 0 if there is none."""
    try:
        return place.stat().st_size
    except FileNotFoundError:
        return 0


def report_wide_mode(place: Path) -> None:
    """Log one warning in the life of the process if others than the owner may enter `place`."""
    # Windows has no such modes and reports 0777 for everything.
    if os.name == "posix" and place.stat().st_mode & 0o077:
        _report(place)


@functools.cache
def _report(place: Path) -> None:
    mode = stat.S_IMODE(place.stat().st_mode)
    cure = "0700" if place.is_dir() else "0600"
    LOG.warning("%s has mode %04o: others on this machine can get in; chmod %s", place, mode, cure)


def _make_directory(place: Path) -> None:
    if place.is_dir():
        return
    _make_directory(place.parent)
    with contextlib.suppress(FileExistsError):  # another process was quicker, or the next line says
        place.mkdir(mode=0o700)
        if os.name == "posix":  # only there can a directory be opened
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            _hand_over(descriptor, 0o700, place.parent)
        _sync(place.parent)
    if not place.is_dir():
        raise NotADirectoryError(f"{escaped(place)} is a file")


def _hand_over(descriptor: int, mode: int, parent: Path) -> None:
    """Give what was just made its mode, and root's to the owner of the directory; close it.

    By descriptor: a name could by now be a link to somebody else's file.
    """
    try:
        if os.name == "posix":
            os.fchmod(descriptor, mode)  # the umask may have taken bits away
            if os.geteuid() == 0:
                owner = parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
    finally:
        os.close(descriptor)


def _sync(directory: Path) -> None:
    if os.name != "posix":
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:  # one may write there and not list it: then it cannot be synced
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _of_owner(home: Path, owner: str) -> Path:
    return home / "files" / "users" / _slug(owner)


def _files(root: Path) -> list[Path]:
    return [Path(place, name) for place, _, names in os.walk(root) for name in names]


def _erase(root: Path) -> int:
    """Remove a directory with all below it, whatever others do there meanwhile; count the files.

    Links are removed, and what they lead to is left.
    """
    count = 0
    for _ in range(ATTEMPTS):
        try:
            if root.is_symlink():
                root.unlink()
            for place, directories, names in os.walk(root, topdown=False, onerror=_raise):
                for name in names:
                    Path(place, name).unlink()
                    count += 1
                for name in directories:
                    _remove_directory(Path(place, name))
            _remove_directory(root)
        except OSError as error:
            if not os.path.lexists(root):
                return count
            # Others make files in it, or remove some.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise unwritable(Path(error.filename), error, not_stored=False) from error
        else:
            return count
    raise NotWritableError(root, "others make files in it all the time", not_stored=False)


def _remove_directory(place: Path) -> None:
    """Remove an empty directory, or a link to one."""
    if place.is_symlink():
        place.unlink()
    else:
        place.rmdir()


def _raise(error: OSError) -> NoReturn:
    raise error


def _slugs(namespace: str) -> list[str]:
    return [_slug(name) for name in namespace.split("/")] if namespace else []


def _slug(name: str) -> str:
    """Return a directory name for `name`: readable, and its own whatever the file system folds.

    At most 40 characters of a-z, 0-9 and `-`, then 80 bits of a hash: no
    traversal, no reserved name, nothing too long.
    """
    import hashlib  # noqa: PLC0415  # only those who use folders pay for it

    digest = hashlib.sha256(name.encode()).hexdigest()[:20]
    readable = re.sub("[^a-z0-9]+", "-", name.lower())[:40].strip("-")
    return f"{readable}-{digest}" if readable else digest
